"""Train a small BERT of Hugging Face transformers to say which package a function is from.

The functions are those of ten packages of Python's standard library, found with ast; every fifth is held out,
without regard to files. The tokenizer is trained on the others. TransformersCB takes the model's own loss
from batches that are dicts, `by_length` makes these of functions of similar length, and WandbCB logs offline.
The accuracy is shown beside that of a logistic regression on counts of words.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from model import PACKAGES, bag_of_words_accuracy, bert, data
from sklearn.metrics import ConfusionMatrixDisplay
from torch.optim.lr_scheduler import OneCycleLR
from torcheval.metrics import MulticlassAccuracy

from minilearn import (
    BatchSchedulerCB,
    CheckpointCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    TransformersCB,
    WandbCB,
    set_seed,
)

N_EPOCHS = 6


def learner(seed=42, small=False):
    """Return the learner of the job."""
    set_seed(seed)
    dls, tokenizer = data(seed, small)
    cbs = [
        TransformersCB(),
        MetricsCB(accuracy=MulticlassAccuracy()),
        BatchSchedulerCB(OneCycleLR),
        MixedPrecisionCB(torch.bfloat16),
        WandbCB("function_bert", mode="offline"),
    ]
    return Learner(bert(tokenizer), dls, lr=2e-3, cbs=cbs)


def run(seed=42, folder=Path("runs/function_bert"), small=False):
    """Train, draw the picture, and return the measures."""
    learn = learner(seed, small)
    saver = CheckpointCB(folder / "checkpoints", every_minutes=1)
    learn.fit(2 if small else N_EPOCHS, cbs=saver, resume=True)
    preds, targets = learn.predict(learn.dls["eval"], with_targets=True)
    bag_of_words = bag_of_words_accuracy(small)
    accuracies = [row["accuracy"] for row in learn.history if row["train"] == "eval"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=(2, 3), layout="constrained")
    left.plot(accuracies, marker="o", label="BERT")
    left.axhline(bag_of_words, color="black", linestyle="--", label="logistic regression on counts of words")
    left.set(xlabel="epoch", ylabel="accuracy, held-out functions")
    left.legend()
    names, look = PACKAGES, {"cmap": "Blues", "colorbar": False, "xticks_rotation": "vertical", "ax": right}
    ConfusionMatrixDisplay.from_predictions(
        targets, preds.argmax(-1), labels=range(len(names)), display_labels=names, **look
    )
    figure.savefig(folder / "picture.png", dpi=100)
    return {
        "accuracy": accuracies[-1],
        "bag_of_words_accuracy": bag_of_words,
        "seconds": sum(row["time_s"] for row in learn.history),
    }


if __name__ == "__main__":
    print(run())
