"""State that is kept in memory for a while, in the forms of checkpoints, and then restored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .codec import _PLAIN, LEFT, Loader, Saver, has_state

_KEPT = "kept"  # (_KEPT, the object, what was in it)


class Memory(Saver):
    """Keep the contents of objects, and restore them in the same objects, however these have changed.

    The forms are those of checkpoints, but each comes with its object, which so keeps its identity. For what
    has no form, such as an open file, only the reference is kept. Of a module, everything is kept:
    parameters, buffers, gradients, modes and submodules.

    Args:
        shared: objects that are left as they are wherever they are found.
    """

    def __init__(self, shared: Iterable[Any]) -> None:
        super().__init__(shared, "")
        self._seen: set[int] = set()  # each object once, also in a cycle
        self._fields: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._forms: list[Any] = []

    def keep(self, *values: Any) -> None:
        """Keep the contents of these values."""
        self._forms += [self.save(value, "") for value in values]

    def keep_fields(self, owner: Any) -> None:
        """Keep the attributes of an object, and their contents."""
        self._fields.append((vars(owner), dict(vars(owner))))
        self.keep(*vars(owner).values())

    def put_back(self) -> None:
        """Restore everything; if that fails for one object, the others are restored all the same."""
        loader, error = _Back(torch.device("cpu"), ""), None
        for live, fields in self._fields:
            live.clear()
            live.update(fields)
        for form in self._forms:
            try:
                loader.load(form, None, "")
            except Exception as e:
                error = error or e
        if error is not None:
            raise error

    def save(self, value: Any, path: str) -> Any:
        """Return the form of a value, with the value itself."""
        if type(value) in _PLAIN:
            return value
        if id(value) in self._seen:
            return (_KEPT, value, LEFT)
        self._seen.add(id(value))
        try:
            return (_KEPT, value, self._form(value, path))
        except Exception:  # for an open file, the reference has to do
            return (_KEPT, value, LEFT)

    def _form(self, value: Any, path: str) -> Any:
        if id(value) in self.shared or isinstance(value, type):  # a class may have a state_dict, too
            return LEFT
        if isinstance(value, Tensor):
            return _tensor_form(value)
        if isinstance(value, nn.Module):
            parts = [_module_form(module, self) for module in value.modules()]
            self._seen.update(id(module) for module in value.modules())
            return ("module", parts)
        form = super().save(value, path)
        if has_state(value) and hasattr(value, "__dict__"):
            return ("fields", dict(vars(value)), form)  # including what its state_dict leaves out
        return form


class _Back(Loader):
    """Restore forms of a Memory in their objects."""

    def load(self, saved: Any, live: Any, path: str) -> Any:
        if not (isinstance(saved, tuple) and saved and saved[0] is _KEPT):
            return super().load(saved, live, path)
        _, live, form = saved
        kind = form[0] if isinstance(form, tuple) else None
        if kind == LEFT[0]:
            return live
        if kind == "fields":
            vars(live).clear()
            vars(live).update(form[1])
            form = form[2]
        if kind == "of a tensor":
            _put_tensor(live, *form[1:])
        elif kind == "module":
            for part in form[1]:
                _put_module(self, *part)
        else:
            _refill(live, super().load(form, live, path))
        return live


def _refill(live: Any, value: Any) -> None:
    """Give an object the contents of another; an immutable one has them already."""
    if value is live:
        return
    if isinstance(live, dict | set):
        live.clear()
        live.update(value)
    elif isinstance(live, deque):
        live.clear()
        live.extend(value)
    elif isinstance(live, np.ndarray) and live.flags.writeable:
        live[...] = value


def _tensor_form(t: Tensor) -> tuple[Any, ...]:
    grad = t.grad if t.is_leaf else None
    return ("of a tensor", t.detach().clone(), t.requires_grad, grad, None if grad is None else grad.clone())


def _put_tensor(t: Tensor, value: Tensor, requires_grad: bool, grad: Tensor | None, in_grad: Any) -> None:
    with torch.no_grad():
        if (t.shape, t.dtype, t.device) != (value.shape, value.dtype, value.device):
            t.data = value.clone()
        elif all(stride or n < 2 for stride, n in zip(t.stride(), t.shape, strict=True)):
            t.copy_(value)  # an expanded tensor is never written to
        if grad is not None:
            grad.copy_(in_grad)
    if t.is_leaf:
        t.requires_grad_(requires_grad)
        t.grad = grad


_PARTS = ("_parameters", "_buffers", "_modules")


def _module_form(module: nn.Module, memory: Memory) -> tuple[Any, ...]:
    tensors = [t for name in _PARTS[:2] for t in vars(module)[name].values() if t is not None]
    extra = None
    with suppress(RuntimeError):  # the module has none
        extra = memory.save(module.get_extra_state(), "")
    parts = {name: dict(vars(module)[name]) for name in _PARTS}
    return module, module.training, parts, [memory.save(t, "") for t in tensors], extra


def _put_module(loader: _Back, module: nn.Module, mode: bool, parts: Any, tensors: Any, extra: Any) -> None:
    for name, part in parts.items():
        vars(module)[name].clear()
        vars(module)[name].update(part)
    for form in tensors:
        loader.load(form, None, "")
    module.training = mode
    if extra is not None:
        module.set_extra_state(loader.load(extra, None, ""))
