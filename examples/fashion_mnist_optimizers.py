"""Document 003, table for table: optimizers and schedules from scratch, Fashion-MNIST from 84 to 90 %.

The strided CNN is trained with MomentumCB, MomentumSGD, RMSProp, Adam, Adam under a cosine and AdamW under
one cycle. Accuracy and loss of each epoch, mean and sd over the runs, stand next to the document's.

Source: document 003. Differs: its MomentumCB most likely never fired, because its learner's `zero_grad` hides
a hook of that name; its first table fits plain SGD, and both are run here. BatchNorm is torch's, with
gradients through the statistics; two tables are also run with what we take for the document's kind. Images
are shuffled, which as far as we know the document's library does not do; Adam is run without shuffling too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
from differences import Difference, beside, paired
from fashion_mnist import PUBLISHED as SIX_EPOCHS
from report import History
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    DataLoaders,
    GeneralReLU,
    Learner,
    MomentumCB,
    RecorderCB,
    StoreModuleStatsCB,
    StridedCNN,
    fashion_mnist,
    set_seed,
)
from minilearn.callbacks.hooks import ModuleStats
from minilearn.optim import Adam, MomentumSGD, RMSProp
from minilearn.plot import new_figure, plot_lines

# The document's tables: epoch -> (train accuracy, train loss, eval accuracy, eval loss).
MOMENTUM_CB = (
    (0.791, 0.578, 0.807, 0.531),
    (0.855, 0.395, 0.835, 0.460),
    (0.868, 0.357, 0.841, 0.443),
    (0.883, 0.321, 0.868, 0.358),  # from here on at lr .05
    (0.886, 0.314, 0.869, 0.355),
)
MOMENTUM_SGD = (
    (0.803, 0.549, 0.590, 1.788),
    (0.857, 0.395, 0.851, 0.411),
    (0.880, 0.325, 0.866, 0.383),
)
ADAM = (
    (0.824, 0.490, 0.852, 0.430),
    (0.874, 0.346, 0.867, 0.386),
    (0.888, 0.302, 0.868, 0.371),
)
PUBLISHED = {
    "MomentumCB(), lr .2, then .05": MOMENTUM_CB,
    "no momentum, lr .2, then .05": MOMENTUM_CB,  # what the document's table is
    "MomentumSGD, lr 1.25": MOMENTUM_SGD,
    "MomentumSGD, BatchNorm as there": MOMENTUM_SGD,
    "RMSProp, lr .01": (
        (0.780, 0.635, 0.814, 0.536),
        (0.855, 0.387, 0.827, 0.513),
        (0.869, 0.348, 0.822, 0.521),
    ),
    "Adam, lr .01": ADAM,
    "Adam, BatchNorm as there": ADAM,
    "Adam, not shuffled": ADAM,
    "Adam, BatchNorm and order as there": ADAM,
    "cosine, torch's Adam, lr .01": (
        (0.822, 0.493, 0.843, 0.430),
        (0.878, 0.332, 0.868, 0.359),
        (0.896, 0.283, 0.877, 0.335),
    ),
    "one cycle, lr .01": (
        (0.727, 0.777, 0.837, 0.482),
        (0.870, 0.357, 0.868, 0.361),
        (0.895, 0.285, 0.884, 0.320),
    ),
    "one cycle, lr .05, 6 epochs": SIX_EPOCHS,
}
# What is compared, a - b.
PAIRS = {
    "MomentumCB - no momentum": ("MomentumCB(), lr .2, then .05", "no momentum, lr .2, then .05"),
    "MomentumSGD, BatchNorm as there - torch's": ("MomentumSGD, BatchNorm as there", "MomentumSGD, lr 1.25"),
    "Adam, BatchNorm as there - torch's": ("Adam, BatchNorm as there", "Adam, lr .01"),
    "Adam, not shuffled - shuffled": ("Adam, not shuffled", "Adam, lr .01"),
    "Adam, both as there - neither": ("Adam, BatchNorm and order as there", "Adam, lr .01"),
    "cosine - constant lr": ("cosine, torch's Adam, lr .01", "Adam, lr .01"),
    "one cycle - cosine": ("one cycle, lr .01", "cosine, torch's Adam, lr .01"),
}


def train(
    model: nn.Module,
    lr: float,
    n_epochs: int = 3,
    bs: int = 512,
    opt_func: Callable[..., Any] = torch.optim.SGD,
    cbs: Sequence[Callback] = (),
    dls: DataLoaders | None = None,
) -> Learner:
    """Train a Fashion-MNIST model, with a new optimizer; return the learner.

    Args:
        bs: batch size for Fashion-MNIST; not used if `dls` are given.
        dls: other data.
    """
    learn = Learner(model, dls or fashion_mnist(bs), lr=lr, opt_func=opt_func, cbs=list(cbs))
    learn.fit(n_epochs)
    return learn


def train_1cycle(
    model: nn.Module,
    lr: float = 1e-2,
    n_epochs: int = 3,
    extra_cbs: Sequence[Callback] = (),
    dls: DataLoaders | None = None,
) -> tuple[RecorderCB, StoreModuleStatsCB]:
    """Train with AdamW under one cycle up to `lr`; return lr, momentum and loss, and the activations.

    Differs: the document reads its `stats` before they exist.
    """
    recorder, stats = RecorderCB(), StoreModuleStatsCB(GeneralReLU, every=10)
    cbs = [BatchSchedulerCB(OneCycleLR), recorder, stats, *extra_cbs]
    train(model, lr, n_epochs, opt_func=torch.optim.AdamW, cbs=cbs, dls=dls)
    return recorder, stats


class DetachedBatchNorm(nn.BatchNorm2d):
    """Be a BatchNorm like the document's: for the gradient, the batch's statistics are constants."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize. Shapes: (N, C, H, W) -> (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            super().forward(x)  # for the running statistics
            var, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return (x - mean) / (var + self.eps).sqrt() * scale + shift


def unshuffled(dls: DataLoaders) -> DataLoaders:
    """Return the data with the training images in the order of the file, in every epoch."""
    train = copy(dls.train)
    train.shuffle = False
    return DataLoaders(train, dls.valid, classes=dls.classes, source=dls.source)


class KeepHistoryCB(Callback):
    """Keep the history of a fit whose learner is not accessible."""

    history: History

    def after_fit(self, learn: Any) -> None:
        """Keep it."""
        self.history = learn.history


def _twice(dls: DataLoaders, cbs: Callable[[], list[Callback]]) -> History:
    model = StridedCNN()
    first = train(model, 0.2, 3, cbs=cbs(), dls=dls).history
    second = train(model, 0.05, 2, cbs=cbs(), dls=dls).history
    return first + [{**row, "epoch": row["epoch"] + 3} for row in second]


def _once(
    dls: DataLoaders,
    lr: float,
    opt_func: Any,
    *cbs: Callback,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> History:
    return train(StridedCNN(norm=norm), lr, opt_func=opt_func, cbs=cbs, dls=dls).history


def _one_cycle(dls: DataLoaders, lr: float, n_epochs: int) -> History:
    keep = KeepHistoryCB()
    train_1cycle(StridedCNN(), lr, n_epochs, [keep], dls)
    return keep.history


RUNS: dict[str, Callable[[DataLoaders], History]] = {
    "MomentumCB(), lr .2, then .05": partial(_twice, cbs=lambda: [MomentumCB()]),
    "no momentum, lr .2, then .05": partial(_twice, cbs=list),
    "MomentumSGD, lr 1.25": partial(_once, lr=1.25, opt_func=MomentumSGD),
    "MomentumSGD, BatchNorm as there": partial(_once, lr=1.25, opt_func=MomentumSGD, norm=DetachedBatchNorm),
    "RMSProp, lr .01": partial(_once, lr=1e-2, opt_func=RMSProp),
    "Adam, lr .01": partial(_once, lr=1e-2, opt_func=Adam),
    "Adam, BatchNorm as there": partial(_once, lr=1e-2, opt_func=Adam, norm=DetachedBatchNorm),
    "Adam, not shuffled": lambda dls: _once(unshuffled(dls), 1e-2, Adam),
    "Adam, BatchNorm and order as there": lambda dls: _once(
        unshuffled(dls), 1e-2, Adam, norm=DetachedBatchNorm
    ),
    "cosine, torch's Adam, lr .01": lambda dls: _once(
        dls, 1e-2, torch.optim.Adam, BatchSchedulerCB(CosineAnnealingLR)
    ),
    "one cycle, lr .01": partial(_one_cycle, lr=1e-2, n_epochs=3),
    "one cycle, lr .05, 6 epochs": partial(_one_cycle, lr=5e-2, n_epochs=6),
}


def epochs_of(histories: Sequence[History]) -> list[dict[str, Any]]:
    """Return mean and sd of accuracy and loss over runs, for each epoch and phase."""
    rows = []
    for of_runs in zip(*histories, strict=True):
        row = {key: of_runs[0][key] for key in ("epoch", "train")}
        for name, key in (("accuracy", "MulticlassAccuracy"), ("loss", "loss")):
            row[name] = report.mean_sd([r[key] for r in of_runs])
        rows.append(row)
    return rows


def compared(rows: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return the differences between experiments of equal length, in each measure of the last epoch."""
    return paired(rows, PAIRS)


def compared_with_published(rows: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return ours - the document's, in each measure of the last epoch."""
    figures = {}
    for name, epochs in PUBLISHED.items():
        train_accuracy, train_loss, accuracy, loss = epochs[-1]
        figures[name] = {
            "eval accuracy": accuracy,
            "eval loss": loss,
            "train accuracy": train_accuracy,
            "train loss": train_loss,
        }
    return beside(rows, figures)


# Pictures -----------------------------------------------------------------------------------------


def plot_smoothing(seed: int = 42) -> Any:
    """Return the document's figure of how momentum smooths: averages of noisy points, starting at 0."""
    rng = torch.Generator().manual_seed(seed)
    xs = torch.linspace(-4, 4, 100)
    ys = 1 - (xs / 3) ** 2 + torch.randn(100, generator=rng) * 0.1
    figure, axes = new_figure(2, 2, 3.5, 2.2)
    for ax, beta in zip(axes.flat, (0.5, 0.7, 0.9, 0.99), strict=True):
        avg, averages = 0.0, []
        for y in ys.tolist():
            avg = beta * avg + (1 - beta) * y
            averages.append(avg)
        ax.scatter(xs, ys, s=6, label="y: points with noise")
        ax.plot(xs, averages, color="purple", label="avg = beta * avg + (1 - beta) * y, from 0")
        ax.set_title(f"beta={beta}", fontsize=10)
    figure.supxlabel("x", fontsize=9)
    figure.supylabel("y", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def plot_runs(histories: dict[str, list[History]]) -> Any:
    """Return a figure of each experiment's eval accuracy over epochs: mean, sd and the document's."""
    n_cols = 4
    figure, axes = new_figure(-(-len(histories) // n_cols), n_cols, 2.9, 2.3)
    n = len(next(iter(histories.values())))
    for ax in axes.flat[len(histories) :]:
        ax.axis("off")
    for ax, (name, of_runs) in zip(axes.flat, histories.items(), strict=False):
        values = [row["accuracy"] for row in epochs_of(of_runs) if row["train"] == "eval"]
        published = [row[2] for row in PUBLISHED[name]]
        means, sds = [value["mean"] for value in values], [value["sd"] or 0.0 for value in values]
        ax.errorbar(range(len(values)), means, sds, marker=".", capsize=3, label=f"ours, n = {n}: mean, sd")
        ax.plot(published, "x--", color="0.5", label="document 003, one run")
        ax.set_title(name, fontsize=8)
        lowest = min([*published, *(mean - sd for mean, sd in zip(means, sds, strict=True))])
        highest = max(mean + sd for mean, sd in zip(means, sds, strict=True))
        limits = min(0.75, lowest - 0.02), max(0.93, highest + 0.02)  # no bar is cut
        ax.set(ylim=limits, xticks=range(len(values)))
        ax.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("eval accuracy (axes differ)", fontsize=9)
    return figure


def one_cycle_of(dls: DataLoaders, seed: int) -> dict[str, Any]:
    """Train once under one cycle; return the lr, momentum and loss of each step, and the activations."""
    set_seed(seed)
    recorder, stats = train_1cycle(StridedCNN(), dls=dls)
    numbers = {key: _rounded(values) for key, values in recorder.recs.items()}
    modules = {
        name: {"kind": of.kind} | {key: _rounded(getattr(of, key)) for key in ("means", "stds", "hists")}
        for name, of in stats.stats.items()
    }
    return {"recs": numbers, "every": stats.every, "modules": modules}


def _rounded(values: Any) -> Any:
    """Return numbers, or tensors of them, as lists, rounded to four digits."""
    if isinstance(values, Tensor):
        values = values.tolist()
    return [_rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.4g}")


def stats_of(one_cycle: dict[str, Any]) -> StoreModuleStatsCB:
    """Return the recorded statistics of a run, to be drawn."""
    stats = StoreModuleStatsCB(GeneralReLU, every=one_cycle["every"])
    for name, of in one_cycle["modules"].items():
        parts = {key: [torch.tensor(value) for value in of[key]] for key in ("means", "stds", "hists")}
        stats.stats[name] = ModuleStats(of["kind"], **parts)
    return stats


def draw(result: dict[str, Any], out: Path, name: str) -> None:
    """Write the pictures of a result."""
    stats = stats_of(result["one_cycle"])
    pictures = {
        "smoothing": plot_smoothing(),
        "runs": plot_runs(result["histories"]),
        "schedule": plot_lines(result["one_cycle"]["recs"], xlabel="step"),
        "stats": stats.plot_stats(),
        "hists": stats.plot_hists(),
    }
    for picture, figure in pictures.items():
        figure.savefig(out / f"{name}_{picture}.png", dpi=90)


def main() -> None:
    """Run as a script."""
    parser = report.parser_of(__doc__, "FashionMNIST/raw")
    args = parser.parse_args()

    start_s = time.perf_counter()
    histories: dict[str, list[History]] = {name: [] for name in RUNS}
    for seed, dls, data in report.seeds(args, fashion_mnist, "Fashion-MNIST", default_bs=512):
        for name, run in RUNS.items():
            print(f"\n{name}, {data}, seed {seed}")
            set_seed(seed)
            histories[name].append(run(dls))
    one_cycle = one_cycle_of(dls, args.seed)
    time_s = time.perf_counter() - start_s
    rows = {name: report.measures_of(of_runs) for name, of_runs in histories.items()}

    print(f"\n{data}, n = {args.runs}: eval accuracy after the last epoch (in brackets: document 003)")
    for name, row in rows.items():
        published = f"({PUBLISHED[name][-1][2]:.3f})" if data == "Fashion-MNIST" else ""
        print(f"  {name:34}  {report.said(row['eval accuracy'])}  {published}".rstrip())
    print(f"{time_s:.0f} s on {report.threads()}")
    result = report.write(
        args.out,
        "fashion_mnist_optimizers",
        "document 003, each of its tables",
        data,
        report.n_images(dls),
        range(args.seed, args.seed + args.runs),
        time_s=time_s,
        rows=rows,
        one_cycle=one_cycle,
        histories=histories,
    )
    draw(result, args.out, "fashion_mnist_optimizers")


if __name__ == "__main__":
    main()
