"""Augmentation of whole batches of images, on their device, with random numbers for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import choice, flag, is_number, number, numbers, said, shown, unless_none, whole_number

_LARGEST = 2**15  # pixels of a side


class Augment:
    """Change a batch of images, each by its own random numbers.

    A subclass says in `n_random` how many numbers it needs per image, and in `__call__` what it does with
    them. The loader draws them, so that they are a pure function of (seed, epoch, index). If `alternates` is
    True, an image has the same numbers u in each even epoch, and 1 - u in each odd one. If `moves_pixels` is
    True, targets that are maps of the images are refused, because they stay as they are.
    """

    n_random: int = 0
    alternates: bool = False
    moves_pixels: bool = False

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """Return the images changed.

        Shapes: images (N, C, H, W) float; random (N, n_random), uniform in [0, 1), on the same device.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define __call__(images, random)")

    def __repr__(self) -> str:
        # Values that equal the class's are left out: checkpoints, older ones too, compare this text.
        nothing = object()
        own = {k: v for k, v in vars(self).items() if v != getattr(type(self), k, nothing)}
        values = ", ".join(f"{name}={value!r}" for name, value in own.items())
        return f"{type(self).__name__}({values})"


class RandomCrop(Augment):
    """Shift each image by up to `padding` pixels in each direction.

    Args:
        padding: pixels, >= 1.
        padding_mode: what fills the border: "constant", 0, the mean of normalized images; or "reflect" or
            "replicate", as in torch's pad.
    """

    n_random = 2
    moves_pixels = True
    padding_mode = "constant"

    def __init__(self, padding: int = 4, padding_mode: str = "constant") -> None:
        self.padding = whole_number("RandomCrop(padding", padding, 1, _LARGEST, of=" of pixels")
        modes = ("constant", "reflect", "replicate")
        self.padding_mode = choice("RandomCrop(padding_mode", padding_mode, modes)

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """See Augment."""
        n, _, height, width = images.shape
        first = (random * (2 * self.padding + 1)).long()  # (N, 2), 0 to 2 * padding
        rows = first[:, 0, None, None] + torch.arange(height, device=images.device)[:, None]  # (N, H, 1)
        cols = first[:, 1, None, None] + torch.arange(width, device=images.device)  # (N, 1, W)
        sample = torch.arange(n, device=images.device)[:, None, None]
        padded = F.pad(images, (self.padding,) * 4, mode=self.padding_mode)
        return padded[sample, :, rows, cols].permute(0, 3, 1, 2)  # of (N, H, W, C)


class RandomResizedCrop(Augment):
    """Crop a random part of each image, and resize it.

    Args:
        size: of the new images, in pixels a side, >= 1. None: height and width stay.
        scale: the part's share of the area, from and to, each in (0, 1].
        ratio: its width divided by its height, from and to, each > 0; drawn on a logarithmic scale.

    Source: Szegedy et al. 2015; torchvision's RandomResizedCrop. Differs: a part that would be wider or
        higher than the image is clipped to it, where torchvision draws again; it is bilinear without
        antialiasing, so for a `size` well below the image's, have the loader resize images close to it first.
    """

    n_random = 4
    moves_pixels = True

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.35, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size = unless_none(whole_number, "RandomResizedCrop(size", size, 1, _LARGEST, of=" of pixels")
        self.scale = _span("RandomResizedCrop(scale", scale, "0 < from <= to <= 1", high=1)
        self.ratio = _span("RandomResizedCrop(ratio", ratio, "0 < from <= to")

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """See Augment. Shapes: (N, C, H, W) -> (N, C, size, size)."""
        n, channels, height, width = images.shape
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * random[:, 0]
        first, last = (math.log(ratio) for ratio in self.ratio)
        ratio = torch.exp(first + (last - first) * random[:, 1]) * (height / width)  # of shares, not pixels
        width_share, height_share = (area * ratio).sqrt(), (area / ratio).sqrt()
        sides = torch.stack([width_share, height_share], dim=1).clamp(max=1)  # (N, 2)
        middle = (1 - sides) * (2 * random[:, 2:] - 1)  # where -1 and 1 are the image's edges
        theta = torch.cat([torch.diag_embed(sides), middle[:, :, None]], dim=2)  # (N, 2, 3)
        shape = [n, channels, self.size or height, self.size or width]
        grid = F.affine_grid(theta, shape, align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _span(name: str, value: Any, expected: str, high: float | None = None) -> tuple[float, float]:
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if not is_pair or not all(is_number(x, above=0, high=high) for x in value) or value[0] > value[1]:
        raise ValueError(f"{said(name, value)}: expected {expected}")
    return (value[0], value[1])


class HorizontalFlip(Augment):
    """Flip each image, left to right, with probability p.

    Args:
        p: the probability.
        alternates: draw once which images are flipped, and flip the others in odd epochs: so two epochs in a
            row have each image both ways. Needs p=0.5.

    Source of `alternates`: Jordan 2024, 94% on CIFAR-10 in 3.29 seconds.
    """

    n_random = 1
    moves_pixels = True

    def __init__(self, p: float = 0.5, alternates: bool = False) -> None:
        self.p = number("HorizontalFlip(p", p, low=0, high=1)
        self.alternates = flag("HorizontalFlip(alternates", alternates)
        if alternates and p != 0.5:
            raise ValueError(
                f"HorizontalFlip(p={p!r}, alternates=True): expected p=0.5, half of them each time"
            )

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """See Augment."""
        return torch.where((random < self.p)[:, :, None, None], images.flip(-1), images)


class Cutout(Augment):
    """Set a square in each image to 0, the mean of normalized images.

    Args:
        size: of a side, in pixels, >= 1. Its centre may be any pixel, so half of it may lie outside.

    Source: DeVries & Taylor 2017.
    """

    n_random = 2

    def __init__(self, size: int = 8) -> None:
        self.size = whole_number("Cutout(size", size, 1, _LARGEST, of=" of pixels")

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """See Augment."""
        inside = []
        for axis, length in enumerate(images.shape[2:]):
            first = (random[:, axis, None] * length).long() - self.size // 2  # (N, 1)
            at = torch.arange(length, device=images.device)
            inside.append((at >= first) & (at < first + self.size))  # (N, length)
        rows, cols = inside
        return images.masked_fill((rows[:, :, None] & cols[:, None, :])[:, None], 0)


class Normalize(Augment):
    """Scale pixels to mean 0 and standard deviation 1: (pixel / 255 - mean) / std, float32.

    Args:
        mean, std: of each channel over the training set, for pixels from 0 to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = numbers("Normalize(mean", mean), numbers("Normalize(std", std, above=0)
        if len(self.mean) != len(self.std):
            raise ValueError(f"Normalize({mean!r}, {std!r}): expected a mean and a std > 0 for each channel")

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """See Augment; images are uint8."""
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"{self!r}: the images have {images.shape[1]} channels, expected {len(self.mean)}"
            )
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=images.device)[:, None, None]
        shifts = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        shift = torch.tensor(shifts, device=images.device)[:, None, None]
        return torch.addcmul(shift, images.float(), scale)


def normalize(name: str, value: Any) -> Normalize:
    """Return a value that has to be a Normalize. Raises: TypeError, with the name, for anything else."""
    if not isinstance(value, Normalize):
        raise TypeError(f"{name}={shown(value)}: expected an instance of Normalize, Normalize(mean, std)")
    return value
