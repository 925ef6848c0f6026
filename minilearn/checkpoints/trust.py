"""What a checkpoint may set: state that the reading class has, and never a place on disk.

A file says which names it has and what they hold. It may come from a stranger, so the classes that read it
decide: a name that is not part of an object's state is refused, and paths stay as the script gives them.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import PurePath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..callback import Callback
from ..warning import warn

if TYPE_CHECKING:
    from ..learner import Learner

Saved = dict[str, Any]

_FILE_NAME = re.compile(r"[^\s.].*\.[A-Za-z]\w{0,9}")  # log.csv, but not "v 1.5" or "..."
_MONITORED = re.compile(r"(train|eval)/\w+")  # a name in the rows of history
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_OF_PARTS = ("tuple", "set", "frozenset", "deque", "Counter", "OrderedDict", "defaultdict")


# Names --------------------------------------------------------------------------------------------


def check_names(cb: Callback, saved: Iterable[str], now: Iterable[str], key: str) -> None:
    """Raise ValueError if the saved state of a callback has a name that is not part of its state.

    Args:
        now: the names in its present state. If its class defines state_dict, the state has exactly these;
            otherwise all its attributes are state, also those that it gets later.
    """
    odd = [name for name in saved if name not in now]
    if type(cb).state_dict is Callback.state_dict:
        odd = [name for name in odd if is_of_the_class(type(cb), name)]
    if odd:
        raise ValueError(
            f"the checkpoint sets {key}.{odd[0]}, which is not part of the state of {type(cb).__name__}: it "
            "is of another version of the class, or of a stranger; load_state_dict(self, state) may take it"
        )


def check_own(learn: Learner, saved: Saved) -> None:
    """Raise ValueError if a checkpoint would set one of the learner's own fields, or hide a method."""
    for name in saved.keys() - learn.own_fields().keys():
        if name in learn._base_fields or is_of_the_class(type(learn), name):
            raise ValueError(
                f"the checkpoint sets learn.{name}, which is the learner's own: it is of a stranger, or "
                "damaged"
            )


def is_of_the_class(kind: type, name: str) -> bool:
    """Whether a name belongs to the program: of a method, a property, or what Callback declares.

    A number that a class gives its objects, such as n = 0, is state.
    """
    return hasattr(Callback, name) or hides_code(kind, name)


def hides_code(kind: type, name: str) -> bool:
    """Whether an attribute of this name would hide a method, a property or a name of python's own."""
    if name.startswith("__") or not hasattr(kind, name):  # most names are only the object's
        return name.startswith("__")
    value = inspect.getattr_static(kind, name, None)
    is_method = callable(value) or hasattr(type(value), "__get__")
    return is_method and not isinstance(value, cached_property)  # which keeps its value in the object


def may_build(kind: Any, module: str) -> bool:
    """Whether objects of a class may be made from a checkpoint, for an object of a class of this module.

    The constructor is not called. A class of another package, or one with __del__, could still do harm.
    """
    if not isinstance(kind, type) or hasattr(kind, "__del__"):
        return False
    return kind is SimpleNamespace or kind.__module__.split(".")[0] == module.split(".")[0]


# Places on disk -----------------------------------------------------------------------------------


def without_places(saved: Saved, now: Saved) -> tuple[Saved, list[str]]:
    """Return saved state without values that have a path other than the present one, and their names.

    Args:
        now: the present values, by name.
    """
    left = [name for name, value in saved.items() if has_place(value, now.get(name))]
    return {name: value for name, value in saved.items() if name not in left}, left


def has_place(saved: Any, live: Any) -> bool:
    """Whether a saved form has a path, or text that may be one, other than the present value's."""
    if isinstance(saved, str):
        return _is_place(saved, live)
    if isinstance(saved, list):
        parts = list(live) if isinstance(live, list | tuple | deque) else []
        parts += [None] * (len(saved) - len(parts))
        return any(has_place(part, x) for part, x in zip(saved, parts, strict=False))
    if isinstance(saved, dict):
        values = live if isinstance(live, Mapping) else {}
        return any(has_place(part, values.get(name)) for name, part in saved.items())
    if not isinstance(saved, tuple) or len(saved) < 2:
        return False
    if saved[0] == "path":
        return not (isinstance(live, PurePath | str) and str(live) == saved[1])
    if saved[0] in _OF_PARTS:
        return has_place(saved[1], live)
    if saved[0] == "object":
        fields = live._asdict() if hasattr(live, "_asdict") else getattr(live, "__dict__", {})
        return has_place(saved[2], fields)
    return False


def _is_place(text: str, live: Any) -> bool:
    """Whether text names a place on disk, other than the present one.

    It does if it leads out of the working folder, if there is such a file, or if the value that it would
    replace is a path or reads like one.
    """
    if isinstance(live, PurePath | str) and text == str(live):
        return False
    parts = re.split(r"[\\/]", text)
    if text[:1] in ("/", "\\", "~") or ".." in parts or _DRIVE.match(text) or "\0" in text:
        return True
    if isinstance(live, PurePath) or (isinstance(live, str) and _reads_like_a_path(live)):
        return True
    return _reads_like_a_path(text) and len(text) < 4096 and os.path.lexists(text)


def _reads_like_a_path(text: str) -> bool:
    if _MONITORED.fullmatch(text):
        return False
    return "/" in text or "\\" in text or text[:1] in (".", "~") or bool(_FILE_NAME.fullmatch(text))


def warn_of_places(names: Iterable[str]) -> None:
    """Say which attributes kept their value, because a checkpoint sets no path."""
    if found := list(dict.fromkeys(names)):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        warn(
            f"{found[0]}{more}: the value of the resumed run has a path, and a checkpoint sets no path, so "
            "the value here is used; define load_state_dict(self, state) to decide it"
        )
