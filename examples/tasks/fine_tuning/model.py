"""The network, and the images of five of CIFAR-10's classes."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from minilearn import DataLoaders, cifar10
from minilearn.data.images import ImageLoader


def network(checkpoint: Path | str = "") -> nn.Module:
    """Return timm's smallest ResNet, without the pooling at its start, which is for larger images."""
    model = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(checkpoint))
    model.maxpool = nn.Identity()
    return model


def five_classes(first: int, n: int, n_valid: int, bs: int) -> DataLoaders:
    """Return loaders of n training images and n_valid others of each of five classes, chosen at random."""
    dls = cifar10()

    def chosen(images: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
        of_class = [torch.nonzero(labels == c)[:, 0] for c in range(first, first + 5)]
        index = torch.cat([of[torch.randperm(len(of))[:n]] for of in of_class])
        return images[index], labels[index] - first

    train = ImageLoader(*chosen(*dls.train.tensors, n), dls.train.augment, bs=bs, shuffle=True)
    valid = ImageLoader(*chosen(*dls.valid.tensors, n_valid), dls.valid.augment, bs=250)
    return DataLoaders(train, valid, classes=dls.classes[first : first + 5], source=dls.source)
