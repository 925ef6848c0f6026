"""Long experiments: each run gives a JSON file, and several run at once in separate processes."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import report
import torch

from minilearn import Callback, Learner, set_seed
from minilearn.checkpoints.lock import Lock
from minilearn.provenance import device_name

Result = dict[str, Any]


class HashesCB(Callback):
    """Record a hash of the weights at each checkpoint, in hashes.jsonl beside it.

    A run that was killed and resumed is compared with one that was not, see soak.py. The weights are hashed
    when the next batch begins, before which nothing changes them, or when the fit ends.
    """

    may_come_and_go = True

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the file has what was recorded."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        """Record the checkpoint from which the fit continues."""
        self._last: Path | None = None

    def before_batch(self, learn: Learner) -> None:
        """Record a checkpoint that was written since the last batch."""
        if learn.saved_to not in (None, self._last):
            self._last = learn.saved_to
            self._record(learn, self._last)

    def cleanup_fit(self, learn: Learner) -> None:
        """Record the last checkpoint."""
        self.before_batch(learn)

    def _record(self, learn: Learner, path: Path) -> None:
        digest = hashlib.sha256()
        for name, t in sorted(learn.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        line = {"checkpoint": path.name, "steps": learn.n_steps, "sha256": digest.hexdigest()}
        with (path.parent / "hashes.jsonl").open("a") as file:
            file.write(json.dumps(line | {"cpu": device_name("cpu")}) + "\n")


def add_options(parser: argparse.ArgumentParser, script: str, names: Sequence[str]) -> None:
    """Add the options that scripts of several long experiments share."""
    parser.add_argument("--only", choices=names, metavar="NAME", help=f"one of: {'; '.join(names)}")
    parser.add_argument("--jobs", type=report.positive, default=1, help="processes at once (default: 1)")
    parser.add_argument("--bs", type=report.positive, help="batch size (default: the preset's)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs") / script,
        help=f"for checkpoints and what is done already (default: runs/{script})",
    )
    parser.add_argument("--no-report", action="store_true", help="only run; for --jobs")


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with this folder, which holds only the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    while lock.take():
        time.sleep(1)
    try:
        yield
    finally:
        lock.free()


def slug(name: str) -> str:
    """Return a name in the form of a file name: "one-cycle-then-swa"."""
    return re.sub(r"\W+", "-", name.lower())


def path_of(folder: Path, name: str, seed: int) -> Path:
    """Return the file of an experiment's result, next to the folder of its checkpoints."""
    return folder / str(seed) / f"{slug(name)}.json"


def seeds_of(args: argparse.Namespace) -> range:
    """Return the seeds of the runs."""
    return range(args.seed, args.seed + args.runs)


def made_by(args: argparse.Namespace, results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """Return the provenance of each run, from its own process, and how many ran at once."""
    runs = [result["ran_on"] for of_runs in results.values() for result in of_runs]
    return [run | {"processes": args.jobs} for run in runs]


def main(
    args: argparse.Namespace,
    script: str,
    names: Sequence[str],
    folder: Path,
    run: Callable[[str, argparse.Namespace, Path], Result],
    finish: Callable[[argparse.Namespace, dict[str, list[Result]]], None],
    once: Collection[str] = (),
) -> None:
    """Run a script's experiments, and report them unless this is one of the processes of --jobs.

    Args:
        script: the file to start for --jobs, with this script's own arguments.
        folder: for results and checkpoints.
        run: (name, args, folder for checkpoints) -> result; random numbers are seeded before it.
        finish: reports the results, name -> one for each seed.
        once: the names of those that are run with the first seed only.
    """
    start_s = time.perf_counter()
    results = _run_all(args, script, names, folder, run, once)
    if not args.no_report:
        finish(args, results)
        print(f"{time.perf_counter() - start_s:.0f} s on {report.threads()}")


def _run_all(
    args: argparse.Namespace,
    script: str,
    names: Sequence[str],
    folder: Path,
    run: Callable[[str, argparse.Namespace, Path], Result],
    once: Collection[str],
) -> dict[str, list[Result]]:
    """Run the experiments that are not done yet, for each seed; return all results by name."""
    if args.only is not None and args.only not in names:
        sys.exit(f"--only {args.only!r}: this preset has {report.listed([repr(name) for name in names])}")
    names = list(names) if args.only is None else [args.only]
    seeds = {name: seeds_of(args)[:1] if name in once else seeds_of(args) for name in names}
    tasks = [
        (name, seed)
        for seed in seeds_of(args)
        for name in names
        if seed in seeds[name] and not path_of(folder, name, seed).is_file()
    ]
    if args.jobs > 1:  # each in its own process, with its share of the threads
        env = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // args.jobs))}
        with ThreadPoolExecutor(args.jobs) as pool:
            done = pool.map(lambda task: subprocess.run(_command(script, *task), env=env, check=True), tasks)
            list(done)

    def result_of(name: str, seed: int) -> Result:
        path = path_of(folder, name, seed)
        if not path.is_file():
            set_seed(seed)
            found = run(name, args, path.with_suffix(""))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
        read: Result = json.loads(path.read_text())
        return read

    return {name: [result_of(name, seed) for seed in of_name] for name, of_name in seeds.items()}


def _command(script: str, name: str, seed: int) -> list[str]:
    one = ["--only", name, "--seed", str(seed), "--runs", "1", "--jobs", "1", "--no-report"]
    return [sys.executable, script, *sys.argv[1:], *one]  # if an option is given twice, the last one counts
