"""Unpacking a data set's archive, without leaving its folder."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

_RATIO = 100  # of an archive's content to its size: images have about 1, text 10, and zeros 1,000
_ALWAYS = 256 * 2**20  # bytes that any archive may have


def unpack(archive: str | Path, folder: str | Path, max_bytes: int | None = None) -> Path:
    """Unpack a .tgz, .tar or .zip into a new folder, all of it or nothing.

    Links inside the archive are kept as links. Of two files of one name the last counts.

    Args:
        archive: the file; its content decides, not its name.
        folder: it is created, and must not exist yet.
        max_bytes: that the content may have, with 512 for each member. Default: 100 times the size of the
            archive, and at least 256 MiB; a bomb, whose content is mostly zeros, has more.

    Returns: the folder.
    Raises: FileExistsError; ValueError, with the name, for a member that would end up outside of the folder,
        a link out of it, a hard link to nothing, a device or named pipe, for more than `max_bytes`, and for a
        file that is cut short, encrypted or not an archive. Nothing is left.
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    if max_bytes is not None and (
        not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1
    ):
        raise ValueError(f"unpack(max_bytes={max_bytes!r}): expected a whole number of bytes >= 1")
    if os.path.lexists(folder):
        raise FileExistsError(f"unpack: {folder} exists already: delete it first, or choose another folder")
    if not archive.is_file():
        raise FileNotFoundError(f"unpack: {archive}: there is no such file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as side:
        inside = Path(side) / folder.name
        inside.mkdir()
        with naming_damage(archive):
            (_unzip if is_zip(archive) else _untar)(archive, inside, Total(archive, max_bytes))
        inside.rename(folder)
    return folder


class Total:
    """The bytes that an archive's members unpack to, added up, and refused when only a bomb has as many.

    Args:
        archive: the file.
        most: bytes, with 512 for each member. Default: see `unpack`.
    """

    def __init__(self, archive: Path, most: int | None = None) -> None:
        self._archive, self._n = archive, 0
        self._most = max(_ALWAYS, _RATIO * archive.stat().st_size) if most is None else most

    def add(self, name: str, size: int) -> None:
        """Add a member of `size` bytes; raise ValueError, with its name, if that is too much or below 0."""
        if size < 0:
            raise ValueError(f"{self._archive} is damaged: {name!r} has {size} bytes")
        self._n += size + tarfile.BLOCKSIZE
        if self._n > self._most:
            raise ValueError(
                f"{self._archive} unpacks to more than {self._most:,} bytes: is it a bomb? {name!r} has "
                f"{size:,}, the archive {self._archive.stat().st_size:,}. If you trust it, unpack it with "
                "unpack(max_bytes=...)"
            )


@contextmanager
def naming_damage(archive: Path) -> Iterator[None]:
    """Make a ValueError with the archive's name of the many errors for a damaged one, inside a `with`."""
    try:
        yield
    except tarfile.FilterError as error:
        raise ValueError(f"{archive} would write outside of its folder: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        name = Path(error.filename).name
        raise ValueError(f"{archive} has a file in a folder's place, at or above {name!r}") from error
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and not _is_of_content(error):
            raise
        raise ValueError(f"{archive} is cut short, or not an archive ({error})") from error


def _is_of_content(error: OSError) -> bool:
    """Return whether an error comes from an archive's content; EINVAL is of a place before its beginning."""
    return error.errno is None or (error.errno == errno.EINVAL and error.filename is None)


_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error),
    *(EOFError, NotImplementedError, OverflowError, struct.error, UnicodeDecodeError),
)


def check_name(archive: Path, member: tarfile.TarInfo) -> None:
    """Raise ValueError for a file without a name, and for a name that no file can have."""
    if "\0" in member.name + member.linkname or not (_path(member.name).parts or member.isdir()):
        raise ValueError(f"{archive} is damaged: a member has the name {member.name!r}")


def is_zip(archive: Path) -> bool:
    """Return whether it is a zip; a tar may end with one as a member, which is_zipfile would find."""
    return zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive)


def check_end(archive: Path, tar: tarfile.TarFile) -> None:
    """Raise ReadError or ValueError if the members that were read are not all that the archive has."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    # tarfile also takes a truncated or damaged header for the end.
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it does not end like a tar")
    is_new = True
    while rest := file.read(2**20):  # as far as the checksum, if it is compressed
        used = rest.lstrip(tarfile.NUL)
        if used and is_new:
            is_new = False
            first = (len(rest) - len(used)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            if _is_header(rest[first : first + tarfile.BLOCKSIZE]):
                raise ValueError(
                    f"{archive} has a second archive behind the first: expected one; "
                    "`tar --ignore-zeros` unpacks both"
                )


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _untar(archive: Path, folder: Path, total: Total) -> None:
    seen: set[int] = set()
    names: set[PurePosixPath] = set()
    links: set[PurePosixPath] = set()

    def kept(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if member.offset not in seen:  # tarfile asks again about a file that it copies in place of a link
            seen.add(member.offset)
            check_name(archive, member)
            total.add(member.name, member.size)
            name = _path(member.name)
            target = _path(member.linkname) if member.islnk() else None
            if links and (behind := links & {name, *name.parents, *(target.parents if target else ())}):
                raise ValueError(f"{archive}: {member.name!r} lies behind the link {str(behind.pop())!r}")
            if target and target not in names:
                raise ValueError(
                    f"{archive}: {member.name!r} is a link to {member.linkname!r}, which is not before it"
                )
            (links if member.issym() or target else names).add(name)
        return tarfile.data_filter(member, path)  # no .., links out, devices; absolute names become relative

    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter=kept)
        check_end(archive, tar)


def _path(name: str) -> PurePosixPath:
    return PurePosixPath(name.lstrip("/"))


def _unzip(archive: Path, folder: Path, total: Total) -> None:
    with zipfile.ZipFile(archive) as parts:
        found = parts.infolist()
        links = {part: None for part in found if _check_part(archive, part, total)}
        for part in found:
            if part not in links and _path(part.filename).parts:  # else it is the folder itself
                parts.extract(part, folder)
        for part in links:  # last, so that nothing is written through them
            path, target = folder / part.filename, os.fsdecode(parts.read(part))
            if os.path.lexists(path) or not _is_inside(path.parent, folder):
                raise ValueError(
                    f"{archive}: {part.filename!r} is a link, and lies at or behind something else"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(target, path)
        for part in links:
            if not _is_inside(folder / part.filename, folder):
                raise ValueError(f"{archive} would link outside of its folder: {part.filename!r}")


def _check_part(archive: Path, part: zipfile.ZipInfo, total: Total) -> bool:
    """Return whether a part of a zip is a link; raise ValueError for what is not to be unpacked."""
    name = part.filename
    path = PurePosixPath(name.replace("\\", "/"))
    if not name:
        raise ValueError(f"{archive} is damaged: a member has the name {name!r}")
    if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
        raise ValueError(f"{archive} would write outside of its folder: {name!r}")
    if part.flag_bits & 1:
        raise ValueError(f"{archive} is encrypted ({name!r}): expected an archive without a password")
    total.add(name, part.file_size)
    kind = stat.S_IFMT(part.external_attr >> 16) if part.create_system in _UNIX else 0
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise ValueError(f"{archive}: {name!r} is a special file: expected files, folders and links")
    return kind == stat.S_IFLNK


_UNIX = (3, 19)  # Unix and macOS, as create_system of a zip's parts


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
