"""MomentumCB: momentum by keeping a share of the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..arguments import number
from ..callback import Callback
from ..optim.groups import params_of

if TYPE_CHECKING:
    from ..learner import Learner


class MomentumCB(Callback):
    """Give plain SGD a momentum: instead of clearing the gradients, keep `mom` times each.

    g <- mom * g, to which the next backward adds its gradient, so that the step uses
    buf = mom * buf + g: torch's convention (dampening 0), and equal to torch.optim.SGD(momentum=mom). For a
    parameter that is frozen during a fit, nothing is kept.

    Args:
        mom: 0 <= mom < 1.

    Runs at: before_step, cleanup_fit. Owns: zero_grad. Writes: the parameters' grad. What is kept is
        cleared after the fit.
    Source: document 003, whose first table trains with MomentumCB().
    Differs: there a method of the learner hides this hook, so it never ran.
    """

    def __init__(self, mom: float = 0.85) -> None:
        self.mom = number("mom", mom, low=0, below=1)

    def zero_grad(self, learn: Learner) -> None:
        grads = [p.grad for p in params_of(learn.opt, learn.model) if p.grad is not None]
        torch._foreach_mul_(grads, self.mom)

    def before_step(self, learn: Learner) -> None:
        for p in params_of(learn.opt, learn.model):
            if not p.requires_grad:  # frozen since the last step: the kept gradient would still move it
                p.grad = None

    def cleanup_fit(self, learn: Learner) -> None:
        for p in params_of(learn.opt, learn.model):
            p.grad = None
