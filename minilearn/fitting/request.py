"""The request to stop a fit, by a signal or `learn.pause()`, and how the fit then stops."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..learner import Learner

PAUSE = 0  # a request by `learn.pause()`; that of a signal is its number


class StopRequest:
    """Whether the fit is asked to stop, by a signal (SIGINT, SIGTERM or SIGHUP) or by `learn.pause()`.

    asked (the signal for which all processes stop, or PAUSE), heard (one that only this process of several
    got), is_paused (whether a pause ended the last fit).
    """

    def __init__(self) -> None:
        self._batches: Any = None
        self.clear()

    def clear(self) -> None:
        """Begin a fit without a request."""
        self.asked: int | None = None
        self.heard: int | None = None
        self.is_paused = False

    @property
    def signal(self) -> int | None:
        """The signal that asked the fit to stop, if one came."""
        return self.asked or None

    @property
    def is_asked(self) -> bool:
        """Whether all processes are to stop."""
        return self.asked is not None

    def hear(self, number: int, n_processes: int) -> None:
        """Take a request; with several processes, all have to agree on it first."""
        if n_processes > 1:
            self.heard = number  # DistributedCB stops all of them after the same step
        else:
            self.asked = number

    @property
    def said(self) -> int:
        """What this process tells the others: 0 if it heard nothing. The largest number wins."""
        return 0 if self.heard is None else 1 + self.heard

    def agree(self, said: int) -> None:
        """Take what all processes agreed on."""
        self.asked = said - 1 if said else None

    def drop_pause(self) -> None:
        """Drop a pause, which comes too late once the last epoch is over."""
        self.asked, self.heard = self.asked or None, self.heard or None

    def close(self) -> None:
        """End the fit: a signal that this process heard now counts."""
        self.asked = self.signal or self.heard or None

    def paused(self) -> None:
        """Note that a pause ended the fit."""
        self.is_paused = True

    @contextmanager
    def while_reading(self, batches: Iterator[Any]) -> Iterator[None]:
        """Know, inside a `with`, the generator that reads the batches."""
        outer, self._batches = self._batches, batches
        try:
            yield
        finally:
            self._batches = outer

    @property
    def is_fetching(self) -> bool:
        """Whether a batch is being read, so that there is no step to finish."""
        return self._batches is not None and self._batches.gi_running


def pause(learn: Learner) -> None:
    """See `Learner.pause`."""
    if learn.scopes[:1] != ["fit"]:
        raise RuntimeError("learn.pause() pauses a fit, but none is running: call it in a hook of a callback")
    if not learn.run.savers:
        raise RuntimeError(
            "learn.pause() saves the fit, so that it can be resumed, but no CheckpointCB takes part in this "
            "one: expected one among the callbacks (lr_find has none); to end a fit for good, raise "
            "CancelFitException"
        )
    if not (learn.stop.is_asked or learn.stop.heard):  # a signal takes precedence
        learn.stop.hear(PAUSE, learn.n_processes)


class Paused(BaseException):
    """Leave a fit that is to be resumed."""


class StopFetchError(BaseException):
    """Leave the loader at once: between two batches there is nothing to wait for."""


def stopped(learn: Learner) -> BaseException:
    """Return the exception that ends a fit at rest on request; it says where the fit stands."""
    if learn.stop.asked == PAUSE:
        learn.stop.paused()
        return Paused()
    path = learn.saved_to
    how = f"fit(..., resume={str(path.parent)!r}) continues it" if path else "the learner is as it was then"
    assert learn.stop.signal is not None
    return ending(learn.stop.signal, f"stopped in {learn.where()}; {how}")


def ending(number: int, said: str) -> BaseException:
    """Return what ends the program as usual: a KeyboardInterrupt, or exit code 128 + signal."""
    text = f"minilearn: {signal.Signals(number).name}: {said}"
    if number == signal.SIGINT:
        return KeyboardInterrupt(text)
    with suppress(OSError):  # the terminal is gone
        print(text, file=sys.stderr)
    return SystemExit(128 + number)
