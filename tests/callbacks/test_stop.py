import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    CancelTrainException,
    EpochSchedulerCB,
    MetricsCB,
    RecorderCB,
    SingleBatchCB,
    TerminateOnNaNCB,
)


def spoil(step, value=math.nan):
    """Make the loss of one step not finite, and with it the gradients."""

    def multiply(learn):
        if learn.training and learn.n_steps == step:
            learn.loss = learn.loss * value

    return multiply


def test_single_batch_runs_one_batch_a_phase(make_learner, at):
    seen = []
    look = at("after_batch", lambda learn: seen.append((learn.epoch, learn.phase, learn.batch_idx)))
    make_learner(n_batches=5, n_valid=3, cbs=[look]).fit(2, cbs=[SingleBatchCB()])
    assert seen == [(0, "train", 0), (0, "eval", 0), (1, "train", 0), (1, "eval", 0)]


def test_single_batch_draws_no_second_one(make_learner):
    class Two:
        def __iter__(self):
            yield torch.ones(1, 3), torch.tensor([0])
            drawn.append(1)
            yield torch.ones(1, 3), torch.tensor([0])

    drawn = []
    make_learner(dls={"train": Two()}, cbs=[SingleBatchCB()]).fit(2)
    assert drawn == []


@pytest.mark.parametrize("unit", [BatchSchedulerCB, EpochSchedulerCB])
def test_single_batch_plans_the_schedule_for_its_steps(make_learner, unit):
    recorder = RecorderCB()
    learn = make_learner(n_batches=5, cbs=[SingleBatchCB(), recorder, unit(OneCycleLR)])
    learn.fit(4)
    assert (learn.epoch_steps, learn.total_steps, learn.n_steps) == ([1] * 4, 4, 4)
    assert recorder.recs["lr"][0] == pytest.approx(0.1 / 25)
    assert recorder.recs["lr"][-1] == pytest.approx(0.1 / 25 / 1e4)


def test_loaders_are_whole_again_after_single_batch(make_learner):
    learn = make_learner(n_batches=5)
    learn.fit(cbs=[SingleBatchCB()])
    learn.fit()
    assert learn.n_steps == 5


def test_single_batch_goes_with_validation_alone(make_learner):
    learn = make_learner(cbs=[SingleBatchCB(), MetricsCB(), BatchSchedulerCB(OneCycleLR)])
    learn.fit(train=False)
    assert [row["train"] for row in learn.history] == ["eval"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("every", [None, 1, 3, 50])
@pytest.mark.parametrize("step", [0, 3, 9])
def test_step_of_the_first_bad_loss_is_named(make_learner, at, value, every, step):
    learn = make_learner(n_batches=5, cbs=[at("after_loss", spoil(step, value), -1), TerminateOnNaNCB(every)])
    epoch, batch = divmod(step, 5)
    with pytest.raises(
        FloatingPointError, match=rf"at epoch {epoch}, train batch {batch}, step {step}: is the lr"
    ):
        learn.fit(3)


def test_message_says_which_value(make_learner, at):
    learn = make_learner(cbs=[at("after_loss", spoil(1, -math.inf), -1), TerminateOnNaNCB()])
    with pytest.raises(FloatingPointError, match="the loss is -inf at epoch 0, train batch 1, step 1"):
        learn.fit()


@pytest.mark.parametrize("every", [None, 1])
def test_weights_are_those_before_the_bad_step(make_learner, at, every):
    weights = []
    keep = at("before_batch", lambda learn: weights.append(learn.model.weight.detach().clone()))
    learn = make_learner(cbs=[keep, at("after_loss", spoil(2), -1), TerminateOnNaNCB(every)])
    with pytest.raises(FloatingPointError):
        learn.fit()
    assert torch.equal(learn.model.weight, weights[2])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("every", [2, 3, 50])
def test_loss_is_looked_at_once_in_so_many_batches(make_learner, at, every):
    steps = []
    cbs = [at("after_loss", spoil(0), -1), TerminateOnNaNCB(every)]
    learn = make_learner(
        n_batches=10, cbs=[*cbs, at("after_step", lambda learn: steps.append(learn.n_steps))]
    )
    with pytest.raises(FloatingPointError, match="train batch 0, step 0"):
        learn.fit()
    assert len(steps) == min(every - 1, 10)


def test_bad_loss_is_found_when_training_is_cancelled(make_learner, at):
    def cancel(learn):
        if learn.n_steps == 4:
            raise CancelTrainException

    cbs = [at("after_loss", spoil(2), -1), at("after_step", cancel), TerminateOnNaNCB(every=50)]
    with pytest.raises(FloatingPointError, match="train batch 2, step 2"):
        make_learner(n_batches=9, cbs=cbs).fit()


def test_finite_losses_and_those_of_validation_pass(make_learner, at):
    def spoil_validation(learn):
        if not learn.training:
            learn.loss = learn.loss * math.nan

    make_learner(cbs=[at("after_loss", spoil_validation, -1), TerminateOnNaNCB()]).fit(2)


@pytest.mark.parametrize("every", [0, -1])
def test_every_has_to_be_positive(every):
    with pytest.raises(ValueError, match=f"every={every}: expected a whole number >= 1"):
        TerminateOnNaNCB(every)
