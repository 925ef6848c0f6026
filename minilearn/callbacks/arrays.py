"""Arrays that refuse to be broadcast over each other, sample over sample: `fitting.joins` for numpy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def followed(preds: Any, target: Any) -> tuple[Any, Any]:
    """Return predictions and targets that a function cannot join by mistake, (N, 1) with (N,).

    Arrays of other shapes cannot be, and are returned as they are.
    """
    pair = preds, target
    if not all(isinstance(part, np.ndarray) for part in pair) or not _expands_both(*pair):
        return pair
    views = tuple(part.view(Followed) for part in pair)
    for view, origin in zip(views, ("preds", "target"), strict=True):
        view.origins = frozenset([origin])
    return views


class Followed(np.ndarray[Any, Any]):
    """An array that knows what it comes from, until an operation adds a dimension.

    Raises, in an operation of numpy: ValueError if it joins every sample with every other one.
    """

    origins: frozenset[str]

    def __array_finalize__(self, obj: Any) -> None:
        is_same = self.ndim <= getattr(obj, "ndim", 0)  # who adds a dimension means to broadcast
        self.origins = getattr(obj, "origins", frozenset()) if is_same else frozenset()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__":
            _check_joined(inputs)
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        found = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        if out is not None or type(found) is not np.ndarray:
            return found if out is None or len(out) > 1 else out[0]
        made = found.view(Followed)
        made.origins = frozenset().union(*(part.origins for part in inputs if isinstance(part, Followed)))
        return made

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.where:
            _check_joined(args)
        return super().__array_function__(func, types, args, kwargs)


def _plain(part: Any) -> Any:
    return part.view(np.ndarray) if isinstance(part, Followed) else part


def _check_joined(parts: Iterable[Any]) -> None:
    found = [part for part in parts if isinstance(part, Followed) and part.origins]
    for i, a in enumerate(found):
        for b in found[:i]:
            if a.origins != b.origins and _expands_both(a, b):
                wide, flat = (a, b) if a.ndim > b.ndim else (b, a)
                raise ValueError(
                    f"it joins an array of shape {wide.shape} with one of shape {flat.shape}, every sample "
                    "with every other one: expected the same shape; squeeze one in the function, "
                    "preds.squeeze(1), or in a pick, (AtEnd(function), lambda preds, target: "
                    "(preds.squeeze(1), target)), or, if every pair is meant, add the dimension, target[None]"
                )


def _expands_both(a: Any, b: Any) -> bool:
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        return False
    return a.ndim != b.ndim and np.prod(shape) > max(a.size, b.size)
