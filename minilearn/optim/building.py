"""Build an optimizer of any kind, with parameter groups for the model and for parameters outside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .calling import call_opt_func
from .combined import Combined
from .groups import EXTRA, Group, check_lr, left_out, one_each

_FUSED_IN_SHARDS = ("Adam", "AdamW")  # which torch can do on sharded parameters
_CHOICES = ("fused", "foreach", "differentiable", "capturable")  # a user who sets one has decided


def build_opt(
    opt_func: Callable[..., Any],
    model: nn.Module,
    lr: float | Sequence[float],
    param_groups: Callable[[nn.Module], Sequence[Any]] | None = None,
    extra: Sequence[Group] = (),
    elsewhere: Collection[int] = (),
) -> Any:
    """Build the optimizer `opt_func(params, lr)` for a model.

    Args:
        opt_func: takes (params, lr); lr is given by name where an argument is called so. One of torch's with
            a `fused` switch is built with fused=True where the device has such a kernel, unless its arguments
            say fused, foreach, differentiable or capturable.
        lr: one number >= 0, or one per group of the model; the extra groups then have the last one. A list
            may also give the extra groups' lrs.
        param_groups: model -> list of groups, each a dict as torch takes it ("params" and its own
            lr, weight_decay, ...) or a list of parameters. None: one group of all parameters.
        extra: groups of parameters outside the model, which come last. Parameters that the model's groups
            have are left out of them.
        elsewhere: the ids of parameters that another optimizer has, which `param_groups` may leave out.

    Raises: ValueError for a trainable parameter in no group, or if the numbers of lrs and groups differ;
        TypeError for an optimizer without groups where there are extra ones.
    """
    params: list[Any] = list(model.parameters())
    if param_groups is not None:
        given = param_groups(model)
        params = [_listed(group) for group in ([given] if isinstance(given, dict) else given)]
        _check_groups(model, params, elsewhere)
    extra = _left_over(extra, [*params, {"params": list(model.parameters())}] if param_groups else params)
    if isinstance(opt_func, Combined):
        return _combined(opt_func, model, lr, params, extra)
    is_list = isinstance(lr, Sequence) and not isinstance(lr, str)
    if param_groups is None and (extra or is_list):
        params = [{"params": params}]
    params, n = [*params, *extra], len(params)
    lr = _set_lrs(params, lr, n)
    return _noted(_made(opt_func, model, params, lr, extra), model, extra)


def _set_lrs(groups: list[Group], lr: Any, n: int) -> Any:
    """Set the lr of each group, of which the first n are the model's, from a list; return the first lr."""
    if isinstance(lr, Sequence) and not isinstance(lr, str):
        lrs = one_each(lr, n, len(groups) - n)
        for group, group_lr in zip(groups, lrs, strict=True):
            group["lr"] = group_lr
        lr = lrs[0]
    check_lr(lr)
    return lr


def _combined(
    opt_func: Combined, model: nn.Module, lr: Any, params: list[Any], extra: Sequence[Group]
) -> Any:
    """Build several optimizers as one."""
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    names = {id(p): name for name, p in inner.named_parameters()}
    groups = [part if isinstance(part, dict) else {"params": [part]} for part in params]
    if not any(isinstance(part, dict) for part in params):
        groups = [{"params": params}]
    groups = opt_func.split([*groups, *extra], names)
    lr = _set_lrs(groups, lr, sum(EXTRA not in group for group in groups))
    opt = opt_func.made(groups, lr, lambda one, own, own_lr: _made(one, model, own, own_lr, ()))
    return _noted(opt, model, extra)


def _noted(opt: Any, model: nn.Module, extra: Sequence[Group]) -> Any:
    """Note on an optimizer what it was built with, and for which parameters."""
    if isinstance(opt, torch.optim.Optimizer):
        built = [{k: g[k] for k in ("momentum", "betas") if k in g} for g in opt.param_groups]
        opt.as_built = built  # type: ignore[attr-defined]
        own = [*model.parameters(), *(p for group in extra for p in group["params"])]
        opt.of_model = {id(p) for p in own}  # type: ignore[attr-defined]
    return opt


def _made(opt_func: Any, model: nn.Module, params: list[Any], lr: Any, extra: Sequence[Group]) -> Any:
    try:
        may_fuse = _may_fuse(opt_func, model, [p for group in extra for p in group["params"]])
        opt = _fused(opt_func, params, lr) if may_fuse else call_opt_func(opt_func, params, lr)
    except Exception as error:
        if extra:
            error.add_note(
                f"minilearn: opt_func was given groups, because of the parameters of {_names(extra)}"
            )
        raise
    if extra and not getattr(opt, "param_groups", None):
        raise TypeError(
            f"{type(opt).__name__} has no param_groups, so it cannot train the parameters of {_names(extra)}:"
            " expected a torch.optim.Optimizer, or one on minilearn.optim.Optimizer; or freeze them, "
            "requires_grad_(False)"
        )
    return opt


def _names(extra: Sequence[Group]) -> str:
    return ", ".join(group[EXTRA] for group in extra)


def _left_over(extra: Sequence[Group], groups: Sequence[Any]) -> list[Group]:
    """Return the extra groups without parameters that earlier groups have, and without empty groups."""
    known = {id(p) for g in groups for p in (g["params"] if isinstance(g, dict) else [g])}
    found = []
    for group in extra:
        new = [p for p in group["params"] if id(p) not in known]
        known.update(map(id, new))
        if any(p.requires_grad for p in new):
            found.append({**group, "params": new})
    return found


def _listed(group: Any) -> Group:
    """Copy a group; make a list of its parameters if they are one tensor or an iterator."""
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
        return call_opt_func(opt_func, params, lr, fused=True)
    except RuntimeError:  # torch has no fused kernel for this device or dtype
        return call_opt_func(opt_func, params, lr)


def _check_groups(model: nn.Module, groups: list[Group], elsewhere: Collection[int]) -> None:
    if names := left_out(dict(model.named_parameters()), groups, elsewhere):
        raise ValueError(
            f"param_groups leaves out {names}: expected every "
            "trainable parameter in a group; freeze what is not to be trained, requires_grad_(False), or "
            "make its own optimizer in prepare(self, learn) of a callback, which keeps it"
        )


def _may_fuse(opt_func: Callable[..., Any], model: nn.Module, more: Sequence[Tensor]) -> bool:
    if isinstance(opt_func, partial) and opt_func.keywords.keys() & set(_CHOICES):
        return False
    inner = inspect.unwrap(getattr(opt_func, "func", opt_func))
    if not getattr(inner, "__module__", "").startswith("torch.optim"):
        return False
    # The fused kernels refuse sparse gradients, but only at the first step.
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    params = [*model.parameters(), *more]
    real = all(p.is_floating_point() for p in params)  # they refuse other dtypes just as late
    if len({p.device.type for p in params}) > 1:
        return False
    are_parts = {hasattr(p, "device_mesh") for p in params}
    if len(are_parts) > 1 or (are_parts == {True} and inner.__name__ not in _FUSED_IN_SHARDS):
        return False
    try:
        accepted = inspect.signature(opt_func).parameters
    except ValueError:  # a partial with a wrong argument, which `call_opt_func` names
        return False
    return real and not sparse and "fused" in accepted
