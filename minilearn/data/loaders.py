"""DataLoaders, and what can be known and asked of any loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from torch.utils.data.distributed import DistributedSampler

from ..seeding import kept_rng
from .batches import map_tensors, tensors_in
from .datasets import DatasetLoader
from .resumable import ResumableLoader, TensorLoader, share_of


class DataLoaders:
    """Hold the loaders of a task: any iterables of batches (inputs, target).

    Args:
        train, valid, test: each is gone through once an epoch, so it must give the batches anew each
            time. valid=None: there is no validation. Read as attributes or by name:
            dls["train"], dls["eval"] (or "valid"), dls["test"].
        classes: the names of the classes, in the order of the targets, where there are any.
        source: where the data came from, for reports.

    Raises: ValueError without train; TypeError for what is no iterable, or only goes once.
    """

    def __init__(
        self,
        train: Any,
        valid: Any = None,
        test: Any = None,
        classes: Sequence[str] | None = None,
        source: str = "",
    ) -> None:
        if train is None:
            raise ValueError(
                "dls has no train: expected DataLoaders(train, valid), train an iterable of batches"
            )
        self.train = _check_loader("train", train)
        self.valid = None if valid is None else _check_loader("valid", valid)
        self.test = None if test is None else _check_loader("test", test)
        self.classes, self.source = None if classes is None else tuple(classes), source

    def __getitem__(self, name: str) -> Any:
        attribute = "valid" if name == "eval" else name
        if attribute not in ("train", "valid", "test"):
            raise KeyError(f"dls[{name!r}]: expected 'train', 'eval' (or 'valid') or 'test'")
        if (loader := getattr(self, attribute)) is None:
            raise KeyError(f"dls[{name!r}]: these DataLoaders were made without it")
        return loader

    @classmethod
    def of(cls, dls: Any) -> DataLoaders:
        """Return `dls` as DataLoaders, from a mapping with "train" and perhaps "eval" and "test" too."""
        if isinstance(dls, DataLoaders):
            return dls
        if isinstance(dls, Mapping):
            if unknown := dls.keys() - {"train", "eval", "valid", "test"}:
                raise ValueError(
                    f"dls has {sorted(unknown)}: expected the keys 'train', 'eval' (or 'valid'), 'test'"
                )
            if "eval" in dls and "valid" in dls:
                raise ValueError(
                    "dls has both 'eval' and 'valid', two names for the same loader: expected one"
                )
            return cls(dls.get("train"), dls.get("eval", dls.get("valid")), dls.get("test"))
        if all(hasattr(dls, name) for name in ("train", "valid")):
            return cls(dls.train, dls.valid, getattr(dls, "test", None))
        raise TypeError(
            f"dls={_short(dls)}: expected DataLoaders(train, valid), or a dict with 'train' and 'eval'"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"a {type(value).__name__}"


def _check_loader(name: str, loader: Any) -> Any:
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        kind = type(loader).__name__
        raise TypeError(
            f"dls {name} is a Dataset, {kind}: expected batches; write DataLoader({kind}(...), 64)"
        )
    iterable = isinstance(loader, Iterable) or hasattr(loader, "__getitem__")
    if not iterable or isinstance(loader, Tensor | str | bytes | Mapping):
        raise TypeError(f"dls {name}={_short(loader)}: expected an iterable of batches, such as a DataLoader")
    if isinstance(loader, Iterator):
        raise TypeError(
            f"dls {name} is a {type(loader).__name__}, which can be gone through only once: expected an "
            "iterable that starts anew each epoch; make it a list, or a class with __iter__"
        )
    return loader


def check_not_empty(name: str, loader: Any) -> None:
    """Raise ValueError if a loader says that it has no batch."""
    if n_batches(loader) == 0:
        hint = ""
        if getattr(loader, "drop_last", False):
            hint = ": drop_last=True drops the only batch when there are fewer samples than the batch size"
        raise ValueError(f"the {name} loader is empty, it has 0 batches{hint}")


def n_batches(loader: Any) -> int | None:
    """Return the number of batches in an epoch, None where the loader does not know."""
    try:
        return len(loader)
    except TypeError:  # no __len__, or a DataLoader over an IterableDataset without one
        return None


def sum_of(steps: list[int | None]) -> int | None:
    """Return how many steps so many epochs have; None where one's are not known."""
    known = [n for n in steps if n is not None]
    return sum(known) if len(known) == len(steps) else None


def in_order(loader: Any) -> Any:
    """Return a loader that gives the samples in the order of their data.

    Raises: ValueError for a DataLoader that shuffles, or a DatasetLoader with a sampler.
    """
    if isinstance(loader, ResumableLoader) and loader.shuffle:
        loader = copy(loader)
        loader.shuffle = False
    shuffles = isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler)
    if shuffles or (isinstance(loader, DatasetLoader) and loader.sampler is not None):
        how = "shuffles" if shuffles else "has a sampler"
        raise ValueError(
            f"predict: this {type(loader).__name__} {how}, so no one could tell whose predictions these are"
        )
    return loader


class _Head:
    """The first batches of a pass over a loader."""

    def __init__(self, loader: Any, n: int) -> None:
        self.loader, self.n = loader, n

    def __iter__(self) -> Iterator[Any]:
        state = None if hasattr(self.loader, "batches") else deepcopy(state_of(self.loader))
        try:
            yield from islice(iter(self.loader), self.n)
        finally:
            if state is not None:  # it knows where it stands, and has moved on
                self.loader.load_state_dict(state)


def head_of(loader: Any, n: int) -> Any:
    """Return a loader of the first n batches of a pass over a loader, whose own pass may be under way.

    Order, state and workers of the loader stay as they are; for random numbers, see `kept_rng` and
    `generators_of`.
    """
    if isinstance(loader, ResumableLoader | DataLoader):
        loader = copy(loader)  # workers that persist would begin anew in the middle of their pass
    if isinstance(loader, DataLoader):
        loader._iterator = None
        # Its own workers end with the pass. Samplers of its own, for one may have random numbers of its own;
        # the dataset in it is not copied. Torch lets no one set these.
        memo = {id(loader.dataset): loader.dataset}
        own = {name: deepcopy(getattr(loader, name), memo) for name in ("sampler", "batch_sampler")}
        vars(loader).update(own, persistent_workers=False)
    return _Head(loader, n)


class Rows:
    """Give one of n parts of each batch of a loader, by the rows of its tensors."""

    def __init__(self, loader: Any, rank: int, n: int) -> None:
        self.loader, self.rank, self.n = loader, rank, n
        self._sizes = (0, 0)

    def __len__(self) -> int:
        return len(self.loader)

    def sizes(self, i: int) -> tuple[int, int]:
        """Return how many samples the batch that was given last has in this part, and how many in all."""
        return self._sizes

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Give the batches from number `start` on."""
        for batch in batches_from(self.loader, start):
            yield self._part(batch)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def _part(self, batch: Any) -> Any:
        n = next((len(t) for t in tensors_in(batch)), None)
        if n is None:
            raise TypeError(f"a batch without a tensor, {_short(batch)}, cannot be divided over processes")
        first, stop = share_of(n, self.rank, self.n)
        self._sizes = (stop - first, n)
        rows = slice(first, max(stop, first + 1))
        # A tensor of another length has no rows.
        return map_tensors(lambda t: t[rows] if t.ndim and len(t) == n else t, batch)


def part_of(loader: Any, rank: int, n: int) -> Any:
    """Return a loader of part `rank` of n of each batch, for one of n processes.

    A DataLoader with torch's DistributedSampler has its part already, and is returned as it is.

    Raises: TypeError for a loader that may give other batches in each process.
    """
    if isinstance(loader, ResumableLoader):
        return loader.part_of(rank, n)
    if isinstance(loader, _Head):
        return _Head(part_of(loader.loader, rank, n), loader.n)
    if isinstance(loader, DataLoader):
        if isinstance(loader.sampler, DistributedSampler):
            return loader
        if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.sampler, SequentialSampler):
            raise TypeError(
                "a DataLoader that shuffles or streams gives other batches in each process: write "
                "DatasetLoader(dataset, bs=64, shuffle=True, num_workers=2), or give it torch's "
                "DistributedSampler"
            )
    elif not isinstance(loader, Sequence) and not hasattr(loader, "batches"):
        raise TypeError(
            f"a {type(loader).__name__} may give other batches in each process: expected a TensorLoader, a "
            "DatasetLoader, a list of batches, or a loader with batches(start)"
        )
    return Rows(loader, rank, n)


def with_batch_size(loader: Any, bs: int) -> Any:
    """Return a loader like this one, with its order, in batches of `bs`.

    Raises: TypeError for what is no ResumableLoader and no DataLoader that makes batches by a size.
    """
    if isinstance(loader, ResumableLoader):
        loader = copy(loader)
        loader.bs = bs
        return loader
    batches: Any = getattr(loader, "batch_sampler", None)
    is_plain = type(loader) is DataLoader  # what a subclass does besides would be lost
    iterable = is_plain and isinstance(loader.dataset, IterableDataset)
    if not is_plain or type(batches) is not BatchSampler:
        raise TypeError(
            f"the batch size of {_short(loader)} cannot be changed: expected a TensorLoader, a "
            "DatasetLoader, or a DataLoader with batch_size, no subclass and no batch_sampler of one's own"
        )
    names = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator", "in_order"]
    names += ["multiprocessing_context", "prefetch_factor", "persistent_workers"]
    kwargs = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    if iterable:
        return DataLoader(loader.dataset, bs, drop_last=loader.drop_last, **kwargs)
    return DataLoader(loader.dataset, bs, sampler=batches.sampler, drop_last=batches.drop_last, **kwargs)


def why_not_resumable(loader: Any) -> str:
    """Say why a pass over a loader cannot be taken up again in its middle; empty if it can be."""
    if hasattr(loader, "batches") or isinstance(loader, Sequence) or _has_state(loader):
        return ""
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return (
            "a torch DataLoader draws its order and its workers' seeds anew at each pass: write "
            "DatasetLoader(dataset, bs=64, shuffle=True, num_workers=2), which takes its other arguments too"
        )
    kind = "an IterableDataset" if isinstance(loader, DataLoader) else f"a {type(loader).__name__}"
    return (
        f"{kind} does not say where it stands: expected a TensorLoader, a DatasetLoader, a list of "
        "batches, or a loader with batches(start), or with state_dict() and load_state_dict()"
    )


def state_of(loader: Any) -> Any:
    """Return what a loader says of its state, None if it has none."""
    return loader.state_dict() if _has_state(loader) else None


def batches_from(loader: Any, start: int) -> Iterator[Any]:
    """Return an iterator over the batches of a pass from number `start` on.

    A loader with a state of its own, and without `batches`, goes on from where its state was loaded.
    """
    if start == 0 or (_has_state(loader) and not hasattr(loader, "batches")):
        return iter(loader)
    if hasattr(loader, "batches"):
        return loader.batches(start)
    return (loader[i] for i in range(start, len(loader)))


def _has_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def peek(loader: Any) -> Any:
    """Return a small batch as `loader` makes them, leaving its order and all random numbers as they are.

    For what must be known before training, such as the kind of target. A DataLoader's workers are not
    started: two samples are read here and collated. Of an iterable that cannot be indexed, the first
    batch is drawn from an iterator of its own. None if it has none.
    """
    with kept_rng(*generators_of(loader)):
        if isinstance(loader, TensorLoader | DatasetLoader):
            return loader.peek()
        if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
            return _peek_dataset(loader)
        state = deepcopy(state_of(loader))
        batch = next(iter(loader), None)
        if state is not None:  # it knows where it stands, and has moved on
            loader.load_state_dict(state)
        return batch


def _peek_dataset(loader: DataLoader[Any]) -> Any:
    dataset: Any = loader.dataset
    index: Any
    if loader.batch_sampler is None:  # batch_size=None: a sample is a batch
        index = next(iter(loader.sampler), None)
        return None if index is None else loader.collate_fn(dataset[index])
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if type(loader.batch_sampler) is BatchSampler and isinstance(sampler, SequentialSampler | RandomSampler):
        index = range(min(2, loader.batch_size or 2, len(dataset)))  # not a permutation of all, to see two
    else:
        # Of a copy, for a sampler may have random numbers of its own; the dataset in it is not copied.
        index = next(iter(deepcopy(loader.batch_sampler, {id(dataset): dataset})), [])[:2]
    return loader.collate_fn([dataset[i] for i in index]) if len(index) else None


def generators_of(loader: Any) -> list[torch.Generator]:
    """Return the generators that a loader and its sampler own."""
    batches = getattr(loader, "batch_sampler", None)
    parts = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(part, "generator", None) for part in parts]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
