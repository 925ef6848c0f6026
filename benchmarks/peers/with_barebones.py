"""Lightning without what may cost time: its `barebones` mode, where a module tracks its own metrics."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from with_lightning import Module
from work import LOOP_LR, Batch, Fit, Ready, Trained

from minilearn import MLP

SETTINGS = {
    "loop": "`Trainer(barebones=True)`, which its docs discourage for regular runs: no callbacks, and no "
    "`self.log`, so that the module updates torchmetrics' accuracy and mean of the loss by hand",
}


class PlainModule(Module):
    """The same module, but it keeps its metrics to itself."""

    def __init__(self, lr: float) -> None:
        super().__init__(MLP(784, 32, 10), lr)
        self.mean_loss = MeanMetric(nan_strategy="disable")
        self.trained: Trained | None = None

    def shared_step(self, batch: Batch, name: str, accuracy: MeanMetric) -> Tensor:
        xb, yb = batch
        preds = self.model(xb)
        loss = F.cross_entropy(preds, yb)
        accuracy.update(preds, yb)
        self.mean_loss.update(loss.detach(), len(yb))
        return loss

    def on_train_epoch_end(self) -> None:
        metrics = self.train_accuracy, self.mean_loss
        self.trained = Trained(*(float(metric.compute()) for metric in metrics))
        for metric in metrics:
            metric.reset()


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    trainer = lightning.Trainer(max_epochs=n_epochs, accelerator=device.type, devices=1, barebones=True)
    module = PlainModule(LOOP_LR)

    def fit() -> Trained:
        trainer.fit(module, ready)
        assert module.trained is not None
        return module.trained

    return fit
