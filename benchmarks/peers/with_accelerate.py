"""Hugging Face Accelerate, in the loop by hand that its docs begin with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from work import FASHION_LR, LOOP_LR, Batch, Fit, Ready, Trained, torch_loaders

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "the loop by hand, with `accelerator.prepare` and `accelerator.backward`; sums by `.item()` at "
    "each step; an iterable of batches",
    "fashion": "the same, over torchvision's data set and torch's DataLoader with workers that persist, "
    "prepared too; `gather_for_metrics` in validation",
}


def prepared(accelerator: Accelerator, model: nn.Module, lr: float, n_steps: int) -> Any:
    """Return model, optimizer and schedule, prepared."""
    opt = torch.optim.AdamW(model.parameters(), lr)
    return accelerator.prepare(model, opt, OneCycleLR(opt, lr, total_steps=n_steps))


def train(accelerator: Accelerator, parts: Any, batches: Iterable[Batch]) -> Trained:
    """Train an epoch."""
    model, opt, sched = parts
    total, correct, n = 0.0, 0, 0
    model.train()
    for xb, yb in batches:
        opt.zero_grad()
        preds = model(xb)
        loss = F.cross_entropy(preds, yb)
        accelerator.backward(loss)
        opt.step()
        sched.step()
        total += loss.item() * len(xb)
        correct += (preds.argmax(1) == yb).sum().item()
        n += len(xb)
    return Trained(correct / n, total / n)


@torch.no_grad()
def validate(accelerator: Accelerator, model: nn.Module, batches: Iterable[Batch]) -> Trained:
    """Return accuracy and loss."""
    total, correct, n = 0.0, 0, 0
    model.eval()
    for xb, yb in batches:
        preds, yb = accelerator.gather_for_metrics((model(xb), yb))
        total += F.cross_entropy(preds, yb).item() * len(yb)
        correct += (preds.argmax(1) == yb).sum().item()
        n += len(yb)
    return Trained(correct / n, total / n)


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    accelerator = Accelerator()
    parts = prepared(accelerator, MLP(784, 32, 10), LOOP_LR, n_epochs * len(ready))

    def fit() -> Trained:
        for _ in range(n_epochs):
            trained = train(accelerator, parts, ready)
        return trained

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    accelerator = Accelerator()
    train_batches, valid_batches = accelerator.prepare(*torch_loaders())
    parts = prepared(accelerator, StridedCNN(), FASHION_LR, n_epochs * len(train_batches))
    for _ in range(n_epochs):
        train(accelerator, parts, train_batches)
        valid = validate(accelerator, parts[0], valid_batches)
    return valid
