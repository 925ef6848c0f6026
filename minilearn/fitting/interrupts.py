"""Ctrl-C and SIGTERM in a fit: it finishes the step, saves the state, and only then stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .request import StopFetchError, ending, stopped

if TYPE_CHECKING:
    from ..learner import Learner

_TOLD = b"\nminilearn: stopping after this step; the same signal again stops at once\n"


@contextmanager
def interrupts(learn: Learner) -> Iterator[None]:
    """Make Ctrl-C (SIGINT) and SIGTERM ask the fit to stop inside a `with`; `rest` acts on it.

    A second signal stops at once. Handlers that are not Python's own stay in place. Nothing changes outside
    the main thread, where handlers cannot be set.
    """
    stop, owner = learn.stop, os.getpid()
    stop.clear()
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):  # the terminal was closed
        usual[signal.SIGHUP] = signal.SIG_DFL
    before: dict[int, Any] = {}

    def on_signal(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a process forked during the fit: act as if we were not here
            signal.signal(number, usual[number])
            os.kill(os.getpid(), number)
            return
        if stop.signal is not None or stop.heard:
            raise ending(number, "stopped at once, in the middle of a step")
        stop.hear(number, learn.n_processes)
        if number == signal.SIGTERM and hasattr(signal, "SIGCHLD"):
            # The loader's workers got it too, and torch would raise for them inside our step.
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if stop.is_fetching and learn.n_processes == 1:
            raise StopFetchError
        with suppress(OSError):
            os.write(2, _TOLD)  # the signal may have interrupted a print

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
