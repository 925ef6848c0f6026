"""Write the table of README.md from the results beside the scripts.

Run: python examples/tasks/table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jobs import JOBS

FOLDER = Path(__file__).parent
MARKS = re.compile(r"(<!-- table: jobs -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = (
    "| job | lines | bar | what came out | reached | seconds, and by hand |",
    "|---|---|---|---|---|---|",
)


def number(value: float) -> str:
    """Return a number with three or four digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def said(value: dict[str, Any]) -> str:
    """Return mean and sd as text: "0.88 ± 0.01"."""
    spread = f" ± {value['sd']:.1g}" if value["sd"] else ""
    return f"{number(value['mean'])}{spread}"


def row(name: str, result: dict[str, Any]) -> str:
    """Return a job's row."""
    shown = [f"{key.replace('_', ' ')} {said(result['measures'][key])}" for key in JOBS[name].shown]
    shown += [
        f"by hand: {key.replace('_', ' ')} {said(value)}"
        for key, value in result["by_hand"].items()
        if JOBS[name].beside and key in JOBS[name].shown
    ]
    reached = "no bar" if result["reached"] is None else f"{sum(result['reached'])} of {result['n']}"
    ours, hand = (result[part]["seconds"]["each"] for part in ("measures", "by_hand"))
    n = len(hand)
    ratio = sum(ours[:n]) / sum(hand)
    times = f"{number(sum(ours[:n]) / n)}, {number(sum(hand) / n)}: {ratio:.2f}"
    title = f"[{name}]({name}): {result['job']}"
    cells = (title, result["lines"], result["bar"], ", ".join(shown), reached, times)
    return f"| {' | '.join(map(str, cells))} |"


def table() -> str:
    """Return the table of all jobs that have a result."""
    paths = {name: FOLDER / name / "result.json" for name in JOBS}
    rows = [row(name, json.loads(path.read_text())) for name, path in paths.items() if path.is_file()]
    return "\n".join([*HEAD, *rows]) + "\n"


def page() -> str:
    """Return README.md with the table as it has to be."""
    text = (FOLDER / "README.md").read_text()
    return MARKS.sub(lambda marks: marks[1] + table() + marks[2], text)


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page())
