"""Measure what checkpoints cost, for a model of 25 million parameters with AdamW: 300 MB each.

An MLP of 4 layers of 2,500, batches of 64, which is quick for its size, so that the share of the checkpoints
is large: a step of a ResNet-50, of as many parameters, takes many times as long. In turn, so that the
machine's moods hit both alike: a fit without, and one with CheckpointCB(every_steps=steps), whose only
checkpoint is written after the last step.

Run: python benchmarks/checkpoint.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import kind_of, run
from torch import nn

from minilearn import MLP, CheckpointCB, DeviceCB, Learner, MetricsCB, set_seed

WIDTH, BATCH = 2500, 64


class TimedCheckpointCB(CheckpointCB):
    """Note the time that each place of rest took."""

    def __init__(self, folder: str, every_steps: int) -> None:
        super().__init__(folder, every_steps=every_steps)
        self.times_s: list[float] = []

    def at_rest(self, learn: Any) -> None:
        """Write, perhaps."""
        if not learn.scopes:
            return  # the fit's end
        start_s = time.perf_counter()
        super().at_rest(learn)
        self.times_s.append(time.perf_counter() - start_s)


def fit(model: nn.Module, batches: list[Any], device: torch.device, cbs: list[Any]) -> float:
    """Train one epoch; return its seconds."""
    learn = Learner(
        model, {"train": batches}, lr=1e-4, cbs=[DeviceCB(device), MetricsCB(), *cbs], default_cbs=False
    )
    start_s = time.perf_counter()
    learn.fit(1)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start_s


def measure(device: torch.device, n_steps: int, rounds: int) -> None:
    """Print the share of checkpoints in the time of a run, and their size."""
    set_seed(0)
    model = MLP(WIDTH, WIDTH, WIDTH, WIDTH, WIDTH, 10).to(device)
    xs, ys = torch.randn(4, BATCH, WIDTH, device=device), torch.randint(10, (4, BATCH), device=device)
    batches = [(xs[i % 4], ys[i % 4]) for i in range(n_steps)]
    without, writes, idle, size = [], [], [], 0
    for i in range(rounds + 1):
        plain_s = fit(model, batches, device, [])
        with tempfile.TemporaryDirectory() as folder:
            cb = TimedCheckpointCB(folder, n_steps)
            fit(model, batches, device, [cb])
            size = max(path.stat().st_size for path in Path(folder).iterdir())
        if i:
            without.append(plain_s)
            writes.append(max(cb.times_s))
            idle.append(statistics.median(cb.times_s))
    n_params = sum(p.numel() for p in model.parameters())
    tensors = 4 * (3 * n_params + len(list(model.parameters())))  # weights, two averages, and a step for each
    shares = [write / (write + plain) for write, plain in zip(writes, without, strict=True)]
    write_s, plain_s = statistics.median(writes), statistics.median(without)
    print(f"{kind_of(device)}, torch {torch.__version__}, {n_params / 1e6:.1f} million parameters, AdamW")
    print(f"  {n_steps} steps without       {plain_s:6.2f} s   (median of {rounds})")
    print(f"  a checkpoint            {write_s:6.2f} s   (min {min(writes):.2f}, max {max(writes):.2f})")
    print(
        f"  share of the run        {100 * statistics.median(shares):6.2f} %   at one every {n_steps} steps"
    )
    print(f"  a step without one      {1e6 * statistics.median(idle):6.2f} us")
    print(f"  size                    {size / 1e6:6.1f} MB  ({size / tensors:.4f} times its tensors)")


if __name__ == "__main__":
    run(__doc__, measure, n_steps=100, rounds=3)
