"""The adapters of sequences and iterables: read by index, by state, from the start, or only once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...batches import n_samples
from ...seeding import is_same_state, kept_rng
from ..workers import begin
from .adapter import MEND, Adapter, has_state
from .open_passes import OpenPasses
from .shards import Shard

_END = object()
_OVER = "minilearn: this pass is over"  # a key of a state
_KIND = attrgetter("dtype", "device", "layout")
_JOINED = 64  # batches whose targets are joined


class SequenceAdapter(Adapter):
    """Adapt a sequence of batches, read by index: a list, or a class with __getitem__ and __len__."""

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it has an index and a length; with an __iter__ too, it has to be a Sequence by type."""
        has_index = hasattr(loader, "__getitem__") and callable(getattr(loader, "__len__", None))
        return has_index and (isinstance(loader, Sequence) or not hasattr(loader, "__iter__"))

    def read(self, start: int = 0) -> Iterator[Any]:
        """Read from index `start` on; all of it by its __iter__, if it has one."""
        if start == 0 and hasattr(self.loader, "__iter__"):
            return iter(self.loader)
        return (self.loader[i] for i in range(start, len(self.loader)))

    def peek(self, epoch: int | None = None) -> Any:
        """Return the first batch."""
        is_plain = type(self.loader) in (list, tuple)  # so that reading it draws no random numbers
        with nullcontext() if is_plain else kept_rng(*self.generators()):
            return self.loader[0] if len(self.loader) else None

    def targets(self) -> Iterator[Tensor] | None:
        """Return the targets of a list or tuple of pairs, joined so that few operations read them all."""
        pairs = self.loader
        if type(pairs) not in (list, tuple) or not {*map(type, pairs)} <= {tuple, list}:
            return None
        if {*map(len, pairs)} != {2}:
            return None
        targets = [target for _, target in pairs]
        kinds = {*map(_KIND, targets)} if {*map(type, targets)} == {Tensor} else set()
        if len(kinds) != 1 or kinds.pop()[2] is not torch.strided:
            return None
        parts = [*map(Tensor.flatten, targets)]
        return (torch.cat(parts[i : i + _JOINED]) for i in range(0, len(parts), _JOINED))

    def smallest(self) -> int | None:
        """Return the smallest batch of a list or tuple, whose batches are in memory."""
        if type(self.loader) not in (list, tuple):  # a subclass may compute them
            return None
        return min((n for n in map(n_samples, self.loader) if n is not None), default=None)

    def why_not_resumable(self) -> str:
        """Return "": it is read by index."""
        return ""

    def shard(self, rank: int, n: int) -> Any:
        """Shard each batch by rows."""
        return Shard(self, rank, n)


class _Ahead(NamedTuple):
    """A batch that was read before it was asked for, and the random numbers that this drew."""

    batch: Any  # _END if there is none
    state: Any  # of the loader before it; if there is none, after it
    before: Any  # random numbers
    after: Any


class _Pass:
    """Give the batches of a pass; see `StatefulAdapter.state` for the one that may be read ahead."""

    def __init__(self, adapter: StatefulAdapter, batches: Iterator[Any], n: int) -> None:
        self.adapter, self.batches, self.n = adapter, batches, n  # n: how many it has given
        self.ahead: _Ahead | None = None
        self.is_over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        ahead, self.ahead = self.ahead, None
        if ahead is None:
            batch = next(self.batches, _END)
        else:
            batch = ahead.batch
            if is_same_state(self.adapter.drawn(), ahead.before):
                self.adapter.draw(ahead.after)
        if batch is _END:
            self.is_over = True
            raise StopIteration
        self.n += 1
        return batch

    def look_ahead(self) -> _Ahead:
        """Read the batch that comes next, and leave all random numbers as they are."""
        if self.ahead is None:
            adapter = self.adapter
            state, before = deepcopy(adapter.state_now()), adapter.drawn()
            with kept_rng(*adapter.generators()):
                batch, after = next(self.batches, _END), adapter.drawn()
            if batch is _END:
                state = deepcopy(adapter.state_now())
            self.ahead = _Ahead(batch, state, before, after)
        return self.ahead


class StatefulAdapter(Adapter):
    """Adapt an iterable that knows its position, with state_dict and load_state_dict.

    Its state after the last batch of a pass may be the one with which the next pass begins, so that it does
    not tell whether the pass is over. So `state` asks for the batch that comes next: the pass gives that
    batch later, and the state is the one before it. If there is none, the state says so, and with that state
    loaded the pass that `read` begins is empty. The loader of a fit that stops then is one batch ahead.
    """

    moves_on = True

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._passes = OpenPasses()
        self._is_over = False  # the pass that is read next, by the loaded state

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it has state_dict and load_state_dict."""
        return has_state(loader)

    def read(self, start: int = 0) -> Iterator[Any]:
        """Read from the position of its loaded state; `start` is that position."""
        if self._is_over:
            self._is_over = False
            return iter(())
        one = _Pass(self, begin(self.loader), start)
        self._passes.add(one)
        return one

    def end(self, batches: Iterator[Any]) -> None:
        """Ask a pass that was left no more for a batch ahead."""
        self._passes.remove(batches)

    def peek(self, epoch: int | None = None) -> Any:
        """Return the first batch, and restore the state."""
        with kept_rng(*self.generators()), self.unmoved():
            return next(begin(self.loader), None)

    def state(self) -> Any:
        """Return the loader's state, which in a pass also says whether the pass is over."""
        one: _Pass | None = self._passes.newest()
        if one is None or one.is_over or not one.n or self.n_batches not in (None, one.n):
            return self.state_now()
        ahead = one.look_ahead()
        return {_OVER: ahead.state} if ahead.batch is _END else ahead.state

    def state_now(self) -> Any:
        """Return the loader's state."""
        return self.loader.state_dict()

    def load_state(self, state: Any) -> None:
        """Give the loader a state."""
        self._is_over = isinstance(state, dict) and state.keys() == {_OVER}
        self.loader.load_state_dict(state[_OVER] if self._is_over else state)

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Restore the state, because it moves on while it is read."""
        state = deepcopy(self.state_now())
        try:
            yield
        finally:
            self.loader.load_state_dict(state)

    def why_not_resumable(self) -> str:
        """Return "": its state has its position."""
        return ""


@dataclass
class _Opened:
    """Hold a pass that was opened to see its first batch, and the random numbers that this drew."""

    batch: Any
    rest: Iterator[Any]
    epoch: int | None
    before: Any  # random numbers
    after: Any


class IterableAdapter(Adapter):
    """Adapt an iterable that can be read only from its start, such as a class with __iter__.

    `peek` opens the pass that comes next, which then begins with the batch that was seen: so __iter__ is
    called once for each pass, and what cannot be read twice loses no batch. The pass draws the same random
    numbers as without the peek, unless others were drawn in between.
    """

    opens_to_peek = True

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}  # a pass cannot be copied

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it has __iter__, or __getitem__, which is then read from 0 on."""
        return isinstance(loader, Iterable) or hasattr(loader, "__getitem__")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, unless the pass was already opened for this epoch."""
        if self._opened is None or self._opened.epoch != epoch:
            self._opened = None
            super().set_epoch(epoch)

    def read(self, start: int = 0) -> Iterator[Any]:
        """Begin a pass, or continue the one that `peek` opened."""
        if start:
            raise TypeError(f"{self!r} cannot begin at batch {start}: {self.why_not_resumable()}")
        opened, self._opened = self._opened, None
        return begin(self.loader) if opened is None else self._continued(opened)

    def _continued(self, opened: _Opened) -> Iterator[Any]:
        if is_same_state(self.drawn(), opened.before):
            self.draw(opened.after)
        if opened.batch is not _END:
            yield opened.batch
            yield from opened.rest

    def peek(self, epoch: int | None = None) -> Any:
        """Return the first batch of the pass that comes next."""
        if epoch is not None:
            self.set_epoch(epoch)
        if self._opened is None:
            before = self.drawn()
            with kept_rng(*self.generators()):
                rest = begin(self.loader)
                batch = next(rest, _END)
                self._opened = _Opened(batch, rest, epoch, before, self.drawn())
        return None if self._opened.batch is _END else self._opened.batch

    def why_not_resumable(self) -> str:
        """Say that its position is not known."""
        return f"a {type(self.loader).__name__} does not tell its position: {MEND}"


class StreamAdapter(IterableAdapter):
    """Adapt an iterator, such as a generator: it is read once, in validate or predict."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._is_read = False

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it is an iterator."""
        return isinstance(loader, Iterator)

    def read(self, start: int = 0) -> Iterator[Any]:
        """Begin the pass. Raises: RuntimeError for a second one."""
        if self._is_read:
            raise RuntimeError(f"a {type(self.loader).__name__} can be read only once, and was")
        batches = super().read(start)
        self._is_read = True
        return batches
