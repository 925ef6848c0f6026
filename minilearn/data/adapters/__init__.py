"""One adapter for each kind of loader: it answers what resuming, predicting, sharding and planning ask.

    adapter = adapter_of(loader)
    adapter.n_batches, adapter.peek(), adapter.read(start), adapter.shard(rank, n), adapter.state(), ...

| kind | adapter | a pass is resumed |
|---|---|---|
| a loader with batches(start): ours, and users' own | OursAdapter | at any batch |
| torch's DataLoader over a dataset | TorchAdapter | no |
| ... over an IterableDataset | TorchStreamAdapter | no |
| ... with state_dict and load_state_dict | TorchStatefulAdapter | from its state |
| a list, a class with __getitem__ and __len__ | SequenceAdapter | at any batch |
| an iterable with state_dict and load_state_dict | StatefulAdapter | from its state |
| an iterable | IterableAdapter | no |
| an iterator, such as a generator | StreamAdapter | no, and it cannot be read again |

To support a new kind, write one class: a subclass of the closest adapter, or of `Adapter`, with

- `takes(loader)`: whether it is this kind;
- `read(start)`: an iterator over the batches from number `start` on;
- `peek(epoch)`: a batch, read so that order, state and random numbers stay as they are (`kept_rng`); if that
  takes beginning a pass, derive from IterableAdapter, which keeps the pass for `read`;
- `why_not_resumable()`: "", or a sentence that ends with what to write instead;

and, if the kind needs more, `why_no_order` (for predict), `shard` (for DistributedCB), `resized` (for
BatchSizeCB), `parts` (samplers, for set_epoch and their random numbers), `state` and `moves_on`.

An adapter that becomes part of minilearn goes into `KINDS`, before the kinds that would also take its
loaders, and gets a line in the table of `tests/data/test_adapters.py`, which runs the same tests on every
kind. Your own adapter goes in the place of the loader, `DataLoaders(MyAdapter(train), ...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from .adapter import Adapter, short
from .iterables import IterableAdapter, SequenceAdapter, StatefulAdapter, StreamAdapter
from .ours import OursAdapter
from .torchs import TorchAdapter, TorchStatefulAdapter, TorchStreamAdapter

__all__ = ["KINDS", "Adapter", "adapter_of", "peek"]

KINDS: list[type[Adapter]] = [
    *(OursAdapter, TorchStatefulAdapter, TorchStreamAdapter, TorchAdapter),
    *(StatefulAdapter, SequenceAdapter, StreamAdapter, IterableAdapter),
]


def adapter_of(loader: Any, name: str = "the loader") -> Adapter:
    """Return the adapter of a loader: the first of `KINDS` that takes it; an adapter is returned as it is.

    It is a new one each time: `DataLoaders.adapter_of` returns the kept ones.

    Args:
        name: what to call the loader in a message.

    Raises: TypeError for what does not give batches.
    """
    if isinstance(loader, Adapter):
        return loader
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        kind = type(loader).__name__
        raise TypeError(f"{name} is a Dataset, {kind}: expected batches; write DataLoader({kind}(...), 64)")
    if not isinstance(loader, Tensor | str | bytes | Mapping | type | np.generic | np.ndarray):
        for kind_of in KINDS:
            if kind_of.takes(loader):
                return kind_of(loader)
    end = ")" if "(" in name else ""  # of the call, for a name such as "predict(dl"
    raise TypeError(f"{name}={short(loader)}{end}: expected an iterable of batches, such as a DataLoader")


def peek(loader: Any) -> Any:
    """Return a small batch of `loader`, leaving its order and all random numbers as they are; None if empty.

    A DataLoader's workers are not started: two samples are read and collated here. For an iterable without an
    index, the first batch is read, from a separate iterator.
    """
    return adapter_of(loader).peek()
