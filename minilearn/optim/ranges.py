"""The ranges of hyperparameters, by name, for optimizers of any kind."""

from __future__ import annotations

import math
from typing import Any

_FROM_0 = ("lr", "wd", "weight_decay")
_ABOVE_0 = ("eps",)  # what it is added to is 0 where a gradient is, and 0 / 0 is nan
_SHARES = ("mom", "momentum", "sqr_mom", "alpha", "beta1", "beta2", "betas.0", "betas.1")
_SWITCHES = ("nesterov", "maximize", "amsgrad", "centered")

HYPERPARAMETERS = frozenset((*_FROM_0, *_ABOVE_0, *_SHARES, *_SWITCHES, "betas", "dampening"))


def check_range(name: str, value: Any) -> None:
    """Raise ValueError for a value that a hyperparameter of this name cannot have; unknown names pass."""
    if name == "betas":
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise ValueError(f"betas={value!r}: expected two numbers, 0 <= beta < 1")
        for i, beta in enumerate(value):
            check_range(f"betas.{i}", beta)
        return
    if name not in HYPERPARAMETERS or name in _SWITCHES:
        return
    is_number = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    if name in _SHARES:
        expected, fits = f"0 <= {name} < 1", is_number and 0 <= value < 1
    elif name in _ABOVE_0:
        expected, fits = "a finite number > 0", is_number and value > 0
    else:
        expected, fits = "a finite number >= 0", is_number and value >= 0
    if not fits:
        raise ValueError(f"{name}={value!r}: expected {expected}")
