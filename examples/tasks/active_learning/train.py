"""Active learning: in rounds, the images that the network is least certain of are labelled.

The data are 20,000 images of MNIST, of which 100 have a label at first, and each round adds 100; a second
series of rounds adds as many at random. What the network is certain of, `learn.predict` of all images says.
Each round trains a new `Learner` on what is labelled by then, with one cycle of the lr. It has a folder of
checkpoints of its own: a killed job skips the rounds that are finished, which leaves the learner with the
weights that they ended with, and so the same images are chosen again.
"""

import time
from pathlib import Path

import torch
from model import data, draw, least_certain, random_order
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    CheckpointCB,
    DataLoaders,
    Learner,
    ProgressCB,
    StridedCNN,
    TensorLoader,
    set_seed,
)

N_EPOCHS, N_ROUNDS, N_ADDED = 20, 8, 100


def learner(seed=42, small=False, labelled=None):
    """Return a learner of the images with these numbers; None: of those that have a label at first."""
    set_seed(seed)
    x, y, test = data(small)
    if labelled is None:
        labelled = random_order(seed, small)[:N_ADDED]
    dls = DataLoaders(TensorLoader(x[labelled], y[labelled], bs=32, shuffle=True), test)
    cbs = [BatchSchedulerCB(OneCycleLR), ProgressCB(quiet=True)]
    return Learner(StridedCNN(), dls, lr=1e-2, cbs=cbs)


def rounds(name, seed, folder, small):
    """Train in rounds; return the accuracy of each, the numbers of the labelled images, and the time."""
    x, order = data(small)[0], random_order(seed, small)
    labelled, accuracies, seconds = order[:N_ADDED], [], 0.0
    for i in range(3 if small else N_ROUNDS):
        learn = learner(seed, small, labelled)
        saver = CheckpointCB(folder / "checkpoints" / f"{name}-{i}", every_minutes=1)
        start_s = time.perf_counter()
        learn.fit(2 if small else N_EPOCHS, valid=False, cbs=saver, resume=True)
        if name == "chosen":
            added = least_certain(learn.predict(x, bs=1000), labelled, N_ADDED)
        else:
            added = order[len(labelled) :][:N_ADDED]
        seconds += time.perf_counter() - start_s
        accuracies.append(learn.validate()["MulticlassAccuracy"])
        labelled = torch.cat([labelled, added])
    return accuracies, labelled, seconds


def run(seed=42, folder=Path("runs/active_learning"), small=False):
    """Train in rounds with the images that are chosen, and with random ones; return the last accuracies."""
    chosen, labelled, seconds = rounds("chosen", seed, folder, small)
    random, *_ = rounds("random", seed, folder, small)
    x, y, _ = data(small)
    uncertain = labelled[-N_ADDED:]
    figure = draw(N_ADDED, {"chosen": chosen, "random": random}, x[uncertain], y[uncertain])
    figure.savefig(folder / "picture.png")
    return {"chosen": chosen[-1], "random": random[-1], "seconds": seconds}


if __name__ == "__main__":
    print(run())
