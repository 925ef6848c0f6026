"""The loop by hand with all images as tensors in memory, for those who know that these few fit there."""

from __future__ import annotations

from collections.abc import Iterator

import by_hand
import torch
from torch import Tensor
from work import FASHION_BS, MEAN, STD, Batch, Trained, torchvision_sets

SETTINGS = {"fashion": "the same loop, over tensors in memory (on the device) that it indexes batch by batch"}


class Tensors:
    """Give batches of tensors; if they are shuffled, in a new order at each pass."""

    def __init__(self, images: Tensor, targets: Tensor, shuffle: bool) -> None:
        self.images, self.targets, self.shuffle = images, targets, shuffle

    def __len__(self) -> int:
        return -(-len(self.images) // FASHION_BS)

    def __iter__(self) -> Iterator[Batch]:
        order = (torch.randperm if self.shuffle else torch.arange)(
            len(self.images), device=self.images.device
        )
        for index in torch.split(order, FASHION_BS):
            yield self.images[index], self.targets[index]


def fashion(n_epochs: int, device: torch.device) -> Trained:
    train, valid = (
        Tensors(
            dataset.data.to(device).unsqueeze(1).float().div_(255).sub_(MEAN[0]).div_(STD[0]),
            dataset.targets.to(device),
            shuffle=dataset.train,
        )
        for dataset in torchvision_sets()
    )
    return by_hand.fit_cnn(train, valid, n_epochs, device)
