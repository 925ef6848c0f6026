"""A loop written by hand, as most tutorials write it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from work import FASHION_LR, LOOP_LR, Batch, Fit, Ready, Trained, torch_loaders

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "torch's AdamW as it is by default; the sums of the loss and of right answers by `.item()` at "
    "each step; an iterable of batches",
    "fashion": "the same, over torchvision's data set and torch's DataLoader with workers that persist",
}


def train(model: nn.Module, batches: Iterable[Batch], opt: Any, sched: Any, device: torch.device) -> Trained:
    """Train an epoch."""
    total, correct, n = 0.0, 0, 0
    model.train()
    for xb, yb in batches:
        xb, yb = xb.to(device, non_blocking=True), yb.to(device, non_blocking=True)
        opt.zero_grad()
        preds = model(xb)
        loss = F.cross_entropy(preds, yb)
        loss.backward()  # type: ignore[no-untyped-call]
        opt.step()
        sched.step()
        total += loss.item() * len(xb)
        correct += (preds.argmax(1) == yb).sum().item()
        n += len(xb)
    return Trained(correct / n, total / n)


@torch.no_grad()
def validate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Trained:
    """Return accuracy and loss."""
    total, correct, n = 0.0, 0, 0
    model.eval()
    for xb, yb in batches:
        xb, yb = xb.to(device, non_blocking=True), yb.to(device, non_blocking=True)
        preds = model(xb)
        total += F.cross_entropy(preds, yb).item() * len(xb)
        correct += (preds.argmax(1) == yb).sum().item()
        n += len(xb)
    return Trained(correct / n, total / n)


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    model = MLP(784, 32, 10).to(device)
    opt = torch.optim.AdamW(model.parameters(), LOOP_LR)
    sched = OneCycleLR(opt, LOOP_LR, total_steps=n_epochs * len(ready))

    def fit() -> Trained:
        for _ in range(n_epochs):
            trained = train(model, ready, opt, sched, device)
        return trained

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    return fit_cnn(*torch_loaders(), n_epochs, device)


def fit_cnn(train_batches: Any, valid_batches: Any, n_epochs: int, device: torch.device) -> Trained:
    """Train the CNN, and validate it after each epoch."""
    model = StridedCNN().to(device)
    opt = torch.optim.AdamW(model.parameters(), FASHION_LR)
    sched = OneCycleLR(opt, FASHION_LR, total_steps=n_epochs * len(train_batches))
    for _ in range(n_epochs):
        train(model, train_batches, opt, sched, device)
        valid = validate(model, valid_batches, device)
    return valid
