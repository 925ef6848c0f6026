"""The ranges of hyperparameters, by name, for optimizers of any kind."""

from __future__ import annotations

from typing import Any

from ..arguments import is_number, is_too_long, shown

_FROM_0 = ("lr", "wd", "weight_decay")
# With eps=0, a gradient of 0 would give 0 / 0, nan; and nothing is closer than a threshold of 0.
_ABOVE_0 = ("eps", "threshold", "sgd_scale", "final_lr", "gamma")
_SHARES = ("mom", "momentum", "sqr_mom", "alpha", "beta1", "beta2", "betas.0", "betas.1")
_SWITCHES = ("nesterov", "maximize", "amsgrad", "amsbound", "centered")
_CHOICES = {"switch": ("global", "local")}

HYPERPARAMETERS = frozenset((*_FROM_0, *_ABOVE_0, *_SHARES, *_SWITCHES, *_CHOICES, "betas", "dampening"))


def check_range(name: str, value: Any) -> None:
    """Raise ValueError for a value that a hyperparameter of this name cannot take; unknown names pass."""
    if name in HYPERPARAMETERS and not (name == "sgd_scale" and value is None):
        fits, expected = _range(name, value)
        if not fits:
            hint = "; write it as a float" if is_too_long(value) else ""
            raise ValueError(f"{name}={shown(value)}: expected {expected}{hint}")


def _range(name: str, value: Any) -> tuple[bool, str]:
    """Return whether a value is in the range of its name, and what is expected."""
    if name == "betas":
        is_pair = isinstance(value, tuple | list) and len(value) == 2
        return is_pair and all(_is_share(beta) for beta in value), "two numbers, 0 <= beta < 1"
    if name in _SWITCHES:
        return isinstance(value, bool), "True or False"
    if name in _CHOICES:
        return isinstance(value, str) and value in _CHOICES[name], " or ".join(map(repr, _CHOICES[name]))
    if name in _SHARES:
        return _is_share(value), f"0 <= {name} < 1"
    if name in _ABOVE_0:
        return is_number(value, above=0), "a finite number > 0"
    return is_number(value, low=0), "a finite number >= 0"


def _is_share(value: Any) -> bool:
    return is_number(value, low=0, below=1)
