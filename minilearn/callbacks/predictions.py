"""PredictionsCB: collect what `learn.predict(dl)` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..arguments import flag
from ..batches import Samples, items_of, map_tensors, n_samples, rebuilt, tensors_in
from ..callback import Callback, Order
from ..events import CancelBatchException

if TYPE_CHECKING:
    from ..learner import Learner


class PredictionsCB(Callback):
    """Keep each batch's predictions and leave the batch before its loss, so that no target is needed.

    Args:
        with_targets: whether to keep the targets too.
        places: those of the samples among those that are read, (N,). None: as they are read.

    Runs at: after_predict; order 1000, after all others. Reads: preds, xb, yb.
    Raises: ValueError for predictions whose first dimension is not that of the samples, such as the hidden
        state of a recurrent net, (layers, N, H): those of several batches cannot be joined; and for a batch
        without a target, where targets are kept.
    """

    order = Order.PREDICTIONS

    def __init__(self, with_targets: bool = False, places: Tensor | None = None) -> None:
        self.places = places
        self.with_targets = flag("with_targets", with_targets)
        self._preds: list[Any] = []
        self._targets: list[Any] = []
        self._sizes: list[int | None] = []

    def after_predict(self, learn: Learner) -> None:
        if not learn.is_again:
            preds = _per_sample(learn.preds, learn.xb)
            _check_samples_first(learn, preds)
            self._preds.append(preds)
            self._sizes.append(n_samples(learn.xb))
            if self.with_targets:
                self._targets.append(_target_of(learn))
            raise CancelBatchException

    def take(self) -> tuple[Any, Any, int | None] | None:
        """Return the predictions and the target of the last batch, on the CPU, and its size; keep nothing.

        None if a hook cancelled the batch.
        """
        if not self._preds:
            return None
        preds, size = map_tensors(_on_cpu, self._preds.pop()), self._sizes.pop()
        return preds, map_tensors(_on_cpu, self._targets.pop()) if self._targets else None, size

    def targets(self) -> Any:
        """Return all targets on the CPU, joined as the predictions are."""
        return self._joined(self._targets, "targets")

    def _joined(self, parts: list[Any], name: str) -> Any:
        # One batch can tell what the others leave open, such as one of a single image with a single box.
        is_listed = all(map(_is_as_long, parts, self._sizes)) and any(map(_is_per_sample, parts, self._sizes))
        if is_listed:
            found = [map_tensors(_on_cpu, item) for part in parts for item in part]
        else:
            found = _join(parts, name)
        if self.places is None:
            return found
        return [found[i] for i in self.places.tolist()] if is_listed else _sorted(found, self.places)

    def preds(self) -> Any:
        """Return all predictions on the CPU.

        Shapes: each tensor (N, ...). Tuples, lists, mappings and dataclasses keep their class and hold joined
            tensors. A tensor of one number per batch becomes one with a number for each batch. A list with
            an item for each sample becomes one of N items.

        Raises: TypeError for outputs that cannot be joined, such as text that differs from batch to batch;
            ValueError if a hook cancelled every batch.
        """
        if not self._preds:
            raise ValueError("predict: a hook cancelled every batch before its predictions; expected some")
        return self._joined(self._preds, "preds")


def _target_of(learn: Learner) -> Any:
    if learn.yb is None:
        raise ValueError(
            f"with_targets=True: a {type(learn.dl).__name__} gives a batch of {type(learn.batch).__name__} "
            "without a target; expected batches (inputs, target), or with_targets=False"
        )
    return learn.yb


def _per_sample(preds: Any, inputs: Any) -> Any:
    """Return the predictions as Samples where the inputs are that and there are as many."""
    is_listed = isinstance(inputs, Samples) and isinstance(preds, list) and len(preds) == len(inputs)
    return Samples(preds) if is_listed else preds


def _check_samples_first(learn: Learner, preds: Any) -> None:
    n = n_samples(learn.xb if learn.yb is None else learn.yb)
    if _is_per_sample(preds, n):
        return
    shapes = [tuple(t.shape) for t in tensors_in(preds) if t.ndim]
    odd = [shape for shape in shapes if shape[:1] != (n,) and n in shape[1:]]
    if not odd and len({shape[:1] for shape in shapes}) > 1:  # parts of one prediction
        odd = [shape for shape in shapes if shape[:1] != shapes[0][:1]]
    if odd:
        raise ValueError(
            f"predict: the model gave {', '.join(map(str, shapes))} for a batch of {n}. Those of several "
            f"batches are joined along the first dimension, which is not that of the samples in {odd[0]}: "
            "have the model give (N, ...), or set learn.preds in after_predict of a callback, such as to "
            "hidden.transpose(0, 1)"
        )


def _is_as_long(part: Any, size: int | None) -> bool:
    """Whether predictions are a list with as many items as samples; these may be as many outputs."""
    return isinstance(part, list) and len(part) == size


def _is_per_sample(part: Any, size: int | None) -> bool:
    """Whether predictions are a list with an item for each sample, such as the boxes in each image."""
    if not _is_as_long(part, size):
        return False
    if isinstance(part, Samples) or all(isinstance(item, Mapping) for item in part):
        return True
    found = [*tensors_in(part)]
    return not found or not all(t.ndim and len(t) == size for t in found)


def _sorted(part: Any, places: Tensor) -> Any:
    """Return joined predictions in the order of the samples. Raises: ValueError if there is none for each."""
    if isinstance(part, Tensor | np.ndarray) and len(part) == len(places):
        return part[places] if isinstance(part, Tensor) else part[places.numpy()]
    items = items_of(part)
    if isinstance(part, Tensor | np.ndarray | PackedSequence) or items is None:
        raise ValueError(
            f"predict: a {type(part).__name__} cannot be put into the order of {len(places)} samples, which "
            "a plan gives in another one: expected tensors (N, ...); or use predict_batches, which numbers "
            "the samples"
        )
    return rebuilt(part, {key: _sorted(item, places) for key, item in items.items()})


def _on_cpu(t: Tensor) -> Tensor:
    return t.detach().cpu()


def _check_lengths(parts: list[Tensor], name: str) -> None:
    """Raise ValueError for tensors of several shapes, such as those of sequences padded batch by batch."""
    shapes = {tuple(part.shape) for part in parts}
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"predict cannot join {name} of shapes {', '.join(map(str, sorted(shapes)))}: expected the same "
            "in each batch, but for the samples; pad all batches to one length, or take the batches one by "
            "one, for index, preds in learn.predict_batches(...)"
        )


def _join(parts: list[Any], name: str) -> Any:
    first, kinds = parts[0], {type(part).__name__ for part in parts}
    if len(kinds) == 1 and isinstance(first, Tensor):
        _check_lengths(parts, name)
        return torch.cat([_on_cpu(part if part.ndim else part[None]) for part in parts])
    if len(kinds) == 1 and isinstance(first, np.ndarray):
        return np.concatenate([np.atleast_1d(part) for part in parts])
    items = [items_of(part) for part in parts]
    if len(kinds) == 1 and items[0] is not None and not isinstance(first, PackedSequence):
        if all(item.keys() == items[0].keys() for item in items if item is not None):
            columns = {key: [item[key] for item in items if item is not None] for key in items[0]}
            return rebuilt(first, {key: _join(column, f"{name}[{key!r}]") for key, column in columns.items()})
        kinds = {f"{type(part).__name__} of {', '.join(map(str, items_of(part) or ()))}" for part in parts}
    elif len(kinds) == 1 and items[0] is None and all(part is first or part == first for part in parts):
        return first
    raise TypeError(
        f"predict cannot join {name} of several batches, {' and '.join(sorted(kinds))}: expected tensors (N, "
        "...), or tuples, lists, dicts or dataclasses of them that are the same in each batch; return them "
        "from the model, or change learn.preds in a callback's after_predict"
    )
