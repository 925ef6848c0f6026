"""The run that a learner's fits belong to: its name, from CheckpointCB, and where it was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..checkpoints.begun import Begun
    from ..learner import Learner


class Run:
    """A run on disk.

    id (None without CheckpointCB), n_fits (finished ones), saved_to (the newest checkpoint of this fit),
    source (the checkpoint that this fit resumes from; None for a new one), savers (functions that write a
    checkpoint now), signals (more ones that stop the fit), beginnings (the state with which the epoch, or
    its validation, began), is_restarted (whether a fit that was to resume found no checkpoint of its own),
    damaged (checkpoints that it could not read), begun (what the learner was like when its first fit with
    checkpoints began; None before it).
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.n_fits = 0
        self.begun: Begun | None = None
        self.begin()

    def named(self, name: str) -> None:
        """Give the run its name."""
        self.id = name

    def is_at(self, name: str | None, n_fits: int) -> None:
        """Say which run it is, and how many of its fits are finished."""
        self.id, self.n_fits = name, n_fits

    def has_begun(self, begun: Begun | None) -> None:
        """Set what the learner was like when its first fit with checkpoints began."""
        self.begun = begun

    def begin(self) -> None:
        """Begin a fit; nothing of it is saved yet."""
        self.saved_to: Path | None = None
        self.source: Any = None
        self.savers: list[Callable[[Learner], None]] = []
        self.signals: tuple[int, ...] = ()
        self.beginnings: dict[str, Any] = {}
        self.is_restarted = False
        self.damaged: list[Path] = []

    def resumes(self, source: Any) -> None:
        """Set the checkpoint that this fit resumes from."""
        self.source = source

    def n_steps(self, learn: Learner) -> int:
        """Return the steps taken in the fit, in a resumed one also before the checkpoint is restored."""
        source = self.source
        return learn.n_steps if source is None or source.is_put else int(source.saved["fields"]["n_steps"])

    def saved_by(self, saver: Callable[[Learner], None]) -> None:
        """Add a function that writes a checkpoint in a fit at rest."""
        self.savers.append(saver)

    def stopped_by(self, signals: tuple[int, ...]) -> None:
        """Let more signals than the usual ones stop the fit."""
        self.signals = (*self.signals, *signals)

    def restarts(self) -> None:
        """Note that the fit was to resume, and that it has no checkpoint yet."""
        self.is_restarted = True

    def leaves_out(self, damaged: list[Path]) -> None:
        """Note the checkpoints that could not be read."""
        self.damaged = damaged

    def save(self, learn: Learner) -> None:
        """Write a checkpoint now, if there is a function for it."""
        for saver in self.savers:
            saver(learn)

    def began(self, what: str, state: Any) -> None:
        """Set the state with which an "epoch" began, or its "validation"; that of the epoch comes first."""
        self.beginnings = {what: state} if what == "epoch" else {**self.beginnings, what: state}

    def saved(self, path: Path) -> None:
        """Note the checkpoint that was just written."""
        self.saved_to = path

    def finish(self) -> None:
        """Count a finished fit, if there is a run."""
        self.n_fits += self.id is not None
