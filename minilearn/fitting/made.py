"""What the optimizer and the loss were made of, so that what a user changes between fits is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Made:
    """What the learner made, and of what.

    lr (that the optimizer is made with), is_new_lr (whether it was set since), makers (opt_func and
    param_groups of the optimizer; None without one), loss_func (the one that was inferred; None without one),
    warned (fields that users made and that were looked at, with a warning if need be).
    """

    def __init__(self, lr: float | Sequence[float]) -> None:
        self.lr, self.is_new_lr = lr, False
        self.makers: tuple[Any, Any] | None = None
        self.loss_func: Any = None
        self.warned: set[str] = set()

    def set_lr(self, lr: float | Sequence[float]) -> None:
        """Take the lr that the next fit is to begin with."""
        self.lr, self.is_new_lr = lr, True

    def use_lr(self) -> None:
        """Note that a fit began with it."""
        self.is_new_lr = False

    def made_by(self, makers: tuple[Any, Any]) -> None:
        """Note what made the optimizer."""
        self.makers = makers

    def infer(self, loss_func: Any) -> Any:
        """Note a loss that was inferred, and return it."""
        self.loss_func = loss_func
        return loss_func
