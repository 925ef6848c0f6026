"""Folders whose classes are not split yet: where the classes lie, and which images are for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import groupby
from typing import Any

from .decoding import NoImagesError
from .trees import SUFFIXES, ArchiveTree, FolderTree, Found, find_images, is_image

Tree = FolderTree | ArchiveTree

_OF_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_MOST_NAMES = 4  # of classes, in a message


def finder(half: str, valid: float, parts: tuple[str, str]) -> Callable[[Tree, str], Any]:
    """Return a function that finds one half of the images whose classes lie directly in a folder.

    Args:
        half: "train" or "valid".
        valid: the share of each class that is for validation.
        parts: the folders that a folder has that is split already.
    """

    def find(tree: Tree, part: str) -> tuple[set[str], list[Found]]:
        check_unsplit(tree, valid, parts)
        classes, found = find_images(tree, part, places_of_classes(tree))
        if not found:
            raise NoImagesError(f"{tree.source} has no image in <class>/: expected {', '.join(SUFFIXES)}")
        if classes <= _OF_PARTS:
            raise ValueError(
                f"{tree.source}: the images lie in {named(classes)}, which are names of parts: expected a "
                "folder for each class"
            )
        found.sort(key=lambda image: image[:3])
        by_class = {kind: list(images) for kind, images in groupby(found, lambda image: image.kind)}
        for kind in sorted(classes):
            if (n := len(by_class.get(kind, ()))) < 2:
                what = "one image" if n else "no image"
                raise ValueError(
                    f"{tree.source}: {kind} has {what}: expected two or more of each class, for training and "
                    f"for validation (valid={valid:g})"
                )
        chosen = [for_validation(images, valid) for images in by_class.values()]
        flags = [flag for one in chosen for flag in one]
        return classes, [image for image, flag in zip(found, flags, strict=True) if flag is (half == "valid")]

    return find


def for_validation(images: list[Found], valid: float) -> list[bool]:
    """Return which images of a class are for validation: those whose number is below `valid`.

    If these are none, it is the one of the smallest number; if these are all, the one of the largest is not.
    Adding images moves none from training to validation, unless all of its class had a number below `valid`.
    """
    numbers = [number_of(image) for image in images]
    flags = [number < valid for number in numbers]
    if all(flags) or not any(flags):
        odd = numbers.index(max(numbers) if all(flags) else min(numbers))
        flags[odd] = not flags[odd]
    return flags


def number_of(image: Found) -> float:
    """Return a number from 0 to 1 that is made of an image's class and name, and of nothing else."""
    name = f"{image.kind}/{image.name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64


def check_unsplit(tree: Tree, valid: float, parts: tuple[str, str]) -> None:
    """Raise ValueError for a folder that has classes in one of the parts."""
    for part in parts:
        if any(classes_in(tree, place) for place in tree.places(part)):
            raise ValueError(
                f"{tree.source} is split already, with classes in {part}/; valid={valid:g} splits a folder "
                "whose classes lie directly in it: leave valid out"
            )


def places_of_classes(tree: Tree) -> list[Any]:
    """Return where the classes of an unsplit folder lie: of an archive, the uppermost folder that has some.

    A folder of an archive that has two classes or more goes before one that is above it and has one.
    """
    if isinstance(tree, FolderTree):
        return [tree.source]
    level: list[Any] = [()]
    seen: set[Any] = set()
    single: list[Any] = []
    while level:
        n_classes = [(place, len(classes_in(tree, place))) for place in level]
        several = [place for place, n in n_classes if n > 1]
        if len(several) > 1:
            names = " and ".join(sorted("/".join(place) or "." for place in several))
            raise ValueError(f"{tree.source} has several folders with classes, {names}: expected one")
        if several:
            return several
        single += [place for place, n in n_classes if n]
        seen.update(level)
        below = dict.fromkeys(item.at for place in level for item in tree.folders(place))
        level = [place for place in below if place not in seen]
    return single[:1]


def classes_in(tree: Tree, place: Any) -> list[str]:
    """Return the names of the folders in a folder that have an image directly in them."""
    kinds = tree.folders(place)
    return [kind.name for kind in kinds if any(is_image(item) for item in tree.items(kind.at))]


def advice(tree: Tree, parts: tuple[str, str]) -> str:
    """Return what to do with a folder that has no image in one of the parts, "" if nothing is known."""
    train, valid = parts
    if any(classes_in(tree, place) for place in tree.places(train)):
        if isinstance(tree, ArchiveTree):
            return ""
        return f'. To split {train}/ itself: image_folder("{tree.source / train}", valid=0.2)'
    for place in places_of_classes(tree):
        if classes := set(classes_in(tree, place)):
            if classes <= {*parts, *_OF_PARTS}:
                return f". The images lie in {named(classes)}: expected a folder for each class in them"
            return (
                f". The classes, {named(classes)}, lie directly in it: give valid=0.2, which keeps about a "
                f"fifth of each class for validation, or move them to {train}/ and {valid}/"
            )
        if any(is_image(item) for item in tree.items(place)):
            return ". Images lie directly in it: expected a folder for each class"
    return ""


def named(classes: set[str]) -> str:
    """Return the first names of folders in words."""
    names = [f"{name}/" for name in sorted(classes)]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
