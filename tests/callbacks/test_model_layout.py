from collections import namedtuple
from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from toolbox import StopCB, StoppedError, conv_learner
from torch import nn
from torch.optim import SGD, AdamW

from minilearn import ChannelsLastCB, CheckpointCB, CompileCB, Learner, MetricsCB
from minilearn.weights import tensors_by_name

Batch = namedtuple("Batch", "image target")
Inputs = namedtuple("Inputs", "image size")


def is_last(t):
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def tensors(learn):
    return {name: t.detach().clone() for name, t in tensors_by_name(learn.model).items()}


# ChannelsLastCB ---------------------------------------------------------------------------------------


def test_weights_and_batches_are_channels_last(at):
    seen = []
    look = at("after_batch", lambda learn: seen.append((is_last(learn.xb), learn.xb.shape)), order=31)
    learn = conv_learner(ChannelsLastCB(), look)
    learn.fit()
    assert seen == [(True, (4, 3, 6, 6))] * 6
    assert [is_last(learn.model[i].weight) for i in (0, 3)] == [True, True]


def test_gradients_and_momentum_are_channels_last(at):
    seen = []
    learn = conv_learner(
        ChannelsLastCB(), at("before_step", lambda x: seen.append(is_last(x.model[0].weight.grad)))
    )
    learn.fit()
    assert seen == [True] * 4
    assert is_last(learn.opt.state[learn.model[0].weight]["momentum_buffer"])


def test_predictions_and_training_are_the_same(at):
    plain, learn = conv_learner(), conv_learner(ChannelsLastCB())
    torch.testing.assert_close(learn.predict(learn.dls.valid), plain.predict(plain.dls.valid))
    learn.fit(2)
    plain.fit(2)
    torch.testing.assert_close(tensors(learn), tensors(plain), rtol=1e-4, atol=1e-5)  # sums in another order


IMAGE, FLAT = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
BATCHES = {
    "tuple": ((IMAGE, FLAT), lambda b: b[0]),
    "list": ([IMAGE, FLAT], lambda b: b[0]),
    "namedtuple": (Batch(IMAGE, FLAT), lambda b: b.image),
    "dict": ({"image": IMAGE, "flat": FLAT}, lambda b: b["image"]),
    "tensor": (IMAGE, lambda b: b),
    "tuple inside": (((FLAT, IMAGE), FLAT), lambda b: b[0][1]),
    "list inside": (([FLAT, IMAGE], FLAT), lambda b: b[0][1]),
    "dict inside": (({"image": IMAGE, "flat": FLAT}, FLAT), lambda b: b[0]["image"]),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_images_in_any_batch_become_channels_last(kind):
    batch, image_of = BATCHES[kind]
    learn = conv_learner()
    learn.batch = batch
    ChannelsLastCB().before_batch(learn)
    assert type(learn.batch) is type(batch)
    changed = learn.xb if kind in ("dict", "tensor") else learn.batch  # a pair is written to
    assert is_last(image_of(changed))
    assert torch.equal(image_of(changed), IMAGE)


def test_images_in_a_namedtuple_of_inputs_become_channels_last():
    learn = conv_learner()
    learn.batch = (Inputs(IMAGE, FLAT), FLAT)
    ChannelsLastCB().before_batch(learn)
    assert is_last(learn.xb.image)
    assert learn.xb.size is FLAT


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_inputs_of_other_dimensions_are_left_alone(shape):
    learn, xb = conv_learner(), torch.randn(shape)
    learn.batch = batch = (xb, IMAGE)
    ChannelsLastCB().before_batch(learn)
    assert learn.batch[0] is xb
    assert learn.batch[1] is batch[1]  # targets are no inputs


def test_batch_that_is_no_tensor_is_left_alone():
    learn = conv_learner()
    learn.batch = batch = object()
    ChannelsLastCB().before_batch(learn)
    assert learn.batch is batch


@pytest.mark.parametrize("opt_func", [AdamW, partial(SGD, momentum=0.9)])
def test_kept_optimizer_continues_when_the_weights_become_channels_last(opt_func):
    plain, learn = conv_learner(opt_func=opt_func, lr=0.01), conv_learner(opt_func=opt_func, lr=0.01)
    for cbs in ([], [ChannelsLastCB()]):
        plain.fit()
        learn.fit(cbs=cbs)
    torch.testing.assert_close(tensors(learn), tensors(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_run_may_be_resumed_in_the_other_order_of_memory(tmp_path):
    def new(*cbs):
        return conv_learner(CheckpointCB(tmp_path, every_steps=1), *cbs, opt_func=AdamW, lr=0.01)

    plain = conv_learner(opt_func=AdamW, lr=0.01)
    plain.fit()
    with pytest.raises(StoppedError):
        new(StopCB(2)).fit()
    learn = new(ChannelsLastCB())
    with pytest.warns(UserWarning, match="ChannelsLastCB is new"):
        learn.fit(resume=True)
    torch.testing.assert_close(tensors(learn), tensors(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("opt_func", [AdamW, partial(SGD, momentum=0.9)])
def test_resumed_run_in_channels_last_is_the_straight_run(opt_func):
    assert "bit for bit" in conv_learner(ChannelsLastCB(), opt_func=opt_func).verify_resume(2)


# CompileCB --------------------------------------------------------------------------------------------


class Backend:
    """A backend of torch.compile that compiles nothing, and counts."""

    def __init__(self):
        self.n = self.n_runs = 0

    def __call__(self, graph, inputs):
        self.n += 1

        def run(*args):
            self.n_runs += 1
            return graph.forward(*args)

        return run

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4), nn.ReLU(), nn.Linear(4, 2))


class Own(nn.Module):
    """A model with a forward of its own, which torch's compile() compiles in every version."""

    def __init__(self):
        super().__init__()
        self.net = tiny()

    def forward(self, x):
        return self.net(x)


@pytest.mark.slow
@pytest.mark.parametrize("new", [tiny, Own])
def test_compiled_model_trains_to_the_same_weights(backend, new):
    plain, learn = conv_learner(model=new()), conv_learner(CompileCB(backend=backend), model=new())
    model = learn.model
    plain.fit()
    learn.fit()
    assert learn.model is model
    assert backend.n > 0
    assert backend.n_runs == 4 + 2
    torch.testing.assert_close(tensors(learn), tensors(plain))


@pytest.mark.slow
def test_names_are_those_of_the_plain_model(backend, tmp_path):
    learn = conv_learner(CompileCB(backend=backend), model=tiny())
    learn.fit()
    assert learn.model.state_dict().keys() == tiny().state_dict().keys()
    learn.save(tmp_path / "m.safetensors")
    plain = tiny()
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), learn.model.parameters(), strict=True))


@pytest.mark.slow
def test_second_fit_does_not_compile_again(backend):
    learn = conv_learner(CompileCB(backend=backend), model=tiny())
    learn.fit()
    n, call = backend.n, learn.model._compiled_call_impl
    learn.fit()
    learn.validate()
    assert backend.n == n
    assert learn.model._compiled_call_impl is call


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_model_that_the_user_compiled_is_left_alone(backend, how):
    model, other = Own(), Backend()
    if how == "in place":
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    conv_learner(CompileCB(backend=other), model=model).fit()
    assert backend.n > 0
    assert other.n == 0


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
def test_run_of_a_compiled_model_is_resumed_with_or_without_it(backend, tmp_path, compiled):
    def new(*cbs):
        return conv_learner(CheckpointCB(tmp_path, every_steps=1), *cbs, model=tiny())

    straight = conv_learner(model=tiny())
    straight.fit()
    with pytest.raises(StoppedError):
        new(CompileCB(backend=backend), StopCB(2)).fit()
    learn = new(*[CompileCB(backend=backend)] * compiled)
    with nullcontext() if compiled else pytest.warns(UserWarning, match="the resumed run had CompileCB"):
        learn.fit(resume=True)
    assert learn.n_steps == 4
    torch.testing.assert_close(tensors(learn), tensors(straight))


@pytest.mark.slow
def test_copy_of_a_compiled_model_has_its_own_weights(backend):
    learn = conv_learner(CompileCB(backend=backend), model=tiny())
    learn.fit()
    copied, before = deepcopy(learn.model), tensors(learn)
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert not copied(torch.ones(1, 3, 6, 6)).any()
    other = Learner(copied, learn.dls, cbs=[CompileCB(backend=backend)], default_cbs=False, lr=0.1)
    other.fit()
    assert all(torch.equal(before[name], t) for name, t in tensors(learn).items())


@pytest.mark.slow
def test_verify_resume_works_with_it(backend):
    assert "bit for bit" in conv_learner(CompileCB(backend=backend), model=tiny()).verify_resume(2)


def test_arguments_are_torchs(backend):
    cb = CompileCB(backend="eager", dynamic=False)
    assert repr(cb) == "CompileCB(backend='eager', dynamic=False)"
    with pytest.raises(TypeError, match=r"CompileCB\(speed=9\).*torch.compile.*mode"):
        CompileCB(speed=9)


@pytest.mark.parametrize(
    ("mode", "copies"), [("reduce-overhead", True), ("max-autotune", True), ("default", False)]
)
def test_predictions_of_cuda_graphs_are_copied_in_validation(at, monkeypatch, mode, copies):
    # The model itself is not compiled here: that needs a compiler.
    marks, same = [], []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: None)
    first = at("after_predict", lambda learn: kept.append(learn.preds), order=-21)
    kept = []
    after = at("after_predict", lambda x: same.append((x.training, x.preds is kept[-1])))
    learn = conv_learner(CompileCB(mode=mode), first, after, MetricsCB(), model=Own())
    learn.fit()
    assert same == [(True, True)] * 4 + [(False, not copies)] * 2
    assert len(marks) == (6 if copies else 0)
