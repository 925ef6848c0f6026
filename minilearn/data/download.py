"""Where data that is downloaded or decoded is kept, and how long is waited for a server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WAIT_S = 15  # torchvision itself waits for a silent server without end


def cache_folder() -> Path:
    """Return the folder for data: $XDG_CACHE_HOME/minilearn, or ~/.cache/minilearn."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minilearn"


@contextmanager
def waiting_at_most(seconds: float = _WAIT_S) -> Iterator[None]:
    """Have sockets wait for so many seconds and no longer, inside a `with`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
