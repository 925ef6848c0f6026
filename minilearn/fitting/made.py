"""What the optimizer and the loss were made from, so that changes between fits are noticed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Made:
    """What the learner made, and from what.

    lr (with which the optimizer is made), is_new_lr (whether it was set since), makers (opt_func and
    param_groups of the optimizer; None without one), group_keys (of each of its groups then), loss_func (the
    inferred one; None without one), warned (users' fields that were checked, and warned about if need be).
    """

    def __init__(self, lr: float | Sequence[float]) -> None:
        self.lr, self.is_new_lr = lr, False
        self.makers: tuple[Any, Any] | None = None
        self.group_keys: list[set[str]] = []
        self.loss_func: Any = None
        self.warned: set[str] = set()

    def set_lr(self, lr: float | Sequence[float]) -> None:
        """Set the lr that the next fit begins with."""
        self.lr, self.is_new_lr = lr, True

    def use_lr(self) -> None:
        """Note that a fit began with the lr."""
        self.is_new_lr = False

    def made_by(self, makers: tuple[Any, Any], opt: Any) -> None:
        """Note what made the optimizer, and the keys of its groups."""
        self.makers = makers
        self.group_keys = [set(group) for group in getattr(opt, "param_groups", ())]

    def gained(self, groups: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
        """Return the keys that groups have got since the optimizer was made, as by its first step."""
        pairs = enumerate(zip(groups, self.group_keys, strict=False))
        new = {i: sorted(set(group) - keys) for i, (group, keys) in pairs}
        return {i: keys for i, keys in new.items() if keys}

    def infer(self, loss_func: Any) -> Any:
        """Note a loss that was inferred, and return it."""
        self.loss_func = loss_func
        return loss_func
