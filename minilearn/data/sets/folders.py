"""Folders and archives of images as loaders, one folder per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...arguments import instances, number, path, shown, unless_none
from ..augment import Augment, HorizontalFlip, Normalize, RandomResizedCrop
from ..augment import normalize as checked_normalize
from ..images import ImageLoader
from ..loaders import DataLoaders
from .decoding import Images, NoImagesError, cached, files_of, read_images
from .download import check_set
from .halves import advice, finder
from .trees import nfc, tree_of

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_PARTS = ("train", "val")


def image_folder(
    source: str | Path,
    size: int | None = None,
    bs: int = 64,
    device: str | torch.device | None = None,
    seed: int | None = None,
    augment: Sequence[Augment] = (RandomResizedCrop(), HorizontalFlip()),
    normalize: Normalize = IMAGENET,
    parts: tuple[str, str] = _PARTS,
    names: Mapping[str, str] | None = None,
    valid: float | None = None,
) -> DataLoaders:
    """Load images from one folder per class: {train,val}/<class>/<image>, or, with `valid`, <class>/<image>.

    They are decoded once, on all cores, and kept as bytes in files in the cache folder, one for each half
    and each `size` and `valid`; afterwards these files are memory-mapped. The cache folder is
    $XDG_CACHE_HOME/minilearn, or ~/.cache/minilearn. What changed on disk is decoded again; old files stay
    until you delete them.

    With `valid`, an image is for validation if a number from 0 to 1 that is made of its class and name, a
    digest of "<class>/<image>", is below `valid`. So neither `seed`, nor the order on disk, nor other
    classes matter; a folder that was moved, and an archive of it, are split in the same way; and an image
    stays in its half when others are added. The share of a class is therefore only about `valid`. A class
    that would have none in one half gets one there, of the smallest or the largest number; only such a
    class can lose that image to the other half when it grows. Images of the same thing, such as those of
    one film, come into both halves: split these yourself, into train/ and val/.

    Args:
        source: the folder, or a .tgz or .tar of it.
        size: the centre square of each image is resized to size x size pixels. None: all have one size.
        bs: batch size.
        device: keep the bytes there, and augment there. Default: main memory.
        seed: for the order and the augmentation of the training images; see ImageLoader.
        augment: for the normalized training images.
        normalize: default: mean and standard deviation of ImageNet.
        parts: the names of the folders for training and validation. Only without `valid`.
        names: folder -> the class's name, where the two differ.
        valid: the share of each class that is kept for validation, 0 < valid < 1, of a folder whose classes
            lie directly in it. None: the folder is split already, into `parts`.

    Returns: loaders, with `classes` in the order of the targets, which is that of the folders' names. Each
        loader has `files`, whose item i is the path of sample i: below `source`, or inside the archive.
    Shapes: batches of (bs, 3, size, size) float32, and (bs,) int64 from 0.
    Raises: FileNotFoundError; ValueError for only one class, for a validation class that training lacks, for
        broken images, other files, empty classes, more than one size, and, with `valid`, for a class of one
        image and for a folder that is split already.
    """
    check_set(bs, device, seed, augment=augment, size=size)
    checked_normalize("normalize", normalize)
    if isinstance(parts, str) or len(instances("parts", parts, str, "names of folders")) != 2:
        raise ValueError(f"parts={shown(parts)}: expected two names of folders, for training and validation")
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"names={shown(names)}: expected a dict, folder -> name of the class")
    valid = unless_none(number, "valid", valid, above=0, below=1)
    if valid is not None and tuple(parts) != _PARTS:
        raise ValueError(
            f"parts={shown(parts)} names folders of a set that is split, and valid={valid:g} splits one: "
            "expected one of the two"
        )
    source = path("source", source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: there is no such folder or archive")

    train, held_out = _halves(source, size, parts, valid)
    classes, found = train.classes, held_out.classes
    if new := sorted(set(found) - set(classes)):
        raise ValueError(
            f"{source}: {parts[1]} has the class {new[0]}, which {parts[0]} lacks: expected some of "
            f"{', '.join(classes)}"
        )
    if held_out.images.shape[1:] != train.images.shape[1:]:
        sizes = [f"{x.shape[3]}x{x.shape[2]}" for x in (train.images, held_out.images)]
        raise ValueError(f"{source}: {parts[0]} is {sizes[0]}, {parts[1]} {sizes[1]}; give size=, for both")
    said = {nfc(folder): name for folder, name in (names or {}).items()}
    of_train: Tensor = torch.tensor([classes.index(name) for name in found])
    held_out = held_out._replace(targets=of_train[held_out.targets])

    def loader(made: Images, augment: Sequence[Augment], **kwargs: Any) -> ImageLoader:
        files = files_of(source, made)
        return ImageLoader(made.images, made.targets, augment, bs=bs, device=device, files=files, **kwargs)

    said_of_size = [] if size is None else [f"{size} px"]
    said_of_valid = [] if valid is None else [f"valid={valid:g}"]
    return DataLoaders(
        loader(train, [normalize, *augment], shuffle=True, seed=seed),
        loader(held_out, [normalize]),
        classes=[said.get(name, name) for name in classes],
        source=", ".join([source.name.split(".")[0], *said_of_size, *said_of_valid]),
    )


def _halves(source: Path, size: int | None, parts: tuple[str, str], valid: float | None) -> list[Images]:
    """Return the images for training, of two classes or more, and those for validation."""

    def load(part: str) -> Images:
        if valid is not None:
            find = finder("train" if part == parts[0] else "valid", valid, parts)
            half = f"{part}-{valid!r}"
            return cached(source, "", lambda: read_images(source, "", size, find), size, half)
        try:
            return cached(source, part, lambda: read_images(source, part, size), size)
        except NoImagesError as error:
            with tree_of(source, part) as tree:
                said = advice(tree, parts)
            raise ValueError(f"{error}{said}") from None

    train = load(parts[0])
    if len(classes := train.classes) < 2:
        first, lead = ("", "") if valid is not None else (f"{parts[0]} has ", f"{parts[0]}/")
        raise ValueError(
            f"{source}: {first}one class, {classes[0]}: expected two or more, each in a folder "
            f"{lead}<class>; is the folder with the images of all classes one level too deep?"
        )
    return [train, load(parts[1])]
