"""The contents of an optimizer as text: its groups, their hyperparameters, its state and its memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .groups import EXTRA, PART, SCHEDULE_KEYS, Group, groups_of


def summary(opt: Any) -> str:
    """Return what an optimizer holds, for people to read.

    For each group: how many parameters it has, its hyperparameters, what torch's schedulers left in it, and
    its state: the names, which of them are tensors like the parameter, and the count of steps. Switches that
    are off or None are left out. Reading a count of steps waits for the device.
    """
    groups = groups_of(opt)
    params = [p for group in groups for p in group.get("params", ())]
    lines = [f"{type(opt).__name__}: {_counted(len(groups), 'group')}, {_sizes(params)}"]
    for i, group in enumerate(groups):
        called = [group[key] for key in (PART, "name", EXTRA) if group.get(key)]
        name = f" ({', '.join(called)})" if called else ""
        lines.append(f"group {i}{name}: {_sizes(group.get('params', ()))}")
        lines.append(f"  {_values(group, lambda key: key not in SCHEDULE_KEYS)}")
        if left := _values(group, lambda key: key in SCHEDULE_KEYS):
            lines.append(f"  of a schedule: {left}")
        lines.append(f"  state: {_state(opt, group)}")
    return "\n".join(lines)


def state_bytes(opt: Any) -> int | None:
    """Return how many bytes of memory an optimizer's state takes; None for one whose state is not known."""
    state = getattr(opt, "state", None)
    if not isinstance(state, Mapping):
        return None
    tensors = {id(t): t for values in state.values() for t in _tensors(values)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _sizes(params: Any) -> str:
    return f"{_counted(len(params), 'tensor')}, {_counted(sum(p.numel() for p in params), 'parameter')}"


def _values(group: Group, wanted: Any) -> str:
    hidden = ("params", "param_names", "name", EXTRA, PART)
    shown = {
        key: value
        for key, value in group.items()
        if key not in hidden and wanted(key) and value is not None and value is not False
    }
    return ", ".join(f"{key}={_short(value)}" for key, value in shown.items())


def _short(value: Any) -> str:
    return f"{float(value):g}" if isinstance(value, float | Tensor) else str(value)


def _state(opt: Any, group: Group) -> str:
    state = getattr(opt, "state", None)
    if not isinstance(state, Mapping):
        return "unknown"  # of a bare class
    params = [p for p in group.get("params", ()) if state.get(p)]
    if not params:
        return "none"
    states = {p: state[p] for p in params}
    of = "" if len(params) == len(group["params"]) else f" of {len(params)} of them"
    tensors = [t for values in states.values() for t in _tensors(values)]
    return f"{_entries(states)}{of}; {memory_text(sum(t.numel() * t.element_size() for t in tensors))}"


def _entries(states: Mapping[Tensor, Mapping[str, Any]]) -> str:
    """Name the entries of the states: first tensors like the parameter, then numbers and the rest."""
    kinds: dict[str, str] = {}
    for p, values in states.items():
        for key, value in values.items():
            kinds.setdefault(key, _kind(p, value))
    like = [key for key, kind in kinds.items() if kind == "like"]
    parts = [f"{', '.join(like)} like the parameter"] if like else []
    for key, kind in kinds.items():
        if kind == "number":
            numbers = [float(values[key]) for values in states.values() if key in values]
            ends = dict.fromkeys((min(numbers), max(numbers)))  # only one if all are the same
            parts.append(f"{key} {' to '.join(f'{n:g}' for n in ends)}")
        elif kind != "like":
            parts.append(f"{key} ({kind})")
    return "; ".join(parts)


def _kind(p: Tensor, value: Any) -> str:
    if isinstance(value, Tensor) and value.shape == p.shape and p.ndim > 0:
        return "like"
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
        return "number"
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [t for part in parts for t in _tensors(part)]


def memory_text(n_bytes: int) -> str:
    """Return a number of bytes as text, such as "44.7 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"
