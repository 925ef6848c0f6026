"""Callbacks that end something early: only one batch, no progress, or a loss that is not finite."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import counted, flag, number, unless_none, whole_number
from ..callback import Callback, Order
from ..events import CancelFitException
from ..parameters import all_tensors
from ..terminal import say
from ..warning import warn
from .averaging import seen_by_validation
from .checkpoint import CheckpointCB
from .monitor import Monitor

if TYPE_CHECKING:
    from ..learner import Learner


class SingleBatchCB(Callback):
    """Train and validate on one batch per epoch: does everything run?

    Runs at: before_train, before_validate; order -90. Writes: dl (only its first batch).
    Schedules run their whole course.
    """

    order = Order.SINGLE_BATCH

    def plan_steps(self, learn: Learner, steps: list[int | None]) -> list[int | None]:
        return [1] * len(steps)

    def before_train(self, learn: Learner) -> None:
        learn.dl = list(islice(learn.dls.adapter_of(learn.dl).read(), 1))

    def before_validate(self, learn: Learner) -> None:
        learn.dl = list(islice(learn.dls.adapter_of(learn.dl).read(), 1))


class EarlyStoppingCB(Callback):
    """End the fit when a monitored value has not improved for a while; keep the best weights.

    However the fit ends (stopped early, at its end, interrupted, with an error), the model then has the
    weights and buffers of the best epoch, as do a loss that is a module and the parameters that callbacks
    bring. With SWACB or EMACB, these are the average of that epoch. The optimizer's state stays that of the
    last epoch.

    Args:
        monitor: a name in the rows of history: "loss", "eval/loss", "train/MulticlassAccuracy", ...
            A bare name means validation's value, or training's in a fit without validation.
        patience: stop after so many epochs in a row without improvement, >= 1.
        mode: "min" or "max"; may be left out for a loss.
        min_delta: better means better by more than this, >= 0. The best.pt of a CheckpointCB is of the epoch
            with the best value, which may then be another one.
        restore_best: False leaves the last weights.

    Runs at: before_fit, after_epoch, cleanup_fit; order 90, after all that read the weights. Reads:
        history. Writes: weights and buffers, at cleanup_fit.
    State: best (the value), best_epoch and stopped_epoch (counted in this fit; None if it was not stopped).
    Raises: ValueError before training for a name that is not measured.
    Warns: before training, if a CheckpointCB has the same monitor, and min_delta is not 0.
    Source: document 002, cycles of the lr "coupled with early stopping".
    """

    order = Order.STOPPING
    in_evaluation = False
    in_lr_find = False

    def __init__(
        self,
        monitor: str = "loss",
        patience: int = 3,
        mode: str | None = None,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        self.monitor = Monitor(monitor, mode)
        self.patience = whole_number("patience", patience, of=" of epochs")
        self.min_delta = number("min_delta", min_delta, low=0)
        self.restore_best = flag("restore_best", restore_best)
        self.best: float = math.nan
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._weights: list[Tensor] = []
        self._is_running = False

    def __repr__(self) -> str:
        return f"EarlyStoppingCB({self.monitor.name!r}, patience={self.patience})"

    def state_dict(self) -> dict[str, Any]:
        """Return all attributes, with the name and the mode of what is monitored for the monitor."""
        return {k: v for k, v in vars(self).items() if k != "monitor"} | {"best_of": self.monitor.says()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the settings and what was best; of another monitor, nothing is the best yet."""
        best_of = state["monitor"].says() if "monitor" in state else state["best_of"]  # that of version 0.1
        names: tuple[str, ...] = ("patience", "min_delta", "restore_best", "stopped_epoch", "_is_running")
        if best_of == self.monitor.says():
            names += ("best", "best_epoch", "_weights")
        vars(self).update({name: state[name] for name in names})

    def before_fit(self, learn: Learner) -> None:
        self.monitor.check(learn)
        self._compare(learn)
        self.best, self.best_epoch, self.stopped_epoch = self.monitor.worst, None, None
        self._is_running = True

    def _compare(self, learn: Learner) -> None:
        """Warn if a CheckpointCB may take another epoch for the best one."""
        for cb in learn.cbs if self.min_delta and self.restore_best else ():
            if isinstance(cb, CheckpointCB) and cb.monitor and cb.monitor.is_same(self.monitor, learn):
                warn(
                    f"{self!r} restores the weights of the last epoch that was better by more than min_delta="
                    f"{self.min_delta}, and best.pt of {cb!r} is of the epoch with the best value: they may "
                    "be two epochs; expected min_delta=0, or restore_best=False and learn.load of best.pt"
                )

    def after_epoch(self, learn: Learner) -> None:
        value = self.monitor.value(learn)
        if self.monitor.is_better(value, self.best, self.min_delta):
            self.best, self.best_epoch = value, learn.epoch
            if self.restore_best:
                with seen_by_validation(learn):
                    self._weights = [t.detach().clone() for t in all_tensors(learn).values()]
        elif learn.epoch - (-1 if self.best_epoch is None else self.best_epoch) >= self.patience:
            self.stopped_epoch = learn.epoch
            raise CancelFitException

    def cleanup_fit(self, learn: Learner) -> None:
        weights, self._weights = self._weights, []
        if learn.is_paused:  # the fit is not over
            weights, self._is_running = [], False
        with torch.no_grad():
            for t, best in zip(all_tensors(learn).values() if weights else (), weights, strict=True):
                t.copy_(best)
        if self._is_running and learn.rank == 0 and learn.shows_progress:
            self._report(learn, restored=bool(weights))
        self._is_running = False

    def _report(self, learn: Learner, restored: bool) -> None:
        name, best = self.monitor.name, f"{self.best:.4g} in epoch {self.best_epoch}"
        kept = "; its weights are restored" if restored else ""
        epochs = counted(self.patience, "epoch")
        said = f"Stopped after epoch {self.stopped_epoch}: {name} was not better"
        if self.stopped_epoch is not None and self.best_epoch is None:
            say(f"{said} in {epochs}, and never a number")
        elif self.stopped_epoch is not None:
            say(f"{said} for {epochs} than {best}{kept}")
        elif restored and self.best_epoch != learn.epoch:
            say(f"The best {name} was {best}{kept}")


class TerminateOnNaNCB(Callback):
    """Raise FloatingPointError at the first training loss that is nan or infinite, and say its step.

    Args:
        every: check after every so many batches, because checking waits for the device. Default: 1 on the
            CPU, where it costs nothing and the weights stay as they were before the bad step; 50
            elsewhere. The error names the exact step in any case.

    Runs at: before_train, after_forward, cleanup_train. Reads: loss.
    """

    in_evaluation = False
    may_come_and_go = True
    in_lr_find = False

    def __init__(self, every: int | None = None) -> None:
        self.every = unless_none(whole_number, "every", every)
        self._seen: list[tuple[Tensor, int, int]] = []  # loss, batch, step

    def before_train(self, learn: Learner) -> None:
        self._seen = []

    def after_forward(self, learn: Learner) -> None:
        if learn.training:
            self._seen.append((learn.loss.detach(), learn.batch_idx, learn.n_steps))
            every = self.every or (1 if learn.loss.device.type == "cpu" else 50)
            if len(self._seen) >= every:
                self._look(learn)

    def cleanup_train(self, learn: Learner) -> None:
        self._look(learn)

    def _look(self, learn: Learner) -> None:
        seen, self._seen = self._seen, []
        if not seen or (finite := torch.stack([loss for loss, _, _ in seen]).isfinite()).all():
            return
        loss, batch, step = seen[int((~finite).nonzero()[0])]
        raise FloatingPointError(
            f"the loss is {loss.item()} at epoch {learn.epoch}, train batch {batch}, step {step}: "
            "is the lr too high, or a value in the batch not finite?"
        )
