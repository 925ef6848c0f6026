"""Where downloaded and decoded data is kept, and how long to wait for a server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...arguments import device as check_device
from ...arguments import flag, instances, path, unless_none, whole_number
from ..augment import Augment

_LARGEST = 2**15  # pixels of a side
_WAIT_S = 15  # torchvision itself waits for a silent server forever


def cache_folder() -> Path:
    """Return the folder for data: $XDG_CACHE_HOME/minilearn, or ~/.cache/minilearn."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minilearn"


def check_set(
    bs: Any, device: Any, seed: Any, download: Any = True, augment: Any = (), size: Any = None
) -> None:
    """Raise TypeError or ValueError for a wrong argument of a data set, before anything is downloaded."""
    whole_number("bs", bs)
    unless_none(check_device, "device", device)
    unless_none(whole_number, "seed", seed, None)
    flag("download", download)
    instances("augment", augment, Augment, "instances of Augment, such as RandomCrop(4)")
    unless_none(whole_number, "size", size, 1, _LARGEST, of=" of pixels")


def places_of(root: str | Path | None) -> tuple[list[Path], Path]:
    """Return the folders to look for data in, and the one to download to.

    Args:
        root: the only one. None: the one that the environment variable MINILEARN_DATA names, and the cache.

    Raises: FileNotFoundError for a root that does not exist.
    """
    if root is None:
        named = os.environ.get("MINILEARN_DATA")
        return [*([Path(named).expanduser()] if named else []), cache_folder()], cache_folder()
    home = path("root", root)
    if not home.is_dir():
        raise FileNotFoundError(f"root={str(root)!r}: there is no such folder; make it, or leave root out")
    return [home], home


def reason_of(error: BaseException) -> str:
    """Return the last line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def not_found(name: str, tried: Sequence[str], wanted: str) -> FileNotFoundError:
    """Return the error that says where a data set was looked for, and what its folder must contain."""
    lines = "".join(f"\n  - {line}" for line in tried)
    advice = f"Set MINILEARN_DATA, or give root=, to a folder with {wanted}."
    return FileNotFoundError(f"{name} was not found. Tried:{lines}\n{advice}")


@contextmanager
def waiting_at_most(seconds: float = _WAIT_S) -> Iterator[None]:
    """Let sockets wait for at most so many seconds, inside a `with`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
