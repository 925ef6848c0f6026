"""Measure the time to 90 % on Fashion-MNIST on this machine: minilearn, and the same training by hand.

The work is "fashion" of `benchmarks/peers.py`: document 003's network, with AdamW under OneCycleLR. A run
counts from the files on disk to the last accuracy; all take turns in one process, again and again, each time
with another seed. Of the epochs that are tried, the fewest whose mean accuracy is 90 % or more count.

    minilearn   Learner and fashion_mnist(), as in README
    by hand     the usual loop, with torchvision's data set and torch's DataLoader, without workers
    in memory   the same loop over tensors that it indexes, for those who know that they fit

Run: MINILEARN_DATA=... python benchmarks/ninety.py
"""

from __future__ import annotations

import argparse
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
from harness import kind_of

from minilearn import set_seed

sys.path.insert(0, str(Path(__file__).parent / "peers"))
WAYS = {"minilearn": "with_minilearn", "by hand": "by_hand", "in memory": "in_memory"}


def measure(way: Any, n_epochs: int, seed: int) -> tuple[float, float]:
    """Return the accuracy of a run, and its seconds."""
    set_seed(seed)
    start_s = time.perf_counter()
    with redirect_stdout(io.StringIO()):  # a line for each epoch
        trained = way.fashion(n_epochs, torch.device("cpu"))
    return trained.accuracy, time.perf_counter() - start_s


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="of each (default: 5)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[4, 5, 6], help="to try (default: 4 5 6)")
    args = parser.parse_args()
    if "MINILEARN_DATA" not in os.environ:
        parser.error("MINILEARN_DATA is not set: expected the folder that has FashionMNIST/raw")
    ways: dict[str, Any] = {name: importlib.import_module(module) for name, module in WAYS.items()}
    print(f"{kind_of(torch.device('cpu'))}, torch {torch.__version__}, Fashion-MNIST, n = {args.runs}")
    for n_epochs in sorted(args.epochs):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for seed in range(args.runs):
            for name, way in ways.items():
                found[name].append(measure(way, n_epochs, seed))
        for name, runs in found.items():
            accuracies, times_s = zip(*runs, strict=True)
            said = f"{statistics.mean(accuracies):.4f}"
            if args.runs > 1:
                said += f" ± {statistics.stdev(accuracies):.4f}"
            print(f"  {n_epochs} epochs  {name:10}  {said}  {statistics.median(times_s):6.1f} s")
        if statistics.mean(accuracy for accuracy, _ in found["minilearn"]) >= 0.9:
            return


if __name__ == "__main__":
    main()
