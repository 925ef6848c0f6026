"""Adapter: what the rest of minilearn asks of a loader, whatever its kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

MEND = (
    "expected a TensorLoader, a DatasetLoader, a list of batches, or a loader with batches(start), or with "
    "state_dict() and load_state_dict()"
)


class Adapter:
    """Answer what is asked of one kind of loader; `minilearn.data.adapters` says how to write one.

    An adapter keeps no batches and changes no loader, but for the pass that `peek` may open. Methods that
    make another loader, or an adapter in its place (in_order, resized, shard, head), leave this one as it is.

    Attributes:
        loader: the user's own object.
        moves_on: whether it remembers where it stands while it is read, so that its state is that of a place
            in the pass. False where state, if any, says the order of a whole pass.
        opens_to_peek: whether `peek` opens a pass, which the next `read` then continues.
    """

    moves_on = False
    opens_to_peek = False

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short(self.loader)})"

    @property
    def targets(self) -> Tensor | None:
        """All targets, of which the last part of each batch has some as they are; None where not known."""
        return None

    # What a kind has to say -----------------------------------------------------------------------

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether this is the kind of a loader."""
        raise NotImplementedError

    def read(self, start: int = 0) -> Iterator[Any]:
        """Begin a pass; return an iterator over its batches from number `start` on.

        A loader that moves on starts from where its state was loaded, whatever `start` is.
        Raises: TypeError for a start where a pass can begin only at its first batch.
        """
        raise NotImplementedError

    def peek(self, epoch: int | None = None) -> Any:
        """Return a batch as the loader makes them, perhaps a small one; None if it has none.

        For what must be known before training, such as the kind of target. Order and all random numbers
        stay as they are.

        Args:
            epoch: which epoch's pass is going to be read next, for a loader that opens it; None: no matter.
        """
        raise NotImplementedError

    def why_not_resumable(self) -> str:
        """Say why a pass cannot be resumed in its middle; "" if it can be."""
        raise NotImplementedError

    # How many -------------------------------------------------------------------------------------

    @property
    def n_batches(self) -> int | None:
        """The number of batches in an epoch, None where the loader does not know."""
        try:
            return len(self.loader)
        except TypeError:  # no __len__, or a DataLoader over an IterableDataset without one
            return None

    def check_not_empty(self, name: str) -> None:
        """Raise ValueError if the loader says that it has no batch."""
        if self.n_batches == 0:
            hint = ""
            if getattr(self.loader, "drop_last", False):
                hint = (
                    ": drop_last=True drops the only batch when there are fewer samples than the batch size"
                )
            raise ValueError(f"the {name} loader is empty, it has 0 batches{hint}")

    def check_read(self, n: int) -> None:
        """Warn if a whole pass has given another number of batches than the loader says that it has."""
        if self.n_batches not in (None, n):
            warnings.warn(
                f"a {type(self.loader).__name__} says that it has {self.n_batches} batches, and gave {n}: "
                "schedules were planned for as many as it says; is its __len__ right?",
                stacklevel=2,
            )

    def sizes(self, i: int) -> tuple[int, int] | None:
        """Return how many samples batch i has in this shard, and in all; None where it is not known."""
        return None

    # Order and random numbers ---------------------------------------------------------------------

    def parts(self) -> list[Any]:
        """Return the loader, and what in it may have an order of its own, such as a sampler."""
        return [self.loader, *found(self.loader, "sampler")]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is of, to all parts that ask for it."""
        for part in self.parts():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def generators(self) -> list[torch.Generator]:
        """Return the generators that the loader and its samplers own."""
        own = [getattr(part, "generator", None) for part in self.parts()]
        return list({id(g): g for g in own if isinstance(g, torch.Generator)}.values())

    def agree(self, broadcast: Callable[[Any], Any]) -> None:
        """Have the order of the first of several processes, where it can be told."""

    def follow(self, loader: Any, *names: str) -> None:
        """Take fields, such as "epoch", of the loader that this one was made from, where it keeps its own."""

    def why_no_order(self) -> str:
        """Say why samples do not come in the order of the data, each once; "" if they do.

        Lists, iterables and streams are their own order.
        """
        if getattr(self.loader, "shuffle", False) is True:
            return "shuffles"
        if getattr(self.loader, "drop_last", False) is True:
            return "has drop_last=True, which leaves out the last samples"
        return ""

    def in_order(self) -> Any:
        """Return a loader that gives all samples in the order of their data; this one, where it does.

        Raises: ValueError where the order is not known, or samples are left out.
        """
        if why := self.why_no_order():
            raise ValueError(
                f"predict: this {type(self.loader).__name__} {why}, so no one could tell whose predictions "
                "these are: expected a loader that gives all samples in the order of their data; of some "
                "samples, give it torch.utils.data.Subset(dataset, indices)"
            )
        return self.loader

    # State ----------------------------------------------------------------------------------------

    def state(self) -> Any:
        """Return what the loader says of its state, None if it has none."""
        return self.loader.state_dict() if has_state(self.loader) else None

    def load_state(self, state: Any) -> None:
        """Give the loader a state."""
        self.loader.load_state_dict(state)

    def unmoved(self) -> AbstractContextManager[None]:
        """Leave the loader's state as it was, inside a `with` that reads from it."""
        return nullcontext()

    # Other loaders --------------------------------------------------------------------------------

    def beside(self) -> Self:
        """Return an adapter like this one, to begin a new pass while another one may be under way."""
        return copy(self)

    def head(self, n: int) -> Any:
        """Return a loader of the first n batches of a pass, while a pass of this one may be under way.

        Order, state and workers of the loader stay as they are; for random numbers, see `generators`.
        """
        return Head(self, n)

    def resized(self, bs: int) -> Any:
        """Return a loader like this one, with its order, in batches of `bs`.

        Raises: TypeError for what does not make batches by a size.
        """
        raise TypeError(
            f"the batch size of {short(self.loader)} cannot be changed: expected a TensorLoader, a "
            "DatasetLoader, or a DataLoader with batch_size, no subclass and no batch_sampler of one's own"
        )

    def shard(self, rank: int, n: int) -> Any:
        """Return a loader of the shard of process `rank` of n: its part of each batch.

        Raises: TypeError for a loader that may give other batches in each process, and for batches that
            cannot be cut; ValueError for one that is sharded already, in another way.
        """
        raise TypeError(
            f"a {type(self.loader).__name__} may give other batches in each process: expected a "
            "TensorLoader, a DatasetLoader, a list of batches, or a loader with batches(start)"
        )

    def data(self) -> list[Any]:
        """Return the tensors and arrays of the data set, which no run changes."""
        own = list(getattr(self.loader, "tensors", ()))
        for part in getattr(getattr(self.loader, "dataset", None), "__dict__", {}).values():
            inner = part if isinstance(part, tuple | list) else [part]
            own += [x for x in inner if isinstance(x, Tensor | np.ndarray)]
        return own


class Head:
    """The first batches of a pass, read from a pass of its own.

    Args:
        whole: the adapter of the loader.
        n: how many.
    """

    def __init__(self, whole: Adapter, n: int) -> None:
        self.whole, self.n = whole, n

    def __iter__(self) -> Iterator[Any]:
        beside = self.whole.beside()
        with beside.unmoved():
            yield from islice(beside.read(), self.n)


# Helpers ------------------------------------------------------------------------------------------


def found(part: Any, *names: str) -> list[Any]:
    """Return the attributes of these names that there are."""
    return [x for name in names if (x := getattr(part, name, None)) is not None]


def has_state(loader: Any) -> bool:
    """Whether a loader gives its state, and takes it back."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def short(value: Any) -> str:
    """Return what stands for a value in a message."""
    text = repr(value)
    return text if len(text) < 80 else f"a {type(value).__name__}"
