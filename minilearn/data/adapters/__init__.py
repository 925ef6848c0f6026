"""One adapter for each kind of loader: what resuming, predicting, sharding and planning ask of a loader.

    adapter = adapter_of(loader)
    adapter.n_batches, adapter.peek(), adapter.read(start), adapter.shard(rank, n), adapter.state(), ...

| kind | adapter | a pass is resumed |
|---|---|---|
| a loader with batches(start): ours, and users' own | OursAdapter | at any batch |
| torch's DataLoader over a dataset | TorchAdapter | not |
| ... over an IterableDataset | TorchStreamAdapter | not |
| ... with state_dict and load_state_dict | TorchStatefulAdapter | from its state |
| a list, a class with __getitem__ and __len__ | SequenceAdapter | at any batch |
| an iterable with state_dict and load_state_dict | StatefulAdapter | from its state |
| an iterable | IterableAdapter | not |
| an iterator, such as a generator | StreamAdapter | not, nor begun again |

To support a new kind, write one class: a subclass of the adapter that is nearest, or of `Adapter`, with

- `takes(loader)`: whether it is this kind;
- `read(start)`: an iterator over the batches from number `start` on;
- `peek(epoch)`: a batch, so that order, state and random numbers stay as they are (`kept_rng`); where a batch
  can be seen only by beginning a pass, derive from IterableAdapter, which keeps that pass for `read`;
- `why_not_resumable()`: "", or a sentence that ends with what to write instead;

and, where the kind has more to say, `why_no_order` (for predict), `shard` (for DistributedCB), `resized` (for
BatchSizeCB), `parts` (samplers, for set_epoch and their random numbers), `state` and `moves_on`.

One that is a part of minilearn goes into `KINDS`, before the kinds that would take its loaders too, and gets
a line in the table of `tests/data/test_adapters.py`, which puts every kind to the same tests. One of your own
is given in the loader's place, `DataLoaders(MyAdapter(train), ...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

    A new one each time: `DataLoaders.adapter_of` has those that are kept.

    Args:
        name: what to call it in a message.

    Raises: TypeError for what gives no batches.
    """
    if isinstance(loader, Adapter):
        return loader
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        kind = type(loader).__name__
        raise TypeError(f"{name} is a Dataset, {kind}: expected batches; write DataLoader({kind}(...), 64)")
    if not isinstance(loader, Tensor | str | bytes | Mapping):
        for kind_of in KINDS:
            if kind_of.takes(loader):
                return kind_of(loader)
    raise TypeError(f"{name}={short(loader)}: expected an iterable of batches, such as a DataLoader")


def peek(loader: Any) -> Any:
    """Return a small batch as `loader` makes them, leaving its order and all random numbers as they are.

    A DataLoader's workers are not started: two samples are read here and collated. Of an iterable without an
    index the first batch is read, from an iterator of its own. None if it has none.
    """
    return adapter_of(loader).peek()
