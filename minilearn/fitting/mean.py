"""What the gradients of a step are a mean over: batches that were accumulated, and several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..batches import n_samples
from ..counting import on_host
from ..optim.groups import groups_of

if TYPE_CHECKING:
    from ..learner import Learner


class StepMean:
    """The mean of a step's gradients over all that its losses count.

        grad = sum_i count_i * grad(loss_i) / sum_i count_i

    over the batches i of a step, in all processes. Each loss is weighed by its count before backward, and the
    sum of them is divided by that of the counts before the step, so that these are the gradients of the
    batches as one. With one batch a step and one process there is nothing to do.

    weight (by which backward multiplies the loss; None is 1), n (batches that were added since the last
    step), has_rest (whether they wait for others to join them).
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a fit."""
        self._common = 0.0  # the unit of several processes, which has to be the same in all
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self.weight: Tensor | None = None
        self.n = 0
        self.has_rest = False
        self._total: Any = 0.0  # of the counts, relative to `_unit`
        self._unit = 0.0  # a number of the first batch, for weights to be near 1; 0 before it
        self._divisor: Any = None  # of the gradients, while the step is taken
        self._is_empty = False  # whether the batch, which is all of the step, counts nothing

    def weigh(self, learn: Learner) -> None:
        """Take a batch's count, after its forward."""
        count, n_processes = learn.loss_count, learn.n_processes
        self._is_empty = not isinstance(count, Tensor) and count == 0
        if not (learn.is_accumulating or self.n or n_processes > 1):
            self.weight = None
        elif learn.count.is_sum:
            self.weight = None if n_processes == 1 else torch.full_like(learn.loss, n_processes)
        else:
            if not self._unit:
                if n_processes > 1:
                    self._common = self._common or learn.processes.broadcast(_unit_of(learn))
                self._unit = self._common or _unit_of(learn)
            share = count / self._unit
            if self._divisor is not None:  # once more, in the step
                share = share / self._divisor
            self.weight = None if share is not count and _is_one(share) else _like(share, learn.loss)

    def add(self, learn: Learner) -> None:
        """Take a batch whose gradients were added."""
        if learn.is_accumulating or self.n or learn.n_processes > 1:
            self.n, self.has_rest = self.n + 1, self.has_rest or learn.is_accumulating
            if not learn.count.is_sum:
                self._total = self._total + learn.loss_count / self._unit

    def close(self, learn: Learner) -> bool:
        """Make the gradients those of the step; return whether there is anything to step by."""
        if not self.n:
            return not self._is_empty
        if learn.n_processes > 1 and "batch" not in learn.scopes:  # a rest that was left to one process
            learn.processes.average(gradients(learn))
        if learn.count.is_sum:
            return True
        total = on_host(learn.processes.mean_of(self._total, learn.loss))
        if not isinstance(total, Tensor) and total == 0:
            return False
        self._divisor = torch.where(total > 0, total, 1) if isinstance(total, Tensor) else total
        if isinstance(total, Tensor) or total != 1:
            torch._foreach_div_(gradients(learn), self._divisor)
        return True

    def end(self, learn: Learner, is_done: bool) -> None:
        """End the step. Where it was cancelled, the gradients are kept, and more may join them."""
        if is_done or not self.n:
            self.clear()
            return
        divisor, self._divisor, self.has_rest = (
            self._divisor,
            None,
            False,
        )  # it is kept, as the callback wants
        if divisor is not None and (isinstance(divisor, Tensor) or divisor != 1):
            torch._foreach_mul_(gradients(learn), divisor)

    def cancelled(self, learn: Learner, scope: str, keep: bool) -> None:
        """Drop the gradients of a step or batch that was cancelled, or keep them if they are finite."""
        grads = gradients(learn)
        if not keep:
            for group in groups_of(learn.opt):
                for p in group.get("params", ()):
                    p.grad = None
            self.clear()
        elif grads:
            is_finite = torch.stack([grad.isfinite().all() for grad in grads]).all()
            for grad in grads:
                grad.copy_(torch.where(is_finite, grad, 0))
            if self.n:
                total = torch.as_tensor(self._total, device=is_finite.device)
                self._total = on_host(torch.where(is_finite, total, 0))

    def state_dict(self) -> dict[str, Any]:
        """Return what was added since the last step."""
        names = ("n", "has_rest", "_total", "_unit", "_common")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.clear()
        vars(self).update(state)


def gradients(learn: Learner) -> list[Tensor]:
    """Return the gradients that there are of what the optimizer trains."""
    return [p.grad for group in groups_of(learn.opt) for p in group.get("params", ()) if p.grad is not None]


def _unit_of(learn: Learner) -> float:
    """Return a number for counts to be relative to, known without waiting for the device."""
    count = learn.loss_count
    if isinstance(count, Tensor) or not count:
        target = learn.yb if learn.yb is not None else learn.xb
        count = target.numel() if isinstance(target, Tensor) else n_samples(target)
    return float(count or 1)


def _is_one(share: Any) -> bool:
    return not isinstance(share, Tensor) and share == 1


def _like(share: Any, loss: Tensor) -> Tensor:
    return share.to(loss.dtype) if isinstance(share, Tensor) else torch.full_like(loss, share)
