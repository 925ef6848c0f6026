"""Pace: how fast a fit is, and how much of it is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..learner import Learner


class Pace:
    """How fast a fit is, and how much of it is left.

    A training step counts with its mean time so far, and the validation of an epoch (of all sets) with the
    time of the last one. Before the first, its batches count as a third of a batch of training, which also
    has a backward. What came before the first look, such as starting workers or compiling, does not count
    once more is known.
    """

    def __init__(self, learn: Learner) -> None:
        self.n_epochs, self.total_steps = learn.n_epochs, learn.total_steps
        self.is_fit, self.is_trained = learn.purpose != "validate", learn.n_epochs_trained > 0
        self.has_eval = "eval" in learn.phases
        n_batches = [learn.dls.adapters[key].n_batches for key in learn.dls.valid_keys]
        self.n_eval = sum(n or 0 for n in n_batches) if self.has_eval else 0
        self.step_s: float | None = None
        self.eval_s: float | None = None
        self.epoch_s: float | None = None
        self._train_s, self._n_trained, self._n_steps = 0.0, 0, 0  # in the phases that are over
        self._is_warm = False  # whether there was a look
        self._epoch_start_s: float | None = None  # unless the epoch began in another process
        self._guessed_s = 0.0  # of a validation, before the first
        self._validated_s: float | None = 0.0  # in this epoch; None if a part was in another process
        self._counted: tuple[float, ...] = 0.0, 0, 0  # of this phase
        self.phase = self.row = ""

    def begin(self, learn: Learner, n_batches: int | None, first: int) -> None:
        """Begin a phase, at its batch number `first`."""
        self.phase, self.n_batches, self.first, self.n = learn.phase, n_batches, first, first
        self.row = learn.plan.row_of(learn)
        self._skipped = 0.0, 0, 0  # seconds, batches and steps of this phase that do not count
        self.start_s, self._first_step = time.perf_counter(), learn.run.n_steps(learn)
        if first == 0 and (learn.phase == "train" or "train" not in learn.phases):
            self._epoch_start_s = self.start_s

    def look(self, learn: Learner) -> None:
        """See how far the phase is."""
        self.n = learn.batch_idx + 1
        self.elapsed_s = max(time.perf_counter() - self.start_s, 1e-9)
        found = self.elapsed_s, self.n - self.first, learn.n_steps - self._first_step
        if not self._is_warm:
            self._is_warm, self._skipped = True, found
        if found[1] > self._skipped[1]:
            self._counted = tuple(a - b for a, b in zip(found, self._skipped, strict=True))
        else:
            self._counted = found
        seconds, n, n_steps = self._counted
        if self.phase == "train" and self._n_steps + n_steps:
            self.step_s = (self._train_s + seconds) / (self._n_steps + n_steps)
            if self.eval_s is None:  # no validation yet
                self._guessed_s = self.n_eval * (self._train_s + seconds) / (self._n_trained + n) / 3

    def end(self, learn: Learner) -> None:
        """End a phase."""
        self.look(learn)
        if self.phase == "train":
            self._train_s += self._counted[0]
            self._n_trained += int(self._counted[1])
            self._n_steps += int(self._counted[2])
        elif self._validated_s is not None:
            self._validated_s = self._validated_s + self.elapsed_s if self.first == 0 else None

    def end_epoch(self, learn: Learner) -> None:
        """End an epoch."""
        self.eval_s, self._validated_s = self._validated_s or self.eval_s, 0.0
        if self._epoch_start_s is not None:
            self.epoch_s, self._epoch_start_s = time.perf_counter() - self._epoch_start_s, None

    @property
    def rate(self) -> float:
        """Batches per second in this phase."""
        return self._counted[1] / max(self._counted[0], 1e-9)

    def left_of_phase(self) -> float | None:
        """Return how many seconds are left of the phase; None if that is not known."""
        return None if self.n_batches is None else max(self.n_batches - self.n, 0) / self.rate

    def left_of_fit(self, learn: Learner) -> float | None:
        """Return how many seconds are left of the fit; None if that is not known yet."""
        n_epochs = self.n_epochs - learn.epoch - 1  # after this one
        if self.total_steps is None:  # a loader without a length: by whole epochs
            if self.epoch_s is None:
                return None
            begun_s = self._epoch_start_s
            rest_s = 0.0 if begun_s is None else self.epoch_s - (time.perf_counter() - begun_s)
            return n_epochs * self.epoch_s + max(rest_s, 0.0)
        eval_s = self._guessed_s if self.eval_s is None else self.eval_s
        if self.phase == "train":
            left_s = eval_s * (n_epochs + 1) * self.has_eval
        else:
            phase_s = self.left_of_phase()
            if phase_s is None:
                phase_s = max(eval_s - self.elapsed_s, 0.0)
            if self.eval_s is None and self.n_batches:
                eval_s = self.n_batches / self.rate
            rest_s = 0.0 if self.eval_s is None else eval_s - (self._validated_s or 0.0) - self.elapsed_s
            left_s = max(phase_s, rest_s) + eval_s * n_epochs
        n_steps = max(self.total_steps - learn.n_steps, 0)
        if n_steps and self.step_s is None:
            return None
        return left_s + n_steps * (self.step_s or 0.0)

    def speed(self) -> str:
        """Return the batches per second as text."""
        return f"{self.rate:.0f} steps/s" if self.rate >= 10 else f"{self.rate:.2f} steps/s"


def time_text(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds, such as "0:03:20"."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
