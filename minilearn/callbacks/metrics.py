"""MetricsCB: loss and metrics of each phase, accumulated on the device."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callback import Callback, Order
from ..counting import argument_of, is_cross_entropy, is_torchs, known_count
from ..processes import Processes

if TYPE_CHECKING:
    from ..learner import Learner


class MetricsCB(Callback):
    """Compute the mean loss and the metrics of each phase, and append a row for it to `learn.history`.

    A row is {metric: value, ..., "loss": .., "epoch": .., "train": "train" or "eval", "time_s": ..};
    epoch keeps counting from fit to fit. An ordinary step does not wait for the device.

    Args:
        *metrics: objects with reset(), update(preds, target) and compute(), such as torcheval's; rows name
            them after their class.
        **named: the same under names of your own.
        With none at all: MulticlassAccuracy if the loss is cross-entropy over (N, C) predictions.

    Runs at: prepare, before_fit, before_train, before_validate, after_batch, after_train, after_validate,
        cleanup_validate; order -50, so that your after_train and after_validate find the finished row.
        Reads: loss, loss_count, preds, yb.
        Writes: history.
    State: the sum of the losses, each times its count (learn.loss_count), in float64 (float32 on MPS), and
        the sum of these counts, so that the mean over the phase is that of one batch made of all of them.
    Raises: TypeError for a metric without update, or a class where an instance is expected.
    Source: document 003, whose tables have these rows.
    """

    order = Order.METRICS
    only_one = "each would write all rows; give all metrics to one"

    def __init__(self, *metrics: Any, **named: Any) -> None:
        unnamed: dict[str, Any] = {}
        for metric in metrics:
            name = metric.__name__ if isinstance(metric, type) else type(metric).__name__
            if name in unnamed or name in named:
                raise ValueError(f"two metrics are called {name}: name them, MetricsCB(top1=..., top5=...)")
            unnamed[name] = metric
        self.metrics = {**unnamed, **named}
        for name, metric in self.metrics.items():
            _check_metric(name, metric)
        self._infer = not self.metrics
        self._outer: list[tuple[Any, ...]] = []
        self._sum: Tensor | None = None  # of loss * count
        self._n: Any = 0  # the sum of the counts; on the device if the counts are
        self._start_s = 0.0
        self._processes = Processes()

    @property
    def names(self) -> list[str]:
        """What a row measures: the names that can be monitored."""
        return [*self.metrics, "loss"]

    def prepare(self, learn: Learner) -> None:
        self._processes = learn.processes

    def before_fit(self, learn: Learner) -> None:
        self._infer_metrics(learn)

    def _infer_metrics(self, learn: Learner) -> None:
        if self._infer and not self.metrics and learn.batch is not None:
            target = learn.yb
            is_class = isinstance(target, Tensor) and not target.is_floating_point() and target.ndim == 1
            if is_class and is_cross_entropy(learn.loss_func) and is_torchs(learn.loss_func):
                self.metrics = {
                    "MulticlassAccuracy": _accuracy(argument_of(learn.loss_func, "ignore_index", -100))
                }

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics, the sums of the phase over all processes, and the time it has taken so far."""
        elapsed_s, total, n = time.perf_counter() - self._start_s, self._sum, self._n
        if self._processes.n > 1 and total is not None:
            joint, n_joint = self._processes.sums([total.item(), float(n)])
            total, n = torch.full_like(total, joint), n_joint
        return {"metrics": self._processes.joint(self.metrics), "sum": total, "n": n, "elapsed_s": elapsed_s}

    def epoch_state(self) -> dict[str, Any]:
        """Return nothing: a phase begins with all sums at 0."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; a resumed phase's time does not include the pause."""
        self._sum, self._n = state["sum"], state["n"]
        for name, metric in state["metrics"].items():
            if metric is not self.metrics[name]:  # the merged one, of several processes
                self.metrics[name].load_state_dict(metric.state_dict())
        if self._processes.rank:  # the first process has the totals
            self._sum, self._n = None if self._sum is None else torch.zeros_like(self._sum), 0
            for metric in self.metrics.values():
                metric.reset()
        self._start_s = time.perf_counter() - state["elapsed_s"]

    def before_train(self, learn: Learner) -> None:
        self._begin()

    def before_validate(self, learn: Learner) -> None:
        if learn.is_nested:  # nested in a phase, whose sums stay as they are
            self._outer.append((self.metrics, self._sum, self._n, self._start_s))
            self.metrics = deepcopy(self.metrics)
        elif learn.purpose == "validate":  # without a fit
            self._infer_metrics(learn)
        self._begin()

    def _begin(self) -> None:
        for metric in self.metrics.values():
            metric.reset()
        self._sum, self._n = None, 0
        self._start_s = time.perf_counter()

    def after_batch(self, learn: Learner) -> None:
        try:
            loss = learn.loss.detach()
        except AttributeError:
            raise TypeError(
                f"learn.loss is {learn.loss!r}: the owner of get_loss, or the hook that cancels the forward, "
                "has to set a tensor"
            ) from None
        if self._sum is None:
            self._sum = torch.zeros((), dtype=_sum_dtype(loss.device), device=loss.device)
            for metric in self.metrics.values():
                if hasattr(metric, "to"):
                    metric.to(loss.device)
        self._add(learn, loss)
        if self.metrics and not learn.processes.is_idle:
            preds = learn.preds.detach() if isinstance(learn.preds, Tensor) else learn.preds
            for metric in self.metrics.values():
                metric.update(preds, learn.yb)

    def _add(self, learn: Learner, loss: Tensor) -> None:
        assert self._sum is not None
        count = known_count(learn) if learn.loss_count is None else learn.loss_count  # if not, it raises
        if learn.mean.count.is_sum:
            self._sum.add_(loss)
        elif isinstance(count, Tensor):
            count = count.to(self._sum.dtype)  # float32 would round a sum of many counts
            self._sum.add_(torch.where(count > 0, loss * count, 0))
        elif count:
            self._sum.add_(loss, alpha=count)
        self._n = self._n + count

    def after_train(self, learn: Learner) -> None:
        self._end(learn)

    def after_validate(self, learn: Learner) -> None:
        self._end(learn)

    def cleanup_validate(self, learn: Learner) -> None:
        if self._outer:
            self.metrics, self._sum, self._n, self._start_s = self._outer.pop()

    def _end(self, learn: Learner) -> None:
        if self._sum is None:
            return  # each batch was cancelled before its loss, as in learn.predict
        total, n = learn.processes.sums([self._sum.item(), float(self._n)])
        row = {
            **{
                name: _plain(metric.compute()) for name, metric in learn.processes.joint(self.metrics).items()
            },
            "loss": total / n if n else math.nan,
            "epoch": max(learn.n_epochs_trained - 1, 0),
            "train": learn.phase,
            "time_s": time.perf_counter() - self._start_s,
        }
        learn.history.append(learn.processes.broadcast(row))  # the last bits depend on the order of merging


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _check_metric(name: str, metric: Any) -> None:
    if isinstance(metric, type):
        raise TypeError(
            f"metric {name} is the class {metric.__name__}: expected an instance; write {metric.__name__}()"
        )
    if missing := [m for m in ("reset", "update", "compute") if not callable(getattr(metric, m, None))]:
        raise TypeError(
            f"metric {name}={metric!r} has no {', '.join(missing)}: expected an object with reset(), "
            "update(preds, target) and compute(), such as torcheval.metrics.MulticlassAccuracy()"
        )


def _accuracy(ignored: int) -> Any:
    from .accuracy import MulticlassAccuracy

    return MulticlassAccuracy(ignored)
