"""SAMCB: sharpness-aware minimization, two forward and backward passes for each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import flag, number
from ..callback import Callback, Order
from ..optim.groups import params_of
from ..parameters import roots_of
from ..processes import whole
from .gradients import GradientAccumulationCB, total_norm

if TYPE_CHECKING:
    from ..learner import Learner

_EPS = 1e-12  # beside the norm, as in the authors' code


class SAMCB(Callback):
    """Step with the gradient at the worst point nearby, which leads to flat minima.

        e = rho * g / ||g||;  g <- gradient at (w + e), of the same batch

    where g is the batch's gradient at the weights w, and ||g|| its norm over all parameters. The optimizer
    then steps from w as usual. Loss and predictions that are reported are those at w. A step takes twice as
    long.

    Dropout draws another mask in the second pass. Buffers, such as BatchNorms' statistics, are updated by the
    first pass only. With several processes g is the mean over all of them.

    Args:
        rho: the distance to w + e, > 0.
        adaptive: scale with the size of each weight: e = rho * w^2 * g / ||w * g|| (ASAM). rho is then
            larger, 0.5 to 2.

    Runs at: before_fit, before_batch, after_backward; order -25. Writes: the gradients.
    Raises: before training: ValueError beside GradientAccumulationCB, because it would need all batches of a
        step again. In training: RuntimeError for gradients that are kept from a batch before.
    Source: Foret et al. 2021; Kwon et al. 2021 for `adaptive`.
    """

    order = Order.SHARPNESS
    only_one = "each step has one worst point"
    in_evaluation = False

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        self.rho = number("SAMCB(rho", rho, above=0)
        self.adaptive = flag("SAMCB(adaptive", adaptive)

    def __repr__(self) -> str:
        return f"SAMCB({self.rho}{', adaptive=True' if self.adaptive else ''})"

    def before_fit(self, learn: Learner) -> None:
        for cb in learn.cbs:
            if isinstance(cb, GradientAccumulationCB) and learn.takes_part(cb) and cb.n_batches > 1:
                raise ValueError(
                    f"{self!r} with {cb!r}: a step of several batches would need all of them again; expected "
                    "one of the two, and a larger batch"
                )

    def before_batch(self, learn: Learner) -> None:
        if not learn.training:
            return
        kept = [p.grad for p in params_of(learn.opt, learn.model) if p.grad is not None]  # none, as a rule
        if any(bool(whole(grad).any()) for grad in kept):
            raise RuntimeError(
                f"{self!r}: there are gradients of an earlier batch, whose step was cancelled or which "
                "MomentumCB keeps; SAM would drop them: expected steps that are taken, or cancelled with "
                "CancelStepException(keep=False)"
            )

    def after_backward(self, learn: Learner) -> None:
        params = [p for p in params_of(learn.opt, learn.model) if p.grad is not None]
        if not params:
            return
        buffers = [b for root in roots_of(learn) for b in root.buffers()]
        weights, kept = ([t.detach().clone() for t in tensors] for tensors in (params, buffers))
        self._climb(params)
        try:
            learn.again(backward=True)
        finally:
            _put(params, weights)
            _put(buffers, kept)

    @torch.no_grad()
    def _climb(self, params: list[Tensor]) -> None:
        """Move the weights to the worst point nearby, and clear the gradients."""
        steps = [p.grad for p in params if p.grad is not None]
        if self.adaptive:
            steps = [grad * p.abs() for p, grad in zip(params, steps, strict=True)]
        scale = self.rho / (total_norm(steps) + _EPS)
        if self.adaptive:
            steps = [step * p.abs() for p, step in zip(params, steps, strict=True)]
        for p, step in zip(params, steps, strict=True):
            p.add_(step * scale.to(step.device))
            p.grad = None


@torch.no_grad()
def _put(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
