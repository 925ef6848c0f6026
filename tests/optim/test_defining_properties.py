import math

import pytest
import torch
from torch import nn

from minilearn.optim import SGD, Adam, MomentumSGD, RMSProp, SGDAlternate

FOREACH = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "single"])
LRS = (0.1,) * 10 + (0.02,) * 10
GRADS = [torch.randn(5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(20)]


def run(opt_func, grads=GRADS, lrs=(0.1,) * 20, **kwargs):
    """Return the parameter, from 1, 2, 3, 4, 5, after a step for each gradient at its lr; (5,) float64."""
    p = nn.Parameter(torch.arange(1.0, 6, dtype=torch.float64))
    opt = opt_func([p], lr=lrs[0], **kwargs)
    for grad, lr in zip(grads, lrs, strict=False):
        opt.param_groups[0]["lr"] = lr
        p.grad = grad.clone()
        opt.step()
    return p.detach()


def assert_same(a, b):
    # float64, sums of 20 values of about 1
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def scaled(factor):
    return tuple(factor * lr for lr in LRS)


# SGD ----------------------------------------------------------------------------------------------


@FOREACH
@pytest.mark.parametrize("wd", [0, 0.3])
def test_sgd_is_torch_s_with_its_weight_decay(wd, foreach):
    theirs = run(torch.optim.SGD, lrs=LRS, weight_decay=wd)
    assert_same(run(SGD, lrs=LRS, wd=wd, foreach=foreach), theirs)


def test_sgd_s_weights_decay_before_the_gradient_is_taken():
    # 1 * (1 - 0.5 * 0.2) - 0.5 * 4 = -1.1; the other way round, (1 - 2) * 0.9 = -0.9
    p = run(SGD, [torch.full((5,), 4.0, dtype=torch.float64)], [0.5], wd=0.2)
    assert p[0].item() == pytest.approx(-1.1, abs=1e-15)


# MomentumSGD --------------------------------------------------------------------------------------


@FOREACH
@pytest.mark.parametrize("mom", [0, 0.5, 0.9])
def test_momentum_sgd_is_torch_s_at_1_minus_mom_times_the_lr(mom, foreach):
    # torch's buffer, from 0, is 1 / (1 - mom) times the average, at any step; so also when the lr changes.
    theirs = run(torch.optim.SGD, lrs=scaled(1 - mom), momentum=mom)
    assert_same(run(MomentumSGD, lrs=LRS, mom=mom, foreach=foreach), theirs)


def test_momentum_sgd_differs_from_torch_s_dampening_by_its_small_first_step():
    # torch's buffer starts at g, whatever the dampening; the average at (1 - mom) * g.
    grads = [GRADS[0], *[torch.zeros_like(GRADS[0])] * 2]
    start = torch.arange(1.0, 6, dtype=torch.float64)
    ours = start - run(MomentumSGD, grads, mom=0.75)
    theirs = start - run(torch.optim.SGD, grads, momentum=0.75, dampening=0.75)
    assert_same(ours, 0.25 * theirs)


def test_momentum_sgd_decays_the_weights_at_once_and_torch_through_the_buffer():
    # 1 * (1 - 0.1 * 0.5) - 0.1 * 0.1 * 2 = 0.93; at torch's 0.01: 1 - 0.01 * (2 + 0.5) = 0.975
    grads = [torch.full((5,), 2.0, dtype=torch.float64)]
    assert run(MomentumSGD, grads, wd=0.5)[0].item() == pytest.approx(0.93, abs=1e-15)
    theirs = run(torch.optim.SGD, grads, lrs=(0.01,), momentum=0.9, weight_decay=0.5)
    assert theirs[0].item() == pytest.approx(0.975, abs=1e-15)


@pytest.mark.parametrize("mom", [0.5, 0.9])
def test_momentum_sgd_s_step_grows_to_that_of_sgd(mom):
    p = run(MomentumSGD, [torch.ones(5, dtype=torch.float64)] * 3, lrs=(1,) * 3, mom=mom)
    # 1 - mom**t of the gradient at step t
    assert p[0].item() == pytest.approx(1 - sum(1 - mom**t for t in (1, 2, 3)), abs=1e-12)


# RMSProp ------------------------------------------------------------------------------------------


@FOREACH
def test_rmsprop_s_first_step_is_g_over_its_size(foreach):
    grad = torch.tensor([3.0, -200.0, 1e-5, -1e-9, 0.0], dtype=torch.float64)
    step = torch.arange(1.0, 6, dtype=torch.float64) - run(RMSProp, [grad], foreach=foreach)
    assert_same(step, 0.1 * grad / (grad.abs() + 1e-5))
    # half the lr where |g| is eps; nothing where g is 0
    assert step[2].item() == pytest.approx(0.05, abs=1e-12)
    assert step[4] == 0


@pytest.mark.parametrize("alpha", [0.75, 0.99])
def test_rmsprop_s_first_step_is_shorter_than_torch_s(alpha):
    # torch's average starts at 0: sqrt((1 - alpha) * g**2) is what it divides by.
    start = torch.arange(1.0, 6, dtype=torch.float64)
    theirs = start - run(torch.optim.RMSprop, GRADS[:1], alpha=alpha, eps=0)
    ours = start - run(RMSProp, GRADS[:1], sqr_mom=alpha, eps=1e-30)
    assert_same(theirs, ours / math.sqrt(1 - alpha))


def test_rmsprop_keeps_the_first_square_as_if_it_had_always_been():
    # 0.5 * 1 + 0.5 * 9 = 5; not corrected: 1 - 0.1 * 1 / 1 - 0.1 * 3 / sqrt(5)
    grads = [torch.full((5,), g, dtype=torch.float64) for g in (1.0, 3.0)]
    p = run(RMSProp, grads, sqr_mom=0.5, eps=1e-30)
    assert p[0].item() == pytest.approx(0.9 - 0.3 / math.sqrt(5), abs=1e-12)


# Adam ---------------------------------------------------------------------------------------------


@FOREACH
def test_adam_s_first_step_is_g_over_the_root_of_its_square_and_eps(foreach):
    grad = torch.tensor([3.0, -200.0, math.sqrt(1e-5), -1e-9, 0.0], dtype=torch.float64)
    step = torch.arange(1.0, 6, dtype=torch.float64) - run(Adam, [grad], foreach=foreach)
    assert_same(step, 0.1 * grad / torch.sqrt(grad**2 + 1e-5))
    assert step[2].item() == pytest.approx(0.1 / math.sqrt(2), abs=1e-12)
    assert step[4] == 0


@FOREACH
def test_a_parameter_that_joins_adam_late_starts_without_bias(foreach):
    early, late = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    opt = Adam([early, late], lr=0.1, eps=1e-30, foreach=foreach)
    for _ in range(7):
        early.grad = torch.full((1,), 5.0, dtype=torch.float64)
        opt.step()
    late.grad = torch.full((1,), 5.0, dtype=torch.float64)
    opt.step()
    # A steady gradient moves it by lr at each step. With the count of the other's 8 steps, the first
    # would be of (1 - 0.9) / (1 - 0.9**8) / sqrt((1 - 0.99) / (1 - 0.99**8)) = 0.49 of lr.
    assert late.item() == pytest.approx(-0.1, abs=1e-12)
    assert early.item() == pytest.approx(-0.8, abs=1e-12)
    assert (opt.state[early]["step"], opt.state[late]["step"]) == (8, 1)


@FOREACH
@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.99), (0.5, 0.999), (0.0, 0.0)])
def test_adam_is_torch_s_adamw_where_gradients_are_large(beta1, beta2, foreach):
    grads = [1e4 * (grad.sign() + grad) for grad in GRADS]  # 1e4 and more in size
    theirs = run(torch.optim.AdamW, grads, LRS, weight_decay=0.3, betas=(beta1, beta2), eps=0)
    # eps makes a root of v >= 1e8 larger by 1e-5 / 2e8 of it, 5e-14, and 20 steps are of about lr, 0.1.
    assert_same(run(Adam, grads, LRS, wd=0.3, beta1=beta1, beta2=beta2, foreach=foreach), theirs)


def test_adam_s_weight_decay_is_not_that_of_torch_s_adam():
    # Decoupled: 1 * (1 - 0.1 * 0.5) - 0.1 = 0.85. In the gradient it is divided away: 1 - 0.1.
    grads = [torch.full((5,), 1e6, dtype=torch.float64)]
    assert run(Adam, grads, wd=0.5)[0].item() == pytest.approx(0.85, abs=1e-12)
    assert run(torch.optim.Adam, grads, weight_decay=0.5)[0].item() == pytest.approx(0.9, abs=1e-12)


# SGDAlternate -------------------------------------------------------------------------------------


@FOREACH
@pytest.mark.parametrize("momentum", [0, 0.5, 0.9])
def test_sgd_alternate_is_torch_s_momentum_at_a_constant_lr(momentum, foreach):
    theirs = run(torch.optim.SGD, momentum=momentum)
    assert_same(run(SGDAlternate, momentum=momentum, foreach=foreach), theirs)


@FOREACH
def test_sgd_alternate_keeps_its_old_length_when_the_lr_falls(foreach):
    grads = [torch.ones(5, dtype=torch.float64)] * 2
    ours = run(SGDAlternate, grads, (0.1, 0.01), momentum=0.9, foreach=foreach)
    theirs = run(torch.optim.SGD, grads, (0.1, 0.01), momentum=0.9)
    # buf = 0.1, then 0.9 * 0.1 + 0.01 = 0.1: 1 - 0.1 - 0.1; torch's: 1 - 0.1 * 1 - 0.01 * 1.9
    assert ours[0].item() == pytest.approx(0.8, abs=1e-15)
    assert theirs[0].item() == pytest.approx(0.881, abs=1e-15)


def test_lr_0_does_not_stop_sgd_alternate_at_once():
    p = run(SGDAlternate, [torch.ones(5, dtype=torch.float64)] * 3, (0.1, 0, 0), momentum=0.5)
    assert p[0].item() == pytest.approx(1 - 0.1 - 0.05 - 0.025, abs=1e-15)
