"""What the gradients of a step are a mean over: batches that were accumulated, and several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..batches import n_samples
from ..counting import Count, on_host, only_counted, zero_of
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
    step), has_rest (whether they wait for others to join them), count (what says what a loss is a mean over).
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a fit."""
        self.count = Count()
        self._given: tuple[Tensor, int] | None = None  # a target without ignored ones, and its version
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

    def is_free(self, learn: Learner, targets: Tensor | None) -> bool:
        """Whether the loss ignores none of all targets, so that they need not be counted in each batch."""
        self._count_of(learn)
        return targets is not None and self.count.is_free(targets)

    def given(self, target: Tensor) -> None:
        """Take a target of which the loss ignores nothing, unless a hook changes it."""
        self._given = target, target._version

    def take(self, learn: Learner) -> None:
        """Take over what a batch's loss is a mean over, unless the owner of get_loss said it."""
        if learn.loss is None:  # no loss is computed in this pass
            return
        if learn.loss_count is None:
            learn.loss_count = self._counted(learn)
        count = learn.loss_count
        if not isinstance(count, Tensor):
            if count == 0:  # the mean over nothing is nan, and would spread
                learn.loss = zero_of(learn.preds)
        elif learn.training and not self.count.is_safe:
            only_counted(learn.preds, count)
        if learn.training:
            self._weigh(learn, count)

    def _counted(self, learn: Learner) -> Any:
        if not self._count_of(learn):
            target = learn.yb if learn.is_unpacked else None
            return n_samples(learn.batch if target is None else target) or n_samples(learn.batch)
        target = learn.yb
        if self._given is not None and self.count.is_by_class:
            given, version = self._given
            if target is given and target._version == version:
                return target.numel()
        return self.count(learn.preds, target, learn.xb)

    def _count_of(self, learn: Learner) -> bool:
        """Have the count be that of the loss; return whether it is known."""
        is_known = learn.has_default("get_loss")
        loss_func = learn.loss_func if is_known else None
        if self.count.loss_func is not loss_func:
            self.count = Count(loss_func)
        return is_known

    def _weigh(self, learn: Learner, count: Any) -> None:
        n_processes = learn.processes.n
        self._is_empty = not isinstance(count, Tensor) and count == 0
        if not (learn.is_accumulating or self.n or n_processes > 1):
            self.weight = None
        elif self.count.is_sum:
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

    @contextmanager
    def kept_weight(self) -> Iterator[None]:
        """Weigh another forward of the batch inside a `with`."""
        own = self.weight, self._is_empty
        try:
            yield
        finally:
            self.weight, self._is_empty = own

    def add(self, learn: Learner) -> None:
        """Take a batch whose gradients were added."""
        if learn.is_accumulating or self.n or learn.processes.n > 1:
            self.n, self.has_rest = self.n + 1, self.has_rest or learn.is_accumulating
            if not self.count.is_sum:
                self._total = self._total + learn.loss_count / self._unit

    def close(self, learn: Learner) -> bool:
        """Make the gradients those of the step; return whether there is anything to step by."""
        if not self.n:
            return not self._is_empty
        if learn.n_processes > 1 and "batch" not in learn.scopes:  # a rest that was left to one process
            learn.processes.average(gradients(learn))
        if self.count.is_sum:
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
        if not self.n:
            return
        if is_done:
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
