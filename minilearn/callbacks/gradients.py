"""Gradients between backward and step: accumulated over several batches, and clipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import counted, number, whole_number
from ..callback import Callback, Order
from ..optim.groups import params_of
from ..processes import by_kind, whole

if TYPE_CHECKING:
    from ..learner import Learner


class GradientAccumulationCB(Callback):
    """Accumulate the gradients of several batches for one optimizer step, as if they were one large batch.

        grad = sum_i count_i * grad(loss_i) / sum_i count_i

    over the batches i of a step, where count_i is what the loss of a batch is a mean over
    (`learn.loss_count`). The reported loss is not divided. The last step of an epoch takes the
    batches that are left. before_step sees the finished gradients; the other batches fire no event of the
    step. Schedules follow the optimizer's steps.

    Args:
        n_batches: batches per step, >= 1.

    Runs at: before_train, before_batch, after_backward; order -70. Writes: is_accumulating.
    State: none; the learner keeps the gradients and their counts.
    Raises: before training: ValueError for more batches than an epoch has; TypeError for a loader without a
        length.
    Differs: from one large batch if the model looks at its whole batch: BatchNorm sees the small ones.
    """

    order = Order.ACCUMULATION
    only_one = "each would decide when to step"
    in_evaluation = False
    in_lr_find = False

    def __init__(self, n_batches: int) -> None:
        self.n_batches = whole_number("GradientAccumulationCB(n_batches", n_batches, of=" of batches")
        self._n_in_epoch = 0

    def __repr__(self) -> str:
        return f"GradientAccumulationCB({self.n_batches})"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it has no state between batches."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing: version 0.1 kept here what the learner keeps now."""

    def before_train(self, learn: Learner) -> None:
        self._n_in_epoch = self._checked(learn.dls.adapter_of(learn.dl).n_batches)

    def _checked(self, n: int | None) -> int:
        if n is None:
            raise TypeError(f"{self!r}: the train loader has no length, so its last batch cannot be known")
        if self.n_batches > n:
            raise ValueError(
                f"{self!r}: an epoch has {counted(n, 'batch')}: expected at most as many; is the batch size "
                "too large?"
            )
        return n

    def plan_steps(self, learn: Learner, steps: list[int | None]) -> list[int | None]:
        return [-(-self._checked(n) // self.n_batches) for n in steps]

    def before_batch(self, learn: Learner) -> None:
        if learn.training:  # an estimate, for callbacks that need it before the forward
            learn.is_accumulating = self._is_accumulating(learn, learn.mean.n + 1)

    def after_backward(self, learn: Learner) -> None:
        learn.is_accumulating = self._is_accumulating(learn, max(learn.mean.n, 1))

    def _is_accumulating(self, learn: Learner, n: int) -> bool:
        return n < self.n_batches and learn.batch_idx + 1 < self._n_in_epoch


class GradientClippingCB(Callback):
    """Scale the gradients down before each step, so that their total norm is at most max_norm.

        grad = grad * min(1, max_norm / norm)

    It runs once per optimizer step, on the gradients that the step uses: accumulated and unscaled.

    Args:
        max_norm: > 0. math.inf clips nothing, but `norm` can still be recorded.
        norm_type: p of the p-norm, > 0; math.inf for the largest absolute value.

    Runs at: before_step; order 45. Writes: the gradients.
    State: norm, before clipping, a tensor on the device; None before the first step.
        `RecorderCB(norm=lambda cb: clip.norm)` records it.
    Source: Pascanu et al. 2013; the clipping is torch's clip_grad_norm_.
    """

    order = Order.CLIPPING
    may_come_and_go = True
    in_graph = True

    def __init__(self, max_norm: float = 1.0, norm_type: float = 2.0) -> None:
        self.max_norm = number("GradientClippingCB(max_norm", max_norm, above=0, infinite=True)
        self.norm_type = number("GradientClippingCB(norm_type", norm_type, above=0, infinite=True)
        self.norm: Tensor | None = None

    def __repr__(self) -> str:
        return f"GradientClippingCB({self.max_norm})"

    def before_step(self, learn: Learner) -> None:
        params = params_of(learn.opt, learn.model)
        grads = [p.grad for p in params if p.grad is not None]
        if len(by_kind(grads)) > 1:  # which torch's function does not take together
            self.norm = total_norm(grads, self.norm_type)
            scale = torch.clamp(self.max_norm / (self.norm + 1e-6), max=1.0)
            for grad in grads:
                grad.mul_(scale)
        elif self.max_norm == math.inf:
            self.norm = total_norm(grads, self.norm_type)
        else:
            self.norm = whole(torch.nn.utils.clip_grad_norm_(params, self.max_norm, self.norm_type))


def total_norm(grads: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Return the norm of all gradients together, of which some may be sharded."""
    norms = [whole(torch.nn.utils.get_total_norm(kind, norm_type)) for kind in by_kind(grads)]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), norm_type)
