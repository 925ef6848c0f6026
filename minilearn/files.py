"""Files that are complete or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import errno
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

SIDE = ".part"  # the suffix of a file that is being written
_ADVICE = ("weights_only", "torch.load", "safe_globals")  # in torch's errors: how to run what a file has
_HAS_OBJECT = "it has the object"
_OBJECT = re.compile(r"GLOBAL ([\w.]+)")


class DamagedError(ValueError):
    """Say that a file which was once complete cannot be read: an older one may be good."""


def check_folder(cb: Any, folder: Path) -> None:
    """Create a folder if necessary; raise OSError, with the callback's name, if it cannot be written to."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{cb!r}: there is a file named {folder}; expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{cb!r}: the folder {folder} cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{cb!r}: the folder {folder} cannot be written to")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to that becomes `path` when the `with` ends; on an error it is removed.

    At any moment `path` is the old file or the new one, even after a crash of the machine.

    Raises: OSError, with the path, for a full disk and the like.
    """
    outer = sys.exception()  # being handled while this file is written
    side = path.with_name(f".{path.name}.{os.getpid()}{SIDE}")
    try:
        with open(side, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(side, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # it does not exist, or cannot
            side.unlink()
        if cause := _os_error(error, outer):
            text = f"{cause.strerror}; what was at this place before is still there"
            raise OSError(cause.errno, text, str(path)) from error
        raise


def _os_error(error: BaseException | None, outer: BaseException | None) -> OSError | None:
    """Find the OSError that an error of torch hides."""
    while error is not None and error is not outer and isinstance(error, Exception):
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # folders have no handles there
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the new name itself
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(handle)


def write_torch(path: Path, value: Any) -> None:
    """Write plain data and tensors in torch's format."""
    with written_whole(path) as file:
        torch.save(value, file)


def read_torch(path: Path, check: bool = True) -> Any:
    """Read what `write_torch` wrote, on the CPU; no code from the file runs.

    Args:
        check: read all of it and compare its checksums; False reads tensors only when they are used.

    Raises: FileNotFoundError; DamagedError, a ValueError, for a file that is cut short, changed, or holds
        anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as parts:  # torch does not check its own checksums
            broken = parts.testzip() if check else None
            # For a part that is marked as a folder, torch reads zeros.
            broken = next((part.filename for part in parts.infolist() if part.external_attr & 0x10), broken)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # zipfile raises others too, such as NotImplementedError for a damaged method
        raise DamagedError(f"{path} is cut short, or is not a checkpoint ({error})") from error
    if broken is not None:
        raise DamagedError(f"{path} is damaged: the checksum of its part {broken!r} is wrong")
    value, why = _plain(path, mmap=not check)
    if why:
        kind = ValueError if why.startswith(_HAS_OBJECT) else DamagedError
        raise kind(f"{path} cannot be read as plain data and tensors, and nothing else is loaded: {why}")
    return value


def read_plain(path: Path) -> Any:
    """Read plain data and tensors from a file in torch's format, tensors only when they are used.

    Raises: ValueError, with what is wrong.
    """
    value, why = _plain(path, mmap=True)
    if why:
        raise ValueError(why)
    return value


def _plain(path: Path, mmap: bool) -> tuple[Any, str]:
    """Return what torch reads from a file, and why it cannot be read.

    torch's own error is neither quoted nor chained, because it advises to load the file unsafely.
    """
    try:
        if mmap:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), ""
        with path.open("rb") as file:  # by its contents: torch reads a path by its suffix
            return torch.load(file, map_location="cpu", weights_only=True), ""
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        text, kind = str(error), type(error).__name__
    if found := _OBJECT.search(text):
        return None, f"{_HAS_OBJECT} {found[1]}, and loading one may run code of a stranger"
    first = text.strip().splitlines()[0] if text.strip() else kind
    return None, kind if any(word in text for word in _ADVICE) else first
