"""Document 004: SWATS switched globally and per layer, and AdaBound, on CIFAR-10.

Two networks are trained with each optimizer: the document's three, and Adam, AdamW and SGD with momentum.
Presets: `full` is the document's (ResNet-18 and DenseNet-121, 200 epochs), for a GPU; `quarter` is its
ResNet-18 with a quarter of the channels, on all images, for 30 epochs, which is as long as its table of
switches; `cpu` has small networks, some of the images, few epochs, and a threshold at which their layers do
switch; `small` is for a first look.

Every run writes checkpoints: start the same command again, and it resumes where it stopped, even if Ctrl-C or
SIGTERM stopped it in the middle of an epoch.

Source: document 004. Differs: it has one seed and no baselines; here SGD begins at lr 0.1. Its code has no
weight decay, and neither have `full` and `quarter`; `cpu` and `small` have 5e-4 (AdamW its own 0.01 in all).
It decays the lr of layers in SGD's phase at epochs 75 and 150 and of those in Adam's at 100; here these are
two schedules of one optimizer. Its decay of SGD's phase is absolute: a layer that switches after epoch 75
begins at a tenth of its estimate. Here `sgd_scale` counts from the switch, so that layer begins at its
estimate. Its code for the global switch takes the threshold times the estimate; here it is absolute in both,
as in its code for the local one, so the global switch comes sooner.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import experiments
import report
import torch
from differences import Difference, paired
from report import said
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
from minilearn.data import peek
from minilearn.optim import SWATS, AdaBound
from minilearn.plot import new_figure
from minilearn.provenance import provenance

GLOBAL, LOCAL = "SWATS, global", "SWATS, local"
# name -> (lr, function of threshold and weight decay that returns an opt_func)
OPTIMIZERS: dict[str, tuple[float, Callable[[float, float], Callable[..., Any]]]] = {
    GLOBAL: (1e-3, lambda threshold, wd: partial(SWATS, threshold=threshold, weight_decay=wd)),
    LOCAL: (
        1e-3,
        lambda threshold, wd: partial(
            SWATS, threshold=threshold, weight_decay=wd, switch="local", sgd_scale=1.0
        ),
    ),
    "AdaBound": (1e-3, lambda _, wd: partial(AdaBound, weight_decay=wd)),
    "Adam": (1e-3, lambda _, wd: partial(torch.optim.Adam, weight_decay=wd)),
    "AdamW": (1e-3, lambda _, wd: torch.optim.AdamW),
    "SGD": (0.1, lambda _, wd: partial(torch.optim.SGD, momentum=0.9, weight_decay=wd)),
}
RESNET, DENSENET = "ResNet", "DenseNet"
PAIRS = {
    f"{model}, local - {other}": (f"{model}, {LOCAL}", f"{model}, {name}")
    for model in (RESNET, DENSENET)
    for other, name in (("global", GLOBAL), ("Adam", "Adam"), ("AdaBound", "AdaBound"))
}
# The document's test accuracies, and the epochs of 200 at which lr is decayed.
PUBLISHED = {
    RESNET: {GLOBAL: "0.9289", LOCAL: "0.9413", "AdaBound": "0.930"},
    DENSENET: {GLOBAL: "0.9330", LOCAL: "0.9462", "AdaBound": "0.9336"},
}
# Its table of switches on ResNet-18: tensor -> (step, estimated lr for SGD).
PUBLISHED_SWITCHES = {
    "linear.weight": (29, 0.015315),
    "layer1.0.conv1.weight": (1011, 0.149228),
    "layer2.0.conv1.weight": (2354, 0.673763),
    "layer1.1.bn1.bias": (2597, 0.204322),
    "layer2.1.bn1.weight": (3230, 0.416590),
    "layer2.0.shortcut.0.weight": (3415, 0.278827),
    "layer1.0.bn1.bias": (3690, 0.156899),
    "bn1.bias": (4850, 0.117717),
    "layer1.1.bn2.bias": (5574, 0.320231),
    "linear.bias": (5645, 0.015616),
    "layer3.0.bn2.weight": (5744, 0.420847),
    "layer2.1.bn1.bias": (6897, 0.378199),
    "layer3.0.bn1.bias": (6996, 0.599258),
    "layer2.0.shortcut.1.weight": (7972, 0.276019),
    "conv1.weight": (7994, 0.042911),
    "layer1.0.conv2.weight": (8079, 0.649479),
    "layer1.1.bn2.weight": (10320, 0.157036),
    "layer2.0.bn2.bias": (11477, 0.382424),
    "layer2.0.shortcut.1.bias": (11477, 0.382424),
    "layer3.0.shortcut.0.weight": (11729, 1.180122),
}
DECAYED = {RESNET: 100, DENSENET: 150}
LOCAL_ADAM, LOCAL_SGD, OF_EPOCHS = 100, (75, 150), 200


@dataclass(frozen=True)
class Preset:
    """Say how large the experiment is.

    Args:
        models: name -> n_channels -> network.
        about: what is to be said of these networks beside the document's; "" for its own.
        threshold: of SWATS.
        wd: weight decay of all but AdamW.
        n_images: for training; None: all.
        optimizers: names of OPTIMIZERS.
        once: those of them that are run with the first seed only.
    """

    models: dict[str, Callable[..., nn.Module]]
    n_epochs: int
    threshold: float
    about: str = "small networks"
    wd: float = 5e-4
    n_images: int | None = None
    bs: int = 128
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    once: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of its experiments."""
        return [f"{model}, {optimizer}" for model in self.models for optimizer in self.optimizers]


PRESETS = {
    "full": Preset({RESNET: resnet18, DENSENET: densenet121}, 200, 1e-5, "", wd=0.0),
    "quarter": Preset(
        {RESNET: partial(ResNet, (2, 2, 2, 2), (16, 32, 64, 128))},
        n_epochs=30,
        threshold=1e-5,
        about="a network of a quarter of the channels",
        wd=0.0,
        optimizers=(GLOBAL, LOCAL, "AdaBound", "Adam", "SGD"),
        once=("AdaBound", "Adam", "SGD"),
    ),
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
NAMES = PRESETS["full"].names


def parts_of(name: str) -> tuple[str, str]:
    """Return the network and the optimizer in an experiment's name."""
    model, _, optimizer = name.partition(", ")
    return model, optimizer


def published_name(tensor: str) -> str:
    """Return the document's name of a tensor of ResNet-18: "layer1.0.bn1.bias" for "blocks.0.norm1.bias"."""
    part, i, *rest = tensor.split(".")
    if part == "stem":
        return f"{'conv1' if i == '0' else 'bn1'}.{rest[0]}"
    if part == "head":
        return f"linear.{rest[0]}"
    stage, block = divmod(int(i), 2)
    return f"layer{stage + 1}.{block}.{'.'.join(rest).replace('norm', 'bn')}"


def schedules_of(name: str, n_epochs: int) -> list[Callback]:
    """Return the callbacks of an experiment's schedules: the document's, scaled to so many epochs."""
    model, optimizer = parts_of(name)

    def at(epoch: int) -> int:
        return epoch * n_epochs // OF_EPOCHS

    if optimizer != LOCAL:
        return [EpochSchedulerCB(MultiStepLR, milestones=[at(DECAYED[model])], gamma=0.1)]
    first, second = map(at, LOCAL_SGD)
    return [
        EpochSchedulerCB(MultiStepLR, milestones=[at(LOCAL_ADAM)], gamma=0.1),  # for Adam's phase
        ScheduleCB("sgd_scale", {first: 0.1, second: 0.01}),  # and for SGD's
    ]


def train(
    name: str, preset: Preset, dls: DataLoaders, folder: Path, extra_cbs: Sequence[Callback] = ()
) -> tuple[Learner, SwitchPointsCB]:
    """Train one network with one optimizer, resuming from the checkpoints in the folder."""
    model_name, optimizer = parts_of(name)
    lr, make = OPTIMIZERS[optimizer]
    model = preset.models[model_name](n_channels=peek(dls.train)[0].shape[1])
    switches = SwitchPointsCB()
    cbs: list[Callback] = [MixedPrecisionCB(), ChannelsLastCB(), CheckpointCB(folder, keep=1)]
    cbs += [experiments.HashesCB(), *extra_cbs]
    cbs += schedules_of(name, preset.n_epochs)
    cbs += [switches] if optimizer in (GLOBAL, LOCAL) else []
    learn = Learner(model, dls, lr=lr, opt_func=make(preset.threshold, preset.wd), cbs=cbs)
    learn.fit(preset.n_epochs, resume=True)
    return learn, switches


def run(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train once; return the results."""
    preset, device = PRESETS[args.preset], "cuda" if torch.cuda.is_available() else None
    dls, data = report.load(partial(cifar10, device=device), "CIFAR-10", args.bs, args.data, preset.bs)
    data = dls.source or data
    print(f"\n{name}, {args.preset}, {data}, seed {torch.initial_seed()}", flush=True)
    dls = report.some_of(dls, preset.n_images)
    learn, switches = train(name, preset, dls, folder)
    if switches.points:
        print(switches.table(), flush=True)
    return {
        "data": data,
        "n_images": report.n_images(dls),
        "history": learn.history,
        "switches": switches.state_dict(),
        "ran_on": provenance(),
    }


# What came out ------------------------------------------------------------------------------------


def row_of(histories: list[report.History], switches: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an experiment's figures over its runs; with SWATS how many tensors switched, and when."""
    row: dict[str, Any] = report.measures_of(histories) | {"time_s": report.seconds_of(histories)}
    if switches[0]["names"]:
        row["n_tensors"] = len(switches[0]["names"])
        row["n_switched"] = [len(of["points"]) for of in switches]
        row["n_moments"] = [len({step for _, step, _ in of["points"]}) for of in switches]
    return row


def compared(rows: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return the differences that the document discusses, and local - Adam, in each measure."""
    return paired(rows, {name: pair for name, pair in PAIRS.items() if {*pair} <= {*rows}})


def conclusion(family: list[Difference], result: dict[str, Any]) -> str:
    """Say whether a run can settle the document's claim, and what its differences show about it."""
    parts, claim = [], "that switching locally is better than globally"
    if result["preset"] != "full":
        n_steps = result["switches"][f"{RESNET}, {LOCAL}"][0]["n_steps"]
        differs = [f"{n_steps:,} steps", PRESETS[result["preset"]].about]
        times = result["threshold"] / PRESETS["full"].threshold
        if times != 1:
            differs.append(f"a threshold {times:.0f} times as large")
        parts.append(f"This run cannot settle the document's claim {claim}: it has {report.listed(differs)}.")
    of_claim = [d for d in family if d.name.endswith("local - global") and d.measure == "eval accuracy"]
    for d in of_claim:
        network = parts_of(d.name)[0]
        if d.p is None:
            parts.append(f"On the {network}, local - global is {d.mean:+.3f}: one pair settles nothing.")
            continue
        place = ("ahead of" if d.mean > 0 else "behind") if d.holds else "not shown to differ from"
        numbers = f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
        each = report.listed([f"{value:+.3f}" for value in d.each])
        parts.append(f"On the {network}, local is {place} global: {numbers}; by seed {each}.")
    return " ".join(parts)


def plot_accuracy(histories: dict[str, list[report.History]]) -> Any:
    """Return a figure of test accuracy over epochs, a panel for each network; bands are over the runs.

    The label of an optimizer with fewer runs than others has their number.
    """
    models = list(dict.fromkeys(parts_of(name)[0] for name in histories))
    figure, axes = new_figure(1, len(models), 5.2, 3.6)
    colors = {optimizer: f"C{i}" for i, optimizer in enumerate(OPTIMIZERS)}
    n = max(len(of_runs) for of_runs in histories.values())
    for ax, model in zip(axes.flat, models, strict=True):
        for name, of_runs in histories.items():
            of_model, optimizer = parts_of(name)
            if of_model == model:
                runs = [report.values_of(history, "eval", "accuracy") for history in of_runs]
                label = optimizer if len(runs) == n else f"{optimizer} (n = {len(runs)})"
                report.draw_band(ax, runs, colors[optimizer], label)
        ax.set_title(model, fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.supxlabel(f"epoch  ({report.band_note(n)})", fontsize=9)
    figure.supylabel("eval accuracy", fontsize=9)
    return figure


def draw(result: dict[str, Any], out: Path, name: str) -> None:
    """Write the pictures of a result, with timelines of its first seed."""
    plot_accuracy(result["histories"]).savefig(out / f"{name}_accuracy.png", dpi=90)
    for experiment, of_runs in result["switches"].items():
        model, optimizer = parts_of(experiment)
        if optimizer == LOCAL:
            timeline = SwitchPointsCB()
            timeline.load_state_dict(of_runs[0])
            timeline.plot().savefig(out / f"{name}_switches_{experiments.slug(model)}.png", dpi=90)


def finish(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print and write the table, and draw the figures."""
    first, preset = next(iter(results.values()))[0], PRESETS[args.preset]
    histories = {name: [run["history"] for run in of_runs] for name, of_runs in results.items()}
    switches = {name: [run["switches"] for run in of_runs] for name, of_runs in results.items()}
    rows = {name: row_of(of_runs, switches[name]) for name, of_runs in histories.items()}
    print(
        f"\n{first['data']}, {args.preset}, n = {args.runs}: eval accuracy (in brackets: document 004, full)"
    )
    for name, row in rows.items():
        model, optimizer = parts_of(name)
        published = PUBLISHED[model].get(optimizer, "none")
        text = f"  {name:24} {said(row['eval accuracy'])}  ({published})"
        if "n_switched" in row:
            text += f"  switched {row['n_switched']} of {row['n_tensors']}, at {row['n_moments']} moments"
        print(text)
    if args.runs > 1 and list(rows) == preset.names:
        for difference in compared(rows):
            print(f"  {difference.name}, {difference.measure}: {difference.cell}")
    name = f"swats_{args.preset}"
    result = report.write(
        args.out,
        name,
        f"document 004, SWATS and AdaBound, preset {args.preset}",
        first["data"],
        first["n_images"],
        experiments.seeds_of(args)[: max(len(of_runs) for of_runs in results.values())],
        experiments.made_by(args, results),
        preset=args.preset,
        n_epochs=preset.n_epochs,
        threshold=preset.threshold,
        wd=preset.wd,
        rows=rows,
        switches={name: of for name, of in switches.items() if of[0]["names"]},
        histories=histories,
    )
    draw(result, args.out, name)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = report.parser_of(__doc__, "cifar10.tgz, cifar10 or cifar-10-batches-py")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="(default: small)")
    experiments.add_options(parser, "swats", NAMES)
    return parser


def main() -> None:
    """Run as a script."""
    args = parser().parse_args()
    preset = PRESETS[args.preset]
    once = [name for name in preset.names if parts_of(name)[1] in preset.once]
    experiments.main(args, __file__, preset.names, args.work / args.preset, run, finish, once)


if __name__ == "__main__":
    main()
