"""ThroughputCB: samples per second and memory, as columns of the rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from ..batches import n_samples
from ..callback import Callback
from .metrics import MetricsCB

if TYPE_CHECKING:
    from ..learner import Learner

SPEED, MEMORY = "samples_per_s", "memory_mb"  # the columns


class ThroughputCB(Callback):
    """Add to each row of history how many samples a second its phase took, and the memory it needed.

    "samples_per_s" is the number of samples in the phase, over all processes, by its time_s: also the time
    that was spent on waiting for data, on other callbacks and on checkpoints. A batch has as many samples as
    the first tensor of its inputs has rows.

    "memory_mb" is, in units of 10^6 bytes, the most that tensors took on the device at any time of the phase,
    in the process with the largest value. Where there is no accelerator, it is the most that the process has
    taken since it began, and on MPS, what torch holds when the phase ends.

    No step waits for the device. Like time_s, the two differ from run to run, also where all else is the same
    bit for bit.

    Runs at: before_fit, before_train, before_validate, after_batch, after_train, after_validate; order 0.
        Reads: xb, yb, history. Writes: the newest row; the peak that torch keeps, which each
        phase resets.
    State: the number of samples in the phase so far.
    Raises: ValueError before training without a MetricsCB, which writes the rows, and at the end of a phase
        for a metric that has one of the names.
    """

    in_evaluation = False
    in_nested = False
    in_lr_find = False
    may_come_and_go = True

    def __init__(self) -> None:
        self._n = 0  # samples of this process in the phase
        self._processes: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Return how many samples all processes have seen in this phase."""
        n = self._n
        if self._processes is not None:
            n = int(self._processes.sums([float(n)])[0])
        return {"n": n}

    def epoch_state(self) -> dict[str, Any]:
        """Return nothing: a phase begins at 0."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load it; the first process has the total."""
        processes = self._processes
        has_rest = processes is not None and processes.n_shards > 1 and processes.rank > 0
        self._n = 0 if has_rest else state["n"]

    def before_fit(self, learn: Learner) -> None:
        if not any(isinstance(cb, MetricsCB) for cb in learn.cbs):
            raise ValueError("ThroughputCB() adds columns to the rows of MetricsCB: expected one, too")
        self._processes, self._n = learn.processes, 0

    def before_train(self, learn: Learner) -> None:
        self._begin(learn)

    def before_validate(self, learn: Learner) -> None:
        self._begin(learn)

    def _begin(self, learn: Learner) -> None:
        self._n = 0
        device = _device_of(learn)
        if hasattr(module := _module_of(device), "reset_peak_memory_stats"):
            module.reset_peak_memory_stats(device)

    def after_batch(self, learn: Learner) -> None:
        if not learn.processes.is_idle:
            n = n_samples(learn.xb)
            self._n += (n_samples(learn.yb) or 0) if n is None else n

    def after_train(self, learn: Learner) -> None:
        self._end(learn)

    def after_validate(self, learn: Learner) -> None:
        self._end(learn)

    def _end(self, learn: Learner) -> None:
        n = learn.processes.sums([float(self._n)])[0]
        memory_b = max(
            learn.processes.all_gather(_peak_b(_device_of(learn))), default=None, key=lambda b: b or 0
        )
        row, found = learn.history[-1] if learn.history else {}, dict[str, float]()
        if not _is_of(row, learn):
            return  # each batch was cancelled before its loss
        if n:
            found[SPEED] = n / max(row["time_s"], 1e-9)
        if memory_b is not None:
            found[MEMORY] = round(memory_b / 1e6, 1)
        for name, value in found.items():
            if name in row:
                raise ValueError(
                    f"a metric is called {name!r}, as is a column of ThroughputCB: expected another name"
                )
            row[name] = value


def _is_of(row: dict[str, Any], learn: Learner) -> bool:
    """Whether a row is that of the phase which ends."""
    is_of_epoch = row.get("epoch") == max(learn.n_epochs_trained - 1, 0)
    return is_of_epoch and (row["train"] == "train") == learn.training


def _device_of(learn: Learner) -> torch.device:
    return next(learn.model.parameters()).device


def _module_of(device: torch.device) -> Any:
    """Return torch's module for an accelerator, such as torch.cuda; None for the CPU."""
    return None if device.type in ("cpu", "meta") else torch.get_device_module(device)


def _peak_b(device: torch.device) -> int | None:
    """Return the memory of this process in bytes; None where it is not known."""
    module = _module_of(device)
    if hasattr(module, "max_memory_allocated"):
        return int(module.max_memory_allocated(device))
    if hasattr(module, "driver_allocated_memory"):  # MPS
        return int(module.driver_allocated_memory())
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
