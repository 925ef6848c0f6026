"""AdaBound: Adam with the lr of each element kept between bounds that close in on SGD's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .base import Optimizer, State
from .groups import Group


class AdaBound(Optimizer):
    """Step like Adam, but bound the lr of each element, more tightly with each step::

        g       <- g + weight_decay * p
        avg     <- beta1 * avg + (1 - beta1) * g                        (from 0)
        sqr_avg <- beta2 * sqr_avg + (1 - beta2) * g**2                 (from 0)
        rate    =  lr * sqrt(1 - beta2**k) / (1 - beta1**k) / (sqrt(sqr_avg) + eps)
        final   =  final_lr * lr / base_lr                              (base_lr: the lr it was built with)
        p       <- p - clamp(rate, final * (1 - 1 / (gamma * k + 1)), final * (1 + 1 / (gamma * k))) * avg

    Args:
        lr: Adam's learning rate, >= 0.
        betas: shares of the past in the averages, 0 <= beta < 1.
        final_lr: > 0, SGD's learning rate, on which the bounds close in.
        gamma: > 0, how fast they close: after 1 / gamma steps they are at half and at twice final_lr.
        eps: > 0, outside of the root.
        weight_decay: >= 0, added to the gradient (not decoupled).
        amsbound: divide by the root of the largest sqr_avg so far.
        foreach: see `minilearn.optim.Optimizer`.

    Momentum: an average, (1 - beta1) * g.
    State: step (the count), avg and sqr_avg, like p, and max_sqr_avg with amsbound.

    Source: Luo et al. 2019 and its authors' code. Differs: the paper's bounds close like
        0.1 -+ 0.1 / ((1 - beta2) * k + 1); these are its code's, where a schedule of lr moves them too.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
        *,
        foreach: bool = True,
    ) -> None:
        defaults = {
            **{"lr": lr, "betas": betas, "final_lr": final_lr, "gamma": gamma, "eps": eps},
            **{"weight_decay": weight_decay, "amsbound": amsbound},
        }
        super().__init__(params, defaults, foreach)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its present lr is the one that a schedule's lr is compared with."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("base_lr", group["lr"])

    def init_state(self, p: Tensor, grad: Tensor) -> State:
        """Return the initial averages and count."""
        state = {"step": torch.tensor(0.0), "avg": torch.zeros_like(p), "sqr_avg": torch.zeros_like(p)}
        return state | ({"max_sqr_avg": torch.zeros_like(p)} if self.group_of(p)["amsbound"] else {})

    def update(self, p: Tensor, grad: Tensor, state: State, pg: Group) -> None:
        """Take the step of the class's equation."""
        state["step"] += 1
        avg, sqr_avg, (beta1, beta2) = state["avg"], state["sqr_avg"], pg["betas"]
        size, low, high = _rates(pg, state["step"].item())
        if wd := pg["weight_decay"]:
            grad = grad.add(p, alpha=wd)
        avg.lerp_(grad, 1 - beta1)
        sqr_avg.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if pg["amsbound"]:
            sqr_avg = torch.maximum(state["max_sqr_avg"], sqr_avg, out=state["max_sqr_avg"])
        rate = sqr_avg.sqrt().add_(pg["eps"]).reciprocal_().mul_(size).clamp_(min=low).clamp_(max=high)
        p.sub_(rate.mul_(avg))

    def update_all(self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: Group) -> None:
        """Take the step of the class's equation."""
        beta1, beta2 = pg["betas"]
        torch._foreach_add_([state["step"] for state in states], 1)
        avgs, sqr_avgs = [state["avg"] for state in states], [state["sqr_avg"] for state in states]
        if wd := pg["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=wd))
        torch._foreach_lerp_(avgs, grads, 1 - beta1)
        torch._foreach_mul_(sqr_avgs, beta2)
        torch._foreach_addcmul_(sqr_avgs, grads, grads, 1 - beta2)
        if pg["amsbound"]:
            largest = [state["max_sqr_avg"] for state in states]
            torch._foreach_maximum_(largest, sqr_avgs)
            sqr_avgs = largest
        rates = torch._foreach_sqrt(sqr_avgs)
        torch._foreach_add_(rates, pg["eps"])
        torch._foreach_reciprocal_(rates)
        of_steps = {k: _rates(pg, k) for k in {state["step"].item() for state in states}}
        sizes, lows, highs = zip(*(of_steps[state["step"].item()] for state in states), strict=True)
        torch._foreach_mul_(rates, sizes)
        torch._foreach_clamp_min_(rates, lows)
        torch._foreach_clamp_max_(rates, highs)
        torch._foreach_mul_(rates, avgs)
        torch._foreach_sub_(params, rates)


def _rates(pg: Group, k: float) -> tuple[float, float, float]:
    """Return Adam's step size at step k, and the lower and upper bound."""
    beta1, beta2 = pg["betas"]
    size = pg["lr"] * math.sqrt(1 - beta2**k) / (1 - beta1**k)
    final = pg["final_lr"] * (pg["lr"] / pg["base_lr"] if pg["lr"] and pg["base_lr"] else bool(pg["lr"]))
    return size, final * (1 - 1 / (pg["gamma"] * k + 1)), final * (1 + 1 / (pg["gamma"] * k))
