"""The tables, the page and the chart of `benchmarks/peers.py`, made from its results."""

from __future__ import annotations

import statistics
import textwrap
from typing import Any

from harness import spread_of
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from minilearn.arguments import counted
from minilearn.plot import new_figure

UNITS = {"loop": "us a step", "fashion": "s in all"}
ACCURACIES = {"loop": "accuracy in training", "fashion": "eval accuracy"}
BY_HAND = ("usual", "in-memory")  # rows that are not frameworks
COLORS = {"minilearn": "tab:orange", "usual": "tab:gray", "in-memory": "tab:gray"}
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # so that no line crosses a number
WIDE = 8.0  # from this spread of the ratios on, the axis is logarithmic

INTRO = """\
# minilearn beside other frameworks

Each framework trains the same models on the same data, with the same optimizer, schedule and metrics;
`benchmarks/peers.py` measures them. **loop** is the cost of a step: a 784-32-10 MLP, batches of 64 that are
ready in memory, AdamW under OneCycleLR, loss and accuracy tracked. It is timed from the start of an epoch to
the start of the next, during a fit, so that what a fit sets up once is not in it.
{fashion}
In each round all frameworks take a turn, each in a new process, after imports and a warm-up. A time is the
median of the rounds, with minimum and maximum. "x usual" is the ratio to the time of the usual loop in the
same round: the median of the rounds' ratios, with minimum and maximum. A median of ratios is not the ratio of
the medians: a machine that is slow for a whole round changes the times, but hardly the ratios. Rows are in
the order of "x usual". If the ranges of two rows overlap, their order does not show that one is faster.

The usual loop is that of most tutorials. Part of minilearn's gain over it comes from fusing AdamW where
possible (as in the HF Trainer), which others leave to their users. A loop by hand with minilearn's
settings is in `benchmarks/overhead.py`.
"""

FASHION = """
**fashion** is document 003's experiment, from files on disk to a trained model: a small CNN on Fashion-MNIST,
batches of 512, AdamW under OneCycleLR up to 5e-2, each epoch with its validation. Each framework has the
loader of its own docs, and much of the difference comes from that loader: the usual loop is here twice, over
images read one by one and over tensors in memory. Where a loader has workers, their number is the faster of
none and one per core.
"""


def figures(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each framework, the lowest median ratio first.

    Keys:
        time, ratio: {"median", "min", "max"} of the rounds; the ratio is to the usual loop's time in a round.
        ratios: of each round.
        rounds_behind: the number of rounds in which it took more time than minilearn.
        accuracy: the median.
    """
    usual = table["rows"]["usual"]["times"]
    own = table["rows"].get("minilearn", {}).get("times", usual)
    rows = []
    for name, row in table["rows"].items():
        times = row["times"]
        ratios = [a / b for a, b in zip(times, usual, strict=True)]
        rows.append(
            {
                "name": name,
                "title": row["title"],
                "version": row["version"],
                "time": spread_of(times),
                "ratio": spread_of(ratios),
                "ratios": ratios,
                "rounds_behind": sum(a > b for a, b in zip(times, own, strict=True)),
                "accuracy": statistics.median(row["accuracies"]),
                "data": row.get("data", ""),
            }
        )
    return sorted(rows, key=lambda row: row["ratio"]["median"])


def kind(table: dict[str, Any]) -> str:
    """Return the kind of device, for a heading: "CPU, 2 threads", or the name of a GPU."""
    is_cpu = table["device_type"] == "cpu"
    return f"CPU, {counted(table['threads'], 'thread')}" if is_cpu else table["device"]


def heading(table: dict[str, Any]) -> str:
    """Return what was measured, and how often."""
    part = f"epochs of {table['n']} steps" if table["workload"] == "loop" else counted(table["n"], "epoch")
    return f"{table['workload']}, {kind(table)}: {part}, {counted(table['rounds'], 'round')}"


def machine(table: dict[str, Any]) -> str:
    """Return where it was measured."""
    versions = f"torch {table['torch']}, python {table['python']}, minilearn {table['minilearn']}"
    return f"{table['device']}, {counted(table['threads'], 'thread')}; {versions}"


def origin(table: dict[str, Any]) -> str:
    """Return the commit, and the date."""
    changed = table["uncommitted"]
    also = (
        f", with changes in {counted(len(changed), 'file')}" if isinstance(changed, list) and changed else ""
    )
    return f"Commit: {table['commit']}{also}. Date: {table['date']}."


def text_of(table: dict[str, Any]) -> str:
    """Return a table for the terminal."""
    lines = [f"{heading(table)}; {machine(table)}"]
    for row in figures(table):
        time, ratio = row["time"], row["ratio"]
        line = f"  {row['title']:30} {row['version']:8} {time['median']:8.1f} {UNITS[table['workload']]}"
        line += f"  (min {time['min']:.1f}, max {time['max']:.1f})  x {ratio['median']:5.2f}"
        line += f"  (min {ratio['min']:.2f}, max {ratio['max']:.2f})  accuracy {row['accuracy']:.4f}"
        lines.append(line)
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """Return the page of the docs, as markdown."""
    tables = results["tables"]
    has_fashion = any(table["workload"] == "fashion" for table in tables)
    parts = [INTRO.format(fashion=FASHION if has_fashion else "")]
    parts += ["![Ratio of each framework's time to the usual loop's, in each round](peers.png)\n"]
    for table in tables:
        made_by = f"{wrapped(f'Measured on {machine(table)}. {origin(table)}')}\n\n    $ {table['command']}"
        parts += [f"## {heading(table)}\n\n{made_by}\n\n{markdown_of(table)}\n{rounds_of(table)}"]
    return "\n".join([*parts, f"## How each was set up\n\n{settings_of(tables)}"])


def markdown_of(table: dict[str, Any]) -> str:
    """Return a table as markdown."""
    unit, accuracy = UNITS[table["workload"]], ACCURACIES[table["workload"]]
    heads = ["", "version", unit, "min, max", "x usual", "min, max", accuracy]
    heads += ["data"] if table["workload"] == "fashion" else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in figures(table):
        title = f"**{row['title']}**" if row["name"] == "minilearn" else row["title"]
        cells = [title, row["version"]]
        for of, digits in ((row["time"], 1), (row["ratio"], 2)):
            cells += [f"{of['median']:.{digits}f}", f"{of['min']:.{digits}f}, {of['max']:.{digits}f}"]
        cells += [f"{row['accuracy']:.4f}"]
        cells += [row["data"]] if table["workload"] == "fashion" else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def rounds_of(table: dict[str, Any]) -> str:
    """Return in how many rounds minilearn was faster than the others, and which ranges overlap its own.

    Ranges are compared as they are printed: 0.998 and 1 overlap.
    """
    rows = {row["name"]: row for row in figures(table)}
    if (own := rows.pop("minilearn", None)) is None:
        return ""
    titles: dict[int, list[str]] = {}
    for row in rows.values():
        titles.setdefault(row["rounds_behind"], []).append(row["title"])
    each = [f"- {n} of {table['rounds']}: {'; '.join(titles[n])}" for n in sorted(titles, reverse=True)]
    said = "Rounds in which minilearn took less time than:\n\n" + "".join(f"{wrapped(of)}\n" for of in each)
    low, high = (round(own["ratio"][key], 2) for key in ("min", "max"))
    near = [
        row["title"]
        for row in rows.values()
        if round(row["ratio"]["min"], 2) <= high and low <= round(row["ratio"]["max"], 2)
    ]
    ranges = f'Ranges of "x usual" that overlap minilearn\'s: {"; ".join(near) or "none"}.'
    return f"{said}\n{wrapped(ranges)}\n"


def wrapped(text: str) -> str:
    """Return a paragraph, or an item of a list, in lines of the page's length."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 110, subsequent_indent=indent, break_on_hyphens=False)


def settings_of(tables: list[dict[str, Any]]) -> str:
    """Return the list of settings of each framework for each workload."""
    found: dict[str, dict[str, str]] = {}
    for table in tables:
        for row in table["rows"].values():
            found.setdefault(row["title"], {})[table["workload"]] = row["settings"]
    lines = []
    for title, settings in found.items():
        lines.append(f"- **{title}**")
        lines += [f"    - {workload}: {text}" for workload, text in settings.items()]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any]) -> Any:
    """Return the chart: a row of panels for each device, a bar for each framework's ratio to usual."""
    devices = list(dict.fromkeys(kind(table) for table in results["tables"]))
    workloads = [w for w in UNITS if any(table["workload"] == w for table in results["tables"])]
    figure, axes = new_figure(len(devices), len(workloads), 7.2, 4.4)
    for ax in axes.flat:
        ax.axis("off")
    for table in results["tables"]:
        ax = axes[devices.index(kind(table))][workloads.index(table["workload"])]
        ax.axis("on")
        draw_table(ax, table)
    return figure


def draw_table(ax: Any, table: dict[str, Any]) -> None:
    """Draw a bar to the median ratio of each framework, the lowest on top, and a dot for each round."""
    rows = figures(table)[::-1]
    low, high = min(row["ratio"]["min"] for row in rows), max(row["ratio"]["max"] for row in rows)
    is_log = high / low >= WIDE
    # A logarithmic axis has no 0: there, bars begin at 1, the usual loop, and go either way.
    start = 1.0 if is_log else 0.0
    colors = [COLORS.get(row["name"], "tab:blue") for row in rows]
    medians = [row["ratio"]["median"] for row in rows]
    ax.barh([row["title"] for row in rows], [m - start for m in medians], left=start, color=colors)
    if is_log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(low / 1.2, high * 8)  # with room for the numbers next to the bars
    else:
        ax.set_xlim(0, high * 1.45)
    for y, row in enumerate(rows):
        ratio, is_usual = row["ratio"], row["name"] == "usual"
        if not is_usual:  # which is 1 in each round
            ax.plot(
                row["ratios"],
                [y] * len(row["ratios"]),
                "o",
                color="black",
                markersize=4,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
        spread = "" if is_usual else f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
        place = {"xy": (max(ratio["max"], start), y), "xytext": (7, 0), "textcoords": "offset points"}
        ax.annotate(f"{ratio['median']:.2f}{spread}", va="center", fontsize=8, bbox=BEHIND, **place)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["name"] == "minilearn" else "normal")
    ax.axvline(1, color="black", linewidth=0.8, zorder=0.9)  # behind the bars
    ax.set_title(heading(table), fontsize=11)
    scale = ", logarithmic" if is_log else ""
    said = f"bar: median of {counted(table['rounds'], 'round')}; dots: each round; in brackets: min to max"
    ax.set_xlabel(f"time / time of the usual loop in the same round{scale}\n{said}")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
