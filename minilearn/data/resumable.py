"""Loaders that can resume at any batch, because their order is a pure function; TensorLoader."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..arguments import device as checked_device
from ..arguments import flag, shown, unless_none, whole_number
from ..notebook import Shows, tensor_text
from ..seeding import generator_of


def share_of(n: int, rank: int, n_parts: int) -> tuple[int, int]:
    """Return where shard `rank` of n samples begins and ends; shards differ by at most one sample."""
    return n * rank // n_parts, n * (rank + 1) // n_parts


def spans_of(n: int, size: int) -> Iterator[range]:
    """Give the numbers 0 to n - 1, `size` at a time."""
    return (range(i, min(i + size, n)) for i in range(0, n, size))


class ResumableLoader(Shows):
    """Give batches in an order that is a pure function of (seed, epoch), from any batch on.

    The Learner calls `set_epoch` before each epoch; your own loop has to do so too, or else each epoch has
    the order of epoch 0 (as with torch's DistributedSampler). A subclass says in `batches` what a batch is.

    Args:
        n_samples: in an epoch.
        bs: samples in a batch; the last one may be smaller.
        shuffle: whether to shuffle.
        drop_last: drop a smaller last batch.
        seed: default torch.initial_seed(), which `set_seed` sets.
    """

    def __init__(
        self,
        n_samples: int,
        bs: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        self.n_samples, self.bs = whole_number("n_samples", n_samples, 0), whole_number("bs", bs)
        self.shuffle, self.drop_last = flag("shuffle", shuffle), flag("drop_last", drop_last)
        seed = unless_none(whole_number, "seed", seed, None)
        self.seed = torch.initial_seed() if seed is None else seed
        self.epoch = 0
        self.part = (0, 1)  # the shard of each batch: which, of how many
        self._ordered: tuple[Any, Tensor] | None = None  # the order of an epoch, for index_of

    def _facts(self) -> dict[str, Any]:
        return {"": f"{self.n_samples:,} samples"} | self._more_facts()

    def _more_facts(self) -> dict[str, Any]:
        rank, n = self.part
        switches = {name: True for name in ("shuffle", "drop_last") if getattr(self, name)}
        return {"bs": self.bs} | switches | ({"shard": f"{rank} of {n}"} if n > 1 else {})

    _moving: ClassVar[tuple[str, ...]] = ()  # names in the state that change during a run

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and so the order of the samples, of the next pass."""
        self.epoch = whole_number("epoch", epoch, 0)

    def __len__(self) -> int:
        return self.n_samples // self.bs if self.drop_last else -(-self.n_samples // self.bs)

    def part_of(self, rank: int, n: int) -> Self:
        """Return a loader of shard `rank` of n of each batch; shards differ by at most one sample."""
        loader = copy(self)
        loader.part = (rank, n)
        return loader

    def whole_span(self, i: int) -> tuple[int, int]:
        """Return where batch i, with all its shards, begins and ends in the order."""
        return i * self.bs, min((i + 1) * self.bs, self.n_samples)

    def sizes(self, i: int) -> tuple[int, int]:
        """Return how many samples batch i has in this shard, and how many in all."""
        begin, end = self.whole_span(i)
        first, stop = share_of(end - begin, *self.part)
        return stop - first, end - begin

    def span(self, i: int) -> tuple[int, int]:
        """Return where batch i, or this shard of it, begins and ends in the order.

        A shard without samples gets the next one, because all processes have to take part in a step.
        """
        own, n_all = self.sizes(i)
        first = self.whole_span(i)[0] + share_of(n_all, *self.part)[0]
        return first, first + max(own, 1)

    def order(self) -> Tensor:
        """Return the indices of this epoch's samples, (N,) int64 on the CPU."""
        if not self.shuffle:
            return torch.arange(self.n_samples)
        return torch.randperm(self.n_samples, generator=generator_of(self.seed, self.epoch))

    def index_of(self, i: int) -> Tensor | None:
        """Return which samples are in (this shard of) batch i of this epoch, (n,) int64 on the CPU."""
        key = (self.seed, self.epoch, self.shuffle)
        if self._ordered is None or self._ordered[0] != key:
            self._ordered = key, self.order()
        first, stop = self.span(i)
        return self._ordered[1][first:stop]

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Give the batches of this epoch from number `start` on, without reading those before it."""
        raise NotImplementedError(f"{type(self).__name__} has to define batches(start)")

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def state_dict(self) -> dict[str, Any]:
        """Return what the order depends on."""
        names = ("seed", "n_samples", "bs", "shuffle", "drop_last")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the seed of the run to be resumed.

        Raises: ValueError, with both values, if the number of samples, the batch size or the like differs.
        """
        for name, now in self.state_dict().items():
            if name not in ("seed", *self._moving) and now != state.get(name):
                raise ValueError(f"the loader has {name}={now!r}, the run to be resumed {state.get(name)!r}")
        self.seed = state["seed"]


class TensorLoader(ResumableLoader):
    """Give batches of tensors that are in memory, by indexing whole batches.

    Args:
        *tensors: all with the same first dimension N; the inputs first, the targets last.
        bs, shuffle, drop_last, seed: see ResumableLoader. The order uses no other random numbers, so it is
            the same in a resumed run.
        device: keep the tensors there, and index there too.

    Attributes:
        tensors: all of them, as given, in the order of the data.

    Shapes: a batch is a tuple of tensors (bs, ...), one for each of `tensors`. They are copies, so that
        changing a batch in place leaves the data as it is.
    """

    def __init__(
        self,
        *tensors: Tensor,
        bs: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if not tensors or not all(isinstance(t, Tensor) and t.ndim > 0 for t in tensors):
            odd = next((t for t in tensors if not isinstance(t, Tensor) or not t.ndim), "none")
            raise TypeError(
                f"TensorLoader(*tensors) was given {shown(odd)}: expected one or more tensors with a "
                "dimension of samples; for arrays, torch.as_tensor(x)"
            )
        if len({len(t) for t in tensors}) > 1:
            raise ValueError(
                f"TensorLoader: tensors of {[len(t) for t in tensors]} samples; expected as many in each"
            )
        super().__init__(len(tensors[0]), bs, shuffle, drop_last, seed)
        device = unless_none(checked_device, "device", device)
        self.tensors = tuple(t.to(device) if device is not None else t for t in tensors)

    def _facts(self) -> dict[str, Any]:
        return {"": ", ".join(map(tensor_text, self.tensors))} | self._more_facts()

    @property
    def targets(self) -> Tensor:
        """All targets, (N, ...)."""
        return self.tensors[-1]

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Give the batches of this epoch from number `start` on."""
        start = whole_number("start", start, 0)
        if self.shuffle:
            order = self.order().to(self.tensors[0].device)
        for i in range(start, len(self)):
            first, stop = self.span(i)
            if self.shuffle:
                index = order[first:stop]
                yield tuple(t[index] for t in self.tensors)
            else:
                yield tuple(t[first:stop].clone() for t in self.tensors)

    def peek(self) -> tuple[Tensor, ...]:
        """Return the first two samples as a batch."""
        return tuple(t[:2].clone() for t in self.tensors)
