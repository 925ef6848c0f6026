"""Unpacking a data set's archive, without leaving its folder."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a .tgz, .tar or .zip into a new folder, all of it or nothing.

    Args:
        archive: the file; its content decides, not its name.
        folder: it is created, and must not exist yet.

    Returns: the folder.
    Raises: FileExistsError; ValueError, with the name, for a member that would end up outside of the folder,
        a link out of it or a device, and for a file that is cut short or not an archive. Nothing is left.
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"unpack: {folder} exists already: delete it first, or choose another folder")
    if not archive.is_file():
        raise FileNotFoundError(f"unpack: {archive}: there is no such file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as side:
        inside = Path(side) / folder.name
        inside.mkdir()
        try:
            # A tar may end with a zip as a member, which is_zipfile would find.
            if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
                _unzip(archive, inside)
            else:
                _untar(archive, inside)
        except tarfile.FilterError as error:
            raise ValueError(f"{archive} would write outside of its folder: {error}") from error
        except _DAMAGE as error:
            raise ValueError(f"{archive} is cut short, or not an archive ({error})") from error
        shutil.move(inside, folder)
    return folder


_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")  # no .., no links out, no devices; absolute names made relative
        file: Any = tar.fileobj
        file.seek(tar.offset)
        # tarfile also takes a truncated or damaged header for the end.
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it does not end like a tar")
        while file.read(2**20):  # as far as the checksum, if it is compressed
            pass


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as parts:
        for name in parts.namelist():
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
                raise ValueError(f"{archive} would write outside of its folder: {name!r}")
        parts.extractall(folder)
