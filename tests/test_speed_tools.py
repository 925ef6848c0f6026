from functools import partial

import pytest
import torch
from toolbox import StopCB, conv_learner, conv_net, state_of, stop
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    EMACB,
    SWACB,
    BatchSchedulerCB,
    ChannelsLastCB,
    CheckpointCB,
    CompileCB,
    GradientAccumulationCB,
    GradientClippingCB,
    MetricsCB,
    MixedPrecisionCB,
    MixupCB,
    RecorderCB,
    TestTimeFlipCB,
)
from minilearn.checkpoints.codec import first_difference

pytestmark = [pytest.mark.full, pytest.mark.slow]

AVERAGES = {"EMA": partial(EMACB, 0.9), "SWA": partial(SWACB, 1, swa_lr=0.01)}
OPTS = {"SGD": partial(SGD, momentum=0.9, nesterov=True), "AdamW": torch.optim.AdamW}


def speedy_learner(folder, average, opt, *cbs, seed=0):
    """Make a conv_learner with all speed tools on; 5 batches an epoch, the last of 2."""
    cbs = [
        *(MixedPrecisionCB(), ChannelsLastCB(), GradientClippingCB(1.0), GradientAccumulationCB(2)),
        *(CompileCB(backend="eager"), average(), MixupCB(0.4), TestTimeFlipCB(), MetricsCB()),
        *(BatchSchedulerCB(OneCycleLR), RecorderCB(), CheckpointCB(folder, every_minutes=1e-9), *cbs),
    ]
    return conv_learner(*cbs, seed=seed, model=partial(conv_net, 0.2), n_train=18, opt_func=opt)


@pytest.mark.parametrize("average", AVERAGES)
def test_all_speed_tools_train_together(tmp_path, average):
    learn = speedy_learner(tmp_path, AVERAGES[average], OPTS["SGD"])
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
    ("average", "opt", "n"),
    [("EMA", "SGD", 1), ("EMA", "SGD", 3), ("SWA", "SGD", 7), ("SWA", "AdamW", 10), ("EMA", "AdamW", 6)],
)
def test_run_with_all_speed_tools_is_resumed_bit_for_bit(tmp_path, average, opt, n):
    new = partial(speedy_learner, average=AVERAGES[average], opt=OPTS[opt])
    straight = new(tmp_path / "straight")
    straight.fit(3)
    stop(speedy_learner(tmp_path / "run", AVERAGES[average], OPTS[opt], StopCB(n)), 3)
    resumed = new(tmp_path / "run", seed=2)
    resumed.fit(3, resume=True)
    assert first_difference(*(state_of(learn, "CheckpointCB") for learn in (straight, resumed))) == ""
