"""Callbacks that end something early: one batch only, or a loss that is not finite."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..callback import Callback


class SingleBatchCB(Callback):
    """Train and validate on one batch an epoch: does everything go through?

    Runs at: before_fit, before_train, before_validate; order -90. Writes: dl (the first batch of it),
        steps_per_epoch and total_steps, so that schedules run their whole course.
    """

    order = -90

    def before_fit(self, learn: Any) -> None:
        if learn.total_steps != 0:  # 0 in a fit without training
            learn.steps_per_epoch, learn.total_steps = 1, learn.n_epochs

    def before_train(self, learn: Any) -> None:
        learn.dl = list(islice(learn.dl, 1))

    def before_validate(self, learn: Any) -> None:
        learn.dl = list(islice(learn.dl, 1))


class TerminateOnNaNCB(Callback):
    """Raise FloatingPointError at the first training loss that is nan or infinite, and say its step.

    Args:
        every: look after so many batches, since looking waits for the device. Default 1 on the CPU,
            where it costs nothing and the weights stay as they were before the bad step; 50
            elsewhere. The step that is named is the exact one in any case.

    Runs at: after_loss, cleanup_train. Reads: loss.
    """

    in_lr_find = False

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every={every!r}: expected a whole number >= 1")
        self.every = every
        self._seen: list[tuple[Tensor, int, int]] = []  # loss, batch, step

    def before_train(self, learn: Any) -> None:
        self._seen = []

    def after_loss(self, learn: Any) -> None:
        if learn.training:
            self._seen.append((learn.loss.detach(), learn.batch_idx, learn.n_steps))
            every = self.every or (1 if learn.loss.device.type == "cpu" else 50)
            if len(self._seen) >= every:
                self._look(learn)

    def cleanup_train(self, learn: Any) -> None:
        self._look(learn)

    def _look(self, learn: Any) -> None:
        seen, self._seen = self._seen, []
        if not seen or (finite := torch.stack([loss for loss, _, _ in seen]).isfinite()).all():
            return
        loss, batch, step = seen[int((~finite).nonzero()[0])]
        raise FloatingPointError(
            f"the loss is {loss.item()} at epoch {learn.epoch}, train batch {batch}, step {step}: "
            "is the lr too high, or a value in the batch not finite?"
        )
