"""Make the measured parts of docs/measured.md, gpu.md and many_gpus.md and of README.md from docs/measured.

Marks in a page say where: between `<!-- result: overhead -->` and `<!-- end -->` come the command of
docs/measured/overhead.json and its output.

Run: python benchmarks/measured.py
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
PAGES = ("measured.md", "gpu.md", "many_gpus.md", "../README.md")  # from docs
# Each result, and the command that makes it, to be run in the root of the repository.
COMMANDS = {
    "overhead": "python benchmarks/overhead.py --out docs/measured",
    "optimizers": "python benchmarks/optimizers.py --out docs/measured",
    "speed_tools": "python benchmarks/speed_tools.py --rounds 5 --steps 3 --out docs/measured",
    "ninety": "python benchmarks/ninety.py --runs 3 --out docs/measured",
    "kill": "python benchmarks/kill.py --kills 200 --out docs/measured",
    "restarts": "python benchmarks/restarts.py --kills 20 --out docs/measured",
    "checkpoint": "python benchmarks/checkpoint.py --out docs/measured",
    "pytorch_optimizers": "python benchmarks/pytorch_optimizers.py --out docs/measured",
    "distributed": "python benchmarks/distributed.py --rounds 3 --out docs/measured",
    "gpu/gpu": "python benchmarks/gpu.py cifar10 --peers usual minilearn lightning fastai ignite accelerate "
    "--out docs/measured/gpu --work runs/gpu/work --minutes 2",  # the last call, after cifar10 and imagenette
    "gpu/overhead": "python benchmarks/overhead.py --device cuda --out docs/measured/gpu",
    "gpu/speed_tools": "python benchmarks/speed_tools.py --device cuda --out docs/measured/gpu --steps 20",
}


def module(name: str) -> Any:
    """Import a benchmark, wherever this file is imported from."""
    for folder in (FOLDER, FOLDER / "peers"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def result(name: str, docs: Path = DOCS) -> dict[str, Any]:
    """Return a result.

    Raises:
        FileNotFoundError: there is none; the message has the command that makes it.
    """
    path = docs / "measured" / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. It is made by: {COMMANDS[name]}")
    found: dict[str, Any] = json.loads(path.read_text())
    if found["benchmark"] != name.rpartition("/")[2]:
        raise ValueError(f"{path}: expected a result of {name}, and found one of {found['benchmark']}")
    return found


def block(name: str, docs: Path = DOCS) -> str:
    """Return a result as a block of code: its command and its output."""
    found = result(name, docs)
    lines = [f"$ {found['command']}", *module(found["benchmark"]).said(found).splitlines()]
    return "\n".join(f"    {line}" for line in lines)


def made(text: str, docs: Path = DOCS) -> str:
    """Return a page's text with each result and the plan between its marks made again."""

    def between(match: re.Match[str]) -> str:
        name = match[1].removeprefix("result: ")
        if name in TEXTS:
            said = TEXTS[name](docs)
        else:
            said = module("distributed").plans() if name == "plan" else block(name, docs)
        return f"<!-- {match[1]} -->\n{said}\n<!-- end -->"

    return re.sub(r"<!-- (plan|result: [\w/]+) -->\n.*?<!-- end -->", between, text, flags=re.DOTALL)


# The most important ones -----------------------------------------------------------------------------

ABOUT = ("command", "device", "threads", "torch", "rounds")


def headline(docs: Path = DOCS) -> dict[str, dict[str, Any]]:
    """Return the numbers of the first table of docs/measured.md, of three results.

    Keys:
        overhead: `ABOUT`, and for "same" and "usual" the ratio of minilearn's time to that loop's. A ratio is
            {"median", "min", "max"} of the rounds. If a GPU was measured too, those of the CPU.
        kill: `ABOUT` without rounds, and numbers of "kills", "runs", "torn" files, and "different" runs.
        peers: for "loop" and "fashion" each: `ABOUT`, and for "minilearn" and "next", the fastest of the
            other frameworks, {"title", "ratio"}: the ratio to the usual loop's time. "next" also has
            "rounds_behind", the number of rounds in which it took more time than minilearn.
    """
    overhead, kill = result("overhead", docs), result("kill", docs)
    table = overhead["tables"][0]
    ratios = module("overhead").ratios(table)
    spread_of = module("harness").spread_of
    totals = module("kill").totals(kill)
    return {
        "overhead": _about(overhead)
        | {"device": table["device"]}
        | {name: spread_of(each) for name, each in ratios.items()},
        "kill": _about(kill) | {key: totals[key] for key in ("kills", "runs", "torn", "different")},
        "peers": {workload: _peers(workload, docs) for workload in ("loop", "fashion")},
    }


def headline_text(docs: Path = DOCS) -> str:
    """Return three figures as a table: a step, other frameworks, kills; each with its command and device."""
    found = headline(docs)
    step, kill, loop = found["overhead"], found["kill"], found["peers"]["loop"]
    same, usual = (
        f"{step[name]['median']:.2f} ({step[name]['min']:.2f} to {step[name]['max']:.2f})"
        for name in ("same", "usual")
    )
    own, following = loop["minilearn"], loop["next"]
    slower = f"slower in {following['rounds_behind']} of {loop['rounds']} rounds"
    rows = (
        ("what", "figure", "on", "command"),
        (
            "a training step of a small MLP",
            f"{same} of the time of a loop by hand that does the same; {usual} of the loop of most tutorials "
            f"(median and range of {step['rounds']} rounds)",
            *_place(step),
        ),
        (
            "a step beside other frameworks",
            f"{own['ratio']['median']:.2f} of the loop of most tutorials; next: {following['title']}, "
            f"{following['ratio']['median']:.2f}, {slower}",
            *_place(loop),
        ),
        (
            "a training killed at random moments, and resumed",
            f"{kill['kills']} kills: {kill['torn']} torn files; {kill['different']} of {kill['runs']} runs "
            "differ in any bit from one that was never stopped",
            *_place(kill),
        ),
    )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _place(found: dict[str, Any]) -> tuple[str, str]:
    return f"{found['device']}, torch {found['torch']}", f"`{found['command']}`"


def _about(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ABOUT if key in found}


def _peers(workload: str, docs: Path) -> dict[str, Any]:
    table = _peers_table(workload, docs)
    page = module("page")
    rows = {row["name"]: row for row in page.figures(table) if row["name"] not in page.BY_HAND}
    own = rows.pop("minilearn")
    quickest = next(iter(rows.values()))
    keys = ("title", "ratio")
    following = {key: quickest[key] for key in (*keys, "rounds_behind")}
    return _about(table) | {"minilearn": {key: own[key] for key in keys}, "next": following}


def _peers_table(workload: str, docs: Path) -> dict[str, Any]:
    tables = json.loads((docs / "peers.json").read_text())["tables"]
    found: dict[str, Any] = next(table for table in tables if table["workload"] == workload)
    return found


def n_lines(path: Path) -> int:
    """Return how many lines of a framework's file are code: no comment, no docstring, no SETTINGS."""
    text = path.read_text()
    code = {i for i, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_settings = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS"
        if isinstance(node, ast.stmt) and (is_text or is_settings):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def compared(docs: Path = DOCS) -> dict[str, Any]:
    """Return what README compares: times of a step by framework, lines of code by framework, and kills.

    Keys:
        ratio: title -> the ratio of a step's time to the usual loop's, the lowest first.
        rounds: in how many it was measured.
        lines: title -> the lines of its file in benchmarks/peers, the fewest first, of those that do both
            workloads and read the data in the way of their docs.
        kill: as in `headline`.
    """
    page, peers = module("page"), module("peers").PEERS
    table = _peers_table("loop", docs)
    lines = {
        peer.title: n_lines(FOLDER / "peers" / f"{peer.module}.py")
        for peer in peers.values()
        if len(peer.workloads) == 2
    }
    return {
        "ratio": {row["title"]: row["ratio"]["median"] for row in page.figures(table)},
        "rounds": table["rounds"],
        "lines": dict(sorted(lines.items(), key=lambda item: item[1])),
        "kill": headline(docs)["kill"],
    }


def compared_text(docs: Path = DOCS) -> str:
    """Return README's comparison: a number each for speed, lines and exact resume."""
    found = compared(docs)
    ratio, lines, kill = dict(found["ratio"]), dict(found["lines"]), found["kill"]
    usual = module("peers").PEERS["usual"].title
    del ratio[usual]
    own, by_hand = lines.pop("minilearn"), lines.pop(usual)
    others = "; ".join(f"{title} {value:.2f}" for title, value in ratio.items() if title != "minilearn")
    fewest, most = next(iter(lines.items())), list(lines.items())[-1]
    return "\n".join(
        (
            f"- **Speed.** A step of a small network takes {ratio['minilearn']:.2f} of the time that the "
            f"loop of most tutorials needs (the median of {found['rounds']} rounds). With others: {others}.",
            f"- **Lines.** The two trainings of `benchmarks/peers` are {own} lines of code with minilearn, "
            f"{by_hand} by hand, and {fewest[1]} ({fewest[0]}) to {most[1]} ({most[0]}) with others.",
            f"- **Exact resume.** {kill['runs']} trainings were killed {kill['kills']} times in all, at "
            f"random moments, also while a checkpoint was written, and resumed: {kill['torn']} files were "
            f"torn, and {kill['different']} of the {kill['runs']} differ in any bit from one that was never "
            "stopped.",
        )
    )


TEXTS: dict[str, Callable[[Path], str]] = {"headline": headline_text, "compared": compared_text}


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help="has the pages and measured/ (default: docs)")
    args = parser.parse_args()
    paths = [args.docs / name for name in PAGES]
    try:
        texts = [made(path.read_text(), args.docs) for path in paths]
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)


if __name__ == "__main__":
    main()
