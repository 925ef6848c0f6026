"""The state of a loss that is a module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..parameters import LOSS, loss_module, loss_tensors
from ..processes import like
from ..weights import check_alike
from .codec import Loader, Saver, compact

if TYPE_CHECKING:
    from ..learner import Learner

Saved = dict[str, Any]


def capture_loss(learn: Learner) -> Saved:
    """Return the state of a loss that is a module, without the model's; empty if it has none."""
    loss, tensors = loss_module(learn.loss_func), loss_tensors(learn)
    if loss is None or loss is learn.model:
        return {}
    extra = {k: v for k, v in loss.state_dict().items() if k.endswith("_extra_state")}
    if not tensors and not extra:
        return {}
    return {
        "tensors": {name: compact(t) for name, t in tensors.items()},
        "extra": Saver([], "").save(extra, LOSS),
        "frozen": [
            name for name, t in tensors.items() if isinstance(t, nn.Parameter) and not t.requires_grad
        ],
        "in_eval": [name for name, module in loss.named_modules() if not learn.modes.of(module)],
    }


def check_loss(learn: Learner, saved: Saved, path: Path) -> None:
    """Raise ValueError unless a checkpoint has a state of the present loss, or both have none."""
    here, there = capture_loss(learn), saved.get("loss")
    if here and there is None:
        raise ValueError(
            f"{path} has no state of the loss {type(learn.loss_func).__name__}, which has one here: it is of "
            "a run with another loss_func, or older than losses in checkpoints; start a new run"
        )
    if there is not None and not here:
        raise ValueError(
            f"{path} has the state of a loss, {', '.join(there['tensors']) or 'extra state'}, and loss_func "
            f"is {learn.loss_func!r} here: give the same loss_func"
        )
    if there is not None:
        check_alike(there["tensors"], here["tensors"], path, "the loss")


def restore_loss(learn: Learner, saved: Saved | None, loader: Loader) -> None:
    """Restore the loss's state; None if the checkpoint has none."""
    loss = loss_module(learn.loss_func)
    if saved is None or loss is None:
        return
    if extra := loader.load(saved["extra"], None, LOSS):
        loss.load_state_dict(extra, strict=False)
    with torch.no_grad():
        for name, t in loss_tensors(learn).items():
            t.copy_(like(saved["tensors"][name], t))
            if isinstance(t, nn.Parameter):
                t.requires_grad_(name not in saved["frozen"])
    found = {module: name not in saved["in_eval"] for name, module in loss.named_modules()}
    learn.modes.restore(found, learn.modes.frozen_norms)
