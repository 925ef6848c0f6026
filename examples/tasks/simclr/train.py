"""Learn features of CIFAR-10 without labels by SimCLR, and measure them with a linear probe.

The images were coded as JPEG once; an eighth of them is learned from. The loader's own Augment makes two
views of each image, whose random numbers are a function of (seed, epoch, index), so a resumed run sees the
same views. The loss reads only predictions: `unpack` says that there is no target. Before and after, a
linear layer is trained with labels on what the frozen encoder predicts for a fifth of the images. The
picture has an unseen image in each row, and then the training images whose features are nearest.
"""

from pathlib import Path

import torch
from model import TWO_VIEWS, SimCLR, every, nt_xent
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    CheckpointCB,
    DataLoaders,
    Learner,
    TensorLoader,
    plot_images,
    set_seed,
)


def learner(seed=42, small=False):
    """Return a learner that finds the two views of an image among those of all others."""
    set_seed(seed)
    dls = every(1_000, 8, TWO_VIEWS) if small else every(8, 256, TWO_VIEWS)
    cbs = BatchSchedulerCB(OneCycleLR)
    return Learner(SimCLR(), dls, nt_xent, lr=3e-3, cbs=cbs, unpack=lambda batch: (batch[0], None))


def features_of(encoder, dls):
    """Return (features, labels) of the training images, and of the others."""
    learn = Learner(encoder, dls)
    return [learn.predict(dl, with_targets=True) for dl in (dls.train, dls.valid)]


def probe(train, valid, seed):
    """Return the accuracy of a linear classifier of features."""
    set_seed(seed)
    dls = DataLoaders(TensorLoader(*train, bs=128, shuffle=True), TensorLoader(*valid, bs=1_000))
    model = nn.Sequential(nn.BatchNorm1d(128, affine=False), nn.Linear(128, 10))
    learn = Learner(model, dls, lr=1e-2, cbs=BatchSchedulerCB(OneCycleLR))
    learn.fit(20)
    return learn.history[-1]["MulticlassAccuracy"]


def run(seed=42, folder=Path("runs/simclr"), small=False):
    """Train the encoder, probe it before and after, and draw what it finds alike."""
    learn = learner(seed, small)
    dls = every(1_000 if small else 5, 500)
    untrained = probe(*features_of(learn.model.encoder, dls), seed)
    learn.fit(2, cbs=CheckpointCB(folder / "checkpoints", every_minutes=1), resume=True)
    train, valid = features_of(learn.model.encoder, dls)
    chosen = torch.linspace(0, len(valid[0]) - 1, 6).long()
    nearest = (F.normalize(valid[0][chosen]) @ F.normalize(train[0]).T).topk(7).indices
    images, others = dls.valid.tensors[0][chosen], dls.train.tensors[0][nearest]
    rows = torch.cat([images[:, None], others], dim=1).flatten(0, 1)
    labels = torch.cat([valid[1][chosen, None], train[1][nearest]], dim=1).flatten()
    names = [dls.classes[label] for label in labels]
    plot_images(rows.float(), names, n_cols=8, size=1.2).savefig(folder / "picture.png")
    measures = {"probe": probe(train, valid, seed), "untrained_probe": untrained}
    seconds = sum(row["time_s"] for row in learn.history)
    return measures | {"loss": learn.history[-1]["loss"], "seconds": seconds}


if __name__ == "__main__":
    print(run())
