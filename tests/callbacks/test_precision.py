import math
from collections import namedtuple
from functools import partial

import pytest
import torch
from toolbox import StopCB, StoppedError
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    Callback,
    CancelBatchException,
    CancelStepException,
    CheckpointCB,
    DataLoaders,
    DeviceCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    RecorderCB,
    TensorLoader,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def is_inside():
    return torch.is_autocast_enabled("cpu")


class Seen(nn.Module):
    """A linear layer that remembers the dtype of its outputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.dtypes = nn.Linear(3, 2), []
        self.linear.register_forward_hook(lambda module, args, out: self.dtypes.append(out.dtype))

    def forward(self, x):
        return self.linear(x)


# bfloat16 ---------------------------------------------------------------------------------------------


def test_forward_runs_in_bfloat16_and_all_else_in_float32(make_learner, at):
    def look(learn):
        seen.update({learn.preds.dtype, learn.loss.dtype, *(p.dtype for p in learn.model.parameters())})
        seen.update({p.grad.dtype for p in learn.model.parameters() if p.grad is not None})

    seen = set()
    cbs = [at(event, look) for event in ("before_step", "after_step", "after_batch")]
    learn = make_learner(model=Seen(), cbs=[MixedPrecisionCB(), *cbs])
    learn.fit()
    assert set(learn.model.dtypes) == {torch.bfloat16}
    assert len(learn.model.dtypes) == 3 + 1
    assert seen == {torch.float32}
    assert {t.dtype for state in learn.opt.state.values() for t in state.values()} == {torch.float32}


def test_loss_is_that_of_the_rounded_predictions_in_float32(make_learner, at):
    seen = []
    learn = make_learner(
        cbs=[MixedPrecisionCB(), at("after_batch", lambda x: seen.append((x.batch, x.loss)))]
    )
    model = nn.Linear(3, 2)
    model.load_state_dict(learn.model.state_dict())
    learn.fit(train=False)
    (((xb, yb), loss),) = seen
    preds = nn.functional.linear(*(t.bfloat16() for t in (xb, model.weight, model.bias))).float()
    assert torch.equal(loss, nn.functional.cross_entropy(preds, yb))


def test_validation_and_predict_run_in_bfloat16_and_give_float32(make_learner):
    learn = make_learner(model=Seen(), cbs=[MixedPrecisionCB(), MetricsCB()])
    assert math.isfinite(learn.validate()["loss"])
    assert learn.predict(learn.dls.valid).dtype == torch.float32
    assert learn.model.dtypes == [torch.bfloat16] * 2
    assert not is_inside()


Two = namedtuple("Two", "a b")


@pytest.mark.parametrize(
    "wrap", [lambda x: [x, x], lambda x: (x, x), lambda x: Two(x, x), lambda x: {"a": x}]
)
def test_predictions_of_any_nesting_become_float32(make_learner, at, wrap):
    class Wrapped(Seen):
        def forward(self, x):
            return wrap(self.linear(x))

    def get_loss(learn):
        kinds.append(type(learn.preds))
        parts = learn.preds.values() if isinstance(learn.preds, dict) else learn.preds
        dtypes.extend(part.dtype for part in parts)
        learn.loss = sum(part.sum() for part in parts)

    kinds, dtypes = [], []
    make_learner(
        model=Wrapped(), n_batches=1, n_valid=0, cbs=[MixedPrecisionCB(), at("get_loss", get_loss)]
    ).fit()
    assert kinds == [type(wrap(0))]
    assert set(dtypes) == {torch.float32}


def test_predictions_that_are_no_half_floats_stay(make_learner, at):
    class Whole(Seen):
        def forward(self, x):
            return self.linear(x).double(), (x > 0), "text"

    def get_loss(learn):
        seen.append([getattr(part, "dtype", part) for part in learn.preds])
        learn.loss = learn.preds[0].sum()

    seen = []
    make_learner(
        model=Whole(), n_batches=1, n_valid=0, cbs=[MixedPrecisionCB(), at("get_loss", get_loss)]
    ).fit()
    assert seen == [[torch.float64, torch.bool, "text"]]


def test_autocast_ends_with_the_loss(make_learner, at):
    seen = {}
    events = ["before_forward", "after_predict", "after_loss", "after_backward", "before_step", "after_step"]
    events += ["cleanup_step", "after_batch", "cleanup_batch", "after_train"]
    cbs = [at(event, lambda learn, e=event: seen.setdefault(e, is_inside()), order=41) for event in events]

    def step(learn):
        seen["step"] = is_inside()
        learn.opt.step()

    make_learner(cbs=[MixedPrecisionCB(), *cbs, at("step", step)]).fit()
    assert {event for event, inside in seen.items() if inside} == {
        "before_forward",
        "after_predict",
        "after_loss",
    }
    assert len(seen) == 11


@pytest.mark.parametrize("phase", ["train", "eval"])
@pytest.mark.parametrize("order", [0, 41])
@pytest.mark.parametrize("error", [CancelBatchException, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("event", ["before_batch", "predict", "after_predict", "get_loss", "after_loss"])
def test_autocast_is_left_however_a_batch_ends(make_learner, at, event, error, order, phase):
    def leave(learn):
        if learn.phase == phase:
            raise error
        if event == "predict":
            learn.preds = learn.model(learn.xb)
        if event == "get_loss":
            learn.loss = learn.loss_func(learn.preds, learn.yb)

    seen = []
    look = at("cleanup_batch", lambda learn: seen.append(is_inside()), order=41)
    learn = make_learner(
        cbs=[MixedPrecisionCB(), at(event, leave, order), look], loss_func=nn.functional.cross_entropy
    )
    if error is CancelBatchException:
        learn.fit()
        assert len(seen) == 4
    else:
        with pytest.raises(error):
            learn.fit()
    assert not any(seen)
    assert not is_inside()


@pytest.mark.parametrize("event", ["after_predict", "after_loss"])
def test_autocast_is_left_after_a_validation_in_the_middle_of_a_batch(make_learner, at, event):
    cbs = [MixedPrecisionCB(), at(event, lambda learn: learn.training and learn.validate(cbs=[]))]
    try:
        make_learner(cbs=cbs).fit()
        assert not is_inside()
    finally:  # nothing for the tests that follow: a batch that is never left keeps its rounded weights
        for _ in range(torch.autocast_increment_nesting()):
            torch.autocast_decrement_nesting()
        torch.set_autocast_enabled("cpu", False)
        torch.clear_autocast_cache()


def test_training_in_bfloat16_comes_near_that_in_float32(make_learner):
    plain, learn = make_learner(n_batches=10), make_learner(n_batches=10, cbs=MixedPrecisionCB())
    plain.fit(3)
    learn.fit(3)
    assert not torch.equal(learn.model.weight, plain.model.weight)
    torch.testing.assert_close(learn.model.weight, plain.model.weight, rtol=0.02, atol=0.02)  # 8 bits


@pytest.mark.slow
def test_resumed_run_in_bfloat16_is_the_straight_run(make_learner):
    assert "bit for bit" in make_learner(n_batches=4, cbs=MixedPrecisionCB()).verify_resume()


def test_model_without_parameters_is_validated(make_learner):
    learn = make_learner(model=nn.Identity(), cbs=[MixedPrecisionCB(), MetricsCB()])
    assert math.isfinite(learn.validate()["loss"])


# Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, "bfloat16", None])
def test_dtype_is_one_of_two(dtype):
    with pytest.raises(ValueError, match=r"torch.bfloat16.*torch.float16"):
        MixedPrecisionCB(dtype)


@pytest.mark.parametrize("scale", [0, -1.0, math.nan])
def test_scale_is_positive(scale):
    with pytest.raises(ValueError, match=rf"MixedPrecisionCB\(init_scale={scale!r}\).*> 0"):
        MixedPrecisionCB(torch.float16, scale)


def test_float16_on_the_cpu_is_refused_before_training(make_learner, at):
    batches = []
    learn = make_learner(cbs=[MixedPrecisionCB(torch.float16), at("before_batch", batches.append)])
    with pytest.raises(ValueError, match=r"torch.float16\).*model.*cpu.*torch.bfloat16"):
        learn.fit()
    assert batches == []


def test_repr():
    assert repr(MixedPrecisionCB()) == "MixedPrecisionCB(torch.bfloat16)"


# float16, with torch's scaler on the CPU --------------------------------------------------------------


class OnCPU(MixedPrecisionCB):
    """Have before_fit see a CUDA device, and all else the CPU, whose autocast knows float16 too."""

    def before_fit(self, learn):
        self.kind = "cuda"
        super().before_fit(learn)
        self.kind = "cpu"

    @property
    def _device(self):
        return self.kind

    @_device.setter
    def _device(self, value):
        pass

    def state_dict(self):
        return super().state_dict()


@pytest.fixture
def calls(monkeypatch):
    """Have torch's own GradScaler work on the CPU, and give the names of its calls."""

    class Recording(torch.amp.GradScaler):
        def __init__(self, device, **kwargs):
            assert device == "cuda"
            super().__init__("cpu", **kwargs)

        def scale(self, outputs):
            found.append("scale")
            return super().scale(outputs)

        def unscale_(self, optimizer):
            found.append("unscale_")
            super().unscale_(optimizer)

        def step(self, optimizer):
            found.append("step")
            return super().step(optimizer)

        def update(self):
            found.append("update")
            super().update()

    found = []
    monkeypatch.setattr(torch.amp, "GradScaler", Recording)
    return found


class Overflow(Callback):
    """Make the gradients of given batches infinite, before the scaler looks at them."""

    def __init__(self, *batches):
        self.batches = batches

    def after_backward(self, learn):
        if learn.batch_idx in self.batches:
            learn.model.weight.grad[0, 0] = math.inf


half = partial(OnCPU, torch.float16)


def test_scaler_is_called_once_a_step(calls, make_learner):
    make_learner(n_batches=2, n_valid=0, cbs=half()).fit()
    assert calls == ["scale", "unscale_", "step", "update"] * 2


def test_scaler_is_called_once_a_group(calls, make_learner, at):
    look = at("before_step", lambda learn: calls.append("before_step"), order=-80)
    make_learner(n_batches=3, n_valid=0, cbs=[half(), GradientAccumulationCB(2), look]).fit()
    end = ["unscale_", "before_step", "step", "update"]
    assert calls == ["scale", "scale", *end, "scale", *end]


def test_gathered_gradients_are_those_of_float32(calls, make_learner, at):
    def run(*cbs):
        grads = []
        learn = make_learner(n_batches=3, n_valid=0, opt_func=SGD, cbs=[GradientAccumulationCB(2), *cbs])
        learn.add_cb(at("before_step", lambda x: grads.append(x.model.weight.grad.clone()), order=46))
        learn.fit()
        return grads

    # float16 has 11 bits.
    torch.testing.assert_close(run(half()), run(), rtol=2e-3, atol=1e-3)


def test_clipping_is_of_the_unscaled_gradients(calls, make_learner):
    clips = [GradientClippingCB(0.1), GradientClippingCB(0.1)]
    learns = [make_learner(n_batches=1, n_valid=0, opt_func=SGD, cbs=clip) for clip in clips]
    learns[0].fit(cbs=[half()])
    learns[1].fit()
    assert clips[0].norm.item() == pytest.approx(clips[1].norm.item(), rel=5e-3)
    torch.testing.assert_close(learns[0].model.weight, learns[1].model.weight, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_step_that_overflows_is_left_out(calls, make_learner, at, fused):
    events = {name: [] for name in ("before_step", "after_step", "after_batch", "weights")}
    cbs = [at(name, lambda x, name=name: events[name].append(x.batch_idx)) for name in list(events)[:3]]
    grads = at("after_batch", lambda learn: events["weights"].append(learn.model.weight.detach().clone()))
    kept = at("after_batch", lambda learn: empty.append(learn.model.weight.grad is None))
    empty, cb = [], half()
    opt_func = partial(SGD, momentum=0.9, fused=fused)
    learn = make_learner(n_batches=4, cbs=[cb, Overflow(1), *cbs, grads, kept], opt_func=opt_func)
    learn.fit(valid=False)
    assert events["before_step"] == events["after_batch"] == [0, 1, 2, 3]
    assert events["after_step"] == [0, 2, 3]
    assert (learn.n_steps, cb.n_skipped, empty) == (3, 1, [True] * 4)
    a, b, c, _ = events["weights"]
    assert torch.equal(a, b)
    assert not torch.equal(b, c)
    assert cb._scaler.get_scale() == 2.0**15
    assert torch.isfinite(learn.model.weight).all()


def test_clipping_does_not_hide_an_overflow(calls, make_learner):
    cb, clip = half(), GradientClippingCB(1.0)
    learn = make_learner(n_batches=2, cbs=[cb, clip, Overflow(0)])
    learn.fit()
    assert (learn.n_steps, cb.n_skipped) == (1, 1)
    assert torch.isfinite(learn.model.weight).all()


def test_overflow_in_a_group_leaves_out_the_group(calls, make_learner):
    cb = half()
    learn = make_learner(n_batches=4, cbs=[cb, GradientAccumulationCB(2), Overflow(0)])
    learn.fit()
    assert (learn.n_steps, cb.n_skipped) == (1, 1)
    assert torch.isfinite(learn.model.weight).all()


def test_schedule_does_not_count_a_step_that_was_left_out_and_does_not_warn(calls, make_learner):
    recorder = RecorderCB()
    cbs = [half(), BatchSchedulerCB(OneCycleLR), recorder, Overflow(0)]
    learn = make_learner(n_batches=4, cbs=cbs)
    learn.fit(2)
    planned = BatchSchedulerCB(OneCycleLR).preview(make_learner(n_batches=4), 2)
    assert recorder.recs["lr"] == planned[:6]


def test_average_does_not_count_a_step_that_was_left_out(calls, make_learner):
    ema = EMACB(0.5)
    make_learner(n_batches=4, cbs=[half(), ema, Overflow(2)]).fit()
    assert ema.n_averaged == 1 + 3


def test_steps_left_out_are_counted_for_each_fit(calls, make_learner):
    cb = half()
    learn = make_learner(cbs=[cb, Overflow(1)])
    learn.fit(2)
    assert cb.n_skipped == 2
    learn.fit()
    assert cb.n_skipped == 1


def test_step_that_a_callback_cancels_does_not_end_the_fit(calls, make_learner, at):
    def cancel(learn):
        if learn.batch_idx == 0:
            raise CancelStepException

    plain = make_learner(cbs=at("before_step", cancel), opt_func=SGD)
    learn = make_learner(cbs=[half(), at("before_step", cancel)], opt_func=SGD)
    plain.fit()
    learn.fit()
    assert learn.n_steps == 2
    torch.testing.assert_close(learn.model.weight, plain.model.weight, rtol=2e-3, atol=1e-3)  # 11 bits


def test_batch_that_a_callback_cancels_after_backward_does_not_end_the_fit(calls, make_learner, at):
    def cancel(learn):
        if learn.batch_idx == 0:
            raise CancelBatchException

    learn = make_learner(cbs=[half(), at("after_backward", cancel)])
    learn.fit()
    assert learn.n_steps == 2


def test_scale_is_kept_in_a_checkpoint(calls, make_learner, tmp_path):
    def new(*cbs):
        return make_learner(
            n_batches=4, cbs=[half(), Overflow(0), CheckpointCB(tmp_path, every_steps=1), *cbs]
        )

    with pytest.raises(StoppedError):
        new(StopCB(2)).fit()
    learn = new()
    learn.fit(resume=True)
    assert (learn.cbs[1].n_skipped, learn.cbs[1]._scaler.get_scale(), learn.n_steps) == (1, 2.0**15, 3)


def test_first_scale_can_be_given(calls, make_learner):
    cb = half(init_scale=8.0)
    make_learner(cbs=cb).fit()
    assert cb._scaler.get_scale() == 8


def test_optimizer_of_ones_own_is_refused_with_float16(calls, make_learner, bare_sgd):
    with pytest.raises(ValueError, match=r"BareSGD.*torch.optim.Optimizer"):
        make_learner(cbs=half(), opt_func=bare_sgd).fit()


def test_float16_owns_backward_and_step(make_learner, at):
    with pytest.raises(ValueError, match=r"step.*2 owners"):
        make_learner(cbs=[MixedPrecisionCB(torch.float16), at("step", lambda learn: learn.opt.step())])
    make_learner(cbs=[MixedPrecisionCB(), at("step", lambda learn: learn.opt.step())]).fit()


class SAMCB(Callback):
    """Step by the gradients at other weights."""

    def before_step(self, learn):
        weight = learn.model.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += 0.05 * weight.grad / weight.grad.norm()
        learn.model.zero_grad()
        learn.again(backward=True)
        with torch.no_grad():
            weight.copy_(kept)


def test_second_backward_is_unscaled_too(calls, make_learner, at):
    def run(*cbs):
        grads = []
        learn = make_learner(n_batches=3, n_valid=0, opt_func=SGD, lr=0.0, cbs=[SAMCB(), *cbs])
        learn.add_cb(at("before_step", lambda x: grads.append(x.model.weight.grad.clone()), order=46))
        learn.fit()
        return grads

    torch.testing.assert_close(run(half(2.0**10)), run(), rtol=4e-3, atol=2e-3)  # float16 has 11 bits
    assert calls == ["scale", "unscale_", "scale", "step", "update"] * 3


def test_step_whose_second_backward_is_not_finite_is_left_out(calls, make_learner):
    class OverflowCB(Callback):
        def after_loss(self, learn):
            if learn.is_again and learn.batch_idx == 1:
                learn.loss = learn.loss * math.inf

    cb = half()
    learn = make_learner(n_batches=3, n_valid=0, opt_func=SGD, cbs=[SAMCB(), OverflowCB(), cb])
    learn.fit()
    assert (learn.n_steps, cb.n_skipped, cb._scaler.get_scale()) == (2, 1, 2.0**15)
    assert learn.model.weight.isfinite().all()


def test_gradients_of_before_join_those_of_the_second_backward(calls, make_learner, at):
    def run(*cbs):
        grads = []
        twice = at("before_step", lambda learn: learn.again(backward=True))
        learn = make_learner(n_batches=1, n_valid=0, opt_func=SGD, lr=0.0, cbs=[twice, *cbs])
        learn.add_cb(at("before_step", lambda x: grads.append(x.model.weight.grad.clone()), order=46))
        learn.fit()
        return grads[0]

    torch.testing.assert_close(run(half(2.0**10)), run(), rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("after_backward", CancelBatchException),
        ("before_step", CancelBatchException),
        ("before_step", CancelStepException),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
def test_gradients_of_a_cancelled_step_are_scaled_again_or_dropped(
    calls, make_learner, at, event, keep, error
):
    def cancel(learn):
        if learn.batch_idx == 0:
            raise error(keep=keep)

    def run(*cbs):
        grads = []
        learn = make_learner(n_batches=2, n_valid=0, opt_func=SGD, lr=0.0, cbs=[at(event, cancel), *cbs])
        learn.add_cb(at("before_step", lambda x: grads.append(x.model.weight.grad.clone()), order=46))
        learn.fit()
        return grads[-1]

    torch.testing.assert_close(run(half(2.0**10)), run(), rtol=4e-3, atol=2e-3)


def test_rest_of_an_epoch_whose_step_is_cancelled_is_scaled_again(calls, make_learner, at):
    def skip(learn):
        if learn.batch_idx == 3:
            raise CancelBatchException

    def cancel(learn):
        if learn.epoch == 0 and "batch" not in learn.scopes:
            raise CancelStepException

    def run(*cbs):
        grads, cbs = (
            [],
            [GradientAccumulationCB(2), at("before_batch", skip), at("before_step", cancel), *cbs],
        )
        learn = make_learner(n_batches=4, n_valid=0, opt_func=SGD, lr=0.0, cbs=cbs)
        learn.add_cb(at("before_step", lambda x: grads.append(x.model.weight.grad.clone()), order=46))
        learn.fit(2)
        return grads

    torch.testing.assert_close(run(half(2.0**10)), run(), rtol=4e-3, atol=2e-3)


def test_weights_that_a_hook_moved_in_the_forward_are_cast_again(make_learner, at):
    def move(learn):
        with torch.no_grad():
            learn.model.weight.zero_()
            learn.model.bias.zero_()
        found.append(learn.again()[0])

    found = []
    make_learner(n_batches=1, n_valid=0, cbs=[at("after_loss", move), MixedPrecisionCB()]).fit()
    assert not found[0].any()


# float16 on a GPU -------------------------------------------------------------------------------------


def on_gpu(*cbs, n=64):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    dls = DataLoaders(TensorLoader(x, y, bs=8), TensorLoader(x, y, bs=8))
    torch.manual_seed(0)
    cbs = [DeviceCB("cuda"), MetricsCB(), *cbs]
    return Learner(
        nn.Linear(3, 2), dls, cbs=cbs, default_cbs=False, opt_func=partial(SGD, momentum=0.9), lr=0.1
    )


@pytest.mark.gpu
@needs_gpu
def test_float16_trains_on_the_gpu():
    cb = MixedPrecisionCB(torch.float16)
    learn = on_gpu(cb, GradientAccumulationCB(2))
    learn.fit(10)
    assert learn.history[-1]["loss"] < 0.5 * learn.history[1]["loss"]
    assert learn.n_steps + cb.n_skipped == 40
    assert learn.preds is None
    assert learn.predict(learn.dls.valid).dtype == torch.float32


@pytest.mark.gpu
@needs_gpu
def test_step_that_overflows_is_left_out_on_the_gpu():
    cb = MixedPrecisionCB(torch.float16)
    learn = on_gpu(cb, Overflow(1), GradientClippingCB(1.0))
    learn.fit()
    assert (learn.n_steps, cb.n_skipped) == (7, 1)
    assert torch.isfinite(learn.model.weight).all()


@pytest.mark.gpu
@needs_gpu
def test_clipping_is_of_the_unscaled_gradients_on_the_gpu():
    clips = [GradientClippingCB(1e-3), GradientClippingCB(1e-3)]
    on_gpu(clips[0], MixedPrecisionCB(torch.float16), n=8).fit()
    on_gpu(clips[1], n=8).fit()
    assert clips[0].norm.item() == pytest.approx(clips[1].norm.item(), rel=5e-3)  # float16 has 11 bits
