"""Call what makes an optimizer, whatever it calls the lr and wherever it takes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch

from ..arguments import shown

_NAMES_OF_LR = ("lr", "learning_rate", "max_lr", "base_lr")


def call_opt_func(opt_func: Callable[..., Any], params: Any, lr: Any, **kwargs: Any) -> Any:
    """Return `opt_func(params, lr=lr)`, or with the name that it has for the lr; by place if it has none.

    Raises: TypeError for a partial with an argument that its function has not; ValueError for one with
        another lr, which would be lost, and for a class that did not take lr as the lr of its groups.
    """
    check_keywords(opt_func)
    given = params if any(isinstance(group, dict) for group in params) else None
    name = name_of_lr(opt_func)
    own = opt_func.keywords.get(name or "lr", lr) if isinstance(opt_func, partial) else lr
    if not (given and all("lr" in group for group in given)) and not is_equal(own, lr):
        raise ValueError(
            f"opt_func={shown(opt_func)} has {name}={own!r}, and the learner lr={lr!r}: expected one of the "
            f"two; Learner(..., lr={own!r})"
        )
    opt = opt_func(params, lr, **kwargs) if name is None else opt_func(params, **{name: lr}, **kwargs)
    kind = opt_func.func if isinstance(opt_func, partial) else opt_func
    if isinstance(kind, type) and name not in _named(opt_func):
        for i, group in enumerate(getattr(opt, "param_groups", ())):
            if "lr" not in group or (given is not None and "lr" in given[i]):
                continue
            if not is_equal(group["lr"], lr):
                raise ValueError(
                    f"{kind.__name__} was given lr={lr!r}, but has lr={group['lr']!r} in group {i}: expected "
                    "an optimizer that takes (params, lr); wrap it, opt_func=lambda params, lr: ..."
                )
    return opt


def check_keywords(opt_func: Callable[..., Any]) -> None:
    """Raise TypeError, with the closest name, for a keyword of a partial that its function does not take."""
    if not isinstance(opt_func, partial):
        return
    named = _named(opt_func.func, follow_wrapped=False)  # a decorator may take arguments of its own
    if not named or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in named.values()):
        return
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, p in named.items() if p.kind in kinds]
    for key in [key for key in opt_func.keywords if key not in names]:
        close = get_close_matches(key, names, n=1, cutoff=0.5)  # "mom" and "momentum" have 0.55
        hint = f"did you mean {close[0]}? " if close else ""
        called = getattr(opt_func.func, "__name__", shown(opt_func.func))
        raise TypeError(
            f"opt_func={shown(opt_func)}: {called} has no argument {key!r}: {hint}It takes {', '.join(names)}"
        )


def name_of_lr(opt_func: Callable[..., Any]) -> str | None:
    """Return the name by which to give the lr; None to give it by place, because no argument has such a name.

    What takes **kwargs gets it there, as `lr`, if it takes nothing else besides the parameters, or if it is a
    subclass of an optimizer with such an argument.
    """
    named = _named(opt_func)
    by_name = [k for k, p in named.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if (name := next((name for name in _NAMES_OF_LR if name in by_name), None)) is not None:
        return name
    kinds = [p.kind for p in named.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return None
    kind = opt_func.func if isinstance(opt_func, partial) else opt_func
    bases = kind.__mro__[1:] if isinstance(kind, type) else ()
    has_parents = any("lr" in _named(base) for base in bases if "__init__" in vars(base))
    by_place = [
        k for k in kinds if k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    is_alone = len(by_place) < 2 and inspect.Parameter.VAR_POSITIONAL not in kinds
    return "lr" if has_parents or is_alone else None


def _named(opt_func: Callable[..., Any], follow_wrapped: bool = True) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(opt_func, follow_wrapped=follow_wrapped).parameters)
    except (ValueError, TypeError):  # written in C, or a partial with a wrong argument
        return {}


def is_equal(a: Any, b: Any) -> bool:
    """Whether two lrs, numbers or tensors, are the same."""
    return a is b or bool(torch.as_tensor(a, dtype=torch.float64) == torch.as_tensor(b, dtype=torch.float64))
