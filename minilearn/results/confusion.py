"""plot_confusion: how often each class was predicted as each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import flag, instances, number, shown, unless_none, whole_number
from ..counting import argument_of, is_cross_entropy
from ..learner import Learner
from ..plot import LARGEST_INCHES, new_figure
from .looking import look_at, target_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NUMBERED = 20  # classes whose counts are written into the figure
_MOST_NAMED = 60  # classes with a name beside the figure


def confusion_matrix(learn_or_preds: Any, dl_or_targets: Any = None, n_classes: int | None = None) -> Tensor:
    """Return how often each class was predicted as each: row i and column j for those of i taken for j.

    Args:
        learn_or_preds: a learner, or predictions: scores (N, C, ...), or class numbers (N, ...).
        dl_or_targets: with a learner, its data, as for `learn.predict`; None: dls.valid. With predictions,
            the class numbers, (N, ...).
        n_classes: None: as many as there are scores, or as the largest number says.

    Targets that the learner's cross-entropy ignores, or -100, do not count.

    Shapes: (n_classes, n_classes) int64.
    Raises: ValueError, with the shapes, for what is no class or no score of one.
    """
    if isinstance(learn_or_preds, Learner):
        counts = torch.zeros(0, 0, dtype=torch.int64)

        def look(learn: Learner, n_before: int) -> bool:
            nonlocal counts
            is_by_class = is_cross_entropy(learn.loss_func)
            ignored = argument_of(learn.loss_func, "ignore_index", -100) if is_by_class else -100
            found = _counts(learn.preds, target_of(learn, "plot_confusion"), ignored)
            size = max(len(counts), len(found))
            counts = _grown(counts, size) + _grown(found, size)
            return True

        look_at(learn_or_preds, dl_or_targets, "plot_confusion", look)
    else:
        counts = _counts(_as_tensor(learn_or_preds), _as_tensor(dl_or_targets), -100)
    size = unless_none(whole_number, "n_classes", n_classes)
    if size is not None and size < len(counts):
        raise ValueError(f"n_classes={size}: expected {len(counts)} or more, there are as many")
    return counts if size is None else _grown(counts, size)


def _as_tensor(values: Any) -> Any:
    return torch.as_tensor(np.asarray(values)) if isinstance(values, np.ndarray | list | tuple) else values


def _counts(preds: Any, target: Any, ignored: int) -> Tensor:
    """Return the counts of a batch, as many rows and columns as there are scores or the numbers need."""
    if not isinstance(preds, Tensor) or not isinstance(target, Tensor):
        raise TypeError(
            f"plot_confusion: the predictions are a {type(preds).__name__} and the targets a "
            f"{type(target).__name__}: expected tensors, scores (N, C) and class numbers (N,)"
        )
    is_scores = preds.ndim == target.ndim + 1 and preds.shape[:1] + preds.shape[2:] == target.shape
    is_numbers = preds.shape == target.shape and not preds.is_floating_point() and not preds.is_complex()
    if target.is_floating_point() or not (is_scores or is_numbers) or not target.ndim:
        raise ValueError(
            f"plot_confusion: the predictions are {preds.dtype} {tuple(preds.shape)} and the targets "
            f"{target.dtype} {tuple(target.shape)}: expected scores (N, C) of each class and class numbers "
            "(N,). For one number a sample, compare it with your threshold: (preds > 0).long()"
        )
    classes, target = (preds.argmax(1) if is_scores else preds).cpu().long(), target.cpu().long()
    classes, target = classes[target != ignored], target[target != ignored]
    largest = [int(t.max()) for t in (classes, target) if len(t)]
    n = preds.shape[1] if is_scores else max(largest, default=-1) + 1
    for what, numbers in (("targets", target), ("predictions", classes)):
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < n:
            raise ValueError(
                f"plot_confusion: the {what} run from {int(numbers.min())} to {int(numbers.max())}: expected "
                f"class numbers from 0 to {n - 1}"
            )
    return torch.bincount(target * n + classes, minlength=n * n).view(n, n)


def _grown(counts: Tensor, n: int) -> Tensor:
    more = n - len(counts)
    return nn.functional.pad(counts, (0, more, 0, more))


def plot_confusion(
    learn_or_preds: Any,
    dl_or_targets: Any = None,
    classes: Sequence[str] | None = None,
    normalize: bool = False,
    size: float | None = None,
) -> Figure:
    """Draw how often each class (a row) was predicted as each (a column).

    Args:
        learn_or_preds, dl_or_targets: see `confusion_matrix`, which returns the numbers.
        classes: names. None: those of the learner's data, or else numbers.
        normalize: draw the share of each row in place of counts.
        size: of a side, in inches. None: by the number of classes.
    """
    flag("normalize", normalize)
    if classes is None and isinstance(learn_or_preds, Learner):
        classes = learn_or_preds.dls.classes
    names = unless_none(instances, "classes", classes, str, "names of classes")
    counts = confusion_matrix(learn_or_preds, dl_or_targets)
    if not counts.sum():
        raise ValueError("plot_confusion: no target counts: expected at least one class number")
    n = len(counts)
    if names is not None and len(names) < n:
        raise ValueError(f"classes={shown(classes)} has {len(names)} names, and there are {n} classes")
    if names is not None and len(names) > n:
        n, counts = len(names), _grown(counts, len(names))
    side = unless_none(number, "size", size, above=0, high=LARGEST_INCHES) or min(12.0, 2.5 + 0.45 * n)
    values = counts / counts.sum(1, keepdim=True).clamp_min(1) if normalize else counts
    figure, axes = new_figure(1, 1, side, side)
    ax = axes[0, 0]
    ax.imshow(values.numpy(), cmap="Blues", vmin=0)
    if n <= _MOST_NUMBERED:
        middle = float(values.max()) / 2
        for i, j in np.ndindex(n, n):
            if counts[i, j]:
                text = f"{float(values[i, j]):.2f}" if normalize else f"{int(counts[i, j])}"
                color = "white" if float(values[i, j]) > middle else "black"
                ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    if n <= _MOST_NAMED:
        labels = names or [str(i) for i in range(n)]
        ax.set_xticks(range(n), labels, rotation=90 if names else 0, fontsize=8)
        ax.set_yticks(range(n), labels, fontsize=8)
    ax.set(xlabel="prediction", ylabel="target")
    return figure
