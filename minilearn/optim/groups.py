"""Build an optimizer of any kind, and set the lr of its parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .ranges import check_range

Group = dict[str, Any]

# What torch's schedulers write into a group beside lr, momentum and betas. A new scheduler on a kept
# optimizer would read the old values: LambdaLR, say, starts from a stale initial_lr.
SCHEDULE_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
_CHOICES = ("fused", "foreach", "differentiable", "capturable")  # a user who sets one has decided


def groups_of(opt: Any) -> list[Group]:
    """Return an optimizer's parameter groups; of a bare class without any, its attributes as one group."""
    groups: list[Group] = getattr(opt, "param_groups", None) or [vars(opt)]
    return groups


def keep_order_of_memory(opt: Any) -> None:
    """Have each parameter's state in its order of memory: fused kernels go through memory, not indices."""
    for p, state in getattr(opt, "state", {}).items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[key] = torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def build_opt(
    opt_func: Callable[..., Any],
    model: nn.Module,
    lr: float | Sequence[float],
    param_groups: Callable[[nn.Module], Sequence[Any]] | None = None,
) -> Any:
    """Build the optimizer `opt_func(params, lr)` for a model.

    Args:
        opt_func: takes (params, lr). One of torch's with a `fused` switch is built with fused=True
            where the device has such a kernel, unless its arguments say fused, foreach,
            differentiable or capturable.
        lr: one number >= 0, or one per group.
        param_groups: model -> list of groups, each a dict as torch takes it ("params" and its own
            lr, weight_decay, ...) or a list of parameters. None: one group of all parameters.

    Raises: ValueError for a trainable parameter in no group, or another number of lrs than groups.
    """
    params: list[Any] = list(model.parameters())
    if param_groups is not None:
        given = param_groups(model)
        params = [_listed(group) for group in ([given] if isinstance(given, dict) else given)]
        _check_groups(model, params)
    if _is_several(lr):
        groups = params if param_groups is not None else [{"params": params}]
        lrs = _one_each(lr, len(groups))
        params = [{**group, "lr": group_lr} for group, group_lr in zip(groups, lrs, strict=True)]
        lr = lrs[0]
    _check_lr(lr)
    build = partial(_fused, opt_func) if _may_fuse(opt_func, model) else opt_func
    opt: Any = build(params, lr)
    if isinstance(opt, torch.optim.Optimizer):  # what set_lr and check_kept look at later
        built = [{k: g[k] for k in ("momentum", "betas") if k in g} for g in opt.param_groups]
        opt.as_built = built  # type: ignore[attr-defined]
        opt.of_model = {id(p) for p in model.parameters()}  # type: ignore[attr-defined]
    return opt


def _listed(group: Any) -> Group:
    """Copy a group; parameters that are one tensor, or go only once, become a list, to be checked too."""
    if isinstance(group, Tensor | str | tuple) or (isinstance(group, dict) and "params" not in group):
        found = ", ".join(map(repr, group)) if isinstance(group, dict) else f"a {type(group).__name__}"
        raise TypeError(
            f"param_groups gave a group of {found}: expected a list of groups, each a dict with 'params' or "
            "a list of parameters"
        )
    if not isinstance(group, dict):
        return {"params": list(group)}
    params = group["params"]
    if isinstance(params, Tensor):
        params = [params]
    return {**group, "params": list(params) if isinstance(params, Iterator) else params}


def _fused(opt_func: Callable[..., Any], params: list[Any], lr: Any) -> Any:
    try:
        return opt_func(params, lr, fused=True)
    except RuntimeError:  # how torch says that it has no fused kernel for this device or dtype
        return opt_func(params, lr)


def by_layer(model: nn.Module) -> list[Group]:
    """Return a parameter group for each child of a model that has parameters, from the inputs to the outputs.

    For `Learner(..., param_groups=by_layer, lr=[1e-4, 1e-3, 1e-2])`. Each group has its child's name under
    "name"; parameters that the model itself has come first, under "". Shared ones are in the first group.
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
    """Set every group's lr to exactly `lr` (one number or one per group), and forget old schedules.

    What a finished schedule left in the groups (initial_lr, max_lr, ...) is removed, and a momentum
    or beta1 that one cycled goes back to what the group was built with.

    Raises: TypeError for an optimizer of no lr.
    """
    groups = groups_of(opt)
    lrs = _one_each(lr, len(groups))
    as_built = getattr(opt, "as_built", [])  # not so after a deep copy, or of a group that came later
    for i, (group, group_lr) in enumerate(zip(groups, lrs, strict=True)):
        _check_lr(group_lr)
        if "lr" not in group:
            raise TypeError(
                f"{type(opt).__name__} has no lr to set: expected param_groups with lr, or opt.lr"
            )
        if "max_momentum" in group:
            built = as_built[i] if i < len(as_built) else opt.defaults
            for key in group.keys() & built.keys() & {"momentum", "betas"}:
                group[key] = built[key]
        forget_schedule(group)
        put(group, "lr", group_lr)


def put(group: Group, key: str, value: Any) -> None:
    """Set a hyperparameter of a group; a tensor in place, where a captured or compiled step reads it."""
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def _is_several(lr: Any) -> bool:
    return isinstance(lr, Sequence) and not isinstance(lr, str)


def _one_each(lr: Any, n: int) -> list[Any]:
    lrs = list(lr) if _is_several(lr) else [lr] * n
    if len(lrs) != n:
        raise ValueError(f"lr={lrs!r}: expected one number, or {n}, one per parameter group")
    return lrs


def forget_schedule(group: Group) -> None:
    """Remove from a group what torch's schedulers keep there."""
    for key in SCHEDULE_KEYS:
        group.pop(key, None)


def _check_lr(lr: Any) -> None:
    if not isinstance(lr, Tensor):  # one that a captured or compiled step reads
        check_range("lr", lr)


def left_out(model: nn.Module, groups: Sequence[Group]) -> str:
    """Name a model's trainable parameters that are in no group, as text; empty if there are none."""
    inside = {id(p) for g in groups for p in g["params"]}
    names = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    return f"{', '.join(names[:5])} ({len(names)} in all)" if names else ""


def check_kept(opt: Any, model: nn.Module) -> None:
    """Raise ValueError if a kept optimizer's groups no longer fit the model."""
    groups = getattr(opt, "param_groups", ())  # none in a bare class, which cannot be looked into
    hint = "was a layer replaced? fit(reset_opt=True) makes a new optimizer"
    if groups and (names := left_out(model, groups)):
        raise ValueError(
            f"{names} of the model are not in the kept optimizer and would not be trained: {hint}"
        )
    now: set[int] = {id(p) for p in model.parameters()}
    before: set[int] = getattr(opt, "of_model", set())  # not so after a deep copy
    for i, group in enumerate(groups):
        if gone := [p for p in group["params"] if id(p) in before - now]:
            raise ValueError(
                f"the kept optimizer has {len(gone)} tensors in group {i} that are no longer in the model, "
                f"the first of shape {tuple(gone[0].shape)}: {hint}"
            )


def _check_groups(model: nn.Module, groups: list[Group]) -> None:
    if names := left_out(model, groups):
        raise ValueError(
            f"param_groups leaves out {names}: expected every "
            "trainable parameter in a group; freeze what is not to be trained, requires_grad_(False)"
        )


def _may_fuse(opt_func: Callable[..., Any], model: nn.Module) -> bool:
    """Whether to try fused=True: it is torch's optimizer, has the switch, and nothing speaks against it."""
    if isinstance(opt_func, partial) and opt_func.keywords.keys() & set(_CHOICES):
        return False
    inner = inspect.unwrap(getattr(opt_func, "func", opt_func))
    if not getattr(inner, "__module__", "").startswith("torch.optim"):
        return False
    # The fused kernels refuse sparse gradients and numbers that are not real, but only at the first step.
    if any(getattr(module, "sparse", False) for module in model.modules()):
        return False
    if not all(p.is_floating_point() for p in model.parameters()):
        return False
    try:
        return "fused" in inspect.signature(opt_func).parameters
    except ValueError:  # a partial with an argument that the optimizer has not, which it says better itself
        return False


def check_step(opt: Any) -> None:
    """Raise TypeError if `opt` cannot be stepped with `opt.step()`.

    Raises: for something without step and zero_grad, and for one whose step needs a closure (LBFGS).
    """
    name = type(opt).__name__
    for method in ("step", "zero_grad"):
        if not callable(getattr(opt, method, None)):
            raise TypeError(f"opt_func gave a {name}: expected an optimizer, with step() and zero_grad()")
    parameters = list(inspect.signature(opt.step).parameters.values())
    if hasattr(type(opt), "step"):  # of the class, because a scheduler puts a step of its own on the instance
        parameters = list(inspect.signature(type(opt).step).parameters.values())[1:]  # without self
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if needed:
        raise TypeError(f"{name}.step needs {', '.join(needed)}: write a callback that owns the step `step`")
