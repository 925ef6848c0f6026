"""How objects show themselves in a notebook: HTML, escaped, with no script and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .arguments import shown

_MOST_POINTS = 200  # of a curve
_WIDTH, _HEIGHT = 160, 40  # of a curve, in pixels


def cell(name: str, value: Any) -> str:
    """Return a value of a row of history as text; the name says how many digits. It never fails."""
    if isinstance(value, list):
        return "[" + ", ".join(cell("", item) for item in value) + "]"
    if name in ("time_s", "samples_per_s", "memory_mb") and isinstance(value, int | float):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4f}"
    try:
        return str(value)
    except Exception:  # of a class of the user's
        return shown(value)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as an HTML table, with a column for each name."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    texts = [[cell(name, row[name]) if name in row else "" for name in names] for row in rows]
    return html_table([str(name) for name in names], texts)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain texts, which are escaped. Without a head, the first column is one."""
    lines = ["".join(f"<th>{escape(text)}</th>" for text in head)] if head else []
    for row in rows:
        cells = [f"<td>{escape(text)}</td>" for text in row]
        if not head and cells:
            cells[0] = f"<th style='text-align:left'>{escape(row[0])}</th>"
        lines.append("".join(cells))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Return a table of plain texts as lines, its first `left` columns flush left."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = []
    for line in lines:
        cells = (
            t.ljust(w) if i < left else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))
        )
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)
