"""Measure what a step of each optimizer costs, against torch's counterpart in foreach mode.

Each pair steps the same parameters with the same gradients, in turn, again and again, so that changes
in the machine's speed affect both. The ratio is the median over rounds of (ours / torch's).

Run: python benchmarks/optimizers.py --out docs/measured
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import SEED, head, run, spread_of
from torch import nn

from minilearn import MLP, StridedCNN, set_seed
from minilearn.arguments import counted
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
    """Return microseconds per step."""
    start_s = time.perf_counter()
    for _ in range(n_steps):
        opt.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start_s) / n_steps * 1e6


def measure(device: torch.device, n_steps: int, rounds: int) -> dict[str, Any]:
    """Return microseconds per step of each pair, for each model, in each round."""
    rows: list[dict[str, Any]] = []
    for name, makers in PAIRS.items():
        for of, make_model in MODELS.items():
            set_seed(SEED)
            models = [make_model().to(device) for _ in makers]
            n_tensors = 0
            for model in models:
                params = list(model.parameters())
                n_tensors = len(params)
                for p in params:
                    p.grad = torch.randn_like(p)
            opts = [make(m.parameters(), lr=LR, foreach=True) for make, m in zip(makers, models, strict=True)]
            ours_us, torch_us = [], []
            for i in range(rounds + 1):
                order = (0, 1) if i % 2 else (1, 0)
                times = {j: step_time_us(opts[j], n_steps, device) for j in order}
                if i:  # the first round warms up
                    ours_us.append(times[0])
                    torch_us.append(times[1])
            row = {"optimizer": name, "parameters": of, "tensors": n_tensors}
            rows.append(row | {"ours_us": ours_us, "torch_us": torch_us})
    return {"rows": rows}


def said(result: dict[str, Any]) -> str:
    """Return a result as text: a row for each pair and model, with both times per step and their ratio."""
    lines = []
    rounds = f"{counted(result['rounds'], 'round')} of {counted(result['steps'], 'step')}, foreach"
    for table in result["tables"]:
        lines.append(f"{head(result, table['device'])}, {rounds}")
        columns = f"{'optimizer':14}{'parameters':18}{'tensors':>8}{'ours us':>10}{'torch us':>10}"
        lines.append(f"{columns}{'ratio':>8}{'min':>8}{'max':>8}")
        for row in table["rows"]:
            of_both = (row["ours_us"], row["torch_us"])
            ratio = spread_of([a / b for a, b in zip(*of_both, strict=True)])
            what = f"{row['optimizer']:14}{row['parameters']:18}{row['tensors']:8}"
            times = "".join(f"{spread_of(us)['median']:10.1f}" for us in of_both)
            lines.append(what + times + "".join(f"{ratio[key]:8.2f}" for key in ("median", "min", "max")))
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, "optimizers", measure, said, n_steps=50, rounds=31)
