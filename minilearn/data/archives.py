"""Unpacking a data set's archive, without leaving its folder."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a .tgz, .tar or .zip into a new folder, all of it or nothing.

    Args:
        archive: the file; by its content, not its name.
        folder: is made, and must not be there yet.

    Returns: the folder.
    Raises: FileExistsError; ValueError, with the name, for a member that would come to lie outside of the
        folder, a link out of it or a device, and for a file that is cut short or no archive. Nothing is left.
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"unpack: {folder} is there already: delete it first, or choose another folder")
    if not archive.is_file():
        raise FileNotFoundError(f"unpack: {archive}: there is no such file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as side:
        inside = Path(side) / folder.name
        inside.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, inside)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(
                        inside, filter="data"
                    )  # no absolute names, no .., no links out, no devices
        except tarfile.FilterError as error:
            raise ValueError(f"{archive} would write outside of its folder: {error}") from error
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{archive} is cut short, or no archive ({error})") from error
        shutil.move(inside, folder)
    return folder


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as parts:
        for name in parts.namelist():
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise ValueError(f"{archive} would write outside of its folder: {name!r}")
        parts.extractall(folder)
