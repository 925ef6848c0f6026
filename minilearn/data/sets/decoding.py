"""Images in folders or archives as tensors of bytes: decoded once, then memory-mapped from a cache."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...files import written_whole
from .download import cache_folder
from .pixels import rgb_pixels

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
_AT_ONCE = 512  # files read before they are decoded
_FORMAT = 3  # of a cache file, so that those of older versions are not mistaken for it

Images = tuple[Tensor, Tensor, tuple[str, ...]]  # (N, 3, H, W) uint8, (N,) int64, names of the classes
_Found = tuple[str, str, bytes]  # class, class/name, content of the file


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

    A bar shows the progress in a terminal or a notebook. Files whose name begins with a dot are left out.
    Images are turned as their EXIF says; grey of 16 bits is scaled to 8; transparency is left out; of an
    animation or of several pages the first image is taken.

    Args:
        source: a folder with <part>/<class>/<image>, or an archive with <folder>/<part>/<class>/<image>.
        size: the centre square of each image is resized to size x size pixels. None: images stay as they are.

    Returns: images (N, 3, H, W) uint8 and targets (N,) int64, sorted by class and name; the classes' names.
    Raises: ValueError, with its name, for a broken image, for one of floats or of another unknown range,
        for a file that is not an image, for a class without images, and, unless `size` is given, for an image
        whose size is not that of the first.
    """
    classes: set[str] = set()
    read = _in_folder if source.is_dir() else _in_archive

    def decode(found: _Found) -> tuple[str, str, Any]:
        name, path, data = found
        return name, path, rgb_pixels(f"{source}: {part}/{path}", data, size)

    images: list[tuple[str, str, Any]] = []
    found = read(source, part, classes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes without the interpreter's lock
        while some := list(islice(found, _AT_ONCE)):
            images += pool.map(decode, some)
    if not images:
        raise ValueError(f"{source} has no image in {part}/<class>/: expected {', '.join(_SUFFIXES)}")
    if empty := sorted(classes - {name for name, _, _ in images}):
        raise ValueError(f"{source}: {part}/{empty[0]} has no image: expected some of each class")
    images.sort(key=lambda image: image[:2])
    names = sorted(classes)
    pixels = np.empty((len(images), *images[0][2].shape), dtype=np.uint8)
    for i, (_, path, image) in enumerate(images):
        if image.shape != pixels.shape[1:]:
            sizes = [f"{w}x{h}" for h, w, _ in (image.shape, pixels.shape[1:])]
            raise ValueError(
                f"{source}: {part}/{path} is {sizes[0]}, others are {sizes[1]}: expected one size; give "
                "size=, to which they are resized"
            )
        pixels[i] = image
    targets = torch.tensor([names.index(name) for name, _, _ in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), targets, tuple(names)


def _in_folder(folder: Path, part: str, classes: set[str]) -> Iterator[_Found]:
    from rich.progress import track

    kinds = [path for path in (folder / part).glob("*") if path.is_dir() and not path.name.startswith(".")]
    classes.update(path.name for path in kinds)
    paths = [path for kind in kinds for path in kind.glob("*") if not path.name.startswith(".")]
    console = _console()
    for path in track(paths, f"{folder.name} {part}", console=console, disable=console is None):
        name = f"{path.parent.name}/{path.name}"
        _check_suffix(f"{folder}: {part}/{name}", path.suffix)
        yield path.parent.name, name, path.read_bytes()


def _in_archive(archive: Path, part: str, classes: set[str]) -> Iterator[_Found]:
    from rich.progress import open as opened

    console = _console()
    try:
        with (
            opened(
                archive,
                "rb",
                description=f"{archive.name} {part}",
                console=console,
                disable=console is None,
            ) as file,
            tarfile.open(fileobj=file) as tar,
        ):
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isdir() and path.parent.name == part and len(path.parts) > 1:
                    classes.add(path.name)
                if not member.isfile() or path.parent.parent.name != part or path.name.startswith("."):
                    continue
                name = "/".join(path.parts[-2:])
                _check_suffix(f"{archive}: {part}/{name}", path.suffix)
                classes.add(path.parent.name)
                content = tar.extractfile(member)
                assert content is not None
                yield path.parent.name, name, content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive} is cut short, or not an archive ({error})") from error


def _console() -> Any:
    """Return a console that can show a bar; None if there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or console.is_jupyter else None


def _check_suffix(name: str, suffix: str) -> None:
    if suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"{name} is not an image: expected {', '.join(_SUFFIXES)}; move it out of the folder"
        )
