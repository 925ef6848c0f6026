"""BatchSizeCB: another batch size from given epochs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..arguments import is_whole, shown
from ..callback import Callback, Order
from ..data.adapters import adapter_of
from ..fitting.checks import check_reached

if TYPE_CHECKING:
    from ..learner import Learner


class BatchSizeCB(Callback):
    """Change the training loader's batch size at given epochs, for instance instead of lowering the lr.

    `BatchSizeCB({6: 2560, 11: 25600})` trains epochs 0 to 5 with the loader's own size, epochs 6 to 10 with
    2560, and from epoch 11 on with 25600. Schedules take the changed number of steps into account.

    Args:
        sizes: epoch of the fit (from 0) -> batch size.

    Runs at: before_fit, before_train, cleanup_fit; order -95. Reads: epoch. Writes: dl. The samples
        keep the loader's order; after the fit its batch size is what it was.
    Raises: before the first batch: ValueError for an epoch that the fit does not have, for a size that
        leaves no batch; TypeError for a loader of another kind than TensorLoader or DataLoader.
    Source: document 002; Smith et al. 2018, "Don't decay the learning rate, increase the batch size".
    """

    order = Order.BATCH_SIZE
    only_one = "the last one would win; give one the whole table"
    in_evaluation = False
    in_lr_find = False

    def __init__(self, sizes: Mapping[int, int]) -> None:
        if not isinstance(sizes, Mapping) or not sizes:
            raise TypeError(f"BatchSizeCB(sizes={shown(sizes)}): expected a table {{epoch: batch size}}")
        for epoch, bs in sizes.items():
            if not is_whole(epoch, 0) or not is_whole(bs, 1):
                raise ValueError(
                    f"BatchSizeCB(sizes={{{shown(epoch)}: {shown(bs)}}}): expected an epoch from 0 up and a "
                    "size >= 1"
                )
        self.sizes = {int(epoch): int(bs) for epoch, bs in sorted(sizes.items())}
        self._loaders: dict[int, Any] = {}  # size -> loader, kept during the fit, with its workers

    def __repr__(self) -> str:
        return f"BatchSizeCB({self.sizes})"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the batch size follows from the epoch."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        check_reached(self, self.sizes, learn.n_epochs)
        for bs in self.sizes.values():
            adapter_of(self._resized(learn, bs)).check_not_empty(f"train (of batch size {bs})")

    def before_train(self, learn: Learner) -> None:
        if (bs := self._size_at(learn.epoch)) is not None:
            whole, learn.dl = learn.dl, self._resized(learn, bs)
            adapter_of(learn.dl).follow(whole, "epoch")

    def cleanup_fit(self, learn: Learner) -> None:
        self._loaders = {}

    def plan_steps(self, learn: Learner, steps: list[int | None]) -> list[int | None]:
        train = learn.dls.adapters["train"]
        lengths = {bs: adapter_of(train.resized(bs)).n_batches for bs in self.sizes.values()}
        sizes = map(self._size_at, range(len(steps)))
        return [n if bs is None else lengths[bs] for n, bs in zip(steps, sizes, strict=True)]

    def _size_at(self, epoch: int) -> int | None:
        return next((bs for start, bs in reversed(self.sizes.items()) if start <= epoch), None)

    def _resized(self, learn: Learner, bs: int) -> Any:
        if bs not in self._loaders:
            self._loaders[bs] = learn.dls.adapters["train"].resized(bs)
        return self._loaders[bs]
