"""The run that a learner's fits belong to: what CheckpointCB names, and where it was saved."""

from __future__ import annotations

from pathlib import Path


class Run:
    """A run on disk.

    id (None without CheckpointCB), n_fits (finished ones), saved_to (the newest checkpoint of this fit).
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.n_fits = 0
        self.saved_to: Path | None = None

    def named(self, name: str) -> None:
        """Give the run its name."""
        self.id = name

    def is_at(self, name: str | None, n_fits: int) -> None:
        """Say which run it is, and how many of its fits are finished."""
        self.id, self.n_fits = name, n_fits

    def begin(self) -> None:
        """Begin a fit, of which nothing is saved yet."""
        self.saved_to = None

    def saved(self, path: Path) -> None:
        """Take the checkpoint that was just written."""
        self.saved_to = path

    def finish(self) -> None:
        """Count a finished fit, if there is a run."""
        self.n_fits += self.id is not None
