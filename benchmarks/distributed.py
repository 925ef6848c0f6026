"""Measure what several processes gain here, and plan what they would gain on 8 to 1,024 GPUs.

Measured on this machine, in processes of one thread each, over gloo: a step of ResNet-20 on a global batch in
one process and in two, which take turns, and the time to exchange the gradients. The plan is arithmetic: it
derives the time of a step, and what limits it, from a model's size and the speeds at the top of this file.

Run: python benchmarks/distributed.py --out docs/measured; with --plan it prints the plan
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from harness import SEED, about, extremes, parser_of, positive, report
from torch import nn

from minilearn import (
    Callback,
    DataLoaders,
    DeviceCB,
    DistributedCB,
    Learner,
    TensorLoader,
    resnet20,
    set_seed,
)
from minilearn.arguments import counted
from minilearn.provenance import device_name

PROCESSES = (1, 2)  # that are measured

# What the plan assumes of a machine: 8 H100 a node.
FLOPS = 400e12  # a GPU reaches in bfloat16, 40 % of its peak
NVLINK = 360e9  # bytes/s of a GPU, to others of its node
NETWORK = 40e9  # bytes/s of a GPU, to other nodes: 400 Gbit/s, at 80 %
MEMORY = 80e9  # bytes of a GPU
DISK = 1e9  # bytes/s, of one file
DECODED = 20e3  # images/s that the CPUs of a node read and decode
PER_NODE = 8


@dataclass(frozen=True)
class Model:
    """Describe a model to plan for: its parameters, and the FLOP of training on a sample."""

    name: str
    n_params: float
    sample_flop: float  # three times the forward's
    is_of_images: bool
    batch: int  # of all GPUs together


MODELS = (
    Model("ResNet-50, 224 px", 25.6e6, 24.5e9, True, 8192),
    Model("ViT-L/16, 224 px", 304e6, 370e9, True, 4096),
    Model("Transformer 1.3 B, 2,048 tokens", 1.3e9, 6 * 1.3e9 * 2048, False, 512),
    Model("Transformer 7 B, 4,096 tokens", 7e9, 6 * 7e9 * 4096, False, 1024),
)


# The plan -----------------------------------------------------------------------------------------


def exchange_s(n_bytes: float, n: int) -> float:
    """Return the seconds of a reduce or all-gather of so many bytes by n GPUs: within nodes, then between."""
    inside, nodes = min(n, PER_NODE), max(1, n // PER_NODE)
    return n_bytes * (inside - 1) / inside / NVLINK + n_bytes / inside * (nodes - 1) / nodes / NETWORK


def ddp_s(model: Model, n: int) -> float:
    """Return the seconds of a step's all-reduce of gradients in float32: reduce-scatter, then all-gather."""
    return 2 * exchange_s(4 * model.n_params, n)


def fsdp_s(model: Model, n: int) -> float:
    """Return those of FSDP2: all-gather of bfloat16 weights for forward and backward, and reduce-scatter."""
    return 2 * exchange_s(2 * model.n_params, n) + exchange_s(4 * model.n_params, n)


def plan(model: Model) -> list[tuple[str, ...]]:
    """Return a row for each number of GPUs."""
    rows: list[tuple[str, ...]] = []
    whole = 16 * model.n_params  # weights, gradients and Adam's two moments, float32
    for n in (8, 64, 256, 1024):
        share = model.batch / n
        shards = whole > 0.8 * MEMORY
        comm = fsdp_s(model, n) if shards else ddp_s(model, n)
        compute = share * model.sample_flop / FLOPS
        step = max(compute, comm)  # most of it is exchanged while the GPU computes
        load = PER_NODE * share / step
        if share < 1:
            limit = f"a batch of {model.batch}: less than a sample for each"
        elif model.is_of_images and load > DECODED:
            limit = f"the loader, at {DECODED:,.0f} decoded a node"
        elif comm > compute:
            limit = "the exchange of gradients" if not shards else "the exchange of weights and gradients"
        else:
            limit = "computing"
        rows.append(
            (
                str(n),
                "shard=..." if shards else "DDP",
                f"{share:g}",
                f"{compute * 1e3:.1f}",
                f"{(3 * 2 if shards else 2 * 4) * model.n_params / 1e9:.2f}",
                f"{comm * 1e3:.1f}",
                f"{(whole / n if shards else whole) / 1e9:.1f}",
                f"{load:,.0f}",
                limit,
            )
        )
    return rows


HEAD = (
    "GPUs",
    "how",
    "samples each",
    "computing, ms",
    "GB exchanged",
    "exchange, ms",
    "GB of state each",
    "samples/s to load, a node",
    "what limits",
)


def plans() -> str:
    """Return the plan's tables, as text."""
    parts = []
    for model in MODELS:
        size, time_s = 12 * model.n_params, 12 * model.n_params / DISK
        said = (
            f"A checkpoint has {size / 1e9:.1f} GB and takes {time_s:.1f} s to write; for 1 % of the time, "
            f"one every {100 * time_s / 60:.1f} minutes."
        )
        title = f"**{model.name}**, {model.n_params / 1e9:g} billion parameters, batches of {model.batch}"
        parts.append(f"{title}\n\n{_table(HEAD, *plan(model))}\n\n{said}")
    return "\n\n".join(parts)


def _table(*rows: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


# The measurement ----------------------------------------------------------------------------------


class TimeCB(Callback):
    """Note how long each step took, without the first two."""

    order = 3000

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def after_batch(self, learn: Learner) -> None:
        """Note it."""
        self.times_s.append(time.perf_counter())


def worker(steps: int, bs: int) -> None:
    """Train in each process; print the seconds of each step and of exchanges of the gradients."""
    set_seed(SEED)
    x, y = torch.randn(bs * (steps + 2), 3, 32, 32), torch.randint(10, (bs * (steps + 2),))
    timer, model = TimeCB(), resnet20()
    cbs = [DeviceCB("cpu"), DistributedCB(), timer]
    learn = Learner(model, DataLoaders(TensorLoader(x, y, bs=bs)), cbs=cbs, default_cbs=False)
    learn.fit(1)
    steps_s = [b - a for a, b in zip(timer.times_s[1:], timer.times_s[2:], strict=False)]
    found: dict[str, Any] = {"steps_s": steps_s}
    if learn.n_processes > 1:
        found["reduces_s"] = [_reduce_s(model) for _ in range(20)]
    if learn.rank == 0:
        found["parameters"] = sum(p.numel() for p in model.parameters())
        print(json.dumps(found | {"threads": torch.get_num_threads()}), flush=True)
    if learn.n_processes > 1:
        dist.barrier()


def _reduce_s(model: nn.Module) -> float:
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    dist.barrier()
    start_s = time.perf_counter()
    dist.all_reduce(flat)
    return time.perf_counter() - start_s


def measure(rounds: int, steps: int, bs: int) -> dict[str, Any]:
    """Return the seconds of steps and of all-reduces in each round of one process and of two."""
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in PROCESSES}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(rounds):
        for n, results in found.items():
            # Standalone: on a free port, so that it does not collide with another run on this machine.
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            own = [__file__, "--worker", "--steps", str(steps), "--bs", str(bs)]
            command = [*torchrun, "--nproc-per-node", str(n), *own]
            done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    (threads,) = {result.pop("threads") for results in found.values() for result in results}
    (n_params,) = {result.pop("parameters") for results in found.values() for result in results}
    # Keys as text, as in a file.
    each = {str(n): results for n, results in found.items()}
    return {"threads": threads, "processes": list(found), "parameters": n_params, "each": each}


def said(result: dict[str, Any]) -> str:
    """Return a result as text: a step in one process and in two, the gain, and the all-reduce."""

    def ms_of(n: str, key: str) -> list[float]:
        return [statistics.median(round_[key]) * 1e3 for round_ in result["each"][n]]

    one, two, reduce_ms = ms_of("1", "steps_s"), ms_of("2", "steps_s"), ms_of("2", "reduces_s")
    gains = [a / b for a, b in zip(one, two, strict=True)]
    threads = f"{counted(result['threads'], 'thread')} a process"
    rounds = f"{counted(result['rounds'], 'round')} of {counted(result['steps'], 'step')}"
    lines = [f"{result['device']}, {threads}, torch {result['torch']}, gloo"]
    lines.append(f"ResNet-20, global batches of {result['bs']}, {rounds}")
    for name, ms in (("one process", one), ("two processes", two)):
        lines.append(f"  {name:14} {statistics.median(ms):7.1f} ms a step  {extremes(ms, 1)}")
    lines.append(f"  {'gain':14} {statistics.median(gains):7.2f}            {extremes(gains, 2)}")
    size = f"for {4 * result['parameters'] / 1e6:.2f} MB of gradients"
    all_reduce = f"{statistics.median(reduce_ms):7.2f} ms         {extremes(reduce_ms, 2)}"
    lines.append(f"  {'all-reduce':14} {all_reduce}  {size}")
    return "\n".join(lines)


def main() -> None:
    """Run as a script."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=positive, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--steps", type=positive, default=8, help="steps in a round (default: 8)")
    parser.add_argument("--bs", type=positive, default=256, help="global batch size (default: 256)")
    parser.add_argument("--plan", action="store_true", help="print the plan, and measure nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan and args.out:
        parser.error("--plan measures nothing: expected no --out")
    if args.worker:
        worker(args.steps, args.bs)
        # Everything is measured. torch 2.14 sometimes aborts when an interpreter ends after DDP over gloo,
        # without minilearn too: "terminate called without an active exception".
        os._exit(0)
    elif args.plan:
        print(plans())
    else:
        own = {"seeds": [SEED], "rounds": args.rounds, "steps": args.steps, "bs": args.bs}
        result = about("distributed", device=device_name("cpu"), **own)
        report(result | measure(args.rounds, args.steps, args.bs), said, args.out)


if __name__ == "__main__":
    main()
