"""The columns of a row of history: what a metric computed, as numbers under names that a row may have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

OWN = ("loss", "epoch", "train", "time_s", "lr")  # columns of each row, or of its line in a CSV file
_MAX_COLUMNS = 1000  # of one metric


def columns_of(name: str, value: Any, is_merged: bool = False) -> dict[str, float]:
    """Return what a metric computed as numbers under the names of their columns."""
    found: dict[str, float] = {}
    for column, number in _numbers(name, value, is_merged):
        if column in found:
            raise ValueError(f"metric {name} computes two values that would be called {column}: rename one")
        found[column] = number
        if len(found) > _MAX_COLUMNS:
            raise ValueError(
                f"metric {name} computes more than {_MAX_COLUMNS} numbers, each of them a column: expected a "
                "summary; keep the rest on the metric, and read it in after_validate"
            )
    return found


def _numbers(name: str, value: Any, is_merged: bool = False) -> Iterator[tuple[str, float]]:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if value.size == 1 if not isinstance(value, Tensor) else value.numel() == 1:
            value = value.item()
        else:
            value = value.tolist() or math.nan  # nan for an empty one, as there is no value yet
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(str(key) if is_merged else f"{name}_{key}", part)
    elif isinstance(value, tuple | list) and value:
        for key, part in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from _numbers(f"{name}_{key}", part)
    elif isinstance(value, Integral):
        yield name, int(value)
    elif isinstance(value, Real):
        yield name, float(value)
    elif isinstance(value, tuple | list):
        yield name, math.nan
    else:
        raise TypeError(
            f"metric {name} computes {value!r}, a {type(value).__name__}: expected a number, or a tensor, "
            "list, tuple or mapping of numbers"
        )


def check_name(name: str, other: str = "", is_logged: bool = False) -> None:
    """Raise ValueError for a name that a column of a row cannot have.

    Args:
        other: what has the name already, if anything does.
        is_logged: whether it is the name of a logged value, not of a metric.
    """
    what, write = ("metric", f"MetricsCB(my_{name}=...)")
    if is_logged:
        what, write = ("logged value", f"learn.log('my_{name}', ...)")
    if name in OWN:
        other = "the row itself"
    if other:
        raise ValueError(
            f"a {what} is called {name!r}, as is a column of {other}: expected another name, {write}"
        )
    if not name.strip() or name.startswith(("train/", "eval/")):
        raise ValueError(
            f"a {what} is called {name!r}: expected a name that is not empty, without the phase, which "
            "monitors add: 'train/f1' and 'eval/f1' are the values of 'f1'"
        )
