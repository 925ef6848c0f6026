"""Backwards and optimizers beside the learner's own, over several processes; for DistributedCB."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..callback import Hook
from ..optim.groups import params_of
from ..parameters import named_params, optimizers_elsewhere, values_in
from ..weights import tensors_by_name

if TYPE_CHECKING:
    from ..callback import Callback
    from ..learner import Learner


class OtherOptimizers:
    """Train what other optimizers step as one process would, over several.

    All begin with the first process's values. Each backward outside the learner's own is weighted by this
    process's samples of the batch, and the gradients are averaged before the optimizer's step.

    Args:
        sizes: learn -> how many samples its batch has in this process and in all; None if not known.
    """

    def __init__(self, sizes: Callable[[Learner], tuple[int, int] | None]) -> None:
        self._sizes = sizes
        self._opts: dict[str, Any] = {}  # by the names of their attributes
        self._modules: list[nn.Module] = []  # those with parameters of theirs
        self._handles: list[Any] = []
        self._of_learner: set[int] = set()  # the parameters, in the learner's backward, that got its gradient
        self._is_learners = False  # whether the learner's backward is running
        self._outside: dict[int, Any] = {}  # gradients of the learner's parameters from other backwards
        self._is_apart = False  # whether a hook runs that only the first process has
        self._steps: dict[int, tuple[Any, Any]] = {}  # of optimizers that were not found: themselves, place

    def begin(self, learn: Learner, is_averaged: bool = True) -> None:
        """Find the other optimizers, at the beginning of a fit.

        Args:
            is_averaged: whether it is the learner's backward that averages the gradients of the model.

        Raises: ValueError for one that has parameters of the model, and where the processes differ.
        """
        self.end()
        self._opts = {
            name: opt
            for name, opt in optimizers_elsewhere(learn, _in_each).items()
            if not _is_part(opt, learn)
        }
        _check_apart(learn, self._opts)
        params = {id(p): p for opt in self._opts.values() for p in params_of(opt)}
        forms = {name: [tuple(p.shape) for p in params_of(opt)] for name, opt in self._opts.items()}
        if any(found != forms for found in learn.processes.all_gather(forms)):
            raise ValueError(
                f"the processes have different optimizers beside the learner's, here {', '.join(forms)}: "
                "expected the same ones, with the same parameters, in each"
            )
        self._modules = [
            value
            for value in values_in(learn, _in_each).values()
            if isinstance(value, nn.Module) and any(id(p) in params for p in value.parameters())
        ]
        learn.processes.broadcast_into(params.values())
        for module in self._modules:
            learn.processes.broadcast_into(t for t in tensors_by_name(module).values() if id(t) not in params)
        self._handles = [_hooked(p, p.register_hook, self._weighing(learn, p)) for p in params.values()]
        self._handles.append(register_optimizer_step_pre_hook(self._stepping(learn)))
        if is_averaged:
            of_learner = {id(p): p for p in [*learn.model.parameters(), *params_of(learn.opt)]}
            self._handles += [
                _hooked(p, p.register_post_accumulate_grad_hook, self._noting(learn))
                for p in of_learner.values()
            ]

    def end(self) -> None:
        """Forget them, and leave no hook on anything."""
        for handle in self._handles:
            handle.remove()
        self._opts, self._modules, self._handles, self._steps = {}, [], [], {}
        self._of_learner.clear()
        self._outside.clear()
        self._is_learners = self._is_apart = False

    def join_buffers(self, learn: Learner) -> None:
        """Give all processes the first one's buffers, such as the statistics of BatchNorm."""
        for module in self._modules:
            learn.processes.broadcast_into(module.buffers())

    # Gradients ------------------------------------------------------------------------------------

    def in_learners(self, backward: Hook) -> Hook:
        """Return the learner's backward, whose gradients have the weights of its own loss."""

        @wraps(backward)
        def marked(learn: Learner) -> None:
            self._is_learners = True
            try:
                backward(learn)
            finally:
                self._is_learners = False

        return marked

    def apart(self, hook: Hook) -> Hook:
        """Return a hook that only the first process runs, whose optimizers are its own."""

        @wraps(hook)
        def alone(learn: Learner) -> Any:
            self._is_apart = True
            try:
                return hook(learn)
            finally:
                self._is_apart = False

        return alone

    def checked(self, step: Hook) -> Hook:
        """Return the learner's step, which refuses gradients that are not averaged."""

        @wraps(step)
        def stepping(learn: Learner) -> None:
            for name, p in named_params(learn).items() if self._outside else ():
                if p.grad is not None and p.grad is self._outside.get(id(p)):
                    raise RuntimeError(
                        f"{name} has a gradient of another backward than the learner's, and several "
                        "processes average only the learner's: expected that loss added to learn.loss in "
                        "after_loss, or learn.again(backward=True); torch.autograd.grad gives gradients that "
                        "are not for a step"
                    )
            self._outside.clear()
            step(learn)

        return stepping

    def _noting(self, learn: Learner) -> Callable[[Tensor], None]:
        """Return what notes a gradient of a batch that was added outside the learner's backward."""

        def note(p: Tensor) -> None:
            if not self._is_learners and learn.training and "batch" in learn.scopes:
                self._outside[id(p)] = p.grad

        return note

    def _weighing(self, learn: Learner, p: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what a gradient that is about to be added to p.grad is replaced by."""

        def weighed(grad: Tensor) -> Tensor:
            if self._is_learners:
                self._of_learner.add(id(p))
                return grad
            if p.grad is None:  # the learner's was cleared
                self._of_learner.discard(id(p))
            sizes = self._sizes(learn) if "batch" in learn.scopes else None
            if sizes is None:
                return grad
            own, joint = sizes
            return grad * (own * learn.n_processes / joint) if own else torch.zeros_like(grad)

        return weighed

    # Steps ----------------------------------------------------------------------------------------

    def _stepping(self, learn: Learner) -> Callable[[Any, Any, Any], None]:
        """Return what torch calls before a step of any optimizer."""

        def before_step(opt: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if opt is learn.opt or self._is_apart:
                return
            name = next((name for name, known in self._opts.items() if known is opt), None)
            if name is None:
                self._check_unknown(learn, opt)
                return
            if any(closure is not None for closure in (*args[1:], *kwargs.values())):
                raise RuntimeError(
                    f"{name}.step(closure) with several processes: the gradients of the closure would not be "
                    "averaged over them; expected a backward, and step() without a closure"
                )
            params = [p for p in params_of(opt) if p.requires_grad]
            if any(id(p) in self._of_learner and p.grad is not None for p in params):
                raise RuntimeError(
                    f"{name} steps with gradients of learn.loss, which several processes average only for "
                    f"the learner's own optimizer: expected {name}.zero_grad() before its own backward, or "
                    "its parameters in extra_params(self, learn) in place of an optimizer"
                )
            has_grad = learn.processes.sums([float(p.grad is not None) for p in params])
            for p, n in zip(params, has_grad, strict=True):
                if n and p.grad is None:
                    p.grad = torch.zeros_like(p)
            learn.processes.average(p.grad for p in params if p.grad is not None)

        return before_step

    def _check_unknown(self, learn: Learner, opt: Any) -> None:
        """Raise RuntimeError for an optimizer that was not found, but trains from batch to batch.

        One that is made for a batch, to change an input for instance, is this process's own.
        """
        known, place = self._steps.get(id(opt), (None, None))
        here = learn.epoch, learn.phase, learn.batch_idx
        if known is None or known() is not opt:
            self._steps[id(opt)] = ref(opt), here
            if _is_part(opt, learn):
                self._steps[id(opt)] = ref(opt), None
        elif place is not None and place != here:
            raise RuntimeError(
                f"a {type(opt).__name__} beside the learner's optimizer steps in several batches, and its "
                "gradients are not averaged over the processes, because it was not found when the fit began: "
                "expected it as an attribute of a callback or of the learner, made by before_fit at the "
                "latest"
            )


def _in_each(cb: Callback) -> bool:
    return cb.in_each_process


def _is_part(opt: Any, learn: Learner) -> bool:
    """Whether an optimizer has only parameters of the learner's, such as one of several in one."""
    of_learner = {id(p) for p in params_of(learn.opt)}
    return all(id(p) in of_learner for p in params_of(opt))


def _check_apart(learn: Learner, opts: dict[str, Any]) -> None:
    """Raise ValueError for parameters of the model, which the learner's own optimizer has to step."""
    names = {id(p): name for name, p in learn.model.named_parameters()}
    for name, opt in opts.items():
        if found := [names[id(p)] for p in params_of(opt) if id(p) in names]:
            raise ValueError(
                f"{name} has parameters of the model, such as {found[0]}, whose gradients several processes "
                "average only for the learner's own optimizer: expected several optimizers in one, "
                "opt_func=minilearn.optim.Combined(...), or a module apart from the model"
            )


def _hooked(p: Tensor, register: Callable[..., Any], function: Callable[[Tensor], Any]) -> Any:
    """Register a hook on the gradients of a parameter, also if it is frozen now and not later."""
    is_trained = p.requires_grad
    p.requires_grad_(True)
    try:
        return register(function)
    finally:
        p.requires_grad_(is_trained)
