"""Whether code of the user's may call `learn.log`, seen before it runs, from what it names."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from enum import Enum
from functools import partial
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    NotImplementedType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..counting import is_torchs

if TYPE_CHECKING:
    from ..learner import Learner

_OURS = __name__.partition(".")[0]
_TRUSTED = {_OURS, "torch", "torchvision", "numpy", *sys.stdlib_module_names}  # their code logs nothing
# With one of these a name need not be seen in the code.
_HIDES = {"log", "getattr", "eval", "exec", "globals", "attrgetter", "methodcaller", "__getattribute__", "gc"}
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, Enum, Tensor, np.ndarray, np.generic, slice, range),
    *(torch.dtype, torch.device, torch.Generator, np.random.Generator),
)
_OF_C = (
    *(BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType),
    *(GetSetDescriptorType, MemberDescriptorType),
)
_EMPTY = (object, EllipsisType, NotImplementedType, CodeType)
_MOST = 20_000  # objects that are looked at; more of them may log
_Nothing: Any = object()


def may_log(learn: Learner) -> bool:
    """Whether a name may be logged that no callback declares: in the loss, in unpack=, in a hook.

    A function whose code, and all that it names, has neither the name `log` nor a learner cannot log. What
    cannot be seen through, such as an extension or getattr, may.
    """
    if any(cb.logs is None for cb in learn.cbs):  # its names come from the model
        return True
    found: list[Any] = []
    if learn.loss_func is not None and not is_torchs(learn.loss_func):
        found.append(learn.loss_func)
    if learn.unpack_func is not None:
        found.append(learn.unpack_func)
    hooks: list[Any] = [type(learn)] if not _is_trusted(type(learn)) else []
    for cb in learn.cbs:
        if not _is_trusted(type(cb)):
            hooks.append(cb)
        else:  # a function that it was given may take the learner
            hooks += [
                part for part in vars(cb).values() if isinstance(part, FunctionType | MethodType | partial)
            ]
    if hooks:  # they have the learner, and so what it holds
        held = [part for name, part in vars(learn).items() if name != "opt_func"]
        hooks += [part for part in held if isinstance(part, FunctionType) or not _is_trusted(type(part))]
        hooks.append(learn.model)
    return _Look().finds([*found, *hooks])


class _Look:
    """Follow objects and code to all that they name."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # the objects too, so that no id is used again
        self._waiting: list[Any] = []

    def finds(self, objects: list[Any]) -> bool:
        """Whether one of these may log."""
        self._waiting = objects
        while self._waiting:
            one = self._waiting.pop()
            if isinstance(one, _PLAIN) or id(one) in self._seen:
                continue
            self._seen[id(one)] = one
            if len(self._seen) > _MOST or self._may(one):
                return True
        return False

    def _may(self, one: Any) -> bool:
        """Whether this object may log; else what it leads to waits."""
        add = self._waiting.extend
        if isinstance(one, FunctionType):
            return self._function_may(one)
        if isinstance(one, MethodType):
            add([one.__func__, one.__self__])
        elif isinstance(one, partial):
            add([one.func, *one.args, *one.keywords.values(), *vars(one).values()])
        elif isinstance(one, property):
            add([one.fget, one.fset])
        elif isinstance(one, staticmethod | classmethod):
            add([one.__func__])
        elif isinstance(one, ModuleType):
            pass  # its functions are found where code names them
        elif isinstance(one, type):
            add(part for kind in one.__mro__ if not _is_trusted(kind) for part in vars(kind).values())
        elif isinstance(one, _OF_C):
            return not _is_trusted(one)
        else:
            return self._object_may(one)
        return False

    def _object_may(self, one: Any) -> bool:
        kind = type(one)
        if callable(getattr(kind, "log", None)):  # a learner, or something else that logs
            return True
        if isinstance(one, dict | MappingProxyType):
            self._waiting += one.values()
        elif isinstance(one, tuple | list | set | frozenset):
            self._waiting += one
        elif _is_trusted(kind) and not hasattr(one, "__dict__"):  # a weak reference may lead to a learner
            return kind not in _EMPTY and kind.__module__ != "torch"
        self._waiting += [kind, *getattr(one, "__dict__", {}).values()]
        slots = [getattr(one, name, None) for kind in kind.__mro__ for name in _slots_of(kind)]
        self._waiting += slots
        return False

    def _function_may(self, function: FunctionType) -> bool:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        self._waiting += [part for part in cells if part is not _Nothing]
        self._waiting += [*vars(function).values()]
        if _is_trusted(function):
            return False
        self._waiting += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        codes = [*_codes(function.__code__)]
        names = {name for code in codes for name in _names_of(code)}
        if names & _HIDES or any(map(_imports_others, codes)):
            return True
        within = function.__globals__
        named = [within[name] for name in names if name in within]
        named += [sys.modules[name] for name in names if name in sys.modules]
        self._name(named, names)
        return False

    def _name(self, found: list[Any], names: set[str]) -> None:
        """Take what code names, and what it names of modules."""
        seen = set[int]()
        while found:
            one = found.pop()
            if not isinstance(one, ModuleType):
                self._waiting.append(one)
            elif id(one) not in seen and not _is_trusted(one):
                seen.add(id(one))
                found += [vars(one)[name] for name in names if name in vars(one)]


def _is_trusted(one: Any) -> bool:
    """Whether a module, class or function is of Python's, torch's, numpy's or minilearn's own."""
    name = one.__name__ if isinstance(one, ModuleType) else getattr(one, "__module__", None)
    if name is None:
        name = getattr(getattr(one, "__objclass__", None), "__module__", "builtins")
    return str(name) != "__main__" and str(name).partition(".")[0] in _TRUSTED


def _names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from (const for const in code.co_consts if isinstance(const, str))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _imports_others(code: CodeType) -> bool:
    """Whether a function imports a module that is not trusted, when it runs."""
    imported = [step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"]
    return any(str(name).partition(".")[0] not in _TRUSTED for name in imported)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return _Nothing


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ()) if not _is_trusted(kind) else ()
    return (slots,) if isinstance(slots, str) else tuple(slots)
