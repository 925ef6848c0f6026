"""What a fit is going to do, and where it starts: Plan and Position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .fields import Fields


class Position(NamedTuple):
    """Where a fit stands: which batch comes next.

    epoch (of the fit); phase: "train" or "eval", "" before the epoch begins, "over" after the fit; batch;
    part (in "eval", which of several validation sets).
    """

    epoch: int
    phase: str = ""
    batch: int = 0
    part: int = 0

    def form(self) -> dict[str, Any]:
        """Return it as a dict; the first part is left out, as in version 0.1."""
        return {name: value for name, value in self._asdict().items() if name != "part" or value}

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
    where a resumed run stood); sets (the names of the validation sets, in the rows of history); part (which
    of them is read, or was read last).
    """

    n_epochs: int = 0
    phases: tuple[str, ...] = ()
    schedule_epochs: int = 0
    epoch_steps: list[int | None] = field(default_factory=list)
    start: Position = _BEGINNING
    sets: tuple[str, ...] = ("eval",)
    part: int = 0

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
        part = self.part if phase == "eval" else 0
        start = self.start
        return start.batch if (epoch, phase, part) == (start.epoch, start.phase, start.part) else 0

    def left(self, epoch: int, loaders: Iterable[Any]) -> Iterator[tuple[Plan, Any]]:
        """Give the plan during each validation set that an epoch has still to run, and its loader."""
        first = self.start.part if (epoch, "eval") == (self.start.epoch, self.start.phase) else 0
        for part, loader in enumerate(loaders):
            if part >= first:
                yield replace(self, part=part), loader

    def row_of(self, learn: Fields) -> str:
        """Return what a row of history calls the running phase: "train", "eval" or a set's name."""
        return learn.phase if learn.training or learn.is_nested else self.sets[self.part]


def sum_of(steps: list[int | None]) -> int | None:
    """Return how many steps these epochs have; None if those of one are not known."""
    known = [n for n in steps if n is not None]
    return sum(known) if len(known) == len(steps) else None
