"""Make markdown of docstrings, for the reference: an extension of griffe, which mkdocstrings reads them with.

`Args:` and `Returns:` are griffe's own. The others of docs/style.md (Raises, Source, Runs at, ...) become
paragraphs that begin with the label in bold. Documents are linked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

LABELS = (
    "Raises|Warns|Source|Differs|State|Shapes|Runs at|Reads|Writes|Owns|Momentum|Needs|Keys|Columns|Memory"
)
PAGE = "../documents.md"  # from any page of the reference
LABEL = re.compile(rf"^({LABELS}): *(?=\S|$)", re.MULTILINE)
WITHIN, BOLD = re.compile(rf"(?<=[.;] )({LABELS}|Torch):(?= )"), r"**\1:**"
TITLES = re.findall(r"^## (\d{3}): (.*)$", (Path(__file__).parent / "documents.md").read_text(), re.MULTILINE)


def slug(title: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


ANCHORS = {number: slug(f"{number}: {title}") for number, title in TITLES}


def linked(text: str) -> str:
    """Return text in which the names of documents are links."""

    def link(match: re.Match[str]) -> str:
        return re.sub(r"\d{3}", lambda number: f"[{number[0]}]({PAGE}#{ANCHORS[number[0]]})", match[0])

    return re.sub(r"\b[Dd]ocuments? 00\d(?:(?:,| and| to) 00\d)*", link, text)


def escaped(text: str) -> str:
    """Return text in which <class> is no HTML, "lr: > 0" no quotation, and f(**x), __len__ not bold."""
    text = re.sub(r"(^ *|: )>", r"\1&gt;", text, flags=re.MULTILINE)
    parts = text.split("`")
    for i in range(0, len(parts), 2):  # between them is code
        parts[i] = re.sub(r"<(?=[A-Za-z/])", "&lt;", parts[i])
        parts[i] = re.sub(
            r"(?<!\n    )\*\*|__|(?<!\w)_", lambda found: "".join(f"\\{c}" for c in found[0]), parts[i]
        )
    return "`".join(parts)


def items(below: str) -> list[str]:
    """Return the items of a list, "name: what it is", from the lines below a label; none if it is no list."""
    found = re.split(r"\n(?=    \S)", "\n" + below.rstrip())[1:]
    return [" ".join(item.split()) for item in found] if all(": " in item for item in found) else []


def paragraph(block: str) -> str:
    """Return a line at the margin, with what is indented below it, as markdown."""
    first, _, below = block.partition("\n")
    if first.endswith("::"):
        return f"{linked(escaped(first[:-1]))}\n{below}"  # what is below is code
    label = LABEL.match(first)
    head = f"**{label[1]}:**" if label else first
    if first.endswith(":") and (found := items(below)):
        lines = "\n".join(f"- {linked(escaped(item))}" for item in found)
        return f"\n{head}\n\n{lines}\n"
    if label:
        said = " ".join([first[label.end() :], *(line.strip() for line in below.splitlines())]).strip()
        return f"\n{head} {linked(WITHIN.sub(BOLD, escaped(said)))}\n"
    text, mark, code = block.partition("\n\n    ")
    return linked(escaped(text)) + mark + code


def markdown(text: str) -> str:
    """Return a docstring with labelled paragraphs as markdown."""
    blocks = re.split(r"\n(?=\S)", text)
    own = ("Args:", "Returns:", "Yields:", "Attributes:")  # griffe reads these
    return "\n".join(escaped(block) if block.startswith(own) else paragraph(block) for block in blocks)


class Docstrings(griffe.Extension):
    """Change each docstring when it is read."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Change the docstring of a module, a class, a function or an attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
