"""The work that every framework does in `benchmarks/peers.py`: its numbers, its models' data, its result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Normalize, ToTensor

Batch = tuple[Tensor, Tensor]
LOOP_LR, LOOP_BS = 1e-2, 64
FASHION_LR, FASHION_BS = 5e-2, 512
MEAN, STD = (0.2860,), (0.3530,)  # of Fashion-MNIST's training set, as in minilearn.fashion_mnist


@dataclass(frozen=True)
class Trained:
    """A framework's result for its last epoch: of the training in "loop", of the validation in "fashion"."""

    accuracy: float
    loss: float


Fit = Callable[[], Trained]


class Ready:
    """Batches that are ready in memory, to be iterated over or indexed; it notes when a pass begins.

    Shapes: a batch is (64, 784) float32 with (64,) int64.
    """

    def __init__(self, batches: list[Any], starts_s: list[float] | None = None) -> None:
        self.batches = batches
        self.starts_s: list[float] = [] if starts_s is None else starts_s

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Any:
        if i == 0:
            self.starts_s.append(time.perf_counter())
        return self.batches[i]

    def __iter__(self) -> Iterator[Any]:
        self.starts_s.append(time.perf_counter())
        return iter(self.batches)

    def map(self, function: Callable[[Any], Any]) -> Ready:
        """Return the batches in another form; its passes are noted here too."""
        return Ready([function(batch) for batch in self.batches], self.starts_s)

    @classmethod
    def make(cls, n_batches: int, device: torch.device) -> Ready:
        """Draw inputs, and targets from a linear model of them, so that there is something to learn."""
        xs = torch.randn(n_batches, LOOP_BS, 784)
        ys = (xs @ torch.randn(784, 10)).argmax(-1)
        return cls(list(zip(xs.to(device), ys.to(device), strict=True)))


def torchvision_sets() -> tuple[FashionMNIST, FashionMNIST]:
    """Return Fashion-MNIST, training and validation, with images transformed one by one."""
    transform = Compose([ToTensor(), Normalize(MEAN, STD)])
    root = os.environ["MINILEARN_DATA"]
    return FashionMNIST(root, True, transform), FashionMNIST(root, False, transform)


def numpy_sets() -> list[tuple[Any, Any]]:
    """Return the same as numpy arrays, normalized at once: pairs of float32 (N, 1, 28, 28) and int64 (N,)."""
    return [
        ((dataset.data.numpy()[:, None].astype(np.float32) / 255 - MEAN[0]) / STD[0], dataset.targets.numpy())
        for dataset in torchvision_sets()
    ]


n_workers = 0  # of DataLoaders; set from outside before "fashion" begins


def workers() -> dict[str, Any]:
    """Return the settings of a DataLoader for images: persistent workers, and pinned memory for a GPU."""
    pin = torch.cuda.is_available()
    return {"num_workers": n_workers, "persistent_workers": n_workers > 0, "pin_memory": pin}


def torch_loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return torch's DataLoaders over the images, training and validation."""
    train, valid = torchvision_sets()
    return (
        DataLoader(train, FASHION_BS, shuffle=True, **workers()),
        DataLoader(valid, FASHION_BS, **workers()),
    )


def sync(device: torch.device) -> None:
    """Wait for the GPU's remaining work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
