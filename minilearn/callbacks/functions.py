"""Functions as metrics: the mean of one over batches, and what its parameters say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import shown
from ..batches import samples_of
from ..counting import on_host

if TYPE_CHECKING:
    from ..learner import Learner

# Names of a function's parameters, which tell what it takes first. sklearn, scipy and Keras have the target
# first; torch, torchmetrics and torcheval the predictions.
_TARGETS = {
    *("ytrue", "true", "truth", "target", "targets", "label", "labels", "labelstrue", "ytest", "gt"),
    *("groundtruth", "actual", "reference", "references"),
}
_PREDS = {
    *("ypred", "yscore", "yprob", "yproba", "probaspred", "preddecision", "labelspred", "yhat", "pred"),
    *("preds", "prediction", "predictions", "predicted", "input", "output", "outputs", "logits", "score"),
    *("scores", "prob", "probs", "proba", "probabilities"),
}


class Mean:
    """Average values, each weighted by what it is a mean over: sum_i n_i * value_i / sum_i n_i.

    State: the two sums; the first one in float64 (float32 on MPS), on the device of the values.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a phase."""
        self.sum: Any = 0.0
        self.n: Any = 0

    def add(self, value: Any, n: Any, is_sum: bool = False) -> None:
        """Add a value, without waiting for the device.

        Args:
            value: a number, or a tensor of shape ().
            n: what it is a mean over, a number or a tensor of shape (). A value over nothing is left out,
                because it may be nan.
            is_sum: whether the value is a sum over n things, rather than a mean.
        """
        if isinstance(value, Tensor):
            value = value.to(sum_dtype(value.device))
        if isinstance(n, Tensor):  # on a device
            n = n.to(sum_dtype(n.device))  # float32 would round a sum of many
            total = value if is_sum else value * n
            total = total if isinstance(total, Tensor) else torch.full_like(n, total)
            self.sum = torch.where(n > 0, total, 0) + self.sum
        elif n:
            self.sum = (value if is_sum else value * n) + self.sum
        self.n = self.n + n

    def compute(self) -> float:
        """Return the mean; nan if there was nothing."""
        n = float(self.n)
        return float(self.sum) / n if n else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return the two sums."""
        return {"sum": _copied(self.sum), "n": _copied(self.n)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.sum, self.n = _copied(state["sum"]), _copied(state["n"])


class BatchMean(Mean):
    """Average a function of a batch over the batches of a phase, weighted by their numbers of samples.

        mean = sum_i n_i * function(preds_i, target_i) / sum_i n_i

    n_i is the number of samples in the batch, or the function's own `count(preds, target)`, as for a loss.

    Args:
        function: (preds, target) -> a number, or a tensor of one.

    State: the two sums; the first one in float64 (float32 on MPS), on the device of what is returned.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        super().__init__()

    def to(self, device: torch.device) -> None:
        """Move a module, such as a loss with weights."""
        if isinstance(self.function, nn.Module):
            self.function.to(device)

    def update(self, preds: Any, target: Any, learn: Learner | None = None) -> None:
        """Add a batch; without waiting for the device if the function does not.

        Args:
            learn: whose batch it is, which knows the samples where preds and target differ.
        """
        n = self._count(preds, target, learn)
        self.add(self._value(preds, target), n)

    def _count(self, preds: Any, target: Any, learn: Learner | None) -> Any:
        if callable(count := getattr(self.function, "count", None)):
            return on_host(count(preds, target))
        n = samples_of(learn, preds, target)
        if n is None:
            raise TypeError(
                f"{label_of(self.function)} was given preds, a {type(preds).__name__}, and a target, a "
                f"{type(target).__name__}, which do not tell how many samples they have: expected a tensor "
                "in them"
            )
        return n

    def _value(self, preds: Any, target: Any) -> Any:
        value = self.function(preds, target)
        if (number := one_number(value)) is not None:
            return number
        raise TypeError(
            f"{label_of(self.function)} returned {what_is(value)}: expected one number for a batch, such as "
            "its mean; a metric object may compute several"
        )

    def merge_state(self, metrics: Iterable[Self]) -> Self:
        """Add the sums of other processes."""
        for metric in metrics:
            self.sum, self.n = float(self.sum) + float(metric.sum), float(self.n) + float(metric.n)
        return self

    def __deepcopy__(self, memo: Any) -> BatchMean:
        new = BatchMean(self.function)
        new.load_state_dict(self.state_dict())
        return new


def one_number(value: Any) -> float | Tensor | None:
    """Return a number as a float, or a tensor of one as one of shape (); None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().reshape(())
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    return float(value) if isinstance(value, Real) else None


def what_is(value: Any) -> str:
    """Return what a value is, for a message: the shape of a tensor, or a short text."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of a sum on a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def takes_target_first(function: Any) -> bool | None:
    """Return whether a function takes the target before the predictions; None if its names do not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
    first, second = (name.lower().replace("_", "") for name in [*plain, "", ""][:2])
    says = [0 if name in _TARGETS else 1 if name in _PREDS else None for name in (first, second)]
    if not second or says[0] == says[1]:  # neither says it, or both say the same
        return None
    return says[0] == 0 or says[1] == 1


def signature_of(function: Any) -> str:
    """Return a function's parameters for a message."""
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"


def label_of(function: Any) -> str:
    """Return a function's name for a message."""
    return getattr(function, "__name__", None) or shown(function)
