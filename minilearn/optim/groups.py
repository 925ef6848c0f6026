"""An optimizer's parameter groups: what they belong to, and how their lr is set."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import counted
from .ranges import check_range

Group = dict[str, Any]

# What torch's schedulers write into a group besides lr, momentum and betas. A new scheduler on a kept
# optimizer would read the old values: LambdaLR, for instance, would start from a stale initial_lr.
SCHEDULE_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
# The key by which a group outside the model says whose its parameters are.
EXTRA = "extra"
# The key by which a group of several optimizers in one says which of them it belongs to.
PART = "part"


def groups_of(opt: Any) -> list[Group]:
    """Return an optimizer's parameter groups; for a bare class without any, its attributes as one group."""
    groups: list[Group] = getattr(opt, "param_groups", None) or [vars(opt)]
    return groups


def params_of(opt: Any, model: nn.Module | None = None) -> list[Tensor]:
    """Return the parameters that an optimizer steps; for a bare class without groups, those of the model."""
    groups = getattr(opt, "param_groups", None)
    if groups is None:
        return [] if model is None else list(model.parameters())
    return [p for group in groups for p in group["params"]]


def has_modes(opt: Any) -> bool:
    """Whether an optimizer keeps other weights in the model for training than for evaluation: schedule-free.

    Its train() and eval() switch, and do nothing if it is in that mode already. Of several optimizers in one,
    any may be such.
    """
    if not (callable(getattr(opt, "train", None)) and callable(getattr(opt, "eval", None))):
        return False
    parts = getattr(opt, "parts", None)
    return any(has_modes(part) for part in parts) if isinstance(parts, list) else True


def keep_order_of_memory(opt: Any) -> None:
    """Give each parameter's state its memory order, because fused kernels go by memory, not by indices."""
    for p, state in getattr(opt, "state", {}).items():
        if not isinstance(p, Tensor) or not isinstance(state, dict):
            continue  # some optimizers keep other values beside the states of parameters
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[key] = torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def by_layer(model: nn.Module) -> list[Group]:
    """Return a parameter group for each child of a model that has parameters, from the inputs to the outputs.

    For `Learner(..., param_groups=by_layer, lr=[1e-4, 1e-3, 1e-2])`. Each group has its child's name under
    "name"; the model's own parameters come first, under "". Shared parameters are in the first group that
    has them.
    """
    seen: set[int] = set()
    groups: list[Group] = []
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    parts = [("", inner.parameters(recurse=False)), *((k, m.parameters()) for k, m in inner.named_children())]
    for name, params in parts:
        new = [p for p in params if id(p) not in seen]
        seen.update(map(id, new))
        if new:
            groups.append({"params": new, "name": name})
    return groups


def set_lr(opt: Any, lr: float | Sequence[float]) -> None:
    """Set every group's lr to exactly `lr`, one number or a list as in `build_opt`, and forget old schedules.

    What a finished schedule left in the groups (initial_lr, max_lr, ...) is removed, and a momentum
    or beta1 that it cycled is reset to what the group was built with.

    Raises: TypeError for an optimizer without an lr.
    """
    groups = groups_of(opt)
    lrs = lr_of_each(lr, groups)
    as_built = getattr(opt, "as_built", [])  # missing after a deep copy, and for a group added later
    for i, (group, group_lr) in enumerate(zip(groups, lrs, strict=True)):
        check_lr(group_lr)
        if "lr" not in group:
            raise TypeError(
                f"{type(opt).__name__} has no lr to set: expected param_groups with lr, or opt.lr"
            )
        if "max_momentum" in group:
            built = as_built[i] if i < len(as_built) else opt.defaults
            for key in group.keys() & built.keys() & {"momentum", "betas"}:
                group[key] = built[key]
        forget_schedule(group)
        set_value(group, "lr", group_lr)


def set_value(group: Group, key: str, value: Any) -> None:
    """Set a hyperparameter of a group; a tensor in place, because a captured or compiled step reads it."""
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def lr_of_each(lr: Any, groups: Sequence[Group]) -> list[Any]:
    """Return the lr of each of an optimizer's groups; `lr` is one number, or a list as in `build_opt`."""
    n_extra = sum(EXTRA in group for group in groups)
    return one_each(lr, len(groups) - n_extra, n_extra)


def one_each(lr: Any, n: int, n_extra: int) -> list[Any]:
    """Return an lr for each of the model's n groups and the extra ones.

    Raises: ValueError if `lr` has another number of them.
    """
    is_list = isinstance(lr, Sequence) and not isinstance(lr, str)
    lrs = list(lr) if is_list else [lr] * (n + n_extra)
    if len(lrs) == n and n_extra:
        lrs += lrs[-1:] * n_extra
    if len(lrs) != n + n_extra:
        more = f" of the model, or {n + n_extra}, with those of the loss and of callbacks" if n_extra else ""
        raise ValueError(f"lr={list(lr)!r}: expected one number, or {n}, one per parameter group{more}")
    return lrs


def begin_momentum(opt: Any) -> None:
    """Give parameters the momentum that torch's fused SGD would begin with.

    Its kernel takes a group in which all have a buffer or none: after some were frozen for a while, it fails.
    A buffer of 0 makes the first step that of torch, buf = g, unless there is dampening; the group is not
    fused then.
    """
    if not isinstance(opt, torch.optim.SGD):
        return
    for group in opt.param_groups:
        if not group["fused"] or not group["momentum"]:
            continue
        params = [p for p in group["params"] if p.requires_grad]
        lacking = [p for p in params if opt.state.get(p, {}).get("momentum_buffer") is None]
        if lacking and group["dampening"] and len(lacking) < len(params):
            group["fused"] = False
        elif len(lacking) < len(params):
            for p in lacking:
                opt.state[p]["momentum_buffer"] = torch.zeros_like(p)


def divide_lrs(opt: Any, lr_div: float) -> None:
    """Divide the lr of each group of a model by lr_div, once for each group of the model after it.

    Raises: ValueError for an optimizer with a single group of the model, and for one of several parts.
    """
    groups = [group for group in groups_of(opt) if EXTRA not in group]
    if any(PART in group for group in groups):
        raise ValueError(
            f"lr_div={lr_div}: the optimizer is Combined, whose groups are in the order of its parts, not of "
            "the layers: expected one optimizer, or an lr for each group, fit(lr=[...])"
        )
    if len(groups) < 2:
        raise ValueError(
            f"lr_div={lr_div}: the optimizer has {len(groups)} group of the model's parameters: expected one "
            "for each layer, Learner(..., param_groups=minilearn.optim.by_layer)"
        )
    for depth, group in enumerate(reversed(groups)):
        set_value(group, "lr", group["lr"] / lr_div**depth)


def forget_schedule(group: Group) -> None:
    """Remove from a group what torch's schedulers left there."""
    for key in SCHEDULE_KEYS:
        group.pop(key, None)


def check_lr(lr: Any) -> None:
    """Raise ValueError unless an lr is a number >= 0, or a tensor of one, which a compiled step reads."""
    if isinstance(lr, Tensor) and lr.numel() == 1 and not lr.dtype.is_complex and lr.dtype != torch.bool:
        lr = lr.item()
    check_range("lr", lr)


def check_lrs(name: str, lr: Any) -> None:
    """Raise ValueError unless it is an lr, or a list of them; a fit knows how many groups there are."""
    if isinstance(lr, Sequence) and not isinstance(lr, str):
        if not lr:
            raise ValueError(f"{name}={lr!r}: expected one number, or one for each parameter group")
        for one in lr:
            check_lr(one)
    else:
        check_lr(lr)


def left_out(named: Mapping[str, Tensor], groups: Sequence[Group], elsewhere: Collection[int] = ()) -> str:
    """Name the trainable parameters that are in no group and not among the ids `elsewhere`; "" if none."""
    inside = {id(p) for g in groups for p in g["params"]}.union(elsewhere)
    names = [name for name, p in named.items() if p.requires_grad and id(p) not in inside]
    return f"{', '.join(names[:5])} ({len(names)} in all)" if names else ""


def check_kept(opt: Any, named: Mapping[str, Tensor], elsewhere: Collection[int] = ()) -> None:
    """Raise ValueError if a kept optimizer's groups no longer match the present parameters.

    Args:
        named: all parameters, of the model, the loss and the callbacks.
        elsewhere: see `build_opt`.
    """
    groups = getattr(opt, "param_groups", ())  # none in a bare class, which cannot be looked into
    hint = "was a layer, loss or callback replaced? fit(reset_opt=True) makes a new optimizer"
    if groups and (names := left_out(named, groups, elsewhere)):
        raise ValueError(f"{names} are not in the kept optimizer and would not be trained: {hint}")
    now = {id(p) for p in named.values()}
    before: set[int] = getattr(opt, "of_model", set())  # missing after a deep copy
    for i, group in enumerate(groups):
        if gone := [p for p in group["params"] if id(p) in before - now]:
            whose = (
                f"that {group[EXTRA]} no longer has" if EXTRA in group else "that are no longer in the model"
            )
            raise ValueError(
                f"the kept optimizer has {counted(len(gone), 'tensor')} in group {i} {whose}, "
                f"the first of shape {tuple(gone[0].shape)}: {hint}"
            )


def check_step(opt: Any) -> None:
    """Raise TypeError if `opt` cannot be stepped with `opt.step()`, nor with `opt.step(closure)`.

    That is: something without step and zero_grad, or whose step needs more.
    """
    name = type(opt).__name__
    for method in ("step", "zero_grad"):
        if not callable(getattr(opt, method, None)):
            raise TypeError(f"opt_func gave a {name}: expected an optimizer, with step() and zero_grad()")
    if len(needed := _needed_by_step(opt)) > 1:
        raise TypeError(f"{name}.step needs {', '.join(needed)}: write a callback that owns the step `step`")


def needs_closure(opt: Any) -> bool:
    """Whether the step of an optimizer needs a closure, which evaluates the model: LBFGS."""
    return callable(getattr(opt, "step", None)) and len(_needed_by_step(opt)) == 1


def _needed_by_step(opt: Any) -> list[str]:
    """Return the arguments that a step has to be given by place."""
    if hasattr(type(opt), "step"):  # the class's, because a scheduler replaces the instance's step
        parameters = list(inspect.signature(type(opt).step).parameters.values())[1:]  # without self
    else:
        parameters = list(inspect.signature(opt.step).parameters.values())
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
