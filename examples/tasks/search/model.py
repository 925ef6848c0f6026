"""The digits of scikit-learn in five folds and a part that is held out; the study; the picture."""

import matplotlib.pyplot as plt
import optuna
import torch
from optuna.pruners import MedianPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, train_test_split

from minilearn import DataLoaders, TensorLoader


def digits(fold, small=False):
    """Return DataLoaders of a fold; test is the part that is held out of all folds, 40 % of the images.

    small: a quarter of the images.
    """
    x, y = load_digits(return_X_y=True)
    if small:
        x, y = x[::4], y[::4]
    folded, held_out = train_test_split(range(len(x)), test_size=0.4, random_state=0, stratify=y)
    train, valid = list(StratifiedKFold(5).split(x[folded], y[folded]))[fold]
    x, y = torch.tensor(x).float() / 16, torch.tensor(y)
    folded = torch.tensor(folded)
    return DataLoaders(
        TensorLoader(x[folded[train]], y[folded[train]], shuffle=True),
        TensorLoader(x[folded[valid]], y[folded[valid]]),
        TensorLoader(x[held_out], y[held_out]),
    )


def study_in(folder):
    """Return the study that a folder keeps, or a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    pruner = MedianPruner(n_warmup_steps=5)
    return optuna.create_study(storage=storage, study_name="digits", load_if_exists=True, pruner=pruner)


def draw(study, accuracies, n_epochs):
    """Draw the trials' losses, what they suggested, and the accuracies on what was held out."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    trials = [trial for trial in study.trials if trial.state.is_finished()]
    for is_pruned, color, label in ((True, "tab:red", "pruned"), (False, "tab:blue", "finished")):
        found = [trial for trial in trials if (trial.state == TrialState.PRUNED) == is_pruned]
        label = f"{label}: {len(found)}"
        for trial in found:
            steps, losses = zip(*sorted(trial.intermediate_values.items()), strict=True)
            axes[0].plot(steps, losses, color=color, linewidth=1, alpha=0.6, label=label)
            label = None
        lrs, losses = [trial.params["lr"] for trial in found], [trial.value for trial in found]
        sizes = [trial.params["width"] for trial in found]
        axes[1].scatter(lrs, losses, sizes, color=color, alpha=0.6)
    for fold in range(1, 5):
        axes[0].axvline(fold * n_epochs - 0.5, color="grey", linewidth=0.5)
    axes[0].set(
        xlabel="epoch, of one fold after the other", title="loss in validation, each trial", yscale="log"
    )
    axes[0].legend()
    axes[1].set(xlabel="lr", title="last loss; a point's size is the width", xscale="log", yscale="log")
    for name, values in accuracies.items():
        axes[2].plot(values, "o-", label=f"{name}: {sum(values) / len(values):.4f}")
    axes[2].set(xlabel="fold", title="accuracy on what was held out", xticks=range(len(values)))
    axes[2].legend()
    return figure
