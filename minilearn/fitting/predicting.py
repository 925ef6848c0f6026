"""What predict, predict_batches and validate read, and which samples each batch of it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import inputs_and_target, is_pair, is_several
from ..data.dataset_loader import DatasetLoader
from ..data.given import loader_of
from ..data.resumable import share_of
from ..rows import Row

if TYPE_CHECKING:
    from ..learner import Learner


def given(learn: Learner, data: Any, bs: int | None = None) -> tuple[Any, Any]:
    """Return a loader of what a user gave, and the function that unpacks its batches, if any."""
    params = learn.model.parameters() if isinstance(learn.model, nn.Module) else ()  # it is checked later
    dtypes = [p.dtype for p in params if p.dtype in (torch.float32, torch.float64)]
    dtype = dtypes[0] if dtypes else torch.float32
    loader, is_inputs = loader_of(data, learn.dls, bs, dtype)
    return loader, None if is_inputs else learn.unpack_func


def check_pairs(learn: Learner, data: Any) -> None:
    """Raise ValueError for a list of pairs that seem to be two inputs: the second would be lost.

    In the learner's own batches, the inputs are several, so a pair of tensors is hardly (inputs, target).
    """
    first: Any = data[0] if isinstance(data, list | tuple) and data else None
    is_plain = learn.unpack_func is None and learn.has_default("unpack")
    if not (is_plain and is_pair(first) and all(isinstance(part, Tensor | np.ndarray) for part in first)):
        return
    names = [name for name in ("valid", "train") if name in learn.dls.adapters]
    batch = next((b for name in names if (b := learn.dls.adapters[name].peek()) is not None), None)
    own = inputs_and_target(batch, is_strict=False)[0]
    if (is_several(own) or isinstance(own, Mapping)) and len(own) > 1:
        raise ValueError(
            f"predict: a pair of tensors is (inputs, target), and the learner's own batches have {len(own)} "
            "inputs: expected all in the first place, ((a, b), None), or as a dict; or ((a,), target), "
            "to give only one"
        )


def with_targets_of(learn: Learner, data: Any) -> Any:
    """Return a loader of what a user gave to validate; a tensor or an array, without targets, is none."""
    return data if isinstance(data, Tensor | np.ndarray) else given(learn, data)[0]


@contextmanager
def unpacked_by(learn: Learner, unpack: Any) -> Iterator[None]:
    """Unpack batches by a function inside a `with`, or by their form if it is None."""
    own = learn.unpack_func
    if unpack is own:
        yield
        return
    vars(learn)["unpack_func"] = unpack
    try:
        yield
    finally:
        vars(learn)["unpack_func"] = own
        with learn.extra_cbs(None):
            pass  # looks up the owner of unpack again, for a pass that continues


def joined(rows: dict[str, Row]) -> Row:
    """Return the rows of several validation sets as one, whose columns have the names of the sets."""
    own = ("epoch", "train", "time_s")
    columns = {f"{name}/{k}": v for name, row in rows.items() for k, v in row.items() if k not in own}
    time_s = sum(row.get("time_s", 0.0) for row in rows.values())
    of_all = {k: v for row in rows.values() for k, v in row.items() if k in own} | {"time_s": time_s}
    return Row(columns | of_all | ({"train": "eval"} if "train" in of_all else {}))


class Numbered:
    """Number the samples of a pass over data, of which each process reads its own shard.

    Args:
        loader: read by all processes.
    """

    def __init__(self, learn: Learner, loader: Any) -> None:
        adapter = learn.dls.adapter_of(loader)
        self.n = learn.processes.n_shards
        self.rank = learn.rank if self.n > 1 else 0
        self.loader = loader if self.n == 1 else adapter.shard(self.rank, self.n)
        self._adapter = learn.dls.adapter_of(self.loader)
        self._batches = self._adapter.read()
        self._n_seen = 0
        self.batch: Any = None

    def has_next(self) -> bool:
        """Read the next batch; return whether there is one."""
        try:
            self.batch = next(self._batches)
        except StopIteration:
            return False
        return True

    def of_batch(self, i: int, n_read: int | None) -> Tensor | None:
        """Return the numbers of the samples in batch i; none if this process has no sample of it.

        Args:
            n_read: how many the batch has here.
        """
        own, n_all = self._adapter.sizes(i) or (n_read, n_read)
        begin, self._n_seen = self._n_seen, self._n_seen + (n_all or 0)
        if own == 0:
            return torch.empty(0, dtype=torch.int64)
        if (index := self._adapter.index(i)) is not None:
            return index
        if own is None or n_all is None:
            return None
        return begin + share_of(n_all, self.rank, self.n)[0] + torch.arange(own)


def in_order(learn: Learner, loader: Any) -> tuple[Any, Tensor | None]:
    """Return a loader of all samples, and the places of the samples in its pass; None if they are in order.

    A plan that gives each sample once may give them in any order.
    """
    adapter = learn.dls.adapter_of(loader, "predict(dl")
    if getattr(loader, "plan", None) is not None and isinstance(loader, DatasetLoader):
        whole = loader.part_of(0, 1)
        index = whole.order()
        if torch.equal(index.sort().values, torch.arange(loader.n_samples)):
            return whole, index.argsort()
    return adapter.in_order(), None


def ordered(learn: Learner, loader: Any) -> Any:
    """Return a loader of all samples of another, in the order of the data unless their numbers are known."""
    adapter = learn.dls.adapter_of(loader, "predict_batches(dl")
    is_numbered = getattr(loader, "plan", None) is not None or getattr(loader, "sampler", None) is not None
    return loader if is_numbered and hasattr(loader, "index_of") else adapter.in_order()
