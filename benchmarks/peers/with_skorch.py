"""skorch."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring, LRScheduler
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from work import FASHION_BS, FASHION_LR, LOOP_LR, Fit, Ready, Trained, numpy_sets, workers

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "`NeuralNetClassifier`; `EpochScoring('accuracy', on_train=True)` with its cache; `LRScheduler` "
    "with `step_every='batch'`; `print_log=None`; an `iterator_train` that gives the batches as they are",
    "fashion": "the same, with numpy arrays in float32, as in its MNIST notebook; `predefined_split`; its "
    "DataLoader with workers that persist",
}


def net_of(module: nn.Module, lr: float, n_steps: int, device: torch.device, **options: Any) -> Any:
    """Return a net that tracks loss and accuracy in training too."""
    accuracy = EpochScoring("accuracy", lower_is_better=False, on_train=True, name="train_acc")
    sched = LRScheduler(OneCycleLR, step_every="batch", max_lr=lr, total_steps=n_steps)
    return NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=lr,
        device=str(device),
        classes=list(range(10)),
        callbacks=[accuracy, sched],
        callbacks__print_log=None,
        **options,
    )


class ReadyDataset(torch.utils.data.Dataset[Any]):
    """The batches in a form that skorch accepts as a data set."""

    def __init__(self, ready: Ready) -> None:
        self.ready = ready

    def __len__(self) -> int:
        return len(self.ready)


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    net = net_of(
        MLP(784, 32, 10),
        LOOP_LR,
        n_epochs * len(ready),
        device,
        max_epochs=n_epochs,
        train_split=None,
        iterator_train=lambda dataset, batch_size: dataset.ready,
        callbacks__valid_acc=None,
    )

    def fit() -> Trained:
        net.fit(ReadyDataset(ready), None)
        return Trained(net.history[-1, "train_acc"], net.history[-1, "train_loss"])

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    (x, y), valid = numpy_sets()
    net = net_of(
        StridedCNN(),
        FASHION_LR,
        n_epochs * -(-len(x) // FASHION_BS),
        device,
        max_epochs=n_epochs,
        batch_size=FASHION_BS,
        train_split=predefined_split(Dataset(*valid)),
        iterator_train__shuffle=True,
        **{
            f"iterator_{part}__{key}": value
            for part in ("train", "valid")
            for key, value in workers().items()
        },
    )
    net.fit(x, y)
    return Trained(net.history[-1, "valid_acc"], net.history[-1, "valid_loss"])
