"""MixedPrecisionCB: forward and loss in 16 bits where that is safe, weights and steps in 32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import number, shown
from ..batches import map_tensors
from ..callback import Callback, Order
from ..events import CancelStepException
from ..optim.groups import needs_closure, params_of

if TYPE_CHECKING:
    from ..learner import Learner


_LARGEST_SCALE = 2.0**127  # of float32: with an infinite scale all steps would be skipped


class MixedPrecisionCB(Callback):
    """Run predict and get_loss under torch.autocast; weights, gradients and the optimizer stay in float32.

    bfloat16 works on the CPU and on GPUs since Ampere, and needs nothing else. float16 works only on CUDA:
    torch's GradScaler scales the loss up for backward and the gradients down again before the step, so that
    before_step sees their true values. A step whose gradients are not finite is skipped: it fires no
    after_step, and schedules do not count it.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        init_scale: for float16, the initial scale.

    Runs at: prepare; before_fit, _forward, _step; after_predict, after_backward; cleanup_forward, _batch,
        _train; order 40. Owns, with float16: backward, step. Writes: preds (as float32).
    State: with float16, the scale; n_skipped, the steps skipped in this fit.
    Raises: before training: ValueError for float16 if the model is not on CUDA, or the optimizer is not a
        torch.optim.Optimizer.
    Differs: with float16, each step waits for the device, to know whether it was skipped.
    """

    order = Order.PRECISION
    in_graph = True

    def __init__(self, dtype: torch.dtype = torch.bfloat16, init_scale: float = 2.0**16) -> None:
        if dtype is not torch.bfloat16 and dtype is not torch.float16:
            raise ValueError(
                f"MixedPrecisionCB(dtype={shown(dtype)}): expected torch.bfloat16 or torch.float16"
            )
        self.dtype = dtype
        self.init_scale = number("MixedPrecisionCB(init_scale", init_scale, above=0, high=_LARGEST_SCALE)
        self.n_skipped = 0
        self._scaler: Any = None
        self._is_unscaled = False  # since the scaler's last update
        self._autocasts: dict[int, Any] = {}  # by depth: a hook may validate inside a batch
        self._device = "cpu"
        if dtype is torch.float16:
            self.backward, self.step = self._scaled_backward, self._scaled_step  # it owns these steps

    def __repr__(self) -> str:
        return f"MixedPrecisionCB({self.dtype})"

    def prepare(self, learn: Learner) -> None:
        p = next(learn.model.parameters(), None)
        self._device = "cpu" if p is None else p.device.type
        self._is_unscaled, self._autocasts = False, {}

    def before_fit(self, learn: Learner) -> None:
        if "train" in learn.phases:  # a fit without training skips no steps and keeps the count
            self.n_skipped = 0
        if self.dtype is not torch.float16:
            return
        if self._device != "cuda":
            raise ValueError(
                f"{self!r}: the model is on {self._device}, but the scaler that float16 needs is for CUDA: "
                "expected torch.bfloat16 there"
            )
        # A fit without training may have no optimizer.
        if "train" in learn.phases and not isinstance(learn.opt, torch.optim.Optimizer):
            raise ValueError(f"{self!r} on a {type(learn.opt).__name__}: expected a torch.optim.Optimizer")
        if "train" in learn.phases and needs_closure(learn.opt):
            raise ValueError(
                f"{self!r} on a {type(learn.opt).__name__}, whose step needs a closure: expected bfloat16"
            )
        self._scaler = torch.amp.GradScaler(self._device, init_scale=self.init_scale)

    def before_forward(self, learn: Learner) -> None:
        if self._autocasts:  # nested in a forward whose cached casts may be of old weights
            torch.clear_autocast_cache()
        autocast: Any = torch.autocast(self._device, self.dtype)
        self._autocasts[len(learn.scopes)] = autocast
        autocast.__enter__()

    def after_predict(self, learn: Learner) -> None:
        learn.preds = map_tensors(_in_float32, learn.preds)  # a loss in 16 bits has only 3 digits

    def cleanup_forward(self, learn: Learner) -> None:
        if (autocast := self._autocasts.pop(len(learn.scopes), None)) is not None:
            autocast.__exit__(None, None, None)

    def cleanup_batch(self, learn: Learner) -> None:
        if self._is_unscaled and learn.training:  # no step was taken: kept gradients are scaled again
            self._update()
            if grads := [p.grad for p in params_of(learn.opt) if p.grad is not None]:
                torch._foreach_mul_(grads, self._scaler.get_scale())

    def cleanup_train(self, learn: Learner) -> None:
        self.cleanup_batch(learn)  # for a step after the last batch

    # With float16 ---------------------------------------------------------------------------------

    def _scaled_backward(self, learn: Learner) -> None:
        if self._is_unscaled:
            self._backward_again(learn)
        else:
            self._scaler.scale(learn.loss).backward(learn.loss_weight)

    def _backward_again(self, learn: Learner) -> None:
        """Add the gradients of `learn.again(backward=True)`, unscaled and checked like the existing ones."""
        params = [p for group in learn.opt.param_groups for p in group["params"]]
        before = [(p, p.grad) for p in params]
        for p in params:
            p.grad = None
        self._scaler.scale(learn.loss).backward(learn.loss_weight)
        grads = [p.grad for p in params if p.grad is not None]
        found = next(iter(self._scaler._per_optimizer_states[id(learn.opt)]["found_inf_per_device"].values()))
        scale = self._scaler._scale.double().reciprocal().float()
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, scale)
        for p, grad in before:
            if grad is not None:
                p.grad = grad if p.grad is None else p.grad.add_(grad)

    def after_backward(self, learn: Learner) -> None:
        if self._scaler is not None and not learn.is_accumulating:
            self._unscale(learn)

    def before_step(self, learn: Learner) -> None:
        if self._scaler is not None and not self._is_unscaled:  # accumulated, left at an epoch's end
            self._unscale(learn)

    def _unscale(self, learn: Learner) -> None:
        self._scaler.unscale_(learn.opt)
        self._is_unscaled = True

    def _scaled_step(self, learn: Learner) -> None:
        scale = self._scaler.get_scale()
        self._scaler.step(learn.opt)
        self._update()
        if self._scaler.get_scale() < scale:  # the gradients were not finite
            self.n_skipped += 1
            raise CancelStepException(keep=False)

    def _update(self) -> None:
        self._is_unscaled = False
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state, and how many steps were skipped."""
        scaler = None if self._scaler is None else self._scaler.state_dict()
        return {"scaler": scaler, "n_skipped": self.n_skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; before_fit has made a new scaler."""
        self.n_skipped = state["n_skipped"]
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])


def _in_float32(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
