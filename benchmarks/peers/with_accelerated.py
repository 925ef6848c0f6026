"""pytorch-accelerated."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pytorch_accelerated import Trainer, TrainerPlaceholderValues
from pytorch_accelerated.callbacks import MoveModulesToDeviceCallback, TerminateOnNaNCallback, TrainerCallback
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.classification import MulticlassAccuracy
from work import FASHION_BS, FASHION_LR, LOOP_LR, Fit, Ready, Trained, torchvision_sets, workers

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "its default callbacks but those that print or draw a bar; torchmetrics' accuracy with "
    "`validate_args=False` in a callback, as in its docs; `create_scheduler_fn`; a DataLoader whose "
    "`collate_fn` gives the ready batch, because it takes only data sets",
    "fashion": "the same, over torchvision's data set with its DataLoader and workers that persist",
}


class AccuracyCallback(TrainerCallback):  # type: ignore[misc]
    """Track the accuracy of each phase in the trainer's history."""

    def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
        metric = MulticlassAccuracy(num_classes=10, average="micro", validate_args=False)
        self.metric = metric.to(trainer.device)

    def on_train_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
        self.metric.update(batch_output["model_outputs"].detach(), batch[1])

    def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.run_history.update_metric("train_accuracy", self.metric.compute().item())
        self.metric.reset()

    def on_eval_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
        self.on_train_step_end(trainer, batch, batch_output)

    def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.run_history.update_metric("eval_accuracy", self.metric.compute().item())
        self.metric.reset()


def trainer_of(model: nn.Module, lr: float) -> Trainer:
    """Return a silent trainer."""
    opt = torch.optim.AdamW(model.parameters(), lr)
    callbacks = (MoveModulesToDeviceCallback, TerminateOnNaNCallback, AccuracyCallback)
    return Trainer(model, nn.CrossEntropyLoss(), opt, callbacks=callbacks)


def one_cycle(lr: float) -> Any:
    """Return a maker of the schedule, in which the trainer fills in the lengths."""
    return partial(
        OneCycleLR,
        max_lr=lr,
        epochs=TrainerPlaceholderValues.NUM_EPOCHS,
        steps_per_epoch=TrainerPlaceholderValues.NUM_UPDATE_STEPS_PER_EPOCH,
    )


def metrics(trainer: Trainer, name: str) -> Trained:
    """Return the latest values of a phase."""
    latest = trainer.run_history.get_latest_metric
    return Trained(latest(f"{name}_accuracy"), latest(f"{name}_loss_epoch"))


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    trainer = trainer_of(MLP(784, 32, 10), LOOP_LR)

    def fit() -> Trained:
        trainer.train(
            ready,
            num_epochs=n_epochs,
            per_device_batch_size=1,
            create_scheduler_fn=one_cycle(LOOP_LR),
            train_dataloader_kwargs={"num_workers": 0, "shuffle": False, "pin_memory": False},
            collate_fn=lambda batches: batches[0],
        )
        return metrics(trainer, "train")

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    trainer = trainer_of(StridedCNN(), FASHION_LR)
    train, valid = torchvision_sets()
    trainer.train(
        train,
        num_epochs=n_epochs,
        eval_dataset=valid,
        per_device_batch_size=FASHION_BS,
        create_scheduler_fn=one_cycle(FASHION_LR),
        train_dataloader_kwargs=workers(),
        eval_dataloader_kwargs=workers(),
    )
    return metrics(trainer, "eval")
