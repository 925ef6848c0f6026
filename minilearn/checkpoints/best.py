"""The best checkpoints of a run: which epochs they are of, and which files are no longer among them."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import SIDE, written_whole

_NAME = re.compile(r"best-epoch-(\d+)\.pt")


class Bests:
    """The n best epochs by a value, and those that were among them and still have a file.

    Args:
        is_better: (value, other) -> whether it is better; the earlier of two equal ones is.
    """

    def __init__(self, n: int, is_better: Callable[[float, float], bool]) -> None:
        self.n, self.is_better = n, is_better
        self.kept: list[tuple[float, int]] = []  # (value, epoch), the best first
        self.dropped: list[int] = []

    def add(self, value: float, epoch: int) -> bool:
        """Take the value of an epoch; return whether it is one of the best so far."""
        place = sum(not self.is_better(value, other) for other, _ in self.kept)
        if place >= self.n or math.isnan(value):
            return False
        self.kept.insert(place, (value, epoch))
        self._cut()
        return True

    def _cut(self) -> None:
        self.dropped += [epoch for _, epoch in self.kept[self.n :]]
        del self.kept[self.n :]

    def remove_dropped(self, folder: Path) -> None:
        """Remove the files that are no longer among the best."""
        for epoch in self.dropped:
            (folder / best_name(epoch)).unlink(missing_ok=True)

    def missing_in(self, folder: Path) -> list[int]:
        """Return the best epochs that have no file in the folder."""
        return [epoch for _, epoch in self.kept if not (folder / best_name(epoch)).is_file()]

    def forget(self, epochs: list[int]) -> None:
        """Forget epochs, so that the next good ones take their places."""
        self.kept = [(value, epoch) for value, epoch in self.kept if epoch not in epochs]

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs, with their values."""
        return {"kept": [list(pair) for pair in self.kept], "dropped": list(self.dropped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them; if fewer are to be kept now, the worst are dropped."""
        self.kept = [(float(value), int(epoch)) for value, epoch in state["kept"]]
        self.dropped = [int(epoch) for epoch in state["dropped"]]
        self._cut()


def best_name(epoch: int) -> str:
    """Return the file name of the checkpoint of a good epoch of the learner's life."""
    return f"best-epoch-{epoch:04d}.pt"


def bests_in(folder: Path) -> list[Path]:
    """Return the files of the best epochs in a folder, the latest first."""
    found = {path: _NAME.fullmatch(path.name) for path in folder.glob("best-epoch-*")}
    return sorted((path for path, is_one in found.items() if is_one), key=_epoch_of, reverse=True)


def _epoch_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def give_name(path: Path, name: str) -> None:
    """Give a file a second name in its folder, which may be that of another file; copy it if need be."""
    to, side = path.with_name(name), path.with_name(f".{name}.{os.getpid()}{SIDE}")
    try:
        side.unlink(missing_ok=True)
        os.link(path, side)
        os.replace(side, to)
    except OSError:  # the file system has no links
        with suppress(OSError):
            side.unlink()
        with path.open("rb") as source, written_whole(to) as file:
            shutil.copyfileobj(source, file)
