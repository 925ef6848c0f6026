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
WITHIN = re.compile(rf"(?<=[.;] )({LABELS}|Torch):(?= )")
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
    """Return text whose names in angle brackets, such as <class>, are not taken for HTML."""
    parts = text.split("`")
    return "`".join(re.sub(r"<(?=[A-Za-z/])", "&lt;", p) if i % 2 == 0 else p for i, p in enumerate(parts))


def markdown(text: str) -> str:
    """Return a docstring with labelled paragraphs as markdown."""
    parts, in_args = [], False
    for block in re.split(r"\n(?=\S)", text):  # a line at the margin, and what is indented below it
        first, _, rest = block.partition("\n")
        label = LABEL.match(first)
        in_args = first in ("Args:", "Returns:", "Yields:", "Attributes:")
        if label and not in_args:
            below = [line.strip() for line in rest.splitlines()]
            if first.rstrip().endswith(":") and not label.string[label.end() :]:  # a list: "name: what it is"
                items = re.split(r"\n(?=    \S)", "\n" + rest)[1:]
                lines = "\n".join(
                    f"- {' '.join(part.strip() for part in item.splitlines())}" for item in items
                )
                block = f"\n**{label[1]}:**\n\n{lines}\n"
            else:
                said = WITHIN.sub(r"**\1:**", " ".join([first[label.end() :], *below]).strip())
                block = f"\n**{label[1]}:** {said}\n"
        elif first.endswith("::"):
            parts.append(f"{linked(escaped(first[:-1]))}\n{rest}")  # what is below is code
            continue
        parts.append(escaped(block) if in_args else linked(escaped(block)))
    return "\n".join(parts)


class Docstrings(griffe.Extension):
    """Change each docstring when it is read."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Change the docstring of a module, a class, a function or an attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
