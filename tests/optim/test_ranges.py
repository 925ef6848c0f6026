import math
from fractions import Fraction

import pytest
import torch
from toolbox import mentions

from minilearn.optim.ranges import HYPERPARAMETERS, check_range

FROM_0 = ["lr", "wd", "weight_decay", "dampening"]
SHARES = ["mom", "momentum", "sqr_mom", "alpha", "beta1", "beta2", "betas.0", "betas.1"]
NO_NUMBERS = [math.nan, math.inf, -math.inf, True, False, "0.5", None, 1j, [0.5], Fraction(1, 2)]


def refusal(name, value, expected):
    return pytest.raises(ValueError, match=mentions(f"{name}={value!r} ... {expected}"))


def test_these_are_the_known_hyperparameters():
    assert {*FROM_0, *SHARES, "eps", "betas", "nesterov"} <= HYPERPARAMETERS


@pytest.mark.parametrize("name", FROM_0)
def test_these_go_from_0_up(name):
    for value in (0, 0.0, 1e-30, 0.5, 1, 1e9):
        check_range(name, value)
    for value in (-1e-30, -1, *NO_NUMBERS):
        with refusal(name, value, ">= 0"):
            check_range(name, value)


@pytest.mark.parametrize("name", SHARES)
def test_these_go_from_0_to_1_without_it(name):
    for value in (0, 0.0, 1e-30, 0.5, 1 - 1e-12):
        check_range(name, value)
    for value in (-1e-30, -1, 1, 1.0, 1.5, *NO_NUMBERS):
        with refusal(name, value, f"0 <= {name} < 1"):
            check_range(name, value)


@pytest.mark.parametrize("name", ["eps", "threshold", "sgd_scale", "final_lr", "gamma"])
def test_these_are_above_0(name):
    for value in (1e-300, 0.5, 1, 1e9):
        check_range(name, value)
    for value in (0, 0.0, -0.0, -1e-30, *NO_NUMBERS):
        if (name, value) == ("sgd_scale", None):
            continue
        with refusal(name, value, "> 0"):
            check_range(name, value)


def test_scale_of_sgd_may_be_none():
    check_range("sgd_scale", None)


@pytest.mark.parametrize("name", ["nesterov", "amsgrad", "amsbound"])
def test_switches_are_true_or_false(name):
    check_range(name, True)
    check_range(name, False)
    for value in (0, 1, None, "True"):
        with refusal(name, value, "True ... False"):
            check_range(name, value)


def test_switch_of_swats_is_one_of_two():
    check_range("switch", "local")
    with refusal("switch", "both", "'global' ... 'local'"):
        check_range("switch", "both")


@pytest.mark.parametrize("kind", [tuple, list])
def test_betas_are_checked_one_by_one(kind):
    check_range("betas", kind((0, 0.999)))
    for value in (kind((1.2, 0.999)), kind((0.9, -0.1))):
        with refusal("betas", value, "0 <= beta < 1"):
            check_range("betas", value)


@pytest.mark.parametrize("value", [0.9, (), (0.9,), (0.9, 0.99, 0.999)])
def test_betas_are_two(value):
    with refusal("betas", value, "0 <= beta < 1"):
        check_range("betas", value)


@pytest.mark.parametrize("name", ["name", "initial_lr", "foreach", "Lr", ""])
@pytest.mark.parametrize("value", [-1, math.nan, True, "text", None])
def test_other_names_may_have_any_value(name, value):
    check_range(name, value)


@pytest.mark.parametrize("name", [*FROM_0, *SHARES, "eps"])
def test_a_tensor_is_no_number(name):
    with pytest.raises(ValueError, match=rf"^{name}=tensor\(0\.5000\)"):
        check_range(name, torch.tensor(0.5))
