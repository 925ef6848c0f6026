"""RMSProp: divide the gradient by its recent size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Optimizer, State


class RMSProp(Optimizer):
    """Divide each gradient by the root of the average of its squares::

        p       <- p * (1 - lr * wd)
        sqr_avg <- sqr_mom * sqr_avg + (1 - sqr_mom) * g**2     (sqr_avg starts at the first g**2)
        p       <- p - lr * g / (sqrt(sqr_avg) + eps)

    Args:
        lr: learning rate, >= 0.
        wd: weight decay, >= 0.
        sqr_mom: share of the past in the average, 0 <= sqr_mom < 1.
        eps: > 0, outside of the root.
        foreach: see `minilearn.optim.Optimizer`.

    Momentum: none.
    State: sqr_avg, like p.

    Source: Hinton, Coursera lecture 6e, 2012; document 003. Differs: torch.optim.RMSprop starts the
        average at 0, which makes its first step 1 / sqrt(1 - alpha) = 10 times as long, and adds weight
        decay to the gradient. Document 002 prints the update with a plus sign, which would climb.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        wd: float = 0.0,
        sqr_mom: float = 0.99,
        eps: float = 1e-5,
        *,
        foreach: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "wd": wd, "sqr_mom": sqr_mom, "eps": eps}, foreach)

    def init_state(self, p: Tensor, grad: Tensor) -> State:
        """Return the initial average."""
        return {"sqr_avg": grad.square()}

    def update(self, p: Tensor, grad: Tensor, state: State, pg: dict[str, Any]) -> None:
        """Take the step of the class's equation."""
        sqr_avg = state["sqr_avg"]
        sqr_avg.mul_(pg["sqr_mom"]).addcmul_(grad, grad, value=1 - pg["sqr_mom"])
        p.addcdiv_(grad, sqr_avg.sqrt().add_(pg["eps"]), value=-pg["lr"])

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: dict[str, Any]
    ) -> None:
        """Take the step of the class's equation."""
        sqr_avgs = [state["sqr_avg"] for state in states]
        torch._foreach_mul_(sqr_avgs, pg["sqr_mom"])
        torch._foreach_addcmul_(sqr_avgs, grads, grads, 1 - pg["sqr_mom"])
        roots = torch._foreach_sqrt(sqr_avgs)
        torch._foreach_add_(roots, pg["eps"])
        torch._foreach_addcdiv_(params, grads, roots, -pg["lr"])
