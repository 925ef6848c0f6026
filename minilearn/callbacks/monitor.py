"""Monitor: a number in the rows of history, named once and checked before training."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from .metrics import MetricsCB


class Monitor:
    """Read a monitored value, such as "loss", "eval/loss" or "train/MulticlassAccuracy".

    A bare name means validation's value, or training's in a fit without validation.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, learn: Any) -> None:
        """Raise ValueError, with the names there are, if there will be no such value."""
        measured = [name for cb in learn.cbs if isinstance(cb, MetricsCB) for name in cb.names]
        names = measured + [f"{phase}/{name}" for phase in learn.phases for name in measured]
        if self.name not in names:
            close = get_close_matches(self.name, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            reason = (
                f"expected one of {', '.join(names)}"
                if names
                else "there is no MetricsCB to measure anything"
            )
            raise ValueError(f"monitor={self.name!r} is not measured{hint}: {reason}")

    def value(self, learn: Any) -> float:
        """Return the newest value. Shapes: a number; metrics that give lists cannot be monitored."""
        phase, _, name = self.name.rpartition("/")
        phase, epoch = phase or learn.phases[-1], learn.n_epochs_trained - 1
        rows = [row for row in learn.history[-2:] if (row["train"], row["epoch"]) == (phase, epoch)]
        if not rows:
            raise ValueError(f"monitor={self.name!r}: epoch {epoch} has no row of {phase}; was it cancelled?")
        value = rows[-1][name]
        if not isinstance(value, float | int):
            raise TypeError(f"monitor={self.name!r} is {value!r}: expected a number")
        return value
