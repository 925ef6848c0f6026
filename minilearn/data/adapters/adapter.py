"""Adapter: what the rest of minilearn asks of a loader, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...arguments import counted
from ...seeding import rng_state, set_rng_state
from ...warning import warn

MEND = (
    "expected a TensorLoader, a DatasetLoader, a list of batches, or a class with __getitem__ and "
    "__len__, with batches(start), or with state_dict() and load_state_dict()"
)


class Adapter:
    """Answer what is asked of one kind of loader; `minilearn.data.adapters` says how to write one.

    An adapter keeps no batches and changes no loader, except for the pass that `peek` may open. Methods that
    make another loader or adapter (in_order, resized, shard, head) leave this one as it is.

    Attributes:
        loader: the user's own object.
        moves_on: whether the loader remembers its position while it is read, so that its state describes a
            place in the pass. False where its state, if any, describes the order of a whole pass.
        opens_to_peek: whether `peek` opens a pass, which the next `read` then continues.
    """

    moves_on = False
    opens_to_peek = False

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short(self.loader)})"

    def targets(self) -> Iterator[Tensor] | None:
        """Return all targets, some at a time, if the last part of each batch is some of them.

        None if they are not known without reading a pass, or if reading changes them.
        """
        return None

    # What each kind has to define -----------------------------------------------------------------

    @staticmethod
    def takes(loader: Any) -> bool:
        """Whether the loader is of this kind."""
        raise NotImplementedError

    def read(self, start: int = 0) -> Iterator[Any]:
        """Begin a pass; return an iterator over its batches from number `start` on.

        A loader that moves on starts where its loaded state says, whatever `start` is.
        Raises: TypeError for a start where a pass can begin only at its first batch.
        """
        raise NotImplementedError

    def end(self, batches: Iterator[Any]) -> None:
        """Take note that a pass, as `read` returned it, is not read any further."""

    def peek(self, epoch: int | None = None) -> Any:
        """Return a batch of the loader, perhaps a small one; None if it has none.

        It shows what must be known before training, such as the kind of target. Order and all random numbers
        stay as they are.

        Args:
            epoch: the epoch of the pass that is read next, for a loader that opens it; None: any.
        """
        raise NotImplementedError

    def why_not_resumable(self) -> str:
        """Say why a pass cannot be resumed in the middle; "" if it can be."""
        raise NotImplementedError

    # How many -------------------------------------------------------------------------------------

    @property
    def n_batches(self) -> int | None:
        """The number of batches in an epoch; None if the loader does not know."""
        try:
            return len(self.loader)
        except TypeError:  # no __len__, or a DataLoader over an IterableDataset without one
            return None

    def lengths(self, first: int, n_epochs: int) -> list[int | None]:
        """Return the number of batches in each of n_epochs epochs, of which `first` is the first."""
        return [self.n_batches] * n_epochs

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
        """Warn if a complete pass gave a different number of batches than the loader says it has."""
        if self.n_batches not in (None, n):
            warn(
                f"a {type(self.loader).__name__} says that it has {counted(self.n_batches, 'batch')}, and "
                f"gave {n}: schedules were planned for the former; is its __len__ right?"
            )

    def serve(self, role: str) -> None:
        """Take the role in which the loader is read first: "train", "valid", "valid/NAME" or "test"."""

    def sizes(self, i: int) -> tuple[int, int] | None:
        """Return how many samples batch i has in this shard, and in all; None if not known."""
        return None

    def index(self, i: int) -> Tensor | None:
        """Return which samples of the data set are in batch i of this pass, in this shard; None if not known.

        Shapes: (n,) int64, on the CPU.
        """
        return None

    def smallest(self) -> int | None:
        """Return how many samples the smallest batch of a pass has; None if not known without reading it."""
        return None

    # Order and random numbers ---------------------------------------------------------------------

    def parts(self) -> list[Any]:
        """Return the loader and the parts of it that may have their own order, such as a sampler."""
        return [self.loader, *found(self.loader, "sampler")]

    def set_epoch(self, epoch: int) -> None:
        """Tell all parts that have a set_epoch which epoch comes next."""
        for part in self.parts():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def begin_epoch(self, epoch: int, of_fit: int) -> None:
        """Choose the pass that is read next.

        Args:
            epoch: counted over the learner's life.
            of_fit: counted in the fit.
        """
        self.set_epoch(epoch)

    def generators(self) -> list[torch.Generator]:
        """Return the generators that the loader and its samplers own."""
        own = [getattr(part, "generator", None) for part in self.parts()]
        return list({id(g): g for g in own if isinstance(g, torch.Generator)}.values())

    def drawn(self) -> Any:
        """Return the states of all random numbers that reading may draw."""
        return rng_state(), [generator.get_state() for generator in self.generators()]

    def draw(self, drawn: Any) -> None:
        """Put all random numbers in these states."""
        set_rng_state(drawn[0])
        for generator, state in zip(self.generators(), drawn[1], strict=True):
            generator.set_state(state)

    def agree(self, broadcast: Callable[[Any], Any]) -> None:
        """Take the order of the first of several processes, if possible."""

    def follow(self, loader: Any, *names: str) -> None:
        """Copy fields, such as "epoch", from the loader that this one was made from, if it has its own."""

    def why_no_order(self) -> str:
        """Say why samples do not come in the order of the data, each once; "" if they do.

        Lists, iterables and streams define their own order.
        """
        if getattr(self.loader, "shuffle", False) is True:
            return "shuffles"
        if getattr(self.loader, "drop_last", False) is True:
            return "has drop_last=True, which leaves out the last samples"
        return ""

    def in_order(self) -> Any:
        """Return a loader that gives all samples in the order of their data; this one, if it does.

        Raises: ValueError if the order is not known, or samples are left out.
        """
        if why := self.why_no_order():
            raise ValueError(
                f"predict: this {type(self.loader).__name__} {why}, so predictions could not be matched "
                "with samples: expected a loader that gives all samples in the order of their data; for some "
                "samples, give it torch.utils.data.Subset(dataset, indices)"
            )
        return self.loader

    # State ----------------------------------------------------------------------------------------

    def state(self) -> Any:
        """Return the loader's state; None if it has none."""
        return self.loader.state_dict() if has_state(self.loader) else None

    def state_now(self) -> Any:
        """Return the loader's state, without asking whether a pass is over."""
        return self.state()

    def load_state(self, state: Any) -> None:
        """Give the loader a state."""
        self.loader.load_state_dict(state)

    def unmoved(self) -> AbstractContextManager[None]:
        """Restore the loader's state after a `with` that reads from it."""
        return nullcontext()

    # Other loaders --------------------------------------------------------------------------------

    def one_pass(self) -> Adapter:
        """Return the adapter that reads the loader in one pass; this one, unless it reads on over passes."""
        return self

    def beside(self) -> Self:
        """Return an adapter like this one, for a new pass while another one may be running."""
        return copy(self)

    def head(self, n: int) -> Any:
        """Return a loader of the first n batches of a pass, while another pass may be running.

        Order, state and workers of the loader stay as they are; for random numbers, see `generators`.
        """
        return Head(self, n)

    def resized(self, bs: int) -> Any:
        """Return a loader like this one, in the same order, with batches of `bs`.

        Raises: TypeError for a loader without a batch size.
        """
        raise TypeError(
            f"the batch size of {short(self.loader)} cannot be changed: expected a TensorLoader, a "
            "DatasetLoader, or a DataLoader with batch_size, no subclass and no batch_sampler of your own"
        )

    def shard(self, rank: int, n: int) -> Any:
        """Return a loader of the shard of process `rank` of n of each batch.

        Raises: TypeError for a loader that may give different batches in each process, and for batches that
            cannot be sharded; ValueError for a loader that is already sharded differently.
        """
        raise TypeError(
            f"a {type(self.loader).__name__} may give different batches in each process: expected a "
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
    """Give the first batches of a pass, read from a separate pass.

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
    """Return those attributes of these names that exist and are not None."""
    return [x for name in names if (x := getattr(part, name, None)) is not None]


def has_state(loader: Any) -> bool:
    """Whether a loader has state_dict and load_state_dict."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def short(value: Any) -> str:
    """Return a short text for a value, for a message."""
    text = repr(value)
    return text if len(text) < 80 else f"a {type(value).__name__}"
