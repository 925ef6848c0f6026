"""Two tables: how diabetes progresses (a regression), and whether a tumour is benign (with sample weights).

The data are load_diabetes (442 rows) and load_breast_cancer (569 rows) of scikit-learn, in ten folds each. A
small MLP is trained for each fold, beside scikit-learn's gradient boosting with its default settings.
A batch of the second table is (inputs, target, weight): `unpack` says so, and the loss gets (target, weight).
`AtEnd` makes metrics of scikit-learn's functions, `EarlyStoppingCB` leaves the weights of the best epoch, and
`learn.predict` gives the predictions, which go into a pandas frame.
"""

import time
from pathlib import Path

import pandas as pd
from model import boosted, draw, measures_of, scores_of, split
from sklearn.metrics import r2_score, roc_auc_score
from torch.nn import functional as F

from minilearn import (
    MLP,
    AtEnd,
    CheckpointCB,
    DataLoaders,
    EarlyStoppingCB,
    InValidation,
    Learner,
    MetricsCB,
    ProgressCB,
    TensorLoader,
    set_seed,
)

MOST_EPOCHS = 100


def weighted_loss(preds, target):
    """Return the mean of each sample's cross-entropy times its weight."""
    y, weight = target
    return F.binary_cross_entropy_with_logits(preds, y, weight)


def learner(seed=42, small=False, table="cancer", fold=0):
    """Return the learner of a fold."""
    set_seed(seed)
    train, valid, test = split(table, fold, seed, small)
    dls = DataLoaders(TensorLoader(*train, bs=32, shuffle=True), TensorLoader(*valid), TensorLoader(*test))
    model = MLP(train[0].shape[1], 32, 1, dropout=0.2)
    cbs = [EarlyStoppingCB("eval/loss", patience=10), ProgressCB(quiet=True)]
    if table == "diabetes":
        return Learner(model, dls, lr=3e-3, cbs=[*cbs, MetricsCB(r2=InValidation(AtEnd(r2_score)))])
    auroc = (AtEnd(roc_auc_score), lambda preds, target: (preds, target[0]))
    cbs += [MetricsCB(auroc=InValidation(auroc))]
    return Learner(model, dls, weighted_loss, lr=3e-3, cbs=cbs, unpack=lambda batch: (batch[0], batch[1:]))


def run(seed=42, folder=Path("runs/tabular"), small=False):
    """Train on each fold of both tables, beside boosting; return means over the folds."""
    frames, seconds = [], 0.0
    for table in ("diabetes", "cancer"):
        for fold in range(2 if small else 10):
            learn = learner(seed, small, table, fold)
            saver = CheckpointCB(folder / "checkpoints" / f"{table}-{fold}", every_minutes=1)
            start_s = time.perf_counter()
            learn.fit(MOST_EPOCHS, cbs=saver, resume=True)
            seconds += time.perf_counter() - start_s
            preds, targets = learn.predict(learn.dls["test"], with_targets=True)
            y = targets if table == "diabetes" else targets[0]
            columns = {"target": y.squeeze(1), "prediction": preds.squeeze(1)}
            columns["boosting"] = boosted(table, fold, seed, small)
            frames.append(pd.DataFrame({"table": table, "fold": fold, **columns}))
    frame = pd.concat(frames)
    frame.to_csv(folder / "predictions.csv", index=False)
    scores = scores_of(frame)
    draw(frame, scores).savefig(folder / "picture.png")
    return {"seconds": seconds, **measures_of(scores)}


if __name__ == "__main__":
    print(run())
