"""Folders and archives of images as loaders, one folder per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...arguments import instances, path, shown
from ..augment import Augment, HorizontalFlip, Normalize, RandomResizedCrop
from ..augment import normalize as checked_normalize
from ..images import ImageLoader
from ..loaders import DataLoaders
from .decoding import Images, cached, read_images
from .download import check_set
from .trees import nfc

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def image_folder(
    source: str | Path,
    size: int | None = None,
    bs: int = 64,
    device: str | torch.device | None = None,
    seed: int | None = None,
    augment: Sequence[Augment] = (RandomResizedCrop(), HorizontalFlip()),
    normalize: Normalize = IMAGENET,
    parts: tuple[str, str] = ("train", "val"),
    names: Mapping[str, str] | None = None,
) -> DataLoaders:
    """Load images from one folder per class: {train,val}/<class>/<image>.

    They are decoded once, on all cores; afterwards a file in the cache folder is memory-mapped (see
    `minilearn.data.sets.decoding.cached`), one for each `size`.

    Args:
        source: the folder, or a .tgz or .tar of it.
        size: the centre square of each image is resized to size x size pixels. None: all have one size.
        bs: batch size.
        device: keep the bytes there, and augment there. Default: main memory.
        seed: for the order and the augmentation of the training images; see ImageLoader.
        augment: for the normalized training images.
        normalize: default: mean and standard deviation of ImageNet.
        parts: the names of the folders for training and validation.
        names: folder -> the class's name, where the two differ.

    Returns: loaders, with `classes` in the order of the targets, which is that of the folders' names.
    Shapes: batches of (bs, 3, size, size) float32, and (bs,) int64 from 0.
    Raises: FileNotFoundError; ValueError for only one class, for a validation class that training lacks, and
        for what `read_images` refuses: broken images, other files, empty classes, more than one size.
    """
    check_set(bs, device, seed, augment=augment, size=size)
    checked_normalize("normalize", normalize)
    if isinstance(parts, str) or len(instances("parts", parts, str, "names of folders")) != 2:
        raise ValueError(f"parts={shown(parts)}: expected two names of folders, for training and validation")
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"names={shown(names)}: expected a dict, folder -> name of the class")
    source = path("source", source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: there is no such folder or archive")

    def load(part: str) -> Images:
        return cached(source, part, lambda: read_images(source, part, size), size)

    images, targets, classes = load(parts[0])
    if len(classes) < 2:
        raise ValueError(
            f"{source}: {parts[0]} has one class, {classes[0]}: expected two or more, each in a folder "
            f"{parts[0]}/<class>; is the folder with the images of all classes one level too deep?"
        )
    valid_images, valid_targets, found = load(parts[1])
    if new := sorted(set(found) - set(classes)):
        raise ValueError(
            f"{source}: {parts[1]} has the class {new[0]}, which {parts[0]} lacks: expected some of "
            f"{', '.join(classes)}"
        )
    if valid_images.shape[1:] != images.shape[1:]:
        sizes = [f"{x.shape[3]}x{x.shape[2]}" for x in (images, valid_images)]
        raise ValueError(f"{source}: {parts[0]} is {sizes[0]}, {parts[1]} {sizes[1]}; give size=, for both")
    said = {nfc(folder): name for folder, name in (names or {}).items()}
    of_train: Tensor = torch.tensor([classes.index(name) for name in found])
    return DataLoaders(
        ImageLoader(images, targets, [normalize, *augment], bs=bs, shuffle=True, seed=seed, device=device),
        ImageLoader(valid_images, of_train[valid_targets], [normalize], bs=bs, device=device),
        classes=[said.get(name, name) for name in classes],
        source=f"{source.name.split('.')[0]}{'' if size is None else f', {size} px'}",
    )
