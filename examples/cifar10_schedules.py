"""Document 001: schedules of the lr, and stochastic weight averaging, on CIFAR-10.

Each schedule of the document trains the same network from the same seed; last comes one cycle that ends early
and is followed by SWA at lr .01. Presets: `full` is the document's (ResNet-18, 30 to 60 epochs), for a GPU;
`cpu` is for two cores (ResNet-20, 12 to 15 epochs); `averages` compares averages with one cycle of as many
epochs, for several seeds; `long` has as many epochs as the document; `small` is for a first look.

Every run writes checkpoints: start the same command again, and it resumes where it stopped.

Source: document 001. Differs: its code of a scheduler per epoch steps it at each batch; here each scheduler
steps in its own unit. It names no batch size, weight decay, kind of ResNet or kind of momentum: here they are
128, 5e-4, ResNet-18, and Nesterov's. It shows CyclicLR without a result. All presets but `full` have batches
of 64, and all of these but `small` twice the lrs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import experiments
import report
import torch
from cifar10_plots import plot_accuracy, plot_all_lrs, plot_lrs, plot_swa
from differences import Difference, paired
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    MultiStepLR,
    OneCycleLR,
)

from minilearn import (
    EMACB,
    SWACB,
    BatchSchedulerCB,
    Callback,
    ChannelsLastCB,
    CheckpointCB,
    CompileCB,
    DataLoaders,
    EpochSchedulerCB,
    Learner,
    MixedPrecisionCB,
    RecorderCB,
    ResNet,
    TestTimeFlipCB,
    cifar10,
    resnet18,
    resnet20,
)
from minilearn.data import peek
from minilearn.provenance import provenance

LR, MAX_LR, SWA_LR = 0.05, 0.1, 0.01  # the document's


@dataclass(frozen=True)
class Preset:
    """Say how large an experiment is.

    Args:
        n_epochs: of each.
        n_swa: how many of these, at the end, are SWA's.
        bs: batch size.
        lr_scale: the lrs are the document's times this.
        n_images: for training; None: all.
        wider: a network for one more experiment: a full cycle, followed by averages of every 100 steps.
    """

    model: Callable[..., nn.Module]
    n_epochs: dict[str, int]
    n_swa: int
    bs: int = 128
    lr_scale: float = 1.0
    n_images: int | None = None
    wider: Callable[..., nn.Module] | None = None

    def model_of(self, name: str) -> Callable[..., nn.Module]:
        """Return the function that makes the network of an experiment."""
        return self.wider if name == WIDER and self.wider else self.model


LONGER, SHORT = "one cycle", "one cycle, short"  # the latter of as many epochs as SWA has in all
SWA, WIDER = "one cycle, then SWA", "one cycle, then SWA, wider network"
EMA = "one cycle, EMA"  # its iterates are those of one cycle: an average changes nothing in the training
PAIRS = {f"{name} - one cycle": (name, SHORT) for name in (SWA, EMA)}
EXPERIMENTS = ("multi-step", "cosine", "warm restarts", "cyclic", LONGER, SHORT, SWA)


def _epochs(*numbers: int) -> dict[str, int]:
    return dict(zip(EXPERIMENTS, numbers, strict=True))


PRESETS = {
    "full": Preset(resnet18, _epochs(50, 50, 60, 50, 50, 30, 30), n_swa=10),
    "cpu": Preset(
        resnet20,
        {
            **{"multi-step": 12, "cosine": 12, "warm restarts": 12, "cyclic": 12},
            **{LONGER: 15, SHORT: 12, SWA: 12, WIDER: 14},
        },
        n_swa=4,
        bs=64,
        lr_scale=2,
        wider=partial(ResNet, (3, 3, 3), (32, 64, 128)),  # ResNet-20, twice as wide
    ),
    "averages": Preset(resnet20, {EMA: 12, SWA: 12}, n_swa=4, bs=64, lr_scale=2),
    "long": Preset(resnet20, {EMA: 30, SWA: 30}, n_swa=10, bs=64, lr_scale=2),
    "small": Preset(
        partial(ResNet, (1, 1, 1), (8, 16, 32)), _epochs(6, 6, 6, 6, 6, 4, 4), n_swa=2, bs=64, n_images=2000
    ),
}
# What the document says of each, in its 50, 60 and 30 epochs.
PUBLISHED = {
    "multi-step": "0.937 to 0.94",
    "cosine": "0.938 to 0.94",
    "warm restarts": "0.938 to 0.94",
    "cyclic": "none",
    LONGER: "0.9465",
    SHORT: "0.938",
    SWA: "0.94",
    WIDER: "none",
    EMA: "none",
}


def four_triangles(opt: torch.optim.Optimizer, total_steps: int, max_lr: list[float]) -> CyclicLR:
    """Return a scheduler that takes the lr up and down four times."""
    base_lr = [lr / 10 for lr in max_lr]
    return CyclicLR(opt, base_lr, max_lr, step_size_up=max(1, total_steps // 8), cycle_momentum=False)


def cbs_of(name: str, preset: Preset) -> list[Callback]:
    """Return the callbacks of an experiment."""
    n_epochs = preset.n_epochs[name]
    max_lr = MAX_LR * preset.lr_scale
    one_cycle = BatchSchedulerCB(
        OneCycleLR, max_lr=max_lr, pct_start=0.3, base_momentum=0.85, max_momentum=0.95
    )
    match name:
        case "multi-step":  # at epochs 25 and 40 of 50
            milestones = [n_epochs // 2, n_epochs * 4 // 5]
            return [EpochSchedulerCB(MultiStepLR, milestones=milestones, gamma=0.1)]
        case "cosine":
            return [EpochSchedulerCB(CosineAnnealingLR)]
        case "warm restarts":  # a third of the epochs, then twice as many
            return [EpochSchedulerCB(CosineAnnealingWarmRestarts, T_0=n_epochs // 3, T_mult=2)]
        case "cyclic":
            return [BatchSchedulerCB(four_triangles)]
        case "one cycle, then SWA":
            return [one_cycle, SWACB(n_epochs - preset.n_swa, swa_lr=SWA_LR * preset.lr_scale)]
        case "one cycle, EMA":
            return [one_cycle, EMACB()]
        case _:
            return [one_cycle]


def train(
    name: str,
    preset: Preset,
    dls: DataLoaders,
    folder: Path | None = None,
    extra_cbs: Sequence[Callback] = (),
) -> tuple[Learner, RecorderCB]:
    """Run one experiment; with a folder, resume from its checkpoints."""
    recorder, n_epochs = RecorderCB(lr="pg.lr"), preset.n_epochs[name]
    schedule = cbs_of(name, preset)
    cbs: list[Callback] = [recorder, MixedPrecisionCB(), ChannelsLastCB(), *extra_cbs]
    if folder is not None:
        cbs += [CheckpointCB(folder, keep=1), experiments.HashesCB()]
    model = preset.model_of(name)(n_channels=peek(dls.train)[0].shape[1])
    opt_func = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4, nesterov=True)
    learn = Learner(model, dls, lr=LR * preset.lr_scale, opt_func=opt_func, cbs=cbs)
    resume = None if folder is None else True
    every = min(100, len(dls.train))
    if name == WIDER:  # two fits, so that SWA starts from a full cycle
        learn.fit(n_epochs - preset.n_swa, cbs=schedule, resume=resume)
        learn.fit(preset.n_swa, cbs=SWACB(0, swa_lr=SWA_LR, every_steps=every), resume=resume)
    else:
        learn.fit(n_epochs, cbs=schedule, resume=resume)
    return learn, recorder


def run(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one experiment, resuming from its checkpoints in the folder; return its results."""
    preset = PRESETS[args.preset]
    device = "cuda" if torch.cuda.is_available() else None
    dls, data = report.load(partial(cifar10, device=device), "CIFAR-10", args.bs, args.data, preset.bs)
    data = dls.source or data
    print(f"\n{name}, {args.preset}, {data}, seed {torch.initial_seed()}", flush=True)
    compiled = [CompileCB()] if args.compile else []
    dls = report.some_of(dls, preset.n_images)
    learn, recorder = train(name, preset, dls, folder, compiled)
    return {
        "data": data,
        "n_images": report.n_images(dls),
        "history": learn.history,
        "lrs": report.thinned(recorder.recs["lr"]),
        "n_steps": len(recorder.recs["lr"]),
        "flipped": learn.validate(cbs=[TestTimeFlipCB()])["MulticlassAccuracy"],
        "ran_on": provenance(),
    }


# What came out ------------------------------------------------------------------------------------


def with_iterates(results: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return results with those of one cycle, which are the iterates under EMA, if it was not run itself."""
    if EMA not in results or SHORT in results:
        return results

    def without_average(history: report.History) -> report.History:
        rows = [row for row in history if row["train"] != "eval"]
        return [row | {"train": "eval"} if row["train"] == "iterate" else row for row in rows]

    own = [run | {"history": without_average(run["history"]), "flipped": None} for run in results[EMA]]
    return {SHORT: own, **results}


def row_of(histories: list[report.History], flipped: list[float | None]) -> dict[str, Any]:
    """Return an experiment's figures over its runs; if there is an average, also those of the iterates."""
    row: dict[str, Any] = {
        "n_epochs": histories[0][-1]["epoch"] + 1,
        **report.measures_of(histories),
        "time_s": report.seconds_of(histories),
    }
    if None not in flipped:
        row["flipped"] = report.mean_sd([value for value in flipped if value is not None])
    iterates = [report.values_of(history, "iterate", "accuracy") for history in histories]
    if iterates[0]:
        row["iterates"] = report.mean_sd([sum(values) / len(values) for values in iterates])
        row["best_iterate"] = report.mean_sd([max(values) for values in iterates])
    return row


def averages(rows: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return the averages - one cycle, of as many epochs and in paired runs, in both measures of validation.

    Loss and accuracy in training are of other weights than the averaged ones.
    """
    pairs = {name: pair for name, pair in PAIRS.items() if {*pair} <= {*rows}}
    return paired(rows, pairs, ("eval accuracy", "eval loss"))


def label(name: str, names: Collection[str]) -> str:
    """Return what to call an experiment beside others: "short" is said only beside a longer cycle."""
    return LONGER if name == SHORT and LONGER not in names else name


def conclusion(rows: dict[str, dict[str, Any]]) -> str:
    """Say how averages compare with one cycle of as many epochs; the document claims a gain for SWA."""
    short, n_epochs = rows[SHORT]["eval accuracy"], rows[SWA]["n_epochs"]
    found = averages(rows)
    of_accuracy = [d for d in found if d.measure == "eval accuracy"]
    parts = [f"At the same {n_epochs} epochs, one cycle reaches {report.said(short)}."]
    for d in of_accuracy:
        name = d.name.removesuffix(" - one cycle")
        parts.append(f"{name[0].upper()}{name[1:]}: {d.cell.strip('*')}.")
    of_swa = of_accuracy[0]
    if of_swa.p is None or of_swa.high is None:
        parts.append("One run each settles nothing.")
    elif not of_swa.holds:
        claimed = float(PUBLISHED[SWA]) - float(PUBLISHED[SHORT])
        gain = f"no gain of SWA is shown, and one above {max(of_swa.high, 0):.4f} is unlikely"
        parts.append(f"At this scale {gain}; the document has about {claimed:.3f}, of one run each.")
    elif of_swa.mean > 0:
        parts.append("The gain of SWA that the document claims is reproduced.")
    else:
        parts.append("SWA is behind: the gain that the document claims is not reproduced at this scale.")
    of_loss = next(d for d in found if d.measure == "eval loss")
    if of_loss.holds:
        change = 100 * of_loss.mean / of_loss.of
        parts.append(f"SWA's eval loss is {'higher' if change > 0 else 'lower'}, by {abs(change):.1f} %.")
    return " ".join(parts)


def draw(result: dict[str, Any], out: Path, name: str) -> None:
    """Write the pictures of a result, for its first seed."""
    histories = {experiment: of_runs[0] for experiment, of_runs in result["histories"].items()}
    pictures = {"accuracy": plot_accuracy({label(n, histories): h for n, h in histories.items()})}
    if EXPERIMENTS[0] in histories:  # the document's schedules, and not only averages
        pictures |= {"lrs": plot_lrs(result["lrs"]), "all_lrs": plot_all_lrs()}
    if SWA in histories:
        pictures["swa"] = plot_swa(histories[SWA], histories.get(SHORT))
    for picture, figure in pictures.items():
        figure.savefig(out / f"{name}_{picture}.png", dpi=90)


def finish(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print and write the table, and draw the pictures."""
    results = with_iterates(results)
    first = next(iter(results.values()))[0]
    histories = {name: [run["history"] for run in of_runs] for name, of_runs in results.items()}
    flipped = {name: [run["flipped"] for run in of_runs] for name, of_runs in results.items()}
    rows = {name: row_of(of_runs, flipped[name]) for name, of_runs in histories.items()}
    print(
        f"\n{first['data']}, {args.preset}, n = {args.runs}: eval accuracy (in brackets: document 001, full)"
    )
    for name, row in rows.items():
        said = report.said(row["eval accuracy"])
        if "flipped" in row:
            said += f"  flipped too {report.said(row['flipped'])}"
        if "iterates" in row:
            said += f"  iterates' mean {report.said(row['iterates'])}"
        print(f"  {label(name, rows):20} {row['n_epochs']:3} epochs  {said}  ({PUBLISHED[name]})")
    if {SWA, SHORT} <= set(rows):
        print(conclusion(rows))
        for difference in averages(rows) if EMA in rows else ():
            print(f"  {difference.name}, {difference.measure}: {difference.cell}")
    name = f"cifar10_schedules_{args.preset}"
    lrs = {
        experiment: of_runs[0]["lrs"]
        | {"n_steps": of_runs[0]["n_steps"], "n_epochs": rows[experiment]["n_epochs"]}
        for experiment, of_runs in results.items()
    }
    result = report.write(
        args.out,
        name,
        f"document 001, its schedules and SWA, preset {args.preset}",
        first["data"],
        first["n_images"],
        experiments.seeds_of(args),
        experiments.made_by(args, results),
        rows=rows,
        lrs=lrs,
        histories=histories,
    )
    draw(result, args.out, name)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = report.parser_of(__doc__, "cifar10.tgz, cifar10 or cifar-10-batches-py")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="(default: small)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    experiments.add_options(parser, "cifar10_schedules", list(PUBLISHED))
    return parser


def main() -> None:
    """Run as a script."""
    args = parser().parse_args()
    names = list(PRESETS[args.preset].n_epochs)
    experiments.main(args, __file__, names, args.work / args.preset, run, finish)


if __name__ == "__main__":
    main()
