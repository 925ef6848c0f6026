"""Signals in a fit, such as Ctrl-C: it finishes the step, saves the state, and only then stops."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from torch.utils.data import get_worker_info

from .request import StopFetchError, ending, stopped

if TYPE_CHECKING:
    from ..learner import Learner

_TOLD = b"\nminilearn: stopping after this step; the same signal again stops at once\n"
# A closing terminal sends SIGHUP twice, `timeout` sends SIGTERM to the process and then to its group.
_ECHO_S = 2.0


@contextmanager
def interrupts(learn: Learner) -> Iterator[None]:
    """Make SIGINT (Ctrl-C), SIGTERM, SIGHUP and those of CheckpointCB(signals=) ask the fit to stop.

    `rest` acts on it. A second signal stops at once. Handlers that are not Python's own stay in place.
    Nothing changes outside the main thread, where handlers cannot be set.
    """
    learn.stop.clear()
    usual: dict[int, Any] = dict.fromkeys(learn.run.signals, signal.SIG_DFL)
    usual |= {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):  # the terminal was closed
        usual[signal.SIGHUP] = signal.SIG_DFL
    handler = _Handler(learn, usual)
    if threading.current_thread() is threading.main_thread():
        for number, python in usual.items():
            if number in learn.run.signals or signal.getsignal(number) == python:
                handler.before[number] = signal.signal(number, handler)
    try:
        yield
    except StopFetchError:
        raise stopped(learn) from None
    finally:
        for number, before in handler.before.items():
            signal.signal(number, before)
    learn.stop.close()
    if learn.stop.is_asked:  # it came after the last rest
        raise stopped(learn)


class _Handler:
    """Handle the signals that stop a fit.

    before (the handlers that it replaces, by signal), stops_fit (tells data/workers.py what it is).
    """

    stops_fit = True

    def __init__(self, learn: Learner, usual: dict[int, Any]) -> None:
        self.learn, self.usual, self.owner = learn, usual, os.getpid()
        self.before: dict[int, Any] = {}
        self.heard_s = 0.0

    def __call__(self, number: int, frame: Any) -> None:
        stop = self.learn.stop
        if os.getpid() != self.owner:
            self._in_child(number)
            return
        if first := stop.signal or stop.heard:
            is_echo = time.monotonic() - self.heard_s < _ECHO_S and signal.SIGINT not in (first, number)
            if is_echo:
                return
            raise ending(number, "stopped at once, in the middle of a step")
        self.heard_s = time.monotonic()
        stop.hear(number, self.learn.n_processes)
        if number != signal.SIGINT and hasattr(signal, "SIGCHLD"):
            # Workers that we did not start may have died of it, and torch would raise for them in our step.
            self.before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if stop.is_fetching and self.learn.n_processes == 1:
            raise StopFetchError
        with suppress(OSError):
            os.write(2, _TOLD)  # the signal may have interrupted a print

    def _in_child(self, number: int) -> None:
        """Act in a process that was forked during the fit: a loader's worker ignores it."""
        if get_worker_info() is None:
            signal.signal(number, self.usual[number])
            os.kill(os.getpid(), number)
