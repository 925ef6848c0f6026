"""A search for settings: optuna suggests them, and five folds of scikit-learn's digits judge them.

The data are load_digits (1,797 images of 8 x 8), of which 40 % are held out from the folds and from optuna.
`PruneCB` is a callback of our own: it tells optuna the loss of each epoch, and raises `CancelFitException` to
prune the trial. Then the settings found and the defaults are trained for as many epochs on each fold; the
result is their accuracy on what was held out. The study is kept in a file, and the sampler of a trial is
seeded with its number, so a killed search repeats only the trial that was running, and finds the same.
"""

import time
from functools import partial
from pathlib import Path

import torch
from model import digits, draw, study_in
from optuna import TrialPruned
from optuna.samplers import TPESampler

from minilearn import MLP, Callback, CancelFitException, CheckpointCB, Learner, ProgressCB, set_seed

DEFAULTS = {"lr": 1e-3, "width": 32, "dropout": 0.0, "weight_decay": 1e-2}  # lr of Learner, decay of AdamW
N_FOLDS, N_EPOCHS, N_TRIALS = 5, 15, 20


class PruneCB(Callback):
    """Tell a trial the loss of each epoch, and end the fit when the trial is to be pruned."""

    def __init__(self, trial, fold):
        self.trial, self.fold = trial, fold

    def after_epoch(self, learn):
        self.trial.report(learn.history[-1]["loss"], self.fold * learn.n_epochs + learn.epoch)
        if self.trial.should_prune():
            raise CancelFitException


def learner(seed=42, small=False, fold=0, settings=DEFAULTS):
    """Return the learner of a fold."""
    set_seed(seed)
    model = MLP(64, settings["width"], settings["width"], 10, dropout=settings["dropout"])
    opt_func = partial(torch.optim.AdamW, weight_decay=settings["weight_decay"])
    dls, cbs = digits(fold, small), ProgressCB(quiet=True)
    return Learner(model, dls, lr=settings["lr"], opt_func=opt_func, cbs=cbs)


def objective(trial, seed, small):
    """Return the mean loss over the folds with the settings that a trial suggests."""
    settings = {
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        "width": trial.suggest_int("width", 16, 256, log=True),
        "dropout": trial.suggest_float("dropout", 0, 0.6),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1, log=True),
    }
    losses = []
    for fold in range(N_FOLDS):
        learn = learner(seed, small, fold, settings)
        learn.fit(2 if small else N_EPOCHS, cbs=PruneCB(trial, fold))
        if trial.should_prune():
            raise TrialPruned
        losses.append(learn.history[-1]["loss"])
    return sum(losses) / N_FOLDS


def run(seed=42, folder=Path("runs/search"), small=False):
    """Search, then train the defaults and the settings found; return their mean accuracies over the folds."""
    study = study_in(folder)
    while (n := sum(trial.state.is_finished() for trial in study.trials)) < (3 if small else N_TRIALS):
        study.sampler = TPESampler(seed=1000 * seed + n)
        study.optimize(partial(objective, seed=seed, small=small), n_trials=1)
    accuracies, seconds = {"default": [], "found": []}, {"default": 0.0, "found": 0.0}
    for name, settings in (("default", DEFAULTS), ("found", study.best_params)):
        for fold in range(N_FOLDS):
            learn = learner(seed, small, fold, settings)
            saver = CheckpointCB(folder / "checkpoints" / f"{name}-{fold}", every_minutes=1)
            start_s = time.perf_counter()
            learn.fit(2 if small else N_EPOCHS, cbs=saver, resume=True)
            seconds[name] += time.perf_counter() - start_s
            accuracies[name].append(learn.validate(learn.dls["test"])["MulticlassAccuracy"])
    draw(study, accuracies, N_EPOCHS).savefig(folder / "picture.png")
    means = {name: sum(values) / N_FOLDS for name, values in accuracies.items()}
    return means | {"seconds": seconds["default"], **study.best_params}


if __name__ == "__main__":
    print(run())
