"""Distill a ResNet into a small multilayer perceptron, on Fashion-MNIST.

The teacher learns from all 60,000 images, and the students only from the first 2,000. A callback owns the
loss of the taught student: it mixes the labels with the teacher's softened probabilities, and logs both
parts with `learn.log`. The student alone has the same initial weights and the same batches, and takes as
many steps. The teacher is an attribute of the callback, so a checkpoint has it too.
"""

from pathlib import Path

from model import accuracy, first_images, large, little
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import BatchSchedulerCB, Callback, CheckpointCB, Learner, MetricsCB, plot_history, set_seed

SMALL = {"n_epochs": 2}


class DistillCB(Callback):
    """Mix the labels with what a teacher says of the same images (Hinton et al. 2015)."""

    logs = ("soft", "hard")

    def __init__(self, teacher, temperature=4.0, share=0.9):
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.share = temperature, share

    def get_loss(self, learn):
        wanted = F.softmax(self.teacher(learn.xb) / self.temperature, dim=1)
        log_found = F.log_softmax(learn.preds / self.temperature, dim=1)
        soft = self.temperature**2 * F.kl_div(log_found, wanted, reduction="batchmean")
        hard = F.cross_entropy(learn.preds, learn.yb)
        learn.log("soft", soft)
        learn.log("hard", hard)
        learn.loss = self.share * soft + (1 - self.share) * hard


def teacher(seed, small):
    """Return a learner of the large network, on all images."""
    set_seed(seed)
    dls = first_images(64, 32, bs=16) if small else first_images(60_000, 10_000, bs=256)
    return Learner(large(), dls, lr=1e-2, cbs=[BatchSchedulerCB(OneCycleLR), MetricsCB(accuracy)])


def student(seed, small, *cbs):
    """Return a learner of the small network, on few images."""
    set_seed(seed)
    dls = first_images(64, 32, bs=16) if small else first_images(2_000, 10_000, bs=64)
    return Learner(little(), dls, lr=1e-2, cbs=[BatchSchedulerCB(OneCycleLR), MetricsCB(accuracy), *cbs])


def learner(seed=42, small=False, taught_by=None):
    """Return a learner of the small network that a teacher helps."""
    return student(seed, small, DistillCB(taught_by or large()))


def run(seed=42, folder=Path("runs/distillation"), small=False):
    """Train the teacher, the student that it teaches, and the same student alone."""
    large_one = teacher(seed, small)
    large_one.fit(2, cbs=CheckpointCB(folder / "teacher", every_minutes=1), resume=True)
    taught, alone = learner(seed, small, large_one.model), student(seed, small)
    settings = SMALL if small else {"n_epochs": 8, "epoch_steps": 80}
    taught.fit(**settings, cbs=CheckpointCB(folder / "taught", every_minutes=1), resume=True)
    alone.fit(**settings, cbs=CheckpointCB(folder / "alone", every_minutes=1), resume=True)
    figure = plot_history(taught.history)
    accuracies = [row["accuracy"] for row in alone.history if row["train"] == "eval"]
    figure.axes[0].plot(accuracies, label="eval, alone")
    figure.axes[0].legend()
    figure.savefig(folder / "picture.png")
    found = {"teacher": large_one, "taught": taught, "alone": alone}
    measures = {name: learn.history[-1]["accuracy"] for name, learn in found.items()}
    return measures | {"seconds": sum(row["time_s"] for learn in found.values() for row in learn.history)}


if __name__ == "__main__":
    print(run())
