"""OpenPasses: which passes over a loader are being read."""

from __future__ import annotations

import weakref
from typing import Any


class OpenPasses:
    """Know the passes over a loader that are being read.

    A pass is over when it is removed, or when nobody holds it any more: an error, such as one that cancels
    the pass, may hold it for a while. A copy knows none, because a pass cannot be copied.
    """

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Any]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenPasses, ()

    def add(self, one: Any) -> None:
        """Add a pass, or make it the newest again."""
        self.remove(one)
        self._refs.append(weakref.ref(one))

    def remove(self, one: Any) -> None:
        """Remove a pass, if it is there."""
        self._refs = [ref for ref in self._refs if ref() is not None and ref() is not one]

    def newest(self) -> Any:
        """Return the pass that was begun last; None if there is none."""
        return next((one for ref in reversed(self._refs) if (one := ref()) is not None), None)
