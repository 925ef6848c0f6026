"""Two tables of scikit-learn in ten folds, gradient boosting on them, the scores and the picture."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

SCORES = {"diabetes": ("r2", r2_score), "cancer": ("auroc", roc_auc_score)}
LABELS = {"prediction": "MLP", "boosting": "gradient boosting"}


def split(table, fold, seed, small=False):
    """Return the rows for training, for early stopping, and of the fold to be predicted.

    Inputs are standardized by the rows for training. "diabetes" gives (x, y), y standardized too; "cancer"
    gives (x, y, weight), where both classes weigh as much in all. small: a quarter of the rows.
    """
    is_binary = table == "cancer"
    x, y = (load_breast_cancer if is_binary else load_diabetes)(return_X_y=True)
    if small:
        x, y = x[::4], y[::4]
    folds = (StratifiedKFold if is_binary else KFold)(10, shuffle=True, random_state=seed)
    rest, test = list(folds.split(x, y))[fold]
    classes = y[rest] if is_binary else None
    train, valid = train_test_split(rest, test_size=0.2, random_state=seed, stratify=classes)
    x, y = torch.tensor(x).float(), torch.tensor(y).float().unsqueeze(1)
    columns = [(x - x[train].mean(0)) / x[train].std(0)]
    if is_binary:
        share = y[train].mean()
        columns += [y, torch.where(y == 1, 0.5 / share, 0.5 / (1 - share))]
    else:
        columns += [(y - y[train].mean()) / y[train].std()]
    return [tuple(column[rows] for column in columns) for rows in (train, valid, test)]


def boosted(table, fold, seed, small=False):
    """Return what gradient boosting predicts for a fold, trained on all other rows."""
    train, valid, (x, *_) = split(table, fold, seed, small)
    rows = [torch.cat(parts).squeeze(1).numpy() for parts in zip(train, valid, strict=True)]
    if table == "cancer":
        return GradientBoostingClassifier(random_state=seed).fit(*rows).predict_proba(x.numpy())[:, 1]
    return GradientBoostingRegressor(random_state=seed).fit(*rows).predict(x.numpy())


def scores_of(frame):
    """Return the score of each fold: a row for (table, fold), and columns "prediction" and "boosting"."""
    scores = {
        (table, fold): {column: SCORES[table][1](rows.target, rows[column]) for column in LABELS}
        for (table, fold), rows in frame.groupby(["table", "fold"])
    }
    return pd.DataFrame(scores).T


def measures_of(scores):
    """Return the mean score of each table, that of boosting, and in how many folds boosting is better."""
    measures = {}
    for table, (name, _) in SCORES.items():
        folds = scores.loc[table]
        measures[name] = float(folds.prediction.mean())
        measures[f"boosting_{name}"] = float(folds.boosting.mean())
        measures[f"folds_boosting_wins_{name}"] = int((folds.boosting > folds.prediction).sum())
    return measures


def draw(frame, scores):
    """Draw the predictions of the regression, and the scores of each fold of both tables."""
    figure, (first, *axes) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    diabetes = frame[frame.table == "diabetes"]
    for column in ("prediction", "boosting"):
        first.plot(diabetes.target, diabetes[column], ".", alpha=0.5, label=LABELS[column])
    first.axline((0, 0), slope=1, color="grey", linewidth=1)
    first.set(
        xlabel="target (standardized)", ylabel="prediction", title="diabetes: each row, by its fold's model"
    )
    first.legend()
    for ax, (table, name) in zip(axes, (("diabetes", "R²"), ("cancer", "AUROC")), strict=True):
        of_table = scores.loc[table]
        ax.plot([0, 1], of_table[["prediction", "boosting"]].T, ".-", color="grey", alpha=0.6)
        ax.plot([0, 1], of_table[["prediction", "boosting"]].mean(), "o-", color="black", linewidth=3)
        ax.set(title=f"{table}: {name} of the folds, and mean")
        ax.set_xticks([0, 1], [LABELS["prediction"], LABELS["boosting"]])
        ax.set_xlim(-0.3, 1.3)
        ax.grid(alpha=0.3)
    return figure
