"""Measure what each speed tool gains: a step of ResNet-20 on images of 32x32, batches of 256.

All variants train side by side, a few steps each in turn, again and again, so that changes in the machine's
speed affect all of them; the first round, with the compiler's work, is not counted. The gain is plain fp32's
time divided by the variant's: the median of the rounds' ratios.

Run: python benchmarks/speed_tools.py --out docs/measured
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from harness import SEED, extremes, head, run, spread_of

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    ChannelsLastCB,
    CompileCB,
    CUDAGraphCB,
    DataLoaders,
    DeviceCB,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    resnet20,
    set_seed,
)
from minilearn.arguments import counted

BS = 256
PLAIN = "plain fp32"


def variants(device: torch.device) -> dict[str, list[Any]]:
    """Return the tools of each variant."""
    found: dict[str, list[Any]] = {
        PLAIN: [],
        "channels-last": [ChannelsLastCB()],
        "bf16": [MixedPrecisionCB()],
        "bf16, channels-last": [MixedPrecisionCB(), ChannelsLastCB()],
        "compiled": [CompileCB()],
        "bf16, channels-last, compiled": [MixedPrecisionCB(), ChannelsLastCB(), CompileCB()],
        "gradient clipping": [GradientClippingCB()],
        "EMA": [EMACB()],
        "accumulation of 2": [GradientAccumulationCB(2)],
    }
    if device.type == "cuda":
        graphs = CompileCB(mode="reduce-overhead")
        found["bf16, channels-last, captured step"] = [MixedPrecisionCB(), ChannelsLastCB(), CUDAGraphCB()]
        found["fp16 with scaler"] = [MixedPrecisionCB(torch.float16)]
        found["bf16, channels-last, CUDA graphs"] = [MixedPrecisionCB(), ChannelsLastCB(), graphs]
    return found


def learner(tools: list[Any], device: torch.device, n_steps: int, bs: int) -> Learner:
    """Return a learner over `n_steps` batches that are ready on the device."""
    set_seed(SEED)
    xs = torch.randn(n_steps, bs, 3, 32, 32, device=device)
    ys = torch.randint(10, (n_steps, bs), device=device)
    dls = DataLoaders(list(zip(xs, ys, strict=True)))
    schedule = BatchSchedulerCB(torch.optim.lr_scheduler.OneCycleLR, cycle_momentum=False)  # for the graph
    cbs = [DeviceCB(device), MetricsCB(), schedule, *tools]
    opt_func = partial(torch.optim.SGD, momentum=0.9)
    return Learner(resnet20(), dls, lr=0.1, cbs=cbs, opt_func=opt_func, default_cbs=False)


def measure(device: torch.device, n_steps: int, rounds: int, bs: int = BS) -> dict[str, Any]:
    """Return milliseconds per batch of each variant in each round."""
    learners = {name: learner(tools, device, n_steps, bs) for name, tools in variants(device).items()}
    times_ms: dict[str, list[float]] = {name: [] for name in learners}
    names = list(learners)
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start_s = time.perf_counter()
            learners[name].fit(1)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i:
                times_ms[name].append((time.perf_counter() - start_s) / n_steps * 1e3)
    return {"bs": bs, "times_ms": times_ms}


def said(result: dict[str, Any]) -> str:
    """Return a result as text: milliseconds per batch of each variant, and its gain over plain fp32."""
    lines = []
    for table in result["tables"]:
        rounds = f"{counted(result['rounds'], 'round')} of {result['steps']} x {table['bs']}"
        lines.append(f"{head(result, table['device'])}, ResNet-20, {rounds}")
        width = max(len(name) for name in table["times_ms"])
        for name, ms in table["times_ms"].items():
            gains = [plain / own for plain, own in zip(table["times_ms"][PLAIN], ms, strict=True)]
            time = f"{spread_of(ms)['median']:7.1f} ms a batch  {extremes(ms, 1):26}"
            lines.append(
                f"  {name:{width}} {time}  gain {spread_of(gains)['median']:.2f} {extremes(gains, 2)}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, "speed_tools", measure, said, n_steps=4, rounds=7, bs=BS)
