"""Make the tables of README.md and examples/README.md from the results in examples/results.

Run: python examples/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar10_schedules import PUBLISHED as PUBLISHED_001
from fashion_mnist_optimizers import PUBLISHED
from optimizer_state import conclusion
from report import said
from swats import LOCAL, parts_of
from swats import PUBLISHED as PUBLISHED_004

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
    """Return a row for each document: what it claims, what it published, what came out here, and how."""
    state, cifar = result("optimizer_state_imagenette_cpu"), result("cifar10_schedules_cpu")
    mnist, fashion = result("mnist_optimizers"), result("fashion_mnist_optimizers")
    swats = result("swats_cpu")
    local = swats["rows"][f"ResNet, {LOCAL}"]
    kept, one_cycle = state["rows"]["kept optimizer, one cycle"], cifar["rows"]["one cycle"]
    annealed = mnist["rows"]["annealed by MultiStepLR"]
    head = ("document", "experiment", "published", "here: eval accuracy", "n", "device", "time", "command")
    return _table(
        head,
        (
            "000, does the optimizer's state matter",
            "Imagenette, ResNet50 (here a small ResNet, 64 px), Adam kept in 3 sessions, one cycle in each",
            "in figures alone",
            *_found(kept["eval accuracy"], state, f"{kept['time_s']['mean']:.0f} s a run"),
        ),
        (
            "001, schedules and averages",
            "CIFAR-10 (here JPEG-coded), ResNet (here ResNet-20), one cycle, 50 epochs (here "
            f"{one_cycle['n_epochs']})",
            PUBLISHED_001["one cycle"],
            *_found(one_cycle["accuracy"], cifar, f"{one_cycle['time_s']['mean']:.0f} s a run"),
        ),
        (
            "002, a tour of optimizers and schedules",
            "MNIST, MLP, SGD annealed in steps, 15 epochs",
            "none",
            *_found(annealed["accuracy"], mnist, f"{annealed['time_s']['mean']:.0f} s a run"),
        ),
        (
            "003, optimizers and schedules from scratch",
            "Fashion-MNIST, CNN, one cycle, 6 epochs",
            f"{PUBLISHED[BEST][-1][2]:.3f}",
            *_found(fashion["tables"][BEST][-1]["accuracy"], fashion, f"{fashion['time_s']:.0f} s in all"),
        ),
        (
            "004, SWATS switched per layer",
            "CIFAR-10 (here JPEG-coded), ResNet-18 (here a small ResNet, a fifth of the images), SWATS, "
            f"local, 200 epochs (here {swats['n_epochs']})",
            PUBLISHED_004["ResNet"][LOCAL],
            *_found(local["accuracy"], swats, f"{local['time_s']['mean']:.0f} s a run"),
        ),
    )


def _found(accuracy: dict[str, Any], found: dict[str, Any], time: str) -> tuple[str, ...]:
    """Return the cells on what came out: accuracy, n, device, time, command."""
    n = found["threads"]
    device = f"CPU, {n} thread{'' if n == 1 else 's'}" if found["device"] == "x86_64" else found["device"]
    return said(accuracy), str(found["n"]), device, time, f"`{found['command']}`"


def _on(found: dict[str, Any]) -> str:
    n = found["threads"]
    return f"{n} thread{'' if n == 1 else 's'} ({found['device']}), torch {found['torch']}"


def _ran(found: dict[str, Any]) -> str:
    time = f"{found['time_s']:.0f} s in all"
    return f"n = {found['n']}, {time} on {_on(found)}; made by\n\n    $ {found['command']}"


def state_rows() -> str:
    """Return document 000's methods: figures of the last epoch, and what tests of their differences show."""
    found = result("optimizer_state_imagenette_cpu")
    names = ("eval accuracy", "eval loss", "train accuracy", "train loss")
    rows = [
        (method, *(said(row[name]) for name in names), f"{row['time_s']['mean']:.0f}")
        for method, row in found["rows"].items()
    ]
    made_by = f"n = {found['n']}, {found['data']}, on {_on(found)}; made by\n\n    $ {found['command']}"
    shown = "\n".join(f"- {conclusion(test, name)}" for name, test in found["tests"]["eval accuracy"].items())
    return f"{_table(('method', *names, 'seconds a run'), *rows)}\n\n{made_by}\n\n{shown}"


def cifar_rows() -> str:
    """Return document 001's experiments: what it published, and accuracy, also with mirror images, here."""
    found = result("cifar10_schedules_cpu")
    rows = [
        (
            name,
            PUBLISHED_001[name],
            said(row["accuracy"]),
            said(row["flipped"]),
            str(row["n_epochs"]),
            f"{row['time_s']['mean']:.0f}",
        )
        for name, row in found["rows"].items()
    ]
    head = ("experiment", "published", "here: eval accuracy", "mirrored too", "epochs here", "seconds")
    made_by = f"n = {found['n']}, {found['data']}, on {_on(found)}; made by\n\n    $ {found['command']}"
    return f"{_table(head, *rows)}\n\n{made_by}"


def swa_row() -> str:
    """Return what averaging gave: the iterates of SWA beside their average."""
    found = result("cifar10_schedules_cpu")
    row = found["rows"]["one cycle, then SWA"]
    history = found["histories"]["one cycle, then SWA"]
    n = sum(r["train"] == "iterate" for r in history)
    return _table(
        ("CIFAR-10 (JPEG-coded), ResNet-20, eval accuracy", ""),
        (f"the iterates of the last {n} of {row['n_epochs']} epochs, mean", said(row["iterates"])),
        ("the best of them", said(row["best_iterate"])),
        ("their average", said(row["accuracy"])),
    )


def speedrun_row() -> str:
    """Return what the fast run of CIFAR-10 reached, and when."""
    found = result("cifar10_speedrun")
    head = ("data", "epochs", "eval accuracy, ten views", "one view", "seconds", "n", "device")
    times_s = found["time_s"]
    row = (
        found["data"],
        str(found["history"][-1]["epoch"] + 1),
        said(found["accuracy"]),
        said(found["one_view"]),
        f"{sum(times_s) / len(times_s):.0f}",
        str(found["n"]),
        _on(found),
    )
    return f"{_table(head, row)}\n\nMade by\n\n    $ {found['command']}"


def swats_rows() -> str:
    """Return document 004's experiments: accuracy, published and here, and how many tensors switched."""
    found = result("swats_cpu")
    rows = []
    for name, row in found["rows"].items():
        model, optimizer = parts_of(name)
        switched = "" if "n_switched" not in row else _switched(row)
        published = PUBLISHED_004[model].get(optimizer, "none")
        time_s = f"{row['time_s']['mean']:.0f}"
        rows.append((model, optimizer, published, said(row["accuracy"]), switched, time_s))
    head = ("network", "optimizer", "published", "here: eval accuracy", "switched", "seconds a run")
    made_by = f"n = {found['n']}, {found['data']}, on {_on(found)}; made by\n\n    $ {found['command']}"
    return f"{_table(head, *rows)}\n\n{made_by}"


def _switched(row: dict[str, Any]) -> str:
    tensors, moments = (_range(row[key]) for key in ("n_switched", "n_moments"))
    return f"{tensors} of {row['n_tensors']} tensors, at {moments} step{'' if moments == '1' else 's'}"


def _range(values: list[int]) -> str:
    return f"{min(values)}" if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def swats_points() -> str:
    """Return the first switches of each network, each layer by itself, in the first run."""
    found = result("swats_cpu")
    parts = []
    for name, of_runs in found["points"].items():
        model, optimizer = parts_of(name)
        if optimizer == LOCAL:
            rows = [(layer, str(step), f"{lr:.6f}") for layer, step, lr in of_runs[0][:10]]
            head = (f"{model}: layer", "steps", "estimated lr for SGD")
            parts.append(f"{_table(head, *rows)}\n\n{len(of_runs[0])} in all.")
    return "\n\n".join(parts)


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
    "optimizer_state": state_rows,
    "swa": swa_row,
    "cifar10_schedules": cifar_rows,
    "cifar10_speedrun": speedrun_row,
    "swats": swats_rows,
    "swats, switches": swats_points,
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
