"""SAMCB against loops by hand; test_again.py has the same method written with learn.again."""

from functools import partial

import pytest
import torch
from toolbox import (
    at,
    make_learner,
    mentions,
    noisy_learner,
    norm_net,
    resumed_from_each_rest,
    same,
    samples,
    tensors_of,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from minilearn import (
    EMACB,
    SAMCB,
    BatchSchedulerCB,
    Callback,
    CancelStepException,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    MomentumCB,
    TensorLoader,
    set_seed,
)

MOM_SGD = partial(SGD, momentum=0.9)


def parts():
    set_seed(7)
    return norm_net(0.3), TensorLoader(*samples(16), bs=4)


def by_hand(rho=0.05, adaptive=False, casts=False, max_norm=None):
    """Train two epochs with the authors' equations; return the model and the mean loss of each epoch."""
    model, loader = parts()
    opt, rows = SGD(model.parameters(), 0.1, momentum=0.9, fused=True), []
    params = list(model.parameters())

    def backward(xb, yb):
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            loss = F.cross_entropy(model(xb).float(), yb)
        loss.backward()
        return loss.item()

    for _ in range(2):
        losses = []
        for xb, yb in loader:
            losses.append(backward(xb, yb))
            kept = [p.detach().clone() for p in params]
            statistics = [b.clone() for b in model.buffers()]
            with torch.no_grad():
                weighed = [p.grad * (p.abs() if adaptive else 1) for p in params]
                norm = torch.stack([g.norm() for g in weighed]).norm()
                for p, g in zip(params, weighed, strict=True):
                    p += g * (p.abs() if adaptive else 1) * (rho / (norm + 1e-12))
                    p.grad = None
            backward(xb, yb)
            with torch.no_grad():
                for tensor, value in zip([*params, *model.buffers()], [*kept, *statistics], strict=True):
                    tensor.copy_(value)
            if max_norm:
                nn.utils.clip_grad_norm_(params, max_norm)
            opt.step()
            opt.zero_grad()
        rows.append(sum(losses) / 4)
    return model, rows


@pytest.mark.parametrize("beside", ["nothing", "bf16", "clipping", "averaging"])
@pytest.mark.parametrize("kwargs", [{}, {"rho": 0.5, "adaptive": True}], ids=["SAM", "ASAM"])
def test_it_is_the_loop_by_hand(kwargs, beside):
    model, loader = parts()
    cbs = {"bf16": [MixedPrecisionCB()], "clipping": [GradientClippingCB(0.1)], "averaging": [EMACB(0.5)]}
    ends = []
    look = at("after_train", lambda learn: ends.append(tensors_of(learn.model)))
    cbs = [*cbs.get(beside, []), SAMCB(**kwargs), MetricsCB(), look]
    learn = Learner(model, {"train": loader}, lr=0.1, cbs=cbs, opt_func=MOM_SGD, default_cbs=False)
    learn.fit(2)
    by_loop = {"casts": beside == "bf16", "max_norm": 0.1 if beside == "clipping" else None}
    expected, rows = by_hand(**kwargs, **by_loop)
    assert same(tensors_of(expected), ends[-1])
    assert [row["loss"] for row in learn.history] == pytest.approx(rows, rel=1e-6)
    assert not same(tensors_of(expected), tensors_of(by_hand(rho=1e-9)[0]))


def test_statistics_are_of_the_first_pass():
    learn = make_learner(model=norm_net(), cbs=[SAMCB(100.0)])
    learn.fit()
    assert learn.model[1].num_batches_tracked == 3


def test_weights_are_put_back_after_an_error():
    class FailCB(Callback):
        def after_forward(self, learn):
            if learn.is_again:
                raise ZeroDivisionError

    learn = make_learner(cbs=[SAMCB(), FailCB()])
    before = tensors_of(learn.model)
    with pytest.raises(ZeroDivisionError):
        learn.fit()
    assert same(before, tensors_of(learn.model))


def test_accumulation_is_refused():
    with pytest.raises(ValueError, match=mentions("SAMCB(0.05) with GradientAccumulationCB(2)")):
        make_learner(cbs=[SAMCB(), GradientAccumulationCB(2)]).fit()


@pytest.mark.parametrize("keeps", ["MomentumCB", "a cancelled step"])
def test_gradients_that_it_would_drop_are_refused(keeps):
    class CancelCB(Callback):
        def before_step(self, learn):
            raise CancelStepException

    cb = MomentumCB() if keeps == "MomentumCB" else CancelCB()
    with pytest.raises(RuntimeError, match=mentions("SAM would drop them ... keep=False")):
        make_learner(cbs=[SAMCB(), cb]).fit()


def test_steps_cancelled_without_gradients_are_fine():
    class CancelCB(Callback):
        def before_step(self, learn):
            if learn.batch_idx == 1:
                raise CancelStepException(keep=False)

    learn = make_learner(cbs=[SAMCB(), CancelCB()])
    learn.fit()
    assert learn.n_steps == 2


def test_gradients_that_an_optimizer_sets_to_zero_are_none():
    class ZeroSGD(SGD):
        def zero_grad(self, set_to_none=True):
            super().zero_grad(set_to_none=False)

    learn = make_learner(cbs=[SAMCB()], opt_func=ZeroSGD)
    learn.fit()
    assert learn.n_steps == 3


def make(*cbs):
    more = [SAMCB(), MixedPrecisionCB(), GradientClippingCB(0.5), EMACB(0.9), MetricsCB()]
    schedule = BatchSchedulerCB(torch.optim.lr_scheduler.OneCycleLR)
    return noisy_learner(*more, schedule, *cbs, n_train=4, n_valid=2)


@pytest.mark.slow
def test_it_resumes_from_each_step_of_two_epochs(tmp_path):
    assert list(resumed_from_each_rest(make, tmp_path))


@pytest.mark.slow
def test_it_passes_verify_resume():
    assert "the same bit for bit" in make().verify_resume()


def test_lr_is_found_with_it():
    learn = make_learner(n_batches=4, cbs=[SAMCB()])
    before = tensors_of(learn.model)
    assert len(learn.lr_find(n_steps=12).losses) == 12
    assert same(before, tensors_of(learn.model))
