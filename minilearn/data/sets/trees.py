"""What lies in a folder or an archive of images: classes and their images, found by the same rules."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from unicodedata import normalize

from ...terminal import default_console, takes_bars
from .archives import Total, check_end, check_name, is_zip, naming_damage

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
_MOST_BYTES = 2 * 2**30  # of an image's file; PIL refuses above 179 million pixels, 1.1 GB of 6 bytes each
_MOST_LINKS = 40  # from one name, as in Linux
_FOLDER, _FILE = "a folder", "a file"


class Item(NamedTuple):
    """What a name in a folder or an archive leads to, through links."""

    name: str
    what: str  # _FOLDER, _FILE, or in words what else
    at: Any  # where the tree finds it
    size: int = 0  # of a file, in bytes


class Found(NamedTuple):
    """An image: its class and its name in NFC, its path in the part and in the source, and where it is."""

    kind: str
    name: str
    path: str
    at: Any
    file: str


def nfc(name: str) -> str:
    """Return the one spelling of a name: a Mac writes é as two characters, others as one."""
    return normalize("NFC", name)


def under(part: str, name: str) -> str:
    """Return a name with its part, if that has a name."""
    return f"{part}/{name}" if part else name


def find_images(
    tree: FolderTree | ArchiveTree, part: str, places: Sequence[Any] | None = None
) -> tuple[set[str], list[Found]]:
    """Return the classes of a part and its images.

    Names that begin with a dot and files beside the classes are left out.

    Args:
        part: the name of the folder that has the classes; "" for the whole folder.
        places: where the tree finds that folder. None: where it finds the part.

    Raises: ValueError, with the name, for a link that leads nowhere, for a folder, device or other file among
        the images, and for a file that is too large; OSError for a folder that cannot be read.
    """
    classes, images = set(), []
    found: Sequence[Any] = tree.places(part) if places is None else places
    for place in found:
        above = tree.path_to(place)
        for kind in tree.items(place):
            if kind.what == _FILE:
                continue
            if kind.what != _FOLDER:
                raise ValueError(
                    f"{tree.source}: {under(part, kind.name)} is {kind.what}: expected a class's folder"
                )
            classes.add(nfc(kind.name))
            for item in tree.items(kind.at):
                path = f"{kind.name}/{item.name}"
                _check_image(f"{tree.source}: {under(part, path)}", item)
                images.append(Found(nfc(kind.name), nfc(item.name), path, item.at, under(above, path)))
    return classes, images


def is_image(item: Item) -> bool:
    """Whether something is a file with the suffix of an image."""
    return item.what == _FILE and Path(item.name).suffix.lower() in SUFFIXES


def _check_image(name: str, item: Item) -> None:
    if not is_image(item):
        what = "" if item.what == _FILE else f", but {item.what}"
        raise ValueError(
            f"{name} is not an image{what}: expected {', '.join(SUFFIXES)}; move it out of the folder"
        )
    if item.size > _MOST_BYTES:
        raise ValueError(f"{name} has {item.size:,} bytes: expected an image of at most {_MOST_BYTES:,}")


def folders_of(source: Path, part: str) -> list[Path]:
    """Return the folder of a part in a folder, in each spelling that is there; of "", the folder itself."""
    if not part:
        return [source] if source.is_dir() else []
    path = source / part
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    found = {path, *(path.parent / name for name in names if nfc(name) == nfc(path.name))}
    # A Mac finds a folder by both spellings.
    return sorted(
        {
            (place.stat().st_dev, place.stat().st_ino): place for place in sorted(found) if place.is_dir()
        }.values()
    )


class FolderTree:
    """A folder of images on disk."""

    def __init__(self, source: Path, title: str, console: Any) -> None:
        self.source, self._title, self._console = source, title, console

    def places(self, part: str) -> list[Path]:
        """Return the folder of a part, in each spelling that is there."""
        return folders_of(self.source, part)

    def path_to(self, place: Path) -> str:
        """Return the path of a folder in the source, or the whole one of a folder elsewhere."""
        is_inside = place.is_relative_to(self.source)
        path = place.relative_to(self.source).as_posix() if is_inside else str(place)
        return "" if path == "." else path

    def items(self, place: Any) -> Iterator[Item]:
        """Give what is in a folder, in the order of the names."""
        for path in sorted(Path(entry) for entry in os.scandir(place)):
            if not path.name.startswith("."):
                yield _item_on_disk(path)

    def folders(self, place: Any) -> list[Item]:
        """Return the folders in a folder."""
        return [item for item in self.items(place) if item.what == _FOLDER]

    def read(self, images: Sequence[Found]) -> Iterator[tuple[Found, bytes]]:
        """Give each image with the content of its file."""
        from rich.progress import track

        console = self._console
        for image in images if console is None else track(images, self._title, console=console):
            yield image, image.at.read_bytes()


def _item_on_disk(path: Path) -> Item:
    try:
        found = path.stat()
    except OSError as error:
        if not path.is_symlink():
            raise
        what = f"a link to {os.readlink(path)}, which cannot be followed ({error.strerror})"
        return Item(path.name, what, path)
    if stat.S_ISDIR(found.st_mode):
        return Item(path.name, _FOLDER, path)
    if stat.S_ISREG(found.st_mode):
        return Item(path.name, _FILE, path, found.st_size)
    return Item(path.name, "a named pipe, a socket or a device", path)


_Node = dict[str, Any]  # of a folder: name -> the same, or a member that is none
_Steps = tuple[str, ...]  # of a path


class ArchiveTree:
    """The members of a .tar, compressed or not, as the folders and files that unpacking it would give.

    Links are followed inside the archive. Of two files of one name the last counts.

    Raises: ValueError, with the archive's name, for one that is damaged or unpacks to far more than its own
        size, and for a member that would lie outside of the folder, or inside of a file or a link.
    """

    def __init__(self, source: Path, tar: tarfile.TarFile) -> None:
        self.source, self._tar = source, tar
        self._root: _Node = {}
        total = Total(source)
        for member in tar:
            check_name(source, member)
            total.add(member.name, member.size)
            self._put(member)
        check_end(source, tar)

    def _put(self, member: tarfile.TarInfo) -> None:
        steps, folder = _steps(member.name), self._root
        if ".." in steps:
            raise ValueError(f"{self.source}: {member.name!r} would lie outside of its folder")
        if not steps:
            return  # the folder itself
        for step in steps[:-1]:
            folder = folder.setdefault(step, {})
            if not isinstance(folder, dict):
                raise ValueError(f"{self.source}: {member.name!r} lies inside of {step!r}, a file or a link")
        before = folder.setdefault(steps[-1], {} if member.isdir() else member)
        if isinstance(before, dict) is not member.isdir():
            raise ValueError(
                f"{self.source}: {member.name!r} is there twice: as a folder, and as something else"
            )
        if not member.isdir():
            folder[steps[-1]] = member

    def _follow(self, steps: _Steps) -> tuple[_Steps, Any]:
        """Return a path without links, and what is there: a folder, a member, or None."""
        path: list[tuple[str, Any]] = [("", self._root)]
        to_go, n_links = list(reversed(steps)), 0
        while to_go:
            step = to_go.pop()
            if step == "..":
                path.pop()
                if not path:
                    return (), None  # outside
                continue
            folder = path[-1][1]
            node = folder.get(step) if isinstance(folder, dict) else None
            if isinstance(node, tarfile.TarInfo) and (node.issym() or node.islnk()):
                n_links += 1
                if n_links > _MOST_LINKS or (node.issym() and node.linkname.startswith("/")):
                    return (), None
                del path[len(path) if node.issym() else 1 :]  # a hard link's path begins at the top
                to_go += reversed(_steps(node.linkname))
                continue
            if node is None:
                return (), None
            path.append((step, node))
        return tuple(name for name, _ in path[1:]), path[-1][1]

    def places(self, part: str) -> list[_Steps]:
        """Return the folder of a part that has classes with files: the uppermost, in each spelling."""
        end = tuple(nfc(step) for step in _steps(part))
        found: list[tuple[_Steps, _Steps]] = []  # the place, and without links
        to_see: list[_Steps] = [()]
        while to_see:
            place = to_see.pop()
            if tuple(nfc(step) for step in place[-len(end) :]) == end:
                real, node = self._follow(place)
                if isinstance(node, dict) and self._has_classes(real):
                    found.append((place, real))
            node = self._node(place)
            if isinstance(node, dict):
                to_see += [(*place, name) for name in node]
        plain = [one for one in found if not any(step.startswith(".") for step in one[0])] or found
        depth = min((len(place) for place, _ in plain), default=0)
        upper = [one for one in plain if len(one[0]) == depth]
        if len({nfc("/".join(place)) for place, _ in upper}) > 1:
            names = " and ".join(sorted("/".join(place) for place, _ in upper))
            raise ValueError(f"{self.source} has several folders {part}, {names}: expected one")
        return sorted({real for _, real in upper})

    def path_to(self, place: _Steps) -> str:
        """Return the path of a folder in the archive."""
        return "/".join(place)

    def _node(self, place: _Steps) -> Any:
        node: Any = self._root
        for step in place:
            node = node[step]
        return node

    def _has_classes(self, place: _Steps) -> bool:
        return any(item.what != _FOLDER for kind in self.folders(place) for item in self.items(kind.at))

    def folders(self, place: Any) -> list[Item]:
        """Return the folders in a folder."""
        return [item for item in self.items(place) if item.what == _FOLDER]

    def items(self, place: Any) -> Iterator[Item]:
        """Give what is in a folder, in the order of the names."""
        for name in sorted(self._node(place)):
            if name.startswith("."):
                continue
            at, node = self._follow((*place, name))
            if isinstance(node, dict):
                yield Item(name, _FOLDER, at)
            elif node is None:
                link = self._node((*place, name)).linkname
                yield Item(name, f"a link to {link}, which is not in the archive", None)
            elif node.isfile():
                yield Item(name, _FILE, node, node.size)
            else:
                yield Item(name, "a named pipe or a device", None)

    def read(self, images: Sequence[Found]) -> Iterator[tuple[Found, bytes]]:
        """Give each image with the content of its file."""
        by_place = sorted(images, key=lambda image: image.at.offset)
        for _, same in groupby(by_place, lambda image: image.at.offset):
            of_one_file = list(same)  # several, if links lead to it
            content = self._tar.extractfile(of_one_file[0].at)
            assert content is not None
            data = content.read()
            yield from ((image, data) for image in of_one_file)


def _steps(path: str) -> _Steps:
    return tuple(step for step in path.split("/") if step not in ("", "."))


def _opened(source: Path, title: str, console: Any) -> AbstractContextManager[BinaryIO]:
    """Open a file; with a console, a bar there shows how far it is read."""
    if console is None:
        return source.open("rb")
    import rich.progress

    return rich.progress.open(source, "rb", description=title, console=console)


@contextmanager
def tree_of(source: Path, part: str) -> Iterator[FolderTree | ArchiveTree]:
    """Give what lies in a folder or an archive, inside a `with`.

    A bar in a terminal or a notebook shows how far it is read.

    Raises: ValueError, with its name, for what is neither.
    """
    shown = default_console()
    console = shown if takes_bars(shown) or shown.is_jupyter else None
    title = f"{source.name} {part}".strip()
    if source.is_dir():
        yield FolderTree(source, title, console)
    elif not source.is_file():
        raise ValueError(f"{source}: expected a folder or an archive, not a named pipe or a device")
    elif is_zip(source):
        raise ValueError(
            f"{source} is a zip: expected a folder or a .tar; unpack it with minilearn.data.unpack"
        )
    else:
        with (
            naming_damage(source),
            _opened(source, title, console) as file,
            tarfile.open(fileobj=file) as tar,
        ):
            yield ArchiveTree(source, tar)
