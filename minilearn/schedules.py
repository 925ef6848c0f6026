"""Schedules: pure functions from a step to a multiplier of a hyperparameter.

Each function here returns such a function. Steps count from 0, and the multiplier applies to the value at the
start of training, so 1 leaves it as it was::

    LambdaLR(opt, cosine(1000))                             # any of them works in torch's scheduler
    ScheduleCB("lr", cosine)                                # the fit's length is filled in
    ScheduleCB("weight_decay", multi_step([600, 900]))      # any hyperparameter of any group
    sequence([warm_up(100), cosine(900)], milestones=[100]) # composed
    cycled(triangular(200), 200, decay=0.5)

After its length, a schedule keeps its last value, where torch's cosine and polynomial would turn or raise.

Source: document 002 (step, exponential, cosine, triangular, warm-up, cycles) and document 003 (one-cycle).
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from .arguments import function, is_whole, number, shown, whole_number

Schedule = Callable[[int], float]


def constant(value: float = 1.0) -> Schedule:
    """Stay at `value`."""
    number("value", value)
    return lambda step: value


def step_decay(step_size: int, gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` every `step_size` steps: gamma ** (step // step_size). Torch: StepLR."""
    whole_number("step_size", step_size)
    number("gamma", gamma, above=0)
    return lambda step: gamma ** (step // step_size)


def multi_step(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` at each milestone: gamma ** (milestones <= step). Torch: MultiStepLR."""
    number("gamma", gamma, above=0)
    milestones = _check_rising(milestones)
    return lambda step: gamma ** bisect_right(milestones, step)


def exponential(gamma: float) -> Schedule:
    """Multiply by `gamma` at each step: gamma ** step. Torch: ExponentialLR."""
    number("gamma", gamma, above=0)
    return lambda step: gamma**step


def cosine(n_steps: int, low: float = 0.0) -> Schedule:
    """Fall from 1 to `low` in n_steps along half a cosine. Torch: CosineAnnealingLR.

    low + (1 - low) * (1 + cos(pi * step / n_steps)) / 2

    Source: Loshchilov & Hutter 2017, SGDR, eq. 5.
    """
    whole_number("n_steps", n_steps)
    number("low", low)
    return lambda step: low + (1 - low) * _half_cosine(min(step / n_steps, 1))


def polynomial(n_steps: int, power: float = 1.0, low: float = 0.0) -> Schedule:
    """Fall from 1 to `low` in n_steps along a power of the rest; power 1 is a line. Torch: PolynomialLR.

    low + (1 - low) * (1 - step / n_steps) ** power
    """
    whole_number("n_steps", n_steps)
    number("power", power, above=0)
    number("low", low)
    return lambda step: low + (1 - low) * (1 - min(step / n_steps, 1.0)) ** power


def warm_up(n_steps: int) -> Schedule:
    """Rise on a straight line to 1 at step n_steps, and stay there: u / n_steps at step u.

    Differs: document 002 counts its iterations from 1; torch and minilearn count from 0, where the
        multiplier is 0. `shifted(warm_up(U), 1)` gives the document's U iterations: 1/U, 2/U, ..., 1.
    """
    whole_number("n_steps", n_steps)
    return lambda step: min(step / n_steps, 1.0)


def triangular(n_steps: int, pct_start: float = 0.5, low: float = 0.0) -> Schedule:
    """Rise on a straight line from `low` to 1, at step pct_start * n_steps, and fall back by n_steps.

    Source: Howard & Ruder 2018, ULMFiT, eq. 3: its slanted triangle is pct_start=0.1, low=1/32.
    """
    whole_number("n_steps", n_steps)
    _check_share("pct_start", pct_start)
    number("low", low)
    peak = pct_start * n_steps

    def at(step: int) -> float:
        height = step / peak if step < peak else (n_steps - min(step, n_steps)) / (n_steps - peak)
        return low + (1 - low) * height

    return at


def cycled(schedule: Schedule, n_steps: int, decay: float = 1.0, low: float = 0.0) -> Schedule:
    """Restart `schedule` every n_steps, each time at `decay` times the previous cycle's height above `low`.

    cycled(triangular(n, low=l), n, decay=0.5, low=l) is torch's CyclicLR in mode "triangular2".

    Source: Smith 2015, "Cyclical learning rates".
    """
    function("schedule", schedule, "a function step -> multiplier")
    whole_number("n_steps", n_steps)
    number("decay", decay, above=0)
    number("low", low)

    def at(step: int) -> float:
        cycle, i = divmod(step, n_steps)
        return low + (schedule(i) - low) * decay**cycle

    return at


def cosine_restarts(n_steps: int, factor: int = 1, decay: float = 1.0, low: float = 0.0) -> Schedule:
    """Fall along half a cosine, again and again. Torch: CosineAnnealingWarmRestarts, for decay=1.

    Args:
        n_steps: length of the first cycle.
        factor: how many times as long each cycle is as the one before.
        decay: how many times as high above `low` each peak is as the one before.

    Source: Loshchilov & Hutter 2017, SGDR (T_0 = n_steps, T_mult = factor).
    """
    whole_number("n_steps", n_steps)
    whole_number("factor", factor)
    number("decay", decay, above=0)
    number("low", low)

    def at(step: int) -> float:
        cycle, length = 0, n_steps
        if factor == 1:  # without counting cycle by cycle
            cycle, step = divmod(step, n_steps)
        while step >= length:
            step -= length
            length *= factor
            cycle += 1
        return low + (1 - low) * decay**cycle * _half_cosine(step / length)

    return at


def one_cycle(
    n_steps: int, pct_start: float = 0.3, start: float = 1 / 25, peak: float = 1.0, end: float = 4e-6
) -> Schedule:
    """Go from `start` to `peak` and then to `end`, each along half a cosine. Torch: OneCycleLR.

    The peak is at step pct_start * n_steps - 1 (or at the first step, if that is negative) and the end at
    the last step, n_steps - 1, as in torch, whose div_factor is 1 / start and final_div_factor start / end.

    `one_cycle(n, start=1, peak=0.85 / 0.95, end=1)` is the matching schedule for a momentum of 0.95.

    Source: Smith & Topin 2018, "Super-convergence"; document 003.
    """
    whole_number("n_steps", n_steps)
    _check_share("pct_start", pct_start)
    for name, value in (("start", start), ("peak", peak), ("end", end)):
        number(name, value)
    top, last = max(pct_start * n_steps - 1, 0), max(n_steps - 1, 1)

    def at(step: int) -> float:
        if step < top:
            return peak + (start - peak) * _half_cosine(step / top)
        return end + (peak - end) * _half_cosine((min(step, last) - top) / (last - top))

    return at


def sequence(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """Run one schedule after the other; each counts from 0 at its milestone. Torch: SequentialLR.

    Args:
        milestones: the steps at which the second, third, ... begin.
    """
    is_list = isinstance(schedules, Sequence) and not isinstance(schedules, str)
    if not is_list or not all(map(callable, schedules)):
        raise TypeError(f"schedules={shown(schedules)}: expected a list of functions step -> multiplier")
    schedules, milestones = list(schedules), _check_rising(milestones)
    if len(schedules) != len(milestones) + 1:
        raise ValueError(
            f"schedules={shown(schedules)}, milestones={milestones}: {len(schedules)} schedules and "
            f"{len(milestones)} milestones; expected a milestone for each schedule but the first"
        )
    starts = [0, *milestones]

    def at(step: int) -> float:
        i = bisect_right(milestones, step)
        return schedules[i](step - starts[i])

    return at


def product(*schedules: Schedule) -> Schedule:
    """Multiply schedules."""
    for schedule in schedules:
        function("product(*schedules", schedule, "functions step -> multiplier")
    return lambda step: math.prod(schedule(step) for schedule in schedules)


def shifted(schedule: Schedule, n_steps: int) -> Schedule:
    """Run `n_steps` ahead: schedule(step + n_steps)."""
    function("schedule", schedule, "a function step -> multiplier")
    whole_number("n_steps", n_steps)
    return lambda step: schedule(step + n_steps)


def resolve(schedule: Callable[..., Any], n_steps: int | None) -> Schedule:
    """Return the schedule that a function of n_steps, such as `cosine`, makes; a schedule as it is.

    Args:
        n_steps: the length to fill in; None if it is not known.

    Raises: TypeError for a function of this module that needs other arguments, and for one that does not
        make a schedule; ValueError for a length that is needed but not known.
    """
    name = getattr(schedule, "__name__", repr(schedule))
    try:
        parameters = inspect.signature(schedule).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return schedule
    needed = [key for key, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    is_ours = getattr(schedule, "__module__", "") == __name__
    if is_ours and "<" not in schedule.__qualname__:  # cosine itself, not the schedule inside it
        if needed != ["n_steps"]:
            raise TypeError(f"{name} makes a schedule: expected what it returns; write {name}(...)")
    elif "n_steps" not in parameters or "step" in needed:
        return schedule
    if "n_steps" in needed and n_steps is None:
        raise ValueError(f"{name} needs n_steps, and the train loader has no length: give n_steps")
    made = schedule(n_steps=n_steps) if "n_steps" in needed else schedule()  # partial(cosine, n_steps=100)
    if not callable(made):
        raise TypeError(f"{name}: with n_steps={n_steps} it gave {made!r}; expected a function")
    return made


def _half_cosine(share: float) -> float:
    """Return 1 at share 0 and 0 at share 1."""
    return (1 + math.cos(math.pi * share)) / 2


def _check_share(name: str, value: float) -> None:
    number(name, value, above=0, below=1)


def _check_rising(milestones: Sequence[int]) -> list[int]:
    is_list = isinstance(milestones, Sequence) and not isinstance(milestones, str)
    found = list(milestones) if is_list else []
    are_steps = is_list and all(is_whole(m, 1) for m in found)
    if not are_steps or found != sorted(set(found)):
        raise ValueError(
            f"milestones={shown(milestones)}: expected whole numbers >= 1, each above the one before"
        )
    return found
