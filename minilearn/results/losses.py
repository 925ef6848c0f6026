"""top_losses: the samples with the largest losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import function, shown, unless_none, whole_number
from ..batches import map_tensors, n_samples
from ..counting import argument_of, function_of, is_cross_entropy, is_torchs
from ..fitting.checks import infer_loss
from ..learner import Learner
from .looking import Sample, index_of, look_at, sample_of, target_of


def top_losses(
    learn: Learner, dl: Any = None, n: int = 9, loss_func: Callable[[Any, Any], Tensor] | None = None
) -> list[Sample]:
    """Return the samples with the largest losses, the largest first.

    Args:
        dl: data, as for `learn.predict`. None: dls.valid.
        n: how many, or as many as there are.
        loss_func: (preds, target) -> loss. None: the learner's.

    The loss of a sample is that of torch's losses with reduction="none", the mean over the sample's elements
    that are not ignored; of another loss, its value for the sample alone.

    Raises: ValueError for a learner whose loss a callback computes, and for a loss that gives no number.
    """
    n = whole_number("n", n)
    name = "plot_top_losses"
    loss_func = unless_none(function, "loss_func", loss_func) or learn.loss_func
    if loss_func is None and not learn.has_default("get_loss"):
        raise ValueError(
            f"{name}: a callback computes this learner's loss: expected loss_func=, (preds, target) -> loss"
        )
    best: list[Sample] = []

    def look(learn: Learner, n_before: int) -> bool:
        target = target_of(learn, name)
        losses = _losses(loss_func or infer_loss(target), learn.preds, target)
        index = index_of(learn, len(losses), n_before)
        # nan is the largest; equal losses stay in the order in which they were read
        order = losses.nan_to_num(torch.inf, torch.inf).argsort(descending=True, stable=True)
        found = [sample_of(learn, j, index, float(losses[j])) for j in order[:n].tolist()]
        best[:] = sorted([*best, *found], key=_by_loss)[:n]
        return True

    look_at(learn, dl, name, look)
    return best


def _by_loss(sample: Sample) -> float:
    assert sample.loss is not None
    return -sample.loss if sample.loss == sample.loss else -torch.inf


def _losses(loss_func: Any, preds: Any, target: Any) -> Tensor:
    """Return the loss of each sample, (N,) on the CPU."""
    n = n_samples(target)
    if n is None:
        raise TypeError(f"plot_top_losses: a target of {type(target).__name__} does not tell its samples")
    unreduced = _unreduced(loss_func)
    if unreduced is None:
        losses = torch.stack([_of_one(loss_func, preds, target, j) for j in range(n)])
    else:
        losses = unreduced(preds, target).detach().cpu()
        if losses.ndim < 1 or len(losses) != n:
            raise ValueError(
                f"plot_top_losses: {shown(loss_func)} with reduction='none' gives {tuple(losses.shape)} for "
                f"{n} samples: expected (N, ...)"
            )
        if losses.ndim > 1:
            losses = _mean_of_each(loss_func, losses.flatten(1), target)
    return losses.double()


def _mean_of_each(loss_func: Any, losses: Tensor, target: Any) -> Tensor:
    """Return the loss of each sample by those of its elements that are not ignored, (N, M) -> (N,)."""
    if argument_of(loss_func, "reduction", "mean") in ("sum", "batchmean"):
        return losses.sum(1)
    ignored = argument_of(loss_func, "ignore_index", -100)
    if is_cross_entropy(loss_func) and not target.is_floating_point():
        n_kept = (target.flatten(1) != ignored).sum(1).cpu()
        return losses.sum(1) / n_kept.clamp_min(1)
    return losses.mean(1)


def _unreduced(loss_func: Any) -> Any:
    """Return a loss with reduction="none"; None for one that does not take it."""
    inner = function_of(loss_func)
    if isinstance(loss_func, nn.Module):
        if not is_torchs(loss_func) or not isinstance(getattr(inner, "reduction", None), str):
            return None
        unreduced = copy(inner)
        unreduced.reduction = "none"
        return unreduced
    try:
        takes = "reduction" in inspect.signature(inner).parameters
    except (TypeError, ValueError):  # a built-in function
        return None
    return partial(loss_func, reduction="none") if takes else None


def _of_one(loss_func: Any, preds: Any, target: Any, j: int) -> Tensor:
    one = partial(map_tensors, lambda t: t[j : j + 1] if t.ndim else t)
    loss = loss_func(one(preds), one(target))
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            f"plot_top_losses: {shown(loss_func)} gives {shown(loss)} for one sample: expected a tensor of "
            "one number"
        )
    return loss.detach().cpu().reshape(())
