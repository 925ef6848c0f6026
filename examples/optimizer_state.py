"""Document 000: does the state of an optimizer matter between training sessions?

A network is trained in three sessions, of 10, 10 and 5 epochs, with Adam. Between them the optimizer is
made anew or kept, with its averages and its count of steps; and the lr is constant or goes through one cycle
in each session. Presets: `full` is the document's (ResNet50, images of 128 pixels), for a GPU; `cpu` has the
same design with a small residual network and images of 64 pixels; `small` is for a first look, in a minute.

Every run writes checkpoints: start the same command again, and it goes on where it stopped.

Source: document 000. Differs: it names neither lrs nor batch size: here 1e-3, 5e-4 and 2.5e-4, and 64. It has
one run of each method; here are several seeds and a test of the differences between paired runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import report
import tasks
import torch
from report import mean_sd, said
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    ChannelsLastCB,
    CheckpointCB,
    DataLoaders,
    Learner,
    MixedPrecisionCB,
    ResNet,
    TensorBoardCB,
    imagenette,
    imagewoof,
    shapes,
)
from minilearn.data import peek
from minilearn.plot import new_figure

# The four methods: what is called for each session.
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
PAIRS = {  # what is compared: of each the kept one minus the new one
    "constant lr": ("kept optimizer", "new optimizer"),
    "one cycle": ("kept optimizer, one cycle", "new optimizer, one cycle"),
}
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
    """How large the experiment is.

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
    "cpu": Preset(partial(ResNet, (1, 1, 1, 1), (16, 32, 64, 128), stem_stride=2), 64),
    "small": Preset(partial(ResNet, (1, 1), (8, 16), stem_stride=2), 32, (2, 2, 1), n_images=2000),
}


def train(method: str, preset: Preset, dls: DataLoaders, folder: Path, extra_cbs: Any = ()) -> Learner:
    """Train a network in sessions by one method, going on from the checkpoints in the folder."""
    model = preset.model(n_channels=peek(dls.train)[0].shape[1])
    cbs = [MixedPrecisionCB(), ChannelsLastCB(), CheckpointCB(folder, keep=1), *extra_cbs]
    learn = Learner(model, dls, opt_func=torch.optim.Adam, cbs=cbs)
    for n_epochs, lr in zip(preset.n_epochs, LRS, strict=True):
        METHODS[method](learn, n_epochs, lr, resume=True)
    return learn


def load(args: argparse.Namespace) -> DataLoaders:
    """Return the data set; for a first look without one, drawn shapes."""
    preset, device = PRESETS[args.preset], "cuda" if torch.cuda.is_available() else None
    bs = args.bs or preset.bs
    try:
        dls = DATASETS[args.dataset](bs, preset.size, root=args.data, device=device)
    except FileNotFoundError as error:
        if args.data is not None or args.preset != "small":
            sys.exit(str(error))
        print(f"{str(error).splitlines()[0]} Running on the built-in set of drawn shapes instead.")
        dls = shapes(bs)
        dls.source = "built-in shapes"
    return report.some_of(dls, preset.n_images)


def run(method: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train once; return what came out."""
    dls = load(args)
    print(f"\n{method}, {args.preset}, {dls.source}, seed {torch.initial_seed()}", flush=True)
    logger = []
    if args.tensorboard:
        name = f"{args.dataset}-{args.preset}/{tasks.slug(method)}-{torch.initial_seed()}"
        logger = [TensorBoardCB(args.tensorboard, name)]
    learn = train(method, PRESETS[args.preset], dls, folder, logger)
    return {"data": dls.source, "history": learn.history, "ran_on": report.ran_on()}


# What came out ------------------------------------------------------------------------------------


def row_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a method's last epoch over its runs, and the time of a run."""
    row: dict[str, Any] = {}
    for phase in ("train", "eval"):
        last = [[r for r in result["history"] if r["train"] == phase][-1] for result in results]
        for name, key in (("accuracy", "MulticlassAccuracy"), ("loss", "loss")):
            row[f"{phase} {name}"] = mean_sd([r[key] for r in last])
    return row | {"time_s": mean_sd([sum(r["time_s"] for r in result["history"]) for result in results])}


def compared(rows: dict[str, dict[str, Any]], measure: str) -> dict[str, dict[str, float]]:
    """Return of each pair kept minus new in the last epoch: mean, 95 % interval and p of a paired t-test.

    Source: Student 1908, by scipy. Runs of one seed are a pair: they begin with the same weights and batches.
    """
    from scipy.stats import ttest_rel

    found = {}
    for name, (kept, new) in PAIRS.items():
        a, b = rows[kept][measure]["each"], rows[new][measure]["each"]
        test = ttest_rel(a, b)
        low, high = test.confidence_interval(0.95)
        mean = sum(x - y for x, y in zip(a, b, strict=True)) / len(a)
        found[name] = {"mean": mean, "low": float(low), "high": float(high), "p": float(test.pvalue)}
    return found


def conclusion(difference: dict[str, float], name: str) -> str:
    """Say what a difference in accuracy shows, at 5 %."""
    numbers = f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
    if math.isnan(difference["p"]):
        return f"{name}: kept minus new {difference['mean']:+.4f}; nothing to test"
    if difference["p"] >= 0.05:
        largest = max(abs(difference["low"]), abs(difference["high"]))
        shown = f"no difference is shown; one above {largest:.4f} is unlikely"
    else:
        shown = f"{'keeping' if difference['mean'] > 0 else 'a new one'} is better"
    return f"{name}: kept minus new {numbers}, p = {difference['p']:.2f}: {shown}"


def plot(results: dict[str, list[dict[str, Any]]], n_epochs: tuple[int, ...]) -> Any:
    """Return the document's figure: loss and accuracy of training and validation, a line for each method.

    Lines are means over the runs, with a band of their standard deviation; sessions end at the dotted lines.
    """
    figure, axes = new_figure(2, 2, 5.2, 3.2)
    for i, (key, name) in enumerate((("loss", "loss"), ("MulticlassAccuracy", "accuracy"))):
        for j, phase in enumerate(("train", "eval")):
            ax = axes[i][j]
            for color, (method, of_runs) in enumerate(results.items()):
                runs = [[r[key] for r in run["history"] if r["train"] == phase] for run in of_runs]
                dashes = "--" if method.startswith("kept") else "-"  # a pair may lie one upon the other
                report.draw_band(ax, runs, f"C{color}", method, dashes)
            for end in (n_epochs[0], n_epochs[0] + n_epochs[1]):
                ax.axvline(end + 0.5, color="gray", linestyle=":", linewidth=1)
            ax.set_title(f"{'training' if phase == 'train' else 'validation'} {name}", fontsize=10)
            ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.supxlabel("epoch")
    return figure


def finish(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print and write the table and the conclusion, and draw the figure."""
    data = next(iter(results.values()))[0]["data"]
    rows = {method: row_of(of_runs) for method, of_runs in results.items()}
    print(f"\n{data}, {args.preset}, n = {args.runs}: the last epoch")
    for method, row in rows.items():
        figures = "  ".join(f"{name} {said(row[name])}" for name in row if name != "time_s")
        print(f"  {method:26} {figures}")
    tests: dict[str, Any] = {}
    if args.runs > 1 and len(rows) == len(METHODS):
        tests = {measure: compared(rows, measure) for measure in ("eval accuracy", "eval loss")}
        for name, difference in tests["eval accuracy"].items():
            print(f"  {conclusion(difference, name)}")
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"optimizer_state_{args.dataset}_{args.preset}"
    plot(results, PRESETS[args.preset].n_epochs).savefig(args.out / f"{stem}.png", dpi=90)
    claim = f"document 000, optimizers made anew or kept between sessions, preset {args.preset}"
    histories = {method: [run["history"] for run in of_runs] for method, of_runs in results.items()}
    report.write(args.out, stem, claim, data, args.runs, rows=rows, tests=tests, histories=histories)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = report.parser_of(__doc__, "imagenette2-160 or imagewoof2-160, of any size, or its .tgz")
    parser.add_argument("--dataset", choices=DATASETS, default="imagenette", help="(default: imagenette)")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="(default: small)")
    parser.add_argument(
        "--tensorboard", type=Path, metavar="FOLDER", help="also log there, for tensorboard --logdir FOLDER"
    )
    tasks.add_options(parser, "optimizer_state", list(METHODS))
    return parser


def main() -> None:
    """Run as a script."""
    args = parser().parse_args()
    tasks.main(args, __file__, list(METHODS), args.work / args.dataset / args.preset, run, finish)


if __name__ == "__main__":
    main()
