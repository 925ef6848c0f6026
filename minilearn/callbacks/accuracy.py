"""MulticlassAccuracy: the default metric of a classification."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor


class MulticlassAccuracy:
    """Measure the fraction of targets predicted correctly, without those that the loss ignores.

    Args:
        ignored: the target to leave out.

    Shapes: update(preds (N, C), target (N,) int64); compute() a number, nan before the first update.
    State: how many were correct, and how many there were, on the device of `to`.
    """

    def __init__(self, ignored: int = -100) -> None:
        self.ignored, self.device = ignored, torch.device("cpu")
        self.reset()

    def reset(self) -> Self:
        """Begin again."""
        self.num_correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.num_total = torch.zeros_like(self.num_correct)
        return self

    def update(self, preds: Tensor, target: Tensor) -> Self:
        """Add a batch, without indexing by a mask, which would wait for the device."""
        kept = target != self.ignored
        self.num_correct += ((preds.argmax(1) == target) & kept).sum()
        self.num_total += kept.sum()
        return self

    def compute(self) -> Tensor:
        """Return the fraction, a float32."""
        return self.num_correct / self.num_total

    def merge_state(self, metrics: Iterable[Self]) -> Self:
        """Add what other metrics counted, such as those of other processes."""
        for metric in metrics:
            self.num_correct += metric.num_correct.to(self.device)
            self.num_total += metric.num_total.to(self.device)
        return self

    def to(self, device: str | torch.device) -> Self:
        """Move the state to a device."""
        self.device = torch.device(device)
        self.num_correct, self.num_total = self.num_correct.to(device), self.num_total.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the two counts."""
        return {"num_correct": self.num_correct.clone(), "num_total": self.num_total.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.num_correct = state["num_correct"].to(self.device, torch.int64, copy=True)
        self.num_total = state["num_total"].to(self.device, torch.int64, copy=True)
