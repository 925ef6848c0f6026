"""The arguments of a torch scheduler: those given are checked, those that the fit knows are filled in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR

from ..arguments import check_flags, counted, is_number, shown, unless_none, whole_number

Arguments = dict[str, Any]

_PER_GROUP = ("max_lr", "base_lr", "min_lr", "lr_lambda", "base_momentum", "max_momentum")
_LENGTHS = ("total_steps", "T_max", "total_iters")  # arguments that are the length of the whole schedule
_COUNTS = ("epochs", "steps_per_epoch")  # OneCycleLR takes these in place of total_steps


@dataclass(frozen=True)
class FitLength:
    """Hold how long the fit is, or the part that a schedule covers, in the unit that the scheduler counts.

    Args:
        unit: "steps" or "epochs".
        epoch_steps: the steps of each epoch; None where the train loader has no length.
        n_steps: their sum, or None.
    """

    unit: str
    epoch_steps: list[int | None]
    n_steps: int | None

    @property
    def n_epochs(self) -> int:
        """The number of epochs."""
        return len(self.epoch_steps)

    @property
    def total(self) -> int | None:
        """How often the scheduler could be stepped."""
        return self.n_steps if self.unit == "steps" else self.n_epochs

    @property
    def are_alike(self) -> bool:
        """Whether all epochs have the same number of steps, known or not."""
        return len(set(self.epoch_steps)) == 1

    @property
    def steps_per_epoch(self) -> int | None:
        """How often the scheduler is stepped in each epoch; None where that is not one known number."""
        if self.unit == "epochs":
            return 1
        return self.epoch_steps[0] if self.are_alike else None

    def __str__(self) -> str:
        epochs = counted(self.n_epochs, "epoch")
        return f"this callback counts {self.unit}, and the fit has {self.total} of them ({epochs})"


def takes_value(kind: type) -> bool:
    """Whether schedulers of a class are stepped with a measured value, as ReduceLROnPlateau is."""
    if issubclass(kind, ReduceLROnPlateau):
        return True
    step = getattr(kind, "step", None)
    parameters = list(inspect.signature(step).parameters.values())[1:2] if callable(step) else []
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def check_parts(name: str, sched: Any) -> None:
    """Raise TypeError for a scheduler made of others, one of which would be stepped without its value."""
    for part in getattr(sched, "_schedulers", ()):
        if takes_value(type(part)):
            raise TypeError(
                f"{name}: a {type(sched).__name__} steps its {type(part).__name__} without the value that "
                "it watches: expected EpochSchedulerCB with only this one"
            )
        check_parts(name, part)


def unpacked(scheduler_f: Any, kwargs: Arguments) -> tuple[Any, Arguments]:
    """Return the class inside a partial, and all arguments; those given later take precedence."""
    if isinstance(scheduler_f, partial) and not scheduler_f.args:
        return scheduler_f.func, {**scheduler_f.keywords, **kwargs}
    return scheduler_f, kwargs


def check_scheduler(name: str, scheduler_f: Any) -> None:
    """Raise TypeError for anything but a class of torch's schedulers or a function that makes one."""
    if isinstance(scheduler_f, LRScheduler):
        raise TypeError(
            f"{name} was given a {type(scheduler_f).__name__} instance: expected the class, and its "
            f"arguments here; write {name}({type(scheduler_f).__name__}, ...)"
        )
    if getattr(scheduler_f, "__module__", "") == "minilearn.schedules":
        raise TypeError(
            f"{name} was given a function of minilearn.schedules: expected a scheduler of torch; write "
            "ScheduleCB('lr', ...)"
        )
    if not callable(scheduler_f):
        raise TypeError(
            f"{name}(scheduler_f={shown(scheduler_f)}): expected a class of torch.optim.lr_scheduler, or a "
            "function"
        )
    if scheduler_f is ChainedScheduler or scheduler_f is SequentialLR:
        raise TypeError(
            f"{name}({scheduler_f.__name__}): it is made of other schedulers; expected a function "
            "optimizer -> scheduler that makes them all"
        )


_WHOLE = (
    *("total_steps", "epochs", "steps_per_epoch", "T_max", "total_iters", "step_size", "T_0", "T_mult"),
    *("step_size_up", "step_size_down"),
)


def check_values(name: str, scheduler_f: type, given: Arguments) -> None:
    """Raise for a value that torch's schedulers would take and misread: 1.5 steps, nan, or the text "no"."""
    if not scheduler_f.__module__.startswith("torch.optim."):
        return
    check_flags(name, scheduler_f, given)
    for key, value in given.items():
        if key in _WHOLE:
            unless_none(whole_number, f"{name}({key}", value, of=" of steps or epochs")
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError(f"{name}({key}={shown(value)}): expected finite numbers")


# What was given -----------------------------------------------------------------------------------


def check_given(name: str, scheduler_f: Any, given: Arguments, opt: Any, length: FitLength) -> None:
    """Raise ValueError, with both numbers, for an argument that contradicts this fit."""
    if isinstance(scheduler_f, type):
        _check_restart(name, given, length)
        if length.total is not None:
            _check_counts(name, given, length)
            _check_ends(name, given, length)
            _check_points(name, given, length)
    _check_per_group(name, given, len(opt.param_groups))
    if "cycle_momentum" in _parameters(scheduler_f) and not has_momentum(opt):
        _check_no_cycle(name, given, opt)


def _check_restart(name: str, given: Arguments, length: FitLength) -> None:
    t_0, total = given.get("T_0"), length.total
    if t_0 is not None and (not isinstance(t_0, int) or not 1 <= t_0 <= (total or t_0)):
        raise ValueError(
            f"{name}: T_0={t_0!r}: expected a whole number of {length.unit} >= 1, and at most the fit's "
            f"{total}; is it a share of too few, or in the other unit?"
        )


def _check_counts(name: str, given: Arguments, length: FitLength) -> None:
    """Check the arguments that have to equal the fit's own."""
    if length.steps_per_epoch is None and given.keys() & set(_COUNTS):
        raise ValueError(
            f"{name}: epochs differ in their steps, and {length}; leave epochs and steps_per_epoch out"
        )
    known = {
        "total_steps": length.total,
        "epochs": length.n_epochs,
        "steps_per_epoch": length.steps_per_epoch,
    }
    for key, value in known.items():
        if given.get(key) not in (None, value):
            raise ValueError(f"{name}: {key}={given[key]} contradicts {value}: {length}; leave {key} out")


def _check_ends(name: str, given: Arguments, length: FitLength) -> None:
    """Check the step at which a schedule ends: it may end early, but not late, or in the other unit."""
    for key in ("T_max", "total_iters"):
        if (end := given.get(key)) is None:
            continue
        is_in_epochs = end == length.n_epochs != length.total
        if is_in_epochs or end > length.total:
            why = "is in epochs" if end == length.n_epochs else "would never be reached"
            raise ValueError(f"{name}: {key}={end} {why}: {length}; leave {key} out for {length.total}")


def _check_points(name: str, given: Arguments, length: FitLength) -> None:
    """Check the steps at which the lr changes."""
    for key in ("step_size", "milestones"):
        if (value := given.get(key)) is None:
            continue
        points = value if isinstance(value, Sequence) else [value]
        if late := [point for point in points if point >= length.total]:
            raise ValueError(f"{name}: {key}={value}, of which {late[0]} is never reached: {length}")


def _check_per_group(name: str, given: Arguments, n_groups: int) -> None:
    for key in _PER_GROUP:
        values = given.get(key)
        if isinstance(values, list | tuple) and len(values) != n_groups:
            raise ValueError(
                f"{name}: {key}={values!r} has {counted(len(values), 'value')}, and the optimizer has "
                f"{counted(n_groups, 'parameter group')}: expected one value, or one for each"
            )


def _check_no_cycle(name: str, given: Arguments, opt: Any) -> None:
    asked = [key for key in ("cycle_momentum", "base_momentum", "max_momentum") if given.get(key)]
    if asked and given.get("cycle_momentum", True):
        raise ValueError(
            f"{name}: {asked[0]}={given[asked[0]]}, and {type(opt).__name__} has no momentum or "
            "betas[0] above 0 in all of its groups, which torch cycles; for one by another name, or of some "
            "groups, use ScheduleCB"
        )


# What the fit knows -------------------------------------------------------------------------------


def from_the_fit(name: str, scheduler_f: Any, given: Arguments, opt: Any, length: FitLength) -> Arguments:
    """Return the arguments that the fit knows and that were not given.

    Raises: ValueError for one that the fit cannot know, because the length is missing.
    """
    accepted = _parameters(scheduler_f)
    known = {
        **dict.fromkeys(_LENGTHS, length.total),
        "epochs": length.n_epochs,
        "steps_per_epoch": length.steps_per_epoch,
        "max_lr": [float(group["lr"]) for group in opt.param_groups],
        "step_size_up": None if length.total is None else max(1, length.total // 2),
    }
    if not has_momentum(opt):
        known["cycle_momentum"] = False  # torch would turn one on, or raise
    needless = _needless(scheduler_f, given)
    found = {
        key: value
        for key, value in known.items()
        if key in accepted and key not in given and key not in needless
    }
    for key, value in found.items():
        if value is None:
            why = "the train loader has no length" if length.are_alike else "epochs differ in their steps"
            raise ValueError(f"{name} needs {key}, and {why}: give {key}=")
    return found


def has_the_length(arguments: Arguments) -> bool:
    """Whether an argument that the fit filled in is its length."""
    return bool(arguments.keys() - {"max_lr", "cycle_momentum"})


def _needless(scheduler_f: Any, given: Arguments) -> Sequence[str]:
    """Return the arguments that would give the length a second time: OneCycleLR takes either."""
    if not isinstance(scheduler_f, type):
        return ()  # a function gets every argument that it names
    if given.keys() & set(_COUNTS):
        return ("total_steps",)
    return _COUNTS if "total_steps" in _parameters(scheduler_f) else ()


def check_complete(name: str, scheduler_f: Any, arguments: Arguments) -> None:
    """Raise ValueError for an argument that is required and is still missing."""
    missing = [
        key
        for key, p in list(_parameters(scheduler_f).items())[1:]  # the first is the optimizer
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and key not in arguments
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}, which cannot be inferred: give {missing[0]}=")


def has_momentum(opt: Any) -> bool:
    """Whether torch's schedulers can cycle the momentum of an optimizer, and a group has one above 0.

    They look only into its defaults: with `betas` there, they write betas[0] of each group, else momentum.
    """
    key = next((key for key in ("betas", "momentum") if key in opt.defaults), None)
    values = [group.get(key) for group in opt.param_groups]
    if key == "betas":
        values = [beta[0] if isinstance(beta, tuple | list) and beta else None for beta in values]
    are_numbers = all(is_number(value) or isinstance(value, Tensor) for value in values)
    return key is not None and are_numbers and any(value > 0 for value in values)


def _parameters(scheduler_f: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(scheduler_f).parameters
