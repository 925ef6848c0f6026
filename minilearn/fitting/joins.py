"""What a loss or a metric joins: operations that would broadcast every sample over every other one."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..batches import tensors_in
from ..counting import ELEMENTWISE, calls_of
from .checks import shapes_of

_EXPLICIT = (torch.einsum, torch.tensordot)  # functions whose caller names the dimensions
_JOINING = frozenset(  # they broadcast, then reduce
    {*ELEMENTWISE, F.cosine_similarity, F.pairwise_distance, torch.dist, Tensor.dist}
)
_ASKING = frozenset(  # what a tensor is: these join nothing, and make no tensor
    getattr(Tensor, name).__get__ for name in ("device", "dtype", "is_leaf", "layout", "ndim", "shape")
) | {Tensor.dim, Tensor.is_complex, Tensor.is_floating_point, Tensor.numel, Tensor.size}


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
    dimension means to broadcast. Between parts of the same predictions it is also meant where an operation
    names the dimension, sum(1, keepdim=True) or [:, 0, None], or both parts are views of the same values.

    Args:
        said: what computes, as messages call it.
        preds, target: what it computes from, however nested.
        where: where the user may change it, for messages.
        n: samples in the batch; None if it does not tell.

    Raises, in the operation: ValueError if it would broadcast a tensor over one of another origin that has
        another number of dimensions, (N, 1) over (N,), and over one of the same origin, if both come from
        preds and N is the number of samples.
    """

    def __init__(self, said: str, preds: Any, target: Any, where: str, n: int | None) -> None:
        super().__init__()
        self._said, self._where, self._n = said, where, n
        self._from: dict[int, _Origin] = {}  # by id
        for t in tensors_in([preds, target]):
            self._note(t, frozenset([id(t)]))
        self._preds = frozenset(map(id, tensors_in(preds)))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ASKING:
            return func(*args, **kwargs)
        found = [(t, self._from[id(t)]) for t in _tensors((args, kwargs.values())) if self._knows(t)]
        if not found:
            return func(*args, **kwargs)
        if func in _JOINING:
            self._check_joined(found)
        self.before(func, args, kwargs)
        out = func(*args, **kwargs)
        self.after(func, args, kwargs, out)
        made = [*_tensors([out])]
        if len(found) > 1 and len(made) == 1 and func not in _EXPLICIT:
            self._check_joined(found, made[0].shape)
        n_dims = max(t.ndim for t, _ in found)
        origins = frozenset().union(*(origin.ids for _, origin in found))
        is_explicit = _names_dimensions(func, args, kwargs)
        for t in made:
            if t.ndim <= n_dims and not self._knows(t):
                is_kept = is_explicit or any(o.is_kept for given, o in found if given.shape == t.shape)
                self._note(t, origins, is_kept)
        return out

    def before(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See an operation on what is followed, before it runs."""

    def after(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """See what it gave."""

    def _note(self, t: Tensor, ids: frozenset[int], is_kept: bool = False) -> None:
        self._from[id(t)] = _Origin(weakref.ref(t), ids, is_kept)

    def _knows(self, t: Tensor) -> bool:
        return id(t) in self._from and self._from[id(t)].of() is t

    def _check_joined(self, found: list[tuple[Tensor, _Origin]], shape: Any = None) -> None:
        """Raise ValueError if two tensors are broadcast over each other, unless that is meant."""
        for i, (a, from_a) in enumerate(found):
            for b, from_b in found[:i]:
                if a.ndim == b.ndim or not _expands_both(a, b, shape):
                    continue
                wide, flat, kept = (a, b, from_a) if a.ndim > b.ndim else (b, a, from_b)
                is_one = from_a.ids == from_b.ids
                if is_one and (kept.is_kept or not kept.ids & self._preds or not self._is_slip(wide, flat)):
                    continue
                advice = (
                    "index both alike, preds[:, 0] and preds[:, 1], or, if every pair is meant, add the "
                    f"dimension {self._where}, preds[:, 1][None]"
                    if is_one
                    else "squeeze one, preds.squeeze(1), or, if every pair is meant, add the dimension "
                    f"{self._where}, target[None]"
                )
                raise ValueError(
                    f"{self._said} joins values of {shapes_of(wide, flat)}, and would "
                    f"broadcast them to {tuple(_joint(a, b))}, every sample with "
                    f"every other one: expected the same shape; {advice}"
                )

    def _is_slip(self, wide: Tensor, flat: Tensor) -> bool:
        """Whether two parts of the same predictions are (N, 1, ...) and (N, ...), and not the same values."""
        n = self._n
        return (
            n is not None
            and flat.shape[:1] == (n,)
            and wide.shape == (n, 1, *flat.shape[1:])
            and not _are_same(wide, flat)
        )


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: of (a weak reference to it), ids (the tensors that it was computed from).

    is_kept (whether an operation that names its dimension of length 1 made it, such as sum with keepdim).
    """

    of: Callable[[], Tensor | None]
    ids: frozenset[int]
    is_kept: bool


def _names_dimensions(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call keeps a dimension, sum(1, keepdim=True), or adds one, preds[:, 0, None]."""
    if func is Tensor.__getitem__:
        return isinstance(args[1], tuple) and any(index is None for index in args[1])
    return bool(kwargs.get("keepdim") or kwargs.get("keepdims")) or any(a is True for a in args)


def _are_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of as many values are views of the same ones."""
    try:
        return a.data_ptr() == b.data_ptr()
    except RuntimeError:  # it has no memory of its own, as under torch.func
        return False


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
