"""PredictionsCB: collect what `learn.predict(dl)` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callback import Callback, Order
from ..events import CancelBatchException

if TYPE_CHECKING:
    from ..learner import Learner


class PredictionsCB(Callback):
    """Keep each batch's predictions and leave the batch before its loss, so that no target is needed.

    Runs at: after_predict; order 1000, after all others. Reads: preds.
    """

    order = Order.PREDICTIONS

    def __init__(self) -> None:
        self._preds: list[Any] = []

    def after_predict(self, learn: Learner) -> None:
        if not learn.is_again:
            self._preds.append(learn.preds)
            raise CancelBatchException

    def preds(self) -> Any:
        """Return all predictions on the CPU, (N, ...); tuples and dicts of tensors keep their form."""
        return _join(self._preds)


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat([part.detach().cpu() for part in parts])
    if isinstance(parts[0], dict):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    return type(parts[0])(_join(list(column)) for column in zip(*parts, strict=True))
