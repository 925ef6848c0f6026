"""What is trained and saved besides the model: a loss that is a module, and callbacks' parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .batches import map_tensors, tensors_in
from .callback import Callback
from .optim.groups import EXTRA, Group, left_out, params_of
from .warning import warn
from .weights import tensors_by_name

if TYPE_CHECKING:
    from .learner import Learner

LOSS = "learn.loss_func"


def loss_module(loss_func: Any) -> nn.Module | None:
    """Return a loss that is a module, or the module of which it is a method or partial; else None."""
    while isinstance(loss_func, partial):
        loss_func = loss_func.func
    owner = getattr(loss_func, "__self__", loss_func)
    return owner if isinstance(owner, nn.Module) else None


def roots_of(learn: Learner) -> list[nn.Module]:
    """Return the model and, if it is a module, the loss."""
    loss = loss_module(learn.loss_func)
    return [learn.model] if loss is None else [learn.model, loss]


def loss_tensors(learn: Learner) -> dict[str, Tensor]:
    """Return the parameters and buffers of the loss by name, except those that the model shares."""
    if (loss := loss_module(learn.loss_func)) is None:
        return {}
    of_model = {id(t) for t in tensors_by_name(learn.model).values()}
    return {name: t for name, t in tensors_by_name(loss).items() if id(t) not in of_model}


def loss_params(learn: Learner) -> dict[str, nn.Parameter]:
    """Return the loss's own parameters by name, "learn.loss_func.centres"."""
    named = loss_tensors(learn).items()
    return {f"{LOSS}.{name}": p for name, p in named if isinstance(p, nn.Parameter)}


def brought_by(cb: Callback, learn: Learner) -> dict[str, nn.Parameter]:
    """Return the parameters that a callback brings, by name, such as "log_scale".

    Raises: TypeError for anything but an iterable of nn.Parameter.
    """
    kind, given = type(cb).__name__, cb.extra_params(learn)
    if isinstance(given, Tensor | nn.Module | str | dict) or not isinstance(given, Iterable):
        raise TypeError(
            f"{kind}.extra_params gave a {type(given).__name__}: expected an iterable of parameters, such as "
            "[self.scale] or self.head.parameters()"
        )
    found, names = {}, dict[int, str]()
    for i, p in enumerate(given):
        if not isinstance(p, nn.Parameter):
            raise TypeError(
                f"{kind}.extra_params gave a {type(p).__name__} at place {i}: expected an nn.Parameter, which"
                " stays the same object when its value is moved or resumed; nn.Parameter(torch.zeros(()))"
            )
        names = names or {id(p): name for name, p in _kept_by(cb)}
        found[names.get(id(p), f"extra_params[{i}]")] = p
    return found


def _kept_by(cb: Callback) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the parameters in a callback's attributes, or in a module among them, with their names."""
    for name, value in list(vars(cb).items()):
        if isinstance(value, nn.Parameter):
            yield name, value
        elif isinstance(value, nn.Module):
            yield from ((f"{name}.{inner}", p) for inner, p in value.named_parameters())


def _by_owner(learn: Learner) -> dict[str, dict[str, nn.Parameter]]:
    """Return the loss's parameters, and those that each callback brings, by owner and name."""
    found, n_of = {"loss_func": loss_params(learn)}, Counter[str]()
    for cb in learn.cbs:
        kind = type(cb).__name__
        n_of[kind] += 1
        if params := brought_by(cb, learn):
            number = f" {n_of[kind]}" if n_of[kind] > 1 else ""
            found[kind + number] = {f"{kind}{number}.{name}": p for name, p in params.items()}
    return found


def extra_params(learn: Learner) -> dict[str, nn.Parameter]:
    """Return by name all parameters that the loss has or that callbacks bring, without the model's."""
    of_model = {id(p) for p in learn.model.parameters()}
    owned = [params.items() for params in _by_owner(learn).values()]
    return {name: p for params in owned for name, p in params if id(p) not in of_model}


def extra_groups(learn: Learner) -> list[Group]:
    """Return a parameter group for the loss, and one for each callback that brings parameters.

    A group without trainable parameters is left out.
    """
    return [
        {"params": list(params.values()), EXTRA: name}
        for name, params in _by_owner(learn).items()
        if any(p.requires_grad for p in params.values())
    ]


def all_tensors(learn: Learner) -> dict[str, Tensor]:
    """Return all parameters and buffers by name: the model's, the loss's, and what callbacks bring.

    state_dict() lacks the buffers that are not persistent.
    """
    of_loss = {f"{LOSS}.{name}": t for name, t in loss_tensors(learn).items()}
    return tensors_by_name(learn.model) | of_loss | extra_params(learn)


def named_params(learn: Learner) -> dict[str, nn.Parameter]:
    """Return all parameters by name: the model's, the loss's and those that callbacks bring."""
    return {name: p for name, p in all_tensors(learn).items() if isinstance(p, nn.Parameter)}


def all_params(learn: Learner) -> Iterator[nn.Parameter]:
    """Give the parameters of `named_params`, some perhaps twice; it is faster, because it makes no names."""
    for root in roots_of(learn):
        yield from root.parameters()
    for cb in learn.cbs:
        yield from brought_by(cb, learn).values()


# That all of them are trained -------------------------------------------------------------------------


_PLAIN = (int, float, str, bytes)


def values_in(learn: Learner, only: Callable[[Callback], bool] = lambda cb: True) -> dict[str, Any]:
    """Return what callbacks, and the learner's own fields, keep as attributes or one level inside of these.

    Without numbers and text, of which a callback that records may keep millions.

    Args:
        only: which callbacks are meant.

    By name, such as "GANCB.opt", "GANCB.opts[0]" or "learn.opts['critic']".
    """
    n_of = Counter[str]()
    holders: list[tuple[str, dict[str, Any]]] = []
    for cb in learn.cbs:
        kind = type(cb).__name__
        n_of[kind] += 1
        if only(cb):
            holders.append((f"{kind} {n_of[kind]}" if n_of[kind] > 1 else kind, vars(cb)))
    found: dict[str, Any] = {}
    for owner, values in [*holders, ("learn", learn.own_fields())]:
        for name, value in values.items():
            parts: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, dict):
                parts = value.items()
            elif isinstance(value, list | tuple):
                parts = enumerate(value)
            found[f"{owner}.{name}"] = value
            for key, part in parts:
                if not isinstance(part, _PLAIN):
                    found[f"{owner}.{name}[{key!r}]"] = part
    return found


def optimizers_elsewhere(
    learn: Learner, only: Callable[[Callback], bool] = lambda cb: True
) -> dict[str, torch.optim.Optimizer]:
    """Return the other optimizers, kept by callbacks or on the learner, by name; `only` as in values_in."""
    found: dict[int, tuple[str, torch.optim.Optimizer]] = {}
    for name, value in values_in(learn, only).items():
        if isinstance(value, torch.optim.Optimizer) and value is not learn.opt:
            found.setdefault(id(value), (name, value))
    return dict(found.values())


def follow_params(opt: Any) -> None:
    """Move the state of an optimizer to where its parameters are.

    As torch's load_state_dict does: the count of steps is on the CPU, unless a kernel reads it on the device.
    Other single numbers that the optimizer keeps on the CPU stay there.
    """
    for group in getattr(opt, "param_groups", ()):
        in_kernel = group.get("fused") or group.get("capturable")
        for p in group["params"]:
            if not isinstance(state := getattr(opt, "state", {}).get(p), dict):
                continue
            for key, value in state.items():
                device = p.device
                if isinstance(value, Tensor) and value.ndim == 0:
                    on_device = in_kernel if key == "step" else value.device.type != "cpu"
                    device = p.device if on_device else torch.device("cpu")
                state[key] = map_tensors(partial(Tensor.to, device=device), value)


def elsewhere(learn: Learner) -> set[int]:
    """Return the ids of parameters in other optimizers, kept by callbacks or on the learner."""
    return {id(p) for opt in optimizers_elsewhere(learn).values() for p in params_of(opt)}


def check_trained(learn: Learner) -> None:
    """Raise ValueError for a trainable parameter of the model, loss or a callback that no optimizer has."""
    groups = getattr(learn.opt, "param_groups", ())  # none in a bare class, which cannot be inspected
    inside = {id(p) for group in groups for p in group["params"]}
    if not groups or all(id(p) in inside or not p.requires_grad for p in all_params(learn)):
        return
    if names := left_out(named_params(learn), groups, elsewhere(learn)):
        raise ValueError(
            f"no optimizer has {names}, so it would not be trained: the optimizer is made before before_fit; "
            "make or replace layers in prepare(self, learn), give a callback's own parameters by "
            "extra_params(self, learn), or freeze what is not to be trained, requires_grad_(False)"
        )


def check_brought(learn: Learner) -> None:
    """Raise ValueError for a callback whose own state_dict lacks a parameter that it brings."""
    for cb in learn.cbs:
        if type(cb).state_dict is Callback.state_dict or not (params := brought_by(cb, learn)):
            continue
        places = {t.untyped_storage().data_ptr() for t in tensors_in(cb.state_dict())}
        for name, p in params.items():
            if p.untyped_storage().data_ptr() not in places:
                raise ValueError(
                    f"{type(cb).__name__}.state_dict lacks {name}, which extra_params gives the optimizer: "
                    "a resumed run would begin with another value; expected it there, or no state_dict"
                )


def warn_of_forgotten(learn: Learner) -> None:
    """Warn of a callback's parameter that has a gradient but is in no optimizer."""
    known: set[int] = set()
    for cb in learn.cbs:
        for name, p in _kept_by(cb):
            if p.grad is None or not p.requires_grad:
                continue
            known = known or {id(p) for p in [*named_params(learn).values(), *params_of(learn.opt)]}
            if id(p) not in known | elsewhere(learn):
                warn(
                    f"{type(cb).__name__}.{name} has a gradient and no optimizer, so it is not trained: "
                    "return it from extra_params(self, learn), which gives it to the learner's optimizer"
                )
