"""torcheval's MulticlassAccuracy, without the targets that the loss ignores. Slow to import."""

from __future__ import annotations

import warnings
from typing import Any, Self

from torch import Tensor

with warnings.catch_warnings():  # importing torcheval uses torch.jit.script, which is deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from torcheval import metrics


class MulticlassAccuracy(metrics.MulticlassAccuracy):  # type: ignore[misc]
    """Measure the fraction of targets predicted correctly, without those that the loss ignores.

    Args:
        ignored: the target to leave out.

    Shapes: update(preds (N, C), target (N,) int64).
    """

    def __init__(self, ignored: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignored = ignored

    def update(self, preds: Tensor, target: Tensor) -> Self:
        """Add a batch, without indexing by a mask, which would wait for the device."""
        kept = target != self.ignored
        self.num_correct += ((preds.argmax(1) == target) & kept).sum()
        self.num_total += kept.sum()
        return self
