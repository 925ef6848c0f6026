"""pytorch-ignite."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Average, Loss
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from work import FASHION_LR, LOOP_LR, Fit, Ready, Trained, torch_loaders

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "`create_supervised_trainer` with an `output_transform` without `.item()`; `Accuracy` and "
    "`Average` attached to it; the scheduler steps at ITERATION_COMPLETED; an iterable of batches",
    "fashion": "the same, and at EPOCH_COMPLETED a run of `create_supervised_evaluator` with `Accuracy` and "
    "`Loss`; over torchvision's data set and torch's DataLoader with workers that persist",
}


def trainer_of(model: nn.Module, lr: float, n_steps: int, device: torch.device) -> Engine:
    """Return an engine that trains, with its metrics and schedule."""
    opt = torch.optim.AdamW(model.parameters(), lr)
    sched = OneCycleLR(opt, lr, total_steps=n_steps)

    def output(x: Any, y: Any, preds: Any, loss: Any) -> Any:
        return preds, y, loss.detach()

    trainer = create_supervised_trainer(
        model, opt, F.cross_entropy, device, non_blocking=True, output_transform=output
    )
    Accuracy(lambda output: output[:2]).attach(trainer, "accuracy")
    Average(lambda output: output[2]).attach(trainer, "loss")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: sched.step())
    return trainer


def metrics(engine: Engine) -> Trained:
    """Return the values of an engine's metrics."""
    values = engine.state.metrics
    return Trained(values["accuracy"], float(values["loss"]))


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    trainer = trainer_of(MLP(784, 32, 10).to(device), LOOP_LR, n_epochs * len(ready), device)

    def fit() -> Trained:
        trainer.run(ready, max_epochs=n_epochs)
        return metrics(trainer)

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    train, valid = torch_loaders()
    model = StridedCNN().to(device)
    trainer = trainer_of(model, FASHION_LR, n_epochs * len(train), device)
    evaluator = create_supervised_evaluator(
        model, {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}, device, non_blocking=True
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(valid))
    trainer.run(train, max_epochs=n_epochs)
    return metrics(evaluator)
