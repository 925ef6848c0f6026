"""Warn with the line of a script that called minilearn, and not with one of minilearn's own."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent / "_").removesuffix("_")


def warn(text: str) -> None:
    """Warn as from the outermost call into minilearn, such as that of fit."""
    files = []
    frame = sys._getframe()
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back  # type: ignore[assignment]
    level = max(i for i, file in enumerate(files) if file.startswith(_PACKAGE)) + 1
    while level < len(files) and files[level] == contextlib.__file__:  # of a `with` in the script
        level += 1
    warnings.warn(text, stacklevel=level + 1)
