from functools import partial

import pytest
import torch
from conftest import StopCB, StoppedError
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    EMACB,
    SWACB,
    BatchSchedulerCB,
    ChannelsLastCB,
    CheckpointCB,
    CompileCB,
    DataLoaders,
    GradientAccumulationCB,
    GradientClippingCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    MixupCB,
    RecorderCB,
    TensorLoader,
    TestTimeFlipCB,
    set_seed,
)
from minilearn.checkpoint import capture, position_of
from minilearn.state import first_difference

AVERAGES = {"EMA": partial(EMACB, 0.9), "SWA": partial(SWACB, 1, swa_lr=0.01)}
OPTS = {"SGD": partial(SGD, momentum=0.9, nesterov=True), "AdamW": torch.optim.AdamW}


def learner(folder, average, opt, *cbs, seed=0):
    """Make a Learner of a small conv net with all speed tools on; 5 batches an epoch, the last of 2."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(26, 3, 6, 6, generator=rng)
    y = (x.mean((1, 2, 3)) > 0).long()
    set_seed(seed)
    convs = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Dropout(0.2)
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    train = TensorLoader(x[:18], y[:18], bs=4, shuffle=True)
    cbs = [
        *(MixedPrecisionCB(), ChannelsLastCB(), GradientClippingCB(1.0), GradientAccumulationCB(2)),
        *(CompileCB(backend="eager"), average(), MixupCB(0.4), TestTimeFlipCB(), MetricsCB()),
        *(BatchSchedulerCB(OneCycleLR), RecorderCB(), CheckpointCB(folder, every_minutes=1e-9), *cbs),
    ]
    dls = DataLoaders(train, TensorLoader(x[18:], y[18:], bs=4))
    return Learner(model, dls, lr=0.05, opt_func=opt, cbs=cbs, default_cbs=False)


def state_of(learn):
    saved = capture(learn, position_of(learn))
    for row in saved["history"]:
        row.pop("time_s")
    saved.pop("run")
    saved["cbs"] = {k: v for k, v in saved["cbs"].items() if not k.startswith(("MetricsCB", "CheckpointCB"))}
    return saved


@pytest.mark.parametrize("average", AVERAGES)
def test_all_speed_tools_train_together(tmp_path, average):
    learn = learner(tmp_path, AVERAGES[average], OPTS["SGD"])
    before = learn.model[0].weight.detach().clone()
    learn.fit(3)
    recorder = next(cb for cb in learn.cbs if isinstance(cb, RecorderCB))
    assert (learn.epoch_steps, learn.n_steps, len(recorder.recs["lr"])) == ([3] * 3, 9, 9)
    assert [row["train"] for row in learn.history if row["epoch"] == 2] == ["train", "iterate", "eval"]
    assert not torch.equal(learn.model[0].weight, before)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert not torch.is_autocast_enabled("cpu")


# Rests: the 5 batches of an epoch (groups of 2, 2 and 1), and the epoch's end.
@pytest.mark.parametrize(
    ("average", "opt", "stop"),
    [("EMA", "SGD", 1), ("EMA", "SGD", 3), ("SWA", "SGD", 7), ("SWA", "AdamW", 10), ("EMA", "AdamW", 6)],
)
def test_run_with_all_speed_tools_is_resumed_bit_for_bit(tmp_path, average, opt, stop):
    new = partial(learner, average=AVERAGES[average], opt=OPTS[opt])
    straight = new(tmp_path / "straight")
    straight.fit(3)
    with pytest.raises(StoppedError):
        learner(tmp_path / "run", AVERAGES[average], OPTS[opt], StopCB(stop)).fit(3)
    resumed = new(tmp_path / "run", seed=2)
    resumed.fit(3, resume=True)
    assert first_difference(state_of(straight), state_of(resumed)) == ""
