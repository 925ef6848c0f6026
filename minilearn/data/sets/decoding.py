"""Images in folders or archives as tensors of bytes: decoded once, then memory-mapped from a cache."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...files import read_plain, written_whole
from .download import cache_folder
from .pixels import rgb_pixels
from .trees import SUFFIXES, ArchiveTree, FolderTree, Found, find_images, folders_of, tree_of, under

_AT_ONCE = 512  # files read before they are decoded
_BYTES_AT_ONCE = 2**29  # or fewer, if they are large
_FORMAT = 4  # of a cache file, so that those of older versions are not mistaken for it

Find = Callable[[FolderTree | ArchiveTree, str], tuple[set[str], list[Found]]]


class Images(NamedTuple):
    """The images of a part, sorted by class and name."""

    images: Tensor  # (N, 3, H, W) uint8
    targets: Tensor  # (N,) int64
    classes: tuple[str, ...]
    files: tuple[str, ...]  # the path of each image in the source; empty if they come from other files


class NoImagesError(ValueError):
    """A part of a folder or an archive has no image."""


def cached(
    source: Path, part: str, make: Callable[[], Images], size: int | None = None, half: str = ""
) -> Images:
    """Return images with their targets and files, made once, then memory-mapped from the cache folder.

    The file's name is derived from the sizes, times and inodes of what is read, also through links, so what
    changed is decoded again. The cache folder is $XDG_CACHE_HOME/minilearn, or ~/.cache/minilearn.

    Args:
        source: an archive, or a folder; of a folder, only the one named `part` in it counts if there is one.
        part: a name for what is made, such as "train"; "" for all that is in the folder.
        size: of the images that are made, in pixels a side.
        half: a name for which of the part's images are made. Default: all.

    Raises: ValueError for a source that changes meanwhile, and for a damaged file in the cache; OSError.
    """
    path = _path_of(source, part, size, half)
    if not path.is_file():
        made = make()
        if path != _path_of(source, part, size, half):
            raise ValueError(
                f"{source} changed while it was read: wait until it is complete, and start again"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                named = {"classes": list(made.classes), "files": list(made.files)}
                torch.save({"images": made.images, "targets": made.targets, **named}, file)
        except OSError as error:
            error.add_note("minilearn: for another cache folder set the environment variable XDG_CACHE_HOME")
            raise
    try:
        saved = read_plain(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from None
    return Images(saved["images"], saved["targets"], tuple(saved["classes"]), tuple(saved["files"]))


def files_of(source: Path, made: Images) -> list[str] | None:
    """Return the path of each image, of those in an archive the path inside; None if they have none."""
    if not made.files:
        return None
    return [str(source / file) for file in made.files] if source.is_dir() else list(made.files)


def _path_of(source: Path, part: str, size: int | None, half: str) -> Path:
    places = folders_of(source, part) or [source]
    stamps = [_stamp(place) if place.is_dir() else _stamp_of(place) for place in places]
    about = (part, half) if half else (part,)
    stamp = repr((_FORMAT, *about, size, str(source.resolve()), stamps)).encode()
    digest = hashlib.blake2b(stamp, digest_size=8).hexdigest()
    name = re.sub(r"[^\w-]", "_", half or part) + (f"-{size}" if size else "")  # a part may have slashes
    return cache_folder() / f"{source.name.split('.')[0]}-{name}-{digest}.pt"


def _stamp(place: Path) -> list[Any]:
    """Return what changes when a file in a folder does, or one behind a link.

    Names that begin with a dot are left out, as they are by `read_images`.
    """
    stamps, to_see, seen = [], [("", place)], set()
    while to_see:
        above, folder = to_see.pop()
        real = os.path.realpath(folder)
        if real in seen:  # by another link, or a link to a folder above
            continue
        seen.add(real)
        try:
            paths = sorted(Path(entry) for entry in os.scandir(folder) if not entry.name.startswith("."))
        except OSError:  # if it is needed, reading says why
            continue
        for path in paths:
            name, stamp = f"{above}/{path.name}", _stamp_of(path)
            stamps.append((name, stamp))
            if isinstance(stamp, int):  # a folder
                to_see.append((name, path))
    return stamps


def _stamp_of(path: Path) -> Any:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere
        return None
    if stat.S_ISDIR(found.st_mode):
        return found.st_ino
    # The last two differ even for a file that was replaced by one of the same size and time.
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def read_images(source: Path, part: str, size: int | None = None, find: Find = find_images) -> Images:
    """Decode one part of an image folder, such as "train", or of a .tgz or .tar of one, on all cores.

    A bar shows the progress in a terminal or a notebook. Names that begin with a dot are left out, as are
    files beside the classes. Links are followed. A class's name in NFC and in NFD is one name. Images are
    turned as their EXIF says; grey of 16 bits is scaled to 8; transparency is left out; of an animation or of
    several pages the first image is taken.

    Args:
        source: a folder with <part>/<class>/<image>, or an archive with <folder>/<part>/<class>/<image>.
        size: the centre square of each image is resized to size x size pixels. None: images stay as they are.
        find: gives the classes and the images of a part.

    Returns: images, targets and files, sorted by class and name; the classes' names.
    Raises: ValueError, with its name, for a broken image, for one of floats or of another unknown range, for
        a file that is not an image, for a link that leads nowhere, for a class without images, and, unless
        `size` is given, for an image whose size is not that of the first; NoImagesError, a ValueError, for a
        part without images; OSError for what cannot be read.
    """

    def decode(one: tuple[Found, bytes]) -> tuple[Found, Any]:
        return one[0], rgb_pixels(f"{source}: {under(part, one[0].path)}", one[1], size)

    images: list[tuple[Found, Any]] = []
    with tree_of(source, part) as tree, ThreadPoolExecutor(os.cpu_count()) as pool:
        classes, found = find(tree, part)  # PIL decodes without the interpreter's lock
        for some in _groups(tree.read(found)):
            images += pool.map(decode, some)
    if not images:
        raise NoImagesError(
            f"{source} has no image in {under(part, '<class>/')}: expected {', '.join(SUFFIXES)}"
        )
    if empty := sorted(classes - {one.kind for one, _ in images}):
        raise ValueError(f"{source}: {under(part, empty[0])} has no image: expected some of each class")
    images.sort(key=lambda image: image[0][:3])
    names = sorted(classes)
    pixels = np.empty((len(images), *images[0][1].shape), dtype=np.uint8)
    for i, (one, image) in enumerate(images):
        if image.shape != pixels.shape[1:]:
            sizes = [f"{w}x{h}" for h, w, _ in (image.shape, pixels.shape[1:])]
            raise ValueError(
                f"{source}: {under(part, one.path)} is {sizes[0]}, others are {sizes[1]}: expected one size; "
                "give size=, to which they are resized"
            )
        pixels[i] = image
    targets = torch.tensor([names.index(one.kind) for one, _ in images])
    files = tuple(one.file for one, _ in images)
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), targets, tuple(names), files)


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
