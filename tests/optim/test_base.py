import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from minilearn.optim import SGD, MomentumSGD, Optimizer, SGDAlternate

FOREACH = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "single"])


class SignSGD(Optimizer):
    """What a user writes: p <- p - lr * sign(g), and how many steps it has taken."""

    def __init__(self, params, lr, wd=0, scale=1.0, foreach=True):
        super().__init__(params, {"lr": lr, "wd": wd, "scale": scale}, foreach)

    def init_state(self, p, grad):
        return {"count": 0, "first": grad.clone()}

    def update(self, p, grad, state, pg):
        state["count"] += 1
        p.add_(grad.sign(), alpha=-pg["lr"] * pg["scale"])


def two_params():
    """Return (2,) and (1,), at 1, with gradients 3, -4 and 5."""
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
    params[0].grad, params[1].grad = torch.tensor([3.0, -4.0]), torch.tensor([5.0])
    return params


@FOREACH
def test_update_and_init_state_make_an_optimizer(foreach):
    a, b = two_params()
    opt = SignSGD([a, b], lr=0.25, foreach=foreach)
    opt.step()
    a.grad = -a.grad
    b.grad = None
    opt.step()
    opt.step()
    assert a.tolist() == [1.25, 0.75]  # one step, and two back
    assert b.tolist() == [0.75]
    assert [opt.state[p]["count"] for p in (a, b)] == [3, 1]
    assert opt.state[a]["first"].tolist() == [3, -4]  # made once


@FOREACH
def test_weights_decay_before_the_update(foreach):
    a, b = two_params()
    SignSGD([{"params": [a], "wd": 2}, {"params": [b]}], lr=0.25, foreach=foreach).step()
    assert a.tolist() == [0.25, 0.75]  # 1 * (1 - 0.25 * 2) -+ 0.25
    assert b.tolist() == [0.75]


@FOREACH
def test_update_gets_the_hyperparameters_of_the_group(foreach):
    a, b = two_params()
    SignSGD([{"params": [a], "scale": 2}, {"params": [b], "lr": 0.5}], lr=0.25, foreach=foreach).step()
    assert (a.tolist(), b.tolist()) == ([0.5, 1.5], [0.5])


def test_update_all_gets_the_group_s_lists_without_what_has_no_gradient():
    class Lists(SignSGD):
        def update_all(self, params, grads, states, pg):
            seen.append((len(params), [g.tolist() for g in grads], [s["count"] for s in states], pg))

    seen = []
    params = two_params()
    rest = nn.Parameter(torch.ones(3))
    opt = Lists([*params, rest], lr=0.25)
    opt.step()
    assert seen == [(2, [[3, -4], [5]], [0, 0], opt.param_groups[0])]
    assert params[0].tolist() == [1, 1]


def test_a_group_without_gradients_is_left_out():
    class Counted(SignSGD):
        def update_all(self, params, *rest):
            assert params

    a, b = two_params()
    b.grad = None
    Counted([{"params": [a]}, {"params": [b]}], lr=0.25).step()


def test_without_init_state_state_is_an_empty_dict_that_update_may_fill():
    class Counting(Optimizer):
        def update(self, p, grad, state, pg):
            state["n"] = state.get("n", 0) + 1

    params = two_params()
    opt = Counting(params, {"lr": 1.0})
    opt.step()
    opt.step()
    assert [opt.state[p] for p in params] == [{"n": 2}, {"n": 2}]


@FOREACH
def test_without_update_the_error_names_the_class_and_what_to_write(foreach):
    class Empty(Optimizer):
        pass

    opt = Empty(two_params(), {"lr": 0.1}, foreach)
    with pytest.raises(NotImplementedError, match=r"^Empty.*update\(p, grad, state, pg\)"):
        opt.step()


def test_foreach_is_on_by_default():
    class Empty(Optimizer):
        pass

    assert Empty(two_params(), {"lr": 0.1}).param_groups[0]["foreach"] is True
    assert Empty(two_params(), {"lr": 0.1}).defaults == {"lr": 0.1, "foreach": True}


def test_a_subclass_s_own_hyperparameter_may_be_in_a_group_and_its_misspelling_not():
    a, b = two_params()
    opt = SignSGD([{"params": [a], "scale": "any"}], lr=0.1)  # of no known range
    assert opt.param_groups[0]["scale"] == "any"
    with pytest.raises(
        TypeError,
        match=r"scales=2.*SignSGD.*scale\?.*lr, wd, scale$",
    ):
        opt.add_param_group({"params": [b], "scales": 2})


def test_a_hyperparameter_unlike_its_own_is_refused_without_a_guess():
    with pytest.raises(
        TypeError,
        match=r"dampening=0\.5.*SGD.*lr, wd$",
    ):
        SGD([{"params": two_params(), "dampening": 0.5}], lr=0.1)


@pytest.mark.parametrize("through", [deepcopy, lambda opt: opt.load_state_dict(opt.state_dict()) or opt])
def test_a_copied_or_loaded_optimizer_names_the_same_hyperparameters(through):
    opt = through(SGD(two_params(), lr=0.1))
    with pytest.raises(TypeError, match=r"lr, wd$"):
        opt.add_param_group({"params": two_params(), "momentum": 0.9})


def test_a_group_that_is_no_dict_is_torch_s_error():
    with pytest.raises(TypeError, match=re.escape("param_group must be a dict, but got <class 'list'>")):
        SGD(two_params(), lr=0.1).add_param_group(two_params())


@pytest.mark.parametrize("key", ["maximize", "amsgrad", "centered"])
def test_a_switch_of_torch_s_that_would_do_nothing_is_refused(key):
    with pytest.raises(TypeError, match=rf"{key}=True.*SGD"):
        SGD([{"params": two_params(), key: True}], lr=0.1)


def test_a_misspelt_foreach_is_refused():
    with pytest.raises(TypeError, match=r"forech=False.*foreach\?"):
        SGD([{"params": two_params(), "forech": False}], lr=0.1)


def test_a_default_out_of_range_is_refused_though_every_group_has_its_own():
    with pytest.raises(ValueError, match=r"^lr=-1.*>= 0"):
        SGD([{"params": two_params(), "lr": 0.1}], lr=-1)


def test_closure_comes_before_the_gradients_are_looked_at():
    (p,) = [nn.Parameter(torch.ones(2))]

    def closure():
        p.grad = torch.full((2,), 2.0)  # there was none
        return "its value"

    assert SGD([p], lr=0.25).step(closure) == "its value"
    assert p.tolist() == [0.5, 0.5]


def test_an_error_in_the_closure_leaves_all_as_it_was():
    params = two_params()

    def closure():
        raise RuntimeError("no loss")

    opt = SGD(params, lr=0.1)
    with pytest.raises(RuntimeError, match="no loss"):
        opt.step(closure)
    assert [p.tolist() for p in params] == [[1, 1], [1]]


@pytest.mark.parametrize("foreach", [True, False])
def test_a_subclass_of_a_shipped_optimizer_uses_its_own_update(foreach):
    class Signed(MomentumSGD):
        def update(self, p, grad, state, pg):
            state["avg"].lerp_(grad, 1 - pg["mom"])
            p.add_(state["avg"].sign(), alpha=-pg["lr"])

    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.tensor([3.0, -4.0])
    Signed([p], lr=0.5, foreach=foreach).step()
    assert p.tolist() == [-0.5, 0.5]


def test_keys_that_a_scheduler_left_in_a_group_pass():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "initial_lr": 0.1, "base_momentum": 0.8}]
    assert SGDAlternate(groups, lr=0.1).param_groups[0]["initial_lr"] == 0.1
