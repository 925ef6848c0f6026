"""What the benchmarks share: options, and a measurement on each device that there is."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch


def kind_of(device: torch.device) -> str:
    """Return a device's name, for the head of a table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def run(
    doc: str | None, measure: Callable[[torch.device, int, int], None], n_steps: int, rounds: int
) -> None:
    """Read --steps and --rounds, with these defaults, and measure on the CPU, and on CUDA if it is there."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=n_steps, help=f"steps in a round (default: {n_steps})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds that count (default: {rounds})")
    args = parser.parse_args()
    measure(torch.device("cpu"), args.steps, args.rounds)
    if torch.cuda.is_available():
        measure(torch.device("cuda"), args.steps, args.rounds)
