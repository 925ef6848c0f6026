"""What a loss is a mean over: its samples, its elements, or the targets that it does not ignore."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import samples_of, tensors_in

if TYPE_CHECKING:
    from .learner import Learner

OF_CLASSES = (F.cross_entropy, F.nll_loss)
_OF_CLASSES_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_HIDDEN_MODULES = tuple(getattr(nn, name) for name in ("LinearCrossEntropyLoss",) if hasattr(nn, name))
ELEMENTWISE = (
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.kl_div),
    *(F.binary_cross_entropy_with_logits, F.poisson_nll_loss, F.gaussian_nll_loss, F.soft_margin_loss),
    F.hinge_embedding_loss,
)
_OVER_WEIGHTS = (F.mse_loss, F.l1_loss)  # which divide by the sum of their weights
_ELEMENTWISE_MODULES = (
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss),
    *(nn.PoissonNLLLoss, nn.GaussianNLLLoss, nn.SoftMarginLoss, nn.KLDivLoss),
    nn.HingeEmbeddingLoss,
)


def calls_of(loss_func: Any) -> list[Any]:
    """Return a loss, what it wraps, its modules, and what its code names: globals and enclosing variables."""
    found = [*_layers(loss_func)]
    for layer in [*found]:
        if isinstance(layer, nn.Module):
            found += layer.modules()
            layer = type(layer).forward
        code = getattr(layer, "__code__", None)
        if code is not None:
            found += [layer.__globals__[name] for name in code.co_names if name in layer.__globals__]
            found += inspect.getclosurevars(layer).nonlocals.values()
    return found


def _layers(loss_func: Any) -> Iterator[Any]:
    """Yield a loss, then the ones that it wraps, if it is a partial or comes from torch.compile."""
    inner = loss_func
    while inner is not None:
        yield inner
        if isinstance(inner, partial):
            inner = inner.func
        elif isinstance(inner, nn.Module):
            inner = getattr(inner, "_orig_mod", None)
        else:
            inner = getattr(inner, "_torchdynamo_orig_callable", None)
            inner = getattr(inner, "__wrapped__", inner)  # torch wraps its own functions too


def function_of(loss_func: Any) -> Any:
    """Return the function that partials and torch.compile wrap."""
    return list(_layers(loss_func))[-1] if loss_func is not None else None


def argument_of(loss_func: Any, name: str, default: Any) -> Any:
    """Return an argument of a loss: a module's attribute, or a keyword of a partial."""
    for layer in _layers(loss_func):
        if isinstance(layer, partial) and name in layer.keywords:
            return layer.keywords[name]
        if isinstance(layer, nn.Module) and hasattr(layer, name):
            return getattr(layer, name)
    return default


def is_torchs(loss_func: Any) -> bool:
    """Whether a loss is one of torch's own, not a subclass that computes it in another way."""
    function = function_of(loss_func)
    made_by = type(function).forward if isinstance(function, nn.Module) else function
    return str(getattr(made_by, "__module__", "")).startswith("torch.nn.")


def is_cross_entropy(loss_func: Any) -> bool:
    """Whether a loss takes class numbers as targets by torch's conventions."""
    function = function_of(loss_func)
    return function in OF_CLASSES or isinstance(function, _OF_CLASSES_MODULES)


def is_elementwise(loss_func: Any) -> bool:
    """Whether a loss is a mean over the elements of preds."""
    function = function_of(loss_func)
    return function in ELEMENTWISE or isinstance(function, _ELEMENTWISE_MODULES)


@dataclass(frozen=True)
class Rule:
    """What a loss of the user's own was seen to return: the cross-entropy of its target.

    ignored (the target that it leaves out), is_shifted (whether the first target of each sequence is left out
    too, as in predicting the next token), is_safe (as in `Count`).
    """

    ignored: int
    is_shifted: bool
    is_safe: bool


class Count:
    """Say what a loss is a mean over.

    The loss's own `count(preds, target)` decides, or else its kind. A subclass of one of torch's losses is of
    the same kind. A function or module that calls one counts as a mean over samples, unless it returns a
    cross-entropy of its target, as seen in the first batch: then see `Rule`.

    is_sum (whether it is a sum, by reduction="sum", so that its row has to be divided by the samples).

    Args:
        loss_func: a loss. None: the owner of get_loss computes it, so only the samples are known.
    """

    def __init__(self, loss_func: Any = None) -> None:
        self.loss_func = loss_func
        self.is_sum = argument_of(loss_func, "reduction", "mean") == "sum"
        self.is_by_class = False  # whether the count is the number of targets that are not ignored
        self.is_safe = False  # whether the gradients of a loss over nothing on a device are 0, not nan
        self._count: Callable[[Any, Any], Any] | None = None
        if (own := _own_count(loss_func)) is not None:
            self._count = own
        elif self.is_sum or argument_of(loss_func, "reduction", "mean") == "batchmean":
            self.is_safe = True
        elif is_cross_entropy(loss_func) or isinstance(function_of(loss_func), _OF_HIDDEN_MODULES):
            self._count = self._of_classes
            ignored = argument_of(loss_func, "ignore_index", -100)
            self._ignored = -100 if ignored is None else ignored
            self._weight = argument_of(loss_func, "weight", None)
            self.is_by_class = self._weight is None
            self.is_safe = self._weight is None and not argument_of(loss_func, "label_smoothing", 0.0)
        elif function_of(loss_func) in _OVER_WEIGHTS and argument_of(loss_func, "weight", None) is not None:
            self._count = self._of_weights
        elif is_elementwise(loss_func):
            self._count = _of_elements if is_torchs(loss_func) else _of_equals

    def __call__(self, preds: Any, target: Any, inputs: Any, learn: Learner | None = None) -> float | Tensor:
        """Return how many values the loss of a batch is a mean over; a tensor if the count is on a device.

        Args:
            learn: whose batch it is, see `batches.samples_of`.

        Raises: TypeError if neither target nor inputs tell how many samples there are.
        """
        count = None if self._count is None else self._count(preds, target)
        if count is None:
            count = samples_of(learn, inputs, target)
        if count is None:
            raise TypeError(
                f"a batch of {type(inputs).__name__} and {type(target).__name__} does not tell how many "
                "samples it has: expected a tensor in it; or set learn.loss_count where the loss is computed"
            )
        return on_host(count)

    def use(self, rule: Rule) -> None:
        """Count by what the loss was seen to do, if nothing else says what it is a mean over."""
        if self._count is None and not self.is_sum and not self.is_safe:
            self._count = partial(_of_kept, rule)
            self._ignored, self.is_by_class, self.is_safe = rule.ignored, not rule.is_shifted, rule.is_safe

    def is_free(self, targets: Tensor) -> bool:
        """Whether the loss ignores none of these targets. This waits for the device."""
        if not self.is_by_class or targets.is_floating_point():
            return False
        return bool((targets != self._ignored).all())

    def _of_weights(self, preds: Any, target: Any) -> Any:
        return argument_of(self.loss_func, "weight", None).sum()

    def _of_classes(self, preds: Any, target: Any) -> Any:
        if not isinstance(target, Tensor) or not isinstance(preds, Tensor):
            return None
        if target.is_floating_point():  # probabilities of classes
            return target.numel() // max(target.shape[1 if target.ndim > 1 else 0], 1)
        if self._weight is None:
            return _n_kept(target, self._ignored)
        kept = target != self._ignored
        return (self._weight[torch.where(kept, target, 0).long()] * kept).sum()


def _n_kept(target: Tensor, ignored: int) -> Any:
    if target.device.type == "cpu":
        return target.ne(ignored).count_nonzero().item()
    return (target != ignored).sum()


def _of_kept(rule: Rule, preds: Any, target: Any) -> Any:
    if not isinstance(target, Tensor) or target.is_floating_point() or not target.ndim:
        return None
    return _n_kept(target[..., 1:] if rule.is_shifted else target, rule.ignored)


def _own_count(loss_func: Any) -> Callable[[Any, Any], Any] | None:
    for layer in _layers(loss_func):
        own = getattr(layer, "count", None)
        if callable(own) and not isinstance(own, type | nn.Module):
            return own
    return None


def _of_elements(preds: Any, target: Any) -> Any:
    if not isinstance(preds, Tensor) or not isinstance(target, Tensor):
        return None
    if preds.shape == target.shape:
        return preds.numel()
    return torch.broadcast_tensors(preds, target)[0].numel()  # type: ignore[no-untyped-call]


def _of_equals(preds: Any, target: Any) -> Any:
    """Count elements; not those of other shapes, which a subclass of torch's losses may reshape."""
    if isinstance(preds, Tensor) and isinstance(target, Tensor) and preds.shape == target.shape:
        return preds.numel()
    return None


def on_host(count: Any) -> Any:
    """Return a count as a number if it is one or a CPU tensor, which needs no wait for the device.

    Raises: ValueError for a tensor of several numbers.
    """
    if not isinstance(count, Tensor):
        return count
    if count.numel() != 1:
        raise ValueError(
            f"a count is a tensor of shape {tuple(count.shape)}: expected one number; sum it, mask.sum()"
        )
    count = count.detach().reshape(())
    return np.from_dlpack(count.double()).item() if count.device.type == "cpu" else count


def known_count(learn: Learner) -> Any:
    """Return what the batch's loss is a mean over.

    Raises: TypeError if the owner of get_loss did not set it and the batch does not tell.
    """
    if learn.loss_count is None:
        raise TypeError(
            f"learn.loss_count is None, because a batch of {type(learn.batch).__name__} does not tell how "
            "many samples it has: expected the owner of get_loss to set it, learn.loss_count = ..."
        )
    return learn.loss_count


def only_counted(preds: Any, count: Tensor) -> None:
    """Make the gradients of predictions 0 if the count, on a device, is 0, whatever the loss gives."""

    def clean(grad: Tensor) -> Tensor:
        return torch.where(count > 0, grad, 0)

    for t in tensors_in(preds):
        if t.requires_grad:
            t.register_hook(clean)  # type: ignore[no-untyped-call]


def zero_of(preds: Any) -> Tensor:
    """Return a loss of 0 that depends on the predictions, so that all its gradients are 0."""
    parts = [t for t in tensors_in(preds) if t.is_floating_point()]
    if not parts:
        raise TypeError(f"predictions of {type(preds).__name__} have no tensor of floats")
    # The sum of an empty slice, because 0 times a value that is not finite is nan.
    sums: list[Tensor] = [t.reshape(-1)[:0].sum() for t in parts]
    return sum(sums[1:], sums[0])
