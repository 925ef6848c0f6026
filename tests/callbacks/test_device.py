from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from toolbox import StopCB, StoppedError
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from minilearn import Callback, CheckpointCB, DataLoaders, DeviceCB, Learner, TensorLoader, set_seed
from minilearn.batches import to_device
from minilearn.parameters import follow_params

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


def test_batch_class_that_moves_itself_leaves_the_data_set_s_own_where_it_is():
    class Graph:
        def __init__(self):
            self.x = t

        def to(self, device):
            self.x = self.x.to(device)
            return self

    graph = Graph()
    assert to_device([graph], torch.device("meta"))[0].x.is_meta
    assert graph.x is t


def test_what_callbacks_keep_moves_with_the_model(make_learner):
    class TeacherCB(MeanOfWeights):
        def __init__(self):
            self.teacher, self.heads = nn.Linear(3, 2), {"a": nn.Linear(3, 2)}

    cb = TeacherCB()
    sgd = partial(torch.optim.SGD, fused=False)
    make_learner(dls={"train": [(t, t)]}, cbs=[cb, DeviceCB("meta")], opt_func=sgd).fit()
    assert cb.teacher.weight.is_meta
    assert cb.heads["a"].weight.is_meta


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"foreach": True}, "cpu"), ({"capturable": True}, "meta"), ({"fused": True}, "meta")],
)
def test_count_of_steps_is_where_the_kernel_reads_it(settings, expected):
    p = nn.Parameter(torch.ones(2, device="meta"))
    opt = torch.optim.AdamW([p], fused=False)
    opt.param_groups[0] |= settings
    opt.state[p] = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.ones(2),
        "product": torch.tensor(0.9),  # NAdam's, which it reads on the CPU
        "history": [torch.ones(5)],  # as LBFGS keeps it
    }
    follow_params(opt)
    assert devices(opt.state[p]) == {
        "step": expected,
        "exp_avg": "meta",
        "product": "cpu",
        "history": ["meta"],
    }


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


@pytest.mark.gpu
@needs_gpu
def test_run_is_resumed_inside_a_phase_on_the_gpu(tmp_path):
    def learner(*cbs):
        set_seed(0, deterministic=True)
        x, y = torch.randn(40, 3), torch.randint(2, (40,))
        dls = DataLoaders(TensorLoader(x, y, bs=8, shuffle=True), TensorLoader(x, y, bs=8))
        saver = CheckpointCB(tmp_path / str(len(cbs)), every_steps=1)
        return Learner(nn.Linear(3, 2), dls, cbs=[saver, *cbs])

    straight, stopped = learner(), learner(StopCB(7))
    straight.fit(2)
    with pytest.raises(StoppedError):
        stopped.fit(2)
    resumed = learner(StopCB(-1))
    resumed.fit(2, resume=True)
    assert torch.equal(resumed.model.weight, straight.model.weight)
    accuracies = [[row["MulticlassAccuracy"] for row in learn.history] for learn in (resumed, straight)]
    assert accuracies[0] == accuracies[1]
