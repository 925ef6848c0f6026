"""Measure on one GPU what the pages have for a CPU, within a time that is set: two calls of 9 minutes.

    cifar10     the tests marked gpu; the cost of a step; what each speed tool gains, with the captured step
                and float16 under its scaler; the speedrun, three times; the step of other frameworks
    imagenette  document 000 with its own network, ResNet50 at 128 pixels, and all four methods at once

Each part is a process of its own. It writes its result into --out when it is done; gpu.json there says what
ran, for how long, on which device with which torch, and what was skipped and why. Start the command again
with the same --out and --work, and it runs what is missing; document 000 continues where it was stopped.

Needs no network. Packages that are not there (peers, torcheval) leave out their part, and that is said.

Run: python benchmarks/gpu.py cifar10 --out docs/measured/gpu, then the same with imagenette
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from harness import head, positive
from peers import PEERS

from minilearn.provenance import provenance

REPO = Path(__file__).parents[1]
BENCHMARKS, EXAMPLES = Path("benchmarks"), Path("examples")  # from there, as the results name them
END_S = 15.0  # of a call's time, for what a part writes when it is stopped


@dataclass(frozen=True)
class Part:
    """Describe a part of a call.

    Args:
        command: its words after the interpreter; {out} and {work} stand for the folders.
        small: more words with --smoke.
        result: the file that it writes into the folder of results; None: only its exit code counts.
        takes_rest: it is worth starting however little time is left, because it continues later.
    """

    command: tuple[str, ...]
    small: tuple[str, ...] = ()
    result: str | None = None
    takes_rest: bool = False


def parts_of(call: str, device: str, peers: Sequence[str]) -> dict[str, Part]:
    """Return the parts of a call, in their order: name -> part.

    Args:
        peers: which frameworks are measured.
    """
    script = {name: str(BENCHMARKS / f"{name}.py") for name in ("overhead", "speed_tools", "peers")}
    here = ("--device", device, "--out", "{out}")
    files = sorted(
        str(path.relative_to(REPO))
        for path in (REPO / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text()
    )
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-n0", "-m", "gpu")
    one = "tests/callbacks/test_device.py"
    speedrun = (str(EXAMPLES / "cifar10_speedrun.py"), "--runs", "3", "--out", "{out}")
    state = (str(EXAMPLES / "optimizer_state.py"), "--out", "{out}", "--work", "{work}/optimizer_state")
    found = {
        "cifar10": {
            "tests": Part((*tests, *([one] if device == "cpu" else files))),
            "overhead": Part((script["overhead"], *here), ("--steps", "5", "--rounds", "1"), "overhead.json"),
            "speed_tools": Part(
                (script["speed_tools"], *here, "--steps", "20"),
                ("--steps", "2", "--rounds", "1", "--bs", "4"),
                "speed_tools.json",
            ),
            "speedrun": Part(
                speedrun,
                ("--runs", "1", "--epochs", "1", "--bs", "16", "--images", "64"),
                "cifar10_speedrun.json",
            ),
            "peers": Part(
                (script["peers"], *here, "--workload", "loop", "--rounds", "3", "--only", *peers),
                ("--steps", "5", "--rounds", "1", "--only", "minilearn"),
                "peers.json",
            ),
        },
        "imagenette": {
            "document 000": Part(
                (*state, "--preset", "full", "--jobs", "4"),
                ("--preset", "small", "--only", "new optimizer", "--jobs", "1"),
                f"optimizer_state_imagenette_{'full' if device == 'cuda' else 'small'}.json",
                takes_rest=True,
            ),
        },
    }
    return found[call]


def installed() -> list[str]:
    """Return the peers whose package is installed."""
    names = {dist.name.lower().replace("_", "-") for dist in distributions()}
    return [name for name, peer in PEERS.items() if peer.distribution in names and "loop" in peer.workloads]


def run_part(part: Part, args: argparse.Namespace, left_s: float) -> dict[str, Any]:
    """Run a part for at most so many seconds; return what came of it. Its output goes to gpu.log."""
    words = [*part.command, *(part.small if args.smoke else ())]
    places = {"{out}": str(args.out.resolve()), "{work}": str(args.work.resolve())}
    for old, new in places.items():
        words = [word.replace(old, new) for word in words]
    start_s = time.perf_counter()
    env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join([str(REPO), *paths()])}
    if args.smoke:
        env["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes a minute
    with (args.out / "gpu.log").open("a") as log:
        log.write(f"\n$ python {' '.join(words)}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *words], stdout=log, stderr=log, env=env, cwd=REPO, start_new_session=True
        )
        try:
            process.wait(max(left_s, 1))
            end = f"exit code {process.returncode}" if process.returncode else "done"
        except subprocess.TimeoutExpired:
            end = f"stopped after {left_s:.0f} s, when the call's time was up"
            os.killpg(process.pid, signal.SIGTERM)  # a training writes a checkpoint
            try:
                process.wait(END_S / 2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if end.startswith("exit code"):
        tail = (args.out / "gpu.log").read_text().strip().splitlines()[-1]
        end = f"{end}: {tail}"
    return {"end": end, "seconds": time.perf_counter() - start_s, "command": " ".join(["python", *words])}


def said(result: dict[str, Any]) -> str:
    """Return a result as text: how each part ended, and how long it took."""
    parts = result["parts"]
    width = max(len(name) for name in parts)
    lines = [
        f"{name:{width}}  {part.get('seconds', 0):5.0f} s  {part['end']}" for name, part in parts.items()
    ]
    return "\n".join([head(result), *lines])


def paths() -> list[str]:
    """Return the entries of PYTHONPATH, such as a folder of packages that were carried along."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "call", choices=["cifar10", "imagenette"], nargs="?", help="default with --smoke: both"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="default: runs/gpu")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu/work"), help="for checkpoints")
    parser.add_argument("--minutes", type=positive, default=9, help="of this call (default: 9)")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, default=installed(), help="default: all that are installed"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of each part, on any machine")
    args = parser.parse_args()
    if not (args.smoke or torch.cuda.is_available()):
        parser.error("no CUDA device; --smoke runs a few steps of each part on the CPU")
    if not (args.smoke or args.call):
        parser.error("which call: cifar10 or imagenette?")
    start_s = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu.json"
    done: dict[str, Any] = json.loads(path.read_text())["parts"] if path.is_file() else {}
    device = "cuda" if torch.cuda.is_available() and not args.smoke else "cpu"
    for call in [args.call] if args.call else ["cifar10", "imagenette"]:
        for name, part in parts_of(call, device, args.peers).items():
            if done.get(name, {}).get("end") == "done":
                print(f"{name}: done before")
                continue
            left_s = 60 * args.minutes - END_S - (time.perf_counter() - start_s)
            if left_s < (0 if part.takes_rest else 20):
                done[name] = {"end": f"skipped: {max(left_s, 0):.0f} s were left of {args.minutes} minutes"}
            else:
                done[name] = run_part(part, args, left_s)
                if part.result and done[name]["end"] == "done" and not (args.out / part.result).is_file():
                    done[name]["end"] = f"wrote no {part.result}"
            about = {"benchmark": "gpu", **provenance(), "parts": done}
            path.write_text(json.dumps(about, indent=1) + "\n")  # after each, because the machine may go
            print(f"{name}: {done[name]['end']}", flush=True)
    if missing := [name for name in PEERS if name not in args.peers and "loop" in PEERS[name].workloads]:
        print(f"frameworks that were left out: {', '.join(missing)}")
    if any(part["end"] != "done" for part in done.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
