"""SWATS against references written by hand, through a switch; its phases under schedules; what is counted."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from references import swats
from toolbox import make_learner, tanh_net
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from minilearn import EpochSchedulerCB, ScheduleCB
from minilearn.optim import SWATS, AdaBound

FOREACH = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "single"])
SHAPES = ((3, 4), (5,), (2, 2, 2), (1,))
N_STEPS = 200
# A bowl for each tensor, of its own steepness, so that they settle one after another.
STEEPNESS = (1.0, 0.5, 0.3, 2.0)
KWARGS = {"lr": 0.01, "betas": (0.9, 0.99), "threshold": 1e-4}


def new_params():
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)) for shape in SHAPES]


def grad_of(p, i, k):
    """Return the gradient of tensor i at step k: of its bowl, whose walls sway, and some noise."""
    rng = torch.Generator().manual_seed(1000 * i + k)
    noise = torch.randn(p.shape, generator=rng, dtype=torch.float64)
    return STEEPNESS[i] * (1 + 0.5 * math.sin(0.2 * k + i)) * p.detach() + 0.01 * noise


def train(opt, params, first=0, last=N_STEPS, each=lambda k: None):
    for k in range(first, last):
        for i, p in enumerate(params):
            p.grad = grad_of(p, i, k)
        opt.step()
        each(k)


def by_hand(kwargs, switch):
    """Return the parameters after each step, and (tensor, step, lr) of each switch, in plain arithmetic."""
    beta1, beta2 = kwargs["betas"]
    ps = [p.detach().clone() for p in new_params()]
    avgs, sqrs, estimates = ([0.0] * len(ps) for _ in range(3))
    sgd_lrs, vs, points, trace = [None] * len(ps), [None] * len(ps), [], []
    for k in range(1, N_STEPS + 1):
        settled = []
        for i in range(len(ps)):
            g = grad_of(ps[i], i, k - 1) + kwargs.get("weight_decay", 0) * ps[i]
            if sgd_lrs[i] is not None:
                vs[i] = beta1 * vs[i] + g
                step = g + beta1 * vs[i] if kwargs.get("nesterov") else vs[i]
                ps[i] = ps[i] - sgd_lrs[i] * (1 - beta1) * step
                continue
            avgs[i] = beta1 * avgs[i] + (1 - beta1) * g
            sqrs[i] = beta2 * sqrs[i] + (1 - beta2) * g * g
            size = kwargs["lr"] * math.sqrt(1 - beta2**k) / (1 - beta1**k)
            u = -size * avgs[i] / (sqrs[i].sqrt() + 1e-8)
            ps[i] = ps[i] + u
            gamma = (u * u).sum().item() / -(u * g).sum().item()
            estimates[i] = beta2 * estimates[i] + (1 - beta2) * gamma
            lr = estimates[i] / (1 - beta2**k)
            if k > 1 and abs(lr - gamma) < kwargs["threshold"] and lr > 0:
                settled.append((i, lr))
        taken = (
            settled if switch == "local" else [(i, settled[0][1]) for i in range(len(ps))] if settled else []
        )
        for i, lr in taken:
            if sgd_lrs[i] is None:
                sgd_lrs[i], vs[i] = lr, torch.zeros_like(ps[i])
                points.append((i, k, lr))
        trace.append([p.clone() for p in ps])
    return trace, points


def points_of(opt, params):
    found = [
        (i, int(opt.state[p]["switched_at"]), opt.state[p]["sgd_lr"].item())
        for i, p in enumerate(params)
        if "sgd_lr" in opt.state[p]
    ]
    return sorted(found, key=lambda point: (point[1], point[0]))


@pytest.mark.slow
@FOREACH
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1}, {"nesterov": True}], ids=repr)
@pytest.mark.parametrize("switch", ["local", "global"])
def test_each_step_is_the_reference_s_through_the_switch(switch, more, foreach):
    kwargs = KWARGS | more
    trace, points = by_hand(kwargs, switch)
    params, found = new_params(), []
    opt = SWATS(params, switch=switch, foreach=foreach, **kwargs)
    train(opt, params, each=lambda k: found.append([p.detach().clone() for p in params]))
    for ours, theirs in zip(found, trace, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    expected = sorted(points, key=by_step)
    assert [point[:2] for point in points_of(opt, params)] == [point[:2] for point in expected]
    assert [lr for *_, lr in points_of(opt, params)] == pytest.approx([p[2] for p in expected], abs=1e-10)


def by_step(point):
    return point[1], point[0]


def test_references_switch_in_the_middle_one_by_one_or_at_once():
    local, together = (by_hand(KWARGS, switch)[1] for switch in ("local", "global"))
    assert [(i, k) for i, k, _ in local] == [(1, 3), (0, 12), (3, 46)]  # one of them never does
    assert [(i, k) for i, k, _ in together] == [(i, 3) for i in range(4)]
    assert {lr for *_, lr in together} == {local[0][2]}


def test_two_references_agree():
    # That of references.py knows one tensor; grads of the trace made by hand.
    trace, _ = by_hand(KWARGS, "local")
    p = new_params()[1].detach()
    before = [p, *(ps[1] for ps in trace)]
    grads = [grad_of(before[k], 1, k) for k in range(N_STEPS)]
    last = swats(p, grads, [KWARGS["lr"]] * N_STEPS, betas=KWARGS["betas"], threshold=KWARGS["threshold"])
    torch.testing.assert_close(last, trace[-1][1], rtol=0, atol=1e-12)


def test_switch_takes_effect_at_the_next_step_and_momentum_starts_from_0():
    (p,) = params = [nn.Parameter(torch.tensor([1.0], dtype=torch.float64))]
    opt = SWATS(params, lr=0.1, threshold=1e3)
    for _ in range(2):
        p.grad = torch.tensor([2.0], dtype=torch.float64)
        opt.step()
    # A constant gradient of one number: u = -lr at each step, so gamma = lr / g = 0.05.
    assert p.item() == pytest.approx(0.8, abs=1e-6)
    assert opt.state[p]["sgd_lr"].item() == pytest.approx(0.05, abs=1e-6)
    assert opt.state[p]["momentum_buffer"].item() == 0
    opt.step()
    assert p.item() == pytest.approx(0.8 - 0.05 * 0.1 * 2, abs=1e-6)  # (1 - beta1) * g
    opt.step()
    assert p.item() == pytest.approx(0.79 - 0.05 * 0.1 * (0.9 * 2 + 2), abs=1e-6)


def test_adam_s_state_is_gone_after_the_switch_and_all_state_is_tensors():
    params = new_params()
    opt = SWATS(params, switch="local", **KWARGS)
    train(opt, params)
    states = [opt.state[p] for p in params]
    kinds = {frozenset(state) for state in states}
    assert frozenset(("step", "switched_at", "sgd_lr", "sgd_ref", "momentum_buffer")) in kinds
    assert kinds <= {
        frozenset(("step", "switched_at", "sgd_lr", "sgd_ref", "momentum_buffer")),
        frozenset(("step", "avg", "sqr_avg", "estimate")),
    }
    assert all(isinstance(value, torch.Tensor) for state in states for value in state.values())


@pytest.mark.slow
@FOREACH
@pytest.mark.parametrize("stop", [1, 2, 20, 60, 150])
@pytest.mark.parametrize("switch", ["local", "global"])
def test_state_dict_continues_bitwise_before_and_after_switches(switch, stop, foreach):
    params = new_params()
    opt = SWATS(params, switch=switch, foreach=foreach, **KWARGS)
    train(opt, params, last=stop)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    fresh = SWATS(others, lr=1.0)
    fresh.load_state_dict(deepcopy(opt.state_dict()))
    train(opt, params, first=stop)
    train(fresh, others, first=stop)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    assert points_of(opt, params) == points_of(fresh, others)


def test_tensor_that_joins_after_a_global_switch_is_in_sgd_s_phase():
    params = new_params()
    opt = SWATS(params, switch="global", **KWARGS)
    train(opt, params)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt.add_param_group({"params": [late]})
    late.grad = torch.ones_like(late)
    opt.step()
    lr = opt.state[params[0]]["sgd_lr"].item()
    assert opt.state[late]["sgd_lr"].item() == lr
    assert late[0].item() == pytest.approx(1 - lr * 0.1)


def test_global_switch_goes_over_all_groups_and_a_local_one_stays():
    params = new_params()
    groups = [{"params": params[:2]}, {"params": params[2:3]}, {"params": params[3:], "switch": "local"}]
    opt = SWATS(groups, switch="global", **KWARGS)
    train(opt, params)
    steps = [opt.state[p].get("switched_at", torch.tensor(0.0)).item() for p in params]
    assert steps[0] == steps[1] == steps[2] > 0
    assert steps[3] != steps[0]


def test_gradients_that_are_0_move_nothing_and_settle_nothing():
    (p,) = params = [nn.Parameter(torch.ones(3, dtype=torch.float64))]
    opt = SWATS(params, lr=0.1, threshold=1e3)
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        opt.step()
    assert opt.state[p]["estimate"].item() == 0
    assert torch.equal(p.detach(), torch.ones(3, dtype=torch.float64))


def test_negative_estimate_does_not_switch():
    # The average points the other way than the gradient: a step up the hill, whose lr would be negative.
    (p,) = params = [nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    opt = SWATS(params, lr=0.1, threshold=1e9)
    for g in (5.0, *[-0.01] * 3):
        p.grad = torch.tensor([g], dtype=torch.float64)
        opt.step()
        opt.state[p]["estimate"].clamp_(max=-1e-3)
    assert "sgd_lr" not in opt.state[p]


@FOREACH
def test_step_waits_once_while_there_is_adam_and_never_afterwards(foreach):
    params = new_params()
    opt = SWATS(params, switch="global", foreach=foreach, **KWARGS)
    counts = []
    for k in range(N_STEPS):
        for i, p in enumerate(params):
            p.grad = grad_of(p, i, k)
        calls = []
        real = torch.Tensor.tolist
        torch.Tensor.tolist = lambda self: (calls.append(1), real(self))[1]  # noqa: B023
        try:
            opt.step()
        finally:
            torch.Tensor.tolist = real
        counts.append(len(calls))
    at = int(opt.state[params[0]]["switched_at"])
    assert counts == [1] * at + [0] * (N_STEPS - at)


# Schedules --------------------------------------------------------------------------------------------


def tanh_learner(opt_func, *cbs, n_batches=2, **kwargs):
    return make_learner(
        n_batches, 0, regression=True, model=tanh_net(1), opt_func=opt_func, cbs=cbs, **kwargs
    )


def sgd_lr_now(opt, p):
    from minilearn.optim.swats import _lr_of

    return _lr_of(opt.state[p], opt.group_of(p)) / opt.state[p]["sgd_lr"].item()


def scales(learn, n_epochs, at, **kwargs):
    """Return, at each epoch's end, the lr of SGD's phase over that at the switch, and Adam's lr."""
    found = []

    def look(learn):
        states = learn.opt.state
        ours = [p for p in learn.model.parameters() if "sgd_lr" in states.get(p, {})]
        found.append(
            (round(sgd_lr_now(learn.opt, ours[0]), 9) if ours else None, learn.opt.param_groups[0]["lr"])
        )

    learn.fit(n_epochs, cbs=at("after_train", look), **kwargs)
    return found


def test_torch_s_scheduler_rules_both_phases(at):
    opt_func = partial(SWATS, threshold=1e3)  # switches at the second step
    learn = tanh_learner(opt_func, EpochSchedulerCB(MultiStepLR, milestones=[2, 4], gamma=0.1), lr=0.01)
    assert [scale for scale, _ in scales(learn, 6, at)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_phases_have_courses_of_their_own_as_in_document_004(at):
    # In small: Adam's part / 10 at epoch 4 of 8, SGD's part / 10 at 3 and 6.
    opt_func = partial(SWATS, threshold=1e3, switch="local", sgd_scale=1.0)
    cbs = [
        EpochSchedulerCB(MultiStepLR, milestones=[4], gamma=0.1),
        ScheduleCB("sgd_scale", {3: 0.1, 6: 0.01}),
    ]
    found = scales(tanh_learner(opt_func, *cbs, lr=0.01), 8, at)
    assert [scale for scale, _ in found] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert [lr for _, lr in found] == pytest.approx([0.01] * 4 + [0.001] * 4)


def test_tensor_that_switches_late_is_decayed_from_there_on(at):
    # As in the document, where a decay is of the layers that are in SGD's phase by then.
    (p,) = params = [nn.Parameter(torch.ones(1, dtype=torch.float64))]
    opt = SWATS(params, lr=0.1, threshold=1e3, sgd_scale=1.0)
    opt.param_groups[0]["sgd_scale"] = 0.1
    for _ in range(2):
        p.grad = torch.full_like(p, 2.0)
        opt.step()
    assert sgd_lr_now(opt, p) == 1
    opt.param_groups[0]["sgd_scale"] = 0.01
    assert sgd_lr_now(opt, p) == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [1, 2, 5, 9])
def test_fit_is_resumed_bitwise_across_a_switch(tmp_path, at_step):
    opt_func = partial(SWATS, switch="local", threshold=0.02)
    assert "bit for bit" in tanh_learner(opt_func, lr=0.02, n_batches=3).verify_resume(at_step, n_epochs=5)


def test_some_tensor_of_that_fit_switches_before_and_some_after():
    learn = tanh_learner(partial(SWATS, switch="local", threshold=0.02), lr=0.02, n_batches=3)
    learn.fit(5)
    steps = [int(s["switched_at"]) for s in learn.opt.state.values() if "switched_at" in s]
    assert min(steps) < 9 < 15
    assert steps


# AdaBound ---------------------------------------------------------------------------------------------


def test_adabound_s_lr_closes_on_final_lr():
    # With gamma * k large the bounds meet, and a step is SGD's with an averaged gradient.
    (p,) = params = [nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    opt = AdaBound(params, lr=1e-3, betas=(0.0, 0.999), final_lr=0.5, gamma=1e9)
    p.grad = torch.tensor([1e-4, 300.0], dtype=torch.float64)
    opt.step()
    torch.testing.assert_close(p.detach(), -0.5 * p.grad, rtol=1e-8, atol=0)


@FOREACH
def test_adabound_is_torch_s_adam_where_no_bound_is_reached(foreach):
    found = []
    for opt_func in (partial(AdaBound, gamma=1e-12, final_lr=1.0, foreach=foreach), torch.optim.Adam):
        params = new_params()
        train(opt_func(params, lr=1e-2), params, last=50)
        found.append(params)
    # eps stands before the correction in one of them.
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_schedule_moves_adabound_s_bounds_too():
    (p,) = params = [nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    opt = AdaBound(params, lr=1e-3, betas=(0.0, 0.999), final_lr=0.5, gamma=1e9)
    opt.param_groups[0]["lr"] = 1e-4
    p.grad = torch.ones_like(p)
    opt.step()
    assert p.item() == pytest.approx(-0.05)
