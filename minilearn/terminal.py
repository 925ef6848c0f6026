"""The terminal: whether bars may be drawn there, next to those that others draw.

A script may have a bar of its own around or inside a fit: tqdm's, rich's, or one that it prints. Two that do
not know of each other overwrite each other's lines. So a bar of minilearn is drawn only where there is no
other, and makes way for one that appears.
"""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from .seeding import kept_rng

if TYPE_CHECKING:
    from rich.console import Console

_DRAWS = re.compile(r"\r(?!\n)|\x1b\[\d*A")  # back to the beginning of the line, or up


def default_console() -> Console:
    """Return rich's console of standard output."""
    with kept_rng(devices=False):  # rich draws a number of python's when it is first imported
        from rich import get_console

        return get_console()


def takes_bars(console: Console) -> bool:
    """Whether a console is a terminal in which nobody else draws a bar."""
    if not _is_terminal(console) or bars_of_tqdm():
        return False
    return console is not default_console() or _redirected(console) is None


def _is_terminal(console: Console) -> bool:
    """Whether a console moves a cursor.

    The default console has to be a terminal of the system, because rich also takes a file for one where the
    environment asks for colors (FORCE_COLOR). A console of the user's is what the user says.
    """
    if not console.is_interactive or console.is_jupyter:
        return False
    return console is not default_console() or console.file.isatty()


def _redirected(console: Console) -> IO[str] | None:
    """Return the stream of a live display of rich that is in the console's place; None if there is none."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "rich_proxied_file", None) is console.file:
            return stream
    return None


def bars_of_tqdm() -> list[Any]:
    """Return the bars of tqdm that are in a terminal now."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    return [bar for bar in list(bars) if hasattr(bar, "start_t") and not bar.fp.closed and bar.fp.isatty()]


def print_line(console: Console, parts: Sequence[str], erase: bool = False) -> None:
    """Print a line above the bars of others; in a terminal that is narrower than it, as several.

    Args:
        console: where to.
        parts: of the line, between which it is broken first.
        erase: erase the line of the cursor first, which has a bar that somebody printed.
    """
    is_terminal, file = _is_terminal(console), _redirected(console)
    text = "\n".join(wrapped(parts, console.width)) if is_terminal else "  ".join(parts)
    say("\r\x1b[2K" * (erase and file is None) + text, file or console.file)


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a text above the bars of tqdm, to standard output unless a file is given."""
    bars = bars_of_tqdm()
    for bar in bars:
        bar.clear()
    print(text, file=file, flush=True)
    for bar in bars:
        bar.refresh()


def wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Return parts as lines of at most `width`, broken between parts or after a comma, else between words."""
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    wrap = textwrap.TextWrapper(max(width, 20), subsequent_indent="  ", **options).wrap
    lines, gap = [""], ""
    for part in parts:
        *before, last = part.split(", ")
        for piece in (*(f"{item}," for item in before), last):
            if lines[-1] and len(lines[-1] + gap + piece) > width:
                lines.append(f"  {piece}")
            else:
                lines[-1] += gap + piece
            lines[-1:] = wrap(lines[-1]) or [""]
            gap = " "
        gap = "  "
    return lines


class Shared(io.TextIOBase):
    """Stand in for standard output or error while a bar of minilearn is drawn, until another one is.

    Args:
        proxy: rich's, which prints whole lines above the bar.
        file: what it stands in for.
        make_way: called when somebody else draws; afterwards it writes to the file.
    """

    def __init__(self, proxy: IO[str], file: IO[str], make_way: Callable[[], None]) -> None:
        self._proxy, self.rich_proxied_file, self._make_way = proxy, file, make_way
        self.is_over = False

    @property
    def _to(self) -> IO[str]:
        return self.rich_proxied_file if self.is_over else self._proxy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        """The file's."""
        return getattr(self.rich_proxied_file, "encoding", None)

    def write(self, text: str) -> int:
        """Write a text, and make way if it draws."""
        if not self.is_over and isinstance(text, str) and _DRAWS.search(text):
            self._make_way()
        return self._to.write(text)

    def flush(self) -> None:
        """Flush what was written."""
        self._to.flush()

    def close(self) -> None:
        """Do nothing, also when this is deleted: the file may be closed by then."""

    def fileno(self) -> int:
        """Return the file's."""
        return self.rich_proxied_file.fileno()

    def isatty(self) -> bool:
        """Return the file's."""
        return self.rich_proxied_file.isatty()
