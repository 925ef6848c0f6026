"""Ctrl-C and SIGTERM in a fit: the step is finished, the state saved, and only then the fit is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_TOLD = b"\nminilearn: stopping after this step; the same signal again stops at once\n"


class StopFetchError(BaseException):
    """Leave the loader at once: between two batches a signal has nothing to wait for."""


@contextmanager
def interrupts(learn: Any) -> Iterator[None]:
    """Have Ctrl-C (SIGINT) and SIGTERM set `stop_signal`, which `rest` acts on, inside a `with`.

    A second signal stops at once. Handlers that are not Python's own stay as they are, and so does all
    outside of the main thread, where there can be no handler.
    """
    learn.stop_signal, learn.heard_signal, learn.saved_to, owner = None, None, None, os.getpid()
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):  # of a terminal that was closed
        usual[signal.SIGHUP] = signal.SIG_DFL
    before: dict[int, Any] = {}

    def on_signal(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a process that was forked in the fit: as if we were not here
            signal.signal(number, usual[number])
            os.kill(os.getpid(), number)
            return
        if learn.stop_signal is not None or learn.heard_signal is not None:
            raise _ending(number, "stopped at once, in the middle of a step")
        if learn.n_processes > 1:
            learn.heard_signal = number  # DistributedCB has all of them stop after the same step
        else:
            learn.stop_signal = number
        if number == signal.SIGTERM and hasattr(signal, "SIGCHLD"):
            # It went to the loader's workers too, and torch would raise for them inside of our step.
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if learn.is_fetching and learn.n_processes == 1:
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
    learn.stop_signal = learn.stop_signal or learn.heard_signal
    if learn.stop_signal is not None:  # it came after the last rest
        raise stopped(learn)


def rest(learn: Any) -> None:
    """Fire at_rest, where all hooks have run and the state is whole; leave the fit if a signal asks."""
    if learn.is_aside:  # a validation that a callback calls in the middle of something
        return
    is_stopping = learn.stop_signal is not None  # one that comes during at_rest has to wait for the next
    learn.callback("at_rest")
    if is_stopping:
        raise stopped(learn)


def stopped(learn: Any) -> BaseException:
    """Return what a signal ends a fit with that is at rest, and print or say where it stands."""
    path = learn.saved_to
    how = f"fit(..., resume={str(path.parent)!r}) goes on" if path else "the learner is as it was then"
    return _ending(learn.stop_signal, f"stopped in {learn.where()}; {how}")


def _ending(number: int, said: str) -> BaseException:
    """Return what ends the program as people expect: a KeyboardInterrupt, or exit code 128 + signal."""
    text = f"minilearn: {signal.Signals(number).name}: {said}"
    if number == signal.SIGINT:
        return KeyboardInterrupt(text)
    with suppress(OSError):  # of a terminal that is gone
        print(text, file=sys.stderr)
    return SystemExit(128 + number)
