"""Checks of arguments: each returns the value in its plain type, or raises an error that names it.

    self.keep = whole_number("keep", keep)
    self.mom = number("mom", mom, low=0, below=1)
    self.folder = path("CheckpointCB(folder", folder)

A number is one of python's or numpy's. True and False are none, and 1.5 is no count. nan and inf are refused,
unless a check says otherwise. They are called when an object is made or a fit begins, never in a step.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_LONGEST = 100  # characters of a value in a message


def shown(value: Any) -> str:
    """Return a short text for a value, for a message; it never fails."""
    try:
        text = repr(value)
    except Exception:  # a class of the user's, or an int of more than 4300 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def counted(n: int, noun: str) -> str:
    """Return a number and its noun: "1 step", "2 steps", "2 batches"."""
    more = "es" if noun.endswith("tch") else "s"
    return f"{n} {noun}{'' if n == 1 else more}"


def brief(value: Any, depth: int = 2) -> str:
    """Return a shorter text, for an argument in a repr: of tensors and models the class. It never fails."""
    try:
        if isinstance(value, type):
            return value.__name__
        if isinstance(value, list | tuple | dict) and type(value).__module__ == "builtins":
            return _brief_container(value, depth)
        if value is None or isinstance(value, bool | int | float | str | Path | torch.dtype | torch.device):
            return shown(str(value) if isinstance(value, Path | torch.device) else value)
        name = getattr(value, "__name__", "")  # of a function
        return name if isinstance(name, str) and name else type(value).__name__
    except Exception:  # a class of the user's
        return type(value).__name__


def _brief_container(value: Any, depth: int) -> str:
    if not depth or len(value) > 4:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{brief(k)}: {brief(v, depth - 1)}' for k, v in value.items())}}}"
    inside = ", ".join(brief(item, depth - 1) for item in value)
    return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"


def said(name: str, value: Any) -> str:
    """Return "name=value" for a message, or "Class(name=value)" for a name such as "Class(name"."""
    return f"{name}={shown(value)}{')' if '(' in name else ''}"


# Numbers ------------------------------------------------------------------------------------------


def _plain(value: Any) -> int | float | None:
    """Return a number as python's int or float; None for anything else, True and False too."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if type(value) in (int, float) else (int if isinstance(value, int) else float)(value)


def is_whole(value: Any, low: int | None = None, high: int | None = None) -> bool:
    """Whether a value is a whole number (not True, nor 2.0) from `low` to `high`."""
    n = _plain(value)
    return isinstance(n, int) and (low is None or n >= low) and (high is None or n <= high)


def whole_number(name: str, value: Any, low: int | None = 1, high: int | None = None, of: str = "") -> int:
    """Return a whole number from `low` to `high`, by default 1 or more.

    Args:
        low: None: any whole number.
        high: None: as many as a list could have, sys.maxsize.
        of: what it counts, such as " of epochs".

    Raises: ValueError.
    """
    most = sys.maxsize if high is None and low is not None else high
    if is_whole(value, low, most):
        return int(value)
    bounds = "" if low is None else f" >= {low}"
    if most is not None and (high is not None or is_whole(value, low)):
        bounds += f"{',' if bounds else ''} at most {most:,}"
    raise ValueError(f"{said(name, value)}: expected a whole number{of}{bounds}")


def is_too_long(value: Any) -> bool:
    """Whether a value is an int that torch cannot take, where the float of it would do."""
    return isinstance(value, int) and abs(value) > sys.maxsize


def is_number(
    value: Any,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> bool:
    """Whether a value is a number in a range, see `number`."""
    n = _plain(value)
    return (
        n is not None
        and not is_too_long(n)
        and (math.isfinite(n) or (infinite and not math.isnan(n)))
        and (low is None or n >= low)
        and (above is None or n > above)
        and (high is None or n <= high)
        and (below is None or n < below)
    )


def number(
    name: str,
    value: Any,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> float:
    """Return a number in a range; an int stays one.

    Args:
        low, high: ends that are inside the range.
        above, below: ends that are outside.
        infinite: whether it may be infinite.

    Raises: ValueError.
    """
    n = _plain(value)
    if n is not None and is_number(n, low, above, high, below, infinite):
        return n
    what = name.rpartition("(")[2]
    kind = "a number" if infinite else "a finite number"
    if below is not None:
        start = f"{above} < " if above is not None else "" if low is None else f"{low} <= "
        expected = f"{start}{what} < {below}"
    elif low is not None and high is not None:
        expected = f"{low} <= {what} <= {high}"
    else:
        expected = kind + (f" > {above}" if above is not None else "" if low is None else f" >= {low}")
        expected += (
            "" if high is None else f", at most {high:,}" if isinstance(high, int) else f", at most {high:g}"
        )
    hint = "; write it as a float" if is_too_long(value) else ""
    raise ValueError(f"{said(name, value)}: expected {expected}{hint}")


def numbers(name: str, values: Any, n: int | None = None, **bounds: Any) -> tuple[float, ...]:
    """Return several numbers as a tuple: a list, tuple or one-dimensional tensor or array of them.

    Args:
        n: how many. None: one or more.
        **bounds: of each; see `number`.

    Raises: TypeError for what is no sequence; ValueError.
    """
    if isinstance(values, torch.Tensor | np.ndarray) and values.ndim == 1:
        values = values.tolist()
    wanted = "numbers" if n is None else counted(n, "number")
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{said(name, values)}: expected {wanted}, in a list or tuple")
    if len(values) != n if n is not None else not values:
        raise ValueError(f"{said(name, values)}: expected {wanted}, got {len(values)}")
    return tuple(number(f"{name}[{i}]", value, **bounds) for i, value in enumerate(values))


# Everything else ----------------------------------------------------------------------------------


def flag(name: str, value: Any, hint: str = "") -> bool:
    """Return True or False. Raises: TypeError for anything else, such as "no", 0, or numpy's."""
    if not isinstance(value, bool):
        raise TypeError(f"{said(name, value)}: expected True or False{hint}")
    return value


def text(name: str, value: Any, expected: str = "a name") -> str:
    """Return a text that is not empty. Raises: TypeError, or ValueError for an empty one."""
    if not isinstance(value, str):
        raise TypeError(f"{said(name, value)}: expected {expected}, as text")
    if not value.strip():
        raise ValueError(f"{said(name, value)}: expected {expected}; the text is empty")
    return value


def choice(name: str, value: Any, choices: Sequence[str], what: str = "") -> str:
    """Return one of some texts. Raises: ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(f"{said(name, value)}: expected {listed}{what}")
    return value


def path(name: str, value: Any) -> Path:
    """Return a path, with ~ replaced.

    Raises: TypeError for what is no path; ValueError for "", which would be the folder you are in, and for a
        user whose home is not known.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{said(name, value)}: expected a path, as text or a Path")
    if not os.fspath(value).strip() or "\0" in os.fspath(value):
        raise ValueError(f"{said(name, value)}: expected a path; for the folder you are in, write '.'")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{said(name, value)}: expected a path ({error})") from None


def function(name: str, value: Any, expected: str = "a function") -> Any:
    """Return what can be called. Raises: TypeError."""
    if not callable(value):
        raise TypeError(f"{said(name, value)}: expected {expected}")
    return value


def default_device() -> torch.device:
    """Return the accelerator that torch finds (CUDA, MPS, XPU, ...), else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def device(name: str, value: Any) -> torch.device:
    """Return a device that this machine has, from "cuda:1" or a torch.device.

    Raises: TypeError; ValueError for a text that names no device, and for one that torch cannot use here.
    """
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{said(name, value)}: expected a device, such as 'cuda:0' or 'cpu'")
    try:
        found = torch.device(value)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{said(name, value)}: expected a device, such as 'cuda:0' or 'cpu' ({reason})"
        ) from None
    if found.type in ("cpu", "meta"):  # which need no hardware of their own
        return found
    kind = default_device().type
    if found.type != kind:
        raise ValueError(
            f"{said(name, str(value))}: this machine has no {found.type} that torch can use; it has {kind}"
        )
    if (found.index or 0) >= (n := torch.accelerator.device_count()):
        raise ValueError(f"{said(name, str(value))}: expected an index below {n}")
    return found


def instances(name: str, values: Any, kind: type, expected: str) -> tuple[Any, ...]:
    """Return a list or tuple of instances of a class, as a tuple. Raises: TypeError."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{said(name, values)}: expected a list of {expected}")
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{name} has {shown(value)}: expected {expected}")
    return tuple(values)


def unless_none(check: Callable[..., Any], name: str, value: Any, *bounds: Any, **more: Any) -> Any:
    """Return None for None, or else what a check returns; its error then says that None is taken too."""
    if value is None:
        return None
    try:
        return check(name, value, *bounds, **more)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}; or None") from None


def check_flags(name: str, takes: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise TypeError for arguments of a function of torch's that are True or False by default, but not here.

    Torch takes a text such as "no" as True.
    """
    parameters = inspect.signature(takes).parameters
    for key, value in given.items():
        if key in parameters and isinstance(parameters[key].default, bool):
            flag(f"{name}({key}", value)


def most_workers() -> int:
    """Return how many worker processes a loader may have: what a machine bears, not what it is best at."""
    return max(64, 4 * (os.cpu_count() or 1))
