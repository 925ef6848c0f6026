"""Kill one of two processes of torchrun at random, let it restart them, and compare with an unbroken run.

`torchrun --max-restarts 3` trains a small net with dropout, BatchNorm, AdamW, OneCycleLR and two workers in
each process; a checkpoint every 3 steps. A random one of the two processes is killed with SIGKILL at a random
moment. torchrun ends the other and starts both again, three times; after the fourth kill it gives up, and is
started again. At the end of each run the weights are compared bit for bit with those of a run that was never
stopped.

Run: python benchmarks/restarts.py --kills 20
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import about, head, parser_of, positive, report
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    CSVLoggerCB,
    DatasetLoader,
    DistributedCB,
    Learner,
    MetricsCB,
    set_seed,
)
from minilearn.arguments import counted
from minilearn.checkpoints.snapshot import checkpoints_in, is_damaged, read
from minilearn.files import written_whole
from minilearn.provenance import device_name

N_EPOCHS, N_STEPS, BS, STEP_S = 6, 12, 16, 0.05
LONGEST_S = 3.0  # from when both processes train to the kill: about four runs in five come to their end later
N_RESTARTS = 3
TIMEOUT_S = 300.0


class Noisy:
    """Give samples with noise."""

    def __init__(self, n: int) -> None:
        self.x = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.x[i] + 0.1 * torch.randn(8), int(self.x[i].sum() > 0)


class AliveCB(Callback):
    """Take some time for a step, and say at the first one which process this is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def before_train(self, learn: Learner) -> None:
        """Write the process's number."""
        with written_whole(self.folder / f"process-{learn.rank}") as file:
            file.write(str(os.getpid()).encode())

    def after_step(self, learn: Learner) -> None:
        """Wait."""
        time.sleep(STEP_S)


def train(folder: Path, seed: int) -> None:
    """Train to the end, from the newest checkpoint in the folder if there is one; torchrun calls this."""
    torch.set_num_threads(1)
    set_seed(seed)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
    dls = {
        "train": DatasetLoader(Noisy(BS * N_STEPS), bs=BS, shuffle=True, num_workers=2, seed=seed),
        "eval": DatasetLoader(Noisy(2 * BS), bs=BS),
    }
    cbs = [
        *(DistributedCB(timeout_s=60), MetricsCB(), BatchSchedulerCB(OneCycleLR), AliveCB(folder)),
        *(CSVLoggerCB(folder / "log.csv"), CheckpointCB(folder / "run", every_steps=3)),
    ]
    Learner(model, dls, lr=1e-2, cbs=cbs, default_cbs=False).fit(N_EPOCHS, resume=True)


def start(folder: Path, seed: int) -> subprocess.Popen[bytes]:
    """Start torchrun with two processes; what they say is added to a file in the folder."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
    ]
    command += ["--max-restarts", str(N_RESTARTS), "--monitor-interval", "0.1"]
    with open(folder / "said.txt", "ab") as said:
        return subprocess.Popen(
            [*command, __file__, "--train", str(folder), "--seed", str(seed)], stdout=said, stderr=said
        )


def processes_in(folder: Path, after: float) -> list[int]:
    """Return the numbers of the processes that have begun to train since a moment."""
    paths = [folder / f"process-{rank}" for rank in range(2)]
    return [int(path.read_text()) for path in paths if path.exists() and path.stat().st_mtime > after]


def kill(agent: subprocess.Popen[bytes], folder: Path, after: float, rng: random.Random) -> bool:
    """Kill one of the processes that began after a moment; return whether they were still running."""
    wait_s, rank, until_s = rng.uniform(0, LONGEST_S), rng.randrange(2), time.monotonic() + TIMEOUT_S
    while len(found := processes_in(folder, after)) < 2:
        if agent.poll() is not None:
            return False
        if time.monotonic() > until_s:
            raise SystemExit(f"the training does not begin: {(folder / 'said.txt').read_text()[-3000:]}")
        time.sleep(0.01)
    time.sleep(wait_s)
    if agent.poll() is not None:
        return False
    try:
        os.kill(found[rank], signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def one_run(folder: Path, seed: int, n_kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill a training up to so many times, restarted each time, and let it come to its end."""
    n, starts, after = 0, 1, time.time()
    agent = start(folder, seed)
    try:
        while (code := agent.poll()) != 0:
            if code is not None:  # it has restarted them three times
                if starts > n_kills + 1:
                    raise SystemExit(f"the training fails: {(folder / 'said.txt').read_text()[-3000:]}")
                starts, after = starts + 1, time.time()
                agent = start(folder, seed)
            elif n == n_kills:
                agent.wait(TIMEOUT_S)
            elif kill(agent, folder, after, rng):
                n, after = n + 1, time.time()
    finally:
        agent.terminate()
    return {"seed": seed, "kills": n, "starts": starts}


def compare(unbroken: Path, killed: Path) -> list[str]:
    """Return what differs between the ends of two runs."""
    ends = [read(checkpoints_in(folder / "run")[-1]) for folder in (unbroken, killed)]
    models = [end["model"] for end in ends]
    found = [name for name, t in models[0].items() if not torch.equal(t, models[1][name])]
    logs = [
        [line.split(",")[:-1] for line in (folder / "log.csv").read_text().splitlines()]
        for folder in (unbroken, killed)
    ]
    return found + ["the log"] * (logs[0] != logs[1])


def measure(n_kills: int, moments_seed: int) -> dict[str, Any]:
    """Kill as often as asked; return for each run its kills, its starts of torchrun, and what differs."""
    rng, runs, left = random.Random(moments_seed), list[dict[str, Any]](), n_kills
    while left:
        with tempfile.TemporaryDirectory() as folder:
            unbroken, killed, seed = Path(folder) / "unbroken", Path(folder) / "killed", len(runs)
            one_run(unbroken, seed, 0, rng)
            run = one_run(killed, seed, left, rng)
            left -= run["kills"]
            torn = sum(is_damaged(path) for path in (killed / "run").glob("*.pt"))
            runs.append(run | {"torn": torn, "differences": compare(unbroken, killed)})
            print(runs[-1], file=sys.stderr, flush=True)
    return {"steps": N_EPOCHS * N_STEPS, "seeds": [run["seed"] for run in runs], "runs": runs}


def said(result: dict[str, Any]) -> str:
    """Return a result as text: the number of kills, and what they caused."""
    runs = result["runs"]
    lines = [
        f"{head(result)}, python {result['python']}",
        f"{counted(sum(run['kills'] for run in runs), 'kill')} of one of two processes, in "
        f"{counted(len(runs), 'run')} of {result['steps']} steps",
        f"starts of torchrun         {sum(run['starts'] for run in runs)}",
        f"torn files                 {sum(run['torn'] for run in runs)}",
        f"runs with a difference     {sum(bool(run['differences']) for run in runs)}",
    ]
    lines += [f"  run {run['seed']}: {', '.join(run['differences'])}" for run in runs if run["differences"]]
    return "\n".join(lines)


def main() -> None:
    """Run as a script; exit with 1 where a file was torn or a run was different."""
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=positive, default=20, help="how often (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, or of the training (default: 0)")
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train there: what torchrun starts")
    args = parser.parse_args()
    if args.train:
        train(args.train, args.seed)
        return
    result = about("restarts", device=device_name("cpu"), threads=1, processes=2, moments_seed=args.seed)
    result |= measure(args.kills, args.seed)
    report(result, said, args.out)
    if any(run["torn"] or run["differences"] for run in result["runs"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
