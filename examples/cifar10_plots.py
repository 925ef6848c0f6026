"""The pictures of document 001: the lr of each experiment and of torch's schedulers, accuracies, SWA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from report import History, draw_thinned, values_of
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from minilearn import BatchSchedulerCB, EpochSchedulerCB, Learner, TensorLoader
from minilearn.plot import new_figure


def plot_lrs(lrs: dict[str, dict[str, Any]]) -> Any:
    """Return a figure of the lr in each experiment, one panel each, as the document draws them."""
    n_cols = min(4, len(lrs))
    figure, axes = new_figure(-(-len(lrs) // n_cols), n_cols, 2.8, 2.2)
    for ax in axes.flat[len(lrs) :]:
        ax.axis("off")
    for ax, (name, curve) in zip(axes.flat, lrs.items(), strict=False):
        draw_thinned(ax, curve, curve["n_steps"] / curve["n_epochs"], linewidth=1.5)
        ax.set_title(name.replace(", wider", ",\nwider"), fontsize=9)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    figure.supxlabel("epoch")
    figure.supylabel("lr")
    return figure


def warm_up_then_cosine(opt: torch.optim.Optimizer, total_steps: int) -> SequentialLR:
    """Return a scheduler that warms up for a fifth of its steps, and then follows a cosine."""
    n = total_steps // 5
    parts = [LinearLR(opt, 0.1, total_iters=n), CosineAnnealingLR(opt, total_steps - n)]
    return SequentialLR(opt, parts, milestones=[n])


def all_lrs(n_epochs: int = 10, n_batches: int = 10) -> dict[str, list[list[float]]]:
    """Return the lr at each step of a fit by torch's schedulers, without training: [per batch, per epoch].

    Lengths are in batches for a batch scheduler, and in epochs for an epoch scheduler.
    """
    of: dict[
        str, Callable[[int], tuple[Any, dict[str, Any]]]
    ] = {  # units of an epoch -> scheduler, arguments
        "MultiStepLR": lambda n: (MultiStepLR, {"milestones": [5 * n, 8 * n], "gamma": 0.3}),
        "StepLR": lambda n: (StepLR, {"step_size": 3 * n, "gamma": 0.5}),
        "CosineAnnealingLR": lambda n: (CosineAnnealingLR, {}),
        "CosineAnnealingWarmRestarts": lambda n: (CosineAnnealingWarmRestarts, {"T_0": 3 * n, "T_mult": 2}),
        "CyclicLR": lambda n: (CyclicLR, {"base_lr": 0.005, "step_size_up": 2 * n}),
        "OneCycleLR": lambda n: (OneCycleLR, {}),
        "ReduceLROnPlateau": lambda n: (ReduceLROnPlateau, {"patience": 1, "factor": 0.3}),
        "LambdaLR": lambda n: (LambdaLR, {"lr_lambda": lambda i: 1 / (1 + i / n)}),
        "ExponentialLR": lambda n: (ExponentialLR, {"gamma": 0.75 ** (1 / n)}),
        "LinearLR": lambda n: (LinearLR, {"start_factor": 1.0, "end_factor": 0.1}),
        "PolynomialLR": lambda n: (PolynomialLR, {"power": 2}),
        "SequentialLR": lambda n: (warm_up_then_cosine, {}),
    }
    xs = torch.zeros(n_batches, 1)
    opt_func = partial(torch.optim.SGD, momentum=0.9)
    learn = Learner(nn.Linear(1, 1), {"train": TensorLoader(xs, xs, bs=1)}, lr=0.05, opt_func=opt_func)
    losses = [1.0, 0.8, 0.7, 0.7, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6]  # for the schedule after them
    lrs: dict[str, list[list[float]]] = {}
    for name, make in of.items():
        lrs[name] = []
        for kind, n in ((BatchSchedulerCB, n_batches), (EpochSchedulerCB, 1)):
            scheduler_f, kwargs = make(n)
            if scheduler_f is not ReduceLROnPlateau or kind is EpochSchedulerCB:
                lrs[name].append(kind(scheduler_f, **kwargs).preview(learn, n_epochs, values=losses))
    return lrs


def plot_all_lrs() -> Any:
    """Return a figure of the lr by torch's schedulers, stepped per batch and per epoch."""
    figure, axes = new_figure(3, 4, 2.8, 2.1)
    for ax, (name, lrs) in zip(axes.flat, all_lrs().items(), strict=True):
        for values, unit in zip(lrs[::-1], ("per epoch", "per batch"), strict=False):
            epochs = [i / 10 for i in range(len(values))]
            ax.plot(epochs, values, label=unit, linestyle="--" if unit == "per epoch" else "-")
        ax.set_title(name, fontsize=9)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("epoch")
    figure.supylabel("lr")
    return figure


def plot_accuracy(histories: dict[str, History]) -> Any:
    """Return a figure of the eval accuracy over epochs, a line for each experiment."""
    figure, axes = new_figure(1, 1, 7.5, 4.5)
    ax = axes[0, 0]
    for name, history in histories.items():
        accuracy = values_of(history, "eval", "accuracy")
        epochs = range(1, len(accuracy) + 1)
        ax.plot(epochs, accuracy, marker=".", label=f"{name}: {accuracy[-1]:.4f}")
    ax.set(xlabel="epoch  (one seed; in the legend the last epoch)", ylabel="eval accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def plot_swa(history: History, other: History | None = None) -> Any:
    """Return a figure of loss and accuracy before and in SWA: training, the iterates, their average.

    Args:
        other: the run of one cycle over as many epochs, to compare the average with.
    """
    figure, axes = new_figure(1, 2, 4.5, 3.2)
    averaged = {row["epoch"] for row in history if row["train"] == "iterate"}
    lines = {
        "train": [row for row in history if row["train"] == "train"],
        "eval: iterate": [
            row for row in history if row["train"] == ("iterate" if row["epoch"] in averaged else "eval")
        ],
        "eval: average": [row for row in history if row["train"] == "eval" and row["epoch"] in averaged],
    }
    if other is not None:
        lines["eval: one cycle, no SWA"] = [row for row in other if row["train"] == "eval"]
    for ax, key in zip(axes[0], ("loss", "MulticlassAccuracy"), strict=True):
        for name, rows in lines.items():
            ax.plot([row["epoch"] + 1 for row in rows], [row[key] for row in rows], marker=".", label=name)
        ax.axvline(min(averaged) + 0.5, color="0.5", linestyle=":")
        ax.set_title("accuracy" if key != "loss" else key)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=8, loc="lower right")
    figure.supxlabel("epoch  (one seed; dotted: SWA begins)", fontsize=9)
    return figure
