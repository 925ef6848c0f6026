"""torcheval's MulticlassAccuracy, for targets some of which the loss ignores. Slow to import."""

from __future__ import annotations

import warnings
from typing import Any, Self

from torch import Tensor

with warnings.catch_warnings():  # importing torcheval uses torch.jit.script, which warns that it is old
    warnings.simplefilter("ignore", FutureWarning)
    from torcheval import metrics


class MulticlassAccuracy(metrics.MulticlassAccuracy):  # type: ignore[misc]
    """Measure the share of targets that are predicted correctly; those that the loss ignores are left out.

    Args:
        ignored: the target that is left out.

    Shapes: update(preds (N, C), target (N,) int64).
    """

    def __init__(self, ignored: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignored = ignored

    def update(self, preds: Tensor, target: Tensor) -> Self:
        """Add a batch. Indexing by a mask would wait for the device, so none is used."""
        kept = target != self.ignored
        self.num_correct += ((preds.argmax(1) == target) & kept).sum()
        self.num_total += kept.sum()
        return self
