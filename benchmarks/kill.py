"""Kill a training with SIGKILL at random moments, resume it each time, and compare with an unbroken run.

A small CNN on 320 images, with two workers whose augmentation draws from python, numpy and torch; AdamW,
OneCycleLR, recorder, early stopping, a callback with a counter; a checkpoint every 3 steps, the best kept.
Each run has its own seed, and is killed again and again until it ends; a third of the kills wait for a
checkpoint to be half written. At the end of each run all of its state is compared bit for bit with that of a
run that was never stopped: model, optimizer, callbacks, history, random numbers.

Run: python benchmarks/kill.py --out docs/measured
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import about, head, parser_of, positive, report
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    DatasetLoader,
    EarlyStoppingCB,
    Learner,
    MetricsCB,
    RecorderCB,
    set_seed,
)
from minilearn.arguments import counted
from minilearn.checkpoints.codec import differences
from minilearn.checkpoints.snapshot import checkpoints_in, read
from minilearn.files import SIDE
from minilearn.provenance import device_name

N_EPOCHS, EVERY, N_IMAGES, BS = 8, 3, 256, 16
THREADS = 1  # of a training
LONGEST_S = 0.6
CLOCKS = ("run", "time_s", "elapsed_s")  # what differs between any two runs


class Images(Dataset[Any]):
    """Give squares and crosses, (1, 12, 12), randomly rotated, shifted and noisy."""

    def __init__(self, n: int) -> None:
        rng = torch.Generator().manual_seed(n)
        self.targets = torch.randint(2, (n,), generator=rng)
        self.images = torch.randn(n, 1, 12, 12, generator=rng) * 0.5
        self.images[self.targets == 0, :, 3:9, 3:9] += 0.5
        self.images[self.targets == 1, :, 5:7, :] += 1.0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = torch.rot90(self.images[i], random.randrange(4), (1, 2))
        shift = np.random.randint(-2, 3, size=2).tolist()
        return image.roll(shift, (1, 2)) + 0.3 * torch.randn(1, 12, 12), int(self.targets[i])


class CountCB(Callback):
    """Be a user's callback that knows nothing about checkpoints."""

    def __init__(self) -> None:
        self.n = 0
        self.draws: list[float] = []

    def after_step(self, learn: Any) -> None:
        """Count, and draw."""
        self.n += 1
        self.draws = [*self.draws[-9:], random.random()]


def train(folder: Path, seed: int) -> None:
    """Train to the end, from the newest checkpoint in the folder if there is one."""
    torch.set_num_threads(THREADS)
    set_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()),
        *(nn.Linear(1600, 64), nn.ReLU(), nn.Linear(64, 2)),
    )
    dls = {
        "train": DatasetLoader(Images(N_IMAGES), bs=BS, shuffle=True, num_workers=2),
        "eval": DatasetLoader(Images(64), bs=32),
    }
    cbs = [
        *(MetricsCB(), RecorderCB(), BatchSchedulerCB(OneCycleLR), CountCB(), EarlyStoppingCB(patience=3)),
        CheckpointCB(folder, every_steps=EVERY, keep=3, monitor="eval/loss"),
    ]
    Learner(model, dls, lr=1e-3, cbs=cbs, default_cbs=False).fit(N_EPOCHS, resume=folder)


def start(folder: Path, seed: int) -> int:
    """Start `train` in a process with its own group; return its id."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        train(folder, seed)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(pid: int) -> bool:
    """Whether a process has ended by itself."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if found and status:
        raise SystemExit(f"the training failed with status {status}")
    return bool(found)


def wait(pid: int) -> None:
    """Wait until a process has ended by itself."""
    while not ended(pid):
        time.sleep(0.01)


def is_writing(pid: int, folder: Path) -> bool:
    """Whether a process has a checkpoint half written, or died with one."""
    return any(folder.glob(f".*.{pid}{SIDE}"))


def kill(pid: int, folder: Path, rng: random.Random) -> bool:
    """Wait for a random moment and kill; return whether it was still running.

    A third of the moments count from the start of the process, two thirds from its first checkpoint, of which
    half wait for the next one to be half written.
    """
    kind, wait_s, before = rng.randrange(3), rng.uniform(0, LONGEST_S), checkpoints_in(folder)[-1:]
    until_s = time.monotonic() + wait_s if kind == 0 else None
    while not ended(pid):
        if until_s is None and checkpoints_in(folder)[-1:] != before:
            until_s = time.monotonic() + wait_s
        is_late = until_s is not None and time.monotonic() >= until_s
        if is_late and (kind < 2 or is_writing(pid, folder)):
            break
        time.sleep(0 if is_late else 0.002)
    else:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # its workers, which would notice only after seconds
    return True


def torn(folder: Path) -> int:
    """Count files of checkpoints that cannot be read."""
    n = 0
    for path in folder.glob("*.pt"):
        try:
            read(path)
        except ValueError as error:
            print(error)
            n += 1
    return n


def compare(unbroken: Path, killed: Path) -> list[str]:
    """Return the first difference between the ends of two runs, if there is one."""
    ends = [checkpoints_in(folder)[-1] for folder in (unbroken, killed)]
    if ends[0].name != ends[1].name:
        return [f"{ends[0].name} and {ends[1].name}"]
    found = [*differences(read(ends[0]), read(ends[1]))]
    given = "settings.CheckpointCB.folder"  # each run has its own
    left_out = {path for path, _ in found if path == given or path.rpartition(".")[2] in CLOCKS}
    return [f"{path}: {how}" for path, how in found if path not in left_out][:1]


def measure(n_kills: int, moments_seed: int) -> dict[str, Any]:
    """Kill as often as asked; return for each run its kills, its torn files and its first difference.

    Keys of a run:
        kills: when each happened: "while writing" a checkpoint, "before the first" one; both, or neither.
        torn: files of checkpoints that could not be read, after each kill.
        differences: from the run that was never stopped; empty, or the first.
    """
    rng = random.Random(moments_seed)
    runs: list[dict[str, Any]] = []
    left = n_kills
    while left:
        run: dict[str, Any] = {"seed": len(runs), "kills": [], "torn": []}
        with tempfile.TemporaryDirectory() as folder:
            unbroken, killed = Path(folder) / "unbroken", Path(folder) / "killed"
            wait(start(unbroken, run["seed"]))
            while left and kill(pid := start(killed, run["seed"]), killed, rng):
                left -= 1
                run["kills"].append(_met(pid, killed))
                run["torn"].append(torn(killed))
            if not left:
                wait(start(killed, run["seed"]))
            runs.append(run | {"differences": compare(unbroken, killed)})
    return {"steps": N_EPOCHS * N_IMAGES // BS, "seeds": [run["seed"] for run in runs], "runs": runs}


def _met(pid: int, folder: Path) -> list[str]:
    found = {"while writing": is_writing(pid, folder), "before the first": not checkpoints_in(folder)}
    return [name for name, is_so in found.items() if is_so]


def totals(result: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of kills, runs, torn files, and runs with a difference."""
    runs = result["runs"]
    kills = [met for run in runs for met in run["kills"]]
    return {
        "kills": len(kills),
        "runs": len(runs),
        "while writing": sum("while writing" in met for met in kills),
        "before the first": sum("before the first" in met for met in kills),
        "torn": sum(sum(run["torn"]) for run in runs),
        "different": sum(bool(run["differences"]) for run in runs),
    }


def said(result: dict[str, Any]) -> str:
    """Return a result as text: the number of kills, and what they caused."""
    n = totals(result)
    lines = [
        f"{head(result)}, python {result['python']}",
        f"{counted(n['kills'], 'kill')} in {counted(n['runs'], 'run')} of up to {result['steps']} steps",
        f"  while a checkpoint was written   {n['while writing']}",
        f"  before the first checkpoint      {n['before the first']}",
        f"torn files                         {n['torn']}",
        f"runs with a difference             {n['different']}",
    ]
    lines += [f"  run {run['seed']}: {how}" for run in result["runs"] for how in run["differences"]]
    return "\n".join(lines)


def main() -> None:
    """Run as a script; exit with 1 where a file was torn or a run was different."""
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=positive, default=100, help="how often (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    found = measure(args.kills, args.seed)
    # Asked after the last fork, because asking for a GPU's name starts CUDA, which does not survive a fork.
    result = about("kill", device=device_name("cpu"), threads=THREADS, moments_seed=args.seed)
    result |= found
    report(result, said, args.out)
    if any(totals(result)[key] for key in ("torn", "different")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
