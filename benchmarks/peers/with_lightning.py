"""Lightning."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.classification import MulticlassAccuracy
from work import FASHION_LR, LOOP_LR, Batch, Fit, Ready, Trained, torch_loaders

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "`Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, "
    "enable_model_summary=False, num_sanity_val_steps=0)`; torchmetrics' accuracy by `update`, with "
    "`validate_args=False`; it and the loss in `self.log(on_step=False, on_epoch=True)`; an iterable of "
    "batches",
    "fashion": "the same, over torchvision's data set and torch's DataLoader with workers that persist",
}
OFF = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A model, its loss, its metrics and its optimizer."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        options: dict[str, Any] = {"num_classes": 10, "average": "micro", "validate_args": False}
        self.train_accuracy, self.valid_accuracy = (MulticlassAccuracy(**options) for _ in range(2))

    def shared_step(self, batch: Batch, name: str, accuracy: MulticlassAccuracy) -> Tensor:
        xb, yb = batch
        preds = self.model(xb)
        loss = F.cross_entropy(preds, yb)
        accuracy.update(preds, yb)
        for key, value in ((f"{name}_accuracy", accuracy), (f"{name}_loss", loss)):
            self.log(key, value, on_step=False, on_epoch=True, batch_size=len(yb))
        return loss

    def training_step(self, batch: Batch, _: int) -> Tensor:
        return self.shared_step(batch, "train", self.train_accuracy)

    def validation_step(self, batch: Batch, _: int) -> None:
        self.shared_step(batch, "valid", self.valid_accuracy)

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), self.lr)
        sched = OneCycleLR(opt, self.lr, total_steps=int(self.trainer.estimated_stepping_batches))
        return [opt], [{"scheduler": sched, "interval": "step"}]


def metrics(trainer: Any, name: str) -> Trained:
    """Return what was logged last."""
    logged = trainer.callback_metrics
    return Trained(float(logged[f"{name}_accuracy"]), float(logged[f"{name}_loss"]))


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    trainer = lightning.Trainer(max_epochs=n_epochs, accelerator=device.type, devices=1, **OFF)
    module = Module(MLP(784, 32, 10), LOOP_LR)

    def fit() -> Trained:
        trainer.fit(module, ready)
        return metrics(trainer, "train")

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    trainer = lightning.Trainer(max_epochs=n_epochs, accelerator=device.type, devices=1, **OFF)
    trainer.fit(Module(StridedCNN(), FASHION_LR), *torch_loaders())
    return metrics(trainer, "valid")
