"""Run a job of this folder with several seeds, and write what came of it beside its script.

Run: python examples/tasks/run.py char_gpt --seeds 3
What is done already is not run again: each run is kept in --work, and a run that was killed is resumed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from jobs import JOBS, Job, Measures

from minilearn import set_seed
from minilearn.provenance import provenance

FOLDER = Path(__file__).parent


def load(job: str, name: str = "train") -> ModuleType:
    """Import a file of a job's folder; its own imports find the files beside it, as if it were run."""
    for other in ("train", "by_hand", "model"):  # of another job
        if str(FOLDER / job) not in str(getattr(sys.modules.get(other), "__file__", "")):
            sys.modules.pop(other, None)
    sys.path.insert(0, str(FOLDER / job))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER / job))


def n_lines(path: Path) -> int:
    """Return how many lines of a file are code: neither blank, nor comment, nor docstring."""
    text = path.read_text()
    lines = text.splitlines()
    code = {i for i, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def run_once(job: str, seed: int, work: Path, name: str = "train") -> Measures:
    """Return the measures of one run, from the file where it is kept, or from running it."""
    folder = work / job / str(seed)
    path = folder / f"{name}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        set_seed(seed)
        start_s = time.perf_counter()
        arguments = {"folder": folder} if name == "train" else {}
        measures = load(job, name).run(seed, **arguments)
        made = {"measures": measures, "total_s": time.perf_counter() - start_s, "ran_on": provenance()}
        path.write_text(json.dumps(made, indent=1))
    read: Measures = json.loads(path.read_text())
    return read


def result_of(name: str, job: Job, seeds: range, work: Path) -> dict[str, Any]:
    """Run what is not done yet; return the result of all seeds."""
    ours, hand = [], []
    for seed in seeds:
        ours.append(run_once(name, seed, work))
        if job.beside or seed == seeds[0]:
            hand.append(run_once(name, seed, work, "by_hand"))
    measures = [run["measures"] for run in ours]
    by_hand = [run["measures"] for run in hand]
    reached = None
    if job.reached:
        beside = by_hand if job.beside else [{}] * len(measures)
        reached = [bool(job.reached(m, h)) for m, h in zip(measures, beside, strict=True)]
    return {
        "job": job.title,
        "bar": job.bar,
        "reached": reached,
        "n": len(seeds),
        "seeds": list(seeds),
        "lines": n_lines(FOLDER / name / "train.py"),
        "measures": {key: mean_sd([m[key] for m in measures]) for key in measures[0]},
        "by_hand": {key: mean_sd([m[key] for m in by_hand]) for key in by_hand[0]},
        "ran_on": [run["ran_on"] for run in ours],
    }


def mean_sd(values: list[Any]) -> Any:
    """Return mean, sd and each of some numbers; of other values, the values."""
    if not all(isinstance(value, int | float) for value in values):
        return values
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "each": values}


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("jobs", nargs="+", choices=list(JOBS), metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each job (default: 3)")
    parser.add_argument("--seed", type=int, default=42, help="the first one's seed (default: 42)")
    parser.add_argument("--work", type=Path, default=Path("runs/tasks"), help="default: runs/tasks")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="for the results (default: beside the scripts)"
    )
    args = parser.parse_args()
    for name in args.jobs:
        seeds = range(args.seed, args.seed + args.seeds)
        result = result_of(name, JOBS[name], seeds, args.work)
        (args.out / name).mkdir(parents=True, exist_ok=True)
        (args.out / name / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        picture = args.work / name / str(args.seed) / "picture.png"
        shutil.copyfile(picture, args.out / name / "picture.png")
        print(f"{name}: {result['bar']}: {result['reached']}")
        for key, value in result["measures"].items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
