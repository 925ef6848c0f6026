"""What users give to predict and validate, as a loader: a data set, a tensor, an array, a list of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ..arguments import counted, shown, unless_none, whole_number
from ..batches import parts_in
from .adapters import Adapter
from .adapters.iterables import IterableAdapter, SequenceAdapter
from .dataset_loader import DatasetLoader
from .loaders import DataLoaders
from .resumable import TensorLoader

USUAL_BS = 64


def loader_of(data: Any, dls: DataLoaders, bs: int | None, dtype: torch.dtype) -> tuple[Any, bool]:
    """Return a loader of what a user gave, and whether its batches are only inputs.

    A loader is returned as it is. A tensor or an array has a sample in each row. The samples of a data set,
    or of a list, are collated as those of dls.valid are, or else those of dls.train. The items of a list are
    batches if they have as many dimensions as a batch of these loaders, and samples if they have one less, or
    the form of a sample where batches are lists of such; a list of nested lists of numbers is an array.

    Args:
        bs: samples in a batch. None: that of dls.valid, or else of dls.train, or 64.
        dtype: what an array of float64 is converted to.

    Raises: TypeError or ValueError for what gives no batches, and for bs beside a loader.
    """
    size = unless_none(whole_number, "bs", bs) or _bs_of(dls)
    if isinstance(data, Mapping) and data:
        raise TypeError(
            f"a dict of {', '.join(map(repr, list(data)[:5]))}: expected a loader, samples or a list "
            "of batches. One batch is [batch]; of several loaders, give one at a time"
        )
    if isinstance(data, Tensor):
        return TensorLoader(_rows(data, data), bs=size), True
    if isinstance(data, np.ndarray) or _is_numbers(data):
        return TensorLoader(_rows(_tensor(data, dtype), data), bs=size), True
    if _has_index(data) and _is_samples(data, dls):
        return DatasetLoader(data, size, collate_fn=_collate_of(dls)), False
    if bs is not None:
        raise ValueError(
            f"bs={bs} for {shown(data)}, which makes its own batches: expected bs only with a data set, a "
            "tensor, an array or a list of samples"
        )
    return data, False


def _rows(tensor: Tensor, data: Any) -> Tensor:
    if not tensor.ndim or not len(tensor):
        raise ValueError(f"{shown(data)}: expected a tensor or an array of samples, (N, ...), with N > 0")
    return tensor


def _tensor(data: Any, dtype: torch.dtype) -> Tensor:
    array = np.asarray(data)
    try:
        tensor = torch.as_tensor(np.ascontiguousarray(array))
    except TypeError as error:
        raise TypeError(f"an array of {array.dtype}: expected numbers ({error})") from None
    return tensor.to(dtype) if tensor.dtype == torch.float64 else tensor


def _is_numbers(data: Any) -> bool:
    """Whether data is a list of numbers, or of lists of them, of the same length."""
    first = data
    if not isinstance(data, list | tuple):
        return False
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, bool) or not isinstance(first, int | float | np.number):
        return False
    try:
        return np.asarray(data).dtype.kind in "iuf"
    except ValueError:  # of different lengths
        return False


def _has_index(data: Any) -> bool:
    """Whether data is a data set or a sequence, not a loader."""
    if isinstance(data, Adapter | DataLoader | IterableDataset | type | str | bytes | Mapping):
        return False
    if isinstance(data, Dataset):
        return True
    has_length = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return has_length and not hasattr(data, "batches") and not hasattr(data, "state_dict")


def _is_samples(data: Any, dls: DataLoaders) -> bool:
    """Whether the items of a data set or a list are samples, not batches."""
    if isinstance(data, Dataset):
        return True
    is_loader = SequenceAdapter.takes(data) or IterableAdapter.takes(data)
    if not len(data):
        return not is_loader
    item = data[0]
    n_dims = _n_dims(item)
    if n_dims is None:
        return _is_plain(item)
    expected = _dims_of(dls)
    if n_dims == expected and _is_formed_as_a_sample(item, dls):
        return True
    if expected is None or n_dims >= expected:  # batches, as in any list; the model decides about their form
        return False
    if n_dims == expected - 1:
        return True
    raise ValueError(
        f"a {type(data).__name__} of items of {counted(n_dims, 'dimension')}: expected {expected}, as in the "
        f"batches of the learner's loaders, or {expected - 1} for single samples"
    )


def _is_formed_as_a_sample(item: Any, dls: DataLoaders) -> bool:
    """Whether an item is like a sample of the learner's data, and their batches are not.

    This tells samples that are collated to lists, such as images of different sizes with their boxes.
    """
    for loader in (dls.valid, dls.train):
        if isinstance(loader, DatasetLoader) and loader.collate is not default_collate:
            apart = copy(loader)
            apart.collate = list
            form = _form(item)
            return bool(
                (samples := apart.peek()) and form == _form(samples[0]) and form != _form(loader.peek())
            )
    return False


def _form(item: Any) -> Any:
    """Return the dimensions of the tensors in an item, in its containers."""
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim
    if isinstance(item, Mapping):
        return {key: _form(part) for key, part in item.items()}
    return [_form(part) for part in item] if isinstance(item, list | tuple) else type(item)


def _n_dims(item: Any) -> int | None:
    return next((part.ndim for part in parts_in(item) if isinstance(part, Tensor | np.ndarray)), None)


def _is_plain(item: Any) -> bool:
    """Whether an item without tensors is a sample that a collate function takes: text, an image, lists."""
    return isinstance(item, str | bytes | int | float | Mapping | Sequence) or hasattr(item, "getbands")


def _dims_of(dls: DataLoaders) -> int | None:
    """Return how many dimensions the first part of the learner's batches has; None if not known."""
    for name in ("valid", "train"):
        if name in dls.adapters and (batch := dls.adapters[name].peek()) is not None:
            return _n_dims(batch)
    return None


def _bs_of(dls: DataLoaders) -> int:
    for loader in (dls.valid, dls.train):
        for name in ("bs", "batch_size"):
            if isinstance(bs := getattr(loader, name, None), int) and bs > 0:
                return bs
    return USUAL_BS


def _collate_of(dls: DataLoaders) -> Any:
    """Return the collate function of the learner's loaders; None: torch's default."""
    for loader in (dls.valid, dls.train):
        if isinstance(loader, DatasetLoader):
            return loader.collate
        if isinstance(loader, DataLoader) and loader.batch_sampler is not None:
            return loader.collate_fn
    return None
