"""Which values of a checkpoint are one object, or share memory, so that they are one after resuming too."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..processes import is_part
from .begun import Begun

_WITHOUT_IDENTITY = (tuple, frozenset, np.generic, torch.Size, torch.device)


class Identities:
    """Note, while values are saved, which of them were saved before under another path.

    Args:
        shared: name -> object that is not saved where it is found, such as "learn.model.0.weight".
        begun: knows the tensors and arrays that were at each path when the learner's first saved fit began.

    State: same, path -> the path or name of the same object; for a tensor that is a view, a list of this
        path, size, stride and offset. kept, the paths of tensors and arrays that are still the same objects
        as when the fit began, so that only their contents changed.
    """

    def __init__(self, shared: Mapping[str, Any] | None = None, begun: Begun | None = None) -> None:
        self.same: dict[str, Any] = {}
        self.kept: list[str] = []
        self._begun = begun
        self._paths = {id(value): name for name, value in (shared or {}).items()}
        self._objects: list[Any] = []  # while these exist, no other object has their ids
        self._bases: dict[int, tuple[str, Tensor]] = {}  # by the address of the memory
        for name, value in (shared or {}).items():
            if isinstance(value, Tensor):
                self._note_memory(value, name)

    def form(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return {"same": self.same, "kept": self.kept}

    def note(self, value: Any, path: str) -> None:
        """Note a value that is being saved."""
        if isinstance(value, _WITHOUT_IDENTITY):
            return
        if (known := self._paths.get(id(value))) is not None:
            if known != path:
                self.same[path] = known
        else:
            self._paths[id(value)] = path
            self._objects.append(value)
            if isinstance(value, Tensor):
                self._note_memory(value, path)
        if self._begun is not None and isinstance(value, Tensor | np.ndarray):
            if self._begun.is_beginning:
                self._begun.objects[path] = weakref.ref(value)
            elif path in self._begun.objects and self._begun.objects[path]() is value:
                self.kept.append(path)

    def _note_memory(self, value: Tensor, path: str) -> None:
        if is_part(value) or value.layout is not torch.strided or not value.numel():
            return
        try:
            address = value.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # a subclass without memory of its own
            return
        known = self._bases.get(address)
        if known is None:
            if address:
                self._bases[address] = path, value
        elif (view := _view(value, known[1])) is not None:
            self.same[path] = [known[0], *view]
        elif (view := _view(known[1], value)) is not None:
            self.same.setdefault(known[0], [path, *view])
            self._bases[address] = path, value


def _view(part: Tensor, whole: Tensor) -> list[Any] | None:
    """Return size, stride and offset of a part of a tensor; None if it is not inside."""
    offset = part.storage_offset() - whole.storage_offset()
    last = offset + sum((n - 1) * stride for n, stride in zip(part.shape, part.stride(), strict=True))
    if part.dtype != whole.dtype or not whole.is_contiguous() or offset < 0 or last >= whole.numel():
        return None
    return [list(part.shape), list(part.stride()), offset]


class Objects:
    """Return, while values are loaded, the same object where one object was saved.

    Args:
        form: that of `Identities`; None for a checkpoint that has none.
        shared: as for `Identities`, of the present learner.
    """

    def __init__(self, form: Any = None, shared: Mapping[str, Any] | None = None) -> None:
        self.is_known = form is not None
        self._same = form["same"] if form else {}
        self._kept = set(form["kept"] if form else ())
        self._loaded: dict[str, Any] = dict(shared or {})
        self._shared = set(self._loaded)
        self._parts: dict[str, list[str]] = {}  # whole -> its parts
        for path, of in self._same.items():
            if isinstance(of, list):
                self._parts.setdefault(of[0], []).append(path)
        self.filled: dict[int, Any] = {}  # objects that have been loaded already

    def get(self, path: str) -> Any:
        """Return the object that was loaded under another path; None if there is none."""
        of = self._same.get(path)
        if of is None:
            return None
        whole = self._loaded.get(of[0] if isinstance(of, list) else of)
        if not isinstance(of, list) or not isinstance(whole, Tensor):
            return whole
        return _part(whole, of)

    def is_kept(self, path: str) -> bool:
        """Whether a tensor or array was the same object all the time."""
        return path in self._kept

    def is_free(self, live: Any) -> bool:
        """Whether a present object may take the contents of a saved one: no other saved one has it."""
        return not self.is_known or id(live) not in self.filled

    def note(self, value: Any, path: str) -> None:
        """Note a loaded value."""
        self._loaded[path] = value
        if not isinstance(value, str | int | float | bool | type(None)):
            self.filled[id(value)] = value
        for part in self._parts.get(path, ()):
            if part not in self._shared and isinstance(self._loaded.get(part), Tensor):
                self._loaded[part].data = _part(value, self._same[part])


def _part(whole: Tensor, of: Iterable[Any]) -> Tensor:
    _, size, stride, offset = of
    whole = whole.detach()
    return whole.as_strided(size, stride, whole.storage_offset() + offset)
