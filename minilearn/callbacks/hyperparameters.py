"""ScheduleCB: any hyperparameter of any group over the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ..arguments import is_whole, number, shown, text, unless_none
from ..callback import Callback, Order
from ..fitting.checks import check_reached
from ..optim.groups import Group, groups_of, set_value
from ..optim.ranges import check_range
from ..plan import sum_of
from ..schedules import resolve
from .scheduler import BaseSchedulerCB, warn_of_more, warn_of_plan

if TYPE_CHECKING:
    from ..learner import Learner


class ScheduleCB(Callback):
    """Schedule one hyperparameter over the fit, by a function of the step or by a table of epochs::

        ScheduleCB("lr", cosine)                        # of minilearn.schedules; the length is filled in
        ScheduleCB("momentum", {3: 0.8})                # from epoch 3 on the momentum is 0.8
        ScheduleCB("weight_decay", {0: 5e-4, 10: 0.0}, group=1)
        ScheduleCB("betas.0", lambda step: 1 - step / 1000)

    Args:
        name: a key of the optimizer's groups: lr, momentum, weight_decay, wd, ...; betas.0 and betas.1
            are the two elements of torch's betas.
        schedule: a function step -> multiplier of the value that the group has when the fit begins (steps
            count from 0); or a function with an argument n_steps that makes one, such as `cosine` or
            `partial(one_cycle, pct_start=0.2)`, which gets the fit's number of steps; or a table {epoch of
            the fit, from 0: value}. Before the first epoch in the table, the group's own value holds.
        group: the index of a group, or several. None: all groups that exist when the fit begins.
        base: for a function, what it multiplies instead of the value when the fit begins; with base=1
            the function gives the values themselves.

    Runs at: before_fit, before_epoch, after_step, after_fit, cleanup_fit; order 65, after the recorder and
        the schedulers. Writes: the groups. After the fit they have their earlier values.
    Raises: before the first batch: ValueError for a name that is not in the groups, an epoch that the fit
        does not have, a value out of range, a multiplier of 0, and two callbacks that would write the
        same one; later, ValueError for a multiplier that leads out of range.
    Source: document 002, which changes momentum and lr in `param_groups` by hand.
    """

    order = Order.HYPERPARAMETERS
    in_evaluation = False
    in_lr_find = False

    def __init__(
        self,
        name: str,
        schedule: Callable[..., Any] | Mapping[int, Any],
        group: int | Sequence[int] | None = None,
        base: float | None = None,
    ) -> None:
        text("ScheduleCB(name", name, "the name of a hyperparameter, such as 'lr'")
        if isinstance(schedule, type) and issubclass(schedule, LRScheduler):
            raise TypeError(
                f"ScheduleCB({name!r}, {schedule.__name__}): it is torch's; write "
                f"BatchSchedulerCB({schedule.__name__}) or EpochSchedulerCB({schedule.__name__})"
            )
        self.base = unless_none(number, f"ScheduleCB({name!r}, base", base)
        self.name, self.schedule, self.group = name, schedule, group
        self._table: list[tuple[int, Any]] = []  # (first epoch, value)
        if isinstance(schedule, Mapping):
            if base is not None:
                raise ValueError(f"{self!r}: base={base} goes with a function; a table has the values")
            _check_table(name, schedule)
            self._table = sorted(schedule.items())
        elif not callable(schedule):
            raise TypeError(
                f"ScheduleCB({name!r}, schedule={shown(schedule)}): expected a function step -> multiplier, "
                "such as those of minilearn.schedules, or a table {epoch: value}"
            )
        self._at: Callable[[int], Any] | None = None
        self._n_epochs, self._until = 0, 0.0  # the epochs and the steps of the fit in which it is active
        self._bases: list[tuple[Group, Any]] = []  # each group with its initial value

    def __repr__(self) -> str:
        is_table = isinstance(self.schedule, Mapping)
        name = getattr(self.schedule, "__qualname__", "<")  # "cosine.<locals>.<lambda>" says little
        what = self.schedule if is_table else "a function" if "<" in name else name
        return f"ScheduleCB({self.name!r}, {what}{'' if self.group is None else f', group={self.group}'})"

    # Hooks ----------------------------------------------------------------------------------------

    def before_fit(self, learn: Learner) -> None:
        groups = groups_of(learn.opt)
        chosen = self._chosen(groups)
        for i in chosen:
            self._check_group(groups[i], i)
        self._check_others(learn, groups, chosen)
        check_reached(self, [epoch for epoch, _ in self._table], learn.n_epochs)
        self._n_epochs = self._ruled_epochs(learn)
        n_steps = sum_of(learn.epoch_steps[: self._n_epochs])
        self._until = math.inf if n_steps is None else n_steps
        if not self._table:
            schedule: Any = self.schedule
            self._at = resolve(schedule, n_steps)
        self._bases = [(groups[i], _kept(_read(groups[i], self.name))) for i in chosen]
        self._write_step(0)

    def before_epoch(self, learn: Learner) -> None:
        if learn.epoch >= self._n_epochs:
            self._until = -1
        for start, value in self._table:
            if start == learn.epoch:
                for group, _ in self._bases:
                    _write(group, self.name, value)

    def after_step(self, learn: Learner) -> None:
        if learn.n_steps < self._until:
            self._write_step(learn.n_steps)
        elif self._at is not None and learn.n_steps == self._until + 1:
            warn_of_more(self, learn)

    def after_fit(self, learn: Learner) -> None:
        if self._at not in (None, self.schedule):  # it was made for the fit's length
            warn_of_plan(self, learn)

    def cleanup_fit(self, learn: Learner) -> None:
        for group, before in self._bases:
            _write(group, self.name, before)
        self._at, self._bases, self._n_epochs, self._until = None, [], 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the values that the groups had before the fit; the schedule follows from the step."""
        return {"before": [before for _, before in self._bases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them."""
        groups = [group for group, _ in self._bases]
        self._bases = list(zip(groups, state["before"], strict=False))

    # Its parts ------------------------------------------------------------------------------------

    def values_before(self) -> list[tuple[Group, Any]]:
        """Return each group that this callback writes, with its value before the fit."""
        return self._bases

    def _ruled_epochs(self, learn: Learner) -> int:
        """Return how many epochs of the fit this schedule covers."""
        if self.name != "lr":
            return learn.n_epochs
        n_epochs = learn.schedule_epochs  # from there on the lr is SWACB's to set
        if not n_epochs or any(epoch >= n_epochs for epoch, _ in self._table):
            raise ValueError(f"{self!r}: SWACB sets the lr from epoch {n_epochs} on; expected one to do it")
        return n_epochs

    def _write_step(self, step: int) -> None:
        if self._at is None:
            return
        multiplier = self._multiplier(self._at(step), step)
        for group, before in self._bases:
            value = (before if self.base is None else self.base) * multiplier
            self._check_value(value, step)
            _write(group, self.name, value)

    def _multiplier(self, given: Any, step: int) -> float:
        try:
            return float(given)
        except (TypeError, ValueError):
            hint = "; does it make a schedule, and has still to be called?" if callable(given) else ""
            raise TypeError(
                f"{self!r} at step {step}: the function gave {given!r}; expected a number{hint}"
            ) from None

    def _check_value(self, value: Any, step: int) -> None:
        if isinstance(value, Tensor):  # reading one on a device would wait for it
            return
        try:
            check_range(self.name, value)
        except ValueError as error:
            raise ValueError(f"{self!r} at step {step}: {error}") from None

    def _chosen(self, groups: list[Group]) -> list[int]:
        if self.group is None:
            return list(range(len(groups)))
        chosen = list(self.group) if isinstance(self.group, Sequence) else [self.group]
        if not chosen or not all(is_whole(i, 0, len(groups) - 1) for i in chosen):
            raise ValueError(f"group={shown(self.group)}: expected indices from 0 to {len(groups) - 1}")
        return chosen

    def _check_group(self, group: Group, i: int) -> None:
        try:
            value = _read(group, self.name)
        except (KeyError, IndexError, TypeError, ValueError):
            names = ", ".join(key for key in group if key not in ("params", "param_names"))
            hint = " (momentum is betas.0 there)" if self.name == "momentum" and "betas" in group else ""
            raise ValueError(f"{self.name!r} is not in group {i}{hint}: expected one of {names}") from None
        if self._table:
            return
        if value is None or isinstance(value, bool | str):
            raise ValueError(f"{self.name} is {value!r} in group {i}, no number: give a table of values")
        if isinstance(value, tuple | list):
            raise ValueError(f"{self.name!r} is {value!r} in group {i}: name one, such as '{self.name}.0'")
        if value == 0 and self.base is None:
            raise ValueError(
                f"{self.name} is 0 in group {i}, and no multiplier changes that: give a table of values, or "
                "base=1, to have the function's values as they are"
            )

    def _check_others(self, learn: Learner, groups: list[Group], chosen: list[int]) -> None:
        """Raise if another callback writes the same hyperparameter: the last one would win."""
        is_cycled = _is_momentum(self.name) and any("max_momentum" in groups[i] for i in chosen)
        for cb in learn.cbs:
            if isinstance(cb, BaseSchedulerCB) and (self.name == "lr" or is_cycled):
                hint = "; give it cycle_momentum=False" if is_cycled else ""
                raise ValueError(f"{self!r} and {cb!r} would both write {self.name}: expected one{hint}")
            if cb is self or not isinstance(cb, ScheduleCB):
                continue
            if _overlap(cb.name, self.name) and set(cb._chosen(groups)) & set(chosen):
                raise ValueError(
                    f"{self!r} and {cb!r} would both write {self.name}: expected one for each group"
                )


def _check_table(name: str, table: Mapping[int, Any]) -> None:
    if not table:
        raise ValueError(f"ScheduleCB({name!r}, {{}}): expected a table {{epoch: value}} with an entry")
    for epoch, value in table.items():
        if not is_whole(epoch, 0):
            raise ValueError(f"ScheduleCB({name!r}): epoch {epoch!r}: expected a whole number, 0 or more")
        try:
            check_range(name, value)
        except ValueError as error:
            raise ValueError(f"ScheduleCB({name!r}), epoch {epoch}: {error}") from None


def _overlap(a: str, b: str) -> bool:
    """Whether two names are the same, or one is an element of the other, as betas.0 is of betas."""
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _is_momentum(name: str) -> bool:
    return name in ("momentum", "betas", "betas.0")


def _read(group: Group, name: str) -> Any:
    key, dot, index = name.partition(".")
    if key in ("params", "param_names") or (dot and not index.isdecimal()):
        raise KeyError(name)
    return group[key][int(index)] if index else group[key]


def _write(group: Group, name: str, value: Any) -> None:
    key, _, index = name.partition(".")
    if index:
        parts = list(group[key])
        parts[int(index)] = value
        value = tuple(parts)
    set_value(group, key, value)


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
