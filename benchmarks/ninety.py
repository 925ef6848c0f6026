"""Measure the time to 90 % on Fashion-MNIST on this machine: minilearn, and the same training by hand.

The network is document 003's, with AdamW under OneCycleLR. A run counts from the files on disk to the last
accuracy; all take turns, again and again, each time with another seed. Of the epochs that are tried, the
fewest whose mean accuracy is 90 % or more count.

    minilearn   Learner and fashion_mnist(), as in README
    by hand     the usual loop, with torchvision's data set and torch's DataLoader
    in memory   the same loop over tensors that it indexes, for those who know that they fit

Run: MINILEARN_DATA=... python benchmarks/ninety.py
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any

import torch
from harness import kind_of
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Normalize, ToTensor

from minilearn import BatchSchedulerCB, Learner, RecorderCB, StridedCNN, TensorLoader, fashion_mnist, set_seed

BS, LR = 512, 5e-2
MEAN, STD = (0.2860,), (0.3530,)


def minilearn(n_epochs: int) -> float:
    """Train with a Learner; return the accuracy."""
    cbs = [BatchSchedulerCB(OneCycleLR), RecorderCB()]
    learn = Learner(StridedCNN(), fashion_mnist(BS), lr=LR, cbs=cbs)
    learn.fit(n_epochs)
    return float(learn.history[-1]["MulticlassAccuracy"])


def _sets() -> tuple[FashionMNIST, FashionMNIST]:
    transform, root = Compose([ToTensor(), Normalize(MEAN, STD)]), os.environ["MINILEARN_DATA"]
    return FashionMNIST(root, True, transform), FashionMNIST(root, False, transform)


def by_hand(n_epochs: int) -> float:
    """Train with the loop and the loaders of most tutorials; return the accuracy."""
    train, valid = _sets()
    return _loop(DataLoader(train, BS, shuffle=True), DataLoader(valid, BS), n_epochs)


def in_memory(n_epochs: int) -> float:
    """Train with the same loop over tensors; return the accuracy."""
    loaders: list[TensorLoader] = []
    for dataset in _sets():
        images = dataset.data.unsqueeze(1).float().div(255).sub(MEAN[0]).div(STD[0])
        loaders.append(TensorLoader(images, dataset.targets, bs=BS, shuffle=dataset.train))
    train, valid = loaders
    return _loop(train, valid, n_epochs)


def _loop(train: Any, valid: Iterable[tuple[Tensor, Tensor]], n_epochs: int) -> float:
    model = StridedCNN()
    opt = torch.optim.AdamW(model.parameters(), LR)
    sched = OneCycleLR(opt, LR, total_steps=n_epochs * len(train) + 1)
    accuracy = 0.0
    for epoch in range(n_epochs):
        model.train()
        if isinstance(train, TensorLoader):
            train.set_epoch(epoch)
        total = 0.0
        for xb, yb in train:
            opt.zero_grad()
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()  # type: ignore[no-untyped-call]
            opt.step()
            sched.step()
            total += loss.item() * len(xb)
        model.eval()
        correct = n = 0
        with torch.no_grad():
            for xb, yb in valid:
                correct += int((model(xb).argmax(1) == yb).sum().item())
                n += len(xb)
        accuracy = correct / n
    return accuracy


WAYS: dict[str, Callable[[int], float]] = {
    "minilearn": minilearn,
    "by hand": by_hand,
    "in memory": in_memory,
}


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="of each (default: 5)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 5, 6], help="to try (default: 4 5 6)")
    args = parser.parse_args()
    if "MINILEARN_DATA" not in os.environ:
        parser.error("MINILEARN_DATA is not set: expected the folder that has FashionMNIST/raw")
    print(f"{kind_of(torch.device('cpu'))}, torch {torch.__version__}, Fashion-MNIST, n = {args.runs}")
    for n_epochs in sorted(args.epochs):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for seed in range(args.runs):
            for name, way in WAYS.items():
                set_seed(seed)
                start_s = time.perf_counter()
                with redirect_stdout(io.StringIO()):  # a line for each epoch
                    accuracy = way(n_epochs)
                found[name].append((accuracy, time.perf_counter() - start_s))
        for name, runs in found.items():
            accuracies, times_s = zip(*runs, strict=True)
            mean = f"{statistics.mean(accuracies):.4f} ± {statistics.stdev(accuracies):.4f}"
            print(f"  {n_epochs} epochs  {name:10}  {mean}  {statistics.median(times_s):6.1f} s")
        if statistics.mean(a for a, _ in found["minilearn"]) >= 0.9:
            return


if __name__ == "__main__":
    main()
