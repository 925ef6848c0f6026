"""MomentumSGD: descend an average of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Optimizer, State


class MomentumSGD(Optimizer):
    """Descend an exponentially weighted average of the gradients::

        p   <- p * (1 - lr * wd)
        avg <- mom * avg + (1 - mom) * g        (avg starts at 0)
        p   <- p - lr * avg

    Args:
        lr: learning rate, >= 0.
        wd: weight decay, >= 0.
        mom: momentum, 0 <= mom < 1.
        foreach: see `minilearn.optim.Optimizer`.

    Momentum: an average, (1 - mom) * g, so it is as long as a gradient, and lr can be 1 / (1 - mom) times
        torch's. It is not corrected for its start at 0: the first steps are small.
        OneCycleLR cycles only what torch calls momentum or betas; ScheduleCB("mom", ...) does it here.
    State: avg, like p.

    Source: document 003. Differs: torch.optim.SGD has buf = mom * buf + g, which starts at g and is
        1 / (1 - mom) times as long, and its weight decay goes through the buffer.
    """

    def __init__(
        self, params: Any, lr: float, wd: float = 0.0, mom: float = 0.9, *, foreach: bool = True
    ) -> None:
        super().__init__(params, {"lr": lr, "wd": wd, "mom": mom}, foreach)

    def init_state(self, p: Tensor, grad: Tensor) -> State:
        """Return the initial average."""
        return {"avg": torch.zeros_like(p)}

    def update(self, p: Tensor, grad: Tensor, state: State, pg: dict[str, Any]) -> None:
        """Take the step of the class's equation."""
        state["avg"].lerp_(grad, 1 - pg["mom"])
        p.add_(state["avg"], alpha=-pg["lr"])

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: dict[str, Any]
    ) -> None:
        """Take the step of the class's equation."""
        avgs = [state["avg"] for state in states]
        torch._foreach_lerp_(avgs, grads, 1 - pg["mom"])
        torch._foreach_add_(params, avgs, alpha=-pg["lr"])
