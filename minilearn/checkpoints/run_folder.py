"""RunFolder: a folder with the checkpoints of one run, to which one process writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import SIDE, DamagedError, check_folder, read_torch
from ..warning import warn
from .best import bests_in
from .lock import Lock
from .snapshot import BEST, checkpoints_in, is_at, is_damaged, name_of

if TYPE_CHECKING:
    from ..learner import Learner


class RunFolder:
    """A folder of checkpoints: locked during a fit, of this run only, and without damaged files.

    Args:
        path: the folder.
        said: what to call the callback that writes there, in a message.
    """

    def __init__(self, path: Path, said: str) -> None:
        self.path, self.said = path, said
        self._lock: Lock | None = None

    def __repr__(self) -> str:
        return self.said

    def take(self, learn: Learner) -> None:
        """Make the folder if necessary and lock it, once in a fit."""
        if learn.rank or self._lock is not None:
            return
        check_folder(self, self.path)
        self._lock = Lock(self.path)
        if who := self._lock.take():
            raise RuntimeError(
                f"{self!r}: {who} is training there: was the script started twice? Wait until it ends, or "
                "choose another folder"
            )

    def free(self) -> None:
        """Unlock it."""
        if self._lock is not None:
            self._lock.free()
            self._lock = None

    def check(self, learn: Learner) -> None:
        """Lock it, set aside what is damaged, and remove what a killed process left.

        Raises: ValueError for checkpoints of another run, and for later ones than the one to resume from.
        """
        self.take(learn)
        self._leave_out_damaged(learn)
        source, found = learn.run.source, checkpoints_in(self.path)
        if source is not None and found and is_at(found[-1]) > is_at(_place_of(source)):
            raise ValueError(
                f"{self!r} has a later checkpoint, {found[-1].name}, than the one to resume from, "
                f"{source.path.name}: choose another folder, or move the later ones away"
            )
        if self._lock is not None and self._lock.is_held:
            for side in self.path.glob(f".*{SIDE}"):  # left by a process that was killed while writing
                side.unlink()

    def check_run(self, learn: Learner, path: Path) -> None:
        """Raise ValueError for a checkpoint of another run."""
        if not path.exists():
            return
        saved = read_torch(path, check=False)
        if not isinstance(saved, dict) or saved.get("run") != learn.run_id:  # perhaps the user's own file
            raise ValueError(
                f"{self!r}: {path.name} there is of another run, which would be lost: resume it, "
                f"fit(..., resume={str(self.path)!r}), or choose another folder"
            )

    def _leave_out_damaged(self, learn: Learner) -> None:
        """Rename damaged checkpoints, if the folder is known to be of this run; else raise ValueError."""
        damaged: list[Path] = []
        is_known = learn.run.source is not None
        for path in reversed(checkpoints_in(self.path)):
            if not self._is_damaged(learn, path):
                is_known = True
                break
            damaged.append(path)
        bests = [self.path / BEST, *bests_in(self.path)]
        damaged += [path for path in bests if self._is_damaged(learn, path)]
        if damaged and not is_known:
            raise ValueError(
                f"{self!r}: {damaged[0].name} there is damaged, so its run is not known: move it away, or "
                "choose another folder"
            )
        for path in damaged:
            _leave_out(path)

    def _is_damaged(self, learn: Learner, path: Path) -> bool:
        """Whether a checkpoint is damaged; raise ValueError if it is of another run."""
        source = learn.run.source
        is_later = (
            source is not None and not path.name.startswith("best") and is_at(path) > is_at(_place_of(source))
        )
        if path.resolve() in learn.run.damaged or (is_later and is_damaged(path)):
            return True
        try:
            self.check_run(learn, path)
        except DamagedError:
            return True
        return False


def _leave_out(path: Path) -> None:
    number, to = 1, path.with_name(f"{path.name}.damaged")
    while to.exists():
        number += 1
        to = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(to)
    warn(f"{path} is damaged, and is now called {to.name}")


def _place_of(source: Any) -> Path:
    """Return the name that a checkpoint would have by its position; it may be best.pt, or a copy."""
    return Path(name_of(source.saved["fields"]["n_epochs_trained"], source.position))
