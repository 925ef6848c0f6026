"""fastai."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from fastai.callback import progress, schedule  # noqa: F401  which give Learner no_bar and fit_one_cycle
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn
from work import FASHION_BS, FASHION_LR, LOOP_LR, MEAN, STD, Fit, Ready, Trained, torchvision_sets

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "`fit_one_cycle` with the numbers of torch's OneCycleLR; torch's AdamW in an OptimWrapper, "
    "quicker than fastai's own; its Recorder with `train_metrics`; `no_bar`, `no_logging`; DataLoaders of "
    "an iterable of batches",
    "fashion": "the same, with `DataLoaders.from_dsets` of lists of pairs of tensors, as in chapter 4 of "
    "its book, which is quicker than over torchvision's data set; the last batch is not dropped",
}
# fastai divides the peak by them, torch the first lr by its second: 25 * 1e4.
CYCLE: dict[str, Any] = {"div": 25.0, "div_final": 2.5e5, "pct_start": 0.3, "moms": (0.95, 0.85, 0.95)}


def fit(dls: DataLoaders, model: nn.Module, lr: float, n_epochs: int, validates: bool) -> list[Any]:
    """Train; return the last row of the recorder."""
    opt_func = partial(OptimWrapper, opt=torch.optim.AdamW)
    learn = Learner(dls, model, nn.CrossEntropyLoss(), opt_func, metrics=accuracy)
    learn.recorder.train_metrics, learn.recorder.valid_metrics = True, validates
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(n_epochs, lr, **CYCLE)
    row: list[Any] = learn.recorder.values[-1]
    return row


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    dls = DataLoaders(ready, [], device=device)  # it cannot be without a second one

    def train() -> Trained:
        loss, right = fit(dls, MLP(784, 32, 10), LOOP_LR, n_epochs, validates=False)
        return Trained(right, loss)

    return train


def fashion(n_epochs: int, device: torch.device) -> Trained:
    pairs = []
    for dataset in torchvision_sets():
        images = dataset.data.unsqueeze(1).float().div_(255).sub_(MEAN[0]).div_(STD[0])
        pairs.append(list(zip(images, dataset.targets, strict=True)))
    dls = DataLoaders.from_dsets(*pairs, bs=FASHION_BS, device=device, drop_last=False)
    row = fit(dls, StridedCNN(), FASHION_LR, n_epochs, validates=True)
    return Trained(row[3], row[2])
