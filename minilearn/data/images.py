"""ImageLoader: images kept as bytes, augmented a batch at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import counted, instances, shown, unless_none, whole_number
from ..seeding import generator_of
from .augment import Augment, Normalize
from .resumable import TensorLoader

_DRAWS = 1  # added to (seed, epoch), which seeds the order


class ImageLoader(TensorLoader):
    """Give batches of images that are kept as bytes, augmented as whole batches on the images' device.

    The random numbers of an image are a pure function of (seed, epoch, its index): they are the same with
    any batch size, and in a run that resumes in the middle of an epoch.

    Args:
        images: (N, C, H, W) uint8; may be memory-mapped. Floats that are scaled already need no Normalize.
        targets: (N, ...). They are not augmented, so maps of the images, such as the classes of their pixels,
            go only with what leaves pixels where they are.
        augment: what is done to a batch, in this order; the first is usually Normalize.
        files: the path of each image, in the order of `images`, if they come from files.
        bs, shuffle, drop_last, seed, device: see TensorLoader.

    Attributes:
        files: as given, a tuple of N, or None. It has the order of the data, as `targets` has, and not the
            shuffled order of an epoch: inside a training batch, `[loader.files[i] for i in learn.index]`.
            It is no part of a checkpoint.

    Shapes: a batch is (images (bs, C, H, W) as `augment` leaves them, targets (bs, ...)).
    Raises: TypeError for Normalize, which divides by 255, with images that are not uint8; ValueError for what
        moves pixels, with targets of the images' height and width, and for another number of files.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        augment: Sequence[Augment] = (),
        files: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(images, targets, **kwargs)
        self.files: tuple[str, ...] | None = unless_none(instances, "files", files, str, "paths")
        if self.files is not None and len(self.files) != self.n_samples:
            raise ValueError(
                f"files={shown(files)}: expected {counted(self.n_samples, 'path')}, one for each image, not "
                f"{len(self.files)}"
            )
        self.augment = instances("augment", augment, Augment, "instances of Augment, such as RandomCrop(4)")
        for one in self.augment:
            if isinstance(one, Normalize) and images.dtype != torch.uint8:
                raise TypeError(
                    f"{one!r} divides by 255, but images is {images.dtype}: expected torch.uint8. "
                    "Scale them to 0 to 255 and convert them, or scale them yourself and leave Normalize out"
                )

            if one.moves_pixels and targets.ndim > 2 and targets.shape[-2:] == images.shape[-2:]:
                raise ValueError(
                    f"{one!r} would move the pixels of the images, and not those of the targets, of shape "
                    f"{tuple(targets.shape)}, maps of them: expected one target for each image; change both "
                    "in the __getitem__ of a data set, DatasetLoader(dataset, ...)"
                )

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {"augment": [type(one).__name__ for one in self.augment]}

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Give the batches of this epoch from number `start` on."""
        start = whole_number("start", start, 0)
        device, order = self.tensors[0].device, self.order()
        order, random = order.to(device), self._random().to(device)
        for i in range(start, len(self)):
            first, stop = self.span(i)
            index = order[first:stop]
            images, targets = (t[index] for t in self.tensors)
            yield self._augmented(images, random[index]), targets

    def _random(self) -> Tensor:
        """Return the numbers of this epoch's augmentation, (N, n_random) on the CPU."""
        shape = (self.n_samples, sum(one.n_random for one in self.augment))
        random = torch.rand(shape, generator=generator_of(self.seed, self.epoch, _DRAWS))
        alternates = torch.tensor([one.alternates for one in self.augment for _ in range(one.n_random)])
        if not alternates.any():
            return random
        first = torch.rand(shape, generator=generator_of(self.seed, 0, _DRAWS))
        return torch.where(alternates, 1 - first if self.epoch % 2 else first, random)

    def peek(self) -> tuple[Tensor, ...]:
        """Return the first two samples as a batch, with the random numbers 0."""
        images, targets = super().peek()
        n_random = sum(one.n_random for one in self.augment)
        return self._augmented(images, torch.zeros(len(images), n_random, device=images.device)), targets

    def _augmented(self, images: Tensor, random: Tensor) -> Tensor:
        parts = torch.split(random, [one.n_random for one in self.augment], dim=1)
        for one, part in zip(self.augment, parts, strict=True):
            images = one(images, part)
        return images

    def state_dict(self) -> dict[str, Any]:
        """Return what order and augmentation depend on."""
        # Without the addresses of functions and the like, which differ between processes.
        return {**super().state_dict(), "augment": re.sub(r" at 0x\w+", "", repr(self.augment))}
