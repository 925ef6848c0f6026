import pytest
import torch
from torch.optim import SGD

from minilearn import MomentumCB


def fit_with(make_learner, opt_func, cbs=()):
    learn = make_learner(n_batches=10, opt_func=opt_func, lr=0.05)
    learn.fit(2, cbs=list(cbs))
    assert learn.n_steps == 20
    return learn.model.weight


def test_momentum_cb_equals_torchs_sgd_momentum_after_20_steps(make_learner):
    weight = fit_with(make_learner, SGD, [MomentumCB(0.85)])
    torch.testing.assert_close(weight, fit_with(make_learner, lambda p, lr: SGD(p, lr, momentum=0.85)))
    assert not torch.allclose(weight, fit_with(make_learner, SGD))


def test_default_momentum_is_the_documents(make_learner):
    assert MomentumCB().mom == 0.85


def test_zero_momentum_is_plain_sgd(make_learner):
    torch.testing.assert_close(fit_with(make_learner, SGD, [MomentumCB(0)]), fit_with(make_learner, SGD))


@pytest.mark.parametrize("mom", [-0.1, 1.0, 1.2])
def test_momentum_out_of_range_is_refused(mom):
    with pytest.raises(ValueError, match=rf"mom={mom}.*0 <= mom < 1"):
        MomentumCB(mom)


def test_kept_gradients_end_with_the_fit(make_learner, at):
    learn = make_learner(opt_func=SGD)
    seen = []
    learn.fit(
        cbs=[MomentumCB(), at("after_batch", lambda learn: seen.append(learn.model.weight.grad.norm()))]
    )
    assert all(norm > 0 for norm in seen[:3])
    assert [p.grad for p in learn.model.parameters()] == [None, None]


def test_kept_gradients_end_with_a_fit_that_fails(make_learner, at):
    learn = make_learner(opt_func=SGD)

    def fail(learn):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        learn.fit(cbs=[MomentumCB(), at("after_train", fail)])
    assert [p.grad for p in learn.model.parameters()] == [None, None]


@pytest.mark.parametrize("event", ["before_epoch", "before_batch", "after_step", "after_batch"])
def test_layer_that_is_frozen_in_a_fit_stays_where_it_is_as_with_torchs_momentum(make_learner, at, event):
    frozen = []

    def freeze(learn):
        if learn.epoch == 1 and not frozen:
            learn.model.weight.requires_grad_(False)
            frozen.append(learn.model.weight.detach().clone())

    learn = make_learner(opt_func=SGD, cbs=[MomentumCB(0.9), at(event, freeze)])
    learn.fit(3)
    assert torch.equal(learn.model.weight, frozen[0])
