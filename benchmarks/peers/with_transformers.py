"""The Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from work import FASHION_BS, FASHION_LR, LOOP_LR, Batch, Fit, Ready, Trained, torchvision_sets, workers

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "fused AdamW, which is its default, and the schedule in `optimizers`; `max_grad_norm=0`, "
    "`logging_nan_inf_filter=False`, the loss logged once an epoch, nothing saved, printed or drawn; it has "
    "no accuracy in training, so `compute_loss` counts right answers, on the device; `get_train_dataloader` "
    "gives an iterable of batches. (It measures the norm of the gradients at each step, which cannot be "
    "switched off.)",
    "fashion": "the same, over torchvision's data set with its DataLoader and workers that persist; "
    "`compute_metrics` for accuracy in validation",
}


class Task(nn.Module):
    """A model with its loss, as the Trainer expects it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Counts(TrainerCallback):  # type: ignore[misc]
    """The right answers of an epoch."""

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.correct: Tensor | int = 0
        self.n = 0


class CountingTrainer(Trainer):  # type: ignore[misc]
    """Count the right answers in training; use ready batches, if there are any."""

    ready: Ready | None = None
    counts: Counts

    def get_train_dataloader(self) -> Any:
        return super().get_train_dataloader() if self.ready is None else self.ready

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self.counts.correct += (outputs["logits"].detach().argmax(1) == inputs["labels"]).sum()
            self.counts.n += len(inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def trainer_of(model: nn.Module, lr: float, n_steps: int, device: torch.device, **options: Any) -> Any:
    """Return a silent trainer; further arguments are those of Trainer and TrainingArguments."""
    own = {key: options.pop(key) for key in list(options) if key in ("train_dataset", "eval_dataset")}
    args = TrainingArguments(
        max_grad_norm=0,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    task = Task(model).to(device)
    opt = torch.optim.AdamW(task.parameters(), lr, fused=True)
    sched = OneCycleLR(opt, lr, total_steps=n_steps)
    trainer = CountingTrainer(
        task, args, collate, optimizers=(opt, sched), compute_metrics=accuracy_of, **own
    )
    trainer.counts = Counts()
    trainer.add_callback(trainer.counts)
    trainer.remove_callback(PrinterCallback)
    return trainer


def collate(samples: list[Batch]) -> dict[str, Tensor]:
    """Return a batch with the names of the model's arguments."""
    xs, ys = zip(*samples, strict=True)
    return {"x": torch.stack(xs), "labels": torch.tensor(ys)}


def accuracy_of(prediction: Any) -> dict[str, float]:
    """Return the accuracy of a validation."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def last(trainer: Trainer, key: str) -> dict[str, Any]:
    """Return the latest row of its log that has a value."""
    return next(row for row in reversed(trainer.state.log_history) if key in row)


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    trainer = trainer_of(MLP(784, 32, 10), LOOP_LR, n_epochs * len(ready), device, num_train_epochs=n_epochs)
    trainer.ready = ready.map(lambda batch: {"x": batch[0], "labels": batch[1]})

    def fit() -> Trained:
        trainer.train()
        return Trained(float(trainer.counts.correct) / trainer.counts.n, last(trainer, "loss")["loss"])

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    train, valid = torchvision_sets()
    loading = {f"dataloader_{key}": value for key, value in workers().items()}
    trainer = trainer_of(
        StridedCNN(),
        FASHION_LR,
        n_epochs * -(-len(train) // FASHION_BS),
        device,
        train_dataset=train,
        eval_dataset=valid,
        num_train_epochs=n_epochs,
        per_device_train_batch_size=FASHION_BS,
        per_device_eval_batch_size=FASHION_BS,
        eval_strategy="epoch",
        **loading,
    )
    trainer.train()
    row = last(trainer, "eval_loss")
    return Trained(row["eval_accuracy"], row["eval_loss"])
