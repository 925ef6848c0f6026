"""Clean noisy signals that come from a stream without an end.

`Signals` draws each batch when it is read, and no signal twice. It has a `state_dict`, so a run that was
killed resumes with the batch that would have come next. There are no passes over the data:
`fit(n_steps=800, epoch_steps=100)` validates after every 100 steps. There are two sets to validate, each
with rows of its own: signals as in the stream, and signals under twice the noise. The loop by hand reads the
same stream.
"""

import time
from pathlib import Path

import torch
from model import Signals, cleaner, draw, signals
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import BatchSchedulerCB, CheckpointCB, DataLoaders, Learner, TensorLoader, set_seed

SMALL = {"n_steps": 9, "epoch_steps": 3}


def learner(seed=42, small=False):
    """Return the learner: the stream, two sets to validate, and the network."""
    set_seed(seed)
    n, rng = 64 if small else 1000, torch.Generator().manual_seed(seed + 1000)
    clean, shifted = (TensorLoader(*signals(n, rng, noise), bs=250) for noise in (0.5, 1.0))
    dls = DataLoaders(Signals(32, seed), {"clean": clean, "shifted": shifted})
    return Learner(cleaner(), dls, lr=5e-3, cbs=BatchSchedulerCB(OneCycleLR))


def run(seed=42, folder=Path("runs/stream"), small=False):
    """Train, measure and draw."""
    learn = learner(seed, small)
    steps = SMALL if small else {"n_steps": 800, "epoch_steps": 100}
    start_s = time.perf_counter()
    learn.fit(**steps, cbs=CheckpointCB(folder / "checkpoints", every_minutes=1), resume=True)
    seconds = time.perf_counter() - start_s
    draw(learn).savefig(folder / "picture.png")
    losses = {row["train"]: row["loss"] for row in learn.history}  # the last of each set
    return {f"{name}_loss": losses[name] for name in learn.dls.sets} | {"seconds": seconds}


def predict(learn):
    """Return the cleaned signals of both sets."""
    return [learn.predict(dl) for dl in learn.dls.sets.values()]


if __name__ == "__main__":
    print(run())
