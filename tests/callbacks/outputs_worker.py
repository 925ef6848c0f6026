"""What the processes of test_transformers do: train models that compute their own loss, in several ways."""

import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for toolbox

import torch
from distributed_worker import leave
from outputs import Rows, net, tokens
from test_jobs import Detector, Shapes, together
from toolbox import samples, tensors_of, two_layers
from torch.nn import functional as F
from torch.optim import SGD

from minilearn import (
    CheckpointCB,
    DatasetLoader,
    DetectionCB,
    DistributedCB,
    GradientAccumulationCB,
    GradualUnfreezeCB,
    Learner,
    TensorLoader,
    TransformersCB,
    set_seed,
)
from minilearn.optim import by_layer

N, BS = 32, 8
CASES = ("token", "next", "sequence")


def of_tokens(preds, target):
    return F.cross_entropy(preds.logits.flatten(0, 1), target.flatten())


def learner(of, bs=BS, *cbs, loss=False, whole=None):
    """Make a learner on dict batches; with `loss`, of a loss_func in place of the model's own."""
    set_seed(1)
    rows = Rows(tokens(N, of) if whole is None else whole)
    dls = {"train": DatasetLoader(rows, bs=bs), "eval": DatasetLoader(rows, bs=5)}
    cbs = [DistributedCB(), *cbs, *([] if loss else [TransformersCB()])]
    return Learner(net(of), dls, of_tokens if loss else None, 0.5, cbs=cbs, opt_func=SGD)


def data():
    x, y = samples(N)
    return {"train": TensorLoader(x, y, bs=5), "eval": TensorLoader(x, y, bs=5)}


def said(learn):
    rows = [{k: v for k, v in row.items() if k != "time_s"} for row in learn.history]
    preds = learn.predict(learn.dls.valid)
    preds = getattr(preds, "logits", preds)  # the whole output without TransformersCB
    return {"rows": rows, "weights": tensors_of(learn.model), "preds": preds}


def results(folder):
    """Train each case in one step an epoch, of four batches of 8."""
    found = {}
    for of in CASES:
        learn = learner(of, BS, GradientAccumulationCB(N // BS))
        learn.fit(2)
        found[of] = said(learn)
    learn = learner("token", BS, GradientAccumulationCB(N // BS), loss=True)
    learn.fit(2)
    found["loss_func"] = said(learn)
    whole = tokens(N)
    whole["labels"][::2] = -100  # so that a process may have a shard without any
    learn = learner("token", 2, whole=whole)
    learn.fit(1)
    found["shards without labels"] = said(learn)
    set_seed(1)
    shown = partial(DatasetLoader, Shapes(), bs=3, collate_fn=together)  # the last batch has one image
    cbs = [DistributedCB(), DetectionCB()]
    learn = Learner(Detector(p=0.0), {"train": shown(), "eval": shown()}, lr=0.1, cbs=cbs, opt_func=SGD)
    learn.fit(2)
    found["detection"] = said(learn)
    learn = Learner(two_layers(), data(), lr=0.1, cbs=DistributedCB(), param_groups=by_layer, opt_func=SGD)
    learn.fit(3, cbs=GradualUnfreezeCB({1: None}, lr_div=2))
    found["unfreezing"] = said(learn)
    learn = learner("next", BS, CheckpointCB(folder, every_steps=1, keep=100))
    learn.fit(2)
    found["straight"] = said(learn)
    learn = learner("next", BS, CheckpointCB(folder / "again"))
    learn.fit(2, resume=folder / "epoch-0001-train-000002.pt")
    found["resumed"] = said(learn)
    return found


def main():
    what, folder = sys.argv[1:]
    found = results(Path(folder) / "checkpoints")
    if int(os.environ["RANK"]) == 0:
        torch.save(found, Path(folder) / f"{what}.pt")


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        leave(1)
    leave(0)
