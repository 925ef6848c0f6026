"""Kill a long experiment on purpose, resume it, and run the interval around the kill again unbroken.

The experiment is a script with checkpoints, hashes of their weights (`experiments.HashesCB`) and an option
for its folder. It is started, and its folder is copied after a checkpoint. At a random moment after a later
checkpoint it is killed by SIGKILL, and started again until it is done. Then the copy is resumed, and runs
through that later checkpoint and the moment of the kill: the hashes of the next one have to be equal.

Run: python examples/soak.py --work runs/soak -- examples/optimizer_state.py --preset small --work {work}
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from minilearn.checkpoints.snapshot import checkpoints_in
from minilearn.provenance import provenance

Lines = list[dict[str, Any]]


def start(words: list[str], work: Path) -> subprocess.Popen[bytes]:
    """Start the script with a folder, in a process group of its own."""
    command = [sys.executable, *(word.replace("{work}", str(work)) for word in words)]
    return subprocess.Popen(command, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a script with all its processes."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def hashes_of(folder: Path) -> Lines:
    """Return what is recorded in a folder of checkpoints; a line that was cut short is left out."""
    path = folder / "hashes.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def being_written(work: Path, begin_s: float) -> Path | None:
    """Return the folder, somewhere in `work`, of the last checkpoint whose hash was recorded since a time."""
    recorded = {path.parent: path.stat().st_mtime for path in work.rglob("hashes.jsonl")}
    ready = [folder for folder, at_s in recorded.items() if at_s >= begin_s and checkpoints_in(folder)]
    return max(ready, key=lambda folder: recorded[folder], default=None)


def wait_for(process: subprocess.Popen[bytes], found: Any, every_s: float = 0.05) -> Any:
    """Return what `found()` gives when it gives something; None if the script ends before."""
    while (value := found()) is None:
        if process.poll() is not None:
            return found()
        time.sleep(every_s)
    return value


def soak(words: list[str], work: Path, longest_s: float, seed: int) -> dict[str, Any]:
    """Run, kill, resume and compare once; return what was found."""
    rng = random.Random(seed)
    begin_s = time.time()
    process = start(words, work)
    folder = wait_for(process, lambda: being_written(work, begin_s))
    if folder is None:
        raise SystemExit(f"the script ended with code {process.returncode} before its first checkpoint")
    copy = work.with_name(f"{work.name}-unbroken")
    shutil.rmtree(copy, ignore_errors=True)
    os.killpg(process.pid, signal.SIGSTOP)  # so that no file changes while it is copied
    shutil.copytree(work, copy)
    os.killpg(process.pid, signal.SIGCONT)
    inside = copy / folder.relative_to(work)
    (inside / "hashes.jsonl").unlink()
    copied = checkpoints_in(inside)[-1]

    def later() -> bool | None:
        return checkpoints_in(folder)[-1].name > copied.name or None

    wait_for(process, later)
    wait_s = rng.uniform(0, longest_s)
    time.sleep(wait_s)
    if process.poll() is not None:
        raise SystemExit(f"the script ended before it was killed, {wait_s:.1f} s after its second checkpoint")
    end(process)
    newest = checkpoints_in(folder)[-1]

    process = start(words, work)
    if process.wait():
        raise SystemExit(f"the script that was started again ended with code {process.returncode}")
    expected = [line for line in hashes_of(folder) if line["checkpoint"] > newest.name]
    if not expected:
        raise SystemExit(f"the script ended without a checkpoint after {newest.name}: give fewer --seconds")

    def compared() -> dict[str, Any] | None:
        names = {line["checkpoint"]: line for line in expected}
        return next((line for line in hashes_of(inside) if line["checkpoint"] in names), None)

    process = start(words, copy)
    unbroken = wait_for(process, compared)
    if process.poll() is None:
        end(process)
    shutil.rmtree(copy)
    broken = next((x for x in expected if unbroken and x["checkpoint"] == unbroken["checkpoint"]), None)
    return {
        "copied_at": copied.name,
        "killed_after": newest.name,
        "folder": str(folder.relative_to(work)),
        "compared": unbroken["checkpoint"] if unbroken else None,
        "equal": bool(broken and unbroken and broken["sha256"] == unbroken["sha256"]),
        "same_cpu": bool(broken and unbroken and broken["cpu"] == unbroken["cpu"]),
        "ran_on": provenance(),
    }


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="for {work} in the script's arguments")
    parser.add_argument("--seconds", type=float, default=60, help="kill at most so late (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moment (default: 0)")
    parser.add_argument("--out", type=Path, help="add the result to this file, a line of JSON")
    parser.add_argument("script", nargs="+", help="-- the script and its arguments")
    args = parser.parse_args()
    found = soak(args.script, args.work.resolve(), args.seconds, args.seed)
    print(json.dumps({key: value for key, value in found.items() if key != "ran_on"}))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
    if not found["equal"]:
        sys.exit("the weights of the killed run and of the unbroken one differ")


if __name__ == "__main__":
    main()
