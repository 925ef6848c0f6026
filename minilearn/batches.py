"""What a batch is: its inputs and target, its samples, and its tensors, however nested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from .learner import Learner

TARGETS = ("labels", "label", "target", "targets")  # names of the target in a mapping


# Inputs and target --------------------------------------------------------------------------------


def is_pair(batch: Any) -> bool:
    """Whether a batch is (inputs, target)."""
    kind = type(batch)
    if kind is not tuple and kind is not list and (not isinstance(batch, tuple | list) or is_one(batch)):
        return False
    return len(batch) == 2


def inputs_and_target(batch: Any, is_strict: bool = True) -> tuple[Any, Any]:
    """Return the inputs and the target of a batch; the target is None if there is none.

    A pair is (inputs, target). A mapping has the target under "labels", "label", "target" or "targets"; the
    rest of it is the inputs. A single element, or anything but a tuple, list or mapping, is the inputs.

    Args:
        is_strict: whether to refuse three or more elements; otherwise the first is the inputs.

    Raises: ValueError for three or more elements, and for a mapping with two of these names.
    """
    if is_pair(batch):
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        return _unpack_mapping(batch)
    if not isinstance(batch, tuple | list) or is_one(batch):
        return batch, None
    if len(batch) == 1 or (batch and not is_strict):
        return batch[0], None
    raise ValueError(
        f"the loader gives a {type(batch).__name__} of {len(batch)}: expected batches (inputs, target), "
        "where inputs may be a tuple or a dict; say which is which, "
        "Learner(..., unpack=lambda batch: (inputs, target)), where the target may be several: with sample "
        "weights, (batch[0], batch[1:]) and a loss of (preds, (target, weights))"
    )


def _unpack_mapping(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    names = [name for name in TARGETS if name in batch]
    if len(names) > 1:
        raise ValueError(
            f"the loader gives a {type(batch).__name__} with {' and '.join(map(repr, names))}: expected one "
            "target; say which it is, Learner(..., unpack=lambda batch: (inputs, target))"
        )
    return {key: part for key, part in batch.items() if key not in names}, batch[names[0]] if names else None


class Samples(list[Any]):
    """A list with an item for each sample, such as images of different sizes, or the boxes in each image.

    A plain list of tensors is several inputs, `model(*xb)`, each with a row for each sample. Samples are one
    input, `model(xb)`: `Learner(..., unpack=lambda batch: (Samples(batch[0]), Samples(batch[1])))`.
    """


def is_one(part: Any) -> bool:
    """Whether a tuple or list is one object: a packed sequence, Samples, or a namedtuple that has `to`."""
    if isinstance(part, PackedSequence | Samples):
        return True
    return hasattr(part, "_fields") and hasattr(part, "to")


def is_several(inputs: Any) -> bool:
    """Whether inputs are several arguments of the model."""
    return isinstance(inputs, tuple | list) and not is_one(inputs)


def packed(batch: Any, inputs: Any, target: Any) -> Any:
    """Return a pair of the same type as `batch`, with these inputs and this target."""
    return type(batch)(inputs, target) if hasattr(batch, "_fields") else type(batch)((inputs, target))


@dataclass
class CurrentBatch:
    """A batch, and its inputs and target once they are known.

    batch, parts (inputs and target; the batch itself, if it is a tuple or list whose form says what is what;
    None until an owner of unpack said it), is_unpacking (whether they are being unpacked).
    """

    batch: Any = None
    parts: Any = field(default_factory=lambda: [None, None])
    is_unpacking: bool = False


# Samples ------------------------------------------------------------------------------------------


def n_samples(part: Any) -> int | None:
    """Return the number of samples in a batch's inputs or target; None if it cannot be told.

    It is the first dimension of the first tensor, the number of sequences in a PackedSequence, or the length
    of Samples, or of a list of anything but tensors.
    """
    if isinstance(part, Tensor | np.ndarray):
        return part.shape[0] if part.ndim else 1
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0])
    if isinstance(part, Samples):
        return len(part)
    if isinstance(part, list) and not (part and isinstance(part[0], Tensor | PackedSequence)):
        return len(part)
    if isinstance(part, Mapping | tuple | list) and not is_one(part):
        parts = part.values() if isinstance(part, Mapping) else part
        return next((n for n in map(n_samples, parts) if n is not None), None)
    n: int | None = getattr(part, "num_graphs", None)  # of a batch of graphs
    return n


def samples_of(learn: Learner | None, inputs: Any, target: Any) -> int | None:
    """Return the number of samples in the learner's batch, None if it cannot be told.

    It is the target's, or else the inputs' (in a metric, the predictions'). Where the two differ, as when the
    first dimension of one is time, or when it has the labels of several sequences one after the other, it is
    the one that the loader gave.
    """
    of_target = None if target is None else n_samples(target)
    of_inputs = n_samples(inputs)
    if of_target is None or of_target == of_inputs:
        return of_inputs
    return of_inputs if of_inputs is not None and _given(learn) == of_inputs else of_target


def _given(learn: Learner | None) -> int | None:
    """Return how many samples the loader gave this process in the batch, None if it does not say."""
    if learn is None or learn.dl is None or "batch" not in learn.scopes:
        return None
    adapter = learn.dls.adapter_of(learn.dl)
    if (sizes := adapter.sizes(learn.batch_idx)) is not None:
        return sizes[0]
    index = adapter.index(learn.batch_idx)
    return None if index is None else len(index)


# What is in it, however nested --------------------------------------------------------------------


def items_of(part: Any) -> dict[Any, Any] | None:
    """Return what is directly in a container, by index, key or field; None for anything else.

    Containers are tuples, lists, mappings, PackedSequences (of whose tensors only the data counts),
    dataclasses and SimpleNamespaces.
    """
    if isinstance(part, PackedSequence):
        return {"data": part.data}
    if isinstance(part, Mapping):
        return dict(part)
    if isinstance(part, tuple | list):
        return dict(enumerate(part))
    if is_dataclass(part) and not isinstance(part, type):
        return {f.name: getattr(part, f.name) for f in fields(part) if hasattr(part, f.name)}
    return dict(vars(part)) if isinstance(part, SimpleNamespace) else None


def rebuilt(part: Any, items: dict[Any, Any]) -> Any:
    """Return a container of the same class as `part`, with other items in the places of its own.

    Anything else about the object, such as attributes of a dict's subclass, is kept. A mapping that cannot be
    written to becomes a dict.
    """
    kind: Any = type(part)
    if kind is dict or (isinstance(part, Mapping) and not isinstance(part, MutableMapping)):
        return items
    if isinstance(part, PackedSequence):
        return part._replace(data=items["data"])
    if isinstance(part, tuple):
        return kind._make(items.values()) if hasattr(part, "_fields") else kind(items.values())
    new: Any = _copied(part)
    if isinstance(part, list):
        new[:] = items.values()
    elif isinstance(part, Mapping):
        own, old = getattr(new, "__dict__", {}), dict(part)
        for key, item in items.items():
            new[key] = item  # the outputs of transformers refuse `update`
        own.update({name: items[name] for name in own.keys() & items.keys() if own[name] is old[name]})
    else:
        for name, item in items.items():
            object.__setattr__(new, name, item)  # the dataclass may be frozen
    return new


def _copied(part: Any) -> Any:
    try:
        return copy(part)
    except Exception:  # such as a __getattr__ that raises KeyError
        kind: Any = type(part)
        new = kind.__new__(kind)
        vars(new).update(vars(part))
        return new


def parts_in(batch: Any) -> Iterator[Any]:
    """Yield what is in a batch, tensors and everything else, however nested in containers."""
    items = items_of(batch)
    if items is None:
        yield batch
    else:
        for item in items.values():
            yield from parts_in(item)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Return an iterator over the tensors in a batch, however nested."""
    return (part for part in parts_in(batch) if isinstance(part, Tensor))


def map_tensors(function: Callable[[Tensor], Tensor], part: Any) -> Any:
    """Return a batch with a function applied to each of its tensors, however nested; classes are kept."""
    if isinstance(part, Tensor):
        return function(part)
    items = items_of(part)
    if items is None:
        return part
    return rebuilt(part, {key: map_tensors(function, item) for key, item in items.items()})


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors in a batch, however nested, to a device; mappings become dicts.

    Copies from pinned memory to CUDA do not wait (non_blocking); other values stay as they are.
    """
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=device.type == "cuda")
    if type(batch) is tuple:  # the usual batch, on a fast path
        return tuple([to_device(item, device) for item in batch])
    is_nested = isinstance(batch, tuple | list | Mapping) and not is_one(batch)
    if not is_nested and callable(getattr(batch, "to", None)):
        return copy(batch).to(device)  # a class such as a graph, whose `to` may change the data set's own
    items = items_of(batch)
    if items is None:
        return batch
    moved = {key: to_device(item, device) for key, item in items.items()}
    return moved if isinstance(batch, Mapping) else rebuilt(batch, moved)
