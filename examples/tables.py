"""Make the tables of the pages in PAGES from the results in examples/results.

Every difference, interval and p in the pages is computed here from the values of the single runs.

Run: python examples/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asides
import cifar10_schedules as schedules_001
import fashion_mnist_optimizers as scratch_003
import mnist_optimizers as tour_002
import optimizer_state as state_000
import swats as swats_004
from differences import Difference, table, told
from report import MEASURES, listed, said

ROOT = Path(__file__).parents[1]
README, EXAMPLES = ROOT / "README.md", ROOT / "examples" / "README.md"
DOCUMENTS, AVERAGES = ROOT / "docs" / "documents.md", ROOT / "docs" / "how-to" / "averages.md"
BEST = "one cycle, lr .05, 6 epochs"
MIRRORED = "with mirrored images"

Results = Callable[[str], dict[str, Any]]  # a result's name -> what its file has


def result(name: str) -> dict[str, Any]:
    """Return a committed result."""
    read: dict[str, Any] = json.loads((ROOT / "examples" / "results" / f"{name}.json").read_text())
    return read


# What is compared ---------------------------------------------------------------------------------

STATE, SCHEDULES, SWATS = "optimizer_state_imagenette_cpu", "cifar10_schedules_cpu", "swats_cpu"
EQUAL = "cifar10_schedules_averages"  # the averages, and one cycle of as many epochs
LONG, QUARTER = "cifar10_schedules_long", "swats_quarter"  # as long as the document; its network, narrower
TOUR, SCRATCH, SPEEDRUN = "mnist_optimizers", "fashion_mnist_optimizers", "cifar10_speedrun"
STATE_FULL, SPEEDRUN_GPU = "optimizer_state_imagenette_full", "cifar10_speedrun_gpu"  # on a GPU
MAIN_JOB = "fashion_mnist"
ASIDES = tuple(f"asides_{name}" for name in asides.RUNS)

FAMILIES: dict[str, tuple[str, Callable[[dict[str, Any]], list[Difference]]]] = {
    "000": (STATE, state_000.compared),
    "001": (EQUAL, schedules_001.averages),
    "002": (TOUR, tour_002.compared),
    "003": (SCRATCH, scratch_003.compared),
    "003, published": (SCRATCH, scratch_003.compared_with_published),
    "004, small networks": (SWATS, swats_004.compared),
    "004, quarter width": (QUARTER, swats_004.compared),
    **{name: (name, partial(asides.compared, name.removeprefix("asides_"))) for name in ASIDES},
}
# Each page, and the families whose differences that hold must all be on it.
PAGES = {
    README: (),
    DOCUMENTS: ("000", "001", "004, quarter width", "004, small networks"),
    AVERAGES: ("001",),
    EXAMPLES: tuple(FAMILIES),
}


def family(name: str, results: Results = result) -> list[Difference]:
    """Return what is compared under a name of FAMILIES, computed from its result."""
    of, compared = FAMILIES[name]
    return compared(results(of)["rows"])


# Parts of tables ----------------------------------------------------------------------------------


def _table(*rows: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _counted(n: Any, one: str, more: str) -> str:
    numbers = n if isinstance(n, list) else [n]  # where runs differ
    return f"{' or '.join(str(number) for number in numbers)} {one if n == 1 else more}"


def _made_by(found: dict[str, Any], *more: str) -> str:
    """Return how a result was made: seeds, images, machine, versions, and the command."""
    first, last, images = found["seeds"][0], found["seeds"][-1], found["n_images"]
    date, changed = found["date"], found["uncommitted"]
    parts = [
        f"n = {found['n']}, {f'seed {first}' if first == last else f'seeds {first} to {last}'}",
        f"{found['data']}: {images['train']:,} images to train on, {images['eval']:,} to validate",
        *more,
        f"on {found['device']}, {_counted(found['threads'], 'thread', 'threads')}, "
        f"{_counted(found['processes'], 'process', 'processes')}",
        f"torch {found['torch']}, minilearn {found['minilearn']}, commit {_short(found['commit'])}"
        + (" with changes, which the result names" if isinstance(changed, list) and changed else ""),
        date[:10] if date[0].isdigit() else f"date {date}",
    ]
    return f"{'; '.join(parts)}. Made by\n\n    $ {found['command']}"


def _in_all(found: dict[str, Any]) -> str:
    return f"{found['time_s']:.0f} s in all"


def _short(commit: str | list[str]) -> str:
    commits = commit if isinstance(commit, list) else [commit]  # where runs differ
    return " or ".join(one[:7] if re.fullmatch("[0-9a-f]{40}", one) else one for one in commits)


# README -------------------------------------------------------------------------------------------


def output(results: Results) -> str:
    """Return what the main job's fit prints with its first seed, where the output is no terminal."""
    found = results(MAIN_JOB)
    rows: list[dict[str, Any]] = found["histories"][0]
    n_epochs = rows[-1]["epoch"] + 1
    lines = []
    for epoch in range(n_epochs):
        own = [row for row in rows if row["epoch"] == epoch]
        parts = [
            f"{row['train']}: MulticlassAccuracy {row['MulticlassAccuracy']:.4f}, loss {row['loss']:.4f}"
            for row in own
        ]
        seconds = f"{sum(row['time_s'] for row in own):.1f} s"
        lines.append("    " + "  ".join([f"epoch {epoch} ({epoch + 1}/{n_epochs})", *parts, seconds]))
    return "\n".join(lines)


def main_job(results: Results) -> str:
    """Return what the main job reaches over its seeds, and how long it takes."""
    found = results(MAIN_JOB)
    seconds = f"{sum(found['time_s']) / found['n']:.1f} s a run on {found['device']}"
    return (
        f"Over {found['n']} seeds it reaches {said(found['row']['eval accuracy'])} (mean, sd) on "
        f"Fashion-MNIST, in {seconds}: `{found['command']}`, with the data's folder in `MINILEARN_DATA`."
    )


# The pages of the site ------------------------------------------------------------------------------


def repeated(results: Results) -> str:
    """Return a row for each document whose experiment was repeated with its network and budget."""
    mnist, fashion = results(TOUR), results(SCRATCH)
    published = scratch_003.PUBLISHED[BEST][-1][2]
    (difference,) = (
        d for d in family("003, published", results) if (d.name, d.measure) == (BEST, "eval accuracy")
    )
    head = ("document", "experiment", "published: one run", "here: eval accuracy", "n", "here - published")
    return _table(
        (*head, "command"),
        (
            "002, a tour of optimizers and schedules",
            "MNIST, MLP, SGD annealed in steps, 15 epochs",
            "prints no figures",
            said(mnist["rows"]["annealed by MultiStepLR"]["eval accuracy"]),
            str(mnist["n"]),
            "",
            f"`{mnist['command']}`",
        ),
        (
            "003, optimizers and schedules from scratch",
            "Fashion-MNIST, CNN, one cycle, 6 epochs",
            f"{published:.3f}",
            said(fashion["rows"][BEST]["eval accuracy"]),
            str(fashion["n"]),
            difference.cell,
            f"`{fashion['command']}`",
        ),
    )


def smaller(results: Results) -> str:
    """Return a row for each document whose experiment was run at a smaller scale; no published figures."""
    state, cifar, swats = results(STATE), results(EQUAL), results(QUARTER)
    local = swats["rows"][f"ResNet, {swats_004.LOCAL}"]
    kept, one_cycle = state["rows"]["kept optimizer, one cycle"], cifar["rows"][schedules_001.SHORT]
    return _table(
        ("document", "the document's experiment", "the one here", "here: eval accuracy", "n", "command"),
        (
            "000, does the optimizer's state matter",
            "ResNet50, Imagenette and Imagewoof, 3 sessions, 25 epochs",
            "a small ResNet, Imagenette at 64 px, 3 sessions, 25 epochs; shown: one cycle, state kept",
            said(kept["eval accuracy"]),
            str(state["n"]),
            f"`{state['command']}`",
        ),
        (
            "001, schedules and averages",
            "a ResNet, CIFAR-10, 30 to 60 epochs",
            f"ResNet-20, JPEG-coded CIFAR-10, {one_cycle['n_epochs']} epochs; shown: one cycle",
            said(one_cycle["eval accuracy"]),
            str(cifar["n"]),
            f"`{cifar['command']}`",
        ),
        (
            "004, SWATS switched per layer",
            "ResNet-18 and DenseNet-121, CIFAR-10, 200 epochs",
            f"ResNet-18 a quarter as wide, JPEG-coded CIFAR-10, {swats['n_epochs']} epochs; shown: local",
            said(local["eval accuracy"]),
            str(swats["n"]),
            f"`{swats['command']}`",
        ),
    )


def findings(results: Results) -> str:
    """Return what the results show about the questions of documents 000, 001 and 004."""
    parts = [f"- **Document 000.** {state_000.conclusion(family('000', results))}"]
    equal, long = (schedules_001.conclusion(results(name)["rows"]) for name in (EQUAL, LONG))
    parts.append(f"- **Document 001.** {equal} As long as in the document: {long[0].lower()}{long[1:]}")
    for name in ("004, quarter width", "004, small networks"):
        conclusion = swats_004.conclusion(family(name, results), results(FAMILIES[name][0]))
        parts.append(f"- **Document {name}.** {conclusion}")
    for name in PAGES[DOCUMENTS]:
        text = told(family(name, results), where="")
        parts.append(f"\nDocument {name}: {text[0].lower()}{text[1:]}")
    return "\n".join(parts)


def swa_row(results: Results) -> str:
    """Compare averaging with one cycle of as many epochs, and with its own iterates."""
    found = results(EQUAL)
    row, other, ema = (
        found["rows"][name] for name in (schedules_001.SWA, schedules_001.SHORT, schedules_001.EMA)
    )
    n = sum(r["train"] == "iterate" for r in found["histories"][schedules_001.SWA][0])
    n_epochs = row["n_epochs"]
    rows = _table(
        (f"CIFAR-10 (JPEG-coded), ResNet-20, {n_epochs} epochs, n = {found['n']}", "eval accuracy"),
        (f"one cycle over all {n_epochs}: the baseline of equal budget", said(other["eval accuracy"])),
        (f"one cycle over {n_epochs - n}, then SWA: the average", said(row["eval accuracy"])),
        (f"the iterates of SWA's {n} epochs, at a constant lr: their mean", said(row["iterates"])),
        ("the best of these iterates", said(row["best_iterate"])),
        (f"one cycle over all {n_epochs}, with EMA: the average", said(ema["eval accuracy"])),
    )
    return f"{rows}\n\n{schedules_001.conclusion(found['rows'])}\n\n{told(family('001', results), where='')}"


# Document 000 -------------------------------------------------------------------------------------


def state_rows(results: Results, name: str = STATE) -> str:
    """Return document 000's methods: all measures of the last epoch."""
    found = results(name)
    rows = [
        (method, *(said(row[name]) for name in MEASURES), f"{row['time_s']['mean']:.0f}")
        for method, row in found["rows"].items()
    ]
    return f"{_table(('method', *MEASURES, 'seconds a run'), *rows)}\n\n{_made_by(found)}"


def state_full(results: Results) -> str:
    """Return the same for the document's network, and what keeping the state changes."""
    of = state_000.compared(results(STATE_FULL)["rows"])
    return f"{state_rows(results, STATE_FULL)}\n\n{table(of, 'difference, one pair each')}"


def state_differences(results: Results) -> str:
    """Return what keeping the state changes, in each measure, and what this shows."""
    of = family("000", results)
    return f"{state_000.conclusion(of)}\n\n{table(of, 'lr')}\n\n{told(of)}"


# Document 001 -------------------------------------------------------------------------------------


def cifar_rows(results: Results) -> str:
    """Return document 001's experiments: accuracy here, also with flipped images, and what it published."""
    found = results(SCHEDULES)
    rows = [
        (
            name,
            said(row["eval accuracy"]),
            said(row["flipped"]),
            said(row["eval loss"]),
            str(row["n_epochs"]),
            f"{row['time_s']['mean']:.0f}",
            schedules_001.PUBLISHED[name],
        )
        for name, row in found["rows"].items()
    ]
    head = ("experiment", "here: eval accuracy", MIRRORED, "eval loss", "epochs", "seconds")
    return f"{_table((*head, 'published, of a larger network'), *rows)}\n\n{_made_by(found)}"


def cifar_equal(results: Results, name: str = EQUAL) -> str:
    """Compare the averages with one cycle of as many epochs, whose iterates are those of EMA."""
    found = results(name)
    of = schedules_001.averages(found["rows"])
    rows = [
        (
            schedules_001.label(experiment, found["rows"]),
            *(said(row[measure]) for measure in MEASURES[:2]),
            said(row["flipped"]) if "flipped" in row else "",
        )
        for experiment, row in found["rows"].items()
    ]
    n_epochs = found["rows"][schedules_001.SWA]["n_epochs"]
    first = _table((f"{n_epochs} epochs each", *MEASURES[:2], MIRRORED), *rows)
    parts = [
        schedules_001.conclusion(found["rows"]),
        first,
        _made_by(found),
    ]
    if found["n"] == 1:
        return "\n\n".join([*parts, table(of, "difference, one pair each")])
    return "\n\n".join([*parts, table(of, "difference"), told(of)])


def speedrun_row(results: Results, name: str = SPEEDRUN) -> str:
    """Return what the fast run of CIFAR-10 reached, and when."""
    found = results(name)
    times_s = found["time_s"]
    row = (
        str(found["histories"][0][-1]["epoch"] + 1),
        said(found["accuracy"]),
        said(found["one_view"]),
        ", ".join(f"{time_s:.0f}" for time_s in times_s),
    )
    return (
        f"{_table(('epochs', 'eval accuracy, ten views', 'one view', 'seconds'), row)}\n\n{_made_by(found)}"
    )


# Document 002 -------------------------------------------------------------------------------------


def mnist_rows(results: Results) -> str:
    """Return document 002's experiments: accuracy, loss, epochs and seconds of each."""
    found = results(TOUR)
    rows = [
        (
            name,
            *(said(row[measure]) for measure in MEASURES),
            f"{row['n_epochs']['mean']:.1f}".removesuffix(".0"),
            f"{row['time_s']['mean']:.1f}",
        )
        for name, row in found["rows"].items()
    ]
    head = ("experiment", *MEASURES, "epochs", "seconds a run")
    return f"{_table(head, *rows)}\n\n{_made_by(found, _in_all(found))}"


def mnist_differences(results: Results) -> str:
    """Return the differences between experiments of as many epochs, and what holds."""
    of = family("002", results)
    return f"{table(of, 'experiments')}\n\n{told(of)}"


# Document 003 -------------------------------------------------------------------------------------


def fashion_rows(results: Results) -> str:
    """Return ours - the document's in the last epoch of each of its tables, and what holds."""
    found, of = results(SCRATCH), family("003, published", results)
    rows = []
    for name, row in found["rows"].items():
        published = scratch_003.PUBLISHED[name][-1][2]
        rows.append((name, f"{published:.3f}", said(row["eval accuracy"])))
    made_by = _made_by(found, _in_all(found))
    first = _table(("experiment", "published: eval accuracy, one run", "here"), *rows)
    differences = f"Here - published, in the last epoch:\n\n{table(of, 'experiment')}\n\n{told(of)}"
    return f"{first}\n\n{made_by}\n\n{differences}"


def fashion_differences(results: Results) -> str:
    """Return the differences between experiments of as many epochs, and what holds."""
    of = family("003", results)
    return f"{table(of, 'experiments')}\n\n{told(of)}"


def fashion_epochs(results: Results) -> str:
    """Return document 003's full tables, each epoch and phase, with the published figures in brackets."""
    parts = []
    for name, histories in results(SCRATCH)["histories"].items():
        rows = []
        for row in scratch_003.epochs_of(histories):
            i = 2 * (row["train"] == "eval")
            accuracy, loss = scratch_003.PUBLISHED[name][row["epoch"]][i : i + 2]
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


# Documents 002 and 003, in passing ----------------------------------------------------------------


def asides_of(results: Results, name: str) -> str:
    """Return the experiments of a data set, their differences, and what holds."""
    found, of = results(name), family(name, results)
    rows = [
        (experiment, *(said(row[measure]) for measure in MEASURES))
        for experiment, row in found["rows"].items()
    ]
    made_by = _made_by(found, _in_all(found))
    return (
        f"{_table(('experiment', *MEASURES), *rows)}\n\n{made_by}\n\n{table(of, 'difference')}\n\n{told(of)}"
    )


# Document 004 -------------------------------------------------------------------------------------


def swats_rows(results: Results, name: str = SWATS) -> str:
    """Return document 004's experiments: accuracy here, how many tensors switched, and what it published."""
    found = results(name)
    rows = []
    for experiment, row in found["rows"].items():
        model, optimizer = swats_004.parts_of(experiment)
        switched = "" if "n_switched" not in row else _switched(row)
        published = swats_004.PUBLISHED[model].get(optimizer, "none")
        of_accuracy, time_s = row["eval accuracy"], f"{row['time_s']['mean']:.0f}"
        n = str(len(of_accuracy["each"]))
        rows.append((model, optimizer, said(of_accuracy), n, switched, time_s, published))
    head = ("network", "optimizer", "here: eval accuracy", "n", "switched", "seconds a run")
    about = [f"{found['n_epochs']} epochs, weight decay {found['wd']:g}"]
    if once := [optimizer for _, optimizer, _, n, *_ in rows if n != str(found["n"])]:
        about.append(f"{listed(once)} with seed {found['seeds'][0]} only")
    made_by = _made_by(found, *about)
    return f"{_table((*head, 'published, of a larger network'), *rows)}\n\n{made_by}"


def swats_differences(results: Results, name: str = "004, small networks") -> str:
    """Return the differences that the document discusses, and what this run shows about its claim."""
    of, found = family(name, results), results(FAMILIES[name][0])
    return f"{swats_004.conclusion(of, found)}\n\n{table(of, 'network and optimizers')}\n\n{told(of)}"


def _switched(row: dict[str, Any]) -> str:
    tensors, moments = (_range(row[key]) for key in ("n_switched", "n_moments"))
    when = "at the same step" if moments == "1" else f"at {moments} different steps"
    return f"{tensors} of {row['n_tensors']} tensors, {when}"


def _range(values: list[int]) -> str:
    return f"{min(values)}" if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def swats_global(results: Results, name: str = SWATS) -> str:
    """Return when all tensors switched, for the runs in which they switched together."""
    runs = [
        run
        for name, of_runs in results(name)["switches"].items()
        if swats_004.parts_of(name)[1] == swats_004.GLOBAL
        for run in of_runs
    ]
    firsts = [run["points"][0] for run in runs]
    steps, lrs = listed([f"{step:,}" for _, step, _ in firsts]), listed([f"{lr:.3f}" for *_, lr in firsts])
    return (
        "When all tensors switch at once, the moment depends on which tensor happens to settle first: in "
        f"these runs after {steps} of {runs[0]['n_steps']:,} steps, with estimates of {lrs}."
    )


def swats_points(results: Results) -> str:
    """Return the first switches of each network in the first run, layer by layer."""
    parts = []
    for name, of_runs in results(SWATS)["switches"].items():
        model, optimizer = swats_004.parts_of(name)
        if optimizer == swats_004.LOCAL:
            points = of_runs[0]["points"]
            rows = [(layer, str(step), f"{lr:.6f}") for layer, step, lr in points[:10]]
            head = (f"{model}: layer", "steps", "estimated lr for SGD")
            parts.append(f"{_table(head, *rows)}\n\n{len(points)} in all.")
    return "\n\n".join(parts)


def swats_beside(results: Results) -> str:
    """Return the document's switches on ResNet-18, beside those of the same tensors here."""
    found, theirs = results(QUARTER), swats_004.PUBLISHED_SWITCHES
    runs = found["switches"][f"{swats_004.RESNET}, {swats_004.LOCAL}"]
    ours = [
        {swats_004.published_name(layer): (step, lr) for layer, step, lr in run["points"]} for run in runs
    ]
    rows = []
    for tensor, switch in theirs.items():
        cells = [
            f"{of[0]}, {of[1]:.6f}" if of else "none" for of in (switch, *(of.get(tensor) for of in ours))
        ]
        rows.append((tensor, *cells))
    n_tensors, n_steps, n_epochs = len(runs[0]["names"]), runs[0]["n_steps"], found["n_epochs"]
    falls = swats_004.LOCAL_ADAM * n_epochs // swats_004.OF_EPOCHS * (n_steps // n_epochs)
    heads = ("document", *(f"seed {seed}" for seed in found["seeds"]))

    def counted(until: int) -> list[str]:
        return [str(sum(step <= until for step, _ in of.values())) for of in (theirs, *ours)]

    counts = _table(
        (f"of {n_tensors} tensors, switched", *heads),
        (f"in the first {falls:,} steps, after which Adam's lr falls here", *counted(falls)),
        (f"in all {n_steps:,}", *counted(n_steps)),
    )
    return f"{counts}\n\n{_table(('step, and estimated lr for SGD', *heads), *rows)}"


# Long runs that were killed on purpose -------------------------------------------------------------


def soaks() -> list[dict[str, Any]]:
    """Return what `soak.py` found, kill by kill."""
    lines = (ROOT / "examples" / "results" / "soak.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def soak_rows(results: Results) -> str:
    """Return each planned kill of a long run, and whether the weights are those of the unbroken interval."""
    rows = [
        (
            f"`{found['folder']}`",
            found.get("copied_at", "not recorded"),
            found["killed_after"],
            found["compared"],
            "equal" if found["equal"] else "**different**",
            "the same" if found["same_cpu"] else "another",
            f"{found['ran_on']['device']}, torch {found['ran_on']['torch']}",
        )
        for found in soaks()
    ]
    head = (
        "run",
        "copied at",
        "killed after",
        "compared at",
        "hashes of the weights",
        "CPU model",
        "machine",
    )
    return _table(head, *rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "output": output,
    "documents, repeated": repeated,
    "documents, smaller": smaller,
    "main job": main_job,
    "findings": findings,
    "swa": swa_row,
    "optimizer_state": state_rows,
    "optimizer_state, differences": state_differences,
    "optimizer_state, full": state_full,
    "cifar10_schedules": cifar_rows,
    "cifar10_schedules, equal budget": cifar_equal,
    "cifar10_schedules, long": partial(cifar_equal, name=LONG),
    "cifar10_speedrun": speedrun_row,
    "cifar10_speedrun, gpu": partial(speedrun_row, name=SPEEDRUN_GPU),
    "mnist_optimizers": mnist_rows,
    "mnist_optimizers, differences": mnist_differences,
    "fashion_mnist_optimizers": fashion_rows,
    "fashion_mnist_optimizers, differences": fashion_differences,
    "fashion_mnist_optimizers, epochs": fashion_epochs,
    **{name: partial(asides_of, name=name) for name in ASIDES},
    "swats": swats_rows,
    "swats, differences": swats_differences,
    "swats, global": swats_global,
    "swats, switches": swats_points,
    "swats, quarter": partial(swats_rows, name=QUARTER),
    "swats, quarter, differences": partial(swats_differences, name="004, quarter width"),
    "swats, quarter, global": partial(swats_global, name=QUARTER),
    "swats, quarter, switches": swats_beside,
    "soak": soak_rows,
}


def made(text: str, results: Results = result) -> str:
    """Return a page's text with the tables between its marks made again from the results."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]](results)}\n<!-- end -->"

    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    """Run as a script."""
    for page in PAGES:
        page.write_text(made(page.read_text()))


if __name__ == "__main__":
    main()
