"""The generators from which the functions of a run draw: unpack, the loss, those of callbacks, and methods.

A module or a callback keeps its generators among its attributes, where they are saved with it. A function, or
a method of a user's class, has others in its closure, defaults or globals, which nothing else saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch

from ..seeding import generators_in, set_generator, state_of_generator
from .begun import owner_of
from .codec import Loader, Saver

if TYPE_CHECKING:
    from ..callback import Callback
    from ..learner import Learner

_NOT_USERS = ("minilearn", "torch", "builtins", "abc", "typing", "collections")
_MOST = 64  # entries of a container to search
_DEEPEST = 6  # a callback's dict of metrics, one in it, its attributes, and theirs


def _generators(learn: Learner, cbs: Mapping[str, Callback], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return by owner the generators that functions draw from, each once.

    Args:
        shared: what is saved separately, and is not searched.
    """
    seen = {id(part) for part in shared.values()}
    roots: dict[str, list[Any]] = {"unpack": [learn.unpack_func], "loss_func": [learn.loss_func]}
    roots |= {key: list(_functions_in(vars(cb), set(seen))) for key, cb in cbs.items()}
    for kind in _classes(learn, cbs):
        roots[f"class {kind.__module__}.{kind.__qualname__}"] = list(_methods_of(kind))
    found = {
        name: [one for part in parts for one in generators_in(part, seen)] for name, parts in roots.items()
    }
    return {name: generators for name, generators in found.items() if generators}


def _classes(learn: Learner, cbs: Mapping[str, Callback]) -> list[type]:
    """Return the users' classes among those of the learner, its callbacks, its model and loss, in order."""
    parts = [learn, *cbs.values(), owner_of(learn.loss_func), *learn.model.modules()]
    if isinstance(learn.loss_func, torch.nn.Module):
        parts += learn.loss_func.modules()
    kinds = {kind: None for part in parts for kind in type(part).__mro__}
    return [kind for kind in kinds if kind.__module__.partition(".")[0] not in _NOT_USERS]


def _methods_of(kind: type) -> Iterator[Any]:
    for value in vars(kind).values():
        if isinstance(value, FunctionType | staticmethod):
            yield getattr(value, "__func__", value)


def _functions_in(value: Any, seen: set[int], depth: int = 0) -> Iterator[Any]:
    """Find the functions that a callback keeps, such as those of its metrics."""
    if id(value) in seen or depth > _DEEPEST or isinstance(value, type | torch.Tensor | torch.nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, FunctionType | MethodType | partial):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        if len(value) <= _MOST:
            for part in value.values() if isinstance(value, Mapping) else value:
                yield from _functions_in(part, seen, depth + 1)
    elif hasattr(value, "__dict__"):
        yield from _functions_in(vars(value), seen, depth + 1)


def capture_drawing(learn: Learner, cbs: Mapping[str, Callback], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of the generators of functions by their owner."""
    saver = Saver([], "")
    return {
        name: saver.save([state_of_generator(one) for one in generators], name)
        for name, generators in _generators(learn, cbs, shared).items()
    }


def restore_drawing(
    learn: Learner, cbs: Mapping[str, Callback], shared: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    """Put the generators of functions in the states of a checkpoint.

    Another function is warned of where settings are compared; generators that it adds stay as they are.
    """
    for name, generators in _generators(learn, cbs, shared).items():
        states = Loader(torch.device("cpu"), "").load(saved.get(name, []), None, name)
        for generator, state in zip(generators, states, strict=False):
            set_generator(generator, state)
