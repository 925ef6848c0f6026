"""Imagenette and Imagewoof: ten easy classes of ImageNet, and ten breeds of dogs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ..augment import Augment, HorizontalFlip, RandomResizedCrop
from ..loaders import DataLoaders
from .download import check_set, not_found, places_of, reason_of, waiting_at_most
from .folders import image_folder

_NAMES = {
    "imagenette": {
        **{"n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player"},
        **{"n03000684": "chain saw", "n03028079": "church", "n03394916": "French horn"},
        **{"n03417042": "garbage truck", "n03425413": "gas pump", "n03445777": "golf ball"},
        "n03888257": "parachute",
    },
    "imagewoof": {
        **{"n02086240": "Shih-Tzu", "n02087394": "Rhodesian ridgeback", "n02088364": "beagle"},
        **{"n02089973": "English foxhound", "n02093754": "Border terrier", "n02096294": "Australian terrier"},
        **{"n02099601": "golden retriever", "n02105641": "Old English sheepdog", "n02111889": "Samoyed"},
        "n02115641": "dingo",
    },
}
_DOWNLOADED = 160  # pixels of the shorter side of the downloaded images
_URL = "https://s3.amazonaws.com/fast-ai-imageclas"


def imagenette(
    bs: int = 64,
    size: int = 128,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    download: bool = True,
    augment: Sequence[Augment] = (RandomResizedCrop(), HorizontalFlip()),
) -> DataLoaders:
    """Load Imagenette: 9,469 training and 3,925 validation images of ten kinds of things.

    They are read from fast.ai's layout, imagenette2 of any size (imagenette2, imagenette2-320, -160, ...), as
    a folder or an archive (.tgz); if there are several, the smallest that is not below `size`. For decoding,
    see `image_folder`.

    Args:
        bs: batch size.
        size: of the images, in pixels a side: their centre squares, resized.
        root: the folder that has it. Default: the folder that the environment variable MINILEARN_DATA
            names, else a cache folder, to which torchvision downloads imagenette2-160.
        device, seed, augment: see `image_folder`.
        download: False raises instead.

    Shapes: batches of (bs, 3, size, size) float32, and (bs,) int64 from 0 to 9.
    Raises: FileNotFoundError that says where it looked; ValueError for broken files.
    Source: Howard 2019, https://github.com/fastai/imagenette; document 000.
    """
    return _load("imagenette", bs, size, root, device, seed, download, augment)


def imagewoof(
    bs: int = 64,
    size: int = 128,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    augment: Sequence[Augment] = (RandomResizedCrop(), HorizontalFlip()),
) -> DataLoaders:
    """Load Imagewoof: 9,025 training and 3,929 validation images of ten breeds of dogs.

    Like `imagenette`, with imagewoof2 in place of imagenette2; but it is not downloaded.

    Raises: FileNotFoundError that says what to download and where to put it; ValueError for broken files.
    """
    return _load("imagewoof", bs, size, root, device, seed, False, augment)


def _load(
    name: str,
    bs: int,
    size: int,
    root: str | Path | None,
    device: str | torch.device | None,
    seed: int | None,
    download: bool,
    augment: Sequence[Augment],
) -> DataLoaders:
    check_set(bs, device, seed, download, augment, size)
    source = _find(name, size, root, download)
    return image_folder(source, size, bs, device, seed, augment, names=_NAMES[name])


def _find(name: str, size: int, root: str | Path | None, download: bool) -> Path:
    """Return the folder or archive, downloading it if necessary."""
    places, home = places_of(root)
    tried = []
    for place in places:
        if found := [path for path in sorted(place.glob(f"{name}2*")) if _pixels(path) > 0]:
            fits = [path for path in found if _pixels(path) >= size]
            return min(fits, key=_pixels) if fits else max(found, key=_pixels)
        tried.append(f"{place} (no {name}2, of any size, as a folder or .tgz)")
    wanted = f"{name}2-{_DOWNLOADED}, as a folder or .tgz"
    if name == "imagenette" and download:
        try:
            return _download(home)
        except (OSError, RuntimeError) as error:
            tried.append(f"downloading to {home} ({reason_of(error)})")
            raise not_found("Imagenette", tried, wanted) from error
    file = f"{name}2-{_DOWNLOADED}.tgz"
    raise not_found(
        name.title(), [*tried, f"no download: fetch {_URL}/{file}, and put it into {home}"], wanted
    )


def _pixels(path: Path) -> float:
    """Return the size in the name of a folder or archive; 0 for any other file."""
    match = re.fullmatch(r"image\w+2(?:-(\d+))?(\.tgz|\.tar|\.tar\.gz)?", path.name)
    if not match or path.is_dir() is bool(match[2]):
        return 0
    return float(match[1] or "inf")


def _download(home: Path) -> Path:
    """Download to a temporary folder and rename it, so that an interrupted download leaves nothing behind."""
    from torchvision.datasets import Imagenette

    home.mkdir(parents=True, exist_ok=True)
    name = f"imagenette2-{_DOWNLOADED}"
    with tempfile.TemporaryDirectory(dir=home) as side, waiting_at_most():
        Imagenette(side, size=f"{_DOWNLOADED}px", download=True)
        return (Path(side) / name).replace(home / name)
