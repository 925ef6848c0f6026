"""Document 002, a tour of optimizers and schedules on MNIST: each experiment of the lab, in one table.

An MLP with BatchNorm and dropout, batches of 256. The document prints no figures, so there are none to
compare with; it is the experiments that are repeated.

Source: document 002. Differs: it does not show its MLP ("with regularization"), nor its batch size; its
`scheduler.step()` stands outside of the epoch loop, here it is each epoch's; its SGD_Alternate is
`minilearn.optim.SGDAlternate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import report
import torch
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
    """Multiply every group's lr by 0.1 before given epochs, as the document first does it."""

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


def cycled(dls: DataLoaders) -> tuple[Learner, RecorderCB]:
    """Cycle the lr, its peak decaying, until two cycles brought nothing; keep the best weights."""
    length = 3 * len(dls.train)
    schedule = s.cycled(s.triangular(length, pct_start=0.2, low=0.01), length, decay=0.7, low=0.01)
    stop = EarlyStoppingCB("eval/loss", patience=2 * 3)
    return fit(dls, sgd, LR, 30, ScheduleCB("lr", schedule), stop)


def grown(dls: DataLoaders) -> tuple[Learner, RecorderCB]:
    """Increase the batch tenfold where the lr would fall to a tenth."""
    bs = dls.train.bs
    return fit(dls, sgd, LR, N_ANNEALED, BatchSizeCB({DROPS[0]: 10 * bs, DROPS[1]: 100 * bs}))


RUNS: dict[str, Callable[[DataLoaders], tuple[Learner, RecorderCB]]] = {
    "SGD, momentum .9": lambda dls: fit(dls, sgd, LR, 5),
    "RMSprop": lambda dls: fit(dls, torch.optim.RMSprop, 1e-2, 5),  # torch's defaults, as the next
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


def plot_lrs(recorders: dict[str, RecorderCB]) -> Any:
    """Return a figure of the lr of each step for the runs that change it."""
    names = ["annealed by hand", "annealed by MultiStepLR", "warm-up, then a line", "cycles, early stopping"]
    figure, axes = new_figure(1, len(names), 3.2, 2.6)
    for ax, name in zip(axes[0], names, strict=True):
        ax.plot(recorders[name].recs["lr"], linewidth=1.2)
        ax.set_title(name, fontsize=9)
        ax.set(xlabel="step", ylabel="lr")
        ax.grid(alpha=0.3)
    return figure


def plot_runs(histories: dict[str, list[dict[str, Any]]]) -> Any:
    """Return a figure of eval accuracy over epochs: short runs, annealed ones, cycles."""
    panels = {
        "five epochs": [name for name, h in histories.items() if h[-1]["epoch"] == 4],
        "lr down or batch up": ["constant lr", "annealed by MultiStepLR", "growing batch"],
        "cycles": ["cycles, early stopping"],
    }
    figure, axes = new_figure(1, len(panels), 4.2, 3.4)
    for ax, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            rows = [row for row in histories[name] if row["train"] == "eval"]
            ax.plot([r["epoch"] for r in rows], [r["MulticlassAccuracy"] for r in rows], ".-", label=name)
        ax.set(title=title, xlabel="epoch", ylabel="eval accuracy")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return figure


def main() -> None:
    """Run as a script."""
    args = report.parser_of(__doc__, "MNIST/raw").parse_args()

    start_s = time.perf_counter()
    values: dict[str, dict[str, list[float]]] = {
        name: {"loss": [], "accuracy": [], "time_s": [], "n_epochs": []} for name in RUNS
    }
    histories, recorders = {}, {}
    for seed, dls, data in report.seeds(args, mnist, "MNIST", default_bs=256):
        for name, run in RUNS.items():
            print(f"\n{name}, {data}, seed {seed}")
            set_seed(seed)
            run_start_s = time.perf_counter()
            learn, recorder = run(dls)
            run_s = time.perf_counter() - run_start_s
            row = learn.validate()  # of the best weights, where they were restored
            for key, value in (("loss", row["loss"]), ("accuracy", row["MulticlassAccuracy"])):
                values[name][key].append(value)
            values[name]["time_s"].append(run_s)
            values[name]["n_epochs"].append(learn.history[-1]["epoch"] + 1)
            if seed == args.seed:
                histories[name], recorders[name] = learn.history, recorder
    by_hand, by_torch = (recorders[f"annealed by {name}"].recs["lr"] for name in ("hand", "MultiStepLR"))
    assert by_hand == by_torch, "the lr by hand and by MultiStepLR differ"
    time_s = time.perf_counter() - start_s

    rows = {name: {key: report.mean_sd(of) for key, of in kept.items()} for name, kept in values.items()}
    pictures = {
        "schedules": plot_scheduler(all_schedules(), 100, width=2.6, height=2.0),
        "lrs": plot_lrs(recorders),
        "runs": plot_runs(histories),
    }
    for name, figure in pictures.items():
        figure.savefig(args.out / f"mnist_optimizers_{name}.png", dpi=90)

    print(f"\n{data}, n = {args.runs}, on the validation set")
    print(f"  {'':32}{'accuracy':18}{'loss':18}epochs  seconds")
    for name, row in rows.items():
        figures = f"{report.said(row['accuracy']):18}{report.said(row['loss']):18}"
        print(f"  {name:32}{figures}{row['n_epochs']['mean']:6.1f}{row['time_s']['mean']:9.1f}")
    print("The lr by hand is that by MultiStepLR at every step.")
    print(f"{time_s:.0f} s on {torch.get_num_threads()} threads")
    claim = "document 002, each of its experiments; it prints no figures"
    report.write(args.out, "mnist_optimizers", claim, data, args.runs, time_s=time_s, rows=rows)


if __name__ == "__main__":
    main()
