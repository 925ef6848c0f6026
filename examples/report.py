"""What the example scripts share: options, data or the built-in set, and the files of a result."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch

import minilearn
from minilearn import DataLoaders, set_seed, shapes


def positive(text: str) -> int:
    """Read a whole number >= 1, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def parser_of(doc: str | None, folder: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all examples have; `folder` is where the data lies."""
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
    """Return a data set and its name, or the built-in one where there are neither data nor network.

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
    """Set each run's seed and give it, with the data in that seed's order and the data's name."""
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seed, args.seed + args.runs):
        set_seed(seed)
        yield seed, *load(loader, name, getattr(args, "bs", None), args.data, default_bs)


def ran_on() -> dict[str, Any]:
    """Return the command, the device and the versions of this run."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "minilearn": minilearn.__version__,
    }


def mean_sd(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sd (of a sample; None for one value) and each value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "each": list(values)}


def said(value: dict[str, Any], digits: int = 4) -> str:
    """Return mean and sd as text: "0.9051 ± 0.0025"."""
    spread = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def draw_band(ax: Any, runs: Sequence[Sequence[float]], color: str, label: str, linestyle: str = "-") -> None:
    """Draw the mean of several runs over epochs, with a band of their standard deviation.

    Shapes: runs (runs, epochs).
    """
    values = torch.tensor(runs, dtype=torch.float64)
    mean, sd = values.mean(0), values.std(0) if len(runs) > 1 else torch.zeros(values.shape[1])
    epochs = range(1, len(mean) + 1)
    ax.plot(epochs, mean.tolist(), linestyle, color=color, label=label, linewidth=1.5)
    ax.fill_between(epochs, (mean - sd).tolist(), (mean + sd).tolist(), color=color, alpha=0.15)


def write(out: Path, name: str, claim: str, data: str, n: int, **found: Any) -> None:
    """Write what was found as JSON beside its pictures, with what it claims and ran on; say where."""
    result = {"claim": claim, "data": data, **ran_on(), "n": n, **found}
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"Written: {out / name}.json")
