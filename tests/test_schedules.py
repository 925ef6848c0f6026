import inspect
import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from toolbox import mentions
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from minilearn import schedules
from minilearn.schedules import (
    constant,
    cosine,
    cosine_restarts,
    cycled,
    exponential,
    multi_step,
    one_cycle,
    polynomial,
    product,
    sequence,
    shifted,
    step_decay,
    triangular,
    warm_up,
)


class Case(NamedTuple):
    make: object  # a public function of the module
    args: tuple
    kwargs: dict
    values: list  # of steps 0, 1, ..., worked by hand
    end: int | None = None  # the first step of those that all have one value
    low: float = 0.0  # no value is below it, and none is above 1


# cos(pi / 3) = 1/2, so half a cosine over three steps is 1, 3/4, 1/4, 0.
CASES = [
    Case(constant, (), {}, [1, 1, 1], 0, 1),
    Case(constant, (), {"value": 0.3}, [0.3, 0.3, 0.3], 0, 0.3),
    Case(step_decay, (2,), {}, [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]),
    Case(step_decay, (), {"step_size": 3, "gamma": 0.5}, [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    Case(step_decay, (1,), {"gamma": 0.5}, [1, 0.5, 0.25]),
    Case(multi_step, ([2, 3],), {}, [1, 1, 0.1, 0.01, 0.01], 3),
    Case(multi_step, (), {"milestones": (1, 4), "gamma": 0.5}, [1, 0.5, 0.5, 0.5, 0.25, 0.25], 4),
    Case(multi_step, ([],), {}, [1, 1, 1], 0, 1),
    Case(exponential, (), {"gamma": 0.5}, [1, 0.5, 0.25, 0.125]),
    Case(exponential, (1.0,), {}, [1, 1, 1], 0, 1),
    Case(cosine, (3,), {}, [1, 0.75, 0.25, 0, 0], 3),
    Case(cosine, (), {"n_steps": 3, "low": 0.2}, [1, 0.8, 0.4, 0.2, 0.2], 3, 0.2),
    Case(cosine, (2,), {}, [1, 0.5, 0, 0], 2),
    Case(cosine, (1,), {}, [1, 0, 0], 1),
    Case(polynomial, (4,), {}, [1, 0.75, 0.5, 0.25, 0, 0], 4),
    Case(polynomial, (), {"n_steps": 4, "power": 2}, [1, 0.5625, 0.25, 0.0625, 0, 0], 4),
    Case(polynomial, (4, 0.5, 0.2), {}, [1, 0.2 + 0.4 * 3**0.5, 0.2 + 0.8 * 0.5**0.5, 0.6, 0.2], 4, 0.2),
    Case(polynomial, (1,), {"low": 0.2}, [1, 0.2, 0.2], 1, 0.2),
    Case(warm_up, (), {"n_steps": 4}, [0, 0.25, 0.5, 0.75, 1, 1, 1], 4),
    Case(warm_up, (3,), {}, [0, 1 / 3, 2 / 3, 1, 1], 3),
    Case(warm_up, (1,), {}, [0, 1, 1], 1),
    Case(triangular, (4,), {}, [0, 0.5, 1, 0.5, 0, 0], 4),
    Case(triangular, (5,), {}, [0, 0.4, 0.8, 0.8, 0.4, 0, 0], 5),  # its peak is between two steps
    Case(
        triangular,
        (),
        {"n_steps": 5, "pct_start": 0.2, "low": 0.2},
        [0.2, 1, 0.8, 0.6, 0.4, 0.2, 0.2],
        5,
        0.2,
    ),
    Case(triangular, (8, 0.75), {}, [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 0.5, 0, 0], 8),
    Case(triangular, (3,), {}, [0, 2 / 3, 2 / 3, 0, 0], 3),
    Case(triangular, (2,), {}, [0, 1, 0, 0], 2),
    Case(triangular, (1,), {}, [0, 0], 0),
    Case(cycled, (triangular(4), 4), {}, [0, 0.5, 1, 0.5, 0, 0.5, 1, 0.5, 0]),
    Case(
        cycled,
        (triangular(4), 4),
        {"decay": 0.5},
        [0, 0.5, 1, 0.5, 0, 0.25, 0.5, 0.25, 0, 0.125, 0.25, 0.125, 0],
    ),
    Case(
        cycled,
        (),
        {"schedule": triangular(4, low=0.2), "n_steps": 4, "decay": 0.5, "low": 0.2},
        [0.2, 0.6, 1, 0.6, 0.2, 0.4, 0.6, 0.4, 0.2, 0.3, 0.4, 0.3, 0.2],
        low=0.2,
    ),
    Case(cycled, (cosine(3), 2), {}, [1, 0.75, 1, 0.75, 1]),  # cut off before it ended
    Case(cycled, (exponential(0.5), 1), {"decay": 0.1}, [1, 0.1, 0.01]),
    Case(cosine_restarts, (3,), {}, [1, 0.75, 0.25, 1, 0.75, 0.25, 1]),
    Case(cosine_restarts, (1,), {"factor": 3}, [1, 1, 0.75, 0.25, 1]),
    Case(cosine_restarts, (1, 2), {}, [1, 1, 0.5, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 1]),
    Case(
        cosine_restarts, (3,), {"decay": 0.5}, [1, 0.75, 0.25, 0.5, 0.375, 0.125, 0.25, 0.1875, 0.0625, 0.125]
    ),
    Case(
        cosine_restarts,
        (),
        {"n_steps": 1, "factor": 3, "decay": 0.5, "low": 0.2},
        [1, 0.6, 0.5, 0.3, 0.4],
        low=0.2,
    ),
    # Its peak is at 0.5 * 6 - 1 = 2 and its end at 5, so that it rises in two steps and falls in three.
    Case(one_cycle, (6, 0.5), {"start": 0.2, "end": 0.1}, [0.2, 0.6, 1, 0.775, 0.325, 0.1, 0.1, 0.1], 5, 0.1),
    Case(
        one_cycle,
        (),
        {"n_steps": 6, "pct_start": 0.5, "start": 1, "peak": 0.8, "end": 0.9},
        [1, 0.9, 0.8, 0.825, 0.875, 0.9, 0.9],
        5,
        0.8,
    ),
    Case(one_cycle, (10,), {"end": 0.0}, [0.04, 0.52, 1], 9),  # 0.3 * 10 - 1 = 2
    Case(one_cycle, (2, 0.1), {}, [1, 4e-6, 4e-6], 1),  # there is no room to rise
    Case(one_cycle, (3, 0.7), {}, [0.04, None, 4e-6, 4e-6], 2),  # 0.7 * 3 - 1 = 1.1
    Case(one_cycle, (1,), {}, [1], 1),
    Case(sequence, ([warm_up(2), cosine(3)], [2]), {}, [0, 0.5, 1, 0.75, 0.25, 0, 0], 5),
    Case(
        sequence,
        (),
        {"schedules": (constant(0.5), constant(1.0), exponential(0.5)), "milestones": (1, 4)},
        [0.5, 1, 1, 1, 1, 0.5, 0.25],
    ),
    Case(sequence, ([cosine(3)], []), {}, [1, 0.75, 0.25, 0, 0], 3),
    Case(product, (warm_up(4), step_decay(2, 0.5)), {}, [0, 0.25, 0.25, 0.375, 0.25, 0.25, 0.125]),
    Case(product, (exponential(0.5), constant(0.5), cosine(2)), {}, [0.5, 0.125, 0, 0], 2),
    Case(product, (warm_up(4),), {}, [0, 0.25, 0.5, 0.75, 1, 1], 4),
    Case(shifted, (warm_up(4), 1), {}, [0.25, 0.5, 0.75, 1, 1], 3),
    Case(shifted, (), {"schedule": cosine(3), "n_steps": 2}, [0.25, 0, 0], 1),
]
IDS = [f"{case.make.__name__}{i}" for i, case in enumerate(CASES)]
EACH = pytest.mark.parametrize("case", CASES, ids=IDS)
PUBLIC = {
    name: function
    for name, function in vars(schedules).items()
    if inspect.isfunction(function) and function.__module__ == schedules.__name__ and name[0] != "_"
    if name != "resolve"  # which makes none by itself
}


def made(case):
    return case.make(*case.args, **case.kwargs)


def first(schedule, n_steps):
    return [schedule(step) for step in range(n_steps)]


def torchs_own(make_sched, n_steps):
    """Return the lrs that a scheduler of torch gives to an optimizer of lr 1."""
    opt = SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    sched = make_sched(opt)
    lrs = []
    for step in range(n_steps):
        lrs.append(opt.param_groups[0]["lr"])
        opt.step()
        if step + 1 < n_steps:
            sched.step()
    return lrs


# Every schedule -------------------------------------------------------------------------------------


def test_every_schedule_has_a_case():
    assert {case.make.__name__ for case in CASES} == set(PUBLIC)


@EACH
def test_values_are_those_worked_by_hand(case):
    schedule = made(case)
    for step, value in enumerate(case.values):
        if value is not None:
            assert schedule(step) == pytest.approx(value, rel=1e-12, abs=1e-15), step


@EACH
def test_value_depends_on_the_step_alone(case):
    schedule, other = made(case), made(case)
    values = first(schedule, 30)
    assert [schedule(step) for step in reversed(range(30))] == values[::-1]
    assert [other(step) for step in (7, 7, 0, 7)] == [values[step] for step in (7, 7, 0, 7)]


@EACH
def test_value_is_a_float(case):
    assert {type(value) for value in first(made(case), 30)} == {float}


def test_value_is_a_float_when_low_is_an_int():
    for make in (cosine, polynomial, triangular, partial(polynomial, power=2)):
        assert {type(value) for value in first(make(3, low=0), 5)} == {float}


@EACH
def test_step_may_be_a_float(case):
    schedule = made(case)
    assert [schedule(float(step)) for step in range(30)] == first(schedule, 30)


@EACH
def test_it_stays_where_it_ended(case):
    schedule = made(case)
    if case.end is None:
        assert len(set(first(schedule, 200)[100:])) > 1  # else the case ought to say where it ends
        return
    assert {schedule(case.end + more) for more in (*range(30), 100, 12345)} == {schedule(case.end)}
    assert case.end == 0 or schedule(case.end - 1) != schedule(case.end)


@EACH
def test_it_is_never_below_low_nor_above_1(case):
    values = first(made(case), 200)
    assert all(case.low - 1e-15 <= value <= 1 for value in values)


@EACH
def test_lambda_lr_takes_it(case):
    schedule = made(case)
    n_steps = len(case.values) + 2
    assert torchs_own(lambda opt: LambdaLR(opt, schedule), n_steps) == first(schedule, n_steps)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize(
    "make",
    [make for name, make in PUBLIC.items() if next(iter(inspect.signature(make).parameters)) == "n_steps"],
)
def test_very_short_ones_have_finite_values(make, n_steps):
    values = first(make(n_steps), 20)
    assert all(0 <= value <= 1 for value in values)


def test_list_of_milestones_may_change_afterwards():
    milestones, parts = [1], [constant(1.0), constant(0.5)]
    schedule, composed = multi_step(milestones, 0.5), sequence(parts, milestones)
    milestones.clear()
    parts.clear()
    assert first(schedule, 3) == first(composed, 3) == [1, 0.5, 0.5]


# Equal to torch's -----------------------------------------------------------------------------------

TORCHS = {
    "StepLR": (step_decay(3, 0.5), lambda opt: StepLR(opt, 3, 0.5)),
    "StepLR, default": (step_decay(4), lambda opt: StepLR(opt, 4)),
    "MultiStepLR": (multi_step([2, 3, 11], 0.5), lambda opt: MultiStepLR(opt, [2, 3, 11], 0.5)),
    "MultiStepLR, default": (multi_step([5]), lambda opt: MultiStepLR(opt, [5])),
    "ExponentialLR": (exponential(0.9), lambda opt: ExponentialLR(opt, 0.9)),
    "CosineAnnealingLR": (cosine(19), lambda opt: CosineAnnealingLR(opt, 19)),
    "CosineAnnealingLR, low": (cosine(19, low=0.1), lambda opt: CosineAnnealingLR(opt, 19, 0.1)),
    "PolynomialLR": (polynomial(19), lambda opt: PolynomialLR(opt, 19)),
    "PolynomialLR, ended": (polynomial(9, power=3), lambda opt: PolynomialLR(opt, 9, 3)),
    "LinearLR": (polynomial(15, low=0.25), lambda opt: LinearLR(opt, 1.0, 0.25, 15)),
    "CyclicLR": (
        cycled(triangular(8, low=0.1), 8),
        lambda opt: CyclicLR(opt, 0.1, 1.0, step_size_up=4, cycle_momentum=False),
    ),
    "CyclicLR, uneven": (
        cycled(triangular(8, pct_start=0.25, low=0.1), 8),
        lambda opt: CyclicLR(opt, 0.1, 1.0, step_size_up=2, step_size_down=6, cycle_momentum=False),
    ),
    "CyclicLR, triangular2": (
        cycled(triangular(6, low=0.1), 6, decay=0.5, low=0.1),
        lambda opt: CyclicLR(opt, 0.1, 1.0, step_size_up=3, mode="triangular2", cycle_momentum=False),
    ),
    "CosineAnnealingWarmRestarts": (cosine_restarts(6), lambda opt: CosineAnnealingWarmRestarts(opt, 6)),
    "CosineAnnealingWarmRestarts, longer": (
        cosine_restarts(3, factor=2, low=0.1),
        lambda opt: CosineAnnealingWarmRestarts(opt, 3, 2, 0.1),
    ),
    "OneCycleLR": (one_cycle(20), lambda opt: OneCycleLR(opt, 1.0, total_steps=20)),
    "OneCycleLR, other shape": (
        one_cycle(20, pct_start=0.55, start=0.1, end=0.1 / 100),
        lambda opt: OneCycleLR(opt, 1.0, total_steps=20, pct_start=0.55, div_factor=10, final_div_factor=100),
    ),
    "SequentialLR": (
        sequence([polynomial(5, low=0.5), cosine(15)], [5]),
        lambda opt: SequentialLR(opt, [LinearLR(opt, 1.0, 0.5, 5), CosineAnnealingLR(opt, 15)], [5]),
    ),
    "SequentialLR of three": (
        sequence([constant(1.0), exponential(0.9), cosine(8)], [3, 12]),
        lambda opt: SequentialLR(
            opt, [StepLR(opt, 100), ExponentialLR(opt, 0.9), CosineAnnealingLR(opt, 8)], [3, 12]
        ),
    ),
}


@pytest.mark.parametrize("name", TORCHS)
def test_it_is_torchs(name):
    schedule, make_sched = TORCHS[name]
    # torch's multiply the lr from step to step, and gather rounding errors
    assert first(schedule, 20) == pytest.approx(torchs_own(make_sched, 20), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("opt_func", [partial(SGD, momentum=0.5), AdamW])
def test_momentum_that_goes_with_one_cycle_is_torchs(opt_func):
    opt = opt_func([torch.zeros(1, requires_grad=True)], lr=1.0)
    sched = OneCycleLR(opt, 1.0, total_steps=20)
    moms = []
    for step in range(20):
        group = opt.param_groups[0]
        moms.append(group["momentum"] if opt_func is not AdamW else group["betas"][0])
        opt.step()
        if step < 19:
            sched.step()
    schedule = one_cycle(20, start=1, peak=0.85 / 0.95, end=1)
    assert [0.95 * schedule(step) for step in range(20)] == pytest.approx(moms, rel=1e-12)
    assert min(moms) == pytest.approx(0.85)


# What the documents and papers say ------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [20, 100, 1000])
def test_slanted_triangle_is_ulmfits(n_steps):
    cut_frac, ratio = 0.1, 32  # the paper's names and values
    cut = math.floor(n_steps * cut_frac)
    schedule = triangular(n_steps, pct_start=0.1, low=1 / 32)
    for t in range(n_steps + 1):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        assert schedule(t) == pytest.approx((1 + p * (ratio - 1)) / ratio, rel=1e-9)
    assert schedule(0) == schedule(n_steps) == 1 / 32
    assert schedule(cut) == 1


def test_triangle_is_a_warm_up_and_then_a_straight_annealing():
    parts = sequence([warm_up(3), polynomial(9)], milestones=[3])
    assert first(parts, 20) == pytest.approx(first(triangular(12, pct_start=0.25), 20), abs=1e-12)


def test_shifted_warm_up_has_the_documents_iterations():
    # document 002: at iteration u = 1, ..., U the lr is u / U of the target
    assert first(shifted(warm_up(5), 1), 6) == [0.2, 0.4, 0.6, 0.8, 1, 1]


def test_product_puts_a_warm_up_before_another_schedule():
    warm = product(warm_up(2), multi_step([4], 0.5))
    assert first(warm, 6) == [0, 0.5, 1, 1, 0.5, 0.5]


def test_compositions_of_compositions():
    cycle = sequence([warm_up(2), cosine(3)], [2])  # 0, 1/2, 1, 3/4, 1/4
    schedule = shifted(product(cycled(cycle, 5, decay=0.5), constant(0.5)), 4)
    assert first(schedule, 7) == pytest.approx([0.125, 0, 0.125, 0.25, 0.1875, 0.0625, 0], abs=1e-15)


# Refused --------------------------------------------------------------------------------------------

LENGTH = "whole number ... >= 1"
ABOVE_0 = "> 0"
RISING = ">= 1 ... above"
NAN = math.nan
# parameter -> (values that are refused, what the message mentions); wherever a parameter has this name
BAD = {
    "n_steps": ([0, -1, 1.5, 2.0, True, "3", None], LENGTH),
    "step_size": ([0, -1, 1.5, 2.0, True, "3"], LENGTH),
    "factor": ([0, -1, 1.5, 2.0, True], LENGTH),
    "gamma": ([0, -0.5, NAN], ABOVE_0),
    "decay": ([0, -0.5, NAN], ABOVE_0),
    "power": ([0, -0.5, NAN], ABOVE_0),
    "pct_start": ([0, 1, -0.1, 1.1, NAN], "0 < pct_start < 1"),
    "milestones": ([[0], [-1], [2, 1], [1, 1], [1, 3, 2], [1.5], [1.0]], RISING),
}
FIRST_CASE = {case.make.__name__: case for case in reversed(CASES)}
REFUSED = [
    (name, parameter, value)
    for name, function in PUBLIC.items()
    for parameter in inspect.signature(function).parameters
    if name != "shifted"
    for value in BAD.get(parameter, ([],))[0]
]


def with_argument(name, parameter, value):
    case = FIRST_CASE[name]
    bound = inspect.signature(case.make).bind(*case.args, **case.kwargs)
    bound.arguments[parameter] = value
    return case.make(*bound.args, **bound.kwargs)


@pytest.mark.parametrize(("name", "parameter", "value"), REFUSED)
def test_argument_out_of_range_is_refused_when_it_is_made(name, parameter, value):
    with pytest.raises(ValueError, match=mentions(f"{parameter}={value!r} ... {BAD[parameter][1]}")):
        with_argument(name, parameter, value)


def test_each_parameter_with_a_range_is_tried():
    of_module = {p for function in PUBLIC.values() for p in inspect.signature(function).parameters}
    assert of_module - set(BAD) == {"value", "low", "start", "peak", "end", "schedule", "schedules"}


@pytest.mark.parametrize(
    ("n_schedules", "milestones"), [(2, []), (2, [1, 2]), (1, [3]), (3, [1]), (0, []), (0, [1])]
)
def test_another_number_of_milestones_than_seams_is_refused(n_schedules, milestones):
    message = rf"{n_schedules} schedules.*{len(milestones)} milestones"
    with pytest.raises(ValueError, match=message):
        sequence([constant()] * n_schedules, milestones)


@pytest.mark.parametrize("make", [multi_step, lambda found: sequence([constant()] * 2, found)])
def test_milestone_that_is_a_bool_is_refused(make):
    with pytest.raises(ValueError, match=r"milestones=\[True\].*whole numbers >= 1"):
        make([True])


@pytest.mark.parametrize("milestones", [["a", 1], [None, 1], [[1], [2]]], ids=str)
def test_milestones_that_are_no_numbers_are_refused_with_the_same_words(milestones):
    with pytest.raises(ValueError, match=mentions(RISING)):
        multi_step(milestones)


@pytest.mark.parametrize("n_steps", [-1, 1.5, True])
def test_shifted_refuses_what_is_no_number_of_steps(n_steps):
    with pytest.raises(ValueError, match=rf"n_steps={n_steps!r}.*whole number"):
        shifted(warm_up(4), n_steps)
