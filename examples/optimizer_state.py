"""Document 000: does the state of an optimizer matter between training sessions?

A network is trained in three sessions, of 10, 10 and 5 epochs, with Adam. For each session the optimizer is
new or kept, with its averages and its count of steps, and the lr is constant or goes through one cycle.
Presets: `full` is the document's (ResNet50, images of 128 pixels), for a GPU; `resnet50` has images of 64
pixels; `cpu` has the same design with a small residual network on images of 64 pixels; `small` is for a first
look, in a minute. A first session that two methods share is trained once.

Every run writes checkpoints: start the same command again, and it resumes where it stopped.

Source: document 000. Differs: it names neither lrs nor batch size: here they are 1e-3, 5e-4 and 2.5e-4, and
64. It has one run of each method; here there are several seeds, and the differences between paired runs are
tested in every measure.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import experiments
import report
import torch
from differences import Difference, paired
from report import MEASURES, said
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    ChannelsLastCB,
    CheckpointCB,
    DataLoaders,
    Learner,
    MixedPrecisionCB,
    RecorderCB,
    ResNet,
    TensorBoardCB,
    imagenette,
    imagewoof,
    shapes,
)
from minilearn.checkpoints.snapshot import checkpoints_in
from minilearn.data import peek
from minilearn.plot import new_figure
from minilearn.provenance import provenance

# The four methods: the call for each session.
METHODS: dict[str, Callable[..., None]] = {
    "new optimizer": lambda learn, n, lr, **kw: learn.fit(n, lr=lr, reset_opt=True, **kw),
    "kept optimizer": lambda learn, n, lr, **kw: learn.fit(n, lr=lr, **kw),
    "new optimizer, one cycle": lambda learn, n, lr, **kw: learn.fit(
        n, lr=lr, reset_opt=True, cbs=BatchSchedulerCB(OneCycleLR), **kw
    ),
    "kept optimizer, one cycle": lambda learn, n, lr, **kw: learn.fit(
        n, lr=lr, cbs=BatchSchedulerCB(OneCycleLR), **kw
    ),
}
CONSTANT, ONE_CYCLE = "constant lr, kept - new", "one cycle, kept - new"
PAIRS = {
    CONSTANT: ("kept optimizer", "new optimizer"),
    ONE_CYCLE: ("kept optimizer, one cycle", "new optimizer, one cycle"),
}
N_FIRST = 100  # steps of a session whose losses are kept
AT_BOUNDARY = f"loss of the first {N_FIRST} steps of session 2"
LRS = (1e-3, 5e-4, 2.5e-4)  # of the sessions
DATASETS: dict[str, Callable[..., DataLoaders]] = {"imagenette": imagenette, "imagewoof": imagewoof}


def resnet50(n_channels: int) -> nn.Module:
    """Return torchvision's ResNet50 for ten classes, not trained."""
    from torchvision import models

    if n_channels != 3:
        raise ValueError(f"ResNet50 on images of {n_channels} channels: expected 3")
    model: nn.Module = models.resnet50(num_classes=10)
    return model


@dataclass(frozen=True)
class Preset:
    """Say how large the experiment is.

    Args:
        model: n_channels -> network.
        size: of images, in pixels a side.
        n_epochs: of each session.
        n_images: for training; None: all.
    """

    model: Callable[..., nn.Module]
    size: int
    n_epochs: tuple[int, ...] = (10, 10, 5)
    bs: int = 64
    n_images: int | None = None


PRESETS = {
    "full": Preset(resnet50, 128),
    "resnet50": Preset(resnet50, 64),
    "cpu": Preset(partial(ResNet, (1, 1, 1, 1), (16, 32, 64, 128), stem_stride=2), 64),
    "small": Preset(partial(ResNet, (1, 1), (8, 16), stem_stride=2), 32, (2, 2, 1), n_images=2000),
}


def train(
    method: str, preset: Preset, dls: DataLoaders, folder: Path, extra_cbs: Any = ()
) -> tuple[Learner, list[list[float]]]:
    """Train a network in sessions with one method, resuming from the checkpoints in the folder.

    Until the first session ends, new and kept are one: it is trained once, in a folder beside, and copied. A
    process of --jobs that needs it too waits for it.

    Returns: the learner, and the losses of the first steps of each session.
    """
    shared = folder.parent / ("first-one-cycle" if "one cycle" in method else "first-constant-lr")
    if not checkpoints_in(folder):
        with experiments.in_turn(shared.with_suffix(".turn")):
            _sessions(method, preset, dls, shared, extra_cbs, n=1)
        shutil.copytree(shared, folder, dirs_exist_ok=True)
    return _sessions(method, preset, dls, folder, extra_cbs, len(LRS))


def _sessions(
    method: str, preset: Preset, dls: DataLoaders, folder: Path, extra_cbs: Any, n: int
) -> tuple[Learner, list[list[float]]]:
    """Train the first n sessions."""
    recorder = RecorderCB(loss="learn.loss")
    model = preset.model(n_channels=peek(dls.train)[0].shape[1])
    kept: list[Any] = [CheckpointCB(folder, keep=2), experiments.HashesCB(), recorder]
    cbs = [MixedPrecisionCB(), ChannelsLastCB(), *kept, *extra_cbs]
    learn = Learner(model, dls, opt_func=torch.optim.Adam, cbs=cbs)
    for n_epochs, lr in zip(preset.n_epochs[:n], LRS[:n], strict=True):
        METHODS[method](learn, n_epochs, lr, resume=True)
    losses, ends = recorder.recs["loss"], [n * len(dls.train) for n in accumulate(preset.n_epochs[:n])]
    starts = [0, *ends[:-1]]
    return learn, [losses[i:end][:N_FIRST] for i, end in zip(starts, ends, strict=True)]


def load(args: argparse.Namespace) -> DataLoaders:
    """Return the data set; for a first look without one, drawn shapes."""
    preset, device = PRESETS[args.preset], "cuda" if torch.cuda.is_available() else None
    bs = args.bs or preset.bs
    try:
        dls = DATASETS[args.dataset](bs, preset.size, root=args.data, device=device)
    except FileNotFoundError as error:
        if args.data is not None or args.preset != "small":
            sys.exit(str(error))
        print(f"{str(error).partition(' Tried')[0]} Running on the built-in set of drawn shapes instead.")
        dls = shapes(bs)
        dls.source = "built-in shapes"
    return report.some_of(dls, preset.n_images)


def run(method: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train once; return the results."""
    dls = load(args)
    print(f"\n{method}, {args.preset}, {dls.source}, seed {torch.initial_seed()}", flush=True)
    logger = []
    if args.tensorboard:
        name = f"{args.dataset}-{args.preset}/{experiments.slug(method)}-{torch.initial_seed()}"
        logger = [TensorBoardCB(args.tensorboard, name)]
    learn, losses = train(method, PRESETS[args.preset], dls, folder, logger)
    return {
        "data": dls.source,
        "n_images": report.n_images(dls),
        "history": learn.history,
        "first_losses": losses,
        "ran_on": provenance(),
    }


# What came out ------------------------------------------------------------------------------------


def row_of(histories: list[report.History], second: list[list[float]]) -> dict[str, Any]:
    """Return a method's figures over its runs: of the last epoch, after the first boundary, and the time.

    Args:
        second: of each run, the losses of the first steps of the second session.
    """
    boundary = report.mean_sd([statistics.mean(run) for run in second])
    return report.measures_of(histories) | {AT_BOUNDARY: boundary, "time_s": report.seconds_of(histories)}


def compared(rows: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return kept - new for each pair, in each measure of the last epoch.

    And in the mean loss right after the first boundary, where the state must matter most.
    """
    return paired(rows, PAIRS, (*MEASURES, AT_BOUNDARY))


def conclusion(family: list[Difference]) -> str:
    """Say what the differences show about the document's question, in accuracy and in loss."""
    of_accuracy = [d for d in family if d.measure == "eval accuracy"]
    if not any(d.holds for d in of_accuracy):
        largest = max(max(-(d.low or 0.0), d.high or 0.0) for d in of_accuracy)
        parts = [f"No effect on eval accuracy is seen: one above {largest:.4f} is unlikely."]
    else:
        parts = [_effect(d) for d in of_accuracy if d.holds]
    losses = [d for d in family if d.measure == "eval loss"]
    parts += [_effect(d) for d in losses if d.holds] or ["No effect on eval loss is seen either."]
    first = [d for d in family if d.measure == AT_BOUNDARY]
    nothing = ["Nor is one seen right after the boundary."] if first else []
    parts += [_effect(d) for d in first if d.holds] or nothing
    return " ".join(parts)


def _effect(difference: Difference) -> str:
    under = difference.name.partition(",")[0]
    change = "lowers" if difference.mean < 0 else "raises"
    share = abs(difference.mean / difference.of)
    n = len(difference.each)
    is_unanimous = len({value > 0 for value in difference.each}) == 1
    seeds = f"in each of the {n} seeds" if is_unanimous else f"in the mean of {n} seeds"
    size = "real and tiny" if share < 0.01 else "real"
    amount = f"the {difference.measure} by {100 * share:.1f} %"
    return f"Under {under}, keeping the state {change} {amount}, {seeds}: {size}."


def plot(histories: dict[str, list[report.History]], n_epochs: list[int]) -> Any:
    """Return the document's figures, a column for each measure; below, what keeping the state changes.

    Above, lines are means over all runs with one kind of lr, because kept and new are closer than a line is
    wide; bands are standard deviations. Below are means of kept - new, with 95 % intervals. The first session
    of a pair is the same run.
    """
    measures = ("train loss", "eval loss", "train accuracy", "eval accuracy")
    figure, axes = new_figure(2, len(measures), 3.1, 2.7)
    n = len(histories[PAIRS[CONSTANT][0]])
    for (above, below), measure in zip(axes.T, measures, strict=True):
        phase, name = measure.split()
        for i, (label, pair) in enumerate(PAIRS.items()):
            kept, new = ([report.values_of(h, phase, name) for h in histories[method]] for method in pair)
            differences = [
                [x - y for x, y in zip(*runs, strict=True)] for runs in zip(kept, new, strict=True)
            ]
            report.draw_band(above, [*kept, *new], f"C{i}", label.partition(",")[0])
            report.draw_interval(below, differences, f"C{i}", label)
        above.set_title(measure, fontsize=10)
        below.axhline(0, color="black", linewidth=0.8)
        for ax in (above, below):
            ax.grid(alpha=0.3)
            ax.tick_params(labelsize=8)
            for end in accumulate(n_epochs[:-1]):
                ax.axvline(end + 0.5, color="gray", linestyle=":", linewidth=1)
    axes[0][0].set_ylabel("mean, kept and new together", fontsize=8)
    axes[1][0].set_ylabel("kept - new", fontsize=8)
    for ax in axes[:, 0]:
        ax.legend(fontsize=7)
    bars = f"band: 1 standard deviation, {2 * n} runs; bar: 95 % interval, {n} pairs" if n > 1 else "one pair"
    figure.supxlabel(f"epoch  ({bars}; dotted: a session ends)", fontsize=9)
    return figure


def plot_boundary(losses: dict[str, list[list[float]]]) -> Any:
    """Draw kept - new of the loss over the first steps of the second session, with 95 % intervals.

    Args:
        losses: method -> of each run, those of the first steps of the second session.
    """
    figure, axes = new_figure(1, len(PAIRS), 4.5, 3)
    for ax, (name, pair) in zip(axes.flat, PAIRS.items(), strict=True):
        runs = zip(*(losses[method] for method in pair), strict=True)
        report.draw_interval(ax, [[x - y for x, y in zip(a, b, strict=True)] for a, b in runs], "C0", name)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=name, xlabel="step of the second session", ylabel="loss, kept - new")
        ax.grid(alpha=0.3)
    return figure


def draw(result: dict[str, Any], out: Path, name: str) -> None:
    """Write the picture of a result, if it has all methods."""
    if set(METHODS) <= set(result["histories"]):
        plot(result["histories"], result["n_epochs"]).savefig(out / f"{name}.png", dpi=90)
        if "second_session" in result:
            plot_boundary(result["second_session"]).savefig(out / f"{name}_boundary.png", dpi=90)


def finish(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print and write the table and the conclusion, and draw the figures."""
    first = next(iter(results.values()))[0]
    histories = {method: [run["history"] for run in of_runs] for method, of_runs in results.items()}
    second = {method: [run["first_losses"][1] for run in of_runs] for method, of_runs in results.items()}
    rows = {method: row_of(of_runs, second[method]) for method, of_runs in histories.items()}
    print(f"\n{first['data']}, {args.preset}, n = {args.runs}: the last epoch")
    for method, row in rows.items():
        print(f"  {method:26} {'  '.join(f'{measure} {said(row[measure])}' for measure in MEASURES)}")
    if len(rows) == len(METHODS):
        family = compared(rows)
        for difference in family:
            print(f"  {difference.name}, {difference.measure}: {difference.cell}")
        if args.runs > 1:
            print(f"  {conclusion(family)}")
    name = f"optimizer_state_{args.dataset}_{args.preset}"
    result = report.write(
        args.out,
        name,
        f"document 000, new or kept optimizers between sessions, preset {args.preset}",
        first["data"],
        first["n_images"],
        experiments.seeds_of(args),
        experiments.made_by(args, results),
        n_epochs=PRESETS[args.preset].n_epochs,
        rows=rows,
        second_session=second,
        histories=histories,
    )
    draw(result, args.out, name)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = report.parser_of(__doc__, "imagenette2-160 or imagewoof2-160, of any size, or its .tgz")
    parser.add_argument("--dataset", choices=DATASETS, default="imagenette", help="(default: imagenette)")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="(default: small)")
    parser.add_argument(
        "--tensorboard", type=Path, metavar="FOLDER", help="also log there, for tensorboard --logdir FOLDER"
    )
    experiments.add_options(parser, "optimizer_state", list(METHODS))
    return parser


def main() -> None:
    """Run as a script."""
    args = parser().parse_args()
    experiments.main(args, __file__, list(METHODS), args.work / args.dataset / args.preset, run, finish)


if __name__ == "__main__":
    main()
