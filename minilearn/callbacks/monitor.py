"""Monitor: a number in the rows of history, named once and checked before training."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ..arguments import choice, text, unless_none
from .logged import declared
from .may_log import may_log
from .metrics import MetricsCB

if TYPE_CHECKING:
    from ..learner import Learner
    from ..rows import Row


class Monitor:
    """Read a monitored value, such as "loss", "eval/loss" or "train/MulticlassAccuracy".

    A bare name means validation's value, or training's in a fit without validation. Of several validation
    sets, {"clean": a, "shifted": b}, "shifted/loss" is the value of one; a bare name means the first one's.
    The name is checked before training, unless code of the user's may log it: a callback that does not
    declare it, a subclass of the Learner, a loss or unpack=. That is so if the code, or code that it names,
    has the name `log`, reaches a learner that it is not given, or cannot be seen through. A callback also may
    whose names come from the model. Then the name is looked for in the first epoch's rows.

    Args:
        mode: "min" or "max", whichever is better; it is known for a loss.
    """

    def __init__(self, name: str, mode: str | None = None) -> None:
        self.name = text("monitor", name, "a name, such as 'loss' or 'eval/loss'")
        unless_none(choice, "mode", mode, ("min", "max"), ", which of two values is better")
        self.mode = mode or ("min" if name.endswith("loss") else None)

    def says(self) -> list[str | None]:
        """Return the name and the mode, for a checkpoint: a best value is only one of the same."""
        return [self.name, self.mode]

    def is_better(self, value: float, best: float, min_delta: float = 0.0) -> bool:
        """Whether a value is better than the best so far, by more than min_delta; nan never is."""
        return best - value > min_delta if self.mode == "min" else value - best > min_delta

    @property
    def worst(self) -> float:
        """A value that every number is better than."""
        return math.inf if self.mode == "min" else -math.inf

    def check(self, learn: Learner) -> None:
        """Raise ValueError, listing the names, if there will be no such value or its mode is not known."""
        phase, bare = self._parts(learn)
        cbs, phases = [cb for cb in learn.cbs if isinstance(cb, MetricsCB)], _phases(learn)

        def measured(phase: str) -> list[str]:
            of = "train" if phase == "train" else "eval"
            found = [name for cb in cbs for name in cb.names_in([self.name, bare], of)]
            return found + [name for name in declared(learn.cbs) if cbs and name not in found]

        names = measured(learn.phases[-1] if learn.phases else "eval")
        names += [f"{phase}/{name}" for phase in phases for name in measured(phase)]
        is_there = bool(cbs) and phase in ("", *phases)
        is_logged = is_there and self.name not in names and may_log(learn)
        if self.name not in names and (not is_logged or _is_close(bare, names)):
            reason = (
                f"expected one of {', '.join(names)}"
                if names
                else "there is no MetricsCB to measure anything"
            )
            if is_logged:
                reason += f"; if learn.log writes it, declare it in its callback, logs = ({bare!r},)"
            raise ValueError(f"monitor={self.name!r} is not measured{self._hint(names)}: {reason}")
        if self.mode is None:
            raise ValueError(f"monitor={self.name!r}: is more better? give mode='max' or mode='min'")

    def _parts(self, learn: Learner) -> tuple[str, str]:
        """Return the phase, "" if it is not given, and the name in its rows."""
        phase, slash, name = self.name.partition("/")
        is_phase = slash and phase in ("train", "eval", *learn.plan.sets)
        return (phase, name) if is_phase else ("", self.name)

    def is_same(self, other: Monitor, learn: Learner) -> bool:
        """Whether another monitor reads the same value of the rows of this fit."""
        return self._place(learn) == other._place(learn) and self.mode == other.mode

    def _place(self, learn: Learner) -> tuple[str, str]:
        """Return the row and the column."""
        phase, name = self._parts(learn)
        phase = phase or learn.phases[-1]
        if phase == "eval" and "eval" not in learn.plan.sets and learn.plan.sets:
            phase = learn.plan.sets[0]
        return phase, name

    def value(self, learn: Learner) -> float:
        """Return the newest value.

        Raises: ValueError if there is no such row, or it has no such column.
        """
        (phase, name), epoch = self._place(learn), learn.n_epochs_trained - 1
        n_rows = 1 + 2 * len(learn.plan.sets)  # at most, of an epoch: those of averages have two for each set
        rows = [row for row in learn.history[-n_rows:] if (row["train"], row["epoch"]) == (phase, epoch)]
        if not rows:
            raise ValueError(f"monitor={self.name!r}: epoch {epoch} has no row of {phase}; was it cancelled?")
        if name not in rows[-1]:
            raise self._not_measured(learn, phase, name, rows[-1])
        value = rows[-1][name]
        if not isinstance(value, float | int):
            raise TypeError(f"monitor={self.name!r} is {value!r}: expected a number")
        return value

    def _not_measured(self, learn: Learner, phase: str, name: str, row: Row) -> ValueError:
        """Return the error for a row without the name, with the names of all rows of the epoch."""
        rows = {one["train"]: one for one in learn.history if one["epoch"] == row["epoch"]}
        names = _columns_of(row) + [f"{key}/{one}" for key in rows for one in _columns_of(rows[key])]
        why = f"; the {phase} batches have no loss"
        if name != "loss":
            why = f", or learn.log({name!r}, ...) in {phase} batches, and logs = ({name!r},) to declare it"
        return ValueError(
            f"monitor={self.name!r} is not measured{self._hint(names)}: expected one of "
            f"{', '.join(names) or 'none'}{why}"
        )

    def _hint(self, names: list[str]) -> str:
        close = get_close_matches(self.name, names, n=1)
        return f" (did you mean {close[0]!r}?)" if close else ""


def _columns_of(row: Row) -> list[str]:
    """Return the columns of a row that are measured."""
    return [column for column in row if column not in ("epoch", "train", "time_s")]


def _phases(learn: Learner) -> list[str]:
    """Return the phases that a name may begin with."""
    sets = learn.plan.sets if "eval" in learn.phases else ()
    return list(dict.fromkeys([*learn.phases, *sets]))


def _is_close(name: str, known: list[str]) -> bool:
    """Whether a name is a misspelling of a known one, not just one that ends in the same word, as d_loss."""
    bare = {other.rpartition("/")[2].lower() for other in known}
    name = name.rpartition("/")[2].lower()
    return bool(get_close_matches(name, bare, n=1, cutoff=0.85))
