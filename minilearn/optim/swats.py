"""SWATS: Adam until its steps tell a learning rate for SGD, then SGD."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .base import Optimizer, State
from .groups import Group

_HALVES = (torch.float16, torch.bfloat16)
_CHUNK = 2**15  # elements: the temporary tensors of a step then fit in a core's cache

Part = tuple[Tensor, Tensor, State]  # parameter, gradient, state


class SWATS(Optimizer):
    """Step with Adam, estimate the lr at which SGD would take these steps; once it settles, step with SGD.

    Adam's phase, for a tensor p with gradient g (both flat, k counts its steps)::

        g        <- g + weight_decay * p
        avg      <- beta1 * avg + (1 - beta1) * g                       (from 0)
        sqr_avg  <- beta2 * sqr_avg + (1 - beta2) * g**2                (from 0)
        u        =  -lr * sqrt(1 - beta2**k) / (1 - beta1**k) * avg / (sqrt(sqr_avg) + eps)
        p        <- p + u
        gamma    =  (u . u) / (-u . g)               the lr by which a step along -g has u as its projection
        estimate <- beta2 * estimate + (1 - beta2) * gamma              (from 0; not where u . g is 0)
        settled  :  k > 1 and |estimate / (1 - beta2**k) - gamma| < threshold, and the former > 0

    Then SGD's phase, at sgd_lr = estimate / (1 - beta2**k)::

        v        <- beta1 * v + g                                       (from 0)
        p        <- p - sgd_lr * r * (1 - beta1) * (v, or g + beta1 * v with nesterov)

    where r is 1 at the switch and then follows a schedule, see sgd_scale.

    Args:
        lr: Adam's learning rate, >= 0.
        betas: shares of the past in Adam's averages, 0 <= beta < 1; the first is SGD's momentum too.
        eps: > 0, outside of the root.
        threshold: > 0, for the difference in the lr. The paper has 1e-9; document 004, where nothing switched
            at that value, 1e-5.
        switch: "global": all tensors switch when the first has settled, at its lr; "local": each by itself.
        weight_decay: >= 0, added to the gradient (not decoupled).
        amsgrad: divide by the root of the largest sqr_avg so far.
        nesterov: in SGD's phase, look a step ahead.
        sgd_scale: None: the lr of SGD's phase follows `lr`, with r = lr / (lr at the switch), so torch's
            schedulers control both phases. A number > 0: it has its own schedule, with r = sgd_scale /
            (sgd_scale at the switch), as in ScheduleCB("sgd_scale", {75: 0.1, 150: 0.01}) beside a schedule
            of `lr`.
        foreach: see `minilearn.optim.Optimizer`.

    Momentum: Adam's is an average; SGD's is torch's buffer, v = beta1 * v + g, times (1 - beta1).
    State: only tensors. In Adam's phase step (the count), avg and sqr_avg, like p, max_sqr_avg with amsgrad,
        estimate; in SGD's phase step, switched_at, sgd_lr, sgd_ref (what r is relative to) and
        momentum_buffer, like p. While a tensor is in Adam's phase, each step waits once for the device.

    Source: Keskar & Socher 2017, algorithm 1; document 004. Differs: the paper has one gamma for all
        parameters together; here, as in the code that document 004 starts from and in its own, each tensor
        has one. In that code the tensors after the settled one have their first step of SGD in the same
        step, other groups never switch, each of SGD's steps scales its own buffer by (1 - beta1), and
        the criterion is a relative one; here, as in the paper, the switch takes effect at the next step,
        for all groups, the buffer is not scaled, and the difference counts as it is. torch.optim.Adam
        divides sqr_avg by its correction before eps is added.
    """

    _settling: list[tuple[Any, ...]]  # what this step did with Adam

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        threshold: float = 1e-9,
        switch: str = "global",
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        nesterov: bool = False,
        sgd_scale: float | None = None,
        *,
        foreach: bool = True,
    ) -> None:
        defaults = {
            **{"lr": lr, "betas": betas, "eps": eps, "threshold": threshold, "switch": switch},
            **{"weight_decay": weight_decay, "amsgrad": amsgrad, "nesterov": nesterov},
            "sgd_scale": sgd_scale,
        }
        super().__init__(params, defaults, foreach)

    def init_state(self, p: Tensor, grad: Tensor) -> State:
        """Return the state of Adam's phase, or of SGD's for a tensor that joins after a global switch."""
        group = self.group_of(p)
        if group["switch"] == "global":
            for other in self._switched_together():
                if "sgd_lr" in (state := self.state.get(other, {})):
                    return _sgd_state(p, torch.tensor(0.0), state["sgd_lr"], state["sgd_ref"])
        state = {"step": torch.tensor(0.0), "avg": torch.zeros_like(p), "sqr_avg": torch.zeros_like(p)}
        if group["amsgrad"]:
            state["max_sqr_avg"] = torch.zeros_like(p)
        return {**state, "estimate": torch.zeros((), dtype=_wide(p))}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, and switch the tensors that have settled; return what `closure` returned."""
        self._settling = []
        try:
            loss = super().step(closure)
            if self._settling:
                with torch.no_grad():
                    self._switch()
        finally:
            del self._settling  # it is not state
        return loss

    def update(self, p: Tensor, grad: Tensor, state: State, pg: Group) -> None:
        """Take the step of the class's equation."""
        state["step"] += 1
        beta1, beta2 = pg["betas"]
        if wd := pg["weight_decay"]:
            grad = grad.add(p, alpha=wd)
        if "sgd_lr" in state:
            v = state["momentum_buffer"].mul_(beta1).add_(grad)
            if pg["nesterov"]:
                v = grad.add(v, alpha=beta1)
            p.add_(v.mul(-_lr_of(state, pg) * (1 - beta1)))
            return
        avg, sqr_avg = state["avg"], state["sqr_avg"]
        avg.lerp_(grad, 1 - beta1)
        sqr_avg.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if pg["amsgrad"]:
            sqr_avg = torch.maximum(state["max_sqr_avg"], sqr_avg, out=state["max_sqr_avg"])
        u, k = avg.div(sqr_avg.sqrt().add_(pg["eps"])), state["step"].item()
        size = _step_size(pg, k)
        p.add_(u, alpha=size)
        self._settling.append((p, *_products(p, grad, u), size, k, state, pg))

    def update_all(self, params: list[Tensor], grads: list[Tensor], states: list[State], pg: Group) -> None:
        """Take the step of the class's equation."""
        torch._foreach_add_([state["step"] for state in states], 1)
        by_sgd: list[Part] = []
        by_adam: dict[float, list[Part]] = {}  # usually one count of steps, unless a parameter joined late
        for part in zip(params, grads, states, strict=True):
            state = part[2]
            some = by_sgd if "sgd_lr" in state else by_adam.setdefault(state["step"].item(), [])
            some.append(part)
        for k, parts in by_adam.items():
            for some in _in_chunks(parts):
                self._adam(some, k, pg)
        if by_sgd:
            self._sgd(by_sgd, pg)

    def _adam(self, parts: list[Part], k: float, pg: Group) -> None:
        params, grads, states = _columns(parts, pg)
        beta1, beta2 = pg["betas"]
        avgs, sqr_avgs = [state["avg"] for state in states], [state["sqr_avg"] for state in states]
        torch._foreach_lerp_(avgs, grads, 1 - beta1)
        torch._foreach_mul_(sqr_avgs, beta2)
        torch._foreach_addcmul_(sqr_avgs, grads, grads, 1 - beta2)
        if pg["amsgrad"]:
            largest = [state["max_sqr_avg"] for state in states]
            torch._foreach_maximum_(largest, sqr_avgs)
            sqr_avgs = largest
        roots = torch._foreach_sqrt(sqr_avgs)
        torch._foreach_add_(roots, pg["eps"])
        us, size = torch._foreach_div(avgs, roots), _step_size(pg, k)
        torch._foreach_add_(params, us, alpha=size)
        for p, grad, u, state in zip(params, grads, us, states, strict=True):
            self._settling.append((p, *_products(p, grad, u), size, k, state, pg))

    def _sgd(self, parts: list[Part], pg: Group) -> None:
        params, grads, states = _columns(parts, pg)
        beta1 = pg["betas"][0]
        vs = [state["momentum_buffer"] for state in states]
        torch._foreach_mul_(vs, beta1)
        torch._foreach_add_(vs, grads)
        if pg["nesterov"]:
            vs = list(torch._foreach_add(grads, vs, alpha=beta1))
        us = torch._foreach_mul(vs, [-_lr_of(state, pg) * (1 - beta1) for state in states])
        torch._foreach_add_(params, us)

    # The switch -----------------------------------------------------------------------------------

    def _switch(self) -> None:
        """Update the estimates, and put the tensors that have settled, or all, into SGD's phase."""
        products = [t for _, *both, _, _, _, _ in self._settling for t in both]
        if len({(t.device, t.dtype) for t in products}) > 1:
            dtype = max((t.dtype for t in products), key=lambda dtype: torch.finfo(dtype).bits)
            products = [t.to(products[0].device, dtype) for t in products]
        numbers = iter(torch.stack(products).tolist())  # the one wait
        for p, _, _, size, k, state, pg in self._settling:
            uu, ug = next(numbers), next(numbers)  # of u / size
            if ug == 0 or "sgd_lr" in state:  # another tensor took it along
                continue
            gamma, beta2 = -size * uu / ug, pg["betas"][1]
            kept = _on_cpu(state, "estimate").numpy()  # shares the memory, and is faster to read and write
            estimate = beta2 * kept.item() + (1 - beta2) * gamma
            kept.fill(estimate)
            lr = estimate / (1 - beta2**k)
            if k > 1 and abs(lr - gamma) < pg["threshold"] and lr > 0:
                self._to_sgd(p, state, lr, pg)

    def _to_sgd(self, p: Tensor, state: State, lr: float, pg: Group) -> None:
        if pg["switch"] == "local":
            _to_sgd(p, state, lr, pg)
            return
        for other, group in self._switched_together().items():
            if self.state.get(other):
                _to_sgd(other, self.state[other], lr, group)

    def _switched_together(self) -> dict[Tensor, Group]:
        """Return each parameter that a global switch takes along, with its group."""
        return {p: pg for pg in self.param_groups if pg["switch"] == "global" for p in pg["params"]}


def _wide(p: Tensor) -> torch.dtype:
    """Return the dtype of an estimate: in 16 bits an average with beta2 = 0.999 would stand still."""
    return torch.float32 if p.dtype in _HALVES else p.dtype


def _products(p: Tensor, grad: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return u . u and u . g; all of them are read later, at once."""
    u, grad = u.reshape(-1), grad.reshape(-1)
    if p.dtype in _HALVES:
        u, grad = u.float(), grad.float()
    return torch.dot(u, u), torch.dot(u, grad)


def _columns(parts: list[Part], pg: Group) -> tuple[list[Tensor], list[Tensor], list[State]]:
    """Return parameters, gradients with weight decay added, and states."""
    params, grads, states = (list(column) for column in zip(*parts, strict=True))
    if wd := pg["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=wd))
    return params, grads, states


def _in_chunks(parts: list[Part]) -> Iterator[list[Part]]:
    """Give all parts at once on an accelerator; on the CPU, as many at a time as its caches hold."""
    some: list[Part] = []
    size = 0
    for part in parts:
        some.append(part)
        size += part[0].numel()
        if size >= _CHUNK and part[0].device.type == "cpu":
            yield some
            some, size = [], 0
    if some:
        yield some


def _step_size(pg: Group, k: float) -> Any:
    beta1, beta2 = pg["betas"]
    return -pg["lr"] * (math.sqrt(1 - beta2**k) / (1 - beta1**k))


def _ref(pg: Group) -> float:
    """Return the value that a schedule of SGD's phase changes."""
    return float(pg["lr"] if pg["sgd_scale"] is None else pg["sgd_scale"])


def _lr_of(state: State, pg: Group) -> float:
    """Return the present lr of SGD's phase."""
    return _on_cpu(state, "sgd_lr").item() * (_ref(pg) / _on_cpu(state, "sgd_ref").item())


def _on_cpu(state: State, name: str) -> Tensor:
    """Return a number of the state, kept on the CPU, where reading it waits for no device."""
    if state[name].device.type != "cpu":  # load_state_dict moves it
        state[name] = state[name].cpu()
    return state[name]


def _sgd_state(p: Tensor, step: Tensor, lr: Tensor, ref: Tensor) -> State:
    return {
        **{"step": step, "switched_at": step.clone(), "sgd_lr": lr.clone(), "sgd_ref": ref.clone()},
        "momentum_buffer": torch.zeros_like(p),
    }


def _to_sgd(p: Tensor, state: State, lr: float, pg: Group) -> None:
    numbers = [torch.tensor(value, dtype=_wide(p)) for value in (lr, _ref(pg))]
    new = _sgd_state(p, state["step"], *numbers)
    state.clear()
    state.update(new)
