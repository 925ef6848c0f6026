"""Measure what a step of each optimizer costs, against torch's counterpart in foreach mode.

Each pair steps the same parameters with the same gradients, in turn, again and again, so that the
machine's moods hit both alike. The ratio is the median over rounds of (ours / torch's).

Run: python benchmarks/optimizers.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import kind_of, run
from torch import nn

from minilearn import MLP, StridedCNN, set_seed
from minilearn.optim import SGD, SWATS, AdaBound, Adam, MomentumSGD, RMSProp, SGDAlternate

LR = 1e-3
# ours -> (how it is made, torch's counterpart: the same sums over tensors, or nearly)
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "SGD": (SGD, torch.optim.SGD),
    "MomentumSGD": (MomentumSGD, partial(torch.optim.SGD, momentum=0.9)),
    "RMSProp": (RMSProp, torch.optim.RMSprop),
    "Adam": (Adam, torch.optim.Adam),
    "SGDAlternate": (partial(SGDAlternate, momentum=0.9), partial(torch.optim.SGD, momentum=0.9)),
    # Before any switch: the weight decay keeps the gradients, here the same ones again, from settling.
    "SWATS": (
        partial(SWATS, threshold=1e-30, weight_decay=0.1),
        partial(torch.optim.Adam, weight_decay=0.1),
    ),
    "AdaBound": (AdaBound, torch.optim.Adam),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP 784-32-10": lambda: MLP(784, 32, 10),
    "StridedCNN": StridedCNN,
    "MLP of 32 x 256": lambda: MLP(784, *[256] * 32, 10),
}


def step_time_us(opt: Any, n_steps: int, device: torch.device) -> float:
    """Return microseconds a step."""
    start_s = time.perf_counter()
    for _ in range(n_steps):
        opt.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start_s) / n_steps * 1e6


def measure(device: torch.device, n_steps: int, rounds: int) -> None:
    """Print the table: microseconds a step of both, and their ratio."""
    print(f"{kind_of(device)}, torch {torch.__version__}, {rounds} rounds of {n_steps} steps, foreach")
    print(f"{'optimizer':14}{'parameters':18}{'tensors':>8}{'ours us':>10}{'torch us':>10}{'ratio':>8}")
    for name, makers in PAIRS.items():
        for of, make_model in MODELS.items():
            set_seed(0)
            models = [make_model().to(device) for _ in makers]
            n_tensors = 0
            for model in models:
                params = list(model.parameters())
                n_tensors = len(params)
                for p in params:
                    p.grad = torch.randn_like(p)
            opts = [make(m.parameters(), lr=LR, foreach=True) for make, m in zip(makers, models, strict=True)]
            ours, theirs = [], []
            for i in range(rounds + 1):
                order = (0, 1) if i % 2 else (1, 0)
                times = {j: step_time_us(opts[j], n_steps, device) for j in order}
                if i:  # the first round warms up
                    ours.append(times[0])
                    theirs.append(times[1])
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            a, b = statistics.median(ours), statistics.median(theirs)
            print(f"{name:14}{of:18}{n_tensors:8}{a:10.1f}{b:10.1f}{ratio:8.2f}")


if __name__ == "__main__":
    run(__doc__, measure, n_steps=50, rounds=31)
