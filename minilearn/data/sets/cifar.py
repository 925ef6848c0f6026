"""CIFAR-10 as loaders, from torchvision's files or from an image folder, kept as bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..augment import Augment, HorizontalFlip, Normalize, RandomCrop
from ..images import ImageLoader
from ..loaders import DataLoaders
from .decoding import Images, cached, files_of, read_images
from .download import check_set, not_found, places_of, reason_of, waiting_at_most

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NORMALIZE = Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_OFFICIAL = "cifar-10-batches-py"
_PLACES = (_OFFICIAL, "cifar10", "cifar10.tgz")


def cifar10(
    bs: int = 128,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    download: bool = True,
    augment: Sequence[Augment] = (RandomCrop(4), HorizontalFlip()),
) -> DataLoaders:
    """Load CIFAR-10: 50,000 training and 10,000 validation images of ten kinds of things.

    Read from torchvision's files (cifar-10-batches-py), or from images in fast.ai's layout: a folder
    cifar10/{train,test}/<class>/, or its archive cifar10.tgz. Images are decoded once; afterwards a
    file in the cache folder ($XDG_CACHE_HOME/minilearn, or ~/.cache/minilearn) is memory-mapped.

    Args:
        bs: batch size.
        root: the folder that has one of these three. Default: the folder that the environment variable
            MINILEARN_DATA names, else a cache folder, to which torchvision's files are downloaded.
        device: keep the data (184 MB) there, and augment there. Default: main memory.
        seed: for the order and the augmentation of the training images; see ImageLoader.
        download: False raises instead.
        augment: for the normalized training images.

    Returns: loaders, with `source` saying where the data came from: images that were coded as JPEG are not
        bit for bit the published ones, and accuracies come out a little lower. In `train.tensors` of a folder
        or an archive they are in the order of their classes, so the first 5,000 show airplanes: for a part
        of the data, take every n-th, or choose at random.
    Shapes: batches of (bs, 3, 32, 32) float32, normalized to mean 0 and standard deviation 1 over the
        training set, and (bs,) int64 from 0 to 9.
    Raises: FileNotFoundError that says where it looked; ValueError for broken files.
    Source: Krizhevsky 2009; document 001.
    """
    check_set(bs, device, seed, download, augment)
    path = _find(root, download)

    def loader(part: str, augment: Sequence[Augment], **kwargs: Any) -> ImageLoader:
        made = cached(path, part, lambda: _read(path, part))
        files = files_of(path, made)
        return ImageLoader(made.images, made.targets, augment, bs=bs, device=device, files=files, **kwargs)

    return DataLoaders(
        loader("train", [_NORMALIZE, *augment], shuffle=True, seed=seed),
        loader("test", [_NORMALIZE]),
        classes=CLASSES,
        source="CIFAR-10" if path.name == _OFFICIAL else f"CIFAR-10, JPEG-coded ({path.name})",
    )


def _read(path: Path, part: str) -> Images:
    if path.name != _OFFICIAL:
        made = read_images(path, part)
        if made.classes != CLASSES:
            names = ", ".join(made.classes)
            raise ValueError(f"{path}: {part} has the classes {names}; expected CIFAR-10's ten")
        return made
    from torchvision.datasets import CIFAR10  # here, because it is slow to import

    try:
        found = CIFAR10(path.parent, train=part == "train")
    except Exception as error:
        raise ValueError(
            f"{path}: a file is broken ({error or type(error).__name__}); delete the folder, and it is "
            "downloaded again"
        ) from error
    images = torch.from_numpy(np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)))
    return Images(images, torch.tensor(found.targets), CLASSES, ())


def _find(root: str | Path | None, download: bool) -> Path:
    """Return the folder or archive, downloading torchvision's files if necessary."""
    places, home = places_of(root)
    tried = []
    for place in places:
        for name in _PLACES:
            if (place / name).exists():
                return place / name
        tried.append(f"{place} (none of {', '.join(_PLACES)})")
    wanted = f"one of {', '.join(_PLACES)}"
    if download:
        try:
            return _download(home)
        except (OSError, RuntimeError) as error:
            tried.append(f"downloading to {home} ({reason_of(error)})")
            raise not_found("CIFAR-10", tried, wanted) from error
    raise not_found("CIFAR-10", [*tried, "no download, because of download=False"], wanted)


def _download(home: Path) -> Path:
    """Download to a temporary folder and rename it, so that an interrupted download leaves nothing behind."""
    from torchvision.datasets import CIFAR10

    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as side, waiting_at_most():
        CIFAR10(side, download=True)
        return (Path(side) / _OFFICIAL).replace(home / _OFFICIAL)
