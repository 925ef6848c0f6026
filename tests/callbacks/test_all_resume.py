import logging
import math
import os
import random
import shutil
import tempfile
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics
from rich.console import Console
from test_all_callbacks import EACH, FACTORIES, FOLDER, NEEDS, OF_IMAGES
from toolbox import (
    DecliningCB,
    StopCB,
    StoppedError,
    as_images,
    dealt,
    every_rest,
    noisy_learner,
    state_of,
    two_groups,
)
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torcheval import metrics as torcheval

from minilearn import (
    EMACB,
    AtEnd,
    BatchSchedulerCB,
    BatchSizeCB,
    Callback,
    CancelStepException,
    CheckpointCB,
    EarlyStoppingCB,
    EpochSchedulerCB,
    GradientAccumulationCB,
    GradientClippingCB,
    HooksCB,
    InValidation,
    LRFinderCB,
    MetricsCB,
    MixedPrecisionCB,
    ProgressCB,
    RecorderCB,
    ScheduleCB,
    StoreModuleStatsCB,
    TerminateOnNaNCB,
    set_seed,
)
from minilearn.callbacks import metrics
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import read
from minilearn.schedules import cosine, one_cycle

pytestmark = [
    pytest.mark.slow,
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")),
]

N_EPOCHS = 3
PLAIN = {"n_train": 4, "n_valid": 1}  # batches
SHORT = {"n_train": 2, "n_valid": 1}


class CopyCB(Callback):
    """Keep each checkpoint, also those that a later one of the same name writes over."""

    order = CheckpointCB.order

    def __init__(self, folder):
        self.folder, self.paths = folder, []
        folder.mkdir()

    def state_dict(self):
        return {}

    def at_rest(self, learn):
        self.paths.append(shutil.copy(learn.saved_to, self.folder / f"{len(self.paths):02d}.pt"))


def n_places(n_train, n_valid, n_epochs=N_EPOCHS):
    """Count the places of rest: after each batch, each epoch and the fit."""
    return n_epochs * (n_train + n_valid + 1) + 1


def new_learner(make, seed, n_train=2, n_valid=1, images=False, **kwargs):
    """Make a noisy_learner.

    make: gives its callbacks, which may draw too.
    images: whether inputs are of one row of three pixels, instead of three features.
    """
    set_seed(seed)
    learn = noisy_learner(*make(), seed=seed, n_train=n_train, n_valid=n_valid, **kwargs)
    if images:
        learn.model = nn.Sequential(nn.Flatten(), *learn.model)
        as_images(learn.dls)
    return learn


def differences(make, folder, n, **kwargs):
    """Train straight, and from the `n` places of rest; give (position, first difference of the ends)."""
    straight = new_learner(make, seed=1, **kwargs)
    straight.fit(N_EPOCHS)
    expected = state_of(straight)
    copies = CopyCB(folder / "copies")
    key = "CheckpointCB 2" if any(isinstance(cb, CheckpointCB) for cb in straight.cbs) else "CheckpointCB"
    learn = new_learner(lambda: [*make(), every_rest(folder / "all"), copies], seed=1, **kwargs)
    learn.fit(N_EPOCHS)
    yield "not stopped", first_difference(expected, state_of(learn, key, "CopyCB"))
    assert len(copies.paths) == n
    for i, path in dealt(list(enumerate(copies.paths))):
        at_end = CheckpointCB(folder / f"from {i}", every_epochs=N_EPOCHS + 1)
        learn = new_learner(lambda at_end=at_end: [*make(), at_end], seed=100 + i, **kwargs)
        learn.fit(N_EPOCHS, resume=path)
        yield read(path)["position"], first_difference(expected, state_of(learn, key))


def check_each_place(make, folder, n=None, **kwargs):
    """Assert that no end differs, from `n` places."""
    kwargs = SHORT | kwargs
    n = n_places(kwargs["n_train"], kwargs["n_valid"]) if n is None else n
    assert [(position, how) for position, how in differences(make, folder, n, **kwargs) if how] == []


# The shipped callbacks --------------------------------------------------------------------------------

N_PLACES = {
    "BatchSizeCB": n_places(8, 1),  # batches of 2 instead of 4
    "EMACB": n_places(4, 0),  # while the average is validated, the state is not whole
    "NormStatisticsCB": n_places(4, 0),  # the same, of the statistics
    "LRFinderCB": n_places(4, 1, 2) + 1,  # its 10th step ends the fit
    "SWACB": n_places(4, 0),
    "SingleBatchCB": n_places(1, 1),
}


def with_metrics(name):
    return [FACTORIES[name](), *([] if name == "MetricsCB" else [MetricsCB()])]


@EACH
@pytest.mark.filterwarnings("ignore:(CSVLoggerCB|TensorBoardCB) has (path|folder)=")  # a place for each
def test_resumed_run_of_a_shipped_callback_is_the_straight_run(tmp_path, name):
    images = name in OF_IMAGES
    kwargs = PLAIN | NEEDS.get(name, {})
    check_each_place(partial(with_metrics, name), tmp_path, N_PLACES.get(name), images=images, **kwargs)


def sequential(opt):
    warm, fall = lr_scheduler.LinearLR(opt, 0.5, total_iters=2), lr_scheduler.ExponentialLR(opt, 0.5)
    return lr_scheduler.SequentialLR(opt, [warm, fall], milestones=[2])


def chained(opt):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.9)]
    )


SCHEDULERS = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [1, 4]},
    "ConstantLR": {"factor": 0.5},
    "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
    "MultiplicativeLR": {"lr_lambda": lambda step: 1 / (1 + step)},
    "ExponentialLR": {"gamma": 0.5},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "step_size_up": 2, "mode": "triangular2"},
    "OneCycleLR": {"three_phase": True},
    "LinearLR": {"start_factor": 0.1},
    "PolynomialLR": {"power": 2.0},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_resumes_where_it_was(tmp_path, name):
    scheduler = getattr(lr_scheduler, name)
    check_each_place(
        lambda: [BatchSchedulerCB(scheduler, **SCHEDULERS[name])], tmp_path, param_groups=two_groups
    )


@pytest.mark.parametrize("function", [sequential, chained])
def test_schedulers_made_of_others_resume_where_they_were(tmp_path, function):
    check_each_place(lambda: [BatchSchedulerCB(function)], tmp_path)


EPOCH_SCHEDULERS = {
    "StepLR": (lr_scheduler.StepLR, {"step_size": 1, "gamma": 0.5}),
    "sequential": (sequential, {}),
    "ReduceLROnPlateau": (lr_scheduler.ReduceLROnPlateau, {"patience": 0, "threshold": 10, "factor": 0.5}),
    "ReduceLROnPlateau, max": (
        lr_scheduler.ReduceLROnPlateau,
        {"patience": 0, "mode": "max", "monitor": "train/MulticlassAccuracy", "threshold": 1},
    ),
}


@pytest.mark.parametrize("name", EPOCH_SCHEDULERS)
def test_scheduler_of_epochs_resumes_where_it_was(tmp_path, name):
    function, kwargs = EPOCH_SCHEDULERS[name]
    check_each_place(lambda: [EpochSchedulerCB(function, **kwargs), MetricsCB()], tmp_path)


@pytest.mark.parametrize(
    "make", [lambda: BatchSchedulerCB(lr_scheduler.OneCycleLR), lambda: ScheduleCB("lr", cosine)]
)
def test_value_that_the_schedule_began_with_comes_back_after_the_fit(tmp_path, at, make):
    def halve(learn):
        learn.opt.param_groups[0]["lr"] /= 2

    def run(*cbs, **kwargs):
        learn = new_learner(lambda: [every_rest(tmp_path)], seed=1)
        learn.fit(1, cbs=[at("after_fit", halve)], **kwargs)  # left out when it is finished
        learn.fit(N_EPOCHS, cbs=[make(), *cbs], **kwargs)
        return learn.opt.param_groups[0]["lr"]

    with pytest.raises(StoppedError):
        run(StopCB(3))
    with pytest.warns(UserWarning, match=r"group 0.*lr=\d"):  # the fit that halved it is left out
        assert run(resume=True) == 0.05


def adam(params, lr):
    return torch.optim.AdamW(params, lr)


SCHEDULES = {
    "function": lambda: [ScheduleCB("lr", lambda step: 0.8**step)],
    "function of the length": lambda: [ScheduleCB("lr", partial(one_cycle, pct_start=0.5))],
    "base": lambda: [ScheduleCB("weight_decay", lambda step: 0.1 * step, base=1)],
    "table": lambda: [ScheduleCB("weight_decay", {0: 0.1, 2: 0.3})],
    "table from epoch 1 on": lambda: [ScheduleCB("lr", {1: 0.5})],
    "part of betas": lambda: [ScheduleCB("betas.0", cosine), ScheduleCB("betas.1", {1: 0.5})],
    "both betas": lambda: [ScheduleCB("betas", {1: (0.5, 0.6)})],
    "group": lambda: [ScheduleCB("lr", cosine, group=1)],
    "groups": lambda: [ScheduleCB("lr", {2: 0.01}, group=0), ScheduleCB("lr", cosine, group=[1])],
    "beside a scheduler": lambda: [
        ScheduleCB("weight_decay", {1: 0.3}),
        BatchSchedulerCB(lr_scheduler.OneCycleLR),
    ],
}


class SharpenCB(Callback):
    """Divide the predictions by a temperature, which no checkpoint has."""

    def __init__(self):
        self.temperature = 1.0

    def state_dict(self):
        return {}

    def after_predict(self, learn):
        learn.preds = learn.preds / self.temperature


def set_temperature(learn, value):
    next(cb for cb in learn.cbs if isinstance(cb, SharpenCB)).temperature = value


SETTERS = {
    "by steps": lambda: ScheduleCB(set_temperature, lambda step: 1 + step),
    "by the length": lambda: ScheduleCB(set_temperature, cosine, base=2.0),
    "by epochs": lambda: ScheduleCB(set_temperature, lambda epoch: 1 + epoch, per="epoch"),
    "by a table": lambda: ScheduleCB(set_temperature, {1: 3.0}),
    "dropout": lambda: ScheduleCB(lambda learn, p: setattr(learn.model[3], "p", p), {0: 0.5, 2: 0.1}),
}


@pytest.mark.parametrize("name", SETTERS)
def test_what_a_schedule_sets_is_the_same_after_each_place(tmp_path, name):
    check_each_place(lambda: [SETTERS[name](), SharpenCB(), MetricsCB()], tmp_path, **PLAIN)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_schedule_of_epochs_or_steps_resumes_where_it_was(tmp_path, per):
    check_each_place(lambda: [ScheduleCB("lr", lambda n: 0.8**n, per=per)], tmp_path)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_resumes_where_it_was(tmp_path, name):
    check_each_place(SCHEDULES[name], tmp_path, opt_func=adam, param_groups=two_groups)


class Spread:
    """A metric without state_dict: numbers, tensors and containers are its attributes."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.n, self.sums, self.last, self.by_class = 0, [], deque(maxlen=2), {}

    def update(self, preds, target):
        self.n += len(target)
        self.sums.append(preds.sum(0))
        self.last.append(float(preds.max()))
        for c in target.tolist():
            self.by_class[c] = self.by_class.get(c, 0) + 1

    def compute(self):
        return [
            self.n,
            *torch.stack(self.sums).std(0, correction=0).tolist(),
            *self.last,
            *self.by_class.values(),
        ]


class Mean(torcheval.Mean):
    """The mean of the predictions."""

    def update(self, preds, target):
        return super().update(preds)


METRICS = {
    "several of torcheval": lambda: [
        MetricsCB(
            torcheval.MulticlassAccuracy(),
            torcheval.MulticlassAUROC(num_classes=2),
            torcheval.MulticlassConfusionMatrix(2),
            mean=Mean(),
        )
    ],
    "without state_dict": lambda: [MetricsCB(spread=Spread(), top1=torcheval.MulticlassAccuracy())],
    "functions": lambda: [
        MetricsCB(
            F.cross_entropy,
            number=lambda preds, target: preds.max().item(),
            picked=(F.l1_loss, lambda preds, target: (preds[target == 1, 0], preds[target == 1, 1])),
            valid=InValidation(F.cross_entropy),
        )
    ],
    "at the end": lambda: [
        MetricsCB(
            end=AtEnd(lambda preds, target: float((preds.argmax(1) * target).sum() + preds.sum())),
            lists=(
                AtEnd(lambda preds, target: sum(preds) / len(target)),
                lambda p, t: (p.sum(1).tolist(), t),
            ),
            valid=InValidation(AtEnd(lambda preds, target: float(preds.mean()))),
        )
    ],
    "beside bfloat16, accumulation and clipping": lambda: [
        *(MixedPrecisionCB(dtype=torch.bfloat16), GradientAccumulationCB(2), GradientClippingCB(0.5)),
        MetricsCB(F.cross_entropy, valid=InValidation(AtEnd(lambda preds, target: float(preds.mean())))),
    ],
    "beside an average": lambda: [
        EMACB(0.5),
        MetricsCB(F.cross_entropy, valid=InValidation(AtEnd(lambda preds, target: float(preds.mean())))),
    ],
}
METRICS_PLACES = {"beside an average": n_places(4, 0)}  # while it is validated, the state is not whole


@pytest.mark.parametrize("name", METRICS)
def test_metrics_resume_where_they_were(tmp_path, name):
    check_each_place(METRICS[name], tmp_path, METRICS_PLACES.get(name), **PLAIN | {"n_valid": 2})


class CatOfFirst(torchmetrics.CatMetric):
    def update(self, preds, target):
        super().update(preds[:, 0])

    def compute(self):
        return super().compute().float().std()


class SumOfFirst(torchmetrics.SumMetric):
    def update(self, preds, target):
        super().update(preds[:, 0])


def of_two(cls, **kwargs):
    return cls(task="multiclass", num_classes=2, **kwargs)


TORCHMETRICS = {
    "accuracy": lambda: of_two(torchmetrics.Accuracy),
    "lists": lambda: of_two(torchmetrics.AUROC),
    "bins": lambda: of_two(torchmetrics.AUROC, thresholds=5),
    "a list of tensors": CatOfFirst,
    "collection": lambda: torchmetrics.MetricCollection(
        {
            "accuracy": of_two(torchmetrics.Accuracy),
            "precision": of_two(torchmetrics.Precision, average="macro"),
            "recall": of_two(torchmetrics.Recall, average="macro"),
            "auroc": of_two(torchmetrics.AUROC),
        }
    ),
    "collection without groups": lambda: torchmetrics.MetricCollection(
        [of_two(torchmetrics.Precision), of_two(torchmetrics.Recall)], compute_groups=False
    ),
    "of each class": lambda: torchmetrics.wrappers.ClasswiseWrapper(
        of_two(torchmetrics.Recall, average=None)
    ),
    "extremes": lambda: torchmetrics.wrappers.MinMaxMetric(of_two(torchmetrics.Accuracy)),
    "window": lambda: torchmetrics.wrappers.Running(SumOfFirst(), window=2),
    "bootstrap": lambda: torchmetrics.wrappers.BootStrapper(of_two(torchmetrics.Accuracy), num_bootstraps=3),
}


@pytest.mark.parametrize("name", TORCHMETRICS)
def test_torchmetrics_resume_where_they_were(tmp_path, name):
    """Their state_dict is empty: a checkpoint holds their attributes, as far as a fit changed them."""

    def learner(*cbs, seed):
        metrics = MetricsCB(m=TORCHMETRICS[name](), valid=InValidation(TORCHMETRICS[name]()))
        return new_learner(lambda: [metrics, *cbs], seed, n_train=3, n_valid=2)

    copies = CopyCB(tmp_path / "copies")
    straight = learner(every_rest(tmp_path / "all"), copies, seed=1)
    straight.fit(2)
    expected = state_of(straight, "CheckpointCB", "CopyCB")
    assert len(copies.paths) == n_places(3, 2, 2)
    for i, path in dealt([*enumerate(copies.paths)]):
        learn = learner(CheckpointCB(tmp_path / f"from {i}", every_epochs=3), seed=100 + i)
        learn.fit(2, resume=path)
        assert not first_difference(expected, state_of(learn, "CheckpointCB")), read(path)["position"]


OTHERS = {
    "ProgressCB in a terminal": lambda: [
        MetricsCB(),
        ProgressCB(console=Console(file=StringIO(), force_terminal=True)),
    ],
    "RecorderCB of numbers": lambda: [
        RecorderCB(lr="pg.lr", n=lambda r: r.learn.n_steps, x=lambda r: r.learn.loss.item())
    ],
    "RecorderCB of a vector": lambda: [RecorderCB(w=lambda r: r.learn.model[4].weight.mean(1), b="learn.xb")],
    "RecorderCB of all shapes": lambda: [
        RecorderCB(
            x=lambda r: torch.ones(r.learn.n_steps),
            y=lambda r: r.learn.epoch or torch.ones(2),
            z="learn.loss",
        )
    ],
    "RecorderCB of text and tuples": lambda: [RecorderCB(phase="learn.phase", betas=lambda r: (1, [2.0]))],
    "TerminateOnNaNCB": lambda: [TerminateOnNaNCB(every=3)],
    "StoreModuleStatsCB": lambda: [StoreModuleStatsCB(nn.Linear, every=2, n_bins=3)],
    "HooksCB": lambda: [HooksCB(lambda learn, *args: learn.model[4].bias.add_(0.01), nn.ReLU)],
    "LRFinderCB": lambda: [LRFinderCB(1e-3, 1e-1, smooth=0.5)],
    "BatchSizeCB": lambda: [BatchSizeCB({1: 3}), MetricsCB(), BatchSchedulerCB(lr_scheduler.OneCycleLR)],
    "EarlyStoppingCB that restores": lambda: [MetricsCB(), EarlyStoppingCB(patience=3, min_delta=10.0)],
    "CheckpointCB of the best": lambda: [
        MetricsCB(),
        CheckpointCB(tempfile.mkdtemp(dir=FOLDER.name), every_steps=3, monitor="loss"),
    ],
}
OTHERS_PLACES = {"BatchSizeCB": n_places(2, 1, 1) - 1 + n_places(3, 1, 2)}


@pytest.mark.full
@pytest.mark.parametrize("name", OTHERS)
def test_callback_resumes_where_it_was(tmp_path, monkeypatch, name):
    monkeypatch.setattr("minilearn.callbacks.recorder._CHUNK", 2)
    check_each_place(OTHERS[name], tmp_path, OTHERS_PLACES.get(name))


@pytest.mark.parametrize("restore_best", [True, False])
def test_fit_that_stops_early_stops_at_the_same_epoch(tmp_path, restore_best):
    def make():
        return [MetricsCB(), EarlyStoppingCB(patience=1, min_delta=10.0, restore_best=restore_best)]

    check_each_place(
        make, tmp_path, n_places(2, 1, 2) - 1
    )  # the epoch that ends the fit is left before its rest


@pytest.mark.filterwarnings("ignore:.*nan or infinite")  # the weights of the checkpoint
@pytest.mark.parametrize("step", [2, 3, 4])
def test_bad_loss_that_was_not_looked_at_before_the_stop_is_found(tmp_path, at, step):
    def spoil(learn):
        if learn.training and learn.n_steps == step:
            learn.loss = learn.loss * math.nan

    def make(*cbs):
        cbs = [at("after_loss", spoil, order=-1), TerminateOnNaNCB(every=4), every_rest(tmp_path), *cbs]
        return new_learner(lambda: cbs, 1, n_train=7)

    with pytest.raises(StoppedError):
        make(StopCB(3)).fit()
    with pytest.raises(FloatingPointError, match=f"epoch 0, train batch {step}, step {step}"):
        make().fit(resume=tmp_path)


# Users' callbacks -------------------------------------------------------------------------------------


class ContainersCB(Callback):
    def __init__(self):
        self.losses, self.last, self.seen = [], deque(maxlen=3), {"train": {}, "eval": {}}
        self.mean, self.array, self.pairs = torch.zeros(2), np.zeros(3, dtype=np.float32), ((0, 0.0), None)
        self.kinds = (set(), frozenset([1]), Counter(), OrderedDict(), defaultdict(list))
        self.scalar, self.device, self.path = np.float64(0), torch.device("cpu"), Path("/tmp")
        self.nested = [[0], {"a": [torch.zeros(1)]}]
        self.keys = {(0, "a"): 1, 2: 3, None: 4, 0.5: b"x"}

    def after_loss(self, learn):
        loss = float(learn.loss.detach())
        self.losses.append(learn.loss.detach())
        self.last.append(loss)
        self.seen[learn.phase][learn.n_steps] = loss
        self.mean.lerp_(learn.preds.detach().mean(0), 0.1)
        self.array += np.float32(loss)
        self.pairs = ((learn.n_steps, loss), self.pairs[0])
        numbers, _, counts, ordered, lists = self.kinds
        numbers.add(learn.n_steps)
        counts[learn.phase] += 1
        ordered[learn.n_steps] = learn.epoch
        ordered.move_to_end(next(iter(ordered)))
        lists[learn.phase].append(learn.epoch)
        self.scalar = self.scalar + loss
        self.nested[1]["a"][0] += loss
        self.nested[0].append(learn.batch_idx)
        self.keys[(learn.n_steps, "a")] = learn.epoch
        learn.loss = learn.loss * (1 + sum(self.last) + float(self.array.sum()) + self.mean.sum() / 10)


class RandomCB(Callback):
    """Weigh each loss by random numbers of its own."""

    def __init__(self):
        seed = random.randrange(2**32)  # another in each process
        self.python, self.numpy = random.Random(seed), np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def after_loss(self, learn):
        ours = self.python.gauss(1, 0.1) + float(self.numpy.normal())
        ours += float(torch.rand((), generator=self.torch))
        usual = random.random() + float(np.random.rand()) + float(torch.rand(()))
        learn.loss = learn.loss * (1 + abs(ours + usual))


class Average:
    def __init__(self):
        self.n, self.mean = 0, torch.zeros(())

    def add(self, value):
        self.n += 1
        self.mean += (value - self.mean) / self.n


class HelperCB(Callback):
    """Keep the mean of the losses in a helper."""

    def before_fit(self, learn):
        self.average = Average()

    def after_loss(self, learn):
        self.average.add(learn.loss.detach())
        learn.loss = learn.loss / (1 + self.average.mean)


class LateHelperCB(HelperCB):
    """The same, made when it is first needed, of a class of this module."""

    def before_fit(self, learn):
        self.average = None

    def after_loss(self, learn):
        self.average = self.average or Average()
        super().after_loss(learn)


class LateCB(Callback):
    """Have an attribute from the third step on."""

    def after_step(self, learn):
        if learn.n_steps == 2:
            self.first = learn.loss.detach()
        elif hasattr(self, "first"):
            with torch.no_grad():
                learn.model[4].bias += self.first


class LogCB(Callback):
    def __init__(self):
        self.logger, self.function = logging.getLogger("a run"), math.sin

    def before_fit(self, learn):
        self.file, self.n_lines = open(os.devnull, "a"), 0  # noqa: SIM115  closed by cleanup_fit

    def after_batch(self, learn):
        self.file.write(f"{learn.n_steps}")
        self.n_lines += 1

    def cleanup_fit(self, learn):
        self.file.close()


class KeepsLearnerCB(Callback):
    def before_fit(self, learn):
        self.learn, self.params, self.head = learn, list(learn.model.parameters()), learn.model[4]
        self.opt, self.pg, self.batches = learn.opt, learn.opt.param_groups[0], learn.dls.train
        self.by_name = dict(learn.model.named_parameters())
        self.n = 0

    def after_step(self, learn):
        self.n += 1
        with torch.no_grad():
            torch._foreach_mul_(self.params, 1 - 0.01 * self.n)
            self.by_name["4.bias"].add_(self.learn.loss.detach())
        self.pg["lr"] *= 0.9


class OwnStateCB(DecliningCB):
    def __init__(self):
        super().__init__()
        self.unsaved = (n for n in ())

    def state_dict(self):
        return {"n": torch.tensor(self.n)}

    def load_state_dict(self, state):
        self.n = int(state["n"])


class GatherCB(Callback):
    """Step at each second batch."""

    def plan_steps(self, learn, steps):
        return [n // 2 for n in steps]

    def before_step(self, learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException


class AverageModelCB(Callback):
    """Keep a module of its own, an average of the weights."""

    def before_fit(self, learn):
        self.average = torch.optim.swa_utils.AveragedModel(learn.model)

    def after_step(self, learn):
        self.average.update_parameters(learn.model)


class OwnFieldCB(Callback):
    """Give the learner a field of its own."""

    def before_fit(self, learn):
        learn.loss_scale = {"value": 1.0}

    def after_loss(self, learn):
        learn.loss_scale["value"] *= 0.9
        learn.loss = learn.loss * learn.loss_scale["value"]


USERS = [DecliningCB, ContainersCB, RandomCB, HelperCB, LateHelperCB, LateCB, LogCB, KeepsLearnerCB]
USERS += [OwnStateCB, GatherCB, AverageModelCB, OwnFieldCB]


@pytest.mark.parametrize("cls", USERS)
def test_resumed_run_of_a_users_callback_is_the_straight_run(tmp_path, cls):
    check_each_place(lambda: [cls(), MetricsCB()], tmp_path)


def test_two_of_a_class_keep_their_states_apart(tmp_path):
    def make():
        cbs = [DecliningCB(), DecliningCB(), DecliningCB()]
        for i, cb in enumerate(cbs):
            cb.n = 10 * i
        return cbs

    check_each_place(make, tmp_path)


def test_callbacks_of_every_kind_go_together(tmp_path):
    check_each_place(lambda: [cls() for cls in USERS if cls is not GatherCB], tmp_path)


def stopped_and_resumed(folder, make, n=2):
    """Stop a fit at its n-th rest and resume it; return the learner."""
    with pytest.raises(StoppedError):
        new_learner(lambda: [*make(), every_rest(folder), StopCB(n)], seed=1).fit(N_EPOCHS)
    learn = new_learner(lambda: [*make(), every_rest(folder)], seed=2)
    learn.fit(N_EPOCHS, resume=folder)
    return learn


def test_what_belongs_to_the_learner_is_that_of_the_resumed_one(tmp_path):
    cb = KeepsLearnerCB()
    pairs = iter([KeepsLearnerCB(), cb])
    learn = stopped_and_resumed(tmp_path, lambda: [next(pairs)])
    assert cb.learn is learn
    assert (cb.opt, cb.batches, cb.head) == (learn.opt, learn.dls.train, learn.model[4])
    assert cb.pg is learn.opt.param_groups[0]
    assert all(p is q for p, q in zip(cb.params, learn.model.parameters(), strict=True))
    assert all(p is cb.by_name[name] for name, p in learn.model.named_parameters())


def test_files_loggers_and_functions_are_those_of_the_resumed_one(tmp_path):
    cb = LogCB()
    cb.logger, cb.function = logging.getLogger("another"), math.cos
    pairs = iter([LogCB(), cb])
    stopped_and_resumed(tmp_path, lambda: [next(pairs)])
    assert (cb.logger.name, cb.function) == ("another", math.cos)
    assert cb.n_lines == N_EPOCHS * (2 + 1)


def test_records_are_the_numbers_that_were_recorded(tmp_path):
    what = {"lr": "pg.lr", "step": "learn.n_steps", "bias": lambda r: r.learn.model[4].bias[:1]}
    recorder = RecorderCB(**what)
    recorders = iter([RecorderCB(**what), recorder])
    stopped_and_resumed(tmp_path, lambda: [next(recorders)], n=6)
    assert recorder.recs["lr"] == [0.1] * 6
    assert list(map(repr, recorder.recs["step"])) == ["1", "2", "3", "4", "5", "6"]
    assert [len(value) for value in recorder.recs["bias"]] == [1] * 6


@pytest.mark.parametrize("kind", ["means", "stds", "hists"])
def test_statistics_are_those_that_were_stored(tmp_path, kind):
    first, second, straight = (StoreModuleStatsCB(nn.Linear) for _ in range(3))
    new_learner(lambda: [straight], seed=1).fit(N_EPOCHS)
    cbs = iter([first, second])
    stopped_and_resumed(tmp_path, lambda: [next(cbs)], n=6)
    for name in ("0", "4"):
        stored = [torch.stack(getattr(cb.stats[name], kind)) for cb in (straight, second)]
        assert torch.equal(*stored)


def test_time_of_a_phase_does_not_count_the_pause(tmp_path, at, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def tick(learn):
        clock[0] += 1

    def make():
        clock[0] += 1000
        return [MetricsCB(), at("before_batch", tick)]

    learn = stopped_and_resumed(tmp_path, make, n=1)
    assert [row["time_s"] for row in learn.history] == [2, 1] * N_EPOCHS


def test_lists_and_dicts_stay_the_same_objects(tmp_path):
    class BoundCB(Callback):
        def __init__(self):
            self.losses, self.by_step = [], {}
            self.append = self.losses.append

        def after_loss(self, learn):
            self.append(learn.n_steps)
            table[learn.n_steps] = learn.epoch

    first, second = BoundCB(), BoundCB()
    cbs, table = iter([first, second]), second.by_step
    stopped_and_resumed(tmp_path, lambda: [next(cbs)], n=1)
    assert second.losses == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert second.by_step is table


# The test itself --------------------------------------------------------------------------------------


def test_state_that_is_hidden_from_the_checkpoint_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILEARN_EVERY_PLACE", "1")

    class HiddenCB(DecliningCB):
        def state_dict(self):
            return {}

    places = n_places(**SHORT)
    found = [how for _, how in differences(lambda: [HiddenCB()], tmp_path, places, **SHORT)]
    assert found[0] == ""  # it was not stopped
    assert [bool(how) for how in found[1:]] == [True] * (places - 3) + [False] * 3  # no loss comes after
    assert all("numbers differ" in how for how in found[1 : places - 2])


# Stopped by an error ----------------------------------------------------------------------------------


def several():
    return [MetricsCB(), RecorderCB(), BatchSchedulerCB(lr_scheduler.OneCycleLR), RandomCB(), HelperCB()]


def straight_end():
    learn = new_learner(several, seed=1)
    learn.fit(N_EPOCHS)
    return state_of(learn)


@pytest.mark.dealt
@pytest.mark.parametrize("n", range(1, n_places(**SHORT) + 1))
def test_interrupted_fit_resumes_from_its_folder(tmp_path, n):
    learn = stopped_and_resumed(tmp_path, several, n)
    assert first_difference(straight_end(), state_of(learn, "CheckpointCB")) == ""


def test_fit_may_be_stopped_again_and_again(tmp_path):
    for seed in range(1, n_places(**SHORT) + 1):
        learn = new_learner(lambda: [*several(), every_rest(tmp_path), StopCB(1)], seed=seed)
        with pytest.raises(StoppedError):
            learn.fit(N_EPOCHS, resume=True)
    learn = new_learner(lambda: [*several(), every_rest(tmp_path)], seed=99)
    learn.fit(N_EPOCHS, resume=True)
    assert first_difference(straight_end(), state_of(learn, "CheckpointCB")) == ""
