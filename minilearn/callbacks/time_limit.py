"""TimeLimitCB: pause a fit before the time of its job is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from ..arguments import number
from ..callback import Callback, Order
from ..terminal import say
from .pace import time_text

if TYPE_CHECKING:
    from ..learner import Learner


class TimeLimitCB(Callback):
    """Pause the fit before a time limit is over, so that a later start of the script continues it::

        learn = Learner(model, dls, cbs=[CheckpointCB("runs/1"), TimeLimitCB(hours=3, minutes=50)])
        learn.fit(100, resume=True)
        if learn.is_paused:
            sys.exit()  # the next job continues

    The limit is for the fits of this callback in this process together, without what happens between them. A
    resumed script has the whole limit again. The fit pauses after the last batch that leaves time for another
    one like the longest so far, with what came between the two, such as a checkpoint; it is then as after
    `learn.pause()`. A fit that begins when the limit is over pauses before its first batch.

    Leave time for what comes before and after the fits, such as loading data: the limit counts none of it.
    With SWACB or EMACB, a validation of the average is finished first.

    Args:
        hours, minutes, seconds: the limit is their sum, > 0.

    Runs at: before_fit, after_batch, cleanup_fit; order 90. Reads: the clock, of the first process.
    State: none. used_s, the seconds that fits have taken, is this process's.
    Raises: ValueError before training without a CheckpointCB, which pausing needs.
    """

    order = Order.STOPPING
    in_evaluation = False
    in_nested = False
    in_lr_find = False
    in_each_process = False
    may_come_and_go = True
    free_on_resume: ClassVar[tuple[str, ...]] = ("hours", "minutes", "seconds")

    def __init__(self, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        given = {"hours": hours, "minutes": minutes, "seconds": seconds}
        for name, value in given.items():
            number(f"TimeLimitCB({name}", value, low=0)
        self.limit_s = float(3600 * hours + 60 * minutes + seconds)
        if not self.limit_s:
            raise ValueError("TimeLimitCB(hours=0, minutes=0, seconds=0): expected a limit of more than 0 s")
        self.used_s = 0.0  # by earlier fits of this process
        self._start_s: float | None = None  # of this fit
        self._last_s, self._longest_s = 0.0, 0.0  # when the last batch ended; from one to the next
        self._is_over = False  # whether this fit was asked to pause

    def __repr__(self) -> str:
        return f"TimeLimitCB(seconds={self.limit_s:g})"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a resumed fit has the whole limit."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        if not learn.run.savers:
            raise ValueError(
                f"{self!r} pauses the fit, which has to be saved for that: expected a CheckpointCB among the "
                "callbacks"
            )
        self._start_s = self._last_s = time.monotonic()
        self._is_over = False
        self._look(learn)

    def after_batch(self, learn: Learner) -> None:
        now_s = time.monotonic()
        self._longest_s, self._last_s = max(self._longest_s, now_s - self._last_s), now_s
        self._look(learn)

    def _look(self, learn: Learner) -> None:
        assert self._start_s is not None
        spent_s = self.used_s + self._last_s - self._start_s
        is_over = spent_s + self._longest_s >= self.limit_s
        if is_over and not self._is_over and not _is_last_batch(learn):
            self._is_over = True
            learn.pause()

    def cleanup_fit(self, learn: Learner) -> None:
        if self._start_s is None:
            return  # before_fit failed
        self.used_s += time.monotonic() - self._start_s
        self._start_s = None
        if self._is_over and learn.is_paused and learn.shows_progress:
            folder = "" if learn.saved_to is None else f"resume={str(learn.saved_to.parent)!r}"
            say(
                f"Paused before the time limit of {time_text(self.limit_s)} was over, after "
                f"{time_text(self.used_s)}: fit(..., {folder}) continues it"
            )


def _is_last_batch(learn: Learner) -> bool:
    """Whether no batch of the fit is left after this one."""
    if learn.epoch + 1 < learn.n_epochs or learn.scopes[-1] == "fit" or learn.phase != learn.phases[-1]:
        return False
    return bool(learn.dls.adapter_of(learn.dl).n_batches == learn.batch_idx + 1)
