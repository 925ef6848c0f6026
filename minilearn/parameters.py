"""What is trained and kept beside the model: a loss that is a module."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .learner import Learner


def loss_module(loss_func: Any) -> nn.Module | None:
    """Return the module that a loss is, or is a method or a partial of; None for a function."""
    while isinstance(loss_func, partial):
        loss_func = loss_func.func
    owner = getattr(loss_func, "__self__", loss_func)
    return owner if isinstance(owner, nn.Module) else None


def roots_of(learn: Learner) -> list[nn.Module]:
    """Return the model and, if it is a module, the loss."""
    loss = loss_module(learn.loss_func)
    return [learn.model] if loss is None else [learn.model, loss]
