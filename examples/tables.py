"""Make the tables of README.md and examples/README.md from the results in examples/results.

Run: python examples/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fashion_mnist_optimizers import PUBLISHED
from report import said

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "examples" / "README.md")
BEST = "one cycle, lr .05, 6 epochs"


def result(name: str) -> dict[str, Any]:
    """Return a committed result."""
    read: dict[str, Any] = json.loads((ROOT / "examples" / "results" / f"{name}.json").read_text())
    return read


def _table(*rows: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def documents() -> str:
    """Return a row for each document: what it claims, what it published, and what came out here."""
    mnist, fashion = result("mnist_optimizers"), result("fashion_mnist_optimizers")
    best = fashion["tables"][BEST][-1]
    annealed = mnist["rows"]["annealed by MultiStepLR"]
    return _table(
        ("document", "experiment", "published", "here: eval accuracy", "n", "script"),
        (
            "002, a tour of optimizers and schedules",
            "MNIST, MLP, SGD annealed in steps, 15 epochs",
            "none",
            said(annealed["accuracy"]),
            str(mnist["n"]),
            "[mnist_optimizers.py](examples/mnist_optimizers.py)",
        ),
        (
            "003, optimizers and schedules from scratch",
            "Fashion-MNIST, CNN, one cycle, 6 epochs",
            f"{PUBLISHED[BEST][-1][2]:.3f}",
            said(best["accuracy"]),
            str(fashion["n"]),
            "[fashion_mnist_optimizers.py](examples/fashion_mnist_optimizers.py)",
        ),
    )


def _ran(found: dict[str, Any]) -> str:
    on = f"{found['threads']} threads ({found['device']}), torch {found['torch']}"
    return f"n = {found['n']}, {found['time_s']:.0f} s in all on {on}; made by\n\n    $ {found['command']}"


def mnist_rows() -> str:
    """Return document 002's experiments: accuracy, loss, epochs and seconds of each."""
    found = result("mnist_optimizers")
    rows = [
        (
            name,
            said(row["accuracy"]),
            said(row["loss"]),
            f"{row['n_epochs']['mean']:.1f}".removesuffix(".0"),
            f"{row['time_s']['mean']:.1f}",
        )
        for name, row in found["rows"].items()
    ]
    table = _table(("experiment", "eval accuracy", "eval loss", "epochs", "seconds a run"), *rows)
    return f"{table}\n\n{_ran(found)}"


def fashion_rows() -> str:
    """Return the last row of each of document 003's tables beside ours."""
    found = result("fashion_mnist_optimizers")
    rows = []
    for name, epochs in found["tables"].items():
        published, value = PUBLISHED[name][-1][2], epochs[-1]["accuracy"]
        rows.append((name, f"{published:.3f}", said(value), f"{value['mean'] - published:+.3f}"))
    table = _table(("experiment", "published", "here: eval accuracy", "difference"), *rows)
    return f"{table}\n\n{_ran(found)}"


def fashion_epochs() -> str:
    """Return document 003's tables whole, each epoch and phase, published (in brackets) beside ours."""
    found = result("fashion_mnist_optimizers")
    parts = []
    for name, epochs in found["tables"].items():
        rows = []
        for row in epochs:
            i = 2 * (row["train"] == "eval")
            accuracy, loss = PUBLISHED[name][row["epoch"]][i : i + 2]
            rows.append(
                (
                    f"{said(row['accuracy'], 3)} ({accuracy:.3f})",
                    f"{said(row['loss'], 3)} ({loss:.3f})",
                    str(row["epoch"]),
                    row["train"],
                )
            )
        parts.append(f"**{name}**\n\n" + _table(("accuracy", "loss", "epoch", "train"), *rows))
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "documents": documents,
    "mnist_optimizers": mnist_rows,
    "fashion_mnist_optimizers": fashion_rows,
    "fashion_mnist_optimizers, epochs": fashion_epochs,
}


def made(text: str) -> str:
    """Return a page's text with each table between its marks made anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    """Run as a script."""
    for page in PAGES:
        page.write_text(made(page.read_text()))


if __name__ == "__main__":
    main()
