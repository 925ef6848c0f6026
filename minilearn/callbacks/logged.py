"""What `learn.log` writes: named values of batches, averaged over a phase as the loss is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..arguments import is_number, shown
from ..batches import n_samples, samples_of
from ..callback import Callback
from ..counting import on_host
from ..processes import Processes
from .functions import Mean, one_number, sum_dtype, what_is

if TYPE_CHECKING:
    from ..learner import Learner


class Logged:
    """Keep the means of the values that are logged in a phase.

    What a loss is a mean over is known only after get_loss, and a batch may still be cancelled. So values
    wait for MetricsCB.after_batch, which weighs them; those that come later in the batch are added at once.

    means (by name), waiting (the values of a batch that is not weighed yet), batch_idx (of the batch that was
    weighed last).
    """

    def __init__(self) -> None:
        self.means: dict[str, Mean] = {}
        self.waiting: list[tuple[str, float | Tensor, Any]] = []
        self._batch_idx = -1  # of the batch whose values wait
        self.batch_idx = -1

    def log(self, learn: Learner, name: str, value: Any, count: Any) -> None:
        """Add a value of the running batch; see `Learner.log`."""
        found = _value_of(name, value), _count_of(name, count)
        if learn.batch_idx == self.batch_idx:
            self._add(learn, name, *found)
            return
        if self._batch_idx != learn.batch_idx:  # that batch was cancelled
            self._batch_idx, self.waiting = learn.batch_idx, []
        self.waiting.append((name, *found))

    def weigh(self, learn: Learner) -> None:
        """Add the values of the batch whose loss is known by now."""
        waiting, self.waiting = self.waiting, []
        if self._batch_idx == learn.batch_idx:
            for values in waiting:
                self._add(learn, *values)

    def _add(self, learn: Learner, name: str, value: float | Tensor, count: Any) -> None:
        is_sum = False
        if count is None:
            count = _count_of_loss(learn, name)
            is_sum = learn.loss is not None and learn.mean.count.is_sum
        if name not in self.means:
            self.means[name] = Mean()
        self.means[name].add(value, count, is_sum)

    # Over processes, and in checkpoints -----------------------------------------------------------

    def _sums(self, processes: Processes) -> dict[str, list[float]]:
        """Return the sums and counts over all processes, by name: those of the first process come first."""
        own = {name: (float(mean.sum), float(mean.n)) for name, mean in self.means.items()}
        found: dict[str, list[float]] = {}
        for part in processes.all_gather(own):
            for name, (total, n) in part.items():
                sums = found.setdefault(name, [0.0, 0.0])
                sums[0], sums[1] = sums[0] + total, sums[1] + n
        return found

    def joined(self, processes: Processes) -> dict[str, float]:
        """Return the means over all processes, by name; nan for one over nothing."""
        return {name: total / n if n else math.nan for name, (total, n) in self._sums(processes).items()}

    def saved(self, processes: Processes) -> dict[str, Any]:
        """Return what a checkpoint has: the sums over all processes."""
        if processes.n_shards == 1:
            return {name: mean.state_dict() for name, mean in self.means.items()}
        return {name: {"sum": total, "n": n} for name, (total, n) in self._sums(processes).items()}

    def load(self, state: dict[str, Any], processes: Processes) -> None:
        """Restore them; the first process has the totals."""
        self.means = {}
        for name, sums in ({} if processes.rank and processes.n_shards > 1 else state).items():
            self.means[name] = Mean()
            self.means[name].load_state_dict(sums)


def takes_value(learn: Learner, name: Any) -> bool:
    """Whether a value that is logged here goes into a row.

    Raises: RuntimeError outside a batch.
    """
    inner: list[str] = []
    for scope in reversed(learn.scopes):
        if scope in ("train", "validate"):
            break
        inner.append(scope)
    if "batch" in inner:
        has_rows = learn.purpose not in ("predict", "measure")
        return has_rows and not learn.is_again and not learn.processes.is_idle
    if "step" in inner or learn._current.is_unpacking:  # of cancelled batches, and of a look at the data
        return False
    raise RuntimeError(
        f"learn.log({shown(name)}) outside a batch: it takes values of batches, whose mean goes into the "
        "row of the phase; expected a call between before_batch and cleanup_batch, or, for one value of a "
        "phase, learn.history[-1][name] = value in after_train or after_validate"
    )


def no_metrics(name: Any) -> RuntimeError:
    """Return the error for a learner without MetricsCB."""
    return RuntimeError(
        f"learn.log({shown(name)}) without a MetricsCB, which writes the rows: expected one among the "
        "callbacks, cbs=[MetricsCB(), ...]"
    )


def _value_of(name: str, value: Any) -> float | Tensor:
    number = one_number(value)
    if number is None:
        raise TypeError(
            f"learn.log({name!r}, {what_is(value)}): expected a number, or a tensor of one; for several, "
            "take their mean, value.mean(), or log each under a name of its own"
        )
    if isinstance(number, Tensor):  # a copy, because it may change before it is added
        return number.to(sum_dtype(number.device), copy=True)
    return number


def _count_of(name: str, count: Any) -> Any:
    """Return a count that was given, as a number unless it is on a device; None if there is none."""
    if count is None:
        return None
    number = one_number(count)
    found = on_host(number) if number is not None and not isinstance(count, bool) else None
    if found is None or not (isinstance(found, Tensor) or is_number(found, low=0)):
        raise ValueError(
            f"learn.log({name!r}, ..., count={what_is(count)}): expected a finite number >= 0, of what the "
            "value is a mean over, such as the samples; a tensor of one number may be on a device"
        )
    return found


def _count_of_loss(learn: Learner, name: str) -> Any:
    """Return what the batch's loss is a mean over; of a batch without a loss, the samples."""
    if learn.loss_count is not None:
        return on_host(learn.loss_count)
    count = samples_of(learn, learn.xb, learn.yb) if learn.loss is None else None
    count = n_samples(learn.batch) if learn.loss is None and count is None else count
    if count is None:
        raise TypeError(
            f"learn.log({name!r}, ...): a batch of {type(learn.batch).__name__} does not tell how many "
            "samples it has: expected a count, learn.log(name, value, count)"
        )
    return count


def declared(cbs: Iterable[Callback]) -> list[str]:
    """Return the names that callbacks declare to log.

    Raises: TypeError for a class whose `logs` is no tuple of names.
    """
    found: dict[str, None] = {}
    for cb in cbs:
        if type(cb).logs is not None and not _is_names(type(cb).logs):
            raise TypeError(
                f"{type(cb).__name__}.logs = {shown(type(cb).logs)}: expected a tuple of the names that it "
                "gives to learn.log, such as ('kl',), or None if they come from the model"
            )
        if cb.logs is not None and _is_names(
            cb.logs
        ):  # an attribute of an instance may be something of its own
            found |= dict.fromkeys(cb.logs)
    return [*found]


def _is_names(logs: Any) -> bool:
    return isinstance(logs, tuple) and all(isinstance(name, str) for name in logs)
