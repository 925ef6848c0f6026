"""Optimizers that need a closure, against loops by hand."""

import math
from functools import partial

import pytest
import torch
from toolbox import (
    at,
    drawn,
    make_learner,
    mentions,
    noisy_learner,
    norm_net,
    resumed_from_each_rest,
    same,
    samples,
    tensors_of,
)
from torch.nn import functional as F
from torch.optim import LBFGS, SGD

from minilearn import (
    EMACB,
    SAMCB,
    BatchSchedulerCB,
    Callback,
    ClosureCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    MomentumCB,
    TensorLoader,
    set_seed,
)

KINDS = {
    "LBFGS": partial(LBFGS, max_iter=4),
    "with line search": partial(LBFGS, max_iter=4, line_search_fn="strong_wolfe"),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def parts():
    set_seed(7)
    return norm_net(0.3), TensorLoader(*samples(16), bs=8)


def by_hand(opt_func, casts=False):
    """Train three epochs in a plain loop; return the model and the mean of the first losses of each epoch."""
    model, loader = parts()
    opt, rows = opt_func(model.parameters(), lr=0.1), []
    for _ in range(3):
        losses = []
        for xb, yb in loader:

            def closure(xb=xb, yb=yb):
                opt.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=casts):
                    loss = F.cross_entropy(model(xb).float(), yb)
                loss.backward()
                return loss.detach()

            losses.append(float(opt.step(closure)))
        rows.append(sum(losses) / 2)
    return model, rows


@EACH
@pytest.mark.parametrize("casts", [False, True])
def test_it_is_the_loop_by_hand(kind, casts):
    model, loader = parts()
    cbs = [MetricsCB(), *([MixedPrecisionCB()] if casts else [])]
    learn = Learner(model, {"train": loader}, lr=0.1, cbs=cbs, opt_func=KINDS[kind], default_cbs=False)
    learn.fit(3)
    expected, rows = by_hand(KINDS[kind], casts)
    assert same(tensors_of(expected), tensors_of(model))
    assert [row["loss"] for row in learn.history] == pytest.approx(rows, rel=1e-6)
    assert learn.n_steps == 6
    assert not any(isinstance(cb, ClosureCB) for cb in learn.cbs)


def test_lr_is_scheduled():
    lrs = []
    look = at("before_step", lambda learn: lrs.append(learn.opt.param_groups[0]["lr"]))
    schedule = BatchSchedulerCB(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0)
    learn = make_learner(n_batches=4, opt_func=LBFGS, cbs=[look, schedule])
    assert schedule.preview(learn) == pytest.approx([0.1, 0.075, 0.05, 0.025])
    learn.fit()
    assert lrs == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_frozen_layers_stay():
    model = drawn(norm_net())
    learn = make_learner(model=model, opt_func=LBFGS)
    learn.freeze("0")
    before = tensors_of(model)
    learn.fit()
    assert same(
        {k: v for k, v in before.items() if k[0] == "0"},
        {k: v for k, v in tensors_of(model).items() if k[0] == "0"},
    )
    assert not torch.equal(before["3.weight"], model[3].weight)


def test_lr_find_and_validate_and_predict_work():
    learn = make_learner(n_batches=4, opt_func=LBFGS, cbs=[MetricsCB()])
    before = tensors_of(learn.model)
    assert len(learn.lr_find(n_steps=12).losses) > 3
    assert same(before, tensors_of(learn.model))
    learn.fit()
    assert learn.validate()["loss"] > 0
    assert learn.predict(learn.dls.valid).shape == (4, 2)


def test_any_optimizer_that_takes_a_closure_may_have_it():
    plain, closed = make_learner(), make_learner(cbs=[ClosureCB()])
    for learn in (plain, closed):
        learn.opt_func = partial(SGD, momentum=0.9)
        learn.fit(2)
    assert same(tensors_of(plain.model), tensors_of(closed.model))


class Unheard(SGD):
    def step(self, closure=None):
        super().step()


def test_an_optimizer_that_calls_no_closure_is_refused():
    with pytest.raises(TypeError, match=mentions("Unheard.step did not call its closure ... ClosureCB()")):
        make_learner(cbs=[ClosureCB()], opt_func=Unheard).fit()


@pytest.mark.parametrize(
    "cb",
    [GradientAccumulationCB(2), GradientClippingCB(1.0), SAMCB(), MomentumCB()],
    ids=lambda cb: type(cb).__name__,
)
def test_what_would_change_only_the_first_gradients_is_refused(cb):
    with pytest.raises(ValueError, match=mentions(f"{cb!r} with a LBFGS, which evaluates a batch several")):
        make_learner(opt_func=LBFGS, cbs=[cb]).fit()


def test_a_norm_that_is_only_watched_is_fine():
    clip = GradientClippingCB(math.inf)
    make_learner(opt_func=LBFGS, cbs=[clip]).fit()
    assert clip.norm > 0


def test_the_owner_of_a_user_is_kept():
    class OwnCB(Callback):
        def step(self, learn):
            learn.opt.step(lambda: learn.loss)

    seen = []
    look = at("before_step", lambda learn: seen.append([type(cb).__name__ for cb in learn.cbs]))
    make_learner(opt_func=partial(LBFGS, max_iter=1), cbs=[OwnCB(), look]).fit()
    assert seen[0] == ["OwnCB", "At"]


@pytest.mark.slow
@EACH
def test_it_resumes_from_each_step_of_two_epochs(tmp_path, kind):
    def make(*cbs):
        more = [MixedPrecisionCB(), EMACB(0.9), MetricsCB()]
        return noisy_learner(*more, *cbs, opt_func=KINDS[kind], n_train=3, n_valid=2)

    assert list(resumed_from_each_rest(make, tmp_path))


@pytest.mark.slow
@EACH
def test_it_passes_verify_resume(kind):
    assert "not compared" not in noisy_learner(opt_func=KINDS[kind], n_train=4).verify_resume()
