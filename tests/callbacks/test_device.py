from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from minilearn import Callback, DeviceCB
from minilearn.batches import to_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
Pair = namedtuple("Pair", "left right")


class MeanOfWeights(Callback):
    """Own the steps that look into a batch, and keep the batch."""

    def predict(self, learn):
        self.batch = learn.batch

    def get_loss(self, learn):
        learn.loss = learn.model.weight.mean()


def devices(batch):
    return tree_map(lambda item: item.device.type if isinstance(item, Tensor) else item, batch)


@pytest.fixture
def machine(monkeypatch):
    """Stand for a machine with so many accelerators of a kind: machine("xpu", 2)."""

    def make(kind, n=1):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: n > 0)
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda *_: torch.device(kind) if n else None
        )
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: n)

    return make


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_device_is_the_accelerator_that_torch_finds(machine, kind):
    machine(kind)
    assert DeviceCB().device == torch.device(kind)


def test_device_is_the_cpu_where_there_is_no_accelerator(machine):
    machine("cuda", 0)
    assert DeviceCB().device == torch.device("cpu")


def test_named_device_is_used():
    assert DeviceCB("meta").device == DeviceCB(torch.device("meta")).device == torch.device("meta")


def test_cpu_is_used_in_spite_of_an_accelerator(machine):
    machine("cuda")
    assert DeviceCB("cpu").device == torch.device("cpu")


@pytest.mark.parametrize(("kind", "there"), [("cuda", "cpu"), ("mps", "cuda"), ("cuda", "xpu")])
def test_named_device_that_is_not_there_is_refused(machine, kind, there):
    machine(there, int(there != "cpu"))
    with pytest.raises(ValueError, match=rf"DeviceCB\(device='{kind}'\): .*no {kind} .*has {there}"):
        DeviceCB(kind)


def test_index_that_is_not_there_is_refused(machine):
    machine("cuda", 2)
    assert DeviceCB("cuda:1").device.index == 1
    with pytest.raises(ValueError, match=r"DeviceCB\(device='cuda:2'\).*index below 2"):
        DeviceCB("cuda:2")


t = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((t, t), ("meta", "meta")),
        ([t, t], ["meta", "meta"]),
        (Pair(t, t), Pair("meta", "meta")),
        (({"a": t, "b": [t, "text"]}, t), ({"a": "meta", "b": ["meta", "text"]}, "meta")),
        ((t, [None, 7, (t,)]), ("meta", [None, 7, ("meta",)])),
    ],
    ids=["tuple", "list", "namedtuple", "dict", "no tensors"],
)
def test_batches_are_moved_whatever_their_nesting(make_learner, batch, expected):
    cb = MeanOfWeights()
    sgd = partial(torch.optim.SGD, fused=False)  # of which there is no kernel for this device
    make_learner(dls={"train": [batch]}, cbs=[cb, DeviceCB("meta")], opt_func=sgd).fit()
    assert devices(cb.batch) == expected
    assert type(cb.batch) is type(batch)


def test_batch_class_with_a_to_is_moved_by_it():
    learn = SimpleNamespace(batch=(SimpleNamespace(to=lambda device: f"moved to {device}"), t))
    DeviceCB("meta").before_batch(learn)
    assert learn.batch[0] == "moved to meta"


def test_tensors_that_are_there_are_not_copied():
    moved = to_device((t, [t]), torch.device("cpu"))
    assert moved[0] is t
    assert moved[1][0] is t


@pytest.mark.parametrize(("device", "non_blocking"), [("cuda", True), ("meta", False)])
def test_copies_to_cuda_do_not_wait(device, non_blocking):
    class Asked(Tensor):
        def to(self, device, **kwargs):
            return kwargs

    assert to_device(torch.zeros(2).as_subclass(Asked), torch.device(device)) == {
        "non_blocking": non_blocking
    }


def test_batches_of_validation_are_moved_too(make_learner):
    cb = MeanOfWeights()
    learn = make_learner(dls={"train": [(t, t)], "eval": [(t, t, t)]}, cbs=[cb, DeviceCB("meta")])
    learn.fit(train=False)
    assert devices(cb.batch) == ("meta", "meta", "meta")


@pytest.mark.gpu
@needs_gpu
def test_kept_optimizer_moves_to_the_gpu_with_the_model(make_learner):
    learn = make_learner()
    learn.fit(cbs=[DeviceCB("cpu")])
    learn.fit(cbs=[DeviceCB("cuda")])
    assert learn.model.weight.is_cuda
    assert learn.opt.state[learn.model.weight]["exp_avg"].is_cuda


@pytest.mark.gpu
@needs_gpu
def test_gpu_trains_to_the_weights_of_the_cpu(make_learner):
    cpu, gpu = make_learner(cbs=[DeviceCB("cpu")]), make_learner(cbs=[DeviceCB("cuda")])
    cpu.fit(3)
    gpu.fit(3)
    torch.testing.assert_close(gpu.model.weight.cpu(), cpu.model.weight, rtol=1e-4, atol=1e-5)
