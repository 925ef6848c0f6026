"""The adapter of loaders that give batches from any number on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from ...seeding import kept_rng
from ..dataset_loader import DatasetLoader
from ..resumable import ResumableLoader, TensorLoader
from .adapter import Adapter, short
from .shards import Shard


class OursAdapter(Adapter):
    """Adapt a loader with batches(start): ours, and users' own with this protocol.

    The order of a pass is a pure function of the loader's state, so a pass can begin at any batch, even while
    another one is running. Such a loader may also have `__len__`, `set_epoch(epoch)`, `state_dict()` and
    `load_state_dict(state)` for what the order depends on, `length_of(epoch)` if
    epochs differ in length, `seed`, `peek()`, `index_of(i)`, the samples in
    batch i, and `part_of(rank, n)` with `sizes(i)` if it shards by itself, like a ResumableLoader.
    """

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether it has a method batches."""
        return callable(getattr(loader, "batches", None))

    def targets(self) -> Iterator[Tensor] | None:
        """Return the targets of a TensorLoader; a subclass may give others."""
        return iter([self.loader.targets]) if type(self.loader) is TensorLoader else None

    def read(self, start: int = 0) -> Iterator[Any]:
        """Begin a pass at batch `start`, without reading those before it."""
        return self.loader.batches(start) if start else iter(self.loader)

    def peek(self, epoch: int | None = None) -> Any:
        """Return a batch of two samples if the loader makes one, or else its first batch."""
        with kept_rng(*self.generators()):
            if hasattr(self.loader, "peek"):
                return self.loader.peek()
            return next(self.loader.batches(0), None)

    def why_not_resumable(self) -> str:
        """Return "": it can begin at any batch."""
        return ""

    def lengths(self, first: int, n_epochs: int) -> list[int | None]:
        """Return what the loader says of each epoch."""
        if not hasattr(self.loader, "length_of"):
            return super().lengths(first, n_epochs)
        return [self.loader.length_of(epoch) for epoch in range(first, first + n_epochs)]

    def serve(self, role: str) -> None:
        """Tell a loader that draws random numbers by its role."""
        if hasattr(self.loader, "serve"):
            self.loader.serve(role)

    def sizes(self, i: int) -> tuple[int, int] | None:
        """Return what the loader says."""
        return self.loader.sizes(i) if hasattr(self.loader, "sizes") else None

    def index(self, i: int) -> Tensor | None:
        """Return what the loader says."""
        return self.loader.index_of(i) if hasattr(self.loader, "index_of") else None

    def smallest(self) -> int | None:
        """Return the size of the last batch, in this shard; an empty shard gets a sample of another one."""
        if not isinstance(self.loader, ResumableLoader) or not len(self.loader):
            return None
        n = len(self.loader)
        some = range(n) if getattr(self.loader, "plan", None) is not None else (0, n - 1)
        return max(1, min(self.loader.sizes(i)[0] for i in some))

    def agree(self, broadcast: Callable[[Any], Any]) -> None:
        """Take the seed of the first of several processes."""
        if hasattr(self.loader, "seed"):
            self.loader.seed = broadcast(self.loader.seed)

    def follow(self, loader: Any, *names: str) -> None:
        """Copy the fields that both have."""
        for name in names:
            if hasattr(loader, name) and hasattr(self.loader, name):
                setattr(self.loader, name, getattr(loader, name))

    def why_no_order(self) -> str:
        """Say which sampler a DatasetLoader has; the order of other ResumableLoaders is known."""
        if isinstance(self.loader, DatasetLoader) and self.loader.sampler is not None:
            return f"has a sampler, {type(self.loader.sampler).__name__}"
        if not isinstance(self.loader, ResumableLoader):
            return super().why_no_order()
        is_known = torch.equal(self._unshuffled().order(), torch.arange(self.loader.n_samples))
        what = "a plan" if getattr(self.loader, "plan", None) is not None else "an order of its own"
        return "" if is_known else f"has {what}"

    def in_order(self) -> Any:
        """Return the loader, or one that neither shuffles nor drops, and is not sharded."""
        loader = super().in_order()
        return self._unshuffled() if isinstance(loader, ResumableLoader) else loader

    def _unshuffled(self) -> Any:
        settings = {"shuffle": False, "drop_last": False, "part": (0, 1)}
        if all(vars(self.loader)[name] == value for name, value in settings.items()):
            return self.loader
        loader = copy(self.loader)
        vars(loader).update(settings)
        return loader

    def beside(self) -> Self:
        """Return one of a copy, because persistent workers would leave their pass for the new one."""
        beside = super().beside()
        if isinstance(self.loader, ResumableLoader):
            beside.loader = copy(self.loader)
        return beside

    def resized(self, bs: int) -> Any:
        """Return a copy with another batch size."""
        if not isinstance(self.loader, ResumableLoader):
            return super().resized(bs)
        if getattr(self.loader, "plan", None) is not None:
            raise TypeError(
                f"the batch size of {short(self.loader)} cannot be changed, because it has a plan, "
                f"{short(vars(self.loader)['plan'])}, which makes the batches"
            )
        loader = copy(self.loader)
        loader.bs = bs
        return loader

    def shard(self, rank: int, n: int) -> Any:
        """Return the loader's own shard, by indices, or shard its batches by rows."""
        sampler = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "num_replicas"):
            raise ValueError(
                f"{short(self.loader)} has a {type(sampler).__name__}, which gives a shard of the data, and "
                "shards each batch by itself too: expected it without this sampler"
            )
        if hasattr(self.loader, "part_of"):
            return self.loader.part_of(rank, n)
        return Shard(self, rank, n)
