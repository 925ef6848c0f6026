"""Ctrl-C and SIGTERM in a fit: the step is finished, the state saved, and only then the fit is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..learner import Learner

_TOLD = b"\nminilearn: stopping after this step; the same signal again stops at once\n"


PAUSE = 0  # a request by `learn.pause()`, where a signal has its number


class StopRequest:
    """Whether the fit is asked to stop, by a signal (SIGINT, SIGTERM or SIGHUP) or by `learn.pause()`.

    asked (the signal that all processes stop for, or PAUSE), heard (one that came to this process, of
    several), is_fetching (whether the loader is reading a batch, when there is no step to finish), is_paused
    (whether the last fit ended so).
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a fit without a request."""
        self.asked: int | None = None
        self.heard: int | None = None
        self.is_fetching = self.is_paused = False

    @property
    def signal(self) -> int | None:
        """The signal that asked the fit to stop, if one came."""
        return self.asked or None

    @property
    def is_asked(self) -> bool:
        """Whether all processes are to stop."""
        return self.asked is not None

    def hear(self, number: int, n_processes: int) -> None:
        """Take a request; of several processes, all have to agree on it first."""
        if n_processes > 1:
            self.heard = number  # DistributedCB has all of them stop after the same step
        else:
            self.asked = number

    @property
    def said(self) -> int:
        """What this process tells the others, of whom the largest number rules: 0 if it heard nothing."""
        return 0 if self.heard is None else 1 + self.heard

    def agree(self, said: int) -> None:
        """Take what all processes have agreed on."""
        self.asked = said - 1 if said else None

    def drop_pause(self) -> None:
        """Drop a pause, which comes too late once the last epoch is over."""
        self.asked, self.heard = self.asked or None, self.heard or None

    def close(self) -> None:
        """End the fit: a signal that this process heard now counts."""
        self.asked = self.signal or self.heard or None

    def paused(self) -> None:
        """Note that the fit ended by a pause."""
        self.is_paused = True

    def rest(self, learn: Learner) -> None:
        """Fire at_rest, where all hooks have run and the state is whole; leave the fit if that is asked."""
        if not learn.rests:
            return
        is_stopping = self.is_asked  # a request that comes during at_rest has to wait for the next
        learn.callback("at_rest")
        if is_stopping:
            raise stopped(learn)

    def begin_fetch(self, may_stop: bool) -> None:
        """Say that a batch is about to be read; leave at once if a stop was asked for since the last one."""
        self.is_fetching = may_stop
        if may_stop and self.is_asked:
            raise StopFetchError

    def end_fetch(self) -> None:
        """Say that no batch is being read."""
        self.is_fetching = False


def pause(learn: Learner) -> None:
    """See `Learner.pause`."""
    if learn.scopes[:1] != ["fit"]:
        raise RuntimeError("learn.pause() pauses a fit, and none is running: call it in a hook of a callback")
    if not learn.run.savers:
        raise RuntimeError(
            "learn.pause() saves the fit, so that it can be resumed, and no CheckpointCB takes part in this "
            "one: expected one among the callbacks (lr_find has none); to end a fit for good, raise "
            "CancelFitException"
        )
    if not learn.stop.is_asked:
        learn.stop.hear(PAUSE, learn.n_processes)


class Paused(BaseException):
    """Leave a fit that is to be resumed."""


class StopFetchError(BaseException):
    """Leave the loader at once: between two batches a signal has nothing to wait for."""


@contextmanager
def interrupts(learn: Learner) -> Iterator[None]:
    """Have Ctrl-C (SIGINT) and SIGTERM ask the fit to stop, which `rest` acts on, inside a `with`.

    A second signal stops at once. Handlers that are not Python's own stay as they are, and so does all
    outside of the main thread, where there can be no handler.
    """
    stop, owner = learn.stop, os.getpid()
    stop.clear()
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):  # of a terminal that was closed
        usual[signal.SIGHUP] = signal.SIG_DFL
    before: dict[int, Any] = {}

    def on_signal(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a process that was forked in the fit: as if we were not here
            signal.signal(number, usual[number])
            os.kill(os.getpid(), number)
            return
        if stop.signal is not None or stop.heard:
            raise _ending(number, "stopped at once, in the middle of a step")
        stop.hear(number, learn.n_processes)
        if number == signal.SIGTERM and hasattr(signal, "SIGCHLD"):
            # It went to the loader's workers too, and torch would raise for them inside of our step.
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if stop.is_fetching and learn.n_processes == 1:
            raise StopFetchError
        with suppress(OSError):
            os.write(2, _TOLD)  # print may be what is interrupted

    if threading.current_thread() is threading.main_thread():
        for number, handler in usual.items():
            if signal.getsignal(number) == handler:
                before[number] = signal.signal(number, on_signal)
    try:
        yield
    except StopFetchError:
        raise stopped(learn) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    stop.close()
    if stop.is_asked:  # it came after the last rest
        raise stopped(learn)


def stopped(learn: Learner) -> BaseException:
    """Return what a request ends a fit with that is at rest, and print or say where it stands."""
    if learn.stop.asked == PAUSE:
        learn.stop.paused()
        return Paused()
    path = learn.saved_to
    how = f"fit(..., resume={str(path.parent)!r}) goes on" if path else "the learner is as it was then"
    assert learn.stop.signal is not None
    return _ending(learn.stop.signal, f"stopped in {learn.where()}; {how}")


def _ending(number: int, said: str) -> BaseException:
    """Return what ends the program as people expect: a KeyboardInterrupt, or exit code 128 + signal."""
    text = f"minilearn: {signal.Signals(number).name}: {said}"
    if number == signal.SIGINT:
        return KeyboardInterrupt(text)
    with suppress(OSError):  # of a terminal that is gone
        print(text, file=sys.stderr)
    return SystemExit(128 + number)
