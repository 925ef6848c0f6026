"""ScheduleCB: any hyperparameter of any group over the fit, or whatever a function sets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ..arguments import choice, is_whole, number, shown, text, unless_none
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
    """Schedule one hyperparameter, or anything else, over the fit, by a function or by a table of epochs::

        ScheduleCB("lr", cosine)                        # of minilearn.schedules; the length is filled in
        ScheduleCB("momentum", {3: 0.8})                # from epoch 3 on the momentum is 0.8
        ScheduleCB("weight_decay", {0: 5e-4, 10: 0.0}, group=1)
        ScheduleCB("betas.0", lambda step: 1 - step / 1000)

        def set_dropout(learn, p):
            learn.model.dropout.p = p

        ScheduleCB(set_dropout, {0: 0.1, 10: 0.3})
        ScheduleCB(set_teacher_forcing, cosine, base=0.9)   # a function of your own (learn, value)

    Args:
        name: a key of the optimizer's groups: lr, momentum, weight_decay, wd, ...; betas.0 and betas.1
            are the two elements of torch's betas. Or a function (learn, value) that sets something else: a
            temperature, a share of teacher forcing, dropout, the size of images. It gets the schedule's
            values as they are, times `base` if that is given, when the fit begins, for each step or epoch,
            and again when a phase begins. Change what you reach through `learn`, so that copies of the
            learner, as verify_resume makes them, have their own.
        schedule: a function step -> multiplier of the value that the group has when the fit begins (steps
            count from 0); or a function with an argument n_steps that makes one, such as `cosine` or
            `partial(one_cycle, pct_start=0.2)`, which gets the fit's number of steps; or a table {epoch of
            the fit, from 0: value}. Before the first epoch in the table, the group's own value holds, and a
            function is not called.
        group: the index of a group, or several. None: all groups that exist when the fit begins.
        base: for a function, what it multiplies instead of the value when the fit begins; with base=1
            the function gives the values themselves.
        per: "step" or "epoch", what a function of the schedule counts. A length that is filled in is that of
            the fit in the same unit. What a loader with workers reads ahead should change by epochs only.

    Runs at: before_fit, before_epoch, before_train, before_validate, after_step, after_fit, cleanup_fit;
        order 65, after the recorder and the schedulers. Writes: the groups. After the fit they have their
        earlier values; what a function has set stays as it is.
    Raises: before the first batch: ValueError for a name that is not in the groups, an epoch that the fit
        does not have, a value out of range, a value of 0 that a function is to multiply, and two callbacks
        that would write the same one; later, ValueError for a multiplier that leads out of range.
    Source: document 002, which changes momentum and lr in `param_groups` by hand.
    """

    order = Order.HYPERPARAMETERS
    in_evaluation = False
    in_lr_find = False

    def __init__(
        self,
        name: str | Callable[[Learner, Any], Any],
        schedule: Callable[..., Any] | Mapping[int, Any],
        group: int | Sequence[int] | None = None,
        base: float | None = None,
        per: str = "step",
    ) -> None:
        self.setter = name if callable(name) else None
        if self.setter is not None:
            _check_setter(self.setter, group)
            name = getattr(name, "__qualname__", type(name).__name__)
        name = text("ScheduleCB(name", name, "the name of a hyperparameter, such as 'lr'")
        self.per = choice(f"ScheduleCB({name!r}, per", per, ("step", "epoch"))
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
            _check_table(name, schedule, self.setter is None)
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
        name = repr(self.name) if self.setter is None else self.name
        return f"ScheduleCB({name}, {what}{'' if self.group is None else f', group={self.group}'})"

    # Hooks ----------------------------------------------------------------------------------------

    def before_fit(self, learn: Learner) -> None:
        groups = groups_of(learn.opt)
        chosen = self._chosen(groups) if self.setter is None else []
        for i in chosen:
            self._check_group(groups[i], i)
        self._check_others(learn, groups, chosen)
        check_reached(self, [epoch for epoch, _ in self._table], learn.n_epochs)
        self._n_epochs = self._ruled_epochs(learn)
        n_steps = sum_of(learn.epoch_steps[: self._n_epochs])
        self._until = math.inf if n_steps is None else n_steps
        if not self._table:
            schedule: Any = self.schedule
            self._at = resolve(schedule, n_steps if self.per == "step" else self._n_epochs)
        self._bases = [(groups[i], _kept(_read(groups[i], self.name))) for i in chosen]
        self._write_at(learn, 0)

    def before_epoch(self, learn: Learner) -> None:
        if learn.epoch >= self._n_epochs:
            self._until = -1
        elif self.per == "epoch":
            self._write_at(learn, learn.epoch)
        passed = [(start, value) for start, value in self._table if start <= learn.epoch]
        if passed and (passed[-1][0] == learn.epoch or self.setter is not None):
            self._write(learn, passed[-1][1])

    def before_train(self, learn: Learner) -> None:
        self._set_again(learn)

    def before_validate(self, learn: Learner) -> None:
        self._set_again(learn)

    def _set_again(self, learn: Learner) -> None:
        """Set the value of the next step, as a resumed fit has not set it yet; groups are in checkpoints."""
        if self.setter is None or self.per == "epoch" or learn.is_nested:
            return
        step = min(learn.run.n_steps(learn), self._until - 1)  # no step follows the last
        self._write_at(learn, int(max(step, 0)))

    def after_step(self, learn: Learner) -> None:
        if self.per == "epoch":
            return
        if learn.n_steps < self._until:
            self._write_at(learn, learn.n_steps)
        elif self._at is not None and learn.n_steps == self._until + 1:
            warn_of_more(self, learn)

    def after_fit(self, learn: Learner) -> None:
        if self.per == "step" and self._at not in (None, self.schedule):  # it was made for the fit's length
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
        if self.name != "lr" or self.setter is not None:
            return learn.n_epochs
        n_epochs = learn.schedule_epochs  # from there on the lr is SWACB's to set
        if not n_epochs or any(epoch >= n_epochs for epoch, _ in self._table):
            raise ValueError(f"{self!r}: SWACB sets the lr from epoch {n_epochs} on; expected one to do it")
        return n_epochs

    def _write_at(self, learn: Learner, step: int) -> None:
        """Write the value of a step, or of an epoch."""
        if self._at is None:
            return
        given = self._at(step)
        if self.setter is not None:
            is_plain = self.base is None and not callable(given)
            self.setter(learn, given if is_plain else (self.base or 0) * self._multiplier(given, step))
            return
        multiplier = self._multiplier(given, step)
        for group, before in self._bases:
            value = (before if self.base is None else self.base) * multiplier
            self._check_value(value, step)
            _write(group, self.name, value)

    def _write(self, learn: Learner, value: Any) -> None:
        """Write a value of the table."""
        if self.setter is not None:
            self.setter(learn, value)
        for group, _ in self._bases:
            _write(group, self.name, value)

    def _multiplier(self, given: Any, step: int) -> float:
        try:
            return float(given)
        except (TypeError, ValueError):
            hint = "; does it make a schedule, and has still to be called?" if callable(given) else ""
            raise TypeError(
                f"{self!r} at {self.per} {step}: the function gave {given!r}; expected a number{hint}"
            ) from None

    def _check_value(self, value: Any, step: int) -> None:
        if isinstance(value, Tensor):  # reading one on a device would wait for it
            return
        try:
            check_range(self.name, value)
        except ValueError as error:
            raise ValueError(f"{self!r} at {self.per} {step}: {error}") from None

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
        if self.setter is not None:
            others = (cb for cb in learn.cbs if isinstance(cb, ScheduleCB) and cb is not self)
            if other := next((cb for cb in others if cb.setter == self.setter), None):
                raise ValueError(
                    f"{self!r} and {other!r} would both call {self.name}: expected one, because the last "
                    "value would win; a table holds values for several epochs"
                )
            return
        is_cycled = _is_momentum(self.name) and any("max_momentum" in groups[i] for i in chosen)
        for cb in learn.cbs:
            if isinstance(cb, BaseSchedulerCB) and (self.name == "lr" or is_cycled):
                hint = "; give it cycle_momentum=False" if is_cycled else ""
                raise ValueError(f"{self!r} and {cb!r} would both write {self.name}: expected one{hint}")
            if cb is self or not isinstance(cb, ScheduleCB) or cb.setter is not None:
                continue
            if _overlap(cb.name, self.name) and set(cb._chosen(groups)) & set(chosen):
                raise ValueError(
                    f"{self!r} and {cb!r} would both write {self.name}: expected one for each group"
                )


def _check_setter(setter: Callable[..., Any], group: Any) -> None:
    try:
        inspect.signature(setter).bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"ScheduleCB({shown(setter)}): expected the name of a hyperparameter, such as 'lr', or a "
            f"function (learn, value) ({error})"
        ) from None
    except ValueError:  # a function in C does not say what it takes
        pass
    if group is not None:
        raise ValueError(f"ScheduleCB({shown(setter)}, group={shown(group)}): a function has no groups")


def _check_table(name: str, table: Mapping[int, Any], is_checked: bool) -> None:
    if not table:
        raise ValueError(f"ScheduleCB({name!r}, {{}}): expected a table {{epoch: value}} with an entry")
    for epoch, value in table.items():
        if not is_whole(epoch, 0):
            raise ValueError(f"ScheduleCB({name!r}): epoch {epoch!r}: expected a whole number, 0 or more")
        try:
            if is_checked:
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
