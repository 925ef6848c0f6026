"""DatasetLoader: a dataset through torch's DataLoader, with augmentation that can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import nullcontext
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from ..arguments import brief, check_flags, counted, function, most_workers, shown, unless_none, whole_number
from ..seeding import generators_in, kept_rng, seed_cpu, seed_of
from .plans import PlanFunction, Planned
from .resumable import ResumableLoader, spans_of
from .workers import begin


class _Usual(int):
    """A number that nobody gave."""


_USUAL_BS = _Usual(64)


class DatasetLoader(ResumableLoader):
    """Give batches of a dataset through torch's DataLoader, with augmentation that can be resumed.

    The generators of python, numpy and torch are seeded with (seed, epoch, index) before each sample, and
    with (seed, epoch, index of its first sample) before a batch is collated. So random augmentation draws the
    same numbers with any number of workers, and in a run that resumes in the middle of an epoch; the
    generators of the main process stay as they were.

    The dataset must meet one condition: `dataset[i]` depends only on i and on random numbers, not on which
    samples were read before. Generators that the dataset or its transforms keep (numpy's Generator and
    RandomState, random.Random, torch's Generator; found in their attributes, and in closures, defaults and
    globals of functions) are seeded too. `learn.verify_resume()` shows whether the condition holds.

    Args:
        dataset: with __getitem__ and __len__.
        bs, shuffle, drop_last, seed: see ResumableLoader. Without a seed, loaders for validation and testing
            draw other random numbers than the one for training: DataLoaders gives each its own.
        sampler: an iterable of indices with a length, instead of shuffle; it may use the generators of
            python, numpy and torch, or its own. Because it may give a sample twice, augmentation then also
            depends on the sample's place in the epoch. A checkpoint has the order of the running epoch, and
            the sampler's state: its state_dict, or the numbers, text, tensors and arrays among its attributes
            that have changed.
        plan: (epoch, rng) -> the batches of an epoch, a list of lists of indices of any sizes, instead of bs,
            shuffle, drop_last and sampler; `by_length`, `mix` and `balanced` make some. It has to give the
            same each time it is asked for an epoch. rng is a numpy Generator that is seeded with (seed,
            epoch), as are the generators of python, numpy and torch. A fit asks for each of its epochs before
            it begins, to count the steps, unless the plan has an attribute `n_batches`, for all epochs.
            Augmentation depends on the sample's place in the epoch, as with a sampler.
        num_workers: processes that read the samples; 0 reads in this one.
        **kwargs: those of torch's DataLoader: collate_fn, pin_memory, persistent_workers, ...

    Raises: TypeError for an IterableDataset, which has no index to start from; TypeError or ValueError for a
        plan whose first epoch has no batch, a batch that is no list of indices or is empty, an index that the
        dataset lacks, and for a plan that gives other batches when it is asked again.
    Differs: from torch's DataLoader, whose order and worker seeds are drawn from the global generator.
    """

    def __init__(
        self,
        dataset: Any,
        bs: int = _USUAL_BS,
        shuffle: bool = False,
        drop_last: bool = False,
        sampler: Iterable[int] | None = None,
        seed: int | None = None,
        num_workers: int = 0,
        plan: PlanFunction | None = None,
        **kwargs: Any,
    ) -> None:
        is_known = sampler is not None or plan is not None or hasattr(dataset, "__len__")
        is_indexed = hasattr(dataset, "__getitem__") and is_known
        if isinstance(dataset, IterableDataset | type) or not is_indexed:
            raise TypeError(
                f"DatasetLoader({type(dataset).__name__}): expected one with __getitem__ and __len__, whose "
                "samples can be read from any index on; a stream needs a loader with state_dict and "
                "load_state_dict"
            )
        for name, instead in (("batch_size", "bs"), ("batch_sampler", "sampler"), ("generator", "seed")):
            if name in kwargs:
                raise TypeError(f"DatasetLoader({name}=...): give {instead}=, because the order is made here")
        is_no_order = isinstance(sampler, str) or not isinstance(sampler, Iterable)
        if sampler is not None and (shuffle or is_no_order or not isinstance(sampler, Sized)):
            raise ValueError(
                f"sampler={shown(sampler)}: expected indices with a length, and shuffle=False beside it"
            )
        num_workers = whole_number("num_workers", num_workers, 0, most_workers(), of=" of processes")
        if hasattr(sampler, "set_epoch"):
            _check_steady(sampler)
        if plan is not None:
            beside = {"bs": None if bs is _USUAL_BS else bs, "shuffle": shuffle, "drop_last": drop_last}
            _check_plan(plan, dataset, beside | {"sampler": sampler})
        n_samples = len(dataset if sampler is None else sampler) if plan is None or _has_len(dataset) else 0
        super().__init__(n_samples, bs, shuffle, drop_last, seed)
        self._is_free = seed is None  # to draw other random numbers for validation
        self.plan = plan
        self._planned: dict[tuple[int, int], Planned] = {}  # by seed and epoch: the last two
        self._lengths: dict[tuple[int, int], int] = {}
        self.dataset, self.sampler, self.num_workers = dataset, sampler, num_workers
        self.collate = unless_none(function, "collate_fn", kwargs.pop("collate_fn", None)) or default_collate
        check_flags("DatasetLoader", DataLoader, kwargs)
        self._kwargs = kwargs
        self._keys = _Keys()
        self._drawn: tuple[int, Tensor] | None = None  # epoch, and the order that the sampler gave for it
        self._is_loaded = False  # whether that order is of the run to be resumed, and not read yet
        self._of_sampler = {name: _digest(value) for name, value in _attributes_of(sampler).items()}
        self._loader: DataLoader[Any] | None = self._make()
        if plan is not None:
            self._check_pure()

    def _facts(self) -> dict[str, Any]:
        n = f" of {len(self.dataset):,}" if _has_len(self.dataset) else ""
        facts: dict[str, Any] = {"": f"{type(self.dataset).__name__}{n}"}
        if self.plan is not None:
            facts["plan"] = brief(self.plan) if hasattr(self.plan, "__name__") else shown(self.plan)
        else:
            facts |= self._more_facts()
        if self.sampler is not None:
            facts["sampler"] = type(self.sampler).__name__
        return facts | ({"num_workers": self.num_workers} if self.num_workers else {})

    def serve(self, role: str) -> None:
        """Draw the random numbers of a role, if no seed was given; the first one stays.

        A data set that draws its samples would otherwise validate on those that it was trained on.

        Args:
            role: "train", "valid", "valid/NAME" of a further validation set, or "test".
        """
        if self._is_free and role != "train":
            self.seed = seed_of(self.seed, *role.encode())
        self._is_free = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loader": None, "_keys": _Keys()}  # running workers are not copied

    def _make(self) -> DataLoader[Any]:
        return DataLoader(
            _Seeded(self.dataset, self.collate),
            batch_sampler=self._keys,  # type: ignore[arg-type]  # its keys take the place of lists of indices
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # torch seeds its workers from it, not from the global one
            **self._kwargs,
        )

    def order(self) -> Tensor:
        """Return the indices of this epoch's samples, (N,) int64 on the CPU."""
        if self.plan is not None:
            return self._planned_for(self.epoch).flat
        if self.sampler is None:
            return super().order()
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(self.epoch)
        seed = seed_of(self.seed, self.epoch)
        with kept_rng(devices=False):
            _seed_all(seed, list(generators_in(self.sampler, set())))
            order = torch.tensor(list(self.sampler))
        if len(order) != self.n_samples:
            raise ValueError(
                f"sampler={type(self.sampler).__name__} gives {len(order)} indices in epoch {self.epoch}, it "
                f"had {self.n_samples} when the DatasetLoader was made: expected as many in each epoch"
            )
        return order

    # A plan --------------------------------------------------------------------------------------

    def _planned_for(self, epoch: int) -> Planned:
        """Return the batches of an epoch, by the plan."""
        key = (self.seed, epoch)
        if key not in self._planned:
            planned = self._ask(epoch)
            while len(self._planned) > 1:
                self._planned.pop(next(iter(self._planned)))
            self._planned[key], self._lengths[key] = planned, len(planned)
        return self._planned[key]

    def _ask(self, epoch: int) -> Planned:
        assert self.plan is not None
        seed, where = seed_of(self.seed, epoch), f"plan={shown(self.plan)} for epoch {epoch}"
        with kept_rng(devices=False):
            _seed_all(seed, list(generators_in(self.plan, set())))
            batches = self.plan(epoch, np.random.default_rng(seed))
            batches = list(batches) if isinstance(batches, Iterator) else batches
        return Planned(batches, len(self.dataset) if _has_len(self.dataset) else None, where)

    def _check_pure(self) -> None:
        first = self._planned_for(0)
        self.bs = max(stop - start for start, stop in map(first.span, range(len(first))))
        if self._ask(0).digest != first.digest:
            raise ValueError(
                f"plan={shown(self.plan)} gives other batches when it is asked for epoch 0 again: expected "
                "a function of only (epoch, rng); does it keep a state, or draw from a generator of its own?"
            )

    def length_of(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        if self.plan is None:
            return super().__len__()
        n = getattr(self.plan, "n_batches", None)
        if n is None:
            n = self._lengths.get((self.seed, epoch))
        return len(self._planned_for(epoch)) if n is None else int(n)

    def __len__(self) -> int:
        return self.length_of(self.epoch)

    def whole_span(self, i: int) -> tuple[int, int]:
        """Return where batch i, with all its shards, begins and ends in the order."""
        return super().whole_span(i) if self.plan is None else self._planned_for(self.epoch).span(i)

    def _check_planned(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless the plan gives the batches of the run to be resumed."""
        if (self.plan is None) != ("planned" not in state):
            has = ("no plan", "a plan")
            here = has[self.plan is not None]
            raise ValueError(f"the loader has {here}, the run to be resumed {has[self.plan is None]}")
        if self.plan is None:
            return
        epoch, digest = state["planned"]
        asked = copy(self)
        asked.seed = state["seed"]
        if asked._planned_for(epoch).digest != digest:
            raise ValueError(
                f"plan={shown(self.plan)} gives other batches for epoch {epoch} than in the run to be "
                "resumed: expected the same plan, of the same data"
            )

    # State ---------------------------------------------------------------------------------------

    _moving = ("sampler", "drawn", "planned")

    def _order_from(self, start: int) -> Tensor:
        """Return the order of a pass from batch `start` on; one that began before it keeps its order."""
        if self.sampler is None:
            return self.order()
        is_known = self._drawn is not None and self._drawn[0] == self.epoch and (start or self._is_loaded)
        self._is_loaded = False
        if self._drawn is None or not is_known:
            self._drawn = self.epoch, self.order()
        return self._drawn[1]

    def state_dict(self) -> dict[str, Any]:
        """Return what the order depends on; with a sampler, its state and the order of this epoch."""
        state = super().state_dict()
        if self.plan is not None:
            planned = (self.epoch, self._planned_for(self.epoch).digest)
            return {"seed": self.seed, "n_samples": self.n_samples, "planned": planned}
        if self.sampler is None:
            return state
        sampler: Any = self.sampler
        if _has_state(sampler):
            state["sampler"] = sampler.state_dict()
        else:
            now = _attributes_of(sampler)
            state["sampler"] = {k: v for k, v in now.items() if _digest(v) != self._of_sampler.get(k)}
        if self._drawn is not None:
            state["drawn"] = self._drawn
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the seed of the run to be resumed, and with a sampler its state and order.

        Raises: ValueError, with both values, if the number of samples, the batch size, the batches of a plan
            or the like differs.
        """
        self._check_planned(state)
        super().load_state_dict(state)
        if self.plan is not None:
            self.set_epoch(state["planned"][0])  # no pass may follow that would choose it
        if self.sampler is None:
            return
        self._drawn = state.get("drawn")
        self._is_loaded = self._drawn is not None
        sampler: Any = self.sampler
        found = state.get("sampler", {})
        if _has_state(sampler):
            if "sampler" in state:
                sampler.load_state_dict(found)
            return
        for name, value in found.items():
            live = vars(sampler).get(name)
            if isinstance(live, Tensor) and live.shape == value.shape and live.dtype == value.dtype:
                live.copy_(value)  # which a callback may hold
            elif isinstance(live, np.ndarray) and live.shape == value.shape and live.dtype == value.dtype:
                live[...] = value
            else:
                vars(sampler)[name] = value

    def index_of(self, i: int) -> Tensor | None:
        """Return which samples are in (this shard of) batch i of this epoch, (n,) int64 on the CPU.

        With a sampler, these are known only of an epoch whose pass has begun; None before that.
        """
        if self.sampler is None:
            return super().index_of(i)
        if self._drawn is None or self._drawn[0] != self.epoch:
            return None
        first, stop = self.span(i)
        return self._drawn[1][first:stop]

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Give the batches of this epoch from number `start` on, without reading those before it."""
        start = whole_number("start", start, 0)
        order = self._order_from(start).tolist()
        spans = [self.span(i) for i in range(start, len(self))]
        self._keys.keys = [
            (self.seed, self.epoch, order[first:stop], self._place(first)) for first, stop in spans
        ]
        self._loader = self._loader or self._make()
        return begin(self._loader)

    def peek(self) -> Any:
        """Return a batch of the first two samples, read in this process; None if there are none.

        If the collate function leaves these out, by returning None, it is the first batch that it keeps.
        """
        is_usual = self.sampler is None and self.plan is None
        order = range(self.n_samples) if is_usual else self.order().tolist()
        spans = spans_of(self.n_samples, self.bs)
        if self.plan is not None:
            planned = self._planned_for(self.epoch)
            spans = (range(*planned.span(i)) for i in range(len(planned)))
        read = _Seeded(self.dataset, self.collate).__getitems__

        def collated(places: Sequence[int]) -> Any:
            return read((self.seed, self.epoch, [order[i] for i in places], self._place(places[0])))

        return first_of(collated, spans)

    def _place(self, first: int) -> int | None:
        return None if self.sampler is None and self.plan is None else first


def _has_len(dataset: Any) -> bool:
    try:
        len(dataset)
    except (TypeError, NotImplementedError):
        return False
    return True


def _check_plan(plan: Any, dataset: Any, beside: dict[str, Any]) -> None:
    """Raise for what is no plan, one for another data set, and for arguments that a plan replaces."""
    if not callable(plan):
        raise TypeError(
            f"plan={shown(plan)}: expected a function of (epoch, rng) that returns lists of indices, one for "
            "each batch"
        )
    for name, value in beside.items():
        if value is not None and value is not False:
            raise ValueError(
                f"{name}={shown(value)} beside plan=: expected no {name}, because the plan makes the batches"
            )
    n = getattr(plan, "n_samples", None)
    if n is not None and _has_len(dataset) and n != len(dataset):
        raise ValueError(
            f"plan={shown(plan)} is for {counted(n, 'sample')}, and the data set has {len(dataset)}"
        )


def _has_state(sampler: Any) -> bool:
    return callable(getattr(sampler, "state_dict", None)) and hasattr(sampler, "load_state_dict")


_NUMBERS = (int, float, str, bool, type(None))


def _attributes_of(sampler: Any) -> dict[str, Any]:
    """Return the numbers, text, tensors, arrays and lists of numbers among an object's attributes."""
    found = getattr(sampler, "__dict__", {})
    kept = (*_NUMBERS, Tensor, np.ndarray)
    return {name: value for name, value in found.items() if isinstance(value, kept) or _is_numbers(value)}


def _is_numbers(value: Any) -> bool:
    return type(value) in (list, tuple) and all(type(item) in _NUMBERS for item in value)


def _digest(value: Any) -> bytes:
    data = value.numpy() if isinstance(value, Tensor) else value
    text = repr(data).encode() if not isinstance(data, np.ndarray) else data.tobytes()
    return hashlib.blake2b(text, digest_size=16).digest()


# seed, epoch, indices of a batch, and the place in the epoch of its first, where samples may come twice
_Key = tuple[int, int, list[int], int | None]


class _Keys:
    """Serve as torch's batch_sampler: the keys of the batches to come."""

    def __init__(self) -> None:
        self.keys: list[_Key] = []

    def __iter__(self) -> Iterator[_Key]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def first_of(collated: Callable[[Sequence[Any]], Any], batches: Iterable[Sequence[Any]]) -> Any:
    """Return the first batch that is not None, of two samples if possible; None if there is none."""
    for index in batches:
        for part in (index[:2], index if len(index) > 2 else ()):
            if len(part) and (batch := collated(part)) is not None:
                return batch
    return None


def _check_steady(sampler: Any) -> None:
    """Raise ValueError for a sampler whose length changes from epoch to epoch."""
    lengths = []
    for epoch in range(3):
        told = copy(sampler)
        told.set_epoch(epoch)
        lengths.append(len(told))
    if len(set(lengths)) > 1:
        raise ValueError(
            f"sampler={type(sampler).__name__} has {lengths} indices in epochs 0, 1 and 2: expected as many "
            "in each"
        )


def _as_it_is(batch: Any) -> Any:
    return batch


class _Seeded(Dataset[Any]):
    """Read a batch of a dataset, with all generators seeded for each sample."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitems__(self, key: _Key) -> Any:
        seed, epoch, indices, first = key
        in_main = get_worker_info() is None
        own = list(generators_in([self.dataset, self.collate], set()))  # a worker finds its own copies
        what = "collate_fn"
        try:
            with kept_rng(devices=False) if in_main else nullcontext():
                samples = []
                for i, index in enumerate(indices):
                    place, what = () if first is None else (first + i,), f"sample {index}"
                    _seed_all(seed_of(seed, epoch, index, *place), own)
                    samples.append(self.dataset[index])
                what = "collate_fn"
                _seed_all(seed_of(seed, epoch, *indices[:1], -1), own)
                return self.collate(samples)
        except StopIteration as error:  # torch would take it for the end of the epoch
            name = type(self.dataset).__name__
            raise RuntimeError(f"{what} of a {name} raised StopIteration: did a next(...) fail?") from error


def _seed_all(seed: int, own: list[Any]) -> None:
    """Seed the global generators, and each other one differently, so that no two draw the same numbers."""
    seed_cpu(seed)
    for i, generator in enumerate(own):
        part = seed_of(seed, i)
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(part).state
        elif isinstance(generator, torch.Generator):
            generator.manual_seed(part)
        else:
            generator.seed(part)
