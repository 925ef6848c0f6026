"""Batches, however nested: the tensors in them, and batches like them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def parts_in(batch: Any) -> Iterator[Any]:
    """Give what is in a batch, tensors and all else, however nested in tuples, lists and dicts."""
    if isinstance(batch, tuple | list | Mapping):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from parts_in(item)
    else:
        yield batch


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Give the tensors in a batch, however nested."""
    return (part for part in parts_in(batch) if isinstance(part, Tensor))


def map_tensors(function: Callable[[Tensor], Tensor], part: Any) -> Any:
    """Return a batch, however nested, with a function of each of its tensors in that tensor's place."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, Mapping):
        return {key: map_tensors(function, item) for key, item in part.items()}
    if isinstance(part, tuple | list):
        items = [map_tensors(function, item) for item in part]
        return type(part)(*items) if hasattr(part, "_fields") else type(part)(items)
    return part


def with_inputs(batch: Any, inputs: Any) -> Any:
    """Return a batch of the same kind, (inputs, target) or inputs alone, with other inputs."""
    if not isinstance(batch, tuple | list):
        return inputs
    parts = [inputs, *batch[1:]]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors in a batch, however nested in tuples, lists and dicts, to a device.

    Copies from pinned memory to CUDA do not wait (non_blocking); what is no tensor stays as it is.
    """
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=device.type == "cuda")
    if type(batch) is tuple:  # the usual batch, the quick way
        return tuple([to_device(item, device) for item in batch])
    if isinstance(batch, (tuple, list)):
        moved = [to_device(item, device) for item in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    if isinstance(batch, Mapping):
        return {key: to_device(item, device) for key, item in batch.items()}
    if callable(getattr(batch, "to", None)):
        return batch.to(device)  # a batch class of the user's own, such as a graph
    return batch
