"""What a fit is going to do, and where it starts: Plan and Position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Position(NamedTuple):
    """Where a fit stands: which batch comes next.

    epoch (of the fit); phase: "train" or "eval", "" before the epoch begins, "over" after the fit; batch.
    """

    epoch: int
    phase: str = ""
    batch: int = 0

    @property
    def is_inside(self) -> bool:
        """Whether it is inside a phase."""
        return self.phase in ("train", "eval")

    @property
    def is_over(self) -> bool:
        """Whether the fit is over."""
        return self.phase == "over"


_BEGINNING = Position(0)


@dataclass(frozen=True)
class Plan:
    """What a fit is going to do, once it is planned.

    n_epochs; phases ("train", "eval" or both); schedule_epochs (how many epochs, from the first on, the lr
    schedules cover); epoch_steps (optimizer steps of each epoch, None if not known); start (the beginning, or
    where a resumed run stood).
    """

    n_epochs: int = 0
    phases: tuple[str, ...] = ()
    schedule_epochs: int = 0
    epoch_steps: list[int | None] = field(default_factory=list)
    start: Position = _BEGINNING

    @property
    def total_steps(self) -> int | None:
        """The steps of all epochs; None if those of one are not known."""
        return sum_of(self.epoch_steps)

    @property
    def epochs(self) -> range:
        """The epochs that are left."""
        return range(self.start.epoch, self.n_epochs)

    def has(self, phase: str, epoch: int) -> bool:
        """Whether an epoch has a phase that is still to run."""
        is_done = (epoch, phase) == (self.start.epoch, "train") and self.start.phase == "eval"
        return phase in self.phases and not is_done

    def first_batch(self, phase: str, epoch: int) -> int:
        """Return the number of the first batch of a phase that is still to run."""
        return self.start.batch if (epoch, phase) == (self.start.epoch, self.start.phase) else 0


def sum_of(steps: list[int | None]) -> int | None:
    """Return how many steps these epochs have; None if those of one are not known."""
    known = [n for n in steps if n is not None]
    return sum(known) if len(known) == len(steps) else None
