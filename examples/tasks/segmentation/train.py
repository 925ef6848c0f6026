"""Segment drawn scenes, and say how far away each pixel is.

The data are 1,000 scenes drawn by code, disks, squares and triangles behind each other in a haze, and 500
others to validate. Each pixel has a class and a depth; the outlines are void, and no loss or metric counts
them as a class. A small U-Net has a head for each. `TwoLossesCB` owns `get_loss`: it adds the two losses, and
`learn.log` puts each into the rows of history. The mean intersection over union is that of torchmetrics,
through `MetricsCB`.
"""

import time
from pathlib import Path

import torch
from model import CLASSES, VOID, UNet, draw, scenes
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.classification import MulticlassJaccardIndex

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    DataLoaders,
    InValidation,
    Learner,
    MetricsCB,
    TensorLoader,
    set_seed,
)


class TwoLossesCB(Callback):
    """Add the losses of the two heads, and log each."""

    logs = ("of_classes", "of_depth")

    def get_loss(self, learn):
        """Set the loss: cross-entropy without the void pixels, and the mean absolute error of the depth."""
        (scores, depths), (classes, true_depths) = learn.preds, learn.yb
        of_classes = F.cross_entropy(scores, classes, ignore_index=VOID)
        of_depth = F.l1_loss(depths, true_depths)
        learn.log("of_classes", of_classes, count=(classes != VOID).sum())
        learn.log("of_depth", of_depth)
        learn.loss = of_classes + 2 * of_depth


def mean_iou():
    """Return a metric: the mean over the classes of the intersection over the union, without void pixels."""
    return MulticlassJaccardIndex(len(CLASSES), ignore_index=VOID)


def learner(seed=42, small=False):
    """Return the learner: the scenes, the network and its callbacks."""
    set_seed(seed)
    n, size = (64, 24) if small else (1000, 32)
    train, valid = scenes(n, size, seed), scenes(n // 2, size, seed + 1000)
    dls = DataLoaders(TensorLoader(*train, bs=16, shuffle=True), TensorLoader(*valid, bs=50))
    metrics = MetricsCB(iou=InValidation((mean_iou(), 0)))  # of the first output and the first target
    cbs = [TwoLossesCB(), metrics, BatchSchedulerCB(OneCycleLR)]
    return Learner(UNet(), dls, lr=5e-3, cbs=cbs, unpack=lambda batch: (batch[0], batch[1:]))


def run(seed=42, folder=Path("runs/segmentation"), small=False):
    """Train, measure and draw."""
    learn = learner(seed, small)
    start_s = time.perf_counter()
    learn.fit(2 if small else 6, cbs=CheckpointCB(folder / "checkpoints", every_minutes=1), resume=True)
    seconds = time.perf_counter() - start_s
    (scores, depths), (classes, true_depths) = learn.predict(learn.dls.valid, with_targets=True)
    images = learn.dls.valid.tensors[0]
    draw(images, classes, scores.argmax(1), true_depths, depths).savefig(folder / "picture.png")
    row, majority = learn.history[-1], torch.zeros_like(classes)  # the background
    measured = {"iou": row["iou"], "majority_iou": mean_iou()(majority, classes).item()}
    return measured | {"depth_error": row["of_depth"], "seconds": seconds}


if __name__ == "__main__":
    print(run())
