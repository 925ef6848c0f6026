"""Adam: an average of gradients over the root of the average of their squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Optimizer, State


class Adam(Optimizer):
    """Divide the average gradient by the root of the average square, both bias-corrected::

        p       <- p * (1 - lr * wd)
        t       <- t + 1                                        (t counts this parameter's steps)
        avg     <- beta1 * avg + (1 - beta1) * g                (from 0)
        sqr_avg <- beta2 * sqr_avg + (1 - beta2) * g**2         (from 0)
        p       <- p - lr * (avg / (1 - beta1**t)) / sqrt(sqr_avg / (1 - beta2**t) + eps)

    Args:
        lr: learning rate, >= 0.
        wd: weight decay, >= 0, decoupled as in AdamW.
        beta1, beta2: share of the past in each average, 0 <= beta < 1.
        eps: > 0, inside the root: torch's sqrt(v) + 1e-8 is far smaller than sqrt(v + 1e-5), so a
            gradient below about 0.003 takes a shorter step here.
        foreach: see `minilearn.optim.Optimizer`.

    Momentum: an average, (1 - beta1) * g, bias-corrected. OneCycleLR cycles only what torch calls momentum
        or betas; ScheduleCB("beta1", ...) does it here.
    State: step (an int), avg and sqr_avg, like p.

    Source: Kingma & Ba 2015; document 003. Differs: torch.optim.Adam has eps outside of the root, and
        beta2 0.999 and eps 1e-8 by default. The document has one count of steps for all parameters; here
        a parameter that joins late starts without bias too. Document 002 prints the update with a plus
        sign and multiplies it by the gradient once more, and corrects the averages in place.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        wd: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.99,
        eps: float = 1e-5,
        *,
        foreach: bool = True,
    ) -> None:
        defaults = {"lr": lr, "wd": wd, "beta1": beta1, "beta2": beta2, "eps": eps}
        super().__init__(params, defaults, foreach)

    def init_state(self, p: Tensor, grad: Tensor) -> State:
        """Return the initial averages and count."""
        return {"step": 0, "avg": torch.zeros_like(p), "sqr_avg": torch.zeros_like(p)}

    def update(self, p: Tensor, grad: Tensor, state: State, pg: dict[str, Any]) -> None:
        """Take the step of the class's equation."""
        state["step"] += 1
        avg, sqr_avg, t = state["avg"], state["sqr_avg"], state["step"]
        avg.lerp_(grad, 1 - pg["beta1"])
        sqr_avg.mul_(pg["beta2"]).addcmul_(grad, grad, value=1 - pg["beta2"])
        root = sqr_avg.div(1 - pg["beta2"] ** t).add_(pg["eps"]).sqrt_()
        p.addcdiv_(avg, root, value=-pg["lr"] / (1 - pg["beta1"] ** t))

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: dict[str, Any]
    ) -> None:
        """Take the step of the class's equation."""
        for state in states:
            state["step"] += 1
        avgs = [state["avg"] for state in states]
        sqr_avgs = [state["sqr_avg"] for state in states]
        torch._foreach_lerp_(avgs, grads, 1 - pg["beta1"])
        torch._foreach_mul_(sqr_avgs, pg["beta2"])
        torch._foreach_addcmul_(sqr_avgs, grads, grads, 1 - pg["beta2"])
        # One number per tensor, because parameters may have joined at different times.
        roots = torch._foreach_div(sqr_avgs, [1 - pg["beta2"] ** state["step"] for state in states])
        torch._foreach_add_(roots, pg["eps"])
        torch._foreach_sqrt_(roots)
        lrs = [-pg["lr"] / (1 - pg["beta1"] ** state["step"]) for state in states]
        torch._foreach_addcdiv_(params, avgs, roots, lrs)
