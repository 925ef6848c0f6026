"""SGDAlternate: momentum with the learning rate inside its buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Optimizer, State


class SGDAlternate(Optimizer):
    """Descend a buffer that accumulates whole steps::

        buf <- momentum * buf + lr * g          (buf starts at lr * g)
        p   <- p - buf

    Args:
        lr: learning rate, >= 0.
        momentum: 0 <= momentum < 1.
        foreach: see `minilearn.optim.Optimizer`.

    Momentum: lr inside the buffer. At a constant lr it is torch's convention; when the lr falls, the
        steps accumulated at the old lr keep their old length, and lr=0 does not stop it at once.
    State: momentum_buffer, like p.

    Source: document 002, its `SGD_Alternate`; no weight decay there, so none here. Differs:
        torch.optim.SGD has p <- p - lr * buf.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, *, foreach: bool = True) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum}, foreach)

    def init_state(self, p: Tensor, grad: Tensor) -> State:
        """Return the initial buffer."""
        return {"momentum_buffer": torch.zeros_like(p)}

    def update(self, p: Tensor, grad: Tensor, state: State, pg: dict[str, Any]) -> None:
        """Take the step of the class's equation."""
        p.sub_(state["momentum_buffer"].mul_(pg["momentum"]).add_(grad, alpha=pg["lr"]))

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: dict[str, Any]
    ) -> None:
        """Take the step of the class's equation."""
        bufs = [state["momentum_buffer"] for state in states]
        torch._foreach_mul_(bufs, pg["momentum"])
        torch._foreach_add_(bufs, grads, alpha=pg["lr"])
        torch._foreach_sub_(params, bufs)
