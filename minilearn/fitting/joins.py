"""What a loss or a metric joins: operations that would broadcast every sample over every other one."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..batches import tensors_in
from ..counting import ELEMENTWISE, calls_of
from .checks import shapes_of

_EXPLICIT = (torch.einsum, torch.tensordot)  # functions whose caller names the dimensions
_JOINING = (F.cosine_similarity, F.pairwise_distance, torch.dist, Tensor.dist)  # they broadcast, then reduce


def is_compiled(function: Any) -> bool:
    """Whether torch.compile made a function or module, or what it calls by name."""
    return any(_is_compiled(f) for f in calls_of(function))


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable") or (
        isinstance(function, nn.Module)
        and (hasattr(function, "_orig_mod") or getattr(function, "_compiled_call_impl", None) is not None)
    )


@contextmanager
def eager() -> Iterator[None]:
    """Compile nothing inside a `with`, because torch.compile would compile the watching too."""
    if "torch._dynamo" not in sys.modules:  # then nothing can be compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class Joins(TorchFunctionMode):
    """Refuse operations that join every sample with every other one, inside a `with`.

    This follows the tensors of preds and target through the operations. A tensor that an operation makes
    comes from the same tensors as its arguments, unless it has more dimensions than they have: who adds a
    dimension means to broadcast.

    Args:
        said: what computes, as messages call it.
        parts: what it computes from, however nested.
        where: where the user may change it, for messages.

    Raises, in the operation: ValueError if it would broadcast a tensor over one of another origin that has
        another number of dimensions, (N, 1) over (N,).
    """

    def __init__(self, said: str, parts: Any, where: str) -> None:
        super().__init__()
        self._said, self._where = said, where
        self._from: dict[int, tuple[Any, frozenset[int]]] = {}  # by id: the tensor, and where it comes from
        for t in tensors_in(parts):
            self._note(t, frozenset([id(t)]))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = [(t, self._from[id(t)][1]) for t in _tensors((args, kwargs.values())) if self._knows(t)]
        if not found:
            return func(*args, **kwargs)
        if func in (*ELEMENTWISE, *_JOINING):
            self._check_joined(found)
        self.before(func, args, kwargs)
        out = func(*args, **kwargs)
        self.after(func, args, kwargs, out)
        made = [*_tensors([out])]
        if len(found) > 1 and len(made) == 1 and func not in _EXPLICIT:
            self._check_joined(found, made[0].shape)
        n_dims = max(t.ndim for t, _ in found)
        origins = frozenset().union(*(origin for _, origin in found))
        for t in made:
            if t.ndim <= n_dims and not self._knows(t):
                self._note(t, origins)
        return out

    def before(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See an operation on what is followed, before it runs."""

    def after(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """See what it gave."""

    def _note(self, t: Tensor, origins: frozenset[int]) -> None:
        self._from[id(t)] = weakref.ref(t), origins

    def _knows(self, t: Tensor) -> bool:
        return id(t) in self._from and self._from[id(t)][0]() is t

    def _check_joined(self, found: list[tuple[Tensor, frozenset[int]]], shape: Any = None) -> None:
        """Raise ValueError if two tensors of different origin are broadcast over each other."""
        for i, (a, from_a) in enumerate(found):
            for b, from_b in found[:i]:
                if from_a == from_b or a.ndim == b.ndim or not _expands_both(a, b, shape):
                    continue
                wide, flat = (a, b) if a.ndim > b.ndim else (b, a)
                raise ValueError(
                    f"{self._said} joins values of {shapes_of(wide, flat)}, and would "
                    f"broadcast them to {tuple(_joint(a, b))}, every sample with "
                    "every other one: expected the same shape; squeeze one, preds.squeeze(1), or, if every "
                    f"pair is meant, add the dimension {self._where}, target[None]"
                )


def _expands_both(a: Tensor, b: Tensor, shape: Any) -> bool:
    try:
        joint = _joint(a, b)
    except RuntimeError:  # torch refuses the operation, or it is not elementwise
        return False
    return joint.numel() > max(a.numel(), b.numel()) and shape in (None, joint)


def _joint(a: Tensor, b: Tensor) -> torch.Size:
    return torch.Size(torch.broadcast_shapes(a.shape, b.shape))  # type: ignore[no-untyped-call]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list) or type(value) is type({}.values()):
            yield from _tensors(value)
