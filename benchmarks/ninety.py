"""Measure the time to 90 % on Fashion-MNIST on this machine: minilearn, and the same training by hand.

The work is "fashion" of `benchmarks/peers.py`: document 003's network, with AdamW under OneCycleLR. A run is
timed from the files on disk to the last accuracy; all take turns in one process, again and again, each time
with a new seed. Increasing numbers of epochs are tried until minilearn's mean accuracy is 90 % or more; all
tries are in the result.

    minilearn   Learner and fashion_mnist(), as in README
    by hand     the usual loop, with torchvision's data set and torch's DataLoader, without workers
    in memory   the same loop over tensors that it indexes, for those who know that they fit

Run: MINILEARN_DATA=... python benchmarks/ninety.py --out docs/measured
"""

from __future__ import annotations

import importlib
import io
import os
import statistics
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from harness import about, extremes, head, parser_of, positive, report

from minilearn import set_seed
from minilearn.arguments import counted
from minilearn.provenance import device_name

sys.path.insert(0, str(Path(__file__).parent / "peers"))
WAYS = {"minilearn": "with_minilearn", "by hand": "by_hand", "in memory": "in_memory"}
TARGET = 0.9


def run_one(way: Any, n_epochs: int, seed: int) -> tuple[float, float]:
    """Return the accuracy of a run, and its seconds."""
    set_seed(seed)
    start_s = time.perf_counter()
    with redirect_stdout(io.StringIO()):  # a line for each epoch
        trained = way.fashion(n_epochs, torch.device("cpu"))
    return trained.accuracy, time.perf_counter() - start_s


def is_reached(tried: dict[str, Any]) -> bool:
    """Whether minilearn's mean accuracy is 90 % or more."""
    return statistics.mean(tried["ways"]["minilearn"]["accuracies"]) >= TARGET


def measure(seeds: list[int], epochs: list[int]) -> dict[str, Any]:
    """Return accuracy and seconds of each run, for each number of epochs that was tried, in order."""
    ways: dict[str, Any] = {name: importlib.import_module(module) for name, module in WAYS.items()}
    work: Any = importlib.import_module("work")
    tries: list[dict[str, Any]] = []
    for n_epochs in sorted(epochs):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for seed in seeds:
            for name, way in ways.items():
                found[name].append(run_one(way, n_epochs, seed))
        runs = {name: list(zip(*of, strict=True)) for name, of in found.items()}
        of_ways = {name: {"accuracies": list(a), "times_s": list(b)} for name, (a, b) in runs.items()}
        tries.append({"epochs": n_epochs, "ways": of_ways})
        if is_reached(tries[-1]):
            break
    train, valid = work.torchvision_sets()
    return {"images": {"training": len(train), "validation": len(valid)}, "tries": tries}


def said(result: dict[str, Any]) -> str:
    """Return a result as text: accuracy and seconds of each way, for each number of epochs."""
    images, n = result["images"], len(result["seeds"])
    data = f"{images['training']:,} images for training, {images['validation']:,} for validation"
    lines = [head(result), f"Fashion-MNIST, {data}, n = {n}"]
    for tried in result["tries"]:
        for name, runs in tried["ways"].items():
            accuracy, times_s = f"{statistics.mean(runs['accuracies']):.4f}", runs["times_s"]
            if n > 1:
                accuracy += f" ± {statistics.stdev(runs['accuracies']):.4f}"
            time = f"{statistics.median(times_s):6.1f} s  {extremes(times_s, 1)}"
            lines.append(f"  {counted(tried['epochs'], 'epoch')}  {name:10}  {accuracy}  {time}")
    last = result["tries"][-1]
    reached = f"with {counted(last['epochs'], 'epoch')}" if is_reached(last) else "with none of these"
    return "\n".join([*lines, f"minilearn's mean accuracy is {TARGET} or more {reached}"])


def main() -> None:
    """Run as a script."""
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=positive, default=5, help="of each (default: 5)")
    epochs = [4, 5, 6]
    parser.add_argument("--epochs", type=positive, nargs="+", default=epochs, help="to try (default: 4 5 6)")
    args = parser.parse_args()
    if "MINILEARN_DATA" not in os.environ:
        parser.error("MINILEARN_DATA is not set: expected the folder that has FashionMNIST/raw")
    seeds = list(range(args.runs))
    result = about("ninety", device=device_name("cpu"), seeds=seeds)
    report(result | measure(seeds, args.epochs), said, args.out)


if __name__ == "__main__":
    main()
