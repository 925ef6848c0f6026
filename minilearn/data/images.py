"""Images in folders or archives as tensors of bytes, decoded once, and the loader that augments them."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import written_whole
from ..seeding import generator_of
from .augment import Augment
from .download import cache_folder
from .resumable import TensorLoader

_SUFFIXES = (".jpg", ".jpeg", ".png")
_DRAWS = 1  # beside (seed, epoch), which is the order's


class ImageLoader(TensorLoader):
    """Give batches of images that are kept as bytes, augmented as whole batches where the images are.

    The random numbers of an image are a pure function of (seed, epoch, its index): they are the same with
    any batch size, and in a run that goes on from the middle of an epoch.

    Args:
        images: (N, C, H, W) uint8; may be memory-mapped.
        targets: (N, ...).
        augment: what is done to a batch, in this order; the first usually is Normalize.
        bs, shuffle, drop_last, seed, device: see TensorLoader.

    Shapes: a batch is (images (bs, C, H, W) as `augment` leaves them, targets (bs, ...)).
    """

    def __init__(
        self, images: Tensor, targets: Tensor, augment: Sequence[Augment] = (), **kwargs: Any
    ) -> None:
        super().__init__(images, targets, **kwargs)
        for one in augment:
            if not isinstance(one, Augment):
                raise TypeError(f"augment has {one!r}: expected instances of Augment, such as RandomCrop(4)")
        self.augment = tuple(augment)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Give the batches of this epoch from number `start` on."""
        device, order = self.tensors[0].device, self.order()
        n_random = sum(one.n_random for one in self.augment)
        random = torch.rand(self.n_samples, n_random, generator=generator_of(self.seed, self.epoch, _DRAWS))
        order, random = order.to(device), random.to(device)
        for i in range(start, len(self)):
            index = order[i * self.bs : (i + 1) * self.bs]
            images, targets = (t[index] for t in self.tensors)
            yield self._augmented(images, random[index]), targets

    def peek(self) -> tuple[Tensor, ...]:
        """Return the first two samples as a batch, with the random numbers 0."""
        images, targets = (t[:2] for t in self.tensors)
        n_random = sum(one.n_random for one in self.augment)
        return self._augmented(images, torch.zeros(len(images), n_random, device=images.device)), targets

    def _augmented(self, images: Tensor, random: Tensor) -> Tensor:
        parts = torch.split(random, [one.n_random for one in self.augment], dim=1)
        for one, part in zip(self.augment, parts, strict=True):
            images = one(images, part)
        return images

    def state_dict(self) -> dict[str, Any]:
        """Return what order and augmentation depend on."""
        # Without the addresses of functions and the like, which are others in another process.
        return {**super().state_dict(), "augment": re.sub(r" at 0x\w+", "", repr(self.augment))}


# Decoding -----------------------------------------------------------------------------------------


def cached(source: Path, part: str, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return images and targets, made once and memory-mapped from a file in the cache folder afterwards.

    The file's name comes of the source's path, size and times, so what changed is decoded anew. The cache
    folder is $XDG_CACHE_HOME/minilearn, or ~/.cache/minilearn.
    """
    digest = hashlib.blake2b(repr((str(source.resolve()), _stamp(source))).encode(), digest_size=8)
    path = cache_folder() / f"{source.name.split('.')[0]}-{part}-{digest.hexdigest()}.pt"
    if not path.is_file():
        images, targets = make()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                torch.save({"images": images, "targets": targets}, file)
        except OSError as error:
            error.add_note("minilearn: for another cache folder set the environment variable XDG_CACHE_HOME")
            raise
    try:
        saved = torch.load(path, mmap=True, weights_only=True)
    except Exception as error:  # torch has several
        reason = str(error).strip().split(". ")[0]
        raise ValueError(f"{path} is damaged ({reason}); delete it, and it is made anew") from error
    return saved["images"], saved["targets"]


def _stamp(source: Path) -> Any:
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]]


def read_images(source: Path, part: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Decode one part of an image folder, such as "train", or of a .tgz or .tar of one.

    Args:
        source: a folder with <part>/<class>/<image>, or an archive with <folder>/<part>/<class>/<image>.

    Returns: images (N, 3, H, W) uint8 and targets (N,) int64, sorted by class and name; the classes' names.
    Raises: ValueError, with its name, for an image that is broken or of another size than the first; and
        for a part without any image.
    """
    found = sorted(_in_folder(source, part) if source.is_dir() else _in_archive(source, part))
    if not found:
        raise ValueError(f"{source} has no image in {part}/<class>/: expected .jpg, .jpeg or .png files")
    classes = sorted({name for name, _, _ in found})
    pixels = None
    for i, (_, name, data) in enumerate(found):
        image = _decoded(f"{source}: {part}/{name}", data)
        if pixels is None:
            pixels = np.empty((len(found), *image.shape), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            sizes = [f"{w}x{h}" for h, w, _ in (image.shape, pixels.shape[1:])]
            raise ValueError(
                f"{source}: {part}/{name} is {sizes[0]}, others are {sizes[1]}: expected one size"
            )
        pixels[i] = image
    targets = torch.tensor([classes.index(name) for name, _, _ in found])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), targets, tuple(classes)


_Found = Iterator[tuple[str, str, bytes]]  # class, name, what is in the file


def _in_folder(folder: Path, part: str) -> _Found:
    for path in (folder / part).glob("*/*"):
        if path.suffix.lower() in _SUFFIXES:
            yield path.parent.name, f"{path.parent.name}/{path.name}", path.read_bytes()


def _in_archive(archive: Path, part: str) -> _Found:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                is_image = PurePosixPath(member.name).suffix.lower() in _SUFFIXES
                if member.isfile() and is_image and len(parts) >= 3 and parts[-3] == part:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield parts[-2], "/".join(parts[-2:]), file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive} is cut short, or no archive ({error})") from error


def _decoded(name: str, data: bytes) -> Any:
    from PIL import Image  # torchvision brings it

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{name} is broken ({error})") from error
