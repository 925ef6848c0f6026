"""Values as a checkpoint holds them: plain data and tensors, so that reading a file runs no code from it."""

from __future__ import annotations

import enum
import hashlib
import io
import logging
import random
import struct
import sys
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..processes import is_part, like, whole_in_first
from ..rows import History
from .begun import Begun, attributes_of, parts_of, put_attributes
from .identity import Identities, Objects
from .trust import hides_code, may_build

# Saved forms: numbers, text, None, tensors, lists and dicts stand for themselves; the rest is (form, ...).
AS_IT_WAS = "as it was"  # (AS_IT_WAS, digest): a parameter that is what it was when the fit began
LEFT = ("left",)  # belongs to the program, not to the run: a function, an open file, the model
_LISTS = (list, History)  # saved alike; a history shows itself as a table
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
_OF_ITEMS = {"set": set, "frozenset": frozenset, "tuple": tuple, "deque": deque}
_OF_ENTRIES = {"Counter": Counter, "OrderedDict": OrderedDict, "defaultdict": defaultdict}
_LEFT = (
    *(FunctionType, BuiltinFunctionType, MethodType, partial, type, ModuleType, np.ufunc, type(np.sum)),
    *(io.IOBase, logging.Logger, weakref.ref),
)


_OF_TENSORS = ("shape", "dtype", "device")
_STATE = ".state_dict()"  # in the path of a state, which is another object than its owner
ADVICE = "define state_dict(self), to leave it out or give data instead, and load_state_dict(self, state)"


class NoFormError(TypeError):
    """A value has no saved form."""

    def __init__(self, path: str, said: str) -> None:
        super().__init__(f"{_plain(path)} {said}")


class Saver:
    """Turn values into their saved forms.

    Args:
        shared: the learner's objects (model, parameters, loaders, ...): left out wherever they are found,
            because they are saved separately or belong to the program.
        module: the name of the module whose classes may be built again when the value is loaded: that of
            the callback that keeps the value.
        advice: what to do about a value that has no saved form.
        identities: notes which values are one object.
        begun: says what of modules and optimizers has changed; without it, only their state_dict is saved.
        trained: the ids of parameters that an optimizer has, which are always saved.

    State: needs, the paths of objects that can be loaded only into an existing object.
    Raises: TypeError, with the path of the value, for what has no saved form.
    """

    def __init__(
        self,
        shared: Iterable[Any],
        module: str,
        advice: str = ADVICE,
        identities: Identities | None = None,
        begun: Begun | None = None,
        trained: Collection[int] = (),
    ) -> None:
        self.shared = {id(value) for value in shared}
        self.module, self.advice = module, advice
        self.identities, self.begun, self.trained = identities, begun, trained
        self.needs: set[str] = set()
        self._inside: list[int] = []

    def save(self, value: Any, path: str) -> Any:
        """Return the saved form of a value; it shares the value's tensors."""
        if type(value) in _PLAIN:
            return _unusual(value)
        if id(value) in self.shared:
            self._note(value, path)
            return LEFT
        if isinstance(value, _LEFT):
            return LEFT
        self._note(value, path)
        if isinstance(value, Tensor):
            value = compact(value)
            return value if value.device.type == "cpu" else ("tensor", value)
        if id(value) in self._inside:
            raise NoFormError(path, f"leads back to itself, which a checkpoint cannot hold; {self.advice}")
        self._inside.append(id(value))
        try:
            return self._save(value, path)
        finally:
            self._inside.pop()

    def _note(self, value: Any, path: str) -> None:
        if self.identities is not None:
            self.identities.note(value, path)

    def _save(self, value: Any, path: str) -> Any:
        for form_of in (self._container, self._data, self._generator):
            if (saved := form_of(value, path)) is not None:
                return saved
        return self._object(value, path)

    def _container(self, value: Any, path: str) -> Any:
        """Return the form of a list, dict or the like, of exactly these classes; None for anything else."""
        kind = type(value)
        if kind in _LISTS:
            return self._items(value, path)
        if kind is dict:
            return self._entries(value, path)
        if kind is tuple:
            return ("tuple", self._items(value, path))
        if kind is torch.Size:
            return ("tuple", list(value))
        if kind in (set, frozenset):  # in one order, however it was filled
            items = sorted(value, key=lambda item: (type(item).__name__, repr(item)))
            return (kind.__name__, self._items(items, path))
        if kind in (Counter, OrderedDict, defaultdict):
            return (kind.__name__, self._entries(value, path))
        if kind is deque:
            return ("deque", self._items(value, path), value.maxlen)
        return None

    def _data(self, value: Any, path: str) -> Any:
        """Return the form of a value that is saved as text or numbers; None for anything else."""
        if isinstance(value, PurePath):
            return ("path", str(value))
        if isinstance(value, torch.device):
            return ("device", str(value))
        if isinstance(value, enum.Enum):
            self._note_need(value, path)
            return ("enum", type(value).__name__, value.name)
        is_array = type(value) is np.ndarray or isinstance(value, np.generic)
        if is_array and value.dtype.kind in "biufc":
            return ("numpy", value.dtype.str, list(value.shape), value.tobytes() or None)
        return None

    def _generator(self, value: Any, path: str) -> Any:
        """Return the form of a random generator; None for anything else."""
        if isinstance(value, torch.Generator):
            return ("torch.Generator", value.get_state())
        if isinstance(value, random.Random):
            return ("random.Random", self.save(value.getstate(), path))
        if isinstance(value, np.random.Generator):
            return ("numpy.Generator", self.save(value.bit_generator.state, path))
        return None

    def _note_need(self, value: Any, path: str) -> None:
        """Note that a value can be loaded only into an existing one, unless the module can build it."""
        kind = type(value)
        if _class_in(self.module, kind.__name__) is not kind:
            self.needs.add(_plain(path))

    def _items(self, values: Iterable[Any], path: str) -> list[Any]:
        return [self.save(value, f"{path}[{i}]") for i, value in enumerate(values)]

    def _entries(self, values: Mapping[Any, Any], path: str) -> dict[Any, Any]:
        for key in values:
            if not all(type(part) in _PLAIN for part in (key if type(key) is tuple else [key])):
                raise NoFormError(
                    path, f"has the key {key!r}: a checkpoint holds keys that are text or numbers"
                )
        return {key: self.save(value, _inner(path, key)) for key, value in values.items()}

    def _object(self, value: Any, path: str) -> Any:
        kind = type(value)
        if has_state(value):
            self.needs.add(_plain(path))
            state = self.save(value.state_dict(), f"{path}{_STATE}")
            more = {}
            if self.begun is not None and isinstance(value, nn.Module | torch.optim.Optimizer):
                self._leave_out_unchanged(value, state, path)
                more = self.attributes(value, path)
            return ("state", kind.__name__, state, more) if more else ("state", kind.__name__, state)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            attributes = dict(zip(value._fields, value, strict=True))
        elif hasattr(value, "__dict__") and not isinstance(value, Iterable) and not _holds_more(kind):
            attributes = vars(value)
        else:
            raise NoFormError(path, f"is a {kind.__name__}, which a checkpoint cannot hold; {self.advice}")
        self._note_need(value, path)
        saved = {name: self.save(part, f"{path}.{name}") for name, part in attributes.items()}
        return ("object", kind.__name__, saved)

    def attributes(self, root: Any, path: str, with_modes: bool = True) -> dict[str, Any]:
        """Return what has changed in the plain attributes of a module's parts, of an optimizer or a loss.

        What has no form, and what could not be loaded, is left out: it may be of the program.
        """
        begun, found = self.begun, dict[str, Any]()
        if begun is None or id(root) in self._inside[:-1]:
            return found
        outer = self.module, self.needs, self._inside
        try:
            self.module, self._inside = type(root).__module__, [*self._inside, id(root)]
            for name, part in parts_of(root):
                for key, value in attributes_of(part, with_modes).items():
                    where = f"{path}.{name}.{key}" if name else f"{path}.{key}"
                    self.needs = set()
                    try:
                        form = self.save(value, where)
                    except NoFormError:
                        continue
                    can_load = begun.could_load(self.needs)
                    if not begun.is_as_it_was(where, digest_of(form)) and can_load:
                        found.setdefault(name, {})[key] = form
        finally:
            self.module, self.needs, self._inside = outer
        return found

    def _leave_out_unchanged(self, value: Any, state: Any, path: str) -> None:
        """Leave the unchanged parameters of a frozen module out of its state, except for their digests."""
        assert self.begun is not None
        entries = state[1] if isinstance(state, tuple) else state  # an OrderedDict, as a rule
        for name, p in value.named_parameters() if isinstance(value, nn.Module) else ():
            where = f"{path}.{name}"
            if name not in entries or is_part(p) or id(p) in self.trained or where in self.begun.changed:
                continue
            digest = digest_of(p.detach())
            if not self.begun.is_as_it_was(where, digest):
                self.begun.changed.add(where)
            elif not self.begun.is_beginning:
                entries[name] = (AS_IT_WAS, digest.hex())


def _holds_more(kind: type) -> bool:
    """Whether objects of a class hold more than their __dict__: a number, an error's args, slots."""
    return issubclass(kind, int | float | complex | BaseException) or any(
        vars(base).get("__slots__") for base in kind.__mro__
    )


def _plain(path: str) -> str:
    return path.replace(_STATE, "")


def _unusual(value: Any) -> Any:
    """Return a form for what torch cannot read with weights_only: b"", and numbers of over 255 bytes."""
    if type(value) is bytes and not value:
        return ("bytes", None)
    if type(value) is int and value.bit_length() > 2000:
        return ("int", hex(value))
    return value


def _inner(path: str, key: Any) -> str:
    return f"{path}.{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{key!r}]"


def has_state(value: Any) -> bool:
    """Whether an object has state_dict and load_state_dict."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _class_in(module: str, name: str) -> Any:
    found = getattr(sys.modules.get(module), name, None)
    return found if may_build(found, module) else None


def compact(value: Tensor) -> Tensor:
    """Return a tensor detached, and copied if it is a view, whose whole storage would be written."""
    value = whole_in_first(value.detach())
    is_part = value.layout is torch.strided and value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if is_part else value


class Loader:
    """Turn saved forms into values.

    Args:
        device: for tensors that were not on the CPU.
        module: see Saver.
        objects: returns one object where one was saved.
    """

    def __init__(self, device: torch.device, module: str, objects: Objects | None = None) -> None:
        self.device, self.module = device, module
        self.objects = Objects() if objects is None else objects

    def load(self, saved: Any, live: Any, path: str) -> Any:
        """Return the value of a saved form; `live` is the present value, and keeps its identity if possible.

        Raises: ValueError for an object that neither exists nor can be built.
        """
        if type(saved) in _PLAIN:
            return saved
        if (found := self.objects.get(path)) is not None:
            return found
        value = self._loaded(saved, live, path)
        self.objects.note(value, path)
        return value

    def _loaded(self, saved: Any, live: Any, path: str) -> Any:
        if isinstance(saved, list):
            items = self._items(saved, live, path)
            return self._in_place(live, type(live)(items)) if type(live) in _LISTS else items
        if isinstance(saved, dict):
            entries = self._entries(saved, live, path)
            return self._in_place(live, entries) if type(live) is dict else entries
        if isinstance(saved, Tensor):
            return self._tensor(saved, live, path)
        if not isinstance(saved, tuple):
            return saved
        return live if saved == LEFT else self._load(saved, live, path)

    def _load(self, saved: tuple[Any, ...], live: Any, path: str) -> Any:
        form, value = saved[0], saved[1]
        if form == "tensor":
            return self._tensor(value.to(self.device), live, path)
        if form in _OF_ENTRIES or form in _OF_ITEMS:
            return self._in_place(live, self._container(saved, live, path))
        if form in ("torch.Generator", "random.Random", "numpy.Generator"):
            return self._generator(form, value, live if self.objects.is_free(live) else None)
        if form in ("state", "object"):
            return self._object(saved, live, path)
        return self._data(saved, live, path)

    def _container(self, saved: tuple[Any, ...], live: Any, path: str) -> Any:
        form, value = saved[0], saved[1]
        if form in _OF_ENTRIES:
            entries = self._entries(value, live, path)
            if form == "defaultdict":
                return defaultdict(getattr(live, "default_factory", None), entries)
            return _OF_ENTRIES[form](entries)
        items = self._items(value, live, path)
        return deque(items, saved[2]) if form == "deque" else _OF_ITEMS[form](items)

    def _data(self, saved: tuple[Any, ...], live: Any, path: str) -> Any:
        form, value = saved[0], saved[1]
        if form == "path":
            return Path(value)
        if form == "device":
            return torch.device(value)
        if form == "bytes":
            return b""
        if form == "int":
            return int(value, 16)
        if form == "enum":
            kind = self._kind(value, live)
            if not isinstance(kind, enum.EnumMeta):
                raise ValueError(f"{path}: the checkpoint has a {value}, and here is {live!r}; {ADVICE}")
            return kind[saved[2]]
        if form == "numpy":
            _, dtype, shape, data = saved
            array = np.frombuffer(data or b"", dtype).reshape(shape).copy()
            is_same = self.objects.is_kept(path) and self.objects.is_free(live)
            if is_same and _is_like(live, array) and live.flags.writeable:
                live[...] = array
                return live
            is_number = not shape and not isinstance(live, np.ndarray)
            return array[()] if is_number else array
        if form == AS_IT_WAS:
            return saved
        raise ValueError(f"{path}: the checkpoint has the unknown form {form!r}")

    def _kind(self, name: str, live: Any) -> Any:
        """Return the class of this name: that of the present value, or one of the module."""
        return type(live) if type(live).__name__ == name else _class_in(self.module, name)

    def _in_place(self, live: Any, value: Any) -> Any:
        """Refill, once, a container that a closure or a bound method may hold."""
        if type(live) is not type(value) or not isinstance(live, list | dict | set | deque):
            return value
        if getattr(live, "maxlen", None) != getattr(value, "maxlen", None):
            return value
        if id(live) in self.objects.filled:  # under another name; if the contents differ, two were saved
            return live if not self.objects.is_known and not first_difference(live, value) else value
        live.clear()
        live.extend(value) if isinstance(live, list | deque) else live.update(value)
        self.objects.filled[id(live)] = live
        return live

    def _tensor(self, value: Tensor, live: Any, path: str) -> Tensor:
        """Return a new tensor, or the present one if it is a parameter, or was the same all the time."""
        is_param = isinstance(live, nn.Parameter) and live.shape == value.shape
        is_same = is_param or (self.objects.is_kept(path) and _is_like(live, value))
        if is_same and self.objects.is_free(live):
            with torch.no_grad():
                return live.copy_(like(value, live))
        return value.clone()

    def _items(self, saved: list[Any], live: Any, path: str) -> list[Any]:
        now = list(live) if isinstance(live, list | tuple | deque) else []
        now += [None] * (len(saved) - len(now))
        return [self.load(item, now[i], f"{path}[{i}]") for i, item in enumerate(saved)]

    def _entries(self, saved: dict[Any, Any], live: Any, path: str) -> dict[Any, Any]:
        now = live if isinstance(live, Mapping) else {}
        return {
            key: self.load(item, now.get(key), _inner(path, key))
            for key, item in saved.items()
            if item != LEFT or key in now or self.objects.get(_inner(path, key)) is not None
        }

    def _generator(self, form: str, state: Any, live: Any) -> Any:
        if form == "torch.Generator":
            generator = live if isinstance(live, torch.Generator) else torch.Generator()
            generator.set_state(state)
            return generator
        state = self.load(state, None, "")
        if form == "random.Random":
            own = live if isinstance(live, random.Random) else random.Random()
            own.setstate(state)
            return own
        numpy = live
        if not isinstance(live, np.random.Generator):
            kind = getattr(np.random, str(state["bit_generator"]), None)
            if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
                raise ValueError(f"{state['bit_generator']!r} is no random generator of numpy")
            numpy = np.random.Generator(kind())
        numpy.bit_generator.state = state
        return numpy

    def _object(self, saved: tuple[Any, ...], live: Any, path: str) -> Any:
        form, name, state = saved[:3]
        if not self.objects.is_free(live):
            live = None
        if form == "state" and type(live).__name__ == name:
            loaded = self.load(state, None, f"{path}{_STATE}")
            if isinstance(live, nn.Module):
                _fill_in_unchanged(live, loaded, path)
            live.load_state_dict(loaded)
            if len(saved) > 3:
                put_attributes(live, saved[3], self.load, path)
            return live
        kind = self._kind(name, live)
        if form != "object" or not isinstance(kind, type):
            raise ValueError(f"{path}: the checkpoint has a {name}, and here is {live!r}; {ADVICE}")
        if issubclass(kind, tuple):
            now = dict(zip(kind._fields, live, strict=True)) if type(live) is kind else {}
            return kind(**self._entries(state, now, path))
        if odd := [field for field in state if hides_code(kind, field)]:
            raise ValueError(f"{path}: the checkpoint sets {odd[0]}, which is not part of a {name}")
        value = live if type(live) is kind else kind.__new__(kind)
        vars(value).update(self._entries(state, vars(value), path))
        return value


def _is_like(live: Any, value: Any) -> bool:
    """Whether two tensors or arrays have the same kind, shape, dtype and device."""
    kind, names = (np.ndarray, ("shape", "dtype")) if isinstance(value, np.ndarray) else (Tensor, _OF_TENSORS)
    return isinstance(live, kind) and all(getattr(live, name) == getattr(value, name) for name in names)


def _fill_in_unchanged(module: nn.Module, state: Any, path: str) -> None:
    """Put the present parameters into a state that has only their digests.

    Raises: ValueError if one is not what it was.
    """
    params = dict(module.named_parameters())
    for name, value in state.items() if isinstance(state, dict) else ():
        if type(value) is not tuple or value[:1] != (AS_IT_WAS,):
            continue
        if name not in params or digest_of(params[name].detach()).hex() != value[1]:
            raise ValueError(
                f"{path}.{name} is not what it was in the run to resume. Checkpoints leave out parameters "
                "that no optimizer has and the run did not change, such as a frozen teacher's: load the same "
                "weights before the fit, or make them from the same seed"
            )
        state[name] = params[name].detach()


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Give each place where two saved forms are not equal bit for bit, and the difference."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            inner = f"{path}.{key}" if path else str(key)
            if key in a and key in b:
                yield from differences(a[key], b[key], inner)
            else:
                yield inner, f"only in the {'first' if key in a else 'second'}"
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{i}]")
    elif how := _difference(a, b):
        yield path, how


def _difference(a: Any, b: Any) -> str:
    """Say how two values differ, other than dicts or lists of one length; "" if they do not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and (a.shape, a.dtype) == (b.shape, b.dtype):
        n = _n_different(a, b)
        return f"{n} of {a.numel()} numbers differ" if n else ""
    is_odd = isinstance(a, Tensor | list | tuple) or isinstance(b, Tensor | list | tuple)  # or of two lengths
    if is_odd or type(a) is not type(b) or not _is_same(a, b):
        return f"{_short(a)} and {_short(b)}"
    return ""


def _n_different(a: Tensor, b: Tensor) -> int:
    """Return how many numbers differ in a bit between two tensors of one shape and dtype."""
    if (bytes_a := _bytes_of(a)) == (bytes_b := _bytes_of(b)):
        return 0
    differ = np.frombuffer(bytes_a, np.uint8) != np.frombuffer(bytes_b, np.uint8)
    return int(differ.reshape(-1, a.element_size()).any(1).sum())


def first_difference(a: Any, b: Any) -> str:
    """Name the first place where two saved forms are not equal bit for bit; "" if there is none."""
    return next((f"{path}: {how}" for path, how in differences(a, b)), "")


def digest_of(form: Any) -> bytes:
    """Return a digest of a saved form, bit for bit."""
    digest = hashlib.blake2b(digest_size=16)
    _add_to(digest, form)
    return digest.digest()


def _add_to(digest: Any, form: Any) -> None:
    if isinstance(form, dict | list | tuple):
        digest.update(f"{type(form).__name__} {len(form)};".encode())
        for item in form.items() if isinstance(form, dict) else form:
            _add_to(digest, item)
    elif isinstance(form, Tensor):
        digest.update(f"{form.dtype} {tuple(form.shape)};".encode())
        digest.update(_bytes_of(form))
    else:
        digest.update(f"{type(form).__name__} {form!r};".encode())


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
    return struct.pack("d", a) == struct.pack("d", b) if isinstance(a, float) else bool(a == b)


def _bytes_of(value: Tensor) -> bytes:
    value = value.detach().cpu().resolve_conj().resolve_neg()
    flat = value.contiguous().reshape(-1)
    if flat.numel() == 1:  # whose stride, that of what it is a part of, may be any
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
