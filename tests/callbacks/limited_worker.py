"""What the processes of test_limited do: a fit that is paused and resumed, with all that watches a fit."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from distributed_worker import leave, said, shared_learner
from fake_wandb import FakeWandb, of

from minilearn import EMACB, Callback, CheckpointCB, ScheduleCB, ThroughputCB, TimeLimitCB, WandbCB
from minilearn.callbacks import time_limit, trackers

LATE_S = 1.0  # how much longer a batch takes in a process than in the one before


class Clock(Callback):
    """A clock that only batches move, faster in some processes."""

    def __init__(self):
        self.now_s = 0.0

    def state_dict(self):
        return {}

    def before_batch(self, learn):
        self.now_s += 1.0 + LATE_S * learn.rank

    def monotonic(self):
        return self.now_s


class SharpenCB(Callback):
    """Divide the predictions by a temperature, which no checkpoint has."""

    temperature = 1.0

    def state_dict(self):
        return {}

    def after_predict(self, learn):
        learn.preds = learn.preds / self.temperature


def set_temperature(learn, value):
    next(cb for cb in learn.cbs if isinstance(cb, SharpenCB)).temperature = value


def make(folder, *cbs):
    saver = CheckpointCB(folder, monitor="loss", keep_best=2)
    watching = [WandbCB(every=1), saver, ThroughputCB(), EMACB(0.9)]
    scheduled = [ScheduleCB(set_temperature, lambda step: 1 + step / 10), SharpenCB()]
    return shared_learner([*watching, *scheduled, *cbs])


def result(learn, folder):
    rows = [
        {k: v for k, v in row.items() if k not in ("samples_per_s", "memory_mb")} for row in learn.history
    ]
    for row in rows:
        row.pop("time_s")
    n = [round(row["samples_per_s"] * row["time_s"], 6) for row in learn.history if row["train"] != "iterate"]
    files = sorted(path.name for path in folder.glob("best*"))
    return said(learn) | {"rows": rows, "n": n, "files": files}


def main():
    folder, service, clock = Path(sys.argv[2]), FakeWandb(), Clock()
    sys.modules["wandb"] = service
    trackers.find_spec, time_limit.time = (lambda name: SimpleNamespace(origin=name)), clock
    learn = make(folder / "straight")
    learn.fit(3)
    straight = result(learn, folder / "straight")
    service.runs.clear()
    n_starts, is_paused = 0, True
    while is_paused:
        learn = make(folder / "limited", TimeLimitCB(seconds=9), clock)
        learn.fit(3, resume=True)
        n_starts, is_paused = n_starts + 1, learn.is_paused
    limited = result(learn, folder / "limited")
    runs = [[step for step, _ in of(run, "step/loss")] for run in service.runs.values()]
    found = {
        "straight": straight,
        "limited": limited,
        "n_starts": learn.processes.all_gather(n_starts),
        "runs": learn.processes.all_gather(runs),
    }
    if int(os.environ["RANK"]) == 0:
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main()
    leave(0)
