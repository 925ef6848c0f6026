"""What documents 002 and 003 say beside their experiments: lrs, annealing, and nets without BatchNorm.

On MNIST, with document 002's MLP and SGD: six constant lrs, from too low to too high; exponential and cosine
annealing, which the document only draws. On Fashion-MNIST, with document 003's CNN and AdamW: the same net
without BatchNorm under three initializations, and without one cycle. The text says that both are unnecessary
"if the model is initialized appropriately".

Source: documents 002 and 003, and for `lsuv` Mishkin and Matas 2015, "All you need is a good init". Differs:
the documents show no figures for any of this.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
from differences import Difference, paired
from mnist_optimizers import LR, N_ANNEALED, make_model, sgd
from report import History
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    DataLoaders,
    Learner,
    ScheduleCB,
    StridedCNN,
    fashion_mnist,
    mnist,
    set_seed,
)
from minilearn import schedules as s
from minilearn.data import peek
from minilearn.plot import new_figure

LRS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
N_SWEEP = 5  # epochs of each lr
FINAL = 0.01  # of the first lr, where exponential annealing ends
CNN_LR, N_CNN = 1e-2, 3  # document 003's for AdamW


def fit(
    model: nn.Module, dls: DataLoaders, opt_func: Any, lr: float, n_epochs: int, *cbs: Callback
) -> History:
    """Train; return the history."""
    learn = Learner(model, dls, lr=lr, opt_func=opt_func, cbs=list(cbs))
    learn.fit(n_epochs)
    return learn.history


# MNIST: the lr, and annealing ---------------------------------------------------------------------


def exponential(n_steps: int) -> s.Schedule:
    """Fall by the same factor at each step, to FINAL after n_steps."""
    return s.exponential(FINAL ** (1 / n_steps))


def at_lr(dls: DataLoaders, lr: float) -> History:
    """Train document 002's MLP at a constant lr."""
    return fit(make_model(), dls, sgd, lr, N_SWEEP)


def annealed(dls: DataLoaders, *cbs: Callback) -> History:
    """Train it for as long as the document's annealed runs."""
    return fit(make_model(), dls, sgd, LR, N_ANNEALED, *cbs)


# Fashion-MNIST: initialization --------------------------------------------------------------------


@torch.no_grad()
def lsuv(model: nn.Sequential, x: Tensor, n_times: int = 3) -> None:
    """Scale and shift each convolution, from the first on, so that its outputs on x have mean 0 and sd 1.

    The convolutions begin with orthogonal weights. Shapes: x (N, C, H, W).
    """
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight)
            for _ in range(n_times):
                out = layer(x)
                layer.weight /= out.std()
                layer.bias -= out.mean() / out.std()
        x = layer(x)


def kaiming(model: nn.Sequential, x: Tensor) -> None:
    """Leave the network as it is made, with Kaiming's rule."""


def torchs(model: nn.Sequential, x: Tensor) -> None:
    """Initialize as torch does by default."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()


def cnn(
    dls: DataLoaders,
    init: Callable[[nn.Sequential, Tensor], None] = kaiming,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    cycles: bool = True,
) -> History:
    """Train document 003's CNN, under one cycle or at a constant lr."""
    model = StridedCNN(norm=norm)
    init(model, peek(dls.train)[0])
    cbs = [BatchSchedulerCB(OneCycleLR)] if cycles else []
    return fit(model, dls, torch.optim.AdamW, CNN_LR, N_CNN, *cbs)


def no_norm(n_channels: int) -> nn.Module:
    """Return a layer that does nothing."""
    return nn.Identity()


Run = Callable[[DataLoaders], History]
# For each data set: the experiments, and which are compared, a - b, of as many epochs.
RUNS: dict[str, dict[str, Run]] = {
    "mnist": {
        **{f"lr {lr:g}": partial(at_lr, lr=lr) for lr in LRS},
        "constant lr": annealed,
        "exponential": lambda dls: annealed(dls, ScheduleCB("lr", exponential)),
        "cosine": lambda dls: annealed(dls, ScheduleCB("lr", s.cosine)),
    },
    "fashion_mnist": {
        "BatchNorm, one cycle": cnn,
        "BatchNorm, constant lr": partial(cnn, cycles=False),
        "none, torch's init, one cycle": partial(cnn, init=torchs, norm=no_norm),
        "none, Kaiming, one cycle": partial(cnn, norm=no_norm),
        "none, LSUV, one cycle": partial(cnn, init=lsuv, norm=no_norm),
        "none, LSUV, constant lr": partial(cnn, init=lsuv, norm=no_norm, cycles=False),
    },
}
PAIRS: dict[str, dict[str, tuple[str, str]]] = {
    "mnist": {
        **{f"lr {lr:g} - lr {LR:g}": (f"lr {lr:g}", f"lr {LR:g}") for lr in LRS if lr != LR},
        "exponential - constant lr": ("exponential", "constant lr"),
        "cosine - constant lr": ("cosine", "constant lr"),
        "cosine - exponential": ("cosine", "exponential"),
    },
    "fashion_mnist": {
        "LSUV - BatchNorm, one cycle": ("none, LSUV, one cycle", "BatchNorm, one cycle"),
        "Kaiming - BatchNorm, one cycle": ("none, Kaiming, one cycle", "BatchNorm, one cycle"),
        "LSUV - torch's init, one cycle": ("none, LSUV, one cycle", "none, torch's init, one cycle"),
        "one cycle - constant lr, LSUV": ("none, LSUV, one cycle", "none, LSUV, constant lr"),
        "one cycle - constant lr, BatchNorm": ("BatchNorm, one cycle", "BatchNorm, constant lr"),
        "LSUV, constant lr - BatchNorm, one cycle": ("none, LSUV, constant lr", "BatchNorm, one cycle"),
    },
}
DATA = {"mnist": (mnist, "MNIST", 256), "fashion_mnist": (fashion_mnist, "Fashion-MNIST", 512)}


def compared(name: str, rows: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return the differences of a data set's experiments, in each measure of the last epoch."""
    return paired(rows, PAIRS[name])


def plot(histories: dict[str, list[History]]) -> Any:
    """Return a figure: train loss and eval accuracy of each experiment, mean and sd over the runs."""
    lengths = sorted({len(of_runs[0]) for of_runs in histories.values()})
    figure, axes = new_figure(len(lengths), 2, 5.2, 3.2)
    for row, length in zip(axes, lengths, strict=True):
        names = [name for name, of_runs in histories.items() if len(of_runs[0]) == length]
        for ax, (phase, measure) in zip(row, (("train", "loss"), ("eval", "accuracy")), strict=True):
            for i, name in enumerate(names):
                values = [report.values_of(run, phase, measure) for run in histories[name]]
                report.draw_band(ax, values, f"C{i}", name)
            ax.set(title=f"{phase} {measure}", xlabel="epoch")
            ax.grid(alpha=0.3)
        row[0].set_yscale("log")
        row[1].legend(fontsize=7)
    figure.supxlabel(report.band_note(len(next(iter(histories.values())))), fontsize=8)
    return figure


def draw(result: dict[str, Any], out: Path, name: str) -> None:
    """Write the picture of a result."""
    plot(result["histories"]).savefig(out / f"{name}.png", dpi=90)


def run_all(args: argparse.Namespace, data_set: str) -> None:
    """Run the experiments on a data set, with each seed; print and write the result."""
    start_s = time.perf_counter()
    loader, title, bs = DATA[data_set]
    histories: dict[str, list[History]] = {name: [] for name in RUNS[data_set]}
    for seed, dls, data in report.seeds(args, loader, title, bs):
        for name, run in RUNS[data_set].items():
            print(f"\n{name}, {data}, seed {seed}", flush=True)
            set_seed(seed)
            histories[name].append(run(dls))
    rows = {name: report.measures_of(of_runs) for name, of_runs in histories.items()}
    print(f"\n{data}, n = {args.runs}: the last epoch")
    for name, row in rows.items():
        print(
            f"  {name:30}  accuracy {report.said(row['eval accuracy'])}  loss {report.said(row['eval loss'])}"
        )
    result = report.write(
        args.out,
        f"asides_{data_set}",
        "what documents 002 and 003 say beside their experiments",
        data,
        report.n_images(dls),
        range(args.seed, args.seed + args.runs),
        time_s=time.perf_counter() - start_s,
        rows=rows,
        histories=histories,
    )
    draw(result, args.out, f"asides_{data_set}")


def main() -> None:
    """Run as a script."""
    parser = report.parser_of(__doc__, "MNIST/raw and FashionMNIST/raw")
    parser.add_argument("--only", choices=RUNS, help="one of the two data sets")
    args = parser.parse_args()
    for data_set in [args.only] if args.only else RUNS:
        run_all(args, data_set)


if __name__ == "__main__":
    main()
