"""Images in folders or archives as tensors of bytes: decoded once, then memory-mapped from a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...files import written_whole
from .download import cache_folder
from .pixels import rgb_pixels
from .trees import SUFFIXES, Found, find_images, tree_of

_AT_ONCE = 512  # files read before they are decoded
_BYTES_AT_ONCE = 2**29  # or fewer, if they are large
_FORMAT = 3  # of a cache file, so that those of older versions are not mistaken for it

Images = tuple[Tensor, Tensor, tuple[str, ...]]  # (N, 3, H, W) uint8, (N,) int64, names of the classes


def cached(source: Path, part: str, make: Callable[[], Images]) -> Images:
    """Return images, targets and classes, made once and memory-mapped from the cache folder afterwards.

    The file's name is derived from the source's path, size and times, so what changed is decoded again. The
    cache folder is $XDG_CACHE_HOME/minilearn, or ~/.cache/minilearn.

    Args:
        part: a name for what is made, such as "train-64".
    """
    stamp = repr((_FORMAT, str(source.resolve()), _stamp(source))).encode()
    digest = hashlib.blake2b(stamp, digest_size=8).hexdigest()
    path = cache_folder() / f"{source.name.split('.')[0]}-{part}-{digest}.pt"
    if not path.is_file():
        images, targets, classes = make()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                torch.save({"images": images, "targets": targets, "classes": list(classes)}, file)
        except OSError as error:
            error.add_note("minilearn: for another cache folder set the environment variable XDG_CACHE_HOME")
            raise
    try:
        saved = torch.load(path, mmap=True, weights_only=True)
    except Exception as error:  # torch raises several
        reason = str(error).strip().split(". ")[0]
        raise ValueError(f"{path} is damaged ({reason}); delete it, and it is made again") from error
    return saved["images"], saved["targets"], tuple(saved["classes"])


def _stamp(source: Path) -> Any:
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]]


def read_images(source: Path, part: str, size: int | None = None) -> Images:
    """Decode one part of an image folder, such as "train", or of a .tgz or .tar of one, on all cores.

    A bar shows the progress in a terminal or a notebook. Names that begin with a dot are left out, as are
    files beside the classes. Links are followed. A class's name in NFC and in NFD is one name. Images are
    turned as their EXIF says; grey of 16 bits is scaled to 8; transparency is left out; of an animation or of
    several pages the first image is taken.

    Args:
        source: a folder with <part>/<class>/<image>, or an archive with <folder>/<part>/<class>/<image>.
        size: the centre square of each image is resized to size x size pixels. None: images stay as they are.

    Returns: images (N, 3, H, W) uint8 and targets (N,) int64, sorted by class and name; the classes' names.
    Raises: ValueError, with its name, for a broken image, for one of floats or of another unknown range, for
        a file that is not an image, for a link that leads nowhere, for a class without images, and, unless
        `size` is given, for an image whose size is not that of the first; OSError for what cannot be read.
    """

    def decode(one: tuple[Found, bytes]) -> tuple[Found, Any]:
        return one[0], rgb_pixels(f"{source}: {part}/{one[0].path}", one[1], size)

    images: list[tuple[Found, Any]] = []
    with tree_of(source, part) as tree, ThreadPoolExecutor(os.cpu_count()) as pool:
        classes, found = find_images(tree, part)  # PIL decodes without the interpreter's lock
        for some in _groups(tree.read(found)):
            images += pool.map(decode, some)
    if not images:
        raise ValueError(f"{source} has no image in {part}/<class>/: expected {', '.join(SUFFIXES)}")
    if empty := sorted(classes - {one.kind for one, _ in images}):
        raise ValueError(f"{source}: {part}/{empty[0]} has no image: expected some of each class")
    images.sort(key=lambda image: image[0][:3])
    names = sorted(classes)
    pixels = np.empty((len(images), *images[0][1].shape), dtype=np.uint8)
    for i, (one, image) in enumerate(images):
        if image.shape != pixels.shape[1:]:
            sizes = [f"{w}x{h}" for h, w, _ in (image.shape, pixels.shape[1:])]
            raise ValueError(
                f"{source}: {part}/{one.path} is {sizes[0]}, others are {sizes[1]}: expected one size; give "
                "size=, to which they are resized"
            )
        pixels[i] = image
    targets = torch.tensor([names.index(one.kind) for one, _ in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), targets, tuple(names)


def _groups(images: Iterator[tuple[Found, bytes]]) -> Iterator[list[tuple[Found, bytes]]]:
    """Give images in groups that fit into memory."""
    some, n_bytes = [], 0
    for image in images:
        some.append(image)
        n_bytes += len(image[1])
        if len(some) >= _AT_ONCE or n_bytes >= _BYTES_AT_ONCE:
            yield some
            some, n_bytes = [], 0
    if some:
        yield some
