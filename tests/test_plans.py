"""A fit takes the steps that it was planned with, or says that it does not."""

import warnings
from functools import partial

import pytest
import torch
from toolbox import NoLength, at, make_learner, samples
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, Dataset

from minilearn import (
    SWACB,
    BatchSchedulerCB,
    BatchSizeCB,
    DatasetLoader,
    EpochSchedulerCB,
    GradientAccumulationCB,
    Learner,
    MetricsCB,
    ScheduleCB,
    TensorLoader,
    schedules,
)

# More steps than planned --------------------------------------------------------------------------


class Growing:
    """A loader that says that it has `says` batches, and gives others."""

    def __init__(self, says, gives):
        self.says, self.loader = says, TensorLoader(*samples(4 * gives), bs=4)

    def __len__(self):
        return self.says

    def __iter__(self):
        return iter(self.loader)


def longer(learn):
    learn.dl = TensorLoader(*samples(20), bs=4)


def longer_later(learn):
    if learn.epoch == 1:
        longer(learn)


def fewer_planned(learn, steps):
    return [2] * len(steps)


LONGER = at("before_train", longer)
ONE_CYCLE = partial(BatchSchedulerCB, OneCycleLR)
MORE = {
    "cosine by ScheduleCB": lambda: [LONGER, ScheduleCB("lr", schedules.cosine)],
    "a partial by ScheduleCB": lambda: [
        LONGER,
        ScheduleCB("lr", partial(schedules.one_cycle, pct_start=0.5)),
    ],
    "momentum": lambda: [LONGER, ScheduleCB("momentum", schedules.cosine)],
    "torch's cosine": lambda: [LONGER, BatchSchedulerCB(CosineAnnealingLR)],
    "a line": lambda: [LONGER, BatchSchedulerCB(LinearLR)],
    "steps of its own": lambda: [LONGER, BatchSchedulerCB(StepLR, step_size=2)],
    "a function of the step": lambda: [LONGER, ScheduleCB("lr", lambda step: 1 / (1 + step))],
    "in the last epoch only": lambda: [at("before_train", longer_later), ONE_CYCLE()],
    "with accumulation": lambda: [at("before_train", longer, -80), GradientAccumulationCB(2), ONE_CYCLE()],
    "another batch size, then replaced": lambda: [LONGER, BatchSizeCB({1: 2}), ONE_CYCLE()],
    "the part before SWA": lambda: [LONGER, SWACB(1, swa_lr=0.1), ONE_CYCLE()],
}


def momentum_learner(cbs, **kwargs):
    return make_learner(n_batches=2, cbs=cbs, opt_func=partial(SGD, momentum=0.9), **kwargs)


@pytest.mark.parametrize("name", MORE)
def test_more_steps_than_planned_are_warned_of_once(name):
    learn = momentum_learner(MORE[name]())
    with pytest.warns(UserWarning, match=r"more steps than planned.*plan_steps") as heard:
        learn.fit(2)
    assert len(heard) == 1
    assert str(learn.total_steps + 1 if "SWA" not in name else 3) in str(heard[0].message)


def test_more_steps_are_warned_of_where_the_loader_s_length_is_wrong():
    learn = momentum_learner([ONE_CYCLE()], dls={"train": Growing(2, 5)})
    with pytest.warns(UserWarning, match=r"batches|number") as heard:
        learn.fit(1)
    said = " ".join(str(w.message) for w in heard)
    assert "now number 3" in said
    assert "says that it has 2 batches, and gave 5" in said


def test_a_callback_that_plans_too_few_steps_is_noticed():
    cb = at("before_fit", lambda learn: None)
    cb.plan_steps = fewer_planned
    with pytest.warns(UserWarning, match="now number 3"):
        make_learner(cbs=[cb, ONE_CYCLE()]).fit(1)


@pytest.mark.parametrize("gives", [1, 4])
def test_a_short_or_long_epoch_is_warned_of_without_a_schedule_too(gives):
    with pytest.warns(UserWarning, match=f"says that it has 2 batches, and gave {gives}"):
        make_learner(dls={"train": Growing(2, gives)}).fit()
    learn = make_learner()
    with pytest.warns(UserWarning, match=f"says that it has 2 batches, and gave {gives}"):
        learn.validate(Growing(2, gives))
    with pytest.warns(UserWarning, match=f"says that it has 2 batches, and gave {gives}"):
        learn.predict(Growing(2, gives))


@pytest.mark.parametrize(
    "cbs",
    [
        [ONE_CYCLE()],
        [ScheduleCB("lr", schedules.cosine)],
        [SWACB(1, swa_lr=0.1), ONE_CYCLE()],
        [GradientAccumulationCB(2), ONE_CYCLE()],
        [LONGER, EpochSchedulerCB(StepLR, step_size=1)],
        [LONGER, ScheduleCB("lr", {1: 0.01})],
    ],
)
def test_nothing_is_said_of_a_plan_that_holds_or_is_not_needed(cbs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_learner(cbs=cbs).fit(2)


def test_nothing_is_said_where_nothing_could_be_planned():
    learn = make_learner(cbs=[ScheduleCB("lr", lambda step: 0.5)])
    learn.dls = {"train": NoLength(learn.dls.train)}
    learn.fit(2)


# What was planned is not to be set ----------------------------------------------------------------

PLANNED = {
    "n_epochs": (4, r"fit\(n_epochs\)"),
    "total_steps": (4, "plan_steps"),
    "epoch_steps": ([4], "plan_steps"),
    "schedule_epochs": (1, "plan_schedules"),
    "phases": (("train",), "valid="),
    "phase": ("eval", "objects"),
    "loss_weight": (2.0, "learn.loss"),
    "rank": (1, "objects"),
    "n_processes": (2, "objects"),
    "is_paused": (True, r"learn.pause\(\)"),
    "is_fitting": (False, "objects"),
    "n_fits": (0, "objects"),
    "saved_to": ("x", "objects"),
}


@pytest.mark.parametrize("name", PLANNED)
def test_a_field_that_follows_from_others_is_not_to_be_set(name):
    value, advice = PLANNED[name]
    learn = make_learner(cbs=at("before_fit", lambda learn: setattr(learn, name, value)))
    with pytest.raises(TypeError, match=rf"learn\.{name} = .*{advice}"):
        learn.fit()
    with pytest.raises(TypeError, match=rf"learn\.{name} = .*{advice}"):
        setattr(make_learner(), name, value)


# ReduceLROnPlateau made by a function -------------------------------------------------------------


class OwnPlateau(LRScheduler):
    """Halve the lr whenever the value is not the lowest so far."""

    def __init__(self, optimizer):
        self.best, self.share = float("inf"), 1.0
        super().__init__(optimizer)

    def step(self, value=None):
        if value is not None:
            self.share *= 1.0 if value < self.best else 0.5
            self.best = min(self.best, value)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * self.share


class NeedyPlateau(OwnPlateau):
    def _initial_step(self):
        pass

    def step(self, value):
        super().step(value)


class Subclass(ReduceLROnPlateau):
    pass


OPTIONS = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs", "factor": 0.5}


def made(opt):
    return ReduceLROnPlateau(opt, **OPTIONS)


class Factory:
    def __call__(self, opt):
        return made(opt)

    def method(self, opt):
        return made(opt)


MADE = {
    "a lambda": lambda opt: made(opt),
    "a function": made,
    "an object": Factory(),
    "a method": Factory().method,
    "a partial with an argument by place": partial(lambda factor, opt: made(opt), 0.5),
    "a subclass": partial(Subclass, **OPTIONS),
    "a function that makes a subclass": lambda opt: Subclass(opt, **OPTIONS),
    "a scheduler of the user's that takes a value": NeedyPlateau,
    "and made by a function": lambda opt: NeedyPlateau(opt),
}


def lrs_of(cb, n_epochs=4):
    lrs = []
    note = at("before_train", lambda learn: lrs.append(learn.opt.param_groups[0]["lr"]))
    make_learner(cbs=[cb, MetricsCB(), note], opt_func=SGD).fit(n_epochs)
    return lrs


@pytest.mark.parametrize("name", MADE)
def test_plateau_follows_the_loss_whoever_makes_it(name):
    lrs = lrs_of(EpochSchedulerCB(MADE[name], monitor="train/loss"))
    never = "user's" in name or name.startswith("and")  # the loss falls
    assert lrs == ([0.1] * 4 if never else [0.1, 0.1, 0.05, 0.025])


@pytest.mark.parametrize(
    "name", [name for name in MADE if name != "a scheduler of the user's that takes a value"]
)
def test_plateau_on_batches_is_refused_whoever_makes_it(name):
    with pytest.raises(TypeError, match="EpochSchedulerCB"):
        make_learner(cbs=[BatchSchedulerCB(MADE[name]), MetricsCB()]).fit()


@pytest.mark.parametrize(
    "scheduler_f",
    [
        lambda opt: SequentialLR(opt, [ConstantLR(opt), made(opt)], milestones=[1]),
        lambda opt: ChainedScheduler([ConstantLR(opt), NeedyPlateau(opt)]),
        lambda opt: ChainedScheduler([ConstantLR(opt), ChainedScheduler([NeedyPlateau(opt)])]),
    ],
)
@pytest.mark.parametrize("unit", [EpochSchedulerCB, BatchSchedulerCB])
def test_plateau_inside_another_scheduler_is_refused_before_training(scheduler_f, unit):
    learn = make_learner(cbs=[unit(scheduler_f), MetricsCB()], opt_func=SGD)
    with pytest.raises((TypeError, ValueError, AttributeError), match=r"Plateau|_last_lr"):
        learn.fit()
    assert learn.n_steps == 0


def test_what_a_made_plateau_watches_is_checked_before_training():
    learn = make_learner(cbs=[EpochSchedulerCB(made, monitor="eval/los"), MetricsCB()], opt_func=SGD)
    with pytest.raises(ValueError, match=r"monitor='eval/los'.*eval/loss"):
        learn.fit()
    assert (learn.n_steps, learn.opt.param_groups[0]["lr"]) == (0, 0.1)


def test_a_monitor_for_a_function_that_makes_no_plateau_is_refused_before_training():
    cb = EpochSchedulerCB(lambda opt: StepLR(opt, 1), monitor="loss")
    learn = make_learner(cbs=[cb, MetricsCB()])
    with pytest.raises(ValueError, match=r"monitor='loss'.*ReduceLROnPlateau"):
        learn.fit()
    assert learn.n_steps == 0


def test_preview_of_a_made_plateau_takes_values():
    cb = EpochSchedulerCB(made)
    learn = make_learner(cbs=[cb, MetricsCB()], opt_func=SGD)
    assert cb.preview(learn, 3, values=[1.0, 1.0, 1.0])[::3] == [0.1, 0.1, 0.05]
    with pytest.raises(ValueError, match="values"):
        cb.preview(learn, 3)


# A StopIteration that escaped ---------------------------------------------------------------------


class Data(Dataset):
    """Samples, of which one cannot be read because an iterator in it has run out."""

    def __init__(self, odd=5):
        self.odd = odd
        self.x, self.y = samples(12)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i == self.odd:
            next(iter(()))
        return self.x[i], self.y[i]


def run_out(*args, **kwargs):
    next(iter(()))


class OutNet(nn.Linear):
    def forward(self, x):
        return run_out() if self.training else super().forward(x)


class OutMetric:
    reset = compute = update = run_out


class OutSGD(SGD):
    def step(self, closure=None):
        run_out()


def collate(rows):
    return run_out() if len(rows) == 4 else torch.utils.data.default_collate(rows)


def with_train(loader):
    return make_learner(dls={"train": loader})


STRAY = {
    "a sample": lambda: with_train(DatasetLoader(Data(), bs=4)),
    "the first sample": lambda: with_train(DatasetLoader(Data(0), bs=4)),
    "a sample in a worker": lambda: with_train(DatasetLoader(Data(), bs=4, num_workers=1)),
    "collate_fn": lambda: with_train(DatasetLoader(Data(-1), bs=4, collate_fn=collate)),
    "a loader that hides its length": lambda: with_train(NoLength(DatasetLoader(Data(), bs=4))),
    "validation": lambda: make_learner(dls={"train": [samples(4)], "eval": DatasetLoader(Data(), bs=4)}),
    "the first sample of torch's loader": lambda: with_train(DataLoader(Data(0), 4)),
    "the model": lambda: make_learner(model=OutNet(3, 2)),
    "the loss": lambda: make_learner(loss_func=run_out),
    "the optimizer": lambda: make_learner(opt_func=OutSGD),
    "unpack": lambda: make_learner(unpack=run_out),
    "a metric": lambda: make_learner(cbs=MetricsCB(m=OutMetric())),
    "a schedule": lambda: make_learner(cbs=ScheduleCB("lr", lambda step: run_out())),
    "before_fit": lambda: make_learner(cbs=at("before_fit", run_out)),
    "after_batch": lambda: make_learner(cbs=at("after_batch", run_out)),
    "at_rest": lambda: make_learner(cbs=at("at_rest", run_out)),
    "cleanup_epoch": lambda: make_learner(cbs=at("cleanup_epoch", run_out)),
}


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_stop_iteration_is_an_error(name):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(map(Learner.fit, [STRAY[name]()]))  # as an end, it would leave this list empty


def test_a_stray_stop_iteration_in_torchs_loader_is_warned_of():
    with pytest.warns(UserWarning, match="says that it has 3 batches, and gave 1"):
        with_train(DataLoader(Data(), 4)).fit()
    with pytest.warns(UserWarning, match="says that it has 3 batches, and gave 1"):
        make_learner().predict(DataLoader(Data(), 4))
