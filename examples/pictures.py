"""Draw the pictures in examples/results again, from the results there.

Run: python examples/pictures.py, with the data's folder in MINILEARN_DATA, for the images of the mistakes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asides
import cifar10_schedules
import fashion_mnist
import fashion_mnist_optimizers
import mnist_optimizers
import optimizer_state
import swats
from tables import (
    ASIDES,
    EQUAL,
    LONG,
    MAIN_JOB,
    QUARTER,
    ROOT,
    SCHEDULES,
    SCRATCH,
    STATE,
    STATE_FULL,
    SWATS,
    TOUR,
    result,
)

import minilearn


def draw_main_job(found: dict[str, Any], out: Path, name: str) -> None:
    """Draw the pictures of fashion_mnist.py, which need the data for the images of the mistakes."""
    fashion_mnist.draw(found, out, name, minilearn.fashion_mnist(fashion_mnist.BS))


DRAW: dict[str, Callable[[dict[str, Any], Path, str], None]] = {
    STATE: optimizer_state.draw,
    STATE_FULL: optimizer_state.draw,
    SCHEDULES: cifar10_schedules.draw,
    EQUAL: cifar10_schedules.draw,
    LONG: cifar10_schedules.draw,
    TOUR: mnist_optimizers.draw,
    SCRATCH: fashion_mnist_optimizers.draw,
    SWATS: swats.draw,
    QUARTER: swats.draw,
    **dict.fromkeys(ASIDES, asides.draw),
    MAIN_JOB: draw_main_job,
}


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    folder = ROOT / "examples" / "results"
    parser.add_argument("--only", help="the name of one result, such as swats_cpu")
    parser.add_argument(
        "--out", type=Path, default=folder, help="for the pictures (default: examples/results)"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAW.items():
        if args.only in (None, name):
            draw(result(name), args.out, name)


if __name__ == "__main__":
    main()
