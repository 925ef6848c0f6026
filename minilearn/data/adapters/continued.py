"""Continued: epochs of a given number of batches, over passes that continue from one epoch to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from copy import copy
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor

from . import adapter_of
from .adapter import Adapter, Head, short


class Place:
    """Where a fit is in its epochs; the shards of a loader share it.

    Args:
        lengths: batches in each epoch of the fit.
    """

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.first = 0  # the number of the fit's first epoch in the learner's life, and of its first pass
        self.epoch = 0  # of the fit
        self.passed = 0  # passes of this fit that are over

    @property
    def n_before(self) -> int:
        """How many batches the epochs before this one have."""
        return sum(self.lengths[: self.epoch])


class Continued(Adapter):
    """Adapt a loader for a fit whose epochs are so many batches long, however long its passes are.

    Where an epoch ends in the middle of a pass, the next epoch begins there; where a pass ends in the middle
    of an epoch, the next pass begins, with `set_epoch`. A loader that can be read from any batch on is read
    from the one that comes next; of any other, the pass is kept open.

    Args:
        inner: the loader's own adapter.
        place: shared with the other shards.
        is_loader: whether it stands for the loader too, as a shard does.
    """

    def __init__(self, inner: Adapter, place: Place, is_loader: bool = False) -> None:
        super().__init__(self if is_loader else inner.loader)
        self.inner, self.place, self.is_loader = inner, place, is_loader
        self.moves_on, self.opens_to_peek = inner.moves_on, inner.opens_to_peek
        self._pass_begin = 0  # how many batches of this fit came before the pass; -1 if not known
        self._open: Iterator[Any] | None = None  # the pass that is being read,
        self._next = 0  # and which batch of the fit it gives next

    def __repr__(self) -> str:
        return f"Continued({short(self.inner)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}  # a pass cannot be copied

    def __iter__(self) -> Iterator[Any]:
        return self.read()

    def __len__(self) -> int:
        return self.n_batches

    # How many -------------------------------------------------------------------------------------

    @property
    def n_batches(self) -> int:
        """The number of batches in this epoch."""
        return self.place.lengths[min(self.place.epoch, len(self.place.lengths) - 1)]

    def lengths(self, first: int, n_epochs: int) -> list[int | None]:
        """Return the number of batches in each of n_epochs epochs of the fit."""
        known = self.place.lengths
        return [known[min(i, len(known) - 1)] for i in range(n_epochs)]

    def check_not_empty(self, name: str) -> None:
        """Raise ValueError if the loader says that it has no batch."""
        self.inner.check_not_empty(name)

    def smallest(self) -> int | None:
        """Return how many samples the smallest batch of a pass has."""
        return self.inner.smallest()

    def sizes(self, i: int) -> tuple[int, int] | None:
        """Return how many samples batch i of this epoch has, if it is of the pass that is being read."""
        return None if (of_pass := self._in_pass(i)) is None else self.inner.sizes(of_pass)

    def index(self, i: int) -> Tensor | None:
        """Return which samples are in batch i of this epoch, if it is of the pass that is being read."""
        return None if (of_pass := self._in_pass(i)) is None else self.inner.index(of_pass)

    def _in_pass(self, i: int) -> int | None:
        n = self.place.n_before + i - self._pass_begin
        return None if self._pass_begin < 0 or n < 0 else n

    def targets(self) -> Iterator[Tensor] | None:
        """Return all targets, where the loader's own adapter does."""
        return self.inner.targets()

    # Reading --------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, of_fit: int) -> None:
        """Be at an epoch; its pass is chosen when it is read."""
        self.place.first, self.place.epoch = epoch - of_fit, of_fit

    def read(self, start: int = 0) -> Iterator[Any]:
        """Begin this epoch at its batch `start`.

        Raises: TypeError for the middle of a pass of a loader that can only be read from its beginning.
        """
        n = self.place.n_before + start
        if self._open is None or self._next != n:
            self._find(n)
        return self._batches(n, self.n_batches - start)

    def _find(self, n: int) -> None:
        """Begin to read at batch n of the fit."""
        if self.inner.moves_on:  # from where its loaded state says
            self._pass_begin = 0 if n == 0 else -1
            self._read(0)
            return
        self.place.passed = self._pass_begin = 0
        while (length := self._length()) is not None and n - self._pass_begin > length:
            self.place.passed, self._pass_begin = self.place.passed + 1, self._pass_begin + length
        self._read(n - self._pass_begin, is_over=n - self._pass_begin == length)

    def _length(self) -> int | None:
        """Return how many batches the pass has. Raises: ValueError if it has none."""
        length = self.inner.lengths(self.place.first + self.place.passed, 1)[0]
        if length == 0:
            raise ValueError(f"the train loader has no batch in pass {self.place.passed} of the fit")
        return length

    def _read(self, start: int, is_over: bool = False) -> None:
        """Begin a pass at a batch; one that is over is still the current one, as it was when it was read."""
        self.inner.set_epoch(self.place.first + self.place.passed)
        self._open = iter(()) if is_over else iter(self.inner.read(start))

    def _batches(self, n: int, left: int) -> Iterator[Any]:
        is_empty = False
        while left:
            assert self._open is not None
            for batch in self._open:
                n, left, is_empty = n + 1, left - 1, False
                self._next = n
                yield batch
                if not left:
                    return
            if is_empty:
                raise ValueError(
                    f"the train loader gave no batch in pass {self.place.passed} of the fit, after {n}: "
                    "expected an iterable that starts again each pass"
                )
            self.place.passed, self._pass_begin, is_empty = self.place.passed + 1, n, True
            self._read(0)

    def peek(self, epoch: int | None = None) -> Any:
        """Return a batch of the loader."""
        return self.inner.peek(epoch)

    def why_not_resumable(self) -> str:
        """Say why a pass cannot be resumed in the middle."""
        return self.inner.why_not_resumable()

    # Order, random numbers and state --------------------------------------------------------------

    def parts(self) -> list[Any]:
        """Return those of the loader."""
        return self.inner.parts()

    def generators(self) -> list[torch.Generator]:
        """Return those of the loader."""
        return self.inner.generators()

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass that the loader gives next."""
        self.inner.set_epoch(epoch)

    def follow(self, loader: Any, *names: str) -> None:
        """Copy fields from the loader that this one was made from, except the pass, which `read` chooses."""
        self.inner.follow(loader, *(name for name in names if name != "epoch"))

    def why_no_order(self) -> str:
        """Say why samples do not come in the order of the data."""
        return self.inner.why_no_order()

    def in_order(self) -> Any:
        """Return a loader that gives all samples once, in the order of their data."""
        return self.inner.in_order()

    def state(self) -> Any:
        """Return the loader's state; with the number of its pass, if it moves on while it is read."""
        state = self.inner.state_now()
        return {"loader": state, "passed": self.place.passed} if self.moves_on else state

    def load_state(self, state: Any) -> None:
        """Give the loader a state, with which it is read again."""
        self._open = None
        if self.moves_on:
            self.place.passed, state = state["passed"], state["loader"]
        self.inner.load_state(state)

    def unmoved(self) -> AbstractContextManager[None]:
        """Restore the loader's state after a `with` that reads from it."""
        return self.inner.unmoved()

    # Other loaders --------------------------------------------------------------------------------

    def one_pass(self) -> Adapter:
        """Return the loader's own adapter."""
        return self.inner

    def beside(self) -> Self:
        """Return one with an adapter of its own of the loader."""
        beside = copy(self)
        beside.inner = self.inner.beside()
        return beside

    def head(self, n: int) -> Any:
        """Return a loader of the first n batches of a pass, or of the n that come next if it moves on."""
        return _Ahead(self.inner, n) if self.moves_on else self.inner.head(n)

    def resized(self, bs: int) -> Any:
        """Raise TypeError: other batches would be other steps."""
        raise TypeError(
            f"the batch size cannot be changed to {bs} in a fit with n_steps= or epoch_steps=, whose epochs "
            "are so many batches long: expected fit(n_epochs)"
        )

    def shard(self, rank: int, n: int) -> Any:
        """Return the same epochs of this process's shard of the loader."""
        return Continued(adapter_of(self.inner.shard(rank, n)), self.place, is_loader=True)

    def data(self) -> list[Any]:
        """Return the tensors and arrays of the data set."""
        return self.inner.data()


class _Ahead(Head):
    """Give the batches that come next, over passes that continue."""

    def __iter__(self) -> Iterator[Any]:
        beside, left, was_empty = self.whole.beside(), self.n, False
        with beside.unmoved():
            while left:
                n = left
                for batch in islice(beside.read(), left):
                    yield batch
                    left -= 1
                if n == left and was_empty:
                    return
                was_empty = n == left
