"""Measure minilearn beside other frameworks: the same models, data, optimizer, schedule and metrics in each.

Two workloads:

    loop     the cost of a step: a 784-32-10 MLP, batches of 64 that are ready in memory, AdamW under
             OneCycleLR, loss and accuracy tracked; in microseconds per step. It is timed from the start of an
             epoch to that of the next, during a fit: what a fit sets up once is not in it
    fashion  document 003's experiment, from files on disk to a trained model: StridedCNN on Fashion-MNIST,
             six epochs, each with its validation; in seconds. Each framework has the loader of its own docs

Each measurement has its own process, which first imports everything and trains a little, uncounted. In each
round all frameworks take a turn, in a new order, so that changes in the machine's speed affect all of them;
ratios are of times in the same round. Before the rounds of "fashion", frameworks that read images with
workers try none and one per core, and keep the faster. Each framework has a file in `benchmarks/peers`, with
its settings, which are also on the page.

Run: pip install -e ".[bench]", then python benchmarks/peers.py --out docs
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

from minilearn import fashion_mnist
from minilearn.arguments import counted
from minilearn.data.sets.download import places_of
from minilearn.provenance import provenance

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # where one, page and the frameworks' files are

WORKLOADS = {"loop": 5, "fashion": 3}  # and the rounds of each


@dataclass(frozen=True)
class Peer:
    """Describe a row of the tables: its title, its file in `benchmarks/peers`, its package for pip."""

    title: str
    module: str
    distribution: str
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    data: str = "torchvision, DataLoader"  # of fashion
    has_workers: bool = True  # which read it


MEMORY: dict[str, Any] = {"data": "tensors", "has_workers": False}
PAIRS: dict[str, Any] = {"data": "pairs of tensors, DataLoader", "has_workers": False}
ARRAYS: dict[str, Any] = {"data": "numpy arrays", "has_workers": False}
PEERS = {
    "usual": Peer("usual loop by hand", "by_hand", "torch"),
    "in-memory": Peer("usual loop, tensors in memory", "in_memory", "torch", ("fashion",), **MEMORY),
    "minilearn": Peer("minilearn", "with_minilearn", "minilearn", **MEMORY),
    "accelerate": Peer("HF Accelerate", "with_accelerate", "accelerate"),
    "accelerated": Peer("pytorch-accelerated", "with_accelerated", "pytorch-accelerated"),
    "fastai": Peer("fastai", "with_fastai", "fastai", **PAIRS),
    "ignite": Peer("Ignite", "with_ignite", "pytorch-ignite"),
    "keras": Peer("Keras on torch", "with_keras", "keras", **ARRAYS),
    "lightning": Peer("Lightning", "with_lightning", "lightning"),
    "barebones": Peer("Lightning, barebones", "with_barebones", "lightning", ("loop",)),
    "skorch": Peer("skorch", "with_skorch", "skorch", data="numpy arrays, DataLoader"),
    "transformers": Peer("HF Trainer", "with_transformers", "transformers"),
}


class FailedError(SystemExit):
    """The process of a framework failed."""


def run_one(name: str, **options: Any) -> dict[str, Any]:
    """Measure a framework in a new process; return the result."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    # Most use a GPU by themselves if there is one, and some use all of them.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if options["device"] == "cuda" else ""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    with tempfile.TemporaryDirectory() as folder:  # some write into the folder that they run in
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise FailedError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(workload: str, device: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure all frameworks in turn; yield a table of their times after each round.

    One that fails is left out from there on, with its message, and has no row.
    """
    names = [name for name in args.only if workload in PEERS[name].workloads]
    rounds = args.rounds or WORKLOADS[workload]
    rows: dict[str, Any] = {name: {"times": [], "accuracies": []} for name in names}
    options = {"workload": workload, "device": device, "steps": args.steps, "epochs": args.epochs}
    workers = dict.fromkeys(names, 0)
    if workload == "fashion":
        workers |= {name: best_workers(name, options) for name in names if PEERS[name].has_workers}
    measured_by: set[tuple[str, int]] = set()
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if name not in rows:
                continue
            try:
                found = run_one(name, seed=i, workers=workers[name], **options)
            except FailedError as error:
                if name == "usual":  # which the others are compared with
                    raise
                del rows[name]
                print(f"{workload}, {device}: {name} fails, and is left out\n{error}", file=sys.stderr)
                continue
            measured_by.add((found["device"], found["threads"]))
            if len(measured_by) != 1:
                raise SystemExit(f"not the same device or number of threads in all: {sorted(measured_by)}")
            row = rows[name]
            row["times"].append(found["time"])
            row["accuracies"].append(found["accuracy"])
            row |= {"title": PEERS[name].title, "version": found["version"], "settings": found["settings"]}
            if workload == "fashion":
                n = f", {counted(workers[name], 'worker')}" if PEERS[name].has_workers else ""
                row["data"] = PEERS[name].data + n
            said = f"{found['time']:.1f}, accuracy {found['accuracy']:.4f}, loss {found['loss']:.4f}"
            print(f"{workload}, {device}, round {i + 1}/{rounds}: {name} {said}", file=sys.stderr)
        yield {
            "workload": workload,
            "device_type": device,
            **provenance(),
            **{"device": found["device"], "threads": found["threads"]},  # of the processes that measured
            "rounds": i + 1,
            "n": args.steps if workload == "loop" else args.epochs,
            "seeds": list(range(i + 1)),
            "rows": rows,
        }


def best_workers(name: str, options: dict[str, Any]) -> int:
    """Return the faster number of workers, none or one per core, by the better of two epochs."""
    options = {**options, "epochs": 1, "seed": 0}
    n_cores = min(os.cpu_count() or 1, 8)
    tries = [(n, run_one(name, workers=n, **options)["time"]) for n in (0, n_cores, 0, n_cores)]
    times_s = {n: min(time_s for m, time_s in tries if m == n) for n in (0, n_cores)}
    said = ", ".join(f"{counted(n, 'worker')} {time_s:.1f} s" for n, time_s in times_s.items())
    print(f"fashion, {options['device']}, one epoch: {name} {said}", file=sys.stderr)
    return min(times_s, key=lambda n: times_s[n])


def check(names: list[str], workloads: list[str]) -> None:
    """Report now what would be missing later: packages, and the images (downloaded if possible)."""
    if torch.backends.mps.is_available():
        raise SystemExit(
            "measured on the CPU and on CUDA; here some would take the GPU by themselves, by MPS"
        )
    installed = {dist.name.lower().replace("_", "-") for dist in distributions()}
    needed = dict.fromkeys(PEERS[name].distribution for name in names)
    if missing := [name for name in needed if name not in installed]:
        raise SystemExit(f'not installed: {", ".join(missing)}. Write: pip install -e ".[bench]"')
    if "fashion" in workloads:
        fashion_mnist()
        raw = Path("FashionMNIST/raw/train-images-idx3-ubyte")
        root = next(place for place in places_of(None)[0] if (place / raw).is_file())
        os.environ["MINILEARN_DATA"] = str(root.resolve())  # all find the same


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, help="one of the two (default: both)")
    parser.add_argument(
        "--only", nargs="+", choices=PEERS, help="these, besides the usual loop (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, help="rounds of each workload (default: 5 of loop, 3 of fashion)"
    )
    parser.add_argument("--steps", type=int, default=938, help="steps in an epoch of loop (default: 938)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of fashion (default: 6)")
    parser.add_argument("--out", type=Path, help="folder to write peers.json, peers.md and peers.png to")
    parser.add_argument(
        "--redraw", action="store_true", help="write page and chart again, from --out's peers.json"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="this one only (default: both, if there)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    for name in ("--seed", "--workers"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.redraw and not (args.out and (args.out / "peers.json").is_file()):
        parser.error("--redraw needs --out, a folder with peers.json")
    if min(args.steps, args.epochs, 1 if args.rounds is None else args.rounds) < 1:
        parser.error("--steps, --epochs and --rounds: expected 1 or more")
    args.only = [name for name in PEERS if args.only is None or name in {*args.only, "usual"}]
    return args


def main() -> None:
    """Run as a script."""
    args = parse()
    if args.one:
        one: Any = importlib.import_module("one")
        peer = PEERS[args.one]
        n = args.steps if args.workload == "loop" else args.epochs
        found = one.measure(peer.module, args.workload, torch.device(args.device), n, args.seed, args.workers)
        print(json.dumps({**found, "version": version(peer.distribution).split("+")[0]}))
        return
    page: Any = importlib.import_module("page")
    path = args.out / "peers.json" if args.out else None
    tables = json.loads(path.read_text())["tables"] if path and path.is_file() else []
    if not args.redraw:
        workloads = [args.workload] if args.workload else list(WORKLOADS)
        check(args.only, workloads)
        there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        for device in [args.device] if args.device else there:
            for workload in workloads:
                for table in measure(workload, device, args):
                    key = table["workload"], page.kind(table)
                    tables = [old for old in tables if (old["workload"], page.kind(old)) != key] + [table]
                    if path:  # after each round, because the next one may fail
                        args.out.mkdir(parents=True, exist_ok=True)
                        path.write_text(json.dumps({"tables": tables}, indent=1) + "\n")
                print(page.text_of(table), flush=True)
    if args.out:
        (args.out / "peers.md").write_text(page.page({"tables": tables}))
        page.draw({"tables": tables}).savefig(args.out / "peers.png", dpi=120)


if __name__ == "__main__":
    main()
