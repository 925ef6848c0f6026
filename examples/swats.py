"""Document 004: SWATS switched globally and per layer, and AdaBound, on CIFAR-10.

Two networks are trained by each optimizer; beside the document's three stand Adam, AdamW and SGD with
momentum. Presets: `full` is the document's (ResNet-18 and DenseNet-121, 200 epochs), for a GPU; `cpu` has
small networks, a part of the images, few epochs, and a threshold at which their layers do switch; `small` is
for a first look.

Every run writes checkpoints: start the same command again, and it goes on where it stopped, also when it was
ended by Ctrl-C or SIGTERM in the middle of an epoch.

Source: document 004. Differs: it names no weight decay, and has no baselines and one seed; here weight decay
is 5e-4 in all (AdamW's own is 0.01), and SGD begins at lr 0.1. It decays its layers in SGD's phase at epochs
75 and 150 and those in Adam's at 100; here these are two schedules of one optimizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import report
import tasks
import torch
from report import mean_sd, said
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from minilearn import (
    Callback,
    ChannelsLastCB,
    CheckpointCB,
    DataLoaders,
    DenseNet,
    EpochSchedulerCB,
    Learner,
    MixedPrecisionCB,
    ResNet,
    ScheduleCB,
    SwitchPointsCB,
    cifar10,
    densenet121,
    resnet18,
)
from minilearn.callbacks.switches import SwitchPoint
from minilearn.data import peek
from minilearn.optim import SWATS, AdaBound
from minilearn.plot import new_figure

WD = 5e-4
GLOBAL, LOCAL = "SWATS, global", "SWATS, local"
# name -> (lr, function of the threshold that gives what makes the optimizer)
OPTIMIZERS: dict[str, tuple[float, Callable[[float], Callable[..., Any]]]] = {
    GLOBAL: (1e-3, lambda threshold: partial(SWATS, threshold=threshold, weight_decay=WD)),
    LOCAL: (
        1e-3,
        lambda threshold: partial(SWATS, threshold=threshold, weight_decay=WD, switch="local", sgd_scale=1.0),
    ),
    "AdaBound": (1e-3, lambda _: partial(AdaBound, weight_decay=WD)),
    "Adam": (1e-3, lambda _: partial(torch.optim.Adam, weight_decay=WD)),
    "AdamW": (1e-3, lambda _: torch.optim.AdamW),
    "SGD": (0.1, lambda _: partial(torch.optim.SGD, momentum=0.9, weight_decay=WD)),
}
RESNET, DENSENET = "ResNet", "DenseNet"
# The document's test accuracies, and the epochs of 200 at which lr is decayed.
PUBLISHED = {
    RESNET: {GLOBAL: "0.9289", LOCAL: "0.9413", "AdaBound": "0.930"},
    DENSENET: {GLOBAL: "0.9330", LOCAL: "0.9462", "AdaBound": "0.9336"},
}
DECAYED = {RESNET: 100, DENSENET: 150}
LOCAL_ADAM, LOCAL_SGD, OF_EPOCHS = 100, (75, 150), 200


@dataclass(frozen=True)
class Preset:
    """How large the experiment is.

    Args:
        models: name -> n_channels -> network.
        threshold: of SWATS.
        n_images: for training; None: all.
    """

    models: dict[str, Callable[..., nn.Module]]
    n_epochs: int
    threshold: float
    n_images: int | None = None
    bs: int = 128


PRESETS = {
    "full": Preset({RESNET: resnet18, DENSENET: densenet121}, 200, 1e-5),
    "cpu": Preset(
        {RESNET: partial(ResNet, (1, 1, 1), (16, 32, 64)), DENSENET: partial(DenseNet, (1, 2, 3), 8)},
        n_epochs=12,
        threshold=1e-4,
        n_images=10_000,
    ),
    "small": Preset(
        {RESNET: partial(ResNet, (1, 1), (8, 16)), DENSENET: partial(DenseNet, (1, 1), 4)},
        n_epochs=4,
        threshold=1e-3,
        n_images=1000,
    ),
}
NAMES = [f"{model}, {optimizer}" for model in PUBLISHED for optimizer in OPTIMIZERS]


def parts_of(name: str) -> tuple[str, str]:
    """Return network and optimizer of an experiment's name."""
    model, _, optimizer = name.partition(", ")
    return model, optimizer


def schedules_of(name: str, n_epochs: int) -> list[Callback]:
    """Return the callbacks of an experiment's schedules: the document's, for so many epochs."""
    model, optimizer = parts_of(name)

    def at(epoch: int) -> int:
        return epoch * n_epochs // OF_EPOCHS

    if optimizer != LOCAL:
        return [EpochSchedulerCB(MultiStepLR, milestones=[at(DECAYED[model])], gamma=0.1)]
    first, second = map(at, LOCAL_SGD)
    return [
        EpochSchedulerCB(MultiStepLR, milestones=[at(LOCAL_ADAM)], gamma=0.1),  # rules Adam's phase
        ScheduleCB("sgd_scale", {first: 0.1, second: 0.01}),  # and this SGD's
    ]


def train(
    name: str, preset: Preset, dls: DataLoaders, folder: Path, extra_cbs: Sequence[Callback] = ()
) -> tuple[Learner, SwitchPointsCB]:
    """Train one network by one optimizer, going on from the checkpoints in the folder."""
    model_name, optimizer = parts_of(name)
    lr, make = OPTIMIZERS[optimizer]
    model = preset.models[model_name](n_channels=peek(dls.train)[0].shape[1])
    switches = SwitchPointsCB()
    cbs: list[Callback] = [MixedPrecisionCB(), ChannelsLastCB(), CheckpointCB(folder, keep=1), *extra_cbs]
    cbs += schedules_of(name, preset.n_epochs)
    cbs += [switches] if optimizer in (GLOBAL, LOCAL) else []
    learn = Learner(model, dls, lr=lr, opt_func=make(preset.threshold), cbs=cbs)
    learn.fit(preset.n_epochs, resume=True)
    return learn, switches


def run(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train once; return what came out."""
    preset, device = PRESETS[args.preset], "cuda" if torch.cuda.is_available() else None
    dls, data = report.load(partial(cifar10, device=device), "CIFAR-10", args.bs, args.data, preset.bs)
    data = dls.source or data
    print(f"\n{name}, {args.preset}, {data}, seed {torch.initial_seed()}", flush=True)
    learn, switches = train(name, preset, report.some_of(dls, preset.n_images), folder)
    if switches.points:
        print(switches.table(), flush=True)
    return {
        "data": data,
        "history": learn.history,
        **switches.state_dict(),
        "ran_on": report.ran_on(),
    }


# What came out ------------------------------------------------------------------------------------


def row_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an experiment's figures over its runs; with SWATS how many tensors switched, and when."""
    last = [[r for r in result["history"] if r["train"] == "eval"][-1] for result in results]
    row: dict[str, Any] = {
        "accuracy": mean_sd([r["MulticlassAccuracy"] for r in last]),
        "loss": mean_sd([r["loss"] for r in last]),
        "time_s": mean_sd([sum(r["time_s"] for r in result["history"]) for result in results]),
    }
    if results[0]["names"]:
        row["n_tensors"] = len(results[0]["names"])
        row["n_switched"] = [len(result["points"]) for result in results]
        row["n_moments"] = [len({step for _, step, _ in result["points"]}) for result in results]
    return row


def plot_accuracy(results: dict[str, list[dict[str, Any]]]) -> Any:
    """Return a figure of test accuracy over epochs, a panel for each network; bands are over the runs."""
    models = list(dict.fromkeys(parts_of(name)[0] for name in results))
    figure, axes = new_figure(1, len(models), 5.2, 3.6)
    colors = {optimizer: f"C{i}" for i, optimizer in enumerate(OPTIMIZERS)}
    for ax, model in zip(axes.flat, models, strict=True):
        for name, of_runs in results.items():
            of_model, optimizer = parts_of(name)
            if of_model == model:
                runs = [
                    [r["MulticlassAccuracy"] for r in run["history"] if r["train"] == "eval"]
                    for run in of_runs
                ]
                report.draw_band(ax, runs, colors[optimizer], optimizer)
        ax.set_title(model, fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.supxlabel("epoch")
    figure.supylabel("eval accuracy")
    return figure


def switches_of(result: dict[str, Any]) -> SwitchPointsCB:
    """Return the switch points of a run, for their table and figure."""
    found = SwitchPointsCB()
    found.load_state_dict({key: result[key] for key in ("points", "names", "n_steps")})
    return found


def finish(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print and write the table, and draw the figures; timelines are of the first seed."""
    data, preset = next(iter(results.values()))[0]["data"], PRESETS[args.preset]
    rows = {name: row_of(of_runs) for name, of_runs in results.items()}
    print(f"\n{data}, {args.preset}, n = {args.runs}: eval accuracy (in brackets: document 004, preset full)")
    for name, row in rows.items():
        model, optimizer = parts_of(name)
        published = PUBLISHED[model].get(optimizer, "none")
        text = f"  {name:24} {said(row['accuracy'])}  ({published})"
        if "n_switched" in row:
            text += f"  switched {row['n_switched']} of {row['n_tensors']}, at {row['n_moments']} moments"
        print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"swats_{args.preset}"
    plot_accuracy(results).savefig(args.out / f"{stem}_accuracy.png", dpi=90)
    points: dict[str, list[list[SwitchPoint]]] = {}
    for name, of_runs in results.items():
        if of_runs[0]["names"]:
            points[name] = [switches_of(result).points for result in of_runs]
            model, optimizer = parts_of(name)
            if optimizer == LOCAL:
                figure = switches_of(of_runs[0]).plot()
                figure.savefig(args.out / f"{stem}_switches_{tasks.slug(model)}.png", dpi=90)
    claim = f"document 004, SWATS and AdaBound, preset {args.preset}"
    histories = {name: [run["history"] for run in of_runs] for name, of_runs in results.items()}
    more = {"n_epochs": preset.n_epochs, "n_images": preset.n_images, "threshold": preset.threshold}
    report.write(
        args.out, stem, claim, data, args.runs, **more, rows=rows, points=points, histories=histories
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = report.parser_of(__doc__, "cifar10.tgz, cifar10 or cifar-10-batches-py")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="(default: small)")
    tasks.add_options(parser, "swats", NAMES)
    return parser


def main() -> None:
    """Run as a script."""
    args = parser().parse_args()
    tasks.main(args, __file__, NAMES, args.work / args.preset, run, finish)


if __name__ == "__main__":
    main()
