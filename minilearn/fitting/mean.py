"""What the gradients of a step are a mean over: accumulated batches, and several processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..batches import is_pair, n_samples, samples_of
from ..counting import Count, Rule, known_count, on_host, only_counted, zero_of
from ..optim.groups import params_of
from ..parameters import extra_params
from ..processes import by_kind, is_part
from .checks import check_gradient, check_one_number

if TYPE_CHECKING:
    from ..data.adapters.adapter import Adapter
    from ..learner import Learner
_STATE = (
    *("n", "has_rest", "_is_accumulated", "_is_joining", "_total", "_unit", "_common", "_rule"),
    "n_uncounted",
)


class StepMean:
    """The mean of a step's gradients over everything that its losses count.

        grad = sum_i count_i * grad(loss_i) / sum_i count_i

    over the batches i of a step, in all processes. Each loss is weighted by its count before backward. Before
    the step, the sum of the gradients is divided by the sum of the counts. So the gradients are those of one
    batch made of all of them. With one batch per step and one process there is nothing to do.

    weight (the factor for the loss in backward; None means 1), n (batches added since the last step),
    has_rest (whether they wait for more batches), count (says what a loss is a mean over), n_uncounted (steps
    of this fit that were not taken, because nothing was counted).
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a fit."""
        self.count = Count()
        self._free: Count | None = None  # the count, if it ignores nothing in the pass
        # The loss that ignores nothing of a target, this target, its version and its size.
        self._given: tuple[Any, Tensor, int, int] | None = None
        self._common = 0.0  # the unit that several processes share
        self._rule: list[Any] | None = None  # a Rule, found in the first batch
        self.n_uncounted = 0
        self.has_warned = False  # of an epoch without a step
        self._before_epoch = (0, 0)  # n_uncounted and the learner's n_steps
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self.weight: Tensor | None = None
        self.n = 0
        self.has_rest = False
        self._is_accumulated = False  # whether it has, or was to have, several batches
        self._total: Any = 0.0  # sum of the counts, relative to `_unit`
        self._unit = 0.0  # from the first batch, so that weights are near 1; 0 before it
        self._divisor: Any = None  # of the gradients, while the step is taken
        self._is_joining = False  # whether there are gradients of a cancelled step, outside the mean
        self._is_empty = False  # whether the step's only batch counts nothing

    # What a batch counts --------------------------------------------------------------------------

    def is_free(self, learn: Learner, adapter: Adapter) -> bool:
        """Whether the loss ignores no target of a loader, so that they need not be counted in each batch."""
        self._free = self._given = None
        if not learn.has_default("get_loss"):
            return False
        self._count_of(learn.loss_func)
        targets = adapter.targets() if self.count.is_by_class else None
        if targets is None or not all(map(self.count.is_free, targets)):
            return False
        self._free = self.count
        return True

    def given(self, target: Tensor) -> None:
        """Note a target in which the loss ignores nothing, unless a hook changes it or the loss."""
        n = 0 if self._free is None else target.numel()
        self._given = (self.count.loss_func, target, target._version, n) if n else None

    def _count_of(self, loss_func: Any) -> None:
        self.count, self._free, self._given = Count(loss_func), None, None
        if self._rule is not None:
            self.count.use(Rule(*self._rule))

    def found(self, rule: Rule | None) -> None:
        """Take what the loss was seen to do in the first batch, for the rest of the pass."""
        if rule is not None and self._rule is None:
            self._rule = [rule.ignored, rule.is_shifted, rule.is_safe]
            self.count.use(rule)

    def take(self, learn: Learner) -> None:
        """Set what a batch's loss is a mean over, unless the owner of get_loss set it."""
        if learn.loss is None:  # this pass computes no loss
            return
        count, is_empty = learn.loss_count, False
        if count is None and (count := self._known(learn)) is not None and learn.batch_idx:
            learn.loss_count = count
        else:
            count, is_empty = self._looked_at(learn, count)
        if learn.training:
            self._is_empty, self.weight = is_empty, None
            if learn.is_accumulating or self.n or learn.processes.n_shards > 1:
                self._weigh(learn, count)

    def _known(self, learn: Learner) -> int | None:
        """Return the size of the batch's target, if it is known that the loss ignores nothing in it."""
        given = self._given
        if given is None or learn.loss_by is not given[0] or learn.yb is not given[1]:
            return None
        return given[3] if given[1]._version == given[2] else None

    def _looked_at(self, learn: Learner, count: Any) -> tuple[Any, bool]:
        """Check a batch's loss, and set what it is a mean over; return this, and whether it is nothing."""
        loss, loss_func = learn.loss, learn.loss_by
        if loss_func is not None:
            if self.count.loss_func is not loss_func:
                self._count_of(loss_func)
            if not isinstance(loss, Tensor) or loss.ndim:
                check_one_number(loss_func, loss)
            if learn.training and learn.batch_idx == learn.epoch == 0:
                check_gradient(learn)
        elif not isinstance(loss, Tensor) and learn.training and learn.has_default("backward"):
            check_one_number(None, loss)
        learn.loss_count = count = self._counted(learn) if count is None else on_host(count)
        if isinstance(count, Tensor):
            if learn.training and not self.count.is_safe:
                only_counted(learn.preds, count)
        elif count == 0:  # the mean over nothing is nan, which would spread
            learn.loss = zero_of(loss if learn.preds is None else learn.preds)
            return count, True
        return count, False

    def _counted(self, learn: Learner) -> Any:
        if learn.loss_by is None:
            if self.count.loss_func is not None:
                self._count_of(None)
            found = None
            if learn.is_unpacked or is_pair(learn.batch):
                found = samples_of(learn, learn.xb, learn.yb)
            return found or n_samples(learn.batch)
        return self.count(learn.preds, learn.yb, learn.xb, learn)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run another forward inside a `with`, of this batch or of a nested pass."""
        names = ("count", "weight", "_free", "_given", "_is_empty")
        own = {name: getattr(self, name) for name in names}
        try:
            yield
        finally:
            vars(self).update(own)

    # The step -------------------------------------------------------------------------------------

    def _weigh(self, learn: Learner, count: Any) -> None:
        """Set the factor for the loss of a batch that is not the only one of its step."""
        n_processes = learn.processes.n_shards
        if self.count.is_sum:
            self._unit = 1.0
            self.weight = None if n_processes == 1 else torch.full_like(learn.loss, n_processes)
        else:
            if not self._unit:
                if n_processes > 1:
                    self._common = self._common or learn.processes.broadcast(_unit_of(learn))
                self._unit = self._common or _unit_of(learn)
            share = self._share(learn)
            if self._divisor is not None:  # `learn.again`, inside the step
                share = share / self._divisor
            self.weight = None if share is not count and _is_one(share) else _like(share, learn.loss)

    def _share(self, learn: Learner) -> Any:
        share = known_count(learn) / self._unit
        if not self._is_joining or learn.is_accumulating or self._is_accumulated:
            return share
        # Divided by the mean over all processes now: the gradients that it joins must not be divided.
        mean = learn.processes.mean_of(share, learn.loss)
        return torch.where(mean > 0, share / mean, 0)

    def add(self, learn: Learner) -> None:
        """Count a batch whose gradients were added."""
        if learn.is_accumulating or self.n or learn.processes.n_shards > 1:
            self.n, self.has_rest = self.n + 1, self.has_rest or learn.is_accumulating
            self._is_accumulated = self._is_accumulated or self.has_rest
            share = known_count(learn) / self._unit if self.count.is_sum else self._share(learn)
            self._total = self._total + share

    def close(self, learn: Learner) -> bool:
        """Turn the accumulated gradients into those of the step; return whether there is a step to take."""
        if not self.n:
            self.n_uncounted += self._is_empty
            return not self._is_empty
        if learn.processes.n_shards > 1 and "batch" not in learn.scopes:  # a rest, not averaged yet
            _join(learn)
        total = on_host(learn.processes.mean_of(self._total, trained(learn)[0]))
        if not isinstance(total, Tensor) and total == 0:
            self.n_uncounted += 1
            self.clear()
            return False
        if not self.count.is_sum:
            self._divisor = torch.where(total > 0, total, 1) if isinstance(total, Tensor) else total
            self._scale(learn, torch._foreach_div_)
        return True

    def _scale(self, learn: Learner, by: Callable[..., Any]) -> None:
        """Divide the gradients by the divisor of the step, or multiply them by it."""
        divisor, grads = self._divisor, gradients(learn)
        if grads and divisor is not None and (isinstance(divisor, Tensor) or divisor != 1):
            for kind in by_kind(grads):
                by(kind, divisor)

    def end(self, learn: Learner, is_done: bool) -> None:
        """End the step. If it was cancelled, the gradients are kept, and later batches may add to them."""
        if not self.n:
            return
        if is_done or not self._is_accumulated:  # those of one batch are kept as they are
            self.clear()
            self._is_joining = not is_done and learn.processes.n_shards > 1
            return
        self._scale(learn, torch._foreach_mul_)
        self._divisor, self.has_rest = None, False  # kept, as the callback wants

    def cancelled(self, learn: Learner, scope: str, keep: bool) -> None:
        """Drop the gradients of a cancelled step or batch, or keep them, as 0 if they are not finite."""
        if not keep:
            for p in trained(learn):
                p.grad = None
            self.clear()
            return
        if scope == "batch" and self.n and not self._is_accumulated:  # only with several processes
            self.close(learn)
            self.clear()
            self._is_joining = True
        values = [_values(grad) for grad in gradients(learn)]
        if not values:
            return
        device = values[0].device
        is_finite = torch.stack([value.isfinite().all().to(device) for value in values]).all()
        if any(is_part(grad) for grad in gradients(learn)):
            is_finite = learn.processes.mean_of(is_finite, is_finite, is_of_part=True) == 1
        for value in values:
            value.copy_(torch.where(is_finite.to(value.device), value, 0))
        if self.n:
            total = torch.as_tensor(self._total, device=device)
            self._total = on_host(torch.where(is_finite, total, 0))

    # An epoch -------------------------------------------------------------------------------------

    def begin_epoch(self, learn: Learner) -> None:
        """Begin an epoch of training."""
        self._before_epoch = self.n_uncounted, learn.n_steps

    def end_epoch(self, learn: Learner) -> None:
        """Warn once in a fit of an epoch that took no step because nothing was counted."""
        n_uncounted, n_steps = self._before_epoch
        if self.has_warned or learn.n_steps > n_steps or self.n_uncounted == n_uncounted:
            return
        self.has_warned = True
        if learn.rank == 0:
            warnings.warn(
                f"epoch {learn.epoch} took no step and changed no weights: learn.loss_count was 0 in its "
                "batches; expected targets that the loss counts: are all ignored (ignore_index) or nan, is "
                "a mask empty, or are its weights 0, perhaps at the start of a schedule?",
                stacklevel=2,
            )

    # In checkpoints -------------------------------------------------------------------------------

    def state_dict(self, learn: Learner) -> dict[str, Any]:
        """Return what all processes added since the last step, as one process would have it."""
        state = {name: getattr(self, name) for name in _STATE}
        if learn.processes.n_shards > 1:
            [state["_total"]] = learn.processes.sums([float(self._total)])
        return state | {"is_sum": self.count.is_sum}

    def load_state_dict(self, learn: Learner, state: dict[str, Any]) -> None:
        """Restore it, after the gradients; each process has an equal share of both."""
        self.clear()
        state = dict(state)
        is_sum = state.pop("is_sum", False)
        vars(self).update({name: state[name] for name in _STATE if name in state})
        if self.n and learn.processes.n_shards > 1 and not is_sum:
            self._total = self._total / learn.processes.n_shards
            for grad in gradients(learn):
                grad.div_(learn.processes.n_shards)

    def joint(self, learn: Learner, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of parameters by name, as one process would have them."""
        n, grads = learn.processes.n_shards, {k: p.grad for k, p in named.items() if p.grad is not None}
        if n == 1 or not self.n:
            return grads
        factor = 1 if self.count.is_sum else n
        known = {name for names in learn.processes.all_gather([*grads]) for name in names}
        for name in named:  # in the same order in all processes
            if name in known:
                grad = grads[name].clone() if name in grads else torch.zeros_like(named[name])
                learn.processes.average([grad] if not is_part(grad) else [])  # shards are already averaged
                grads[name] = grad * factor
        return grads


def trained(learn: Learner) -> list[Tensor]:
    """Return what the optimizer trains; all parameters if it is a bare class without groups."""
    if hasattr(learn.opt, "param_groups"):
        return params_of(learn.opt)
    return [*learn.model.parameters(), *extra_params(learn).values()]


def gradients(learn: Learner) -> list[Tensor]:
    """Return the existing gradients of what the optimizer trains."""
    return [p.grad for p in trained(learn) if p.grad is not None]


def _values(grad: Any) -> Tensor:
    """Return this process's values of a gradient, which may be written to."""
    values: Tensor = grad.to_local() if is_part(grad) else grad._values() if grad.is_sparse else grad
    return values.detach()


def _join(learn: Learner) -> None:
    """Average gradients over the processes; one that a process lacks counts as 0."""
    params = [p for p in trained(learn) if not is_part(p)]
    has_grad = zip(*learn.processes.all_gather([p.grad is not None for p in params]), strict=True)
    for p, has in zip(params, has_grad, strict=True):
        if any(has) and p.grad is None:
            p.grad = torch.zeros_like(p)
    learn.processes.average([p.grad for p in params if p.grad is not None])


def _unit_of(learn: Learner) -> float:
    """Return a number to divide counts by, known without waiting for the device."""
    count = learn.loss_count
    if isinstance(count, Tensor) or not count:
        target = learn.yb if learn.yb is not None else learn.xb
        count = target.numel() if isinstance(target, Tensor) else n_samples(target)
    return float(count or 1)


def _is_one(share: Any) -> bool:
    return not isinstance(share, Tensor) and share == 1


def _like(share: Any, loss: Tensor) -> Tensor:
    return share.to(loss.dtype) if isinstance(share, Tensor) else torch.full_like(loss, share)
