"""The tables, the page and the chart of `benchmarks/peers.py`, made of its results."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from minilearn.plot import new_figure

UNITS = {"loop": "us a step", "fashion": "s in all"}
ACCURACIES = {"loop": "accuracy in training", "fashion": "eval accuracy"}
COLORS = {"minilearn": "tab:orange", "usual": "tab:gray", "in-memory": "tab:gray"}
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a number, so that no line goes through it
WIDE = 8.0  # from this spread of the ratios on, the axis is logarithmic

INTRO = """\
# minilearn beside other frameworks

The same models, data, optimizer, schedule and metrics in each, measured by `benchmarks/peers.py`. **loop** is
what a step costs: a 784-32-10 MLP, batches of 64 that are ready in memory, AdamW under OneCycleLR, loss and
accuracy tracked; from the start of an epoch to that of the next in the middle of a fit, so that what a fit
sets up once is not in it.
{fashion}
Each time is the median of rounds in which all have their turn, each in a process of its own, after imports
and a warm-up; "x usual" is the median of the ratios to the usual loop in the same round. That loop is the one
of most tutorials: a part of minilearn's gain on it is that AdamW is fused where it can be (as in the HF
Trainer), which others leave to their users. A loop by hand with minilearn's settings is in
`benchmarks/overhead.py`.
"""

FASHION = """
**fashion** is document 003's experiment, from files on disk to a trained model: a small CNN on Fashion-MNIST,
batches of 512, AdamW under OneCycleLR up to 5e-2, each epoch with its validation; each framework has a
loader of its own docs, and much of the difference is that loader's. Where it has workers, their number is the
quicker of none and one for each core.
"""


def figures(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each framework, quickest first: its median, extremes, ratio and accuracy."""
    usual = table["rows"]["usual"]["times"]
    rows = []
    for name, row in table["rows"].items():
        times = row["times"]
        rows.append(
            {
                "name": name,
                "title": row["title"],
                "version": row["version"],
                "median": statistics.median(times),
                "spread": (min(times), max(times)),
                "ratio": statistics.median(a / b for a, b in zip(times, usual, strict=True)),
                "accuracy": statistics.median(row["accuracies"]),
                "data": row.get("data", ""),
            }
        )
    return sorted(rows, key=lambda row: row["ratio"])


def heading(table: dict[str, Any]) -> str:
    """Return what was measured, and how often."""
    part = "epochs of {} steps" if table["workload"] == "loop" else "{} epochs"
    return f"{table['workload']}, {table['device']}: {part.format(table['n'])}, {table['rounds']} rounds"


def text_of(table: dict[str, Any]) -> str:
    """Return a table for the terminal."""
    lines = [f"{heading(table)}, torch {table['torch']}, {table['machine']}"]
    for row in figures(table):
        low, high = row["spread"]
        line = f"  {row['title']:30} {row['version']:8} {row['median']:8.1f} {UNITS[table['workload']]}"
        line += f"  (min {low:.1f}, max {high:.1f})  x {row['ratio']:5.2f}  accuracy {row['accuracy']:.4f}"
        lines.append(line)
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """Return the page of the docs, as markdown."""
    tables = results["tables"]
    machines = dict.fromkeys(
        f"{table['device']}; {table['machine']}; torch {table['torch']}, python {table['python']}"
        for table in tables
    )
    commands = dict.fromkeys(table["command"] for table in tables)
    has_fashion = any(table["workload"] == "fashion" for table in tables)
    parts = [
        INTRO.format(fashion=FASHION if has_fashion else ""),
        "Measured on: " + " / ".join(machines) + ".\n",
    ]
    parts += ["".join(f"    {command}\n" for command in commands)]
    parts += ["![Times of each framework, as multiples of the usual loop's](peers.png)\n"]
    parts += [f"## {heading(table)}\n\n{markdown_of(table)}" for table in tables]
    return "\n".join([*parts, f"## How each was set up\n\n{settings_of(tables)}"])


def markdown_of(table: dict[str, Any]) -> str:
    """Return a table as markdown."""
    unit, accuracy = UNITS[table["workload"]], ACCURACIES[table["workload"]]
    heads = ["", "version", unit, "min, max", "x usual", accuracy]
    heads += ["data"] if table["workload"] == "fashion" else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in figures(table):
        title = f"**{row['title']}**" if row["name"] == "minilearn" else row["title"]
        low, high = row["spread"]
        cells = [title, row["version"], f"{row['median']:.1f}", f"{low:.1f}, {high:.1f}"]
        cells += [f"{row['ratio']:.2f}", f"{row['accuracy']:.4f}"]
        cells += [row["data"]] if table["workload"] == "fashion" else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def settings_of(tables: list[dict[str, Any]]) -> str:
    """Return the list of settings: of each framework, for each workload."""
    found: dict[str, dict[str, str]] = {}
    for table in tables:
        for row in table["rows"].values():
            found.setdefault(row["title"], {})[table["workload"]] = row["settings"]
    lines = []
    for title, settings in found.items():
        lines.append(f"- **{title}**")
        lines += [f"  - {workload}: {text}" for workload, text in settings.items()]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any]) -> Any:
    """Return the chart: a row of panels for each device, a bar for each framework's ratio to usual."""
    devices = list(dict.fromkeys(table["device"] for table in results["tables"]))
    workloads = [w for w in UNITS if any(table["workload"] == w for table in results["tables"])]
    figure, axes = new_figure(len(devices), len(workloads), 6.4, 4.2)
    for ax in axes.flat:
        ax.axis("off")
    for table in results["tables"]:
        ax = axes[devices.index(table["device"])][workloads.index(table["workload"])]
        ax.axis("on")
        draw_table(ax, table)
    return figure


def draw_table(ax: Any, table: dict[str, Any]) -> None:
    """Draw the bars of a table, the quickest on top."""
    rows = figures(table)[::-1]
    ratios = [row["ratio"] for row in rows]
    is_log = max(ratios) / min(ratios) >= WIDE
    # There is no 0 on a logarithmic axis: there, bars begin at 1, the usual loop, and go either way.
    start = 1.0 if is_log else 0.0
    colors = [COLORS.get(row["name"], "tab:blue") for row in rows]
    ax.barh([row["title"] for row in rows], [ratio - start for ratio in ratios], left=start, color=colors)
    if is_log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(min(ratios) / 1.2, max(ratios) * 2.2)  # with room for what stands beside the bars
    else:
        ax.set_xlim(0, max(ratios) * 1.4)
    for y, row in enumerate(rows):
        said = f"{row['ratio']:.2f}  ({row['median']:.{0 if table['workload'] == 'loop' else 1}f})"
        place = {"xy": (max(row["ratio"], start), y), "xytext": (5, 0), "textcoords": "offset points"}
        ax.annotate(said, va="center", fontsize=8, bbox=BEHIND, **place)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["name"] == "minilearn" else "normal")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_title(f"{table['workload']}, {table['device']}")
    ax.set_xlabel(f"x usual{', logarithmic' if is_log else ''}  (in brackets: {UNITS[table['workload']]})")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
