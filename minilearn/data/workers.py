"""Workers of a torch DataLoader that live through the signals that stop a fit."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

_USUAL = (signal.SIG_DFL, signal.default_int_handler)


def begin(loader: Any) -> Iterator[Any]:
    """Return iter(loader); workers that a DataLoader starts here end only when this process wants it.

    Ctrl-C, a closed terminal and batch systems send their signal to the workers too. They would die in the
    middle of a step or a validation, which then could not be finished and saved. So they take no notice of
    it, and this process ends them with SIGKILL where torch and multiprocessing would send SIGTERM. If this
    process dies, torch's workers notice within 5 s.
    """
    numbers = _numbers()
    if not isinstance(loader, DataLoader) or not loader.num_workers or not numbers:
        return iter(loader)
    init = loader.worker_init_fn
    loader.worker_init_fn = _Deaf(init, numbers)
    try:
        with _blocked(numbers):  # a worker is forked like this, and unblocks them when it is deaf
            batches = iter(loader)
    finally:
        loader.worker_init_fn = init
    for worker in getattr(batches, "_workers", ()):
        worker.terminate = worker._popen.terminate = partial(_end, weakref.ref(batches), worker._popen.kill)
    return batches


def _end(batches: Callable[[], Any], kill: Callable[[], None]) -> None:
    """End a worker; torch must not report one as failed because this process killed it, as at its exit."""
    watching = batches()
    if watching is not None and watching._worker_pids_set:
        torch._C._remove_worker_pids(id(watching))
        watching._worker_pids_set = False
    kill()


def _numbers() -> list[int]:
    """Return the signals that stop a fit, except those for which the user has a handler."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return []
    standard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    return [n for n in signal.valid_signals() if _stops_fit(n) or (n in standard and _is_usual(n))]


def _is_usual(number: int) -> bool:
    return signal.getsignal(number) in _USUAL


def _stops_fit(number: int) -> bool:
    return getattr(signal.getsignal(number), "stops_fit", False)  # see fitting/interrupts.py


@contextmanager
def _blocked(numbers: list[int]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Deaf:
    """A worker_init_fn that lets the worker ignore signals, and then calls the user's own."""

    def __init__(self, init: Callable[[int], Any] | None, numbers: list[int]) -> None:
        self.init, self.numbers = init, numbers

    def __call__(self, worker_id: int) -> None:
        for number in self.numbers:
            signal.signal(number, _ignore)  # not SIG_IGN, which programs that the worker starts would keep
            signal.siginterrupt(number, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.numbers)
        if self.init is not None:
            self.init(worker_id)


def _ignore(number: int, frame: Any) -> None:
    """Do nothing."""
