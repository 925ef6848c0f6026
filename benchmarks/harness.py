"""What the benchmarks share: options, a measurement on each available device, and the file of a result.

In each benchmark `measure` returns raw numbers, and `said` makes a text from them. With --out the result is a
file, FOLDER/<name>.json, from which `benchmarks/measured.py` makes pages.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minilearn.arguments import counted
from minilearn.provenance import device_name, provenance

SEED = 0  # where every round repeats the same training


def positive(text: str) -> int:
    """Read a whole number >= 1, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the result there, as JSON")
    return parser


def about(name: str, **own: Any) -> dict[str, Any]:
    """Return the head of a result: the benchmark's name, `provenance()`, and the benchmark's own fields.

    Args:
        own: they replace those of `provenance()`, such as `threads` where other processes measure, or
            `device` where only the CPU is measured.
    """
    return {"benchmark": name, **provenance(), **own}


def report(result: dict[str, Any], said: Callable[[dict[str, Any]], str], out: Path | None) -> None:
    """Print a result, and write it to the folder `out`, if there is one."""
    print(said(result))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{result['benchmark']}.json").write_text(json.dumps(result, indent=1) + "\n")


def run(
    doc: str | None,
    name: str,
    measure: Callable[..., dict[str, Any]],
    said: Callable[[dict[str, Any]], str],
    n_steps: int,
    rounds: int,
    **numbers: int,
) -> None:
    """Read the options; measure on the CPU, and on CUDA if it is there: a table for each.

    Args:
        measure: (device, steps, rounds, and `numbers` by name) -> the table of a device.
        numbers: more options, by their defaults.
    """
    parser = parser_of(doc)
    parser.add_argument(
        "--steps", type=positive, default=n_steps, help=f"steps in a round (default: {n_steps})"
    )
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help=f"rounds that count (default: {rounds})"
    )
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--device", choices=kinds, help="this one only")
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=positive, default=default, help=f"default: {default}")
    args = parser.parse_args()
    own = {option: getattr(args, option) for option in numbers}
    result = about(name, seeds=[SEED], steps=args.steps, rounds=args.rounds)
    devices = [torch.device(kind) for kind in ([args.device] if args.device else kinds)]
    result["tables"] = [
        {"device": device_name(device.type), **measure(device, args.steps, args.rounds, **own)}
        for device in devices
    ]
    report(result, said, args.out)


# Text ---------------------------------------------------------------------------------------------


def head(result: dict[str, Any], device: str | None = None) -> str:
    """Return where it was measured: the device (of a table, else of the result), threads, torch's version."""
    return f"{device or result['device']}, {counted(result['threads'], 'thread')}, torch {result['torch']}"


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum of the values of all rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def extremes(values: Sequence[float], digits: int) -> str:
    """Return minimum and maximum as text: "(min 0.98, max 1.06)"."""
    return f"(min {min(values):.{digits}f}, max {max(values):.{digits}f})"
