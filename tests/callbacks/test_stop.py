import math
import warnings
from contextlib import suppress
from io import StringIO

import pytest
import torch
from rich.console import Console
from toolbox import Scripted, same, scripted, tensors_of
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CheckpointCB,
    EarlyStoppingCB,
    EpochSchedulerCB,
    MetricsCB,
    ProgressCB,
    RecorderCB,
    ScheduleCB,
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


def test_loaders_have_all_batches_again_after_single_batch(make_learner):
    learn = make_learner(n_batches=5)
    learn.fit(cbs=[SingleBatchCB()])
    learn.fit()
    assert learn.n_steps == 5


def test_single_batch_works_in_validation_outside_of_a_fit(make_learner):
    learn = make_learner(cbs=[SingleBatchCB(), MetricsCB(), BatchSchedulerCB(OneCycleLR)])
    learn.fit(train=False)
    assert [row["train"] for row in learn.history] == ["eval"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("every", [None, 1, 3, 50])
@pytest.mark.parametrize("step", [0, 3, 9])
def test_step_of_the_first_bad_loss_is_named(make_learner, at, value, every, step):
    learn = make_learner(n_batches=5, cbs=[at("after_loss", spoil(step, value), -1), TerminateOnNaNCB(every)])
    epoch, batch = divmod(step, 5)
    with pytest.raises(FloatingPointError, match=rf"epoch {epoch}, train batch {batch}, step {step}.*lr"):
        learn.fit(3)


def test_message_says_which_value(make_learner, at):
    learn = make_learner(cbs=[at("after_loss", spoil(1, -math.inf), -1), TerminateOnNaNCB()])
    with pytest.raises(FloatingPointError, match=r"loss.*-inf.*epoch 0, train batch 1, step 1"):
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
    with pytest.raises(ValueError, match=rf"every={every}.*whole number.*>= 1"):
        TerminateOnNaNCB(every)


# EarlyStoppingCB --------------------------------------------------------------------------------------


class Counting(nn.Module):
    """BatchNorm, and buffers that count: one not persistent, changed in place, one reassigned."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.register_buffer("n_seen", torch.zeros(2), persistent=False)
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.n_seen += len(x)
            self.n_calls = self.n_calls + 1
        return self.norm(self.linear(x))


def none_same(a, b):
    return not any(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def stopped(make_learner, at):
    """Fit over scripted values of validation: stopped(values, *cbs, model=..., **kwargs of the callback).

    Returns the learner, the callback, and the model's tensors at the end of each epoch.
    """

    def fit(values, *cbs, trains=None, model=None, monitor="score", mode="min", **kwargs):
        cb, saved = EarlyStoppingCB(monitor, mode=mode, **kwargs), []
        save = at("after_epoch", lambda learn: saved.append(tensors_of(learn.model)))
        learn = make_learner(model=model or nn.Linear(3, 2), cbs=[scripted(values, trains), cb, save, *cbs])
        learn.fit(len(values))
        return learn, cb, saved

    return fit


@pytest.mark.parametrize(
    ("mode", "patience", "min_delta", "values", "stopped_epoch", "best_epoch"),
    [
        ("min", 1, 0, [3, 2, 1], None, 2),
        ("min", 1, 0, [3, 2, 2, 1], 2, 1),
        ("min", 1, 0, [1, 2, 0], 1, 0),
        ("min", 3, 0, [5, 6, 7, 8, 1], 3, 0),
        ("min", 3, 0, [5, 6, 7, 4, 5, 6, 7, 1], 6, 3),
        ("min", 3, 0, [5, 6, 7], None, 0),
        ("min", 3, 0, [5, 5, 5, 5, 5], 3, 0),
        ("min", 2, 0, [5, 9, 8, 7], 2, 0),  # better than the epoch before is not better than the best
        ("max", 1, 0, [1, 2, 3], None, 2),
        ("max", 1, 0, [1, 2, 2, 3], 2, 1),
        ("max", 3, 0, [5, 4, 3, 2, 9], 3, 0),
        ("max", 2, 0, [-5, -4, -6, -7, 0], 3, 1),
        ("min", 1, 0.5, [3, 2.5, 1], 1, 0),  # better by exactly min_delta is not better
        ("min", 1, 0.5, [3, 2.25, 2], 2, 1),
        ("min", 3, 1, [5, 4.5, 4, 3.5, 3, 2.75, 2.5, 1], 6, 3),  # it counts from the best
        ("max", 1, 0.5, [3, 3.5, 5], 1, 0),
        ("max", 1, 0.5, [3, 3.75, 4], 2, 1),
        ("min", 2, 0, [math.nan, 1, math.nan, math.nan, 0], 3, 1),
        ("max", 2, 0, [math.nan, 1, math.nan, math.nan, 2], 3, 1),
        ("min", 1, 0, [math.nan, 1], 0, None),
        ("min", 2, 0, [math.nan, math.nan, 1], 1, None),
        ("max", 3, 0, [math.nan] * 4, 2, None),
        ("min", 3, 0, [math.nan] * 2, None, None),
        ("min", 2, 0, [math.inf, math.inf, 1], 1, None),
        ("min", 1, 0, [-math.inf, -math.inf, 1], 1, 0),
    ],
)
def test_fit_ends_when_so_many_epochs_in_a_row_are_not_better(
    stopped, mode, patience, min_delta, values, stopped_epoch, best_epoch
):
    learn, cb, saved = stopped(values, mode=mode, patience=patience, min_delta=min_delta)
    n_epochs = len(values) if stopped_epoch is None else stopped_epoch + 1
    worst = math.inf if mode == "min" else -math.inf
    assert (cb.stopped_epoch, cb.best_epoch) == (stopped_epoch, best_epoch)
    assert cb.best == (worst if best_epoch is None else values[best_epoch])
    assert len(saved) == n_epochs == learn.n_epochs_trained
    assert same(tensors_of(learn.model), saved[-1 if best_epoch is None else best_epoch])


def test_history_has_the_rows_of_the_last_epoch(stopped):
    learn, _, _ = stopped([3.0, 4.0, 1.0], patience=1)
    rows = [(row["epoch"], row["train"], row["score"]) for row in learn.history]
    assert rows == [(0, "train", 100.0), (0, "eval", 3.0), (1, "train", 101.0), (1, "eval", 4.0)]


def test_by_default_it_watches_the_loss_of_validation_for_three_epochs(make_learner):
    cb = EarlyStoppingCB()
    learn = make_learner(lr=0.0, cbs=[MetricsCB(), cb])  # each epoch is like the first
    learn.fit(9)
    assert (cb.monitor.name, cb.monitor.mode, cb.stopped_epoch, cb.best_epoch) == ("loss", "min", 3, 0)
    assert cb.best == next(row["loss"] for row in learn.history if row["train"] == "eval")
    assert cb.best != learn.history[0]["loss"]


@pytest.mark.parametrize(
    ("monitor", "stopped_epoch"), [("score", 1), ("eval/score", 1), ("train/score", 2), ("train/loss", None)]
)
def test_name_says_which_phase_it_watches(stopped, monitor, stopped_epoch):
    _, cb, saved = stopped([1, 2, 0, 0], trains=[2, 1, 1, 0], monitor=monitor, patience=1)
    assert cb.stopped_epoch == stopped_epoch
    assert len(saved) == (4 if stopped_epoch is None else stopped_epoch + 1)


@pytest.mark.parametrize("kwargs", [{"valid": False}, {}], ids=["fit without validation", "no loader"])
@pytest.mark.parametrize("monitor", ["score", "train/score"])
def test_fit_without_validation_watches_training(make_learner, kwargs, monitor):
    cb = EarlyStoppingCB(monitor, patience=2, mode="max")
    learn = make_learner(n_valid=1 if kwargs else 0, cbs=[MetricsCB(score=Scripted([1, 2, 2, 1, 5])), cb])
    learn.fit(5, **kwargs)
    assert (cb.stopped_epoch, cb.best_epoch, cb.best) == (3, 1, 2)


def raise_in_epoch_3(error):
    def hook(learn):
        if learn.epoch == 3 and learn.training and learn.batch_idx == 1:
            raise error

    return hook


ENDS = {
    "stopped": (None, None, [3, 1, 2, 2, 2, 0]),
    "to its end": (None, None, [3, 1, 2, 2]),
    "interrupted": ("after_batch", KeyboardInterrupt, [3, 1, 2, 2]),
    "error of a callback": ("after_step", ZeroDivisionError, [3, 1, 2, 2]),
    "error of a late callback": ("before_batch", RuntimeError, [3, 1, 2, 2]),
    "cancelled by a callback": ("after_batch", CancelFitException, [3, 1, 2, 2]),
}


@pytest.mark.parametrize("restore_best", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_best_weights_and_buffers_are_restored_however_the_fit_ends(stopped, at, end, restore_best):
    event, error, values = ENDS[end]
    last = []
    cbs = [at("cleanup_fit", lambda learn: last.append((learn, tensors_of(learn.model))), order=89)]
    if event:
        cbs.append(at(event, raise_in_epoch_3(error), order=95 if end == "error of a late callback" else 0))
    saved = []
    cbs.append(at("after_epoch", lambda learn: saved.append(tensors_of(learn.model))))
    try:
        stopped(values, *cbs, model=Counting(), patience=3, restore_best=restore_best)
    except (KeyboardInterrupt, ZeroDivisionError, RuntimeError) as e:
        assert type(e) is error  # noqa: PT017  some ends are no error
    ((learn, before),) = last
    assert len(saved) == {"stopped": 5, "to its end": 4}.get(end, 3)
    assert none_same(before, saved[1])  # each weight and buffer had changed since
    assert set(before) > {
        "n_seen",
        "n_calls",
        "norm.running_mean",
        "norm.num_batches_tracked",
        "linear.weight",
    }
    assert same(tensors_of(learn.model), saved[1] if restore_best else before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelFitException])
def test_nothing_is_restored_when_no_epoch_was_finished(make_learner, at, error):
    def stop(learn):
        if learn.n_steps == 2:
            last.append(tensors_of(learn.model))
            raise error

    last = []
    learn = make_learner(cbs=[scripted([1, 2]), EarlyStoppingCB("score", mode="min")])
    learn.fit(2)
    with suppress(KeyboardInterrupt):
        learn.fit(2, cbs=[at("after_step", stop)])
    assert same(tensors_of(learn.model), last[0])


def test_nothing_is_restored_when_the_best_is_no_number(stopped):
    learn, cb, saved = stopped([math.nan, math.nan], patience=2)
    assert cb.best_epoch is None
    assert same(tensors_of(learn.model), saved[1])


def test_epoch_that_was_cancelled_is_no_best_one(make_learner, at):
    def cancel(learn):
        if learn.epoch == 1:
            raise CancelEpochException

    saved = []
    cb = EarlyStoppingCB("score", mode="min", patience=5)
    learn = make_learner(cbs=[scripted([3, 2, 4]), cb, at("before_epoch", cancel)])
    learn.fit(4, cbs=[at("after_epoch", lambda learn: saved.append(tensors_of(learn.model)))])
    assert (cb.best_epoch, cb.best, len(saved)) == (2, 2, 3)
    assert same(tensors_of(learn.model), saved[1])


def test_validation_or_prediction_after_the_fit_leaves_the_weights(stopped):
    learn, cb, _ = stopped([1, 2, 3], patience=1)
    state = (cb.best, cb.best_epoch, cb.stopped_epoch)
    with torch.no_grad():
        learn.model.weight.fill_(7)
    learn.validate()
    learn.predict(learn.dls.valid)
    learn.fit(train=False)
    assert set(learn.model.weight.flatten().tolist()) == {7}
    assert (cb.best, cb.best_epoch, cb.stopped_epoch) == state == (1, 0, 1)


def test_validation_inside_the_fit_is_not_watched(make_learner, at):
    cb = EarlyStoppingCB(patience=1)
    learn = make_learner(cbs=[MetricsCB(), cb, at("after_train", lambda learn: learn.validate())])
    learn.fit(3)
    assert (cb.stopped_epoch, cb.best_epoch) == (None, 2)


def test_second_fit_starts_afresh(make_learner):
    cb = EarlyStoppingCB("score", mode="min", patience=2)
    learn = make_learner(cbs=[scripted([1, 2, 2, 9, 8, math.nan, math.nan, 9]), cb])
    learn.fit(9)
    assert (cb.best, cb.best_epoch, cb.stopped_epoch) == (1, 0, 2)
    learn.fit(2)
    assert (cb.best, cb.best_epoch, cb.stopped_epoch) == (8, 1, None)
    learn.fit(3)
    assert (cb.best, cb.best_epoch, cb.stopped_epoch) == (math.inf, None, 1)
    assert learn.n_epochs_trained == 7


def test_second_fit_starts_from_the_best_weights_and_trains_them(make_learner, at):
    weights = []
    cbs = [
        scripted([1, 2, 3, 4]),
        EarlyStoppingCB("score", mode="min", patience=1),
        at("before_train", lambda learn: weights.append(tensors_of(learn.model))),
    ]
    learn = make_learner(cbs=cbs)
    parameters = list(learn.model.parameters())
    places = [p.data_ptr() for p in parameters]
    learn.fit(2)
    learn.fit(1)
    assert same(weights[2], weights[1])  # the end of epoch 0
    assert all(p is q for p, q in zip(learn.model.parameters(), parameters, strict=True))
    assert [p.data_ptr() for p in parameters] == places  # of which a captured graph knows
    assert none_same(tensors_of(learn.model), weights[2])


def test_values_of_the_schedulers_are_as_before_the_fit(stopped, at):
    lrs = []
    cbs = [BatchSchedulerCB(OneCycleLR), ScheduleCB("weight_decay", {1: 0.5})]
    learn, _, _ = stopped(
        [1, 2, 2],
        *cbs,
        at("after_epoch", lambda learn: lrs.append(learn.opt.param_groups[0]["lr"])),
        patience=1,
    )
    group = learn.opt.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.01, (0.9, 0.999))
    assert len(lrs) == 2
    assert lrs[-1] != 0.1


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(x)))


def test_shared_parameters_are_restored_and_stay_shared(stopped):
    learn, _, saved = stopped([2, 1, 3, 4], model=Tied(), patience=2)
    assert same(tensors_of(learn.model), saved[1])
    assert none_same(saved[1], saved[3])
    assert learn.model.second.weight is learn.model.first.weight


def test_frozen_part_stays_frozen_and_as_it_was(stopped):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[:2].requires_grad_(False)
    model[1].eval()
    frozen = tensors_of(model[:2])
    _, _, saved = stopped([2, 1, 3, 4], model=model, patience=2)
    assert same(tensors_of(model[:2]), frozen)
    assert same(tensors_of(model), saved[1])
    assert none_same(tensors_of(model[2]), {k[2:]: t for k, t in saved[3].items() if k.startswith("2.")})
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2


def test_part_that_is_frozen_during_the_fit_is_restored_too(stopped, at):
    def freeze(learn):
        learn.model.weight.requires_grad_(learn.epoch < 2)

    learn, _, saved = stopped([1, 2, 3, 4], at("before_epoch", freeze), patience=3)
    assert none_same(saved[0], saved[3])
    assert same(tensors_of(learn.model), saved[0])


def test_weights_of_the_best_epoch_are_those_its_callbacks_left(make_learner, at):
    def fill(learn):
        with torch.no_grad():
            learn.model.weight.fill_(learn.epoch)

    learn = make_learner(
        cbs=[scripted([2, 1, 3]), EarlyStoppingCB("score", mode="min"), at("after_epoch", fill, order=85)]
    )
    learn.fit(3)
    assert set(learn.model.weight.flatten().tolist()) == {1}


def test_lr_find_is_not_stopped(make_learner):
    cb = EarlyStoppingCB("score", mode="min", patience=1)
    learn = make_learner(cbs=[MetricsCB(score=Scripted([1.0] * 99)), cb])
    before = tensors_of(learn.model)
    assert len(learn.lr_find(n_steps=30, diverge=1e9).lrs) == 30
    assert math.isnan(cb.best)
    assert (cb.best_epoch, cb.stopped_epoch) == (None, None)
    assert same(tensors_of(learn.model), before)


# What it says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kwargs", "said"),
    [
        (
            [5, 1.23456, 7, 8],
            {"patience": 2},
            "Stopped after epoch 3: score was not better for 2 epochs than 1.235 in epoch 1; its weights are "
            "restored",
        ),
        (
            [5, 6, 7, 8, 9],
            {"patience": 3, "restore_best": False, "monitor": "eval/score"},
            "Stopped after epoch 3: eval/score was not better for 3 epochs than 5 in epoch 0",
        ),
        (
            [5, 6],
            {"patience": 1, "restore_best": False},
            "Stopped after epoch 1: score was not better for 1 epoch than 5 in epoch 0",
        ),
        (
            [math.nan] * 3,
            {"patience": 2},
            "Stopped after epoch 1: score was not better in 2 epochs, and never a number",
        ),
    ],
    ids=["restored", "not restored", "one epoch", "never a number"],
)
def test_report_is_the_last_line_with_a_progress_bar(stopped, capsys, values, kwargs, said):
    stopped(values, ProgressCB(), **kwargs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == said
    assert sum(line.startswith("Stopped") for line in lines) == 1
    assert len(lines) > 1


def test_no_report_without_a_progress_bar(stopped, capsys):
    stopped([1, 2, 3], patience=1)
    assert capsys.readouterr().out == ""


def test_no_report_of_a_fit_that_ran_to_its_end_with_its_best_weights(stopped, capsys):
    stopped([3, 2, 1], ProgressCB(console=Console(file=StringIO())), patience=1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("restore_best", "said"), [(True, True), (False, False)])
def test_report_that_weights_of_an_earlier_epoch_are_back(stopped, capsys, restore_best, said):
    console = Console(file=StringIO())
    stopped([3, 1.25, 2], ProgressCB(console=console), patience=5, restore_best=restore_best)
    expected = "The best score was 1.25 in epoch 1; its weights are restored\n"
    assert capsys.readouterr().out == (expected if said else "")


def test_report_is_made_once(stopped, capsys):
    learn, _, _ = stopped([1, 2, 3], ProgressCB(console=Console(file=StringIO())), patience=1)
    capsys.readouterr()
    learn.validate()
    learn.predict(learn.dls.valid)
    assert capsys.readouterr().out == ""


def test_fit_that_fails_before_it_begins_reports_nothing(stopped, at, capsys):
    learn, _, _ = stopped([1, 2, 3], ProgressCB(console=Console(file=StringIO())), patience=1)
    capsys.readouterr()
    with pytest.raises(ZeroDivisionError):
        learn.fit(cbs=[at("before_fit", lambda learn: 1 / 0)])
    assert capsys.readouterr().out == ""


def test_repr_names_what_is_watched():
    assert repr(EarlyStoppingCB("eval/loss", 5)) == "EarlyStoppingCB('eval/loss', patience=5)"


# Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cb", "message"),
    [
        (
            lambda: EarlyStoppingCB("eval/scor", mode="max"),
            r"'eval/scor'.*'eval/score'",
        ),
        (
            lambda: EarlyStoppingCB("xyz", mode="max"),
            r"'xyz'.*score, loss, train/",
        ),
        (
            lambda: EarlyStoppingCB("score"),
            r"monitor='score'.*mode='max'.*mode='min'",
        ),
    ],
    ids=["misspelt", "unknown", "without a mode"],
)
def test_what_cannot_be_watched_is_refused_before_training(make_learner, cb, message):
    learn = make_learner(cbs=[MetricsCB(score=Scripted([1])), cb()])  # code of the user's might log more
    before = tensors_of(learn.model)
    with pytest.raises(ValueError, match=message):
        learn.fit()
    assert learn.n_steps == 0
    assert same(tensors_of(learn.model), before)
    learn.validate()  # where nothing is watched


def test_value_of_validation_is_refused_in_a_fit_without_it(make_learner):
    learn = make_learner(cbs=[MetricsCB(), EarlyStoppingCB("eval/loss")])
    with pytest.raises(ValueError, match="monitor='eval/loss'"):
        learn.fit(valid=False)


def test_without_metrics_there_is_nothing_to_watch(make_learner):
    with pytest.raises(ValueError, match=r"monitor='loss'.*MetricsCB"):
        make_learner(cbs=[EarlyStoppingCB()]).fit()


@pytest.mark.parametrize(
    ("stopping", "monitor", "is_warned"),
    [
        ({"min_delta": 2}, "loss", True),
        ({"min_delta": 2}, "eval/loss", True),
        ({"min_delta": 2}, "train/loss", False),
        ({"min_delta": 2}, None, False),
        ({}, "loss", False),
        ({"min_delta": 2, "restore_best": False}, "loss", False),
    ],
)
def test_a_best_epoch_that_a_checkpoint_may_choose_otherwise_is_warned_of(
    make_learner, tmp_path, stopping, monitor, is_warned
):
    cbs = [MetricsCB(), EarlyStoppingCB("eval/loss", **stopping), CheckpointCB(tmp_path, monitor=monitor)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make_learner(cbs=cbs).fit()
    found = [str(one.message) for one in said if "min_delta=2" in str(one.message)]
    assert len(found) == is_warned
    assert all("best.pt" in text and "restore_best=False" in text for text in found)


@pytest.mark.parametrize("patience", [0, -1, 1.0, "3", None])
def test_patience_is_a_number_of_epochs(patience):
    with pytest.raises(ValueError, match=rf"^patience={patience!r}.*whole number.*>= 1"):
        EarlyStoppingCB(patience=patience)


@pytest.mark.parametrize("min_delta", [-0.1, -1, math.nan])
def test_min_delta_is_not_negative(min_delta):
    with pytest.raises(ValueError, match=rf"^min_delta={min_delta!r}.*>= 0"):
        EarlyStoppingCB(min_delta=min_delta)


def test_mode_is_min_or_max():
    with pytest.raises(ValueError, match=r"^mode='up'.*'min'.*'max'"):
        EarlyStoppingCB(mode="up")
