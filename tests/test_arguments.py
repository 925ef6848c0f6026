"""Each argument of the public interface refuses what it cannot mean, and says which it is."""

import inspect
import math
import multiprocessing
import re
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from toolbox import as_images, at, make_learner, samples
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

import minilearn
from minilearn import callbacks, data, models, optim, plot, schedules
from minilearn.arguments import counted, flag, number, path, shown, unless_none, whole_number


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MINILEARN_DATA", raising=False)


# The checks ---------------------------------------------------------------------------------------


class Unshown:
    def __repr__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"),
        ("no", "'no'"),
        (Unshown(), "a Unshown"),
        (10**5000, "a int"),
        (torch.zeros(100, 100), "a Tensor"),
        ("x" * 1000, "a str"),
    ],
    ids=["number", "text", "no repr", "digits", "lines", "long"],
)
def test_any_value_is_shown_in_a_line(value, text):
    assert shown(value) == text


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), type("Three", (int,), {})(3)])
def test_whole_numbers_come_back_as_plain_ones(value):
    assert type(whole_number("n", value)) is int
    assert whole_number("n", value) == 3


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), 3.0, np.float64(3), "3", b"3", None, Fraction(3), torch.tensor(3), [3], 3 + 0j],
)
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"n=.*whole number >= 1"):
        whole_number("n", value)


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.float32(0.5), type("Half", (float,), {})(0.5)])
def test_numbers_come_back_as_plain_ones(value):
    assert type(number("n", value)) is float
    assert number("n", value) == 0.5


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (math.nan, {}, "a finite number"),
        (math.nan, {"infinite": True}, "a number"),
        (math.inf, {}, "a finite number"),
        (10**30, {}, "a finite number; write it as a float"),
        (10**400, {}, "a finite number; write it as a float"),  # beyond the floats
        (np.float32("nan"), {"low": 0}, "a finite number >= 0"),
        (np.bool_(False), {"low": 0}, "a finite number >= 0"),
        (True, {}, "a finite number"),
        ("1", {}, "a finite number"),
        (torch.tensor(1.0), {}, "a finite number"),
        (0, {"above": 0}, "a finite number > 0"),
        (1.0, {"low": 0, "below": 1}, "0 <= n < 1"),
        (0.0, {"above": 0, "below": 1}, "0 < n < 1"),
        (1.1, {"low": 0, "high": 1}, "0 <= n <= 1"),
        (-math.inf, {"above": 0, "infinite": True}, "a number > 0"),
        (0, {"above": 0, "high": 2000}, "a finite number > 0, at most 2,000"),
        (5, {"high": 2.5}, "a finite number, at most 2.5"),
        (1, {"below": 1}, "n < 1"),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_range(value, bounds, expected):
    with pytest.raises(ValueError, match=rf"n=.*: expected {expected}$"):
        number("n", value, **bounds)


@pytest.mark.parametrize("value", ["no", "False", 0, 1, None, [], torch.tensor(True), np.int64(1)])
def test_what_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(TypeError, match=r"Class\(x=.*\): expected True or False"):
        flag("Class(x", value)


@pytest.mark.parametrize("value", ["", " ", "a\0b", "~no-such-user/x"])
def test_text_that_is_no_path_is_refused(value):
    with pytest.raises(ValueError, match=r"folder=.*expected a path"):
        path("folder", value)


@pytest.mark.parametrize("value", [None, 1, b"x", True, ["x"], open])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(TypeError, match=r"folder=.*expected a path"):
        path("folder", value)


@pytest.mark.parametrize(
    ("n", "noun", "expected"),
    [(0, "step", "0 steps"), (1, "thread", "1 thread"), (2, "batch", "2 batches"), (3, "epoch", "3 epochs")],
)
def test_a_number_has_its_noun(n, noun, expected):
    assert counted(n, noun) == expected


def test_paths_are_expanded():
    assert path("folder", "~/x") == Path.home() / "x"
    assert path("folder", Path("x")) == Path("x")


def test_none_is_named_where_it_is_taken():
    assert unless_none(whole_number, "every", None) is None
    with pytest.raises(ValueError, match=r"every=0: .*>= 1; or None"):
        unless_none(whole_number, "every", 0)


def test_a_user_s_class_that_is_a_path_is_one(tmp_path):
    class Own:
        def __fspath__(self):
            return str(tmp_path)

    assert path("folder", Own()) == tmp_path


# What torch would take and misread ----------------------------------------------------------------


def dataset_loader(**kwargs):
    return data.DatasetLoader([1, 2, 3], **kwargs)


@pytest.mark.parametrize(
    ("make", "kwargs"),
    [
        (dataset_loader, {"pin_memory": "no"}),
        (dataset_loader, {"persistent_workers": "False"}),
        (dataset_loader, {"in_order": 0}),
        (callbacks.DistributedCB, {"find_unused_parameters": "no"}),
        (callbacks.DistributedCB, {"static_graph": 1}),
        (callbacks.CompileCB, {"fullgraph": "no"}),
        (callbacks.CompileCB, {"disable": "False"}),
        (partial(callbacks.BatchSchedulerCB, OneCycleLR), {"cycle_momentum": "no"}),
        (partial(callbacks.BatchSchedulerCB, OneCycleLR), {"three_phase": None}),
        (callbacks.BatchSchedulerCB, {"scheduler_f": partial(CyclicLR, base_lr=0.1, cycle_momentum="no")}),
    ],
)
def test_a_switch_of_torch_is_true_or_false(make, kwargs):
    with pytest.raises(TypeError, match=r"\(\w+=.*\): expected True or False"):
        make(**kwargs)


@pytest.mark.parametrize(
    ("scheduler_f", "kwargs"),
    [
        (StepLR, {"step_size": 1.5}),
        (StepLR, {"step_size": True}),
        (StepLR, {"step_size": 1, "gamma": math.nan}),
        (MultiStepLR, {"milestones": [1, math.inf]}),
        (CosineAnnealingLR, {"T_max": 2.5}),
        (CosineAnnealingLR, {"T_max": 0}),
        (CosineAnnealingLR, {"eta_min": math.nan}),
        (ExponentialLR, {"gamma": math.inf}),
        (OneCycleLR, {"total_steps": -1}),
        (OneCycleLR, {"max_lr": [0.1, math.nan]}),
        (ReduceLROnPlateau, {"factor": math.nan}),
        (CosineAnnealingWarmRestarts, {"T_0": 1.5}),
        (LinearLR, {"total_iters": "4"}),
    ],
)
def test_a_value_that_a_scheduler_of_torch_would_misread_is_refused(scheduler_f, kwargs):
    *_, (name, value) = kwargs.items()
    with pytest.raises(ValueError, match=rf"\({name}={re.escape(repr(value))}\)"):
        callbacks.EpochSchedulerCB(scheduler_f, **kwargs)


@pytest.mark.parametrize("lr", [math.nan, -0.1, [0.1, math.inf], True, (), {0.1}])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_an_lr_is_checked_wherever_it_is_given(lr, as_tensor):
    if as_tensor:
        if not isinstance(lr, float):
            pytest.skip("no tensor of one lr")
        lr = torch.tensor(lr)
    learn = make_learner()
    for give in (lambda: learn.fit(lr=lr), lambda: setattr(learn, "lr", lr), lambda: make_learner(lr=lr)):
        with pytest.raises(ValueError, match="lr="):
            give()
    assert learn.n_epochs_trained == 0


def test_too_many_workers_are_refused_before_any_is_started(monkeypatch):
    started = []
    monkeypatch.setattr(multiprocessing.context.Process, "_Popen", started.append)
    with pytest.raises(ValueError, match=r"num_workers=1000000.*at most"):
        data.DatasetLoader([1, 2, 3], num_workers=10**6)
    assert started == []


@pytest.mark.parametrize("loader", [3, "abc", np.float64(1), np.zeros((2, 2)), torch.zeros(2, 2), list, {}])
def test_what_gives_no_batches_is_no_loader(loader):
    with pytest.raises((TypeError, ValueError), match=r"dls (train|valid)|dls has no train"):
        data.DataLoaders(loader)
    with pytest.raises(TypeError, match=r"validate\(dl="):
        make_learner().validate(loader)


def test_the_largest_counts_work():
    most = sys.maxsize
    loader = data.TensorLoader(*samples(6), bs=most, shuffle=True)
    cbs = [
        minilearn.EMACB(0.9, n_norm_batches=most),
        minilearn.EarlyStoppingCB(patience=most),
        minilearn.MetricsCB(),
        minilearn.CheckpointCB("run", every_steps=most, every_epochs=1, keep=most),
        minilearn.TerminateOnNaNCB(most),
    ]
    learn = make_learner(
        dls={"train": loader, "eval": [samples(4)]},
        cbs=cbs,
        model=nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    )
    learn.fit(2)
    assert learn.n_steps == 2
    assert len([*Path("run").glob("epoch-*.pt")]) == 2


# Every public constructor and method, with wrong values for each argument -------------------------

WRONG = {
    "True": True,
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "0": 0,
    "empty": "",
    "no": "no",
    "None": None,
    "[]": [],
    "object": object(),
    "big": 10**30,
    "np_int": np.int64(3),
    "np_half": np.float32(0.5),
    "np_nan": np.float64("nan"),
    "np_bool": np.bool_(True),
}
# What of these an argument of a kind takes.
NUMBER = "1.5 -1 0 np_int np_half"
KINDS = {
    "count": "np_int",
    "count0": "0 np_int",
    "seed": "-1 0 big np_int None",
    "number": NUMBER,
    "from 0": "1.5 0 np_int np_half",
    "above 0": "1.5 np_int np_half",
    "above 0, inf": "1.5 inf np_int np_half",
    "above 1, inf": "1.5 inf np_int",
    "share": "0 np_half",
    "inner share": "np_half",
    "to 1": "0 np_half",
    "flag": "True",
    "path": "no",
    "name": "no",
    "any text": "no empty",
    "nothing": "",
    "list": "[]",
}


def wanted(kind):
    """Return the labels that a kind takes; "count?" also takes None."""
    return {*KINDS[kind.removesuffix("?")].split(), *(["None"] if kind.endswith("?") else [])}


X, Y = samples(8)
MODEL = partial(nn.Linear, 3, 2)
LOADER = {"bs": "count", "shuffle": "flag", "drop_last": "flag", "seed": "seed", "device": "nothing?"}
SET = {"bs": "count", "root": "path?", "device": "nothing?", "seed": "seed", "download": "flag"}


def sets(function, **kinds):
    return partial(function, download=False), SET | kinds


def method(name, **base):
    """Call a method of a new learner."""

    def call(**kwargs):
        return getattr(make_learner(), name)(**base, **kwargs)

    return call


def previewed(**kwargs):
    return minilearn.BatchSchedulerCB(CosineAnnealingLR).preview(make_learner(), **kwargs)


def pictured(function, **base):
    """Call a function with a learner of images of three pixels."""

    def call(**kwargs):
        learn = make_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), loss_func=F.cross_entropy)
        as_images(learn.dls)
        return function(learn, **base | kwargs)

    return call


FIGURE = {"n": "count", "classes": "list?", "n_cols": "count", "size": "above 0"}


def optimizer(kind):
    return lambda **kwargs: kind([nn.Parameter(torch.ones(1))], **{"lr": 0.1} | kwargs)


def again(**kwargs):
    def hook(learn):
        learn.again(**kwargs)

    make_learner(cbs=at("after_forward", hook)).fit(valid=False)


def constant(step):
    return 1.0


def take_any(**kwargs):
    return None


# name -> (what to call, argument -> kind)
CALLS = {
    "AtEnd": (callbacks.AtEnd, {"function": "nothing"}),
    "BatchSchedulerCB": (partial(callbacks.BatchSchedulerCB), {"scheduler_f": "nothing"}),
    "EpochSchedulerCB": (partial(callbacks.EpochSchedulerCB, ReduceLROnPlateau), {"monitor": "name?"}),
    "BatchSchedulerCB of a function": (partial(callbacks.BatchSchedulerCB, print), {"monitor": "name?"}),
    "BatchSizeCB": (callbacks.BatchSizeCB, {"sizes": "nothing"}),
    "CSVLoggerCB": (callbacks.CSVLoggerCB, {"path": "path"}),
    "CUDAGraphCB": (callbacks.CUDAGraphCB, {"warmup": "count"}),
    "CheckpointCB": (
        lambda **kwargs: callbacks.CheckpointCB(**{"folder": "x"} | kwargs),
        {
            **{"folder": "path", "every_steps": "count?", "every_epochs": "count?", "keep": "count"},
            **{"every_minutes": "above 0?", "monitor": "name?", "signals": "list"},
        },
    ),
    "CheckpointCB with a monitor": (
        partial(callbacks.CheckpointCB, "x", monitor="loss"),
        {"mode": "nothing?", "keep_best": "count?"},
    ),
    "DeviceCB": (callbacks.DeviceCB, {"device": "nothing?"}),
    "DistributedCB": (
        callbacks.DistributedCB,
        {"shard": "True None", "timeout_s": "above 0", "parallelize": "nothing?"},
    ),
    "EMACB": (
        callbacks.EMACB,
        {"decay": "inner share", "warmup": "flag", "every_steps": "count", "n_norm_batches": "count"},
    ),
    "EarlyStoppingCB": (
        callbacks.EarlyStoppingCB,
        {
            **{"monitor": "name", "patience": "count", "mode": "nothing?"},
            **{"min_delta": "from 0", "restore_best": "flag"},
        },
    ),
    "GradientAccumulationCB": (callbacks.GradientAccumulationCB, {"n_batches": "count"}),
    "NormStatisticsCB": (callbacks.NormStatisticsCB, {"n_batches": "count"}),
    "SAMCB": (callbacks.SAMCB, {"rho": "above 0", "adaptive": "flag"}),
    "GradientClippingCB": (
        callbacks.GradientClippingCB,
        {"max_norm": "above 0, inf", "norm_type": "above 0, inf"},
    ),
    "GradualUnfreezeCB": (callbacks.GradualUnfreezeCB, {"epochs": "np_int", "lr_div": "1.5 np_int"}),
    "HooksCB": (
        lambda **kwargs: callbacks.HooksCB(**{"function": print} | kwargs),
        {"function": "nothing", "which": "nothing?"},
    ),
    "InValidation": (callbacks.InValidation, {"metric": "nothing"}),
    "LRFinderCB": (
        callbacks.LRFinderCB,
        {
            **{"start_lr": "1.5 np_half np_int", "end_lr": "above 0", "n_steps": "nothing"},
            **{"diverge": "above 1, inf", "smooth": "share"},
        },
    ),
    "MLflowCB": (
        callbacks.MLflowCB,
        {"experiment": "name?", "name": "name?", "every": "count", "uri": "name?", "tags": "nothing?"},
    ),
    "MixedPrecisionCB": (callbacks.MixedPrecisionCB, {"dtype": "nothing", "init_scale": "above 0"}),
    "CutMixCB": (callbacks.CutMixCB, {"alpha": "above 0"}),
    "MixupCB": (callbacks.MixupCB, {"alpha": "above 0"}),
    "MomentumCB": (callbacks.MomentumCB, {"mom": "share"}),
    "Monitor": (callbacks.Monitor, {"name": "name"}),
    "Monitor with a name": (partial(callbacks.Monitor, "loss"), {"mode": "nothing?"}),
    "ProfileCB": (callbacks.ProfileCB, {"sync": "flag", "trace": "path?", "at": "nothing"}),
    "ProgressCB": (
        callbacks.ProgressCB,
        {"plot": "flag", "console": "nothing?", "quiet": "flag", "every_s": "above 0"},
    ),
    "SWACB": (
        lambda **kwargs: callbacks.SWACB(**{"swa_lr": 0.1} | kwargs),
        {
            **{"start": "0 big np_int np_half", "swa_lr": "from 0?", "anneal_epochs": "count0"},
            **{"anneal": "nothing", "every_steps": "count?", "n_norm_batches": "count"},
        },
    ),
    "ScheduleCB": (
        lambda **kwargs: callbacks.ScheduleCB(**{"name": "lr", "schedule": constant} | kwargs),
        {"name": "name", "schedule": "nothing", "base": "number?", "per": "nothing"},
    ),
    "StoreModuleStatsCB": (
        callbacks.StoreModuleStatsCB,
        {"which": "nothing?", "every": "count", "bounds": "nothing", "n_bins": "count"},
    ),
    "TensorBoardCB": (
        callbacks.TensorBoardCB,
        {
            **{"folder": "path", "name": "name?", "every": "count", "images": "count0"},
            **{"hparams": "nothing?"},
        },
    ),
    "TerminateOnNaNCB": (callbacks.TerminateOnNaNCB, {"every": "count?"}),
    "TransformersCB": (callbacks.TransformersCB, {"output": "name?", "count": "nothing?"}),
    "TimeLimitCB": (
        lambda **kwargs: callbacks.TimeLimitCB(**{"seconds": 1} | kwargs),
        {"hours": "from 0", "minutes": "from 0"},
    ),
    "TimeLimitCB of seconds": (
        partial(callbacks.TimeLimitCB, 1),
        {"seconds": "from 0"},
    ),
    "WandbCB": (
        callbacks.WandbCB,
        {"project": "name?", "name": "name?", "every": "count", "group": "name?"},
    ),
    "g": (callbacks.g, {"path": "name"}),
    # data
    "TensorLoader": (partial(data.TensorLoader, X, Y), LOADER),
    "ResumableLoader": (
        lambda **kwargs: data.ResumableLoader(**{"n_samples": 8} | kwargs),
        {"n_samples": "count0", **{name: kind for name, kind in LOADER.items() if name != "device"}},
    ),
    "ImageLoader": (
        partial(data.ImageLoader, torch.zeros(8, 1, 2, 2, dtype=torch.uint8), Y),
        LOADER | {"augment": "list", "files": "nothing?"},
    ),
    "DatasetLoader": (
        lambda **kwargs: data.DatasetLoader(**{"dataset": [1, 2, 3]} | kwargs),
        {
            **{name: kind for name, kind in LOADER.items() if name != "device"},
            **{"sampler": "[] None", "plan": "nothing?", "num_workers": "count0", "collate_fn": "nothing?"},
        },
    ),
    "by_length": (
        lambda **kwargs: data.by_length(**{"lengths": [1, 2], "tokens": 10**6} | kwargs),
        {"lengths": "nothing", "tokens": "count", "max_bs": "count?", "shuffle": "flag"},
    ),
    "mix": (
        lambda **kwargs: data.mix(**{"parts": [([1, 2], 1), ([3], 1)]} | kwargs),
        {"parts": "nothing", "bs": "count", "n_batches": "count?", "shuffle": "flag"},
    ),
    "balanced": (
        lambda **kwargs: data.balanced(**{"targets": [0, 1]} | kwargs),
        {"targets": "nothing", "bs": "count", "n_batches": "count?"},
    ),
    "DataLoaders": (
        lambda **kwargs: data.DataLoaders(**{"train": [(X, Y)]} | kwargs),
        {
            **{"train": "list", "valid": "[] None", "test": "[] None", "transform": "nothing?"},
            **{"classes": "[] None", "source": "any text"},
        },
    ),
    "RandomCrop": (data.RandomCrop, {"padding": "count", "padding_mode": "nothing"}),
    "RandomResizedCrop": (
        data.RandomResizedCrop,
        {"size": "count?", "scale": "nothing", "ratio": "nothing"},
    ),
    "HorizontalFlip": (data.HorizontalFlip, {"p": "to 1", "alternates": "flag"}),
    "Cutout": (data.Cutout, {"size": "count"}),
    "Normalize": (
        lambda **kwargs: data.Normalize(**{"mean": (0.5,), "std": (0.5,)} | kwargs),
        {"mean": "nothing", "std": "nothing"},
    ),
    "mnist": sets(data.mnist),
    "fashion_mnist": sets(data.fashion_mnist),
    "cifar10": sets(data.cifar10, augment="list"),
    "imagenette": sets(data.imagenette, augment="list", size="count?"),
    "imagewoof": (
        data.imagewoof,
        {name: kind for name, kind in SET.items() if name != "download"}
        | {"augment": "list", "size": "count?"},
    ),
    "image_folder": (
        lambda **kwargs: data.image_folder(**{"source": "/no/such/folder"} | kwargs),
        {
            **{"source": "path", "size": "count?", "bs": "count", "device": "nothing?", "seed": "seed"},
            **{"augment": "list", "normalize": "nothing", "parts": "nothing", "names": "nothing?"},
            "valid": "inner share?",
        },
    ),
    "shapes": (
        lambda **kwargs: data.shapes(**{"n_train": 2, "n_valid": 2} | kwargs),
        {
            **{"bs": "count", "n_train": "count", "n_valid": "count", "device": "nothing?"},
            "seed": "-1 0 big np_int",
        },
    ),
    # optim
    "optim.SGD": (optimizer(optim.SGD), {"lr": "from 0", "wd": "from 0", "foreach": "flag"}),
    "optim.MomentumSGD": (
        optimizer(optim.MomentumSGD),
        {"lr": "from 0", "wd": "from 0", "mom": "share", "foreach": "flag"},
    ),
    "optim.SGDAlternate": (
        optimizer(optim.SGDAlternate),
        {"lr": "from 0", "momentum": "share", "foreach": "flag"},
    ),
    "optim.RMSProp": (
        optimizer(optim.RMSProp),
        {"lr": "from 0", "wd": "from 0", "sqr_mom": "share", "eps": "above 0", "foreach": "flag"},
    ),
    "optim.Adam": (
        optimizer(optim.Adam),
        {
            **{"lr": "from 0", "wd": "from 0", "beta1": "share", "beta2": "share", "eps": "above 0"},
            "foreach": "flag",
        },
    ),
    "optim.AdaBound": (
        optimizer(optim.AdaBound),
        {
            **{"lr": "from 0", "betas": "nothing", "final_lr": "above 0", "gamma": "above 0"},
            **{"eps": "above 0", "weight_decay": "from 0", "amsbound": "flag", "foreach": "flag"},
        },
    ),
    "optim.SWATS": (
        optimizer(optim.SWATS),
        {
            **{"lr": "from 0", "betas": "nothing", "eps": "above 0", "threshold": "above 0"},
            **{"switch": "nothing", "weight_decay": "from 0", "amsgrad": "flag", "nesterov": "flag"},
            **{"sgd_scale": "above 0?", "foreach": "flag"},
        },
    ),
    # schedules
    "schedules.constant": (schedules.constant, {"value": "number"}),
    "schedules.step_decay": (
        lambda **kwargs: schedules.step_decay(**{"step_size": 1} | kwargs),
        {"step_size": "count", "gamma": "above 0"},
    ),
    "schedules.multi_step": (
        lambda **kwargs: schedules.multi_step(**{"milestones": [1]} | kwargs),
        {"milestones": "list", "gamma": "above 0"},
    ),
    "schedules.exponential": (schedules.exponential, {"gamma": "above 0"}),
    "schedules.cosine": (
        lambda **kwargs: schedules.cosine(**{"n_steps": 3} | kwargs),
        {"n_steps": "count", "low": "number"},
    ),
    "schedules.polynomial": (
        lambda **kwargs: schedules.polynomial(**{"n_steps": 3} | kwargs),
        {"n_steps": "count", "power": "above 0", "low": "number"},
    ),
    "schedules.warm_up": (schedules.warm_up, {"n_steps": "count"}),
    "schedules.triangular": (
        lambda **kwargs: schedules.triangular(**{"n_steps": 3} | kwargs),
        {"n_steps": "count", "pct_start": "inner share", "low": "number"},
    ),
    "schedules.cycled": (
        lambda **kwargs: schedules.cycled(**{"schedule": constant, "n_steps": 3} | kwargs),
        {"schedule": "nothing", "n_steps": "count", "decay": "above 0", "low": "number"},
    ),
    "schedules.cosine_restarts": (
        lambda **kwargs: schedules.cosine_restarts(**{"n_steps": 3} | kwargs),
        {"n_steps": "count", "factor": "count", "decay": "above 0", "low": "number"},
    ),
    "schedules.one_cycle": (
        lambda **kwargs: schedules.one_cycle(**{"n_steps": 3} | kwargs),
        {
            **{"n_steps": "count", "pct_start": "inner share"},
            **{"start": "number", "peak": "number", "end": "number"},
        },
    ),
    "schedules.sequence": (
        lambda **kwargs: schedules.sequence(**{"schedules": [constant] * 2, "milestones": [3]} | kwargs),
        {"schedules": "nothing", "milestones": "nothing"},
    ),
    "schedules.shifted": (
        lambda **kwargs: schedules.shifted(**{"schedule": constant, "n_steps": 3} | kwargs),
        {"schedule": "nothing", "n_steps": "count"},
    ),
    # models
    "MLP": (partial(models.MLP, 3, 2), {"norm": "flag", "dropout": "share"}),
    "StridedCNN": (
        models.StridedCNN,
        {"n_classes": "count", "n_channels": "count", "leak": NUMBER, "norm": "nothing"},
    ),
    "GeneralReLU": (
        models.GeneralReLU,
        {"leak": "number?", "sub": "number?", "max_value": f"{NUMBER} inf None"},
    ),
    "init_leaky": (partial(models.init_leaky, nn.Conv2d(1, 1, 1)), {"leak": "number"}),
    "DenseNet": (
        lambda **kwargs: models.DenseNet(**{"depths": [1], "growth": 1} | kwargs),
        {"depths": "nothing", "growth": "count", "n_classes": "count", "n_channels": "count"},
    ),
    "ResNet": (
        lambda **kwargs: models.ResNet(**{"depths": [1], "widths": [1]} | kwargs),
        {
            **{"depths": "nothing", "widths": "nothing", "n_classes": "count", "n_channels": "count"},
            **{"norm": "nothing", "stem_stride": "count"},
        },
    ),
    "densenet121": (models.densenet121, {"n_classes": "count", "n_channels": "count"}),
    "resnet18": (models.resnet18, {"n_classes": "count", "n_channels": "count", "norm": "nothing"}),
    "resnet20": (models.resnet20, {"n_classes": "count", "n_channels": "count", "norm": "nothing"}),
    # the learner
    "Learner": (
        lambda **kwargs: minilearn.Learner(**{"model": MODEL(), "dls": {"train": [(X, Y)]}} | kwargs),
        {
            **{"model": "nothing", "dls": "nothing?", "loss_func": "nothing?", "lr": "from 0"},
            **{
                "opt_func": "nothing",
                "param_groups": "nothing?",
                "default_cbs": "flag",
                "unpack": "nothing?",
            },
            **{"cbs": "[] None"},
        },
    ),
    "fit": (
        method("fit"),
        {
            **{"n_epochs": "np_int", "train": "flag", "valid": "flag", "lr": "from 0?", "reset_opt": "flag"},
            **{"resume": "no None", "cbs": "[] None"},
        },
    ),
    "validate": (method("validate"), {"dl": "nothing", "cbs": "[] None"}),
    "lr_find": (method("lr_find"), {"n_steps": "nothing", "start_lr": "1.5 np_half np_int"}),
    "verify_resume": (method("verify_resume"), {"at": "np_int None", "n_epochs": "np_int None"}),
    "save": (method("save"), {"path": "path"}),
    "load": (method("load"), {"path": "path"}),
    "predict": (method("predict"), {"dl": "nothing"}),  # None would be the step of a batch
    "freeze": (lambda which: make_learner().freeze(which), {"which": "nothing"}),
    "unfreeze": (lambda which: make_learner().unfreeze(which), {"which": "nothing"}),
    "again": (again, {"backward": "True"}),
    "set_epoch": (data.TensorLoader(X, Y).set_epoch, {"epoch": "0 np_int"}),
    "batches of a TensorLoader": (
        lambda **kwargs: [*data.TensorLoader(X, Y).batches(**kwargs)],
        {"start": "0 np_int"},
    ),
    "table": (callbacks.ProfileCB().table, {"by": "nothing"}),
    "to_csv": (callbacks.RecorderCB().to_csv, {"path": "path"}),
    "preview": (previewed, {"n_epochs": "np_int", "group": "0 None"}),
    # the rest
    "set_seed": (minilearn.set_seed, {"seed": "0 np_int"}),
    "set_seed 1": (partial(minilearn.set_seed, 1), {"deterministic": "nothing"}),  # True would stay
    "cancel_exception": (minilearn.cancel_exception, {"scope": "name"}),
    "CancelStepException": (minilearn.CancelStepException, {"keep": "True"}),
    "plot_lines": (
        lambda **kwargs: plot.plot_lines(**{"series": {"a": [1]}} | kwargs),
        {"series": "nothing", "xlabel": "any text", "width": "above 0", "height": "above 0"},
    ),
    "plot_scheduler": (
        lambda **kwargs: plot.plot_scheduler(**{"sched": constant, "n_steps": 2} | kwargs),
        {"n_steps": "np_int", "width": "above 0", "height": "above 0", "sched": "nothing"},
    ),
    "confusion_matrix": (pictured(minilearn.confusion_matrix), {"n_classes": "count?"}),
    "plot_confusion": (
        pictured(minilearn.plot_confusion),
        {"classes": "nothing?", "normalize": "flag", "size": "above 0?"},
    ),
    "top_losses": (
        pictured(minilearn.top_losses),
        {"dl": "nothing", "n": "count", "loss_func": "nothing?"},
    ),
    "plot_top_losses": (
        pictured(minilearn.plot_top_losses),
        {"dl": "nothing", "loss_func": "nothing?"} | FIGURE,
    ),
    "show_results": (pictured(minilearn.show_results), {"dl": "nothing"} | FIGURE),
    "show_batch": (pictured(minilearn.show_batch), FIGURE),
    "plot_images": (
        lambda **kwargs: plot.plot_images(**{"images": torch.ones(1, 1, 2, 2)} | kwargs),
        {"images": "nothing", "n_cols": "count", "size": "above 0", "titles": "list"},
    ),
}
LEFT_OUT = {
    "deterministic": ("True",),  # it would change torch for the other tests
    "dl": ("[]", "None"),  # a loader, which is empty: a message of its own; and the default
}


def outcome(call, name, value):
    """Return "" if the value is taken, or what is wrong with the refusal, or "refused"."""
    try:
        call(**{name: value})
    except OSError:  # there is no such folder or data set: the value was one that can be meant
        return ""
    except (ValueError, TypeError) as error:
        said = str(error)
        is_named = name in said and (shown(value) in said or repr(value) in said)
        return "refused" if is_named else f"refused without its name or value: {said}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of an odd but possible value
def test_wrong_values_are_refused_by_name(name):
    call, kinds = CALLS[name]
    odd = []
    for argument, kind in kinds.items():
        labels = wanted(kind) if kind.removesuffix("?") in KINDS else set(kind.split())
        for label, value in WRONG.items():
            if label in LEFT_OUT.get(argument, ()):
                continue
            got, expected = outcome(call, argument, value), "" if label in labels else "refused"
            if got != expected:
                odd.append(f"{argument}={label}: {got or 'taken'}; expected {expected or 'taken'}")
    assert not odd, "\n".join(odd)


# What is not called with wrong values, and why.
NOT_CALLED = {
    *("Callback", "CallbackHost", "Order", "optim", "schedules", "with_cbs", "plot_history"),
    *("BaseAveragingCB", "BaseSchedulerCB"),  # refuse to be made
    *("CompileCB", "MetricsCB", "RecorderCB"),  # take names of the user's own
    *("ChannelsLastCB", "DetectionCB", "SingleBatchCB", "SwitchPointsCB", "TestTimeFlipCB"),  # take nothing
    *("ClosureCB", "ThroughputCB"),  # take nothing either
    *("Prediction", "Predictor", "load_predictor"),  # of a file; see tests/inference
    "Summary",  # of learn.summary()
    *(name for name in minilearn.__all__ if name.startswith("Cancel")),
}


def test_every_public_name_is_called_with_wrong_values():
    assert {*minilearn.__all__} - {*CALLS} - NOT_CALLED == set()
    made = [
        name
        for name, value in vars(schedules).items()
        if getattr(value, "__module__", "") == schedules.__name__
    ]
    public = {f"schedules.{name}" for name in made if not name.startswith("_")}
    assert public - {*CALLS} == {"schedules.product", "schedules.resolve"}
    assert {f"optim.{name}" for name in optim.OPTIMIZERS} - {*CALLS} == set()


TAKE_OBJECTS = {
    *("params", "tensors", "images", "targets", "kwargs", "args", "sizes", "dataset", "module"),
    *("group", "scheduler_f", "step_size", "schedules", "cbs"),
    *("learn", "learn_or_preds", "learn_or_dls", "dl_or_targets"),
}


@pytest.mark.parametrize("name", [name for name in CALLS if name in minilearn.__all__])
def test_every_argument_is_given_wrong_values(name):
    parameters = {*inspect.signature(getattr(minilearn, name)).parameters}
    known = {
        argument for other, (_, kinds) in CALLS.items() if other.split()[0] == name for argument in kinds
    }
    assert parameters - known - TAKE_OBJECTS == set()
