"""Measure what checkpoints cost, for a model of 25 million parameters with AdamW: 300 MB each.

The model is an MLP of 4 layers of 2,500, with batches of 64. It is fast for its size, so the share of the
checkpoints is large: a step of a ResNet-50 with as many parameters takes many times as long. Two fits
alternate, so that changes in the machine's speed affect both: one without checkpoints, and one with
CheckpointCB(every_steps=steps), whose only checkpoint is written after the last step.

Run: python benchmarks/checkpoint.py --out docs/measured
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import SEED, extremes, head, run, spread_of
from torch import nn

from minilearn import MLP, CheckpointCB, DeviceCB, Learner, MetricsCB, set_seed
from minilearn.arguments import counted

WIDTH, BATCH = 2500, 64


class TimedCheckpointCB(CheckpointCB):
    """Note the time of each rest."""

    def __init__(self, folder: str, every_steps: int) -> None:
        super().__init__(folder, every_steps=every_steps)
        self.times_s: list[float] = []

    def at_rest(self, learn: Any) -> None:
        """Write a checkpoint, if it is time for one."""
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


def measure(device: torch.device, n_steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of a run without checkpoints, of a checkpoint, and of a step without one; its size.

    Keys:
        without_s, checkpoint_s: of each round.
        idle_s: the callback's time at a step without a checkpoint, the median of each round.
    """
    set_seed(SEED)
    model = MLP(WIDTH, WIDTH, WIDTH, WIDTH, WIDTH, 10).to(device)
    xs, ys = torch.randn(4, BATCH, WIDTH, device=device), torch.randint(10, (4, BATCH), device=device)
    batches = [(xs[i % 4], ys[i % 4]) for i in range(n_steps)]
    without_s, checkpoint_s, idle_s, size = [], [], [], 0
    for i in range(rounds + 1):
        plain_s = fit(model, batches, device, [])
        with tempfile.TemporaryDirectory() as folder:
            cb = TimedCheckpointCB(folder, n_steps)
            fit(model, batches, device, [cb])
            size = max(path.stat().st_size for path in Path(folder).iterdir())
        if i:
            without_s.append(plain_s)
            checkpoint_s.append(max(cb.times_s))
            idle_s.append(statistics.median(cb.times_s))
    n_params = sum(p.numel() for p in model.parameters())
    tensors = 4 * (3 * n_params + len(list(model.parameters())))  # weights, two averages, and a step for each
    sizes = {"parameters": n_params, "tensor_bytes": tensors, "file_bytes": size}
    return {**sizes, "without_s": without_s, "checkpoint_s": checkpoint_s, "idle_s": idle_s}


def said(result: dict[str, Any]) -> str:
    """Return a result as text: the share of checkpoints in the time of a run, and their size."""
    lines = []
    n_steps = result["steps"]
    for table in result["tables"]:
        plain_s, write_s = table["without_s"], table["checkpoint_s"]
        shares = [100 * write / (write + plain) for write, plain in zip(write_s, plain_s, strict=True)]
        size, tensors = table["file_bytes"], table["tensor_bytes"]
        million = f"{table['parameters'] / 1e6:.1f} million parameters, AdamW"
        where = f"{head(result, table['device'])}, {million}, {counted(result['rounds'], 'round')}"
        rows = (
            (f"{counted(n_steps, 'step')} without", "s", plain_s),
            ("a checkpoint", "s", write_s),
            (f"share, one every {counted(n_steps, 'step')}", "%", shares),
            ("a step without one", "us", [1e6 * time_s for time_s in table["idle_s"]]),
        )
        lines.append(where)
        for what, unit, values in rows:
            lines.append(f"  {what:28} {spread_of(values)['median']:6.2f} {unit:2}  {extremes(values, 2)}")
        lines.append(f"  {'size':28} {size / 1e6:6.1f} MB  ({size / tensors:.4f} times its tensors)")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, "checkpoint", measure, said, n_steps=100, rounds=3)
