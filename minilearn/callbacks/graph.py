"""CUDAGraphCB: a complete training step as one CUDA graph, for models whose kernels are short."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import whole_number
from ..batches import map_tensors, tensors_in
from ..callback import Callback, Hook, Order
from ..events import CancelException
from ..optim.base import Optimizer
from ..optim.groups import params_of
from ..parameters import roots_of
from .gradients import GradientAccumulationCB
from .metrics import MetricsCB
from .precision import MixedPrecisionCB

if TYPE_CHECKING:
    from ..learner import Learner

_INSIDE = ("after_predict", "after_loss", "after_backward", "before_step")
_AT_END = ("after_forward", "cleanup_forward")
_STEP = (
    *("predict", "after_predict", "get_loss", "after_loss", "after_forward", "cleanup_forward"),
    *("backward", "after_backward", "before_step", "step"),
)


class CUDAGraphCB(Callback):
    """Capture the training step, from forward to the optimizer's, in a CUDA graph, and replay it.

    If a model's kernels are short, most of the time goes into launching them one by one; a graph launches
    them all at once. The lr becomes a tensor on the device, into which schedules write, so that each replay
    uses the lr of its step; after the fit it is a number again. Metrics, records and schedules run at
    after_step and after_batch as always, and so do hooks at after_forward and cleanup_forward, once the step
    is taken. Validation, and a batch of another shape, such as the last, run without the graph. With the data
    on the device too (`cifar10(device="cuda")`), nothing else waits.

    Args:
        warmup: batches before the capture, for what is set up on first use, >= 1.

    Runs at: before_fit, before_train, before_batch; cleanup_batch, cleanup_fit; order 1600; in place of
        predict, get_loss, backward and step, whoever owns them. Writes: preds, loss; the groups' lr.
    Raises: before training: ValueError for a model that is not on CUDA, an optimizer that is not one
        of torch's, accumulated gradients, and a callback with a hook between predict and step that does not
        declare `in_graph = True`: such a hook may only launch kernels, because its Python runs only once.
        During training: ValueError if a hyperparameter other than the lr changes, and for `learn.log` in
        what is captured; RuntimeError for a cancel in after_forward, when the step is taken.
    Source: torch's notes on CUDA graphs, whole-network capture.
    """

    order = Order.GRAPH
    may_come_and_go = True
    in_evaluation = False
    in_lr_find = False

    def __init__(self, warmup: int = 3) -> None:
        self.warmup = whole_number("CUDAGraphCB(warmup", warmup, of=" of batches")
        self._is_on = False  # the lr is a tensor
        self._lrs: list[float] = []  # before it was one
        self._forget()

    def __repr__(self) -> str:
        return f"CUDAGraphCB(warmup={self.warmup})"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a resumed run captures again."""
        return {}

    def _forget(self) -> None:
        self._replay: Callable[[], None] | None = None
        self._batch: Any = None  # what the graph reads from
        self._form: list[Any] = []
        self._preds: Any = None  # what it writes to
        self._loss: Any = None
        self._modes: list[bool] = []  # of parameters and modules, when it was captured
        self._fixed: list[tuple[dict[str, Any], str, Any]] = []  # hyperparameters that are numbers in it
        self._n_seen = 0
        self._is_replaying = self._is_capturing = False
        self._on_side: Any = None  # the warm-up stream

    # Around the steps -----------------------------------------------------------------------------

    def before_fit(self, learn: Learner) -> None:
        self._forget()
        self._check(learn)
        device, self._is_on = next(learn.model.parameters()).device, True
        self._lrs = [float(group["lr"]) for group in learn.opt.param_groups]
        for group in learn.opt.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device).clone()
            if "capturable" in group:
                group["capturable"] = True
        for state in learn.opt.state.values():  # a kept optimizer counted its steps on the CPU
            for key, value in state.items():
                state[key] = value.to(device) if isinstance(value, Tensor) else value

    def _check(self, learn: Learner) -> None:
        if (device := self._device_of(learn)) != "cuda":
            raise ValueError(f"{self!r}: the model is on {device}; expected one on CUDA, which has graphs")
        parts = getattr(learn.opt, "parts", [learn.opt])  # of several optimizers as one
        if not all(
            isinstance(opt, torch.optim.Optimizer) and not isinstance(opt, Optimizer) for opt in parts
        ):
            raise ValueError(
                f"{self!r} on {type(learn.opt).__module__}.{type(learn.opt).__name__}: expected an optimizer "
                "of torch.optim, whose lr may be a tensor"
            )
        if learn.n_processes > 1 or any(isinstance(cb, GradientAccumulationCB) for cb in learn.cbs):
            raise ValueError(f"{self!r}: expected one process, and a step at each batch: all is one graph")
        for cb in learn.cbs:
            if isinstance(cb, MixedPrecisionCB) and cb.dtype is torch.float16:
                raise ValueError(f"{self!r} with {cb!r}, whose scaler waits at each step: expected bfloat16")
            hooks = [name for name in _INSIDE if callable(getattr(cb, name, None))]
            if hooks and not cb.in_graph:
                raise ValueError(
                    f"{self!r}: {cb!r}.{hooks[0]} would be captured, so its Python would run once, not at "
                    "each step; if it only launches kernels, set in_graph = True in its class"
                )

    def _device_of(self, learn: Learner) -> str:
        return next((p.device.type for p in learn.model.parameters()), "cpu")

    def before_train(self, learn: Learner) -> None:
        modes = [p.requires_grad for p in params_of(learn.opt)]
        modes += [module.training for root in roots_of(learn) for module in root.modules()]
        if modes != self._modes:  # the first time, or something was frozen since
            self._forget()
            self._modes = modes

    def wrap_hook(self, name: str, hook: Hook) -> Hook:
        """Return a hook or step that does nothing during a replay, and a predict that replays."""
        event = name.rpartition(".")[2]
        if event in _AT_END:
            return self._at_end(name, hook)
        if event not in (*_INSIDE, "predict", "get_loss", "backward", "step"):
            return hook

        @wraps(hook)
        def replayed(learn: Learner) -> Any:
            if event == "predict" and not self._is_capturing and learn.training and self._can_replay(learn):
                self._replay_step(learn)
            elif not self._is_replaying:
                return hook(learn)
            return None

        return replayed

    def _at_end(self, name: str, hook: Hook) -> Hook:
        """Return a hook at the end of a forward, which runs in each batch and is not captured.

        Except if it may be: MixedPrecisionCB has to leave autocast before the backward that is captured.
        """
        cb = getattr(inspect.unwrap(hook), "__self__", None)
        if isinstance(cb, Callback) and cb.in_graph:
            return hook

        @wraps(hook)
        def outside(learn: Learner) -> Any:
            if self._is_capturing:
                return None
            try:
                return hook(learn)
            except CancelException as cancel:
                if not self._is_replaying:
                    raise
                raise RuntimeError(
                    f"{self!r}: {name} cancels the {cancel.scope}, but its step is in the graph and was "
                    "taken: expected it in before_batch or before_forward"
                ) from cancel

        return outside

    def before_batch(self, learn: Learner) -> None:
        self._is_replaying = False
        if learn.training and self._replay is None and self._on_side is None:
            self._on_side = self._side()
            self._on_side.__enter__()

    def cleanup_batch(self, learn: Learner) -> None:
        self._is_replaying = False
        self._leave_side()

    def cleanup_fit(self, learn: Learner) -> None:
        self._leave_side()
        if self._is_on:
            self._is_on = False
            self._forget()
            for i, group in enumerate(learn.opt.param_groups):
                before = self._lrs[i] if i < len(self._lrs) else 0.0
                is_same = torch.tensor(before, dtype=torch.float32).item() == float(group["lr"])
                group["lr"] = before if is_same else float(group["lr"])  # with all of its digits

    def _leave_side(self) -> None:
        side, self._on_side = self._on_side, None
        if side is not None:
            side.__exit__(None, None, None)

    # The step -------------------------------------------------------------------------------------

    def _replay_step(self, learn: Learner) -> None:
        if self._replay is None:
            self._capture(learn)
        for group, key, value in self._fixed:
            if group[key] != value:
                raise ValueError(
                    f"{self!r}: {key} is {group[key]}, but was {value} when the step was captured: expected "
                    "only the lr to change; for OneCycleLR and CyclicLR: cycle_momentum=False"
                )
        for into, new in zip(tensors_in(self._batch), tensors_in([learn.xb, learn.yb]), strict=True):
            into.copy_(new)
        assert self._replay is not None
        self._replay()
        self._is_replaying = True
        # Copies, because the next replay writes to the same memory.
        learn.preds, learn.loss = deepcopy(self._preds), self._loss.clone()

    def _can_replay(self, learn: Learner) -> bool:
        form = [(t.shape, t.dtype, t.stride()) for t in tensors_in([learn.xb, learn.yb])]
        if self._replay is not None:
            return form == self._form
        self._n_seen = self._n_seen + 1 if form == self._form else 1
        self._form = form
        return self._n_seen > self.warmup

    def _capture(self, learn: Learner) -> None:
        batch, parts = learn.batch, [learn.xb, learn.yb]
        self._batch = deepcopy(parts)
        self._leave_side()

        def run() -> None:
            learn.batch = (None, None)
            learn.xb, learn.yb = self._batch
            for event in _STEP:
                learn.callback(event)

        self._is_capturing, n_logged = True, _n_logged(learn)
        try:
            self._replay = self._captured(run)
        finally:
            self._is_capturing = False
        if _n_logged(learn) > n_logged:
            raise ValueError(
                f"{self!r}: learn.log was called between predict and step, whose Python runs only once: "
                "expected it in after_forward, after_step or after_batch; keep the value in an attribute "
                "until then"
            )
        self._preds, self._loss = map_tensors(Tensor.detach, learn.preds), learn.loss.detach()
        for group in learn.opt.param_groups:
            for p in group["params"]:
                p.grad = None  # its memory is the graph's
            self._fixed += [(group, k, v) for k, v in group.items() if isinstance(v, int | float | tuple)]
        learn.batch = batch
        learn.xb, learn.yb = parts

    # CUDA -----------------------------------------------------------------------------------------

    def _side(self) -> Any:
        """Return a context for warm-up on a separate stream, which torch requires before a capture."""
        return _SideStream()

    def _captured(self, run: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels that `run` launches, and return a function that launches them again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


def _n_logged(learn: Learner) -> int:
    return sum(cb.n_logged for cb in learn.cbs if isinstance(cb, MetricsCB))


class _SideStream:
    """Run a `with` block on another stream, in order with what comes before and after it."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.context = torch.cuda.stream(self.stream)

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        self.context.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)
        torch.cuda.current_stream().wait_stream(self.stream)
