"""Measure what the tests catch: change the core in one place at a time, and see whether a test fails.

Draws N changes of the core at random (`benchmarks/edits.py` finds them), and for each one runs the tests in a
copy of the repository that has it, until one fails: first those named for the changed file, then the others,
the quick files first. The long ones are left out: the notebooks, the benchmarks, the examples. A change
that makes the tests hang counts as caught. Tests that fail without any change are left out from the start.

Each result is a line of the log; started again with the same log, the script continues. Changes that no test
notices are printed as diffs: each shows a missing test, or code that does nothing.

Run: python benchmarks/mutants.py --n 60 --log mutants.jsonl
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edits import Edit, edits_of
from harness import positive

from minilearn.arguments import counted

ROOT = Path(__file__).parents[1]
# Files, or folders of files, of minilearn; what a version does not have is left out.
CORE = (
    *("learner", "fields", "callback", "host", "events", "batches", "counting", "plan", "parameters"),
    *(
        "fitting",
        "checkpoints",
        "processes",
        "verify",
        "weights",
        "seeding",
        "callbacks/checkpoint",
        "data/loaders",
    ),
    *("data/adapters", "data/resumable", "data/dataset_loader"),
    # As in version 0.1.
    *("resuming", "checkpoint", "interrupts", "checks", "freezing", "run", "state", "data/datasets"),
)
# The test files of core files that have none of their own name.
TESTED_IN = {
    "processes": ("test_distributed.py",),
    "fitting": ("test_passes.py", "test_learner.py"),
    "host": ("test_callback.py",),
    "checkpoint": ("test_resuming.py", "test_weights.py"),
    "checkpoints": ("test_resuming.py", "test_checkpoint.py"),
    "run": ("test_checkpoint.py",),
    "loss": ("test_parameters.py",),
    "dataset_loader": ("test_resumable.py",),
    "datasets": ("test_resumable.py",),
}
LONG = ("test_nbs.py", "test_benchmarks.py", "*_example.py")
STALL_S = 120  # a test that takes longer hangs


@dataclass(frozen=True)
class Mutant:
    """Hold a file of the core with one change."""

    path: str  # in the repository
    edit: Edit
    source: str  # of the whole file, changed
    diff: str

    @property
    def key(self) -> str:
        """The name of this mutant in the log."""
        return hashlib.sha256((self.path + self.source).encode()).hexdigest()[:16]


def core_files(repo: Path) -> list[Path]:
    """Return the files to change."""
    package = repo / "minilearn"
    files = [path for name in CORE if (path := package / f"{name}.py").is_file()]
    files += [path for name in CORE for path in (package / name).rglob("*.py")]
    return sorted(set(files))


def draw(repo: Path, n: int, seed: int) -> list[Mutant]:
    """Return n of all mutants, at random; a larger n gives the same ones first."""
    drawn = [(path, edit) for path in core_files(repo) for edit in edits_of(path.read_text())]
    random.Random(seed).shuffle(drawn)
    return [mutant_of(repo, path, edit) for path, edit in drawn[:n]]


def mutant_of(repo: Path, path: Path, edit: Edit) -> Mutant:
    """Return a file of the repository with a change."""
    name, source = path.relative_to(repo).as_posix(), path.read_text()
    changed = edit.apply(source)
    lines = difflib.unified_diff(
        source.splitlines(), changed.splitlines(), f"a/{name}", f"b/{name}", lineterm="", n=2
    )
    return Mutant(name, edit, changed, "\n".join(lines))


# Running the tests --------------------------------------------------------------------------------


def copy_repo(repo: Path, to: Path) -> None:
    """Copy the files that git tracks, or would add."""
    command = ["git", "-C", str(repo), "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in names.strip("\0").split("\0"):
        if (repo / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, to / name)


def digest(repo: Path) -> str:
    """Return a hash of the package and its tests."""
    files = [path for folder in ("minilearn", "tests") for path in (repo / folder).rglob("*.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]


def test_files(copy: Path) -> list[str]:
    """Return the test files to run."""
    files = [path for path in (copy / "tests").rglob("test_*.py") if not any(map(path.match, LONG))]
    return sorted(path.relative_to(copy).as_posix() for path in files)


def in_order(mutant: Mutant, seconds: dict[str, float]) -> list[str]:
    """Return the test files: first those of the mutant's file or folder, then the others by their time."""
    path = Path(mutant.path)
    own = {file for name in (path.stem, path.parent.name) for file in TESTED_IN.get(name, ())}
    own |= {f"test_{path.stem}.py", f"test_{path.parent.name}.py"}
    return sorted(seconds, key=lambda name: (Path(name).name not in own, seconds[name]))


def pytest_in(copy: Path, args: list[str], max_s: float) -> tuple[int | None, str]:
    """Run pytest in a copy; return its status, None if it hangs, and its output."""
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "pytest", "-v", "-n0", "-p", "no:cacheprovider", *args]
    start_s = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            command, cwd=copy, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        size, moved_s = 0, start_s
        while (status := process.poll()) is None:
            time.sleep(0.2)
            now_s = time.monotonic()
            if (new_size := os.fstat(out.fileno()).st_size) != size:
                size, moved_s = new_size, now_s
            if now_s - moved_s > STALL_S or now_s - start_s > max_s:
                break
        if status is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that the tests started
            process.wait()
        out.seek(0)
        return status, out.read().decode(errors="replace")


def measure_unchanged(copy: Path) -> dict[str, Any]:
    """Run the tests without a change; return the seconds of each file, and the tests that fail.

    Raises: SystemExit for a file that cannot be collected, which would seem to catch every change.
    """
    report = copy.parent / "unchanged.xml"
    files = test_files(copy)
    pytest_in(copy, [f"--junitxml={report}", "-o", "junit_family=xunit1", *files], float("inf"))
    seconds, failing = dict.fromkeys(files, 0.0), []
    for case in ET.parse(report).iter("testcase"):
        file, error = case.get("file", ""), case.find("error")
        if error is not None and error.get("message") == "collection failure":
            raise SystemExit(f"{case.get('name')} cannot be collected without any change: {error.text}")
        seconds[file] += float(case.get("time", 0))
        if case.find("failure") is not None or error is not None:
            failing.append(f"{file}::{case.get('name')}")
    return {"seconds": seconds, "failing": failing}


def measure(mutant: Mutant, copy: Path, unchanged: dict[str, Any], max_s: float) -> dict[str, Any]:
    """Return the outcome for a mutant: caught, caught by hanging, or survived."""
    path, start_s = copy / mutant.path, time.monotonic()
    original = path.read_text()
    left_out = [arg for test in unchanged["failing"] for arg in ("--deselect", test)]
    try:
        path.write_text(mutant.source)
        files = in_order(mutant, unchanged["seconds"])
        status, said = pytest_in(copy, ["-x", *left_out, *files], max_s)
    finally:
        path.write_text(original)
    lines = said.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    by = (failed or lines or [""])[-1]  # where it hangs, the test that was running
    outcome = {None: "hangs", 0: "survived"}.get(status, "caught")
    return {"outcome": outcome, "by": by, "time_s": round(time.monotonic() - start_s, 1)}


# The log ------------------------------------------------------------------------------------------


def said(results: list[dict[str, Any]]) -> str:
    """Return a list of results as text: how many are caught, and the diff of each survivor."""
    outcomes = [result["outcome"] for result in results]
    survivors = [result["diff"] for result in results if result["outcome"] == "survived"]
    n_caught = len(outcomes) - len(survivors)
    head = f"{counted(len(outcomes), 'mutant')}: {n_caught} caught ({outcomes.count('hangs')} by hanging)"
    return "\n\n".join([f"{head}, {len(survivors)} survived", *survivors])


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the mutants that are not in the log; return the results of all."""
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    found = [json.loads(line) for line in lines]
    state, results = digest(args.repo), []
    if found and found[0]["digest"] != state:
        raise SystemExit(f"{args.log} is of another state of {args.repo}: give another --log")
    done = {result["key"]: result for result in found[1:]}
    with tempfile.TemporaryDirectory() as folder, args.log.open("a") as log:
        copy = Path(folder) / "copy"
        copy_repo(args.repo, copy)
        unchanged = found[0] if found else {"digest": state, **measure_unchanged(copy)}
        if not found:
            print(json.dumps(unchanged), file=log, flush=True)
        for mutant in draw(args.repo, args.n, args.seed):
            if (result := done.get(mutant.key)) is None:
                result = {"key": mutant.key, "path": mutant.path, "kind": mutant.edit.kind}
                result |= {"line": mutant.edit.line, "diff": mutant.diff}
                result |= measure(mutant, copy, unchanged, args.max_s)
                print(json.dumps(result), file=log, flush=True)
            results.append(result)
    return results


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests need it; `nohup ... &` ignores it
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--n", type=positive, default=60, help="so many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--repo", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--log", type=Path, required=True, help="a file of JSON lines")
    parser.add_argument("--max-s", type=float, default=1800, help="seconds a mutant, after which it hangs")
    print(said(run(parser.parse_args())))
