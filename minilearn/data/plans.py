"""Plans: which samples each batch has, for batches by length, mixes of data sets, balanced classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from ..arguments import counted, flag, number, shown, unless_none, whole_number

PlanFunction = Callable[[int, np.random.Generator], Iterable[Sequence[int]]]


class Planned:
    """Hold the batches that a plan gives for an epoch.

    Args:
        batches: lists of indices, or arrays or tensors of one dimension, of any sizes.
        n_samples: in the data set. None: not known.
        where: what to call the plan and the epoch in a message.

    Raises: TypeError or ValueError, with the value, for anything but one or more batches of valid indices.
    """

    def __init__(self, batches: Any, n_samples: int | None, where: str) -> None:
        expected = "expected a list of batches, each a list of indices"
        if isinstance(batches, str | bytes | Mapping) or not isinstance(batches, Iterable):
            raise TypeError(f"{where} gave {shown(batches)}: {expected}")
        found = [_indices(batch, f"{where}: batch {i}") for i, batch in enumerate(batches)]
        if not found:
            raise ValueError(f"{where} gave no batch: {expected}")
        flat = np.concatenate(found)
        self.ends = np.cumsum([0, *map(len, found)]).tolist()
        self.flat = torch.from_numpy(flat)
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or (n_samples is not None and high >= n_samples):
            odd = low if low < 0 else high
            i = next(i for i, batch in enumerate(found) if odd in batch)
            limit = "" if n_samples is None else f" < {n_samples}, the samples of the data set"
            raise ValueError(f"{where}: batch {i} has index {odd}: expected 0 <= index{limit}")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def span(self, i: int) -> tuple[int, int]:
        """Return where batch i begins and ends in `flat`."""
        return self.ends[i], self.ends[i + 1]

    @cached_property
    def digest(self) -> str:
        """A digest of all batches."""
        data = self.flat.numpy().tobytes() + repr(self.ends).encode()
        return hashlib.blake2b(data, digest_size=8).hexdigest()


def _indices(batch: Any, where: str) -> np.ndarray:
    """Return the indices of a batch, int64. Raises: TypeError or ValueError."""
    if isinstance(batch, Tensor):
        batch = batch.numpy(force=True)
    is_listed = isinstance(batch, Sequence | np.ndarray) and not isinstance(batch, str | bytes)
    if is_listed and not len(batch):
        raise ValueError(f"{where} is empty: expected one index or more")
    found = np.asarray(batch) if is_listed and not _is_ragged(batch) else None
    if found is None or found.ndim != 1 or found.dtype.kind not in "iu":
        raise TypeError(f"{where} is {shown(batch)}: expected a list of indices, whole numbers")
    return found.astype(np.int64)


def _is_ragged(batch: Any) -> bool:
    return not isinstance(batch, np.ndarray | range) and any(isinstance(item, Sequence) for item in batch)


def numbers_of(name: str, values: Any) -> np.ndarray:
    """Return a list, tensor or array of one dimension as an array. Raises: TypeError; ValueError if empty."""
    if isinstance(values, Tensor):
        values = values.numpy(force=True)
    is_listed = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str | bytes)
    found = np.asarray(values) if is_listed and not _is_ragged_of_numbers(values) else np.empty((0, 0))
    if found.ndim != 1 or found.dtype.kind not in "iufbUS":
        raise TypeError(f"{name}={shown(values)}: expected one value for each sample, in a list or an array")
    if not len(found):
        raise ValueError(f"{name}={shown(values)}: expected one value or more")
    return found


def _is_ragged_of_numbers(values: Any) -> bool:
    return not isinstance(values, np.ndarray) and any(isinstance(v, list | tuple) for v in values)


# By length ----------------------------------------------------------------------------------------

_STEP = 1.1  # the longest sample of a bucket has at most this times the length of its shortest


def by_length(lengths: Any, tokens: int, max_bs: int | None = None, shuffle: bool = True) -> ByLength:
    """Return a plan of batches of samples of similar length, each within a budget of tokens.

        DatasetLoader(ds, plan=by_length([len(ids) for ids in ds], tokens=8192), collate_fn=pad)

    A padded batch has at most `tokens` tokens: its number of samples times the length of its longest one.
    Each epoch has every sample once, and the same number of batches. Samples of nearly the same length
    (within 10%) are shuffled, and so is the order of the batches.

    Args:
        lengths: of each sample, whole numbers >= 0, in the order of the data set.
        tokens: the most in a padded batch, >= the longest sample.
        max_bs: the most samples in a batch. None: no limit.
        shuffle: False: shorter samples first, the same in each epoch.

    Raises: TypeError, or ValueError for a sample longer than `tokens`, and for wrong numbers.
    """
    return ByLength(lengths, tokens, max_bs, shuffle)


class ByLength:
    """A plan of batches of similar length; see `by_length`."""

    def __init__(self, lengths: Any, tokens: int, max_bs: int | None = None, shuffle: bool = True) -> None:
        found = numbers_of("by_length(lengths", lengths)
        if found.dtype.kind not in "iu":
            raise TypeError(
                f"by_length(lengths={shown(lengths)}): expected whole numbers, one for each sample"
            )
        self.tokens = whole_number("by_length(tokens", tokens)
        self.max_bs = unless_none(whole_number, "by_length(max_bs", max_bs)
        self.shuffle = flag("by_length(shuffle", shuffle)
        self.lengths = found.astype(np.int64)
        for i, what, limit in (
            (int(self.lengths.argmax()), f"> tokens={tokens}", self.lengths.max() > tokens),
            (int(self.lengths.argmin()), "< 0", self.lengths.min() < 0),
        ):
            if limit:
                raise ValueError(
                    f"by_length: sample {i} has length {self.lengths[i]} {what}: expected 0 <= length <= "
                    "tokens; truncate the sample, or give more tokens"
                )
        self.n_samples = len(found)
        self._order = np.argsort(self.lengths, kind="stable")
        self._buckets = self._cut(self.lengths[self._order])
        self.n_batches = sum(1 for _ in self._sizes())

    def __repr__(self) -> str:
        return f"by_length({counted(self.n_samples, 'sample')}, tokens={self.tokens})"

    def _cut(self, ordered: np.ndarray) -> list[tuple[int, int, int]]:
        """Return the buckets: where each begins and ends in the order by length, and its batch size."""
        buckets, first = list[tuple[int, int, int]](), 0
        while first < len(ordered):
            stop = int(np.searchsorted(ordered, max(int(ordered[first]), 1) * _STEP, side="right"))
            bs = self.tokens // max(int(ordered[stop - 1]), 1)
            buckets.append((first, stop, min(bs, self.max_bs or bs)))
            first = stop
        return buckets

    def _sizes(self) -> Iterable[tuple[int, int]]:
        """Give where each batch begins and ends; what does not fill one goes to the next, longer bucket."""
        first = 0
        for _, stop, bs in self._buckets:
            while stop - first >= bs:
                yield first, first + bs
                first += bs
        if first < self.n_samples:
            yield first, self.n_samples

    def __call__(self, epoch: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the batches of an epoch."""
        order = self._order
        if self.shuffle:
            order = order.copy()
            for first, stop, _ in self._buckets:
                rng.shuffle(order[first:stop])
        batches = [order[first:stop] for first, stop in self._sizes()]
        if self.shuffle:
            rng.shuffle(batches)
        return batches


# Shares -------------------------------------------------------------------------------------------


class Mix(NamedTuple):
    """The data sets of a mix as one, and the plan that draws from it."""

    dataset: Any
    plan: Shares


def mix(
    parts: Sequence[tuple[Any, float]], bs: int = 64, n_batches: int | None = None, shuffle: bool = True
) -> Mix:
    """Return several data sets as one, and a plan that draws from each by its weight.

        ds, plan = mix([(web, 3), (books, 1)], bs=64)
        DatasetLoader(ds, plan=plan)

    Each epoch has exactly (to a sample) this share of samples of each data set, in random places. A data set
    that has fewer samples is repeated, all its samples once before any of them again; of a larger one, each
    epoch has others.

    Args:
        parts: pairs of a data set, with __getitem__ and __len__, and its weight, > 0.
        bs: samples in a batch.
        n_batches: in an epoch. None: as many as hold all samples of all data sets once.
        shuffle: False: each data set in its order, from its start in each epoch.

    Returns: (dataset, plan); the dataset is a torch ConcatDataset.
    Raises: TypeError, or ValueError for wrong weights, and for an empty data set.
    """
    if isinstance(parts, str | Mapping) or not isinstance(parts, Sequence) or not parts:
        raise TypeError(f"mix(parts={shown(parts)}): expected [(dataset, weight), ...]")
    for part in parts:
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise TypeError(f"mix has {shown(part)}: expected (dataset, weight)")
        if not (hasattr(part[0], "__getitem__") and hasattr(part[0], "__len__")):
            raise TypeError(f"mix has {shown(part[0])}: expected a data set with __getitem__ and __len__")
    datasets = [dataset for dataset, _ in parts]
    weights = [number(f"mix(weight of part {i}", weight, above=0) for i, (_, weight) in enumerate(parts)]
    sizes = [len(dataset) for dataset in datasets]
    if 0 in sizes:
        raise ValueError(f"mix: part {sizes.index(0)} has no samples: expected one or more")
    ends = np.cumsum([0, *sizes])
    groups = [np.arange(first, stop) for first, stop in pairwise(ends.tolist())]
    return Mix(ConcatDataset(datasets), Shares(groups, weights, "mix", bs, n_batches, shuffle))


def balanced(targets: Any, bs: int = 64, n_batches: int | None = None) -> Shares:
    """Return a plan that has as many samples of each class.

        DatasetLoader(ds, plan=balanced(ds.targets, bs=64))

    Each epoch has the same number (to a sample) of each class, in random places. Samples of rare classes are
    repeated, all of a class once before any of them again.

    Args:
        targets: the class of each sample, numbers or text, in the order of the data set.
        bs: samples in a batch.
        n_batches: in an epoch. None: as many as hold all samples once.

    Raises: TypeError or ValueError for targets that are not one class for each sample.
    """
    found = numbers_of("balanced(targets", targets)
    if found.dtype.kind == "f":
        raise TypeError(f"balanced(targets={shown(targets)}): expected classes, whole numbers or text")
    _, classes, counts = np.unique(found, return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    return Shares(groups, [1.0] * len(groups), "balanced", bs, n_batches)


class Shares:
    """A plan that draws from groups of samples by their weights; see `mix` and `balanced`."""

    def __init__(
        self,
        groups: list[np.ndarray],
        weights: list[float],
        name: str,
        bs: int = 64,
        n_batches: int | None = None,
        shuffle: bool = True,
    ) -> None:
        self.groups, self.weights, self.name = groups, np.array(weights, dtype=np.float64), name
        self.weights /= self.weights.sum()
        self.bs = whole_number(f"{name}(bs", bs)
        self.n_samples = sum(map(len, groups))
        self.shuffle = flag(f"{name}(shuffle", shuffle)
        n_batches = unless_none(whole_number, f"{name}(n_batches", n_batches)
        self.n_batches = -(-self.n_samples // self.bs) if n_batches is None else n_batches
        self._n = self.n_samples if n_batches is None else n_batches * self.bs
        if 0 in (counts := self.counts()):
            raise ValueError(
                f"{name}: an epoch of {counted(self._n, 'sample')} has none of part {counts.index(0)} of "
                f"{len(groups)}, because its share is too small: expected more batches, or a larger weight"
            )

    def __repr__(self) -> str:
        return f"{self.name}({counted(len(self.groups), 'part')}, bs={self.bs}, n_batches={self.n_batches})"

    def counts(self) -> list[int]:
        """Return how many samples of each group an epoch has: shares rounded so that they add up."""
        exact = self.weights * self._n
        counts = np.floor(exact).astype(np.int64)
        most_missing = np.argsort(counts - exact, kind="stable")
        counts[most_missing[: self._n - int(counts.sum())]] += 1
        return counts.tolist()

    def __call__(self, epoch: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the batches of an epoch."""
        counts = self.counts()
        sources = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        drawn = []
        for group, n in zip(self.groups, counts, strict=True):
            times = range(-(-n // len(group)))
            drawn.append(
                np.concatenate([rng.permutation(group) if self.shuffle else group for _ in times])[:n]
            )
        flat = np.empty(self._n, dtype=np.int64)
        flat[np.argsort(sources, kind="stable")] = np.concatenate(drawn)
        return [flat[i : i + self.bs] for i in range(0, self._n, self.bs)]
