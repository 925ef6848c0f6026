"""Shard: the rows of one of several processes, from batches that are the same in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ...arguments import counted
from ...batches import TARGETS, map_tensors, parts_in, tensors_in
from ..resumable import share_of
from .adapter import Adapter, short


class Shard(Adapter):
    """Give one of n shards of each batch of a loader, by the rows of its tensors.

    Batches are cut only where all of their tensors have as many rows as the target. For anything of another
    length (class weights, packed sequences, nodes of graphs), nothing tells which rows belong to a sample.

    It is both a loader and its own adapter.

    Args:
        whole: the adapter of the loader, which gives the same batches in each process.
        rank, n: which shard, of how many.

    Raises: TypeError for a batch that cannot be cut; for the first one as soon as the shard is made.
    """

    def __init__(self, whole: Adapter, rank: int, n: int) -> None:
        super().__init__(self)
        self.whole, self.rank, self.n = whole, rank, n
        self.moves_on = whole.moves_on
        self._sizes: tuple[int, int] | None = None
        if (batch := whole.peek()) is not None:
            _n_rows(batch)

    def __repr__(self) -> str:
        return f"Shard({self.whole!r}, {self.rank}, {self.n})"

    def __iter__(self) -> Iterator[Any]:
        return self.read()

    def __len__(self) -> int:
        return len(self.whole.loader)

    def lengths(self, first: int, n_epochs: int) -> list[int | None]:
        """Return those of the whole loader."""
        return self.whole.lengths(first, n_epochs)

    def read(self, start: int = 0) -> Iterator[Any]:
        """Give this process's rows of the batches from number `start` on."""
        batches = self.whole.read(start)
        try:
            for batch in batches:
                yield self._cut(batch)
        finally:
            self.whole.end(batches)

    def end(self, batches: Any) -> None:
        """End the pass of the whole loader."""
        batches.close()

    def peek(self, epoch: int | None = None) -> Any:
        """Return a whole batch."""
        return self.whole.peek(epoch)

    def sizes(self, i: int) -> tuple[int, int] | None:
        """Return how many samples the last batch has in this shard, and how many in all."""
        return self._sizes

    def index(self, i: int) -> Tensor | None:
        """Return this process's part of the whole loader's, with the row that an empty shard gets."""
        if (index := self.whole.index(i)) is None:
            return None
        first, stop = share_of(len(index), self.rank, self.n)
        return index[first : max(stop, first + 1)]

    def smallest(self) -> int | None:
        """Return the smallest share of the smallest batch."""
        n = self.whole.smallest()
        return None if n is None else max(1, n // self.n)

    def parts(self) -> list[Any]:
        """Return those of the whole loader."""
        return self.whole.parts()

    def state(self) -> Any:
        """Return nothing: the whole loader has the state."""
        return None

    def why_not_resumable(self) -> str:
        """Say why the whole loader is not."""
        return self.whole.why_not_resumable()

    def in_order(self) -> Any:
        """Return a loader of all rows: that of the whole loader."""
        return self.whole.in_order()

    def shard(self, rank: int, n: int) -> Any:
        """Return the shard of the whole loader: rows are never cut twice."""
        return self if (rank, n) == (self.rank, self.n) else self.whole.shard(rank, n)

    def _cut(self, batch: Any) -> Any:
        n = _n_rows(batch)
        first, stop = share_of(n, self.rank, self.n)
        self._sizes = (stop - first, n)
        rows = slice(first, max(stop, first + 1))  # an empty shard gets a row too: all take the step
        return map_tensors(lambda t: t[rows], batch)


def _n_rows(batch: Any) -> int:
    """Return how many rows a batch has. Raises: TypeError if a tensor has a different number."""
    target = _target_of(batch)
    n = next((len(t) for t in tensors_in(target) if t.ndim), None)
    if n is None:
        raise TypeError(f"{_refused(batch)}: its target has no tensor with rows; {_ADVICE}")
    for part in parts_in(batch):
        if isinstance(part, Tensor) and part.ndim and len(part) == n:
            continue
        if part is not None:
            what = f"a tensor {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise TypeError(f"{_refused(batch)}: it has {what}, and {counted(n, 'target')}; {_ADVICE}")
    return n


def _target_of(batch: Any) -> Any:
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    if isinstance(batch, Mapping):
        return next((batch[name] for name in TARGETS if name in batch), batch)
    return batch


def _refused(batch: Any) -> str:
    return f"a batch, {short(batch)}, cannot be cut by rows for several processes"


_ADVICE = (
    "expected tensors of as many rows as the target, or a DatasetLoader or TensorLoader, which shard indices "
    "before they collate"
)
