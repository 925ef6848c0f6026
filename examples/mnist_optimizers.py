"""Document 002, a tour of optimizers and schedules on MNIST: each experiment of the lab, in one table.

An MLP with BatchNorm and dropout, batches of 256. The experiments of the document are repeated; it prints no
figures to compare with.

Source: document 002. Differs: it shows neither its MLP ("with regularization") nor its batch size; its
`scheduler.step()` stands outside of the epoch loop, here it runs in each epoch; its SGD_Alternate is
`minilearn.optim.SGDAlternate`. The run with early stopping is trained on five sixths of the images and
stopped by the last sixth, so that it is not selected by its figures on the test set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
from differences import Difference, paired
from report import History
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from minilearn import (
    MLP,
    BatchSizeCB,
    Callback,
    DataLoaders,
    EarlyStoppingCB,
    EpochSchedulerCB,
    Learner,
    RecorderCB,
    ScheduleCB,
    mnist,
    plot_scheduler,
    set_seed,
)
from minilearn import schedules as s
from minilearn.optim import SGDAlternate
from minilearn.plot import new_figure

LR, WD, MOMENTUM = 0.1, 5e-4, 0.9  # of the document's SGD
N_ANNEALED = 15  # epochs of the annealed runs; the lr falls before the seventh and the twelfth
DROPS = (6, 11)

sgd = partial(torch.optim.SGD, momentum=MOMENTUM, weight_decay=WD)
make_model = partial(MLP, 784, 128, 64, 10, norm=True, dropout=0.2)


class AnnealByHandCB(Callback):
    """Multiply every group's lr by 0.1 before given epochs, as the document does at first."""

    def before_epoch(self, learn: Any) -> None:
        """Change the groups."""
        if learn.epoch in DROPS:
            for pg in learn.opt.param_groups:
                pg["lr"] *= 0.1


def fit(
    dls: DataLoaders, opt_func: Callable[..., Any], lr: float, n_epochs: int, *cbs: Callback, **kwargs: Any
) -> tuple[Learner, RecorderCB]:
    """Train a new MLP; return its learner, and the lr and momentum of each step."""
    recorder = RecorderCB()
    learn = Learner(make_model(), dls, lr=lr, opt_func=opt_func, cbs=[*cbs, recorder], **kwargs)
    learn.fit(n_epochs)
    return learn, recorder


def two_groups(model: nn.Sequential) -> list[dict[str, Any]]:
    """Return the first six layers, and the others with twice the weight decay."""
    return [
        {"params": model[:6].parameters(), "weight_decay": WD},
        {"params": model[6:].parameters(), "weight_decay": 2 * WD},
    ]


# The experiments ----------------------------------------------------------------------------------


def warmed_up(dls: DataLoaders) -> tuple[Learner, RecorderCB]:
    """Warm up for an epoch (iteration u has u / U of the lr), then anneal on a straight line."""
    per_epoch = len(dls.train)
    triangle = s.sequence([s.warm_up(per_epoch), s.polynomial(4 * per_epoch)], milestones=[per_epoch])
    return fit(dls, sgd, LR, 5, ScheduleCB("lr", s.shifted(triangle, 1)))


def held_out(dls: DataLoaders, every: int = 6) -> DataLoaders:
    """Split the training images: every sixth one for validation, the others for training."""
    loaders: list[Any] = []
    for is_valid, like in ((False, dls.train), (True, dls.valid)):
        loader: Any = copy(like)
        kept = (torch.arange(len(dls.train.tensors[0])) % every == every - 1) == is_valid
        loader.tensors = tuple(t[kept] for t in dls.train.tensors)
        loader.n_samples = len(loader.tensors[0])
        loaders.append(loader)
    train, valid = loaders
    return DataLoaders(train, valid, classes=dls.classes, source=dls.source)


def cycled(dls: DataLoaders) -> tuple[Learner, RecorderCB]:
    """Cycle the lr with a decaying peak until two cycles bring no improvement; keep the best weights.

    Images held out of training decide what is best.
    """
    dls = held_out(dls)
    length = 3 * len(dls.train)
    schedule = s.cycled(s.triangular(length, pct_start=0.2, low=0.01), length, decay=0.7, low=0.01)
    stop = EarlyStoppingCB("eval/loss", patience=2 * 3)
    return fit(dls, sgd, LR, 30, ScheduleCB("lr", schedule), stop)


def grown(dls: DataLoaders) -> tuple[Learner, RecorderCB]:
    """Increase the batch size tenfold where the lr would fall to a tenth."""
    bs = dls.train.bs
    return fit(dls, sgd, LR, N_ANNEALED, BatchSizeCB({DROPS[0]: 10 * bs, DROPS[1]: 100 * bs}))


RUNS: dict[str, Callable[[DataLoaders], tuple[Learner, RecorderCB]]] = {
    "SGD, momentum .9": lambda dls: fit(dls, sgd, LR, 5),
    "RMSprop": lambda dls: fit(dls, torch.optim.RMSprop, 1e-2, 5),  # torch's defaults, like the next
    "Adam": lambda dls: fit(dls, torch.optim.Adam, 1e-3, 5),
    "SGD, momentum .8 from epoch 3": lambda dls: fit(dls, sgd, LR, 5, ScheduleCB("momentum", {3: 0.8})),
    "SGD, two groups of weight decay": lambda dls: fit(dls, sgd, LR, 5, param_groups=two_groups),
    "constant lr": lambda dls: fit(dls, sgd, LR, N_ANNEALED),
    "annealed by hand": lambda dls: fit(dls, sgd, LR, N_ANNEALED, AnnealByHandCB()),
    "annealed by MultiStepLR": lambda dls: fit(
        dls, sgd, LR, N_ANNEALED, EpochSchedulerCB(MultiStepLR, milestones=DROPS)
    ),
    "growing batch": grown,
    "warm-up, then a line": warmed_up,
    "cycles, early stopping": cycled,
    "SGDAlternate": lambda dls: fit(dls, partial(SGDAlternate, momentum=MOMENTUM), LR, 3),
    "torch's SGD, no decay": lambda dls: fit(dls, partial(torch.optim.SGD, momentum=MOMENTUM), LR, 3),
}


# What is compared, a - b: experiments of equal length.
PAIRS = {
    "RMSprop - SGD": ("RMSprop", "SGD, momentum .9"),
    "Adam - SGD": ("Adam", "SGD, momentum .9"),
    "momentum .8 from epoch 3 - .9": ("SGD, momentum .8 from epoch 3", "SGD, momentum .9"),
    "two groups of weight decay - one": ("SGD, two groups of weight decay", "SGD, momentum .9"),
    "warm-up, then a line - SGD, momentum .9": ("warm-up, then a line", "SGD, momentum .9"),
    "annealed - constant lr": ("annealed by MultiStepLR", "constant lr"),
    "growing batch - annealed": ("growing batch", "annealed by MultiStepLR"),
    "SGDAlternate - torch's SGD": ("SGDAlternate", "torch's SGD, no decay"),
}


def compared(rows: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return the differences between experiments of equal length, in each measure of the last epoch."""
    return paired(rows, PAIRS)


# Pictures -----------------------------------------------------------------------------------------


def all_schedules() -> dict[str, s.Schedule]:
    """Return every schedule of minilearn, over 100 steps."""
    return {
        "constant": s.constant(),
        "step_decay": s.step_decay(25, gamma=0.5),
        "multi_step": s.multi_step([40, 75], gamma=0.3),
        "exponential": s.exponential(0.96),
        "cosine": s.cosine(100),
        "polynomial, power 2": s.polynomial(100, power=2),
        "warm_up": s.warm_up(30),
        "triangular": s.triangular(100),
        "cycled triangular": s.cycled(s.triangular(20), 20),
        "cycled, peak decays": s.cycled(s.triangular(20), 20, decay=0.7),
        "cosine_restarts": s.cosine_restarts(14, factor=2),
        "cosine_restarts, decay": s.cosine_restarts(25, decay=0.6),
        "one_cycle": s.one_cycle(100),
        "sequence: warm-up, cosine": s.sequence([s.warm_up(20), s.cosine(80)], milestones=[20]),
        "product": s.product(s.step_decay(25, gamma=0.5), s.cycled(s.cosine(25), 25)),
        "shifted cosine": s.shifted(s.cosine(100), 30),
    }


DRAWN_LRS = ("annealed by hand", "annealed by MultiStepLR", "warm-up, then a line", "cycles, early stopping")


def plot_lrs(lrs: dict[str, dict[str, Any]]) -> Any:
    """Return a figure of the lr of each step for the runs that change it."""
    figure, axes = new_figure(1, len(lrs), 3.2, 2.6)
    for ax, (name, curve) in zip(axes[0], lrs.items(), strict=True):
        report.draw_thinned(ax, curve, linewidth=1.2)
        ax.set_title(name, fontsize=9)
        ax.set(xlabel="step", ylabel="lr")
        ax.grid(alpha=0.3)
    return figure


def plot_runs(histories: dict[str, History]) -> Any:
    """Return a figure of eval accuracy over epochs: short runs, annealed ones, cycles."""
    panels = {
        "five epochs": [name for name, h in histories.items() if h[-1]["epoch"] == 4],
        "lr down or batch up": ["constant lr", "annealed by MultiStepLR", "growing batch"],
        "cycles": ["cycles, early stopping"],
    }
    figure, axes = new_figure(1, len(panels), 4.2, 3.4)
    for ax, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            ax.plot(report.values_of(histories[name], "eval", "accuracy"), ".-", label=name)
        on = "held-out images" if title == "cycles" else "the test set"
        ax.set(title=title, xlabel="epoch  (one seed)", ylabel=f"accuracy on {on}")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return figure


def draw(result: dict[str, Any], out: Path, name: str) -> None:
    """Write the pictures of a result, with curves of its first seed."""
    pictures = {
        "schedules": plot_scheduler(all_schedules(), 100, width=2.6, height=2.0),
        "lrs": plot_lrs(result["lrs"]),
        "runs": plot_runs({experiment: of_runs[0] for experiment, of_runs in result["histories"].items()}),
    }
    for picture, figure in pictures.items():
        figure.savefig(out / f"{name}_{picture}.png", dpi=90)


def row_of(histories: list[History], on_test: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an experiment's figures over its runs.

    Args:
        on_test: for each run, the row of the test set with its final weights (the best ones, if these were
            kept).
    """
    keys = {"eval accuracy": "MulticlassAccuracy", "eval loss": "loss"}
    return {
        **report.measures_of(histories),
        **{measure: report.mean_sd([row[key] for row in on_test]) for measure, key in keys.items()},
        "n_epochs": report.mean_sd([history[-1]["epoch"] + 1 for history in histories]),
    }


def main() -> None:
    """Run as a script."""
    args = report.parser_of(__doc__, "MNIST/raw").parse_args()

    start_s = time.perf_counter()
    histories: dict[str, list[History]] = {name: [] for name in RUNS}
    on_test: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    times_s: dict[str, list[float]] = {name: [] for name in RUNS}
    first: dict[str, RecorderCB] = {}
    for seed, dls, data in report.seeds(args, mnist, "MNIST", default_bs=256):
        for name, run in RUNS.items():
            print(f"\n{name}, {data}, seed {seed}")
            set_seed(seed)
            run_start_s = time.perf_counter()
            learn, recorder = run(dls)
            times_s[name].append(time.perf_counter() - run_start_s)
            on_test[name].append(learn.validate(dls.valid))
            histories[name].append(learn.history)
            first.setdefault(name, recorder)
    by_hand, by_torch = (first[f"annealed by {name}"].recs["lr"] for name in ("hand", "MultiStepLR"))
    assert by_hand == by_torch, "the lr by hand and by MultiStepLR differ"
    time_s = time.perf_counter() - start_s

    rows = {
        name: row_of(of_runs, on_test[name]) | {"time_s": report.mean_sd(times_s[name])}
        for name, of_runs in histories.items()
    }
    print(f"\n{data}, n = {args.runs}, on the test set")
    print(f"  {'':32}{'accuracy':18}{'loss':18}epochs  seconds")
    for name, row in rows.items():
        figures = f"{report.said(row['eval accuracy']):18}{report.said(row['eval loss']):18}"
        print(f"  {name:32}{figures}{row['n_epochs']['mean']:6.1f}{row['time_s']['mean']:9.1f}")
    print("The lr by hand is that by MultiStepLR at every step.")
    print(f"{time_s:.0f} s on {report.threads()}")
    result = report.write(
        args.out,
        "mnist_optimizers",
        "document 002, each of its experiments; it prints no figures",
        data,
        report.n_images(dls),
        range(args.seed, args.seed + args.runs),
        time_s=time_s,
        rows=rows,
        lrs={name: report.thinned(first[name].recs["lr"]) for name in DRAWN_LRS},
        histories=histories,
    )
    draw(result, args.out, "mnist_optimizers")


if __name__ == "__main__":
    main()
