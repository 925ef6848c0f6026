"""What the example scripts share: options, data or the built-in set, and the files of a result."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch

from minilearn import DataLoaders, set_seed, shapes
from minilearn.arguments import counted
from minilearn.provenance import UNKNOWN, command, provenance

History = list[dict[str, Any]]
MEASURES = ("eval accuracy", "eval loss", "train accuracy", "train loss")  # of an experiment's last epoch


def threads() -> str:
    """Return how many threads torch has, such as "1 thread"."""
    return counted(torch.get_num_threads(), "thread")


def positive(text: str) -> int:
    """Read a whole number >= 1, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def parser_of(doc: str | None, folder: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all examples have; `folder` is the folder of the data."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=42, help="seed of the (first) run (default: 42)")
    parser.add_argument(
        "--runs", type=positive, default=1, help="runs, with seeds counting up from --seed (default: 1)"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help=f"has {folder} (default: $MINILEARN_DATA, or download)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="for pictures and the result (default: runs)"
    )
    return parser


def load(
    loader: Callable[..., DataLoaders], name: str, bs: int | None, root: str | None, default_bs: int
) -> tuple[DataLoaders, str]:
    """Return a data set and its name, or the built-in one if there is neither data nor a network.

    Args:
        bs: batch size; None: `default_bs`, and 128 for the built-in set, which is smaller.
    """
    try:
        return loader(bs or default_bs, root=root), name
    except ValueError as error:  # a broken file
        sys.exit(f"--data: {error}" if root else str(error))
    except FileNotFoundError as error:
        if root is not None:
            sys.exit(f"--data: {error}")
        print(
            f"No {name} on this machine, and it could not be downloaded: running on the built-in set "
            f"of drawn shapes instead (MINILEARN_DATA or --data names a folder with {name}'s files)."
        )
        return shapes(bs or 128), "built-in shapes"


def some_of(dls: DataLoaders, n: int | None) -> DataLoaders:
    """Return loaders of n training images, and a quarter as many for validation, of all classes."""
    if n is None:
        return dls
    parts: list[Any] = []
    for loader, n_samples in ((dls.train, n), (dls.valid, n // 4)):
        part: Any = copy(loader)
        every = max(1, len(part.tensors[0]) // n_samples)
        part.tensors = tuple(t[::every][:n_samples] for t in part.tensors)
        part.n_samples = len(part.tensors[0])
        parts.append(part)
    return DataLoaders(parts[0], parts[1], classes=dls.classes, source=dls.source)


def seeds(
    args: argparse.Namespace, loader: Callable[..., DataLoaders], name: str, default_bs: int
) -> Iterator[tuple[int, DataLoaders, str]]:
    """Set and give each run's seed, with the data in that seed's order and the data's name."""
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seed, args.seed + args.runs):
        set_seed(seed)
        yield seed, *load(loader, name, getattr(args, "bs", None), args.data, default_bs)


def n_images(dls: DataLoaders) -> dict[str, int]:
    """Return how many images are trained on, and how many validated on."""
    valid: Any = dls.valid
    return {"train": dls.train.n_samples, "eval": valid.n_samples}


def mean_sd(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sd (of a sample; None for one value) and each value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "each": list(values)}


def said(value: dict[str, Any], digits: int = 4) -> str:
    """Return mean and sd as text: "0.9051 ± 0.0025"."""
    spread = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def listed(parts: Sequence[str]) -> str:
    """Return words as a list: "a, b, and c", "a and b"."""
    if len(parts) < 3:
        return " and ".join(parts)
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def measures_of(histories: Sequence[History]) -> dict[str, dict[str, Any]]:
    """Return loss and accuracy of the last epoch over an experiment's runs, in training and validation."""
    found = {}
    for measure in MEASURES:
        phase, name = measure.split()
        key = "loss" if name == "loss" else "MulticlassAccuracy"
        found[measure] = mean_sd(
            [[r for r in history if r["train"] == phase][-1][key] for history in histories]
        )
    return found


def values_of(history: History, phase: str, name: str) -> list[float]:
    """Return a history's "loss" or "accuracy" over epochs, of "train" or "eval"."""
    key = "loss" if name == "loss" else "MulticlassAccuracy"
    return [row[key] for row in history if row["train"] == phase]


def seconds_of(histories: Sequence[History]) -> dict[str, Any]:
    """Return the seconds of a run, over an experiment's runs."""
    return mean_sd([sum(row["time_s"] for row in history) for history in histories])


def thinned(values: Sequence[float], n: int = 400) -> dict[str, Any]:
    """Return about n values of a long run, for drawing, and how many steps apart they are."""
    every = max(1, len(values) // n)
    return {"every": every, "values": list(values[::every])}


def draw_thinned(ax: Any, curve: dict[str, Any], unit: float = 1.0, **kwargs: Any) -> None:
    """Draw what `thinned` returned, over steps, or over epochs of `unit` steps."""
    xs = [i * curve["every"] / unit for i in range(len(curve["values"]))]
    ax.plot(xs, curve["values"], **kwargs)


def draw_band(ax: Any, runs: Sequence[Sequence[float]], color: str, label: str, linestyle: str = "-") -> None:
    """Draw the mean of several runs over epochs, with a band of their standard deviation.

    Shapes: runs (runs, epochs).
    """
    values = torch.tensor(runs, dtype=torch.float64)
    mean, sd = values.mean(0), values.std(0) if len(runs) > 1 else torch.zeros(values.shape[1])
    epochs = range(1, len(mean) + 1)
    ax.plot(epochs, mean.tolist(), linestyle, color=color, label=label, linewidth=1.5)
    ax.fill_between(epochs, (mean - sd).tolist(), (mean + sd).tolist(), color=color, alpha=0.15)


def draw_interval(ax: Any, runs: Sequence[Sequence[float]], color: str, label: str) -> None:
    """Draw the mean of several runs over epochs, with bars of its 95 % interval (Student's t).

    Shapes: runs (runs, epochs).
    """
    from scipy.stats import t

    n = len(runs)
    columns = list(zip(*runs, strict=True))
    means = [statistics.mean(column) for column in columns]
    factor = t.ppf(0.975, n - 1) / n**0.5 if n > 1 else 0.0
    halves = [factor * statistics.stdev(column) if n > 1 else 0.0 for column in columns]
    epochs = range(1, len(means) + 1)
    ax.errorbar(epochs, means, halves, color=color, label=label, marker=".", capsize=2, linewidth=1)


def band_note(n: int) -> str:
    """Return the picture's note on its lines and bands."""
    return f"line: mean of {n} seeds; band: 1 standard deviation" if n > 1 else "one seed"


def merged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the provenance of several runs: one value for what they share, a list for what differs.

    The date is that of the last run.
    """
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run.get(key, UNKNOWN) for run in runs]
        distinct = [value for i, value in enumerate(values) if value not in values[:i]]
        found[key] = distinct[0] if len(distinct) == 1 else distinct
    return found | {"date": max(run.get("date", UNKNOWN) for run in runs)}


def write(
    out: Path,
    name: str,
    claim: str,
    data: str,
    images: dict[str, int],
    seeds: Sequence[int],
    runs: Sequence[dict[str, Any]] = (),
    **found: Any,
) -> dict[str, Any]:
    """Write a result as JSON, with its claim and its provenance; print where, and return it.

    Args:
        images: how many, by phase, see `n_images`.
        runs: `provenance()` of each run, if these were made in separate processes.
        found: the rest of the result, with everything that its pictures need.
    """
    made_by = merged(runs) | {"command": command()} if runs else provenance()
    about = {
        "claim": claim,
        "data": data,
        "n_images": images,
        **made_by,
        "n": len(seeds),
        "seeds": list(seeds),
    }
    result = about | found
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(as_text(result))
    print(f"Written: {path}")
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def as_text(result: dict[str, Any]) -> str:
    """Return a result as JSON, with lists and dicts of only numbers and words on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: re.sub(r"\n\s*", " ", match[0]), text) + "\n"
