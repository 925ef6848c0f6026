from functools import partial

import pytest
import torch
from toolbox import mentions, untimed_rows
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CancelBatchException,
    CUDAGraphCB,
    DataLoaders,
    DeviceCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    RecorderCB,
    TensorLoader,
    TerminateOnNaNCB,
    optim,
    resnet20,
    set_seed,
)
from minilearn.seeding import kept_rng

SGD = partial(torch.optim.SGD, momentum=0.9)  # built fused, which reads the lr where it lies
HAS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Tape(TorchDispatchMode):
    """Stand for a CUDA graph on the CPU: the operations of a step, to be done again on the same memory."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.ops.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.ops:
            new = func(*args, **kwargs)
            for a, b in zip(_tensors(out), _tensors(new), strict=True):
                if a is not b and a.data_ptr() != b.data_ptr():
                    a.copy_(b)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, tuple | list) else []


class TapeCB(CUDAGraphCB):
    """CUDAGraphCB with a tape in the graph's place."""

    n_captures = 0

    def _device_of(self, learn):
        self.learn = learn
        return "cuda"

    def _side(self):
        return torch.enable_grad()

    def _captured(self, run):
        self.n_captures += 1
        learn, tape = self.learn, Tape()
        tensors = [*learn.model.parameters(), *learn.model.buffers()]
        tensors += [v for s in learn.opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        before = [t.detach().clone() for t in tensors]
        with kept_rng(), tape:
            run()
        with torch.no_grad():  # a capture launches nothing
            for t, value in zip(tensors, before, strict=True):
                t.copy_(value)
        return lambda: _no_grad(tape.replay)


def _no_grad(function):
    with torch.no_grad():
        function()


def uneven_learner(cbs, n=52, opt_func=SGD, **kwargs):
    """Make a learner on batches of 8 whose last one is smaller, unless 8 divides n."""
    set_seed(0)
    x = torch.randn(n, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    dls = DataLoaders(TensorLoader(x, y, bs=8, shuffle=True), TensorLoader(x, y, bs=8))
    default = [DeviceCB("cpu"), MetricsCB()]
    return Learner(model, dls, lr=0.125, opt_func=opt_func, cbs=[*default, *cbs], default_cbs=False, **kwargs)


def both(cbs, **kwargs):
    """Return learners of a fit of two epochs, as it is and captured."""
    found = []
    for more in ([], [TapeCB()]):
        learn = uneven_learner([*cbs(), *more], **kwargs)
        learn.fit(2)
        found.append(learn)
    return found


def test_a_captured_fit_is_the_eager_one_bit_for_bit():
    plain, captured = both(lambda: [GradientClippingCB(0.5)])
    assert untimed_rows(plain) == untimed_rows(captured)
    for a, b in zip(plain.model.state_dict().values(), captured.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_step_is_captured_once_and_the_last_batch_runs_without_it():
    learn = uneven_learner([cb := TapeCB()])
    learn.fit(2)  # 6 batches of 8 and one of 4, twice
    assert cb.n_captures == 1


def test_mixed_precision_is_captured_with_it():
    plain, captured = both(lambda: [MixedPrecisionCB()])
    assert untimed_rows(plain) == untimed_rows(captured)


def test_the_recorder_sees_each_steps_own_lr_and_loss():
    plain, captured = both(lambda: [BatchSchedulerCB(CosineAnnealingLR), RecorderCB()])
    recs = [next(cb for cb in learn.cbs if isinstance(cb, RecorderCB)).recs for learn in (plain, captured)]
    assert recs[0]["loss"] == pytest.approx(recs[1]["loss"], rel=1e-5)  # on the device the lr is a float32
    assert recs[0]["lr"] == pytest.approx(recs[1]["lr"], rel=1e-6)
    assert len(set(recs[1]["loss"])) == 14


def test_after_the_fit_the_lr_is_a_number_again_and_a_second_fit_captures_anew():
    learn = uneven_learner([BatchSchedulerCB(CosineAnnealingLR), cb := TapeCB()])
    learn.fit(1)
    assert learn.opt.param_groups[0]["lr"] == 0.125
    assert type(learn.opt.param_groups[0]["lr"]) is float
    learn.fit(1)
    assert cb.n_captures == 2


def test_a_number_without_an_end_in_float32_comes_back_whole():
    learn = uneven_learner([BatchSchedulerCB(CosineAnnealingLR), TapeCB()])
    learn.fit(1, lr=0.1)
    assert learn.opt.param_groups[0]["lr"] == 0.1


def test_a_step_is_captured_anew_after_freeze():
    class FreezeCB(Callback):
        def before_epoch(self, learn):
            if learn.epoch == 1:
                learn.freeze("0")

    learn = uneven_learner([FreezeCB(), cb := TapeCB(warmup=1)], n=48)
    learn.fit(2)
    assert cb.n_captures == 2


def test_a_momentum_that_changes_is_refused_with_what_to_do():
    learn = uneven_learner([BatchSchedulerCB(OneCycleLR), TapeCB()])
    with pytest.raises(ValueError, match=r"momentum.*0\.\d+.*cycle_momentum=False"):
        learn.fit(1)


def test_a_hook_inside_the_step_has_to_say_that_it_can_be_captured():
    class NoteCB(Callback):
        def after_loss(self, learn):
            pass

    with pytest.raises(ValueError, match=r"NoteCB\(\)\.after_loss.*in_graph = True"):
        uneven_learner([NoteCB(), TapeCB()]).fit(1)


@pytest.mark.parametrize(
    ("cbs", "opt_func", "message"),
    [
        ([CUDAGraphCB()], SGD, r"CUDAGraphCB\(warmup=3\).*cpu"),
        (
            [TapeCB()],
            optim.Combined((optim.is_matrix, torch.optim.SGD), optim.Adam),
            "CombinedOptimizer.*optimizer of torch",
        ),
        ([TapeCB()], optim.Adam, r"minilearn\.optim\.adam\.Adam.*optimizer.*torch\.optim"),
        ([TapeCB(), GradientAccumulationCB(2)], SGD, r"process.*step.*batch"),
    ],
)
def test_what_cannot_be_captured_is_refused_before_training(cbs, opt_func, message):
    with pytest.raises(ValueError, match=message):
        uneven_learner(cbs, opt_func=opt_func).fit(1)


def test_warmup_is_checked():
    with pytest.raises(ValueError, match=r"whole number.*>= 1"):
        CUDAGraphCB(0)


@pytest.mark.gpu
@HAS_CUDA
def test_on_cuda_a_captured_fit_is_the_eager_one(tmp_path):
    losses = []
    for more in ([], [CUDAGraphCB()]):
        set_seed(0)
        x, y = torch.randn(640, 3, 32, 32), torch.randint(10, (640,))
        dls = DataLoaders(TensorLoader(x, y, bs=64, device="cuda"))
        cbs = [BatchSchedulerCB(CosineAnnealingLR), MixedPrecisionCB(), *more]
        learn = Learner(resnet20(), dls, lr=0.1, opt_func=partial(torch.optim.SGD, momentum=0.9), cbs=cbs)
        learn.fit(2)
        losses.append([row["loss"] for row in learn.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


class LogsCB(Callback):
    """Log the loss where the step is captured, or after it."""

    def __init__(self, hook):
        self.hook = hook

    def get_loss(self, learn):
        learn.loss = nn.functional.cross_entropy(learn.preds, learn.yb)
        self._log("get_loss", learn)

    def after_step(self, learn):
        self._log("after_step", learn)

    def after_batch(self, learn):
        self._log("after_batch", learn)

    def _log(self, hook, learn):
        if hook == self.hook:
            learn.log("v", learn.loss)


@pytest.mark.parametrize("hook", ["after_step", "after_batch"])
def test_what_is_logged_after_the_step_is_of_each_step(hook):
    plain, captured = both(lambda: [LogsCB(hook)])
    assert untimed_rows(plain) == untimed_rows(captured)
    assert captured.history[0]["v"] == captured.history[0]["loss"]


def test_what_is_logged_inside_it_is_refused_because_it_would_be_logged_once():
    with pytest.raises(ValueError, match=r"learn\.log.*after_step"):
        uneven_learner([LogsCB("get_loss"), TapeCB()]).fit()


class ForwardCB(Callback):
    """Note each forward when it ends, on the device and in Python."""

    def __init__(self):
        self.total, self.losses, self.events = torch.zeros(()), [], []

    def before_forward(self, learn):
        self.events.append(("before", learn.training, learn.batch_idx))

    def after_forward(self, learn):
        self.total += learn.loss.detach()
        self.losses.append(learn.loss.item())
        learn.log("l1", learn.preds.abs().mean())

    def cleanup_forward(self, learn):
        self.events.append(("cleanup", learn.training, learn.preds.sum().item()))


def test_hooks_at_the_end_of_a_forward_run_once_for_each_batch_with_its_own_values():
    plain, captured = both(lambda: [ForwardCB(), MixedPrecisionCB(), TerminateOnNaNCB()])
    a, b = (next(cb for cb in learn.cbs if isinstance(cb, ForwardCB)) for learn in (plain, captured))
    assert a.events == b.events
    assert a.losses == b.losses
    assert torch.equal(a.total, b.total)
    assert untimed_rows(plain) == untimed_rows(captured)
    assert len(b.losses) == 28  # 7 batches of training and 7 of validation, twice


def test_a_cancel_at_the_end_of_a_forward_is_refused_because_the_step_was_taken(at):
    def cancel(learn):
        if learn.training and learn.batch_idx == 4:
            raise CancelBatchException

    uneven_learner([at("before_forward", cancel), TapeCB()]).fit()
    uneven_learner([at("after_forward", cancel), TapeCB(warmup=9)]).fit()  # without a graph
    with pytest.raises(RuntimeError, match=mentions("after_forward cancels the batch ... before_batch")):
        uneven_learner([at("after_forward", cancel), TapeCB()]).fit()
