"""The lock on a folder of checkpoints: one process at a time writes there."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
_ours: set[tuple[int, Path]] = set()  # process, folder: the system's lock is one for all of a process


class Lock:
    """A lock that ends with its process, however that ends; processes forked from it do not have it.

    The file has the process's number, machine and time, for the message to another one.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._key = (os.getpid(), folder.resolve())
        self._file: int | None = None

    def take(self) -> str:
        """Take the lock; return "", or who has it."""
        if self._key in _ours:
            return f"another fit of this process, {os.getpid()},"
        if fcntl is None:
            return ""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                who = os.read(file, 200).decode(errors="replace").strip()
                os.close(file)
                is_taken = error.errno in (errno.EACCES, errno.EAGAIN)  # else the file system has no locks
                return (who or "another process") if is_taken else ""
            with suppress(OSError):
                if os.fstat(file).st_ino == os.stat(self.path).st_ino:
                    break
            os.close(file)  # its holder removed it just now
        os.ftruncate(file, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}, since {since},\n".encode())
        _ours.add(self._key)
        self._file = file
        return ""

    @property
    def is_held(self) -> bool:
        """Whether this process has the lock; no other one then writes to the folder."""
        return self._file is not None

    def free(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            _ours.discard(self._key)
            with suppress(OSError):
                self.path.unlink()
            os.close(self._file)
            self._file = None
