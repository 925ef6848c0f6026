"""What the processes of test_distributed_metrics do; the first one writes what came out."""

import os
import sys
from pathlib import Path

import torch
import torchmetrics
from distributed_worker import ValidateCB, run, shared_learner
from torch.nn import functional as F
from torcheval import metrics as torcheval

from minilearn import AtEnd, Callback, CheckpointCB, InValidation, MetricsCB

KIND = {"task": "multiclass", "num_classes": 3}


def accuracy(preds, target):
    return (preds.argmax(1) == target).float().mean()


class MarginOfFirst:
    """The mean margin of the samples of class 0, which it counts itself."""

    def __call__(self, preds, target):
        return (preds[:, 0] - preds[:, 1])[target == 0].mean()

    def count(self, preds, target):
        return (target == 0).sum()


def of_all(preds, target):
    """Something that depends on which prediction is of which target, in the order of the samples."""
    return float((preds.argmax(1) == target).mean()), float((preds[1:, 0] * preds[:-1, 1]).mean())


def outputs(cls, **kwargs):
    """A metric of torchmetrics that has one input."""

    class OfFirst(cls):
        def update(self, preds, target):
            super().update(preds[:, 0])

    return OfFirst(**kwargs)


def first_output(preds, target):
    return preds[:, 0], target.float()


def metrics():
    collection = {
        "precision": torchmetrics.Precision(average="macro", **KIND),
        "recall": torchmetrics.Recall(average="macro", **KIND),
        "auroc": torchmetrics.AUROC(**KIND),
    }
    return MetricsCB(
        torcheval.MulticlassAccuracy(),
        torchmetrics.MetricCollection(collection),
        f=accuracy,
        counted=MarginOfFirst(),
        picked=(F.l1_loss, first_output),
        end=AtEnd(of_all),
        listed=(AtEnd(lambda preds, target: sum(preds) / len(target)), lambda p, t: (p[:, 0].tolist(), t)),
        valid=InValidation(AtEnd(of_all)),
        accuracy=torchmetrics.Accuracy(**KIND),
        unsynced=torchmetrics.Accuracy(sync_on_compute=False, **KIND),
        lists=torchmetrics.AUROC(**KIND),
        bins=torchmetrics.AUROC(thresholds=20, **KIND),
        pearson=(torchmetrics.PearsonCorrCoef(), first_output),
        mean=outputs(torchmetrics.MeanMetric),
        most=outputs(torchmetrics.MaxMetric),
        least=outputs(torchmetrics.MinMetric),
        cat=Spread(),
        classes=torchmetrics.wrappers.ClasswiseWrapper(torchmetrics.Recall(average=None, **KIND)),
        extremes=torchmetrics.wrappers.MinMaxMetric(torchmetrics.Accuracy(**KIND)),
    )


class Spread(torchmetrics.CatMetric):
    """The standard deviation of the first output, from a list of all of them."""

    def update(self, preds, target):
        super().update(preds[:, 0])

    def compute(self):
        return super().compute().double().std()


class LogCB(Callback):
    """Log before and after the loss is known; one name in some batches and processes only."""

    logs = ("early", "own")

    def after_predict(self, learn):
        learn.log("early", learn.preds[:, 0].mean())

    def after_batch(self, learn):
        first = learn.preds[learn.yb == 0, 0]
        learn.log("own", first.mean(), len(first))
        if (learn.yb == 2).any():
            learn.log("seldom", learn.preds[learn.yb == 2, 0].mean(), (learn.yb == 2).sum())
        if learn.training and learn.rank == learn.n_processes - 1:
            learn.log("in_last", 1.0)


class CopyCB(Callback):
    """Name each checkpoint in a list; all are kept."""

    order = CheckpointCB.order

    def __init__(self):
        self.paths = []

    def state_dict(self):
        return {}

    def at_rest(self, learn):
        self.paths.append(str(learn.saved_to))


def untimed(rows):
    return [{name: value for name, value in row.items() if name != "time_s"} for row in rows]


def measured():
    """Rows of a fit with validations nested in it, and of validations of one batch and of one sample."""
    learn = shared_learner([metrics(), LogCB(), ValidateCB()], as_list=True)
    learn.fit(2)
    x, y = learn.dls.valid[0]
    rows = [*learn.history, learn.validate([(x, y)]), learn.validate([(x, y), (x[:1], y[:1])])]
    return {"rows": untimed(rows), "all_rows": learn.processes.all_gather(untimed(rows))}


def resumed(folder, every):
    """Train straight, and again from one of `every` checkpoints; return the rows of both."""
    saver = CheckpointCB(Path(folder) / "all", every_steps=1, every_minutes=1e-9, keep=100)
    learn = shared_learner([metrics(), LogCB(), saver, paths := CopyCB()])
    learn.fit(2)
    straight, found = untimed(learn.history), {}
    for path in sorted({*learn.processes.broadcast(paths.paths)})[::every]:
        cbs = [metrics(), LogCB(), CheckpointCB(Path(folder) / "other" / Path(path).stem)]
        learn = shared_learner(cbs)
        learn.fit(2, resume=path)
        found[path] = untimed(learn.history)
    return {"straight": straight, "found": found}


def main():
    every, folder = int(sys.argv[1]), Path(sys.argv[2])
    found = {"measured": measured()} | ({"resumed": resumed(folder, every)} if every else {})
    if os.environ["RANK"] == "0":
        torch.save(found, folder / f"metrics-{os.environ['WORLD_SIZE']}.pt")


if __name__ == "__main__":
    run(main)
