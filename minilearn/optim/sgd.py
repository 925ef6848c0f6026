"""SGD: gradient descent, with decoupled weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Optimizer, State


class SGD(Optimizer):
    """Descend the gradient::

        p <- p * (1 - lr * wd)
        p <- p - lr * g

    Args:
        lr: learning rate, >= 0.
        wd: weight decay, >= 0.
        foreach: see `minilearn.optim.Optimizer`.

    No momentum, no state.

    Source: document 003. Differs: torch.optim.SGD adds weight_decay * p to the gradient. Without
        momentum that is the same, as the document says; with an average of gradients it is not,
        because then the decay is averaged too.
    """

    def __init__(self, params: Any, lr: float, wd: float = 0.0, *, foreach: bool = True) -> None:
        super().__init__(params, {"lr": lr, "wd": wd}, foreach)

    def update(self, p: Tensor, grad: Tensor, state: State, pg: dict[str, Any]) -> None:
        """Take the step of the class's equation."""
        p.add_(grad, alpha=-pg["lr"])

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: dict[str, Any]
    ) -> None:
        """Take the step of the class's equation."""
        torch._foreach_add_(params, grads, alpha=-pg["lr"])
