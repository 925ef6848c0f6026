"""The adapters of torch's DataLoader: over a dataset with an index, over a stream, and with a state."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Self

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from ...seeding import kept_rng
from ..dataset_loader import first_of
from ..resumable import spans_of
from .adapter import MEND, Adapter, found, has_state
from .iterables import IterableAdapter, StatefulAdapter
from .shards import Shard

# What with_batch_size has to hand over, besides dataset, sampler and drop_last.
_SETTINGS = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator", "in_order"),
    *("multiprocessing_context", "prefetch_factor", "persistent_workers"),
)


class TorchAdapter(Adapter):
    """torch's DataLoader over a dataset with an index. Each pass draws its order, so none is resumed."""

    loader: DataLoader[Any]

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it is torch's."""
        return isinstance(loader, DataLoader)

    def read(self, start: int = 0) -> Any:
        """Begin a pass."""
        if start:
            raise TypeError(f"{self!r} cannot begin at batch {start}: {self.why_not_resumable()}")
        return iter(self.loader)

    def why_not_resumable(self) -> str:
        """Say what to write instead."""
        return (
            "a torch DataLoader draws its order and its workers' seeds again at each pass: write "
            "DatasetLoader(dataset, bs=64, shuffle=True, num_workers=2), which takes its other arguments too"
        )

    def _is_stream(self) -> bool:
        return isinstance(self.loader.dataset, IterableDataset)

    def parts(self) -> list[Any]:
        """Return the loader and its samplers, inner ones too; of a stream its dataset."""
        if self._is_stream():
            return [self.loader, self.loader.dataset]
        batches = getattr(self.loader, "batch_sampler", None)
        parts = [*super().parts(), *found(self.loader, "batch_sampler"), *found(batches, "sampler")]
        return list({id(part): part for part in parts}.values())

    def _sampler(self) -> Any:
        """Return what says the order of the samples: a sampler, or a batch sampler of the user's own."""
        batches: Any = self.loader.batch_sampler
        if batches is None:  # batch_size=None: a sample is a batch
            return self.loader.sampler
        return batches.sampler if _is_torchs(batches, BatchSampler) else batches

    # peek -----------------------------------------------------------------------------------------

    def peek(self, epoch: int | None = None) -> Any:
        """Return two samples, read and collated here, so that no workers are started."""
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
            batches = spans_of(len(loader.dataset), batches.batch_size)  # no permutation of all, to see two
        else:
            # Of a copy, for a sampler may have random numbers of its own; the dataset in it is not copied.
            batches = deepcopy(batches, {id(loader.dataset): loader.dataset})
        return first_of(lambda index: loader.collate_fn([loader.dataset[i] for i in index]), batches)

    # Order ----------------------------------------------------------------------------------------

    def why_no_order(self) -> str:
        """Say what draws the order, or leaves samples out."""
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
        """Return one of a copy, whose workers end with the pass."""
        beside, loader = super().beside(), copy(self.loader)
        # Workers that persist would leave their pass for the new one. Samplers of its own, because one may
        # have random numbers of its own; the dataset in it is not copied. Torch lets no one set these.
        memo = {id(loader.dataset): loader.dataset}
        own = {name: deepcopy(getattr(loader, name), memo) for name in ("sampler", "batch_sampler")}
        vars(loader).update(own, persistent_workers=False)
        beside.loader = loader
        return beside

    def resized(self, bs: int) -> Any:
        """Return a DataLoader with the same settings; what a subclass does besides would be lost."""
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
                f"{type(orders).__name__}), may give other batches in each process: write "
                "DatasetLoader(dataset, bs=64, shuffle=True, num_workers=2), or give it torch's "
                "DistributedSampler"
            )
        return Shard(self, rank, n)


class TorchStreamAdapter(IterableAdapter, TorchAdapter):
    """torch's DataLoader over an IterableDataset."""

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it is torch's, over a stream."""
        return isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)

    def why_not_resumable(self) -> str:
        """Say that nothing tells where it stands."""
        return f"an IterableDataset does not say where it stands: {MEND}"


class TorchStatefulAdapter(StatefulAdapter, TorchAdapter):
    """A subclass of torch's DataLoader that knows where it stands, such as torchdata's StatefulDataLoader."""

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it is torch's, and gives its state and takes it back."""
        return isinstance(loader, DataLoader) and has_state(loader)

    def peek(self, epoch: int | None = None) -> Any:
        """Return two samples; of a stream the first batch."""
        return (StatefulAdapter if self._is_stream() else TorchAdapter).peek(self, epoch)


def _is_torchs(part: Any, *kinds: type) -> bool:
    """Whether it is of a class of torch or torchdata; what a subclass of another's does is not known."""
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
            "divide each batch exactly"
        )
