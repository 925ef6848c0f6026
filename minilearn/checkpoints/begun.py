"""What a learner was like when its first saved fit began, so that a checkpoint has only what changed since.

Objects with a state_dict keep more than it says: modules and optimizers have counters, generators and lists
in plain attributes. What a script sets there is the script's; what a run changes belongs to the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..data.fingerprint import is_setting
from ..weights import plain_name
from .trust import has_place, hides_code, warn_of_places

_WRAPPERS = (DataParallel, DistributedDataParallel)
_OF_MODULES = frozenset(vars(nn.Module()))
_FROZEN = "parameters without gradients"
Saved = dict[str, Any]
Before = tuple[dict[str, Any], str, Any]


class Begun:
    """Hold digests of what is left out of checkpoints as long as it does not change.

    digests (path -> that of the saved form), needs (paths of objects that existed), changed (paths of
    parameters that are known to have changed), objects (path -> a tensor or array, for `Identities`),
    settings (name -> a setting), is_beginning (whether it is being filled).
    """

    def __init__(self) -> None:
        self.digests: dict[str, bytes] = {}
        self.needs: set[str] = set()
        self.changed: set[str] = set()
        self.objects: dict[str, Any] = {}
        self.settings: dict[str, Saved] = {}
        self.is_beginning = True

    def is_as_it_was(self, path: str, digest: bytes) -> bool:
        """Whether the value at a path is the one with which the fit began."""
        if self.is_beginning:
            self.digests[path] = digest
        return self.digests.get(path) == digest

    def could_load(self, needs: set[str]) -> bool:
        """Whether a new process would have the objects at these paths, into which others are loaded."""
        if self.is_beginning:
            self.needs |= needs
        return needs <= self.needs

    def unchanged(self, what: str, found: Saved) -> Saved:
        """Return those settings that are as when the first fit began; what training changes is none."""
        first = self.settings.setdefault(what, found)
        return {name: value for name, value in found.items() if name in first and first[name] == value}


def settings_in(root: Any) -> Saved:
    """Return by name the classes of an object's modules, and the numbers and text among their attributes."""
    found = Saved()
    for name, part in parts_of(root):
        where = f"{name}." if name else ""
        found[f"{where}class"] = type(part).__name__
        is_torchs = type(part).__module__.startswith("torch.")
        for key, value in attributes_of(part, with_modes=False).items():
            if is_setting(value) and not (is_torchs and key.startswith("_")):
                found[where + key] = value
    return found


def attributes_of(part: Any, with_modes: bool) -> Saved:
    """Return the plain attributes of one module, optimizer or other object that its state_dict may lack."""
    names, hidden = _own_names(part), Saved()
    if with_modes and isinstance(part, nn.Module):
        names -= {"training"}
        hidden = {k: part._buffers[k] for k in part._non_persistent_buffers_set}
        if part._parameters:
            hidden[_FROZEN] = [
                k for k, p in part._parameters.items() if p is not None and not p.requires_grad
            ]
    found = getattr(part, "__dict__", {}).items()  # not code that was put in place of the class's own
    return hidden | {k: v for k, v in found if k not in names and not hides_code(type(part), k)}


def _own_names(part: Any) -> frozenset[str]:
    """Return the names that torch gives a module or an optimizer, which `attributes_of` leaves out."""
    if isinstance(part, nn.Module):
        return _OF_MODULES
    return _of_optimizers() if isinstance(part, torch.optim.Optimizer) else frozenset()


@cache  # not at import, because torch loads its compiler with the first optimizer
def _of_optimizers() -> frozenset[str]:
    own = {"as_built", "of_model", "_opt_called", "_step_count", "_warned_capturable_if_run_uncaptured"}
    return frozenset(own | vars(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)).keys())


def parts_of(root: Any) -> Iterator[tuple[str, Any]]:
    """Give the modules of a module by their plain names, without wrappers; anything else as it is."""
    if not isinstance(root, nn.Module):
        yield "", root
        return
    for name, module in root.named_modules():
        if not isinstance(module, _WRAPPERS) and not _is_torchs_wrapper(module):
            yield plain_name(root, name), module


def _is_torchs_wrapper(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch._dynamo", "torch.distributed"))


def owner_of(function: Any) -> Any:
    """Return the object that is called: that of a bound method or of a partial; None for a bare function."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, MethodType):
        function = function.__self__
    return function if hasattr(function, "__dict__") and not hasattr(function, "__code__") else None


def put_attributes(root: Any, found: Saved, load: Any, path: str) -> list[Before]:
    """Load attributes into the parts of an object, as `Saver.attributes` gave them.

    Paths stay as they are here, with a warning.

    Returns: where numbers, text, True or False were, and which: (attributes, name, value).

    Raises: ValueError for a part that does not exist here, and for a name that is not state of one.
    """
    parts, before = dict(parts_of(root)), list[Before]()
    for name, values in found.items():
        where = f"{path}.{name}" if name else path
        if name not in parts:
            raise ValueError(f"{where}: the checkpoint has a state of it, and it does not exist here")
        part = parts[name]
        for key, saved in values.items():
            if key == _FROZEN:
                for own, p in part._parameters.items():
                    if p is not None:
                        p.requires_grad_(own not in saved)
                continue
            buffers = getattr(part, "_buffers", {})
            place = buffers if key in buffers else vars(part)
            if key != "training" and (key in _own_names(part) or hides_code(type(part), key)):
                raise ValueError(
                    f"the checkpoint sets {where}.{key}, which is no state of a {type(part).__name__}: it is "
                    "of a stranger, or damaged"
                )
            if has_place(saved, place.get(key)):
                warn_of_places([f"{where}.{key}"])
                continue
            if isinstance(place.get(key), bool | int | float | str):
                before.append((place, key, place[key]))
            place[key] = load(saved, place.get(key), f"{where}.{key}")
    return before
