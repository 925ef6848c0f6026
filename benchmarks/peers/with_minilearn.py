"""minilearn, as in its README."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR
from work import FASHION_BS, FASHION_LR, LOOP_LR, Fit, Ready, Trained

from minilearn import MLP, BatchSchedulerCB, Learner, RecorderCB, StridedCNN, fashion_mnist

SETTINGS = {
    "loop": "all default callbacks (progress in plain lines, because its output is no terminal), RecorderCB "
    "and BatchSchedulerCB; torch's AdamW, fused by default; an iterable of batches",
    "fashion": "the same, with `fashion_mnist(512)`, tensors in memory (on the device)",
}


def of(row: dict[str, Any]) -> Trained:
    """Return the values of a row of history."""
    return Trained(row["MulticlassAccuracy"], row["loss"])


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    cbs = [BatchSchedulerCB(OneCycleLR), RecorderCB()]
    learn = Learner(MLP(784, 32, 10), {"train": ready}, lr=LOOP_LR, cbs=cbs)

    def fit() -> Trained:
        learn.fit(n_epochs)
        return of(learn.history[-1])

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    cbs = [BatchSchedulerCB(OneCycleLR), RecorderCB()]
    learn = Learner(StridedCNN(), fashion_mnist(FASHION_BS, device=device), lr=FASHION_LR, cbs=cbs)
    learn.fit(n_epochs)
    return of(learn.history[-1])
