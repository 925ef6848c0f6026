"""Optimizer: the base of all optimizers here, so that a new one is its equation and little else."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ..arguments import flag
from .groups import SCHEDULE_KEYS
from .ranges import HYPERPARAMETERS, check_range

State = dict[str, Any]  # of one parameter; torch saves and loads it with the optimizer


class Optimizer(torch.optim.Optimizer):
    """Call `update` for each parameter with a gradient; a subclass writes it, and the initial state.

    State lives in `self.state[p]` and hyperparameters in the groups, as in torch, so torch's schedulers,
    state_dict, hooks and add_param_group work. Decoupled weight decay is applied here, before `update`,
    for a group that has `wd`: p <- p * (1 - lr * wd).

    Args:
        params: parameters, or groups of them as torch takes them.
        defaults: name -> value of each hyperparameter, including "lr", for groups without their own.
        foreach: call `update_all` with lists of tensors, which is faster; False calls `update` for
            one parameter at a time, with the same result.

    Raises: ValueError for a hyperparameter out of its range; TypeError for complex parameters, and for a
        group with a hyperparameter of another optimizer, which would do nothing. At the step,
        before anything is changed: TypeError for sparse gradients.
    Source: document 003's SGD is the ancestor. Differs: there the tensors hold the state and the
        optimizer the hyperparameters, where no scheduler, group or state_dict finds them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update" in vars(cls) and "update_all" not in vars(cls):
            cls.update_all = Optimizer.update_all  # type: ignore[method-assign]  # not the parent's equation

    def __init__(self, params: Any, defaults: dict[str, Any], foreach: bool = True) -> None:
        for key, value in defaults.items():
            check_range(key, value)
        super().__init__(params, {**defaults, "foreach": flag("foreach", foreach)})

    def group_of(self, p: Tensor) -> dict[str, Any]:
        """Return the group of a parameter by searching all groups: for its first step, not for each step."""
        return next(pg for pg in self.param_groups if any(p is other for other in pg["params"]))

    def init_state(self, p: Tensor, grad: Tensor) -> State:
        """Return the state of a parameter at its first step."""
        return {}

    def update(self, p: Tensor, grad: Tensor, state: State, pg: dict[str, Any]) -> None:
        """Change a parameter in place, and its state, by the hyperparameters of its group."""
        raise NotImplementedError(f"{type(self).__name__} has to define update(p, grad, state, pg)")

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: dict[str, Any]
    ) -> None:
        """Do the same as `update` for lists of the same length: one by one, unless a subclass has its own."""
        for p, grad, state in zip(params, grads, states, strict=True):
            self.update(p, grad, state, pg)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; call `closure` first, with gradients enabled, and return what it returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(pg, [p for p in pg["params"] if p.grad is not None]) for pg in self.param_groups]
        for _, params in groups:
            for p in params:
                if p.grad.layout is not torch.strided:
                    raise TypeError(
                        f"{type(self).__name__}: a gradient of shape {tuple(p.shape)} is {p.grad.layout}; "
                        "expected dense gradients: was an Embedding made with sparse=True?"
                    )
        with torch.no_grad():
            for pg, params in groups:
                if params:
                    self._step_group(pg, params)
        return loss

    def _step_group(self, pg: dict[str, Any], params: list[Tensor]) -> None:
        grads: list[Any] = [p.grad for p in params]
        states = [self.state[p] for p in params]
        for p, grad, state in zip(params, grads, states, strict=True):
            if not state:
                state.update(self.init_state(p, grad))
        if pg["foreach"]:
            if wd := pg.get("wd", 0):
                torch._foreach_mul_(params, 1 - pg["lr"] * wd)
            self.update_all(params, grads, states, pg)
            return
        for p, grad, state in zip(params, grads, states, strict=True):
            if wd := pg.get("wd", 0):
                p.mul_(1 - pg["lr"] * wd)
            self.update(p, grad, state, pg)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with its own hyperparameters or the defaults; the constructor calls this too."""
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # raises, and says what it expected
        # torch adds `differentiable` to the defaults of an optimizer that was copied or loaded.
        own = [key for key in self.defaults if key not in ("foreach", "differentiable")]
        name = type(self).__name__
        for key in param_group.keys() - self.defaults.keys() - set(SCHEDULE_KEYS):
            close = get_close_matches(key.lower(), [*own, "foreach"], n=1, cutoff=0.75)
            if key in HYPERPARAMETERS or close:
                hint = f"did you mean {close[0]}? " if close else ""
                raise TypeError(
                    f"a group has {key}={param_group[key]!r}, which {name} would not read: {hint}"
                    f"its hyperparameters are {', '.join(own)}"
                )
        for key in own:
            check_range(key, param_group.get(key, self.defaults[key]))
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        if found := [p for p in params if p.is_complex()]:
            self.param_groups.pop()
            raise TypeError(
                f"{name}: a parameter of shape {tuple(found[0].shape)} is {found[0].dtype}; expected real "
                "ones: keep real and imaginary part as two, and make torch.complex of them in forward"
            )
