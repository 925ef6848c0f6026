"""The ranges of hyperparameters, by name, for optimizers of any kind."""

from __future__ import annotations

import math
from typing import Any

_FROM_0 = ("lr", "wd", "weight_decay")
# To 0 eps is added where a gradient is 0, and 0 / 0 is nan; nothing is nearer than a threshold of 0.
_ABOVE_0 = ("eps", "threshold", "sgd_scale", "final_lr", "gamma")
_SHARES = ("mom", "momentum", "sqr_mom", "alpha", "beta1", "beta2", "betas.0", "betas.1")
_SWITCHES = ("nesterov", "maximize", "amsgrad", "amsbound", "centered")
_CHOICES = {"switch": ("global", "local")}

HYPERPARAMETERS = frozenset((*_FROM_0, *_ABOVE_0, *_SHARES, *_SWITCHES, *_CHOICES, "betas", "dampening"))


def check_range(name: str, value: Any) -> None:
    """Raise ValueError for a value that a hyperparameter of this name cannot have; unknown names pass."""
    if name == "betas":
        betas = value if isinstance(value, tuple | list) and len(value) == 2 else (None,)
        try:
            for beta in betas:
                check_range("betas.0", beta)
        except ValueError:
            raise ValueError(f"betas={value!r}: expected two numbers, 0 <= beta < 1") from None
        return
    if name not in HYPERPARAMETERS or (name == "sgd_scale" and value is None):
        return
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: expected True or False")
        return
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}={value!r}: expected {' or '.join(map(repr, _CHOICES[name]))}")
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
