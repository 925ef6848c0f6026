"""Find drawn shapes with torchvision's FCOS, from random weights.

The data are 1,500 images of 64 pixels, drawn by code, with one to three disks, squares and triangles, and 250
others to validate. A batch is several images and a dict of boxes and labels for each, which `DatasetLoader`
collates. `DetectionCB` knows that such a model returns its losses in training and boxes in evaluation. The
mean average precision is that of torchmetrics; `InValidation` leaves it out of training, where there are no
boxes.
"""

import time
from pathlib import Path

from model import MeanPrecision, collate, detector, draw, drawings
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    CheckpointCB,
    DataLoaders,
    DatasetLoader,
    DetectionCB,
    InValidation,
    Learner,
    MetricsCB,
    set_seed,
)


def learner(seed=42, small=False):
    """Return the learner: the drawings, the model and its callbacks."""
    set_seed(seed)
    n, size = (24, 32) if small else (1500, 64)
    train, valid = drawings(n, size, seed), drawings(n // 6, size, seed + 1000)
    dls = DataLoaders(
        DatasetLoader(train, bs=16, shuffle=True, collate_fn=collate),
        DatasetLoader(valid, bs=50, collate_fn=collate),
    )
    metrics = MetricsCB(InValidation(MeanPrecision()))
    return Learner(detector(size), dls, lr=2e-3, cbs=[DetectionCB(), metrics, BatchSchedulerCB(OneCycleLR)])


def run(seed=42, folder=Path("runs/detection"), small=False):
    """Train, measure and draw."""
    learn = learner(seed, small)
    start_s = time.perf_counter()
    learn.fit(2 if small else 6, cbs=CheckpointCB(folder / "checkpoints", every_minutes=1), resume=True)
    seconds = time.perf_counter() - start_s
    images = [image for image, _ in learn.dls.valid.dataset]
    draw(images, learn.predict(learn.dls.valid)).savefig(folder / "picture.png")
    return {"map": learn.history[-1]["MeanPrecision_map"], "seconds": seconds}


def predict(learn):
    """Return the boxes in each image of validation."""
    return [found["boxes"] for found in learn.predict(learn.dls["eval"])]


if __name__ == "__main__":
    print(run())
