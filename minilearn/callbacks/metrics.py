"""MetricsCB: loss and metrics of each phase, accumulated on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from copy import deepcopy
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import text
from ..batches import map_tensors, samples_of, tensors_in
from ..callback import Callback, Order
from ..counting import argument_of, is_cross_entropy, is_torchs, known_count
from ..fitting.joins import Joins, eager, is_compiled
from ..processes import Processes
from ..rows import Row
from ..warning import warn
from .accuracy import MulticlassAccuracy
from .at_end import AtEnd
from .columns import check_name, columns_of
from .functions import BatchMean, sum_dtype
from .joining import joined, saved, take_share
from .logged import Logged, declared
from .measures import check_metric, explain, is_function, name_of, picked, unwrapped

if TYPE_CHECKING:
    from ..learner import Learner


_OF_PHASE = (
    "metrics",
    "_others",
    "_sum",
    "_n",
    "_logged",
    "_start_s",
    "_has_batches",
    "_has_preds",
    "_is_placed",
)


class MetricsCB(Callback):
    """Compute the mean loss and the metrics of each phase, and append a row for it to `learn.history`.

    A row is {metric: value, ..., "loss": .., "epoch": .., "train": "train" or "eval", "time_s": ..}; a row of
    a named validation set has the name in place of "eval". epoch keeps counting from fit to fit. The values
    of `learn.log` come after the metrics. An ordinary step does not wait for the device.

    A metric is one of three:
        a function (preds, target) -> number: its mean over the batches, each weighted by its number of
            samples, or by the function's own `count(preds, target)`. What is not a mean over samples, such as
            an RMSE or an AUC, then depends on the batch size and the number of processes: use AtEnd for it.
        an object with reset(), update(preds, target) and compute(), such as those of torcheval and of
            torchmetrics: over several processes, its states are joined by its own rules.
        AtEnd(function): a function of all predictions and targets, such as sklearn's.
    (metric, pick) measures a part of what the model gives: pick is a function (preds, target) -> (preds,
    target), or the index or key of an output and its target. InValidation(metric) leaves training out.

        MetricsCB(Accuracy(task="multiclass", num_classes=10), mae=F.l1_loss)
        MetricsCB(age=(F.l1_loss, "age"), sex=(Accuracy(task="binary"), lambda p, t: (p.sex, t["sex"])))

    All values are numbers. A metric that computes several has a column for each: "f1_0", "f1_1", ... for a
    list, a tuple or a tensor, "matrix_0_1" if it is nested, and "scores_recall" for a mapping or a named
    tuple.

    Args:
        *metrics: metrics, which rows name after their function or class. A collection of metrics, which has
            keys(), gives them the names that it has for them.
        **named: the same under names of your own.
        With none at all: MulticlassAccuracy if the loss is cross-entropy over (N, C) predictions.

    Runs at: prepare, before_fit, before_train, before_validate, after_batch, after_train, after_validate,
        cleanup_validate; order -50, so that your after_train and after_validate find the finished row.
        Reads: loss, loss_count, preds, yb.
        Writes: history.
    A validation whose batches have no loss, because the owner of get_loss sets none, has a row without one;
    so has a phase without predictions (learn.preds is None) no metrics.

    State: the sum of the losses, each times its count (learn.loss_count), in float64 (float32 on MPS), and
        the sum of these counts, so that the mean over the phase is that of one batch made of all of them;
        the states of the metrics.
    Raises: TypeError for what is no metric, a class where an instance is expected, a lambda or partial
        without a name, a function whose parameters have the target first, and a metric that computes
        something else than numbers; ValueError for a name that a row has already, for one object under two
        names, and, in the first batch of a phase, for a function that joins every sample with every other
        one, (N, 1) over (N,). An error of a metric passes through, with a note on what it was given if that
        is not two tensors.
    Warns: once in a fit, at the end of the phase, of a loss that is not finite.
    Source: document 003, whose tables have these rows.
    """

    order = Order.METRICS
    only_one = "each would write all rows; give all metrics to one"

    def __init__(self, *metrics: Any, **named: Any) -> None:
        unnamed: dict[str, Any] = {}
        for metric in metrics:
            name = name_of(unwrapped(metric)[0])
            if name in unnamed or name in named:
                raise ValueError(f"two metrics are called {name}: name them, MetricsCB(top1=..., top5=...)")
            unnamed[name] = metric
        self.metrics: dict[str, Any] = {}
        self._picks: dict[str, Any] = {}
        self._in_validation = set[str]()  # the names of those that training leaves out
        for name, given in (unnamed | named).items():
            self._take(name, given)
        self._others: dict[str, Any] = {}  # of resumed metrics: what no process continues, see `joining`
        self._merged = [name for name in unnamed if hasattr(self.metrics[name], "keys")]
        for name in self.names[:-1]:
            check_name(name, (self.names[:-1].count(name) > 1) * "another metric")
        self._infer = not self.metrics
        self._outer: list[tuple[Any, ...]] = []
        self._has_batches = self._has_preds = False  # whether this phase had any
        self._is_placed = False  # whether metrics and sums are on the device of the loss
        self._sum: Tensor | None = None  # of loss * count; None if no batch had a loss
        self._n: Any = 0  # the sum of the counts; on the device if the counts are
        self._logged = Logged()
        self._start_s = 0.0
        self._processes = Processes()
        self._is_warned = False  # of a loss that is not finite, in this fit

    def _take(self, name: str, given: Any) -> None:
        metric, pick, in_validation = unwrapped(given)
        check_metric(name, metric)
        if same := next((other for other, found in self.metrics.items() if found is metric), ""):
            raise ValueError(
                f"metrics {same} and {name} are one {type(metric).__name__}, which would add up what both of "
                "them see: expected an object for each"
            )
        self.metrics[name] = BatchMean(metric) if is_function(metric) else metric
        if pick is not None:
            self._picks[name] = pick
        if in_validation:
            self._in_validation.add(name)

    @property
    def names(self) -> list[str]:
        """What a row of validation measures; a metric may turn out to compute several values.

        See `names_in`.
        """
        return [*(name for metric in self.metrics for name in self._names_of(metric)), "loss"]

    def _names_of(self, name: str) -> list[str]:
        if not hasattr(self.metrics[name], "keys"):
            return [name]
        keys = map(str, self.metrics[name].keys())
        return [*keys] if name in self._merged else [f"{name}_{key}" for key in keys]

    def names_in(self, columns: Iterable[str], phase: str = "eval") -> list[str]:
        """Return the names, with those of these columns that may be of a metric in the place of its own.

        Args:
            phase: "train" or "eval", whose rows are meant.
        """
        found, columns = list[str](), [*columns]
        measured = [*self._measured_in(phase == "train")]
        for name in [*(name for metric in measured for name in self._names_of(metric)), "loss"]:
            its = [column for column in columns if column == name or column.startswith(f"{name}_")]
            found += its if its and name != "loss" else [name]
        return list(dict.fromkeys(found))

    def _measured_in(self, training: bool) -> dict[str, Any]:
        """Return the metrics that a phase measures."""
        out = self._in_validation if training else ()
        return {name: metric for name, metric in self.metrics.items() if name not in out}

    def prepare(self, learn: Learner) -> None:
        self._processes = learn.processes

    def before_fit(self, learn: Learner) -> None:
        self._is_warned = False
        self._infer_metrics(learn)
        for name in declared(learn.cbs):
            self._check_logged(name)

    def _infer_metrics(self, learn: Learner) -> None:
        """Infer the metrics for the loss and the targets of this learner, which may be another one by now."""
        if self._infer:
            self.metrics, target = {}, None if learn.batch is None else learn.yb
            is_class = isinstance(target, Tensor) and not target.is_floating_point() and target.ndim == 1
            if is_class and is_cross_entropy(learn.loss_func) and is_torchs(learn.loss_func):
                self.metrics = {
                    "MulticlassAccuracy": MulticlassAccuracy(
                        argument_of(learn.loss_func, "ignore_index", -100)
                    )
                }

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics, the sums of the phase over all processes, and the time it has taken so far."""
        elapsed_s, total, n = time.perf_counter() - self._start_s, self._sum, self._n
        if self._processes.n_shards > 1 and total is not None:
            joint, n_joint = self._processes.sums([total.item(), float(n)])
            total, n = torch.full_like(total, joint), n_joint
        seen = [self._has_batches, self._has_preds]
        metrics, others = saved(self._processes, self.metrics, self._others)
        state = {"metrics": metrics, "sum": total, "n": n, "elapsed_s": elapsed_s, "seen": seen}
        more = {"others": others, "logged": self._logged.saved(self._processes)}
        return state | {name: part for name, part in more.items() if part}

    def epoch_state(self) -> dict[str, Any]:
        """Return nothing: a phase begins with all sums at 0."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; a resumed phase's time does not include the pause."""
        self._sum, self._n = state["sum"], state["n"]
        self._has_batches, self._has_preds = state.get("seen", [self._sum is not None] * 2)
        for name, metric in state["metrics"].items():
            if metric is not self.metrics[name]:  # the merged one, of several processes
                self.metrics[name].load_state_dict(metric.state_dict())
        if self._processes.rank and self._processes.n_shards > 1:  # the first process has the totals
            self._sum, self._n = None if self._sum is None else torch.zeros_like(self._sum), 0
        self._logged.load(state.get("logged", {}), self._processes)
        others = state.get("others", {})
        self._others = {
            name: take_share(self._processes, metric, others.get(name, []))
            for name, metric in self.metrics.items()
        }
        self._start_s = time.perf_counter() - state["elapsed_s"]
        self._is_placed = False  # they are where they were, or on the CPU

    def before_train(self, learn: Learner) -> None:
        self._begin()

    def before_validate(self, learn: Learner) -> None:
        if learn.is_nested:  # nested in a phase, whose sums stay as they are
            self._outer.append(tuple(getattr(self, name) for name in _OF_PHASE))
            self.metrics = deepcopy(self.metrics)
        elif learn.purpose == "validate":  # without a fit
            self._is_warned = False
            self._infer_metrics(learn)
        self._begin()

    def _begin(self) -> None:
        for metric in self.metrics.values():
            metric.reset()
        self._sum, self._n, self._others, self._logged = None, 0, {}, Logged()
        self._has_batches = self._has_preds = self._is_placed = False
        self._start_s = time.perf_counter()

    def after_batch(self, learn: Learner) -> None:
        loss: Any = learn.loss
        if not self._is_placed:
            self._has_batches = self._is_placed = True
            for t in islice(tensors_in([loss, learn.preds]), 1):
                self._move(t.device)
        if loss is not None or not _may_lack(learn):
            self._add(learn, loss)
        if self.metrics and not learn.processes.is_idle and learn.preds is not None:
            update = self._update if self._has_preds else self._watch
            self._has_preds, preds = True, learn.preds
            preds = preds.detach() if isinstance(preds, Tensor) else map_tensors(Tensor.detach, preds)
            for name, metric in self.metrics.items():
                if not (learn.training and name in self._in_validation):
                    update(learn, name, metric, preds, learn.yb)
        self._logged.batch_idx = learn.batch_idx
        if self._logged.waiting:
            self._logged.weigh(learn)

    def log(self, learn: Learner, name: str, value: Any, count: Any = None) -> None:
        """Take a named value of the batch; see `Learner.log`."""
        text("learn.log(name", name, "a name for its column, such as 'kl'")
        if name not in self._logged.means:
            self._check_logged(name)
        self._logged.log(learn, name, value, count)

    @property
    def n_logged(self) -> int:
        """How many logged values wait for the end of the batch."""
        return len(self._logged.waiting)

    def _check_logged(self, name: str) -> None:
        check_name(name, (name in self.names[:-1]) * "a metric", is_logged=True)

    def _watch(self, learn: Learner, name: str, metric: Any, preds: Any, target: Any) -> None:
        """Update a metric with the first batch of a phase, and refuse one that joins all samples."""
        if isinstance(metric, BatchMean) and not is_compiled(metric.function):
            where = f"in the metric, or in a pick, {name}=(metric, lambda preds, target: ...)"
            n = samples_of(learn, preds, target)
            with eager(), Joins(f"metric {name}", preds, target, where, n):
                self._update(learn, name, metric, preds, target)
        else:
            self._update(learn, name, metric, preds, target)

    def _update(self, learn: Learner, name: str, metric: Any, preds: Any, target: Any) -> None:
        try:
            parts = picked(self._picks[name], preds, target) if name in self._picks else (preds, target)
            if isinstance(metric, BatchMean):
                metric.update(*parts, learn)
            else:
                metric.update(*parts)
        except Exception as error:
            explain(error, name, preds, target, name in self._picks)
            raise

    def _move(self, device: torch.device) -> None:
        if self._sum is not None:
            self._sum = self._sum.to(device, sum_dtype(device))
        for metric in self.metrics.values():
            if hasattr(metric, "to"):
                metric.to(device)

    def _add(self, learn: Learner, loss: Any) -> None:
        try:
            loss = loss.detach()
        except AttributeError:
            raise TypeError(
                f"learn.loss is {learn.loss!r}: the owner of get_loss, or the hook that cancels the forward, "
                "has to set a tensor"
            ) from None
        if self._sum is None:
            self._sum = torch.zeros((), dtype=sum_dtype(loss.device), device=loss.device)
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
            vars(self).update(zip(_OF_PHASE, self._outer.pop(), strict=True))

    def _end(self, learn: Learner) -> None:
        if not self._has_batches:
            return  # each batch was cancelled before its loss, as in learn.predict
        own = 0.0 if self._sum is None else self._sum.item()
        known = [self._sum is not None, self._has_preds, bool(self._logged.means)]
        total, n, has_loss, has_preds, has_logged = learn.processes.sums([own, float(self._n), *known])
        loss = total / n if n else math.nan
        row = Row()
        metrics = self._measured_in(learn.training) if has_preds else {}
        for name, metric in joined(learn.processes, metrics, self._others).items():
            for column, value in columns_of(name, metric.compute(), name in self._merged).items():
                check_name(column, (column in row) * f"another metric than {name}")
                row[column] = value
        for metric in metrics.values():
            if isinstance(metric, AtEnd):
                metric.reset()  # frees all predictions, which later checkpoints would have too
        for name, value in (self._logged.joined(learn.processes) if has_logged else {}).items():
            check_name(name, (name in row) * "a metric", is_logged=True)
            row[name] = value
        row |= {
            **({"loss": loss} if has_loss else {}),
            "epoch": max(learn.n_epochs_trained - 1, 0),
            "train": learn.plan.row_of(learn),
            "time_s": time.perf_counter() - self._start_s,
        }
        learn.history.append(learn.processes.broadcast(row))  # the last bits depend on the order of merging
        if n and not math.isfinite(loss) and not self._is_warned and learn.purpose != "lr_find":
            self._warn_of(loss, learn)

    def _warn_of(self, loss: float, learn: Learner) -> None:
        self._is_warned, name = True, learn.plan.row_of(learn)
        if learn.rank == 0:
            warn(
                f"the {name} loss of epoch {learn.epoch} is {loss}, because a batch's loss was not "
                "finite; the weights may be nan too: is the lr too high, or a value in the data not finite? "
                "(TerminateOnNaNCB ends a fit at the first such batch.)"
            )


def _may_lack(learn: Learner) -> bool:
    """Whether a batch may have no loss: in validation, where the owner of get_loss sets none."""
    return not learn.training and not learn.has_default("get_loss") and "forward" not in learn.cancelled_by
