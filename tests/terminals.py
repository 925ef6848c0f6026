"""A terminal for tests: a pty of the system, and a screen that shows what was written to it."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import rich

_PARTS = re.compile(r"\x1b\[(?P<args>[?\d;]*)(?P<code>[A-Za-z])|(?P<control>[\r\n])|(?P<text>[^\x1b\r\n]+)")


class Screen:
    """What a terminal shows, with all that has scrolled away above it.

    It knows what rich and tqdm write: text, returns, erasing lines, the cursor up, and hiding the cursor.
    """

    def __init__(self, width):
        self.width, self.rows, self.row, self.column = width, [""], 0, 0
        self.is_cursor_hidden = False

    def feed(self, written):
        end = 0
        for part in _PARTS.finditer(written):
            assert part.start() == end, f"unknown to the screen: {written[end : part.start()]!r}"
            end = part.end()
            if part["text"]:
                for character in part["text"]:
                    self._put(character)
            elif part["control"]:
                self._to(self.row + (part["control"] == "\n"), 0 if part["control"] == "\r" else self.column)
            else:
                self._code(part["code"], part["args"])
        assert end == len(written), f"unknown to the screen: {written[end:]!r}"

    def _put(self, character):
        if self.column == self.width:
            self._to(self.row + 1, 0)
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1

    def _to(self, row, column):
        self.row, self.column = max(row, 0), column
        self.rows += [""] * (self.row + 1 - len(self.rows))

    def _code(self, code, args):
        if code == "A":
            self._to(self.row - int(args or 1), self.column)
        elif code == "K":
            assert args in ("", "0", "2"), args
            self.rows[self.row] = "" if args == "2" else self.rows[self.row][: self.column]
        elif args == "?25":
            self.is_cursor_hidden = code == "l"
        else:
            assert code == "m", f"unknown to the screen: {args}{code}"

    @property
    def lines(self):
        """The lines, without those at the end that are empty."""
        return "\n".join(row.rstrip() for row in self.rows).rstrip("\n").split("\n")


class Terminal:
    """Both ends of a pty; what is written to it is read all the time."""

    def __init__(self, width):
        self.width = width
        self._master, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        self._read = b""
        self._thread = threading.Thread(target=self._reads)
        self._thread.start()

    def _reads(self):
        try:
            while chunk := os.read(self._master, 65536):
                self._read += chunk
        except OSError:  # all of the other end is closed
            pass

    def close(self):
        """Close it; return all that was written."""
        os.close(self.end)
        self._thread.join()
        os.close(self._master)
        return self._read.decode()


@contextmanager
def terminal(width, monkeypatch):
    """Make standard output and error a terminal inside a `with`; after it, the screen is complete."""
    used, screen = Terminal(width), Screen(width)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rich, "_console", None)
    with (
        open(os.dup(used.end), "w", encoding="utf-8") as out,
        open(os.dup(used.end), "w", encoding="utf-8") as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        yield screen
    screen.written = used.close()
    screen.feed(screen.written)
