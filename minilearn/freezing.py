"""Freezing modules of a model, and training them again."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .weights import plain_name, unwrapped


def freeze(learn: Any, which: Sequence[str | type[nn.Module]]) -> None:
    """See `Learner.freeze`."""
    modules = _chosen(learn.model, which) if which else _all_but_last(learn.model)
    own = [] if which else unwrapped(learn.model).parameters(recurse=False)
    for p in [*own, *(p for module in modules for p in module.parameters())]:
        p.requires_grad_(False)
        p.grad = None  # a step that is still to come would use it
    for part in [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]:
        # In a model that is in evaluation mode, that of a part says nothing about the part.
        if mode_of(learn, part) or (not mode_of(learn, learn.model) and not _is_frozen(learn, part)):
            learn.frozen_norms.append(part)
            _set_mode(learn, part, False)


def unfreeze(learn: Any, which: Sequence[str | type[nn.Module]]) -> None:
    """See `Learner.unfreeze`."""
    for module in _chosen(learn.model, which) if which else [learn.model]:
        module.requires_grad_(True)
        for part in module.modules():
            if _is_frozen(learn, part):
                learn.frozen_norms = [norm for norm in learn.frozen_norms if norm is not part]
                _set_mode(learn, part, mode_of(learn, learn.model))


def _is_frozen(learn: Any, module: nn.Module) -> bool:
    return any(module is norm for norm in learn.frozen_norms)


def mode_of(learn: Any, module: nn.Module) -> bool:
    """Return the mode in which a fit found a module, and leaves it; without a fit, the one that it has."""
    return learn.found_modes.get(module, module.training)


def _set_mode(learn: Any, module: nn.Module, training: bool) -> None:
    if module in learn.found_modes:  # a fit is running: what it leaves when it ends, and has in training
        learn.found_modes[module] = training
        training = training and learn.training
    module.training = training


def _chosen(model: nn.Module, which: Sequence[str | type[nn.Module]]) -> list[nn.Module]:
    inner = unwrapped(model)
    named = inner.named_modules(remove_duplicate=False)
    modules = {plain_name(inner, name): module for name, module in named if name}
    chosen = []
    for wanted in which:
        if not isinstance(wanted, str | type):
            raise TypeError(
                f"freeze({wanted!r}): expected names of modules, such as 'layer1' or '0', or classes"
            )
        if isinstance(wanted, type):
            found = [module for module in modules.values() if isinstance(module, wanted)]
            kinds = sorted({type(module).__name__ for module in modules.values()})
            hint = f"the model has {', '.join(kinds)}"
        else:
            found = [modules[wanted]] if wanted in modules else []
            close = get_close_matches(str(wanted), modules, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"the model has {', '.join(list(modules)[:20])}"
            )
        if not found:
            raise ValueError(f"{wanted!r} is no module of {type(unwrapped(model)).__name__}: {hint}")
        chosen += found
    return chosen


def _all_but_last(model: nn.Module) -> list[nn.Module]:
    children = [child for child in unwrapped(model).children() if next(child.parameters(), None) is not None]
    if len(children) < 2:
        raise ValueError(
            f"freeze() leaves the last child that has parameters, and {type(unwrapped(model)).__name__} has "
            f"{len(children)}: name what to freeze, freeze('body')"
        )
    return children[:-1]
