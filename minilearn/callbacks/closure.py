"""ClosureCB: steps of optimizers that evaluate the model themselves, such as LBFGS."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..callback import Callback
from ..counting import known_count
from ..optim.groups import params_of
from .gradients import GradientAccumulationCB, GradientClippingCB
from .momentum import MomentumCB
from .sharpness import SAMCB

if TYPE_CHECKING:
    from ..learner import Learner

_ONLY_FIRST = (GradientAccumulationCB, GradientClippingCB, SAMCB, MomentumCB)


class ClosureCB(Callback):
    """Step with a closure that evaluates the batch again, as LBFGS does several times in a step.

    A fit whose optimizer needs a closure has this callback by itself, unless some other one owns `step`. Add
    it for an optimizer that takes a closure and only at the step says that it needs one.

    The closure returns the loss, with its gradients in the parameters. Its first call gives those of the
    batch, which are there already; each other one runs the forward and backward again, in the modes of
    training: BatchNorms update their statistics and dropout draws a mask each time. The reported loss is that
    of the first call. With several processes, all get the mean loss over them, so they search along
    the same line.

    Runs at: before_fit. Owns: step. Writes: the gradients.
    Raises: before training: ValueError beside GradientAccumulationCB, GradientClippingCB, SAMCB and
        MomentumCB, which would change the gradients of the first evaluation only; TypeError for an optimizer
        whose step takes no closure.
    Differs: from torch's `opt.step(closure)`, whose closure clears the gradients itself.
    """

    only_one = "each step has one owner"
    in_evaluation = False

    def before_fit(self, learn: Learner) -> None:
        for cb in learn.cbs:
            is_idle = isinstance(cb, GradientClippingCB) and cb.max_norm == math.inf
            if not is_idle and isinstance(cb, _ONLY_FIRST) and learn.takes_part(cb):
                raise ValueError(
                    f"{cb!r} with a {type(learn.opt).__name__}, which evaluates a batch several times in a "
                    "step: only the first gradients would be changed; expected one of the two"
                )

    def step(self, learn: Learner) -> None:
        calls = 0

        def closure() -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                return self._joint(learn, learn.loss)
            for p in params_of(learn.opt, learn.model):
                p.grad = None
            return self._joint(learn, learn.again(backward=True)[1])

        learn.opt.step(closure)
        if not calls:
            raise TypeError(
                f"{type(learn.opt).__name__}.step did not call its closure: expected an optimizer that needs "
                f"one; leave out {self!r}"
            )

    def _joint(self, learn: Learner, loss: Tensor) -> Tensor:
        """Return the mean of a loss over all processes."""
        loss = loss.detach()  # its gradients are there
        if learn.processes.n_shards == 1:
            return loss
        count = known_count(learn)
        mean = learn.processes.mean_of
        total = mean(loss * count if isinstance(count, Tensor) or count else 0.0, loss)
        return (total / mean(count, loss)).to(loss.dtype)
