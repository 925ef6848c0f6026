"""The adapters of sequences and iterables: read by index, by state, from the start, or only once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...batches import is_pair, n_samples
from ...seeding import is_same_state, kept_rng, rng_state, set_rng_state
from ..workers import begin
from .adapter import MEND, Adapter, has_state
from .shards import Shard

_END = object()
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
        with kept_rng(*self.generators()):
            return self.loader[0] if len(self.loader) else None

    def targets(self) -> Iterator[Tensor] | None:
        """Return the targets of a list or tuple of pairs, joined so that few operations read them all."""
        pairs = self.loader
        if type(pairs) not in (list, tuple) or not all(is_pair(b) and type(b[1]) is Tensor for b in pairs):
            return None
        kinds = {(target.dtype, target.device, target.layout) for _, target in pairs}
        if len(kinds) != 1 or kinds.pop()[2] is not torch.strided:
            return None
        parts = [target.flatten() for _, target in pairs]
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


class StatefulAdapter(Adapter):
    """Adapt an iterable that knows its position, with state_dict and load_state_dict."""

    moves_on = True

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it has state_dict and load_state_dict."""
        return has_state(loader)

    def read(self, start: int = 0) -> Iterator[Any]:
        """Read from the position of its loaded state."""
        return begin(self.loader)

    def peek(self, epoch: int | None = None) -> Any:
        """Return the first batch, and restore the state."""
        with kept_rng(*self.generators()), self.unmoved():
            return next(begin(self.loader), None)

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Restore the state, because it moves on while it is read."""
        state = deepcopy(self.state())
        try:
            yield
        finally:
            self.load_state(state)

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
        if is_same_state(self._drawn(), opened.before):
            self._draw(opened.after)
        if opened.batch is not _END:
            yield opened.batch
            yield from opened.rest

    def peek(self, epoch: int | None = None) -> Any:
        """Return the first batch of the pass that comes next."""
        if epoch is not None:
            self.set_epoch(epoch)
        if self._opened is None:
            before = self._drawn()
            with kept_rng(*self.generators()):
                rest = begin(self.loader)
                batch = next(rest, _END)
                self._opened = _Opened(batch, rest, epoch, before, self._drawn())
        return None if self._opened.batch is _END else self._opened.batch

    def _drawn(self) -> Any:
        return rng_state(), [generator.get_state() for generator in self.generators()]

    def _draw(self, drawn: Any) -> None:
        set_rng_state(drawn[0])
        for generator, state in zip(self.generators(), drawn[1], strict=True):
            generator.set_state(state)

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
