"""MNIST and Fashion-MNIST as loaders, read and downloaded by torchvision."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..augment import Normalize
from ..loaders import DataLoaders
from ..resumable import TensorLoader
from .download import check_set, not_found, places_of, reason_of, waiting_at_most


def fashion_mnist(
    bs: int = 512,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    download: bool = True,
) -> DataLoaders:
    """Load Fashion-MNIST: 60,000 training and 10,000 validation images of ten kinds of clothing.

    Args:
        bs: batch size.
        root: the folder that has (or is to have) FashionMNIST/raw. Default: the folder that the
            environment variable MINILEARN_DATA names, else a cache folder, to which it is downloaded.
        device: keep the data there. Default: main memory.
        seed: for the order of the training images; see TensorLoader.
        download: False raises instead.

    Shapes: batches of (bs, 1, 28, 28) float32, normalized to mean 0 and standard deviation 1 over
        the training set, and (bs,) int64 from 0 to 9.
    Raises: FileNotFoundError that says where it looked; ValueError for a broken file.
    Source: Xiao, Rasul & Vollgraf 2017; documents 002 and 003 call the validation set "test" or "eval".
    """
    return _idx_loaders("FashionMNIST", (0.2860, 0.3530), bs, root, device, seed, download)


def mnist(
    bs: int = 512,
    root: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    download: bool = True,
) -> DataLoaders:
    """Load MNIST: 60,000 training and 10,000 validation images of handwritten digits.

    Arguments, shapes and errors are those of `fashion_mnist`; the folder is MNIST/raw.
    """
    return _idx_loaders("MNIST", (0.1307, 0.3081), bs, root, device, seed, download)


def _idx_loaders(
    name: str,
    mean_std: tuple[float, float],
    bs: int,
    root: str | Path | None,
    device: str | torch.device | None,
    seed: int | None,
    download: bool,
) -> DataLoaders:
    check_set(bs, device, seed, download)
    from torchvision import datasets  # here, because it is slow to import

    dataset = getattr(datasets, name)
    folder = _find(name, dataset, root, download)

    def load(train: bool) -> tuple[Tensor, Tensor]:
        try:
            part = dataset(folder, train=train)
            images, targets = part.data, part.targets.long()
            _check(images, targets, len(dataset.classes))
        except Exception as error:
            files = " or ".join(_FILES[:2] if train else _FILES[2:])
            raise ValueError(
                f"{folder / name / 'raw'}: of the {'training' if train else 'validation'} set, {files} is "
                f"broken ({error or type(error).__name__}); delete the folder, and it is downloaded again"
            ) from error
        mean, std = mean_std
        return images.unsqueeze(1).float().div_(255).sub_(mean).div_(std), targets

    return DataLoaders(
        TensorLoader(*load(True), bs=bs, shuffle=True, seed=seed, device=device),
        TensorLoader(*load(False), bs=bs, device=device),
        classes=[c.split(" - ")[-1] for c in dataset.classes],
        transform=Normalize([mean_std[0]], [mean_std[1]]),
    )


def _check(images: Tensor, targets: Tensor, n_classes: int) -> None:
    if images.ndim != 3 or len(images) != len(targets) or not len(images):
        raise ValueError(f"{tuple(images.shape)} images, {len(targets)} targets")
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(
            f"targets run from {targets.min()} to {targets.max()}, expected 0 to {n_classes - 1}"
        )


def _find(name: str, dataset: Callable[..., Any], root: str | Path | None, download: bool) -> Path:
    """Return the folder that has the four files, downloading them if necessary."""
    places, home = places_of(root)
    tried = []
    for place in places:
        raw = place / name / "raw"
        missing = [f for f in _FILES if not (raw / f).is_file()]
        if not missing:
            return place
        tried.append(f"{raw} (no {missing[0]})")
    if download:
        try:
            return _download(name, dataset, home)
        except (OSError, RuntimeError) as error:
            tried.append(f"downloading to {home} ({reason_of(error)})")
            raise not_found(name, tried, f"{name}/raw") from error
    raise not_found(name, [*tried, "no download, because of download=False"], f"{name}/raw")


_FILES = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


def _download(name: str, dataset: Callable[..., Any], home: Path) -> Path:
    """Download to a temporary folder and rename it, so that an interrupted download leaves nothing behind."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as side, waiting_at_most():
        dataset(side, download=True)
        (home / name).mkdir(exist_ok=True)
        for file in (Path(side) / name / "raw").iterdir():
            (home / name / "raw").mkdir(exist_ok=True)
            file.replace(home / name / "raw" / file.name)
    return home
