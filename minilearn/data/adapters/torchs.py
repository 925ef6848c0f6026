"""The adapters of torch's DataLoader: over a dataset with an index, over a stream, and with a state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)
from torch.utils.data.distributed import DistributedSampler

from ...seeding import kept_rng
from ..dataset_loader import first_of
from ..resumable import spans_of
from ..workers import begin
from .adapter import MEND, Adapter, found, has_state
from .iterables import IterableAdapter, StatefulAdapter
from .open_passes import OpenPasses
from .shards import Shard

# What `resized` has to pass on, besides dataset, sampler and drop_last.
_SETTINGS = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator", "in_order"),
    *("multiprocessing_context", "prefetch_factor", "persistent_workers"),
)


class TorchAdapter(Adapter):
    """Adapt torch's DataLoader over a dataset with an index. Each pass draws its order; none is resumed."""

    loader: DataLoader[Any]

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it is torch's."""
        return isinstance(loader, DataLoader)

    def read(self, start: int = 0) -> Any:
        """Begin a pass."""
        if start:
            raise TypeError(f"{self!r} cannot begin at batch {start}: {self.why_not_resumable()}")
        return _begin_noting(self.loader)

    def end(self, batches: Iterator[Any]) -> None:
        """Let `index` tell again of the pass that this one was nested in."""
        if self.loader in _PASSES:
            _PASSES[self.loader].remove(batches)

    def why_not_resumable(self) -> str:
        """Say what to write instead."""
        is_usual = self.loader.collate_fn in (default_collate, default_convert)
        collate = "" if is_usual else ", collate_fn=loader.collate_fn"  # a subclass's own, such as for graphs
        return (
            "a torch DataLoader draws its order and its workers' seeds again at each pass: write "
            f"DatasetLoader(dataset, bs=64, shuffle=True, num_workers=2{collate}), which takes its other "
            "arguments too"
        )

    def smallest(self) -> int | None:
        """Return the size of the last batch, if torch's own samplers make it."""
        batches: Any = self.loader.batch_sampler
        if batches is None or self._is_stream() or not _is_torchs(batches, BatchSampler):
            return None
        try:
            n = len(batches.sampler)
        except TypeError:  # a sampler without a length
            return None
        bs: int = batches.batch_size
        return bs if batches.drop_last or not n % bs else n % bs

    def _is_stream(self) -> bool:
        return isinstance(self.loader.dataset, IterableDataset)

    def parts(self) -> list[Any]:
        """Return the loader and its samplers, including inner ones; for a stream, its dataset."""
        if self._is_stream():
            return [self.loader, self.loader.dataset]
        batches = getattr(self.loader, "batch_sampler", None)
        parts = [*super().parts(), *found(self.loader, "batch_sampler"), *found(batches, "sampler")]
        return list({id(part): part for part in parts}.values())

    def _sampler(self) -> Any:
        """Return what sets the order of the samples: a sampler, or the user's own batch sampler."""
        batches: Any = self.loader.batch_sampler
        if batches is None:  # batch_size=None: a sample is a batch
            return self.loader.sampler
        return batches.sampler if _is_torchs(batches, BatchSampler) else batches

    def index(self, i: int) -> Tensor | None:
        """Follow a sampler that is a list or has a fixed order; of any other, tell what it gave this pass."""
        if self._is_stream() or self._why_not_steady():
            return None
        sampler, batches = self._sampler(), self.loader.batch_sampler
        if _is_torchs(sampler, SequentialSampler):
            sampler = range(len(sampler))
        elif _is_torchs(sampler, DistributedSampler):  # a pure function of its seed and epoch
            sampler = list(sampler)
        if not isinstance(sampler, Sequence) or isinstance(sampler, str):
            running = _PASSES[self.loader].newest() if self.loader in _PASSES else None
            return None if running is None else _indices(running._index_sampler.given(i))
        if not isinstance(batches, BatchSampler):  # its items are batches, or each sample is one
            return _indices(sampler[i])
        return _indices(sampler[i * batches.batch_size : (i + 1) * batches.batch_size])

    # peek -----------------------------------------------------------------------------------------

    def peek(self, epoch: int | None = None) -> Any:
        """Return two samples, read and collated here, so that no workers start."""
        with kept_rng(*self.generators()):
            return self._peek()

    def _peek(self) -> Any:
        loader: Any = self.loader
        if loader.batch_sampler is None:
            index = next(iter(loader.sampler), None)
            return None if index is None else loader.collate_fn(loader.dataset[index])
        batches: Any = loader.batch_sampler
        if _is_torchs(batches, BatchSampler) and _is_torchs(
            batches.sampler, SequentialSampler, RandomSampler
        ):
            batches = spans_of(len(loader.dataset), batches.batch_size)  # no permutation for two samples
        else:
            # From a copy: a sampler may have its own random numbers. The dataset in it is not copied.
            batches = deepcopy(batches, {id(loader.dataset): loader.dataset})
        return first_of(lambda index: loader.collate_fn([loader.dataset[i] for i in index]), batches)

    # Order ----------------------------------------------------------------------------------------

    def why_no_order(self) -> str:
        """Say what draws the order, or leaves out samples."""
        if self._is_stream():
            is_short = getattr(self.loader.batch_sampler, "drop_last", False)
            why = "has drop_last=True, which may leave out the last samples" if is_short else ""
            return why or self._why_not_steady()
        sampler: Any = self._sampler()
        if _is_torchs(sampler, RandomSampler):
            return "shuffles"
        if not _is_torchs(sampler, SequentialSampler):
            return f"has a sampler, {type(sampler).__name__}"
        batches: Any = self.loader.batch_sampler
        if batches is not None and batches.drop_last and (n := len(sampler) % batches.batch_size):
            return f"has drop_last=True, which leaves out {n} of {len(sampler)} samples"
        return self._why_not_steady()

    def _why_not_steady(self) -> str:
        is_mixed = self.loader.num_workers > 1 and not getattr(self.loader, "in_order", True)
        return "has in_order=False, so its workers' batches come as they are ready" if is_mixed else ""

    # Other loaders --------------------------------------------------------------------------------

    def beside(self) -> Self:
        """Return one of a copy whose workers end with the pass."""
        beside, loader = super().beside(), copy(self.loader)
        # Persistent workers would leave their pass for the new one. The samplers are copied, because they may
        # have their own random numbers; the dataset in them is not. torch does not allow setting these.
        memo = {id(loader.dataset): loader.dataset}
        own = {name: deepcopy(getattr(loader, name), memo) for name in ("sampler", "batch_sampler")}
        vars(loader).update(own, persistent_workers=False)
        beside.loader = loader
        return beside

    def resized(self, bs: int) -> Any:
        """Return a DataLoader with the same settings; what a subclass adds would be lost."""
        loader: Any = self.loader
        batches: Any = loader.batch_sampler
        if type(loader) is not DataLoader or type(batches) is not BatchSampler:
            return super().resized(bs)
        kwargs = {name: getattr(loader, name) for name in _SETTINGS if hasattr(loader, name)}
        if not isinstance(loader.dataset, IterableDataset):
            kwargs["sampler"] = batches.sampler
        return DataLoader(loader.dataset, bs, drop_last=batches.drop_last, **kwargs)

    def shard(self, rank: int, n: int) -> Any:
        """Return the loader if torch's DistributedSampler shards it, or cut its batches by rows."""
        sampler: Any = self._sampler()
        if isinstance(sampler, DistributedSampler):
            _check_distributed(sampler, rank, n)
            return self.loader
        is_fixed = _is_torchs(sampler, SequentialSampler) or isinstance(sampler, Sequence)
        if not is_fixed or self._why_not_steady():
            orders = self.loader.dataset if self._is_stream() else sampler
            raise TypeError(
                f"a DataLoader that shuffles, streams, or has a sampler of its own (here a "
                f"{type(orders).__name__}), may give different batches in each process: write "
                "DatasetLoader(dataset, bs=64, shuffle=True, num_workers=2), or give it torch's "
                "DistributedSampler"
            )
        return Shard(self, rank, n)


class TorchStreamAdapter(IterableAdapter, TorchAdapter):
    """Adapt torch's DataLoader over an IterableDataset."""

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it is torch's, over a stream."""
        return isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)

    def why_not_resumable(self) -> str:
        """Say that its position is not known."""
        return f"an IterableDataset does not tell its position: {MEND}"


class TorchStatefulAdapter(StatefulAdapter, TorchAdapter):
    """Adapt a subclass of torch's DataLoader that knows its position: torchdata's StatefulDataLoader."""

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it is torch's, with state_dict and load_state_dict."""
        return isinstance(loader, DataLoader) and has_state(loader)

    def peek(self, epoch: int | None = None) -> Any:
        """Return two samples; for a stream, the first batch."""
        return (StatefulAdapter if self._is_stream() else TorchAdapter).peek(self, epoch)


class _Noting:
    """A sampler that notes the newest of what it gives in a pass: indices, or lists of them."""

    def __init__(self, sampler: Any, n_kept: int) -> None:
        self.sampler, self.n_given = sampler, 0
        self.newest = deque[Any](maxlen=n_kept)

    def __iter__(self) -> Iterator[Any]:
        self.newest.clear()
        self.n_given = 0
        return self._noted(iter(self.sampler))

    def _noted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.newest.append(item)
            self.n_given += 1
            yield item

    def __len__(self) -> int:
        return len(self.sampler)

    def given(self, i: int) -> Any:
        """Return item i of the pass; None if it was not given yet, or is no longer kept."""
        place = i - self.n_given + len(self.newest)
        return self.newest[place] if 0 <= place < len(self.newest) else None


_PASSES: WeakKeyDictionary[DataLoader[Any], OpenPasses] = WeakKeyDictionary()  # whose samplers note


def _begin_noting(loader: DataLoader[Any]) -> Any:
    """Begin a pass whose sampler notes what it gives, unless the loader has an __iter__ of its own."""
    if type(loader).__iter__ is not DataLoader.__iter__:
        return begin(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    own = getattr(loader, name)
    n_ahead = loader.num_workers * (loader.prefetch_factor or 0)
    vars(loader)[name] = _Noting(own, n_ahead + 2)  # torch does not allow setting it
    try:
        batches: Any = begin(loader)
    finally:
        vars(loader)[name] = own
    if isinstance(getattr(batches, "_index_sampler", None), _Noting):  # which workers that stay keep
        _PASSES.setdefault(loader, OpenPasses()).add(batches)
    return batches


def _indices(index: Any) -> Tensor | None:
    """Return what a sampler gave for a batch, (n,) int64; None if that is no index."""
    try:
        found = torch.as_tensor(list(index) if isinstance(index, Sequence) else index).reshape(-1)
    except (TypeError, ValueError, RuntimeError):  # such as keys of a mapping
        return None
    is_flat = not isinstance(index, Sequence) or len(found) == len(index)
    return found if found.dtype == torch.int64 and is_flat else None


def _is_torchs(part: Any, *kinds: type) -> bool:
    """Whether its class is torch's or torchdata's; what a user's subclass does is not known."""
    return isinstance(part, kinds) and type(part).__module__.split(".")[0] in ("torch", "torchdata")


def _check_distributed(sampler: Any, rank: int, n: int) -> None:
    """Raise ValueError unless a DistributedSampler gives this process its shard, and no sample twice."""
    if (sampler.rank, sampler.num_replicas) != (rank, n):
        raise ValueError(
            f"DistributedSampler(num_replicas={sampler.num_replicas}, rank={sampler.rank}) in process {rank} "
            f"of {n}: expected DistributedSampler(dataset, {n}, {rank})"
        )
    if (n_samples := len(sampler.dataset)) % n and not sampler.drop_last:
        raise ValueError(
            f"a DistributedSampler gives {n - n_samples % n} of {n_samples} samples twice, so that {n} "
            "processes have as many each: expected drop_last=True, or a DatasetLoader or TensorLoader, which "
            "shard each batch exactly"
        )
