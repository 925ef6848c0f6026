"""Measure what a step costs in minilearn, against loops written by hand.

A 784-32-10 MLP, batches of 64 that are ready in memory, AdamW under OneCycleLR, loss and accuracy
tracked. Three loops do this work, one epoch each in turn, again and again, so that changes in the
machine's speed affect all of them; a warm-up round is not counted.

    same     a loop by hand with the same work: fused AdamW, torcheval's accuracy, the loss summed on
             the device, lr, momentum and loss recorded
    usual    the loop that people usually write: default AdamW, loss and accuracy by .item() each step
    minilearn  Learner with MetricsCB(MulticlassAccuracy()), RecorderCB, BatchSchedulerCB(OneCycleLR)

Run: python benchmarks/overhead.py --out docs/measured
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from harness import SEED, extremes, head, run, spread_of
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import MLP, BatchSchedulerCB, DeviceCB, Learner, MetricsCB, RecorderCB, set_seed
from minilearn.arguments import counted

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from torcheval.metrics import MulticlassAccuracy

Batches = list[tuple[Tensor, Tensor]]
LR = 1e-2


def same_work(batches: Batches, device: torch.device) -> float:
    """Train one epoch by hand, with the work and settings of the Learner; return its accuracy."""
    model = MLP(784, 32, 10).to(device)
    opt = torch.optim.AdamW(model.parameters(), LR, fused=True)
    sched = OneCycleLR(opt, LR, total_steps=len(batches))
    metric, total, n = (
        MulticlassAccuracy(device=device),
        torch.zeros((), dtype=torch.float64, device=device),
        0,
    )
    lrs, moms, losses = [], [], []
    model.train()
    for i, (xb, yb) in enumerate(batches):
        xb, yb = xb.to(device), yb.to(device)
        preds = model(xb)
        loss = F.cross_entropy(preds, yb)
        loss.backward()  # type: ignore[no-untyped-call]
        opt.step()
        group = opt.param_groups[0]
        lrs.append(group["lr"])
        moms.append(group["betas"][0])
        losses.append(loss.detach())
        if i + 1 < len(batches):
            sched.step()
        opt.zero_grad()
        metric.update(preds.detach(), yb)
        total.add_(loss.detach(), alpha=len(xb))
        n += len(xb)
    _ = torch.stack(losses).tolist(), total.item() / n
    return float(metric.compute())


def usual(batches: Batches, device: torch.device) -> float:
    """Train one epoch as most tutorials do; return its accuracy."""
    model = MLP(784, 32, 10).to(device)
    opt = torch.optim.AdamW(model.parameters(), LR)
    sched = OneCycleLR(opt, LR, total_steps=len(batches) + 1)
    total, correct, n = 0.0, 0, 0
    model.train()
    for xb, yb in batches:
        xb, yb = xb.to(device), yb.to(device)
        opt.zero_grad()
        preds = model(xb)
        loss = F.cross_entropy(preds, yb)
        loss.backward()  # type: ignore[no-untyped-call]
        opt.step()
        sched.step()
        total += loss.item() * len(xb)
        correct += (preds.argmax(1) == yb).sum().item()
        n += len(xb)
    return correct / n


def minilearn(batches: Batches, device: torch.device) -> float:
    """Train one epoch with a Learner; return its accuracy."""
    cbs: list[Any] = [
        DeviceCB(device),
        MetricsCB(MulticlassAccuracy()),
        RecorderCB(),
        BatchSchedulerCB(OneCycleLR),
    ]
    learn = Learner(MLP(784, 32, 10), {"train": batches}, lr=LR, cbs=cbs, default_cbs=False)
    learn.fit(1)
    return float(learn.history[0]["MulticlassAccuracy"])


def measure(device: torch.device, n_steps: int, rounds: int) -> dict[str, Any]:
    """Return microseconds per step of each loop in each round."""
    set_seed(SEED)
    xs = torch.randn(n_steps, 64, 784, device=device)
    ys = torch.randint(10, (n_steps, 64), device=device)
    batches = list(zip(xs, ys, strict=True))
    loops: dict[str, Callable[[Batches, torch.device], float]] = {
        "same": same_work,
        "usual": usual,
        "minilearn": minilearn,
    }
    times_us: dict[str, list[float]] = {name: [] for name in loops}
    for i in range(rounds + 1):
        names = list(loops)
        for name in names[i % 3 :] + names[: i % 3]:
            set_seed(SEED)
            start_s = time.perf_counter()
            loops[name](batches, device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i:
                times_us[name].append((time.perf_counter() - start_s) / n_steps * 1e6)
    return {"times_us": times_us}


def ratios(table: dict[str, Any]) -> dict[str, list[float]]:
    """Return minilearn's time in each round, as a multiple of each other loop's in the same round."""
    times_us = table["times_us"]
    return {
        name: [own / other for own, other in zip(times_us["minilearn"], others, strict=True)]
        for name, others in times_us.items()
        if name != "minilearn"
    }


def said(result: dict[str, Any]) -> str:
    """Return a result as text: microseconds per step of each loop, and the ratios."""
    lines = []
    rounds = f"{counted(result['rounds'], 'round')} of {counted(result['steps'], 'step')}"
    for table in result["tables"]:
        lines.append(f"{head(result, table['device'])}, {rounds}")
        for name, us in table["times_us"].items():
            lines.append(f"  {name:9}  {spread_of(us)['median']:7.1f} us a step  {extremes(us, 1)}")
        for name, each in ratios(table).items():
            spread = f"median of {counted(len(each), 'ratio')}; {extremes(each, 3)[1:-1]}"
            lines.append(f"  minilearn / {name:5}  {spread_of(each)['median']:.3f}  ({spread})")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, "overhead", measure, said, n_steps=938, rounds=21)  # an epoch of MNIST
