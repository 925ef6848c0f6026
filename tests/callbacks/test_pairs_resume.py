"""Pairs of callbacks that have state: a run that is resumed is the straight one, from places all over it."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from fake_wandb import FakeWandb
from test_all_callbacks import FACTORIES, NEEDS, OF_IMAGES, SHIPPED
from toolbox import as_images, every_rest, noisy_learner, state_of
from torch import nn

from minilearn import (
    SWACB,
    BatchSizeCB,
    CheckpointCB,
    EarlyStoppingCB,
    MetricsCB,
    ScheduleCB,
    TimeLimitCB,
    WandbCB,
    set_seed,
)
from minilearn.callbacks import trackers
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in
from minilearn.schedules import cosine

pytestmark = [
    *(pytest.mark.full, pytest.mark.slow, pytest.mark.usefixtures("service")),
    # Each learner has a place of its own to log to.
    pytest.mark.filterwarnings("ignore:(CSVLoggerCB|TensorBoardCB) has (path|folder)="),
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")),
]

# Those that a pair says nothing about.
LEFT_OUT = {
    "CheckpointCB": "it is what is tested",
    "CUDAGraphCB": "it refuses most others; test_graph has it",
    "CompileCB": "it has no state",
    "DetectionCB": "it needs a model of its own; test_jobs has it beside others",
    "DeviceCB": "it has no state",
    "DistributedCB": "it does nothing with one process",
    "HooksCB": "it has no state",
    "LRFinderCB": "it ends the fit",
    "PredictionsCB": "it leaves each batch before its loss",
    "ProfileCB": "its state is times",
    "ProgressCB": "it shows only",
    "SwitchPointsCB": "it needs an optimizer of its own",
    "TransformersCB": "it needs a model of its own; test_transformers has it beside others",
}
NAMES = [name for name in FACTORIES if name not in LEFT_OUT]
LACKING = [] if find_spec("mlflow") else ["MLflowCB"]
MAKES = FACTORIES | {  # such that each acts within two epochs, and beside the others
    "BatchSizeCB": lambda: BatchSizeCB({1: 2}),
    "EarlyStoppingCB": lambda: EarlyStoppingCB(patience=1, min_delta=10.0),
    "ScheduleCB": lambda: ScheduleCB("weight_decay", cosine, base=0.1),
    "SWACB": lambda: SWACB(1, swa_lr=0.05, every_steps=1),
    "TimeLimitCB": lambda: TimeLimitCB(hours=1),
    "WandbCB": lambda: WandbCB(every=1),
}
REFUSED = [  # by their own checks
    {"SWACB", "EMACB"},
    {"BatchSchedulerCB", "EpochSchedulerCB"},
    {"GradientAccumulationCB", "SingleBatchCB"},
    {"MixupCB", "CutMixCB"},
    *({"SAMCB", name} for name in ("GradientAccumulationCB", "MomentumCB")),
    *(
        {"ClosureCB", name}
        for name in ("GradientAccumulationCB", "GradientClippingCB", "MomentumCB", "SAMCB")
    ),
    *({"NormStatisticsCB", name} for name in ("EMACB", "SWACB")),
]


N_EPOCHS = 2


def new(names, seed, folder, saver):
    set_seed(seed)
    cbs = [MAKES[name]() for name in names]
    if "MetricsCB" not in names:
        cbs.append(MetricsCB())
    kwargs = {}
    for name in names:
        kwargs |= NEEDS.get(name, {})
    learn = noisy_learner(*cbs, saver(folder), seed=seed, n_train=3, n_valid=1, **kwargs)
    if set(names) & set(OF_IMAGES):
        learn.model = nn.Sequential(nn.Flatten(), *learn.model)
        as_images(learn.dls)
    return learn


def places(files, turn):
    """Return three of the checkpoints, in each turn others."""
    n = len(files)
    return sorted({(turn + i * n // 3) % n for i in range(3)})


def check(names, turn, folder):
    straight = new(names, 1, folder / "straight", every_rest)
    straight.fit(N_EPOCHS)
    expected = state_of(straight, "CheckpointCB")
    files = checkpoints_in(folder / "straight")
    for i in places(files, turn):
        at_end = lambda path: CheckpointCB(path, every_epochs=99)  # noqa: E731
        learn = new(names, 50 + i, folder / str(i), at_end)
        learn.fit(N_EPOCHS, resume=files[i])
        assert first_difference(expected, state_of(learn, "CheckpointCB")) == "", (names, files[i].name)


def test_each_shipped_callback_is_tested_or_left_out_for_a_reason():
    assert set(NAMES) | set(LEFT_OUT) == set(SHIPPED)
    assert not set(NAMES) & set(LEFT_OUT)


@pytest.fixture
def service(monkeypatch):
    """Stand in for wandb."""
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=name))


@pytest.mark.parametrize("first", NAMES)
def test_resumed_run_of_a_pair_is_the_straight_run(tmp_path, first):
    if first in LACKING:
        pytest.skip(f"{first} needs its package")
    for turn, second in enumerate(NAMES):
        pair = {first, second}
        if NAMES.index(second) > NAMES.index(first) and pair not in REFUSED and second not in LACKING:
            (folder := tmp_path / second).mkdir()
            check((first, second), turn + NAMES.index(first), folder)
