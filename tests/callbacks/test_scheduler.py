import inspect
from functools import partial

import pytest
import torch
from toolbox import NoLength, chained, sequential
from toolbox import at as at_event
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torcheval.metrics import MulticlassAccuracy

from minilearn import (
    BaseSchedulerCB,
    BatchSchedulerCB,
    Callback,
    CancelStepException,
    EpochSchedulerCB,
    MetricsCB,
    RecorderCB,
    SingleBatchCB,
    optim,
)
from minilearn.schedules import cosine

N_EPOCHS, PER_EPOCH = 4, 3
TOTAL = {BatchSchedulerCB: 12, EpochSchedulerCB: 4}
UNITS = list(TOTAL)


def at_most(n_steps):
    return {"total_iters": n_steps}


# name -> (what the callback is given, arguments by keyword, those it fills in when a fit has n steps)
CASES = {
    "LambdaLR": (LambdaLR, {"lr_lambda": lambda i: 1 / (i + 1)}, None),
    "MultiplicativeLR": (lr_scheduler.MultiplicativeLR, {"lr_lambda": lambda i: 0.9}, None),
    "StepLR": (StepLR, {"step_size": 2, "gamma": 0.5}, None),
    "MultiStepLR": (MultiStepLR, {"milestones": [1, 3]}, None),
    "ConstantLR": (ConstantLR, {"factor": 0.5}, at_most),
    "LinearLR": (LinearLR, {}, at_most),
    "ExponentialLR": (ExponentialLR, {"gamma": 0.8}, None),
    "SequentialLR": (sequential, {}, None),
    "PolynomialLR": (PolynomialLR, {"power": 2}, at_most),
    "CosineAnnealingLR": (CosineAnnealingLR, {"eta_min": 0.01}, lambda n: {"T_max": n}),
    "ChainedScheduler": (chained, {}, None),
    "ReduceLROnPlateau": (ReduceLROnPlateau, {"mode": "max", "patience": 0, "factor": 0.5}, None),
    "CyclicLR": (lr_scheduler.CyclicLR, {"base_lr": 0.01, "step_size_up": 2}, lambda n: {"max_lr": 0.1}),
    "CosineAnnealingWarmRestarts": (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 3}, None),
    "OneCycleLR": (OneCycleLR, {}, lambda n: {"max_lr": 0.1, "total_steps": n}),
}


def torchs_own_loop(make_sched, unit, values=None):
    """Return lr and beta1 of each step of a loop written by hand."""
    opt = AdamW([torch.zeros(1, requires_grad=True)], lr=0.1)
    sched = make_sched(opt)
    used = []
    for epoch in range(N_EPOCHS):
        for _ in range(PER_EPOCH):
            used.append((opt.param_groups[0]["lr"], opt.param_groups[0]["betas"][0]))
            opt.step()
            if unit is BatchSchedulerCB:
                sched.step()
        if unit is EpochSchedulerCB:
            sched.step(values[epoch]) if values else sched.step()
    return used


def recorded(learn, cb, n_epochs=N_EPOCHS, **kwargs):
    """Fit and return the lr that each step used."""
    recorder = RecorderCB(lr="pg.lr")
    learn.fit(n_epochs, cbs=[cb, recorder], **kwargs)
    return recorder.recs["lr"]


def fitted_sched(learn, at, cb, n_epochs=N_EPOCHS):
    """Return the scheduler as it was when the fit had begun."""
    found = []
    learn.fit(n_epochs, cbs=[cb, at("before_epoch", lambda learn: found.append(cb.sched))])
    return found[0]


def hyperparameters(learn):
    return [{k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups]


def two_groups(model):
    return [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.02}]


# Every scheduler of torch ---------------------------------------------------------------------------


def test_every_scheduler_of_torch_has_a_case():
    of_torch = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert of_torch - {"LRScheduler"} <= set(CASES)


@pytest.mark.parametrize("unit", UNITS, ids=["batch", "epoch"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "ReduceLROnPlateau"])
def test_preview_is_what_is_recorded_and_what_torchs_own_loop_uses(make_learner, name, unit):
    scheduler_f, kwargs, filled = CASES[name]
    by_hand = kwargs | (filled(TOTAL[unit]) if filled else {})
    expected = torchs_own_loop(lambda opt: scheduler_f(opt, **by_hand), unit)
    cb, recorder = unit(scheduler_f, **kwargs), RecorderCB()
    learn = make_learner(n_batches=PER_EPOCH, cbs=[cb, recorder])
    assert cb.preview(learn, N_EPOCHS) == [lr for lr, _ in expected]
    learn.fit(N_EPOCHS)
    assert list(zip(recorder.recs["lr"], recorder.recs["mom"], strict=True)) == expected
    assert {lr for lr, _ in expected} != {0.1}


def test_plateau_follows_the_monitored_value(make_learner):
    _, kwargs, _ = CASES["ReduceLROnPlateau"]
    cb = EpochSchedulerCB(ReduceLROnPlateau, **kwargs)
    learn = make_learner(cbs=[MetricsCB()], lr=0.1)
    lrs = recorded(learn, cb)
    losses = [row["loss"] for row in learn.history if row["train"] == "eval"]
    assert losses == sorted(losses, reverse=True)  # so that each epoch but the first is worse, to mode="max"
    assert lrs == [0.1] * 6 + [0.05] * 3 + [0.025] * 3
    assert cb.preview(learn, N_EPOCHS, values=losses) == lrs
    assert lrs == [
        lr
        for lr, _ in torchs_own_loop(lambda opt: ReduceLROnPlateau(opt, **kwargs), EpochSchedulerCB, losses)
    ]


@pytest.mark.parametrize(
    ("monitor", "losses_of"), [("train/loss", "train"), ("eval/loss", "eval"), (None, "eval")]
)
def test_plateau_reads_the_named_value(make_learner, monitor, losses_of):
    class Spy(ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)

    seen = []
    learn = make_learner(cbs=[MetricsCB(), EpochSchedulerCB(Spy, monitor=monitor)])
    learn.fit(3)
    assert seen == [row["loss"] for row in learn.history if row["train"] == losses_of][:2]


# What is filled in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=["batch", "epoch"])
@pytest.mark.parametrize(
    ("scheduler_f", "attribute"),
    [
        (OneCycleLR, "total_steps"),
        (CosineAnnealingLR, "T_max"),
        (LinearLR, "total_iters"),
        (PolynomialLR, "total_iters"),
        (ConstantLR, "total_iters"),
    ],
)
def test_length_of_the_fit_is_filled_in_in_the_callbacks_unit(make_learner, at, unit, scheduler_f, attribute):
    sched = fitted_sched(make_learner(n_batches=PER_EPOCH), at, unit(scheduler_f))
    assert getattr(sched, attribute) == TOTAL[unit]


@pytest.mark.parametrize("unit", UNITS, ids=["batch", "epoch"])
@pytest.mark.parametrize("given", ["epochs", "steps_per_epoch"])
def test_one_cycle_takes_epochs_and_steps_per_epoch_too(make_learner, at, unit, given):
    per_epoch = PER_EPOCH if unit is BatchSchedulerCB else 1
    kwargs = {given: {"epochs": N_EPOCHS, "steps_per_epoch": per_epoch}[given]}
    sched = fitted_sched(make_learner(n_batches=PER_EPOCH), at, unit(OneCycleLR, **kwargs))
    assert sched.total_steps == TOTAL[unit]


def test_max_lr_is_the_lr_of_each_group(make_learner, at):
    learn = make_learner(param_groups=two_groups)
    max_lrs = []
    learn.fit(
        cbs=[
            BatchSchedulerCB(OneCycleLR),
            at(
                "before_epoch",
                lambda learn: max_lrs.extend(group["max_lr"] for group in learn.opt.param_groups),
            ),
        ]
    )
    assert max_lrs == [0.1, 0.02]
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.02]


def test_preview_of_each_group(make_learner):
    learn = make_learner(param_groups=two_groups)
    curves = [BatchSchedulerCB(OneCycleLR).preview(learn, 4, group=i) for i in (0, 1)]
    assert curves[1] == pytest.approx([lr / 5 for lr in curves[0]])
    of_all = BatchSchedulerCB(OneCycleLR).preview(learn, 4)
    assert of_all == [list(of_step) for of_step in zip(*curves, strict=True)]


def test_preview_of_groups_with_one_lr_has_one_number_a_step(make_learner):
    def alike(model):
        return [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]

    learn = make_learner(param_groups=alike)
    lrs = BatchSchedulerCB(OneCycleLR).preview(learn, 4)
    assert lrs == BatchSchedulerCB(OneCycleLR).preview(learn, 4, group=1)
    assert {type(lr) for lr in lrs} == {float}


@pytest.mark.parametrize("group", [-1, 2, True, "0"])
def test_preview_of_a_group_that_is_not_there_is_an_error(make_learner, group):
    with pytest.raises(ValueError, match=r"group=.*0 to 1"):
        BatchSchedulerCB(OneCycleLR).preview(make_learner(param_groups=two_groups), 4, group=group)


def test_values_that_the_user_gives_are_kept(make_learner, at):
    cb = BatchSchedulerCB(OneCycleLR, max_lr=0.5, total_steps=12, div_factor=10)
    lrs = recorded(make_learner(), cb)
    assert lrs[0] == pytest.approx(0.05)
    assert max(lrs) == pytest.approx(0.5, rel=0.05)
    assert fitted_sched(make_learner(), at, BatchSchedulerCB(CosineAnnealingLR, T_max=5)).T_max == 5


def test_function_gets_what_it_names(make_learner):
    seen = []

    def warm_up(opt, total_steps, max_lr, factor, T_max=7):  # noqa: N803  torch's name
        seen.append((total_steps, max_lr, factor, T_max))
        return LinearLR(opt, factor, 1.0, total_steps)

    recorded(make_learner(), BatchSchedulerCB(warm_up, factor=0.5))
    recorded(make_learner(), EpochSchedulerCB(warm_up, factor=0.5, T_max=9))
    assert seen == [(12, [0.1], 0.5, 12), (4, [0.1], 0.5, 9)]


def test_partial_is_filled_in_as_its_class_is(make_learner, at):
    cb = BatchSchedulerCB(partial(OneCycleLR, div_factor=10))
    assert recorded(make_learner(), cb)[0] == pytest.approx(0.01)
    with pytest.raises(ValueError, match=r"total_steps=4.*12"):
        make_learner(cbs=[BatchSchedulerCB(partial(OneCycleLR, total_steps=4))]).fit(4)


# One cycle ------------------------------------------------------------------------------------------


def test_one_cycle_ends_at_its_lowest_lr(make_learner):
    lrs = recorded(make_learner(), BatchSchedulerCB(OneCycleLR))
    assert len(lrs) == 12
    assert lrs[0] == pytest.approx(0.1 / 25)
    assert lrs[-1] == min(lrs) == pytest.approx(0.1 / 25 / 1e4)


def test_no_scheduler_step_is_taken_after_the_last(make_learner):
    taken = []

    class Counted(OneCycleLR):
        def step(self, epoch=None):
            taken.append(self._step_count)
            super().step(epoch)

    for unit in UNITS:
        taken.clear()
        make_learner(cbs=[unit(Counted)]).fit(N_EPOCHS)
        assert len(taken) == TOTAL[unit]  # the first is torch's own, when it is made


def test_one_cycle_turns_no_momentum_on(make_learner, at):
    moms = []
    look = at("after_step", lambda learn: moms.append(learn.opt.param_groups[0]["momentum"]))
    make_learner(opt_func=SGD, cbs=[BatchSchedulerCB(OneCycleLR), look]).fit()
    assert moms == [0, 0, 0]


@pytest.mark.parametrize(
    ("opt_func", "key", "value"),
    [
        (AdamW, "betas", (0.9, 0.999)),
        (partial(SGD, momentum=0.9), "momentum", 0.9),
    ],
    ids=["betas", "momentum"],
)
def test_one_cycle_cycles_the_momentum_there_is(make_learner, opt_func, key, value):
    recorder = RecorderCB()
    learn = make_learner(n_batches=10, opt_func=opt_func, cbs=[recorder])
    learn.fit(cbs=[BatchSchedulerCB(OneCycleLR)])
    moms = recorder.recs["mom"]
    assert moms[0] == pytest.approx(0.95)
    assert min(moms) == moms[2] == pytest.approx(0.85)
    assert moms[-1] == pytest.approx(0.95)
    assert learn.opt.param_groups[0][key] == value


class GroupsOwn(SGD):
    """SGD whose groups have other keys than its defaults."""

    own = None

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for name in ("momentum", "dampening", "nesterov"):
            self.defaults.pop(name)
        self.defaults.update(self.own)
        for group in self.param_groups:
            group.update({"momentum": 0.9} | self.own)


@pytest.mark.parametrize(
    "own",
    [{}, {"betas": None}, {"betas": 0.9}, {"betas": ()}, {"betas": (None, 0.99)}, {"momentum": None}],
    ids=str,
)
@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_momentum_that_torch_would_not_take_is_left_alone(make_learner, name, own):
    opt_func = type("Own", (GroupsOwn,), {"own": own})
    more = {} if name == "OneCycleLR" else {"base_lr": 1e-3}
    learn = make_learner(opt_func=opt_func, cbs=[BatchSchedulerCB(getattr(lr_scheduler, name), **more)])
    expected, seen = {"momentum": 0.9} | own, []

    def look(learn):
        seen.append({key: learn.opt.param_groups[0][key] for key in expected})

    learn.add_cb(at_event("after_step", look))
    if "momentum" in own:
        learn.opt_func = type("Plain", (opt_func,), {"step": lambda self, closure=None: None})
    learn.fit()
    assert seen == [expected] * 3


# After the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR", "LambdaLR", "CosineAnnealingLR"])
@pytest.mark.parametrize("fail", [False, True], ids=["to the end", "with an error"])
def test_hyperparameters_are_as_before_the_fit(make_learner, at, name, fail):
    learn = make_learner(param_groups=two_groups)
    learn.fit()
    before = hyperparameters(learn)

    def step(learn):
        if fail and learn.n_steps == 5:
            raise RuntimeError("on purpose")

    scheduler_f, kwargs, _ = CASES[name]
    try:
        learn.fit(N_EPOCHS, cbs=[BatchSchedulerCB(scheduler_f, **kwargs), at("before_step", step)])
    except RuntimeError:
        assert fail
    assert hyperparameters(learn) == before


def test_hyperparameters_are_as_before_when_making_the_scheduler_fails(make_learner):
    learn = make_learner()
    learn.fit()
    before = hyperparameters(learn)

    def broken(opt):
        OneCycleLR(opt, 0.5, 10)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        learn.fit(cbs=[BatchSchedulerCB(broken)])
    assert hyperparameters(learn) == before


def test_lr_that_is_a_tensor_is_put_back_in_place(make_learner):
    learn = make_learner(lr=torch.tensor(0.1), opt_func=partial(AdamW, foreach=False))
    learn.fit()
    lr = learn.opt.param_groups[0]["lr"]
    lrs = recorded(learn, BatchSchedulerCB(OneCycleLR))
    assert lrs[0] == pytest.approx(0.1 / 25)
    assert learn.opt.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.1)


@pytest.mark.parametrize("first", ["OneCycleLR", "CyclicLR", "CosineAnnealingLR"])
@pytest.mark.parametrize(("lr", "expected"), [(0.02, 0.02), (None, 0.1)])
def test_second_fit_gets_exactly_the_lr_that_was_asked(make_learner, first, lr, expected):
    scheduler_f, kwargs, _ = CASES[first]
    learn = make_learner()
    learn.fit(2, cbs=[BatchSchedulerCB(scheduler_f, **kwargs)])
    lrs = recorded(learn, BatchSchedulerCB(LambdaLR, lr_lambda=lambda i: 1.0), 1, lr=lr)
    assert lrs == [expected] * 3
    assert recorded(learn, BatchSchedulerCB(OneCycleLR), lr=lr)[0] == pytest.approx(expected / 25)


def test_schedule_starts_from_the_lr_there_is_not_from_a_stale_initial_lr(make_learner):
    learn = make_learner()
    learn.fit()
    StepLR(learn.opt, step_size=1)  # the user's own, which leaves initial_lr = 0.1
    learn.opt.param_groups[0]["lr"] = 0.3
    assert recorded(learn, BatchSchedulerCB(LambdaLR, lr_lambda=lambda i: 1.0), 1) == [0.3] * 3


def test_same_callback_runs_its_whole_course_in_each_fit(make_learner):
    cb = BatchSchedulerCB(OneCycleLR)
    learn = make_learner()
    assert recorded(learn, cb, 1) == recorded(learn, cb, 1)


def test_fit_without_training_makes_no_schedule(make_learner):
    learn = make_learner(cbs=MetricsCB())
    for cb in (BatchSchedulerCB(OneCycleLR), EpochSchedulerCB(LinearLR)):
        learn.fit(2, train=False, cbs=cb)
        assert cb.sched is None


# Refused before the first batch ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "scheduler_f", "kwargs", "message"),
    [
        (
            0,
            OneCycleLR,
            {"total_steps": 4},
            r"total_steps=4.*12",
        ),
        (0, OneCycleLR, {"epochs": 3}, r"epochs=3.*4"),
        (0, OneCycleLR, {"steps_per_epoch": 5, "epochs": 4}, r"steps_per_epoch=5.*3"),
        (0, CosineAnnealingLR, {"T_max": 4}, r"T_max=4.*epochs.*12.*T_max.*12"),
        (0, CosineAnnealingLR, {"T_max": 20}, r"T_max=20.*12"),
        (0, LinearLR, {"total_iters": 4}, r"total_iters=4.*epochs.*12"),
        (0, StepLR, {"step_size": 12}, r"step_size=12.*12.*12"),
        (0, MultiStepLR, {"milestones": [2, 30]}, r"milestones=\[2, 30\].*30"),
        (
            1,
            OneCycleLR,
            {"total_steps": 12},
            r"total_steps=12.*4",
        ),
        (1, CosineAnnealingLR, {"T_max": 12}, r"T_max=12.*4"),
        (1, PolynomialLR, {"total_iters": 12}, r"total_iters=12.*4"),
        (1, MultiStepLR, {"milestones": [1, 4]}, r"milestones=\[1, 4\].*4"),
        (
            0,
            StepLR,
            {},
            r"BatchSchedulerCB\(StepLR\).*step_size=",
        ),
        (0, lr_scheduler.CyclicLR, {}, "base_lr"),
    ],
)
def test_what_contradicts_the_fit_is_refused(make_learner, at, unit, scheduler_f, kwargs, message):
    batches = []
    cb = UNITS[unit](scheduler_f, **kwargs)
    learn = make_learner(n_batches=PER_EPOCH, cbs=[cb, at("before_batch", batches.append)])
    with pytest.raises(ValueError, match=message):
        learn.fit(N_EPOCHS)
    assert batches == []
    with pytest.raises(ValueError, match=message):
        cb.preview(learn, N_EPOCHS)


@pytest.mark.parametrize("unit", UNITS, ids=["batch", "epoch"])
def test_scheduler_instance_is_refused(unit):
    sched = StepLR(SGD([torch.zeros(1, requires_grad=True)], lr=0.1), step_size=1)
    with pytest.raises(TypeError, match=r"StepLR.*CB\(StepLR, ...\)"):
        unit(sched)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"BatchSchedulerCB\(scheduler_f='OneCycleLR'\).*class.*torch.optim"):
        BatchSchedulerCB("OneCycleLR")


def test_function_that_gives_no_scheduler_is_refused(make_learner):
    with pytest.raises(TypeError, match=r"function.*0.5.*scheduler.*torch.optim"):
        make_learner(cbs=[BatchSchedulerCB(lambda opt: 0.5)]).fit()


def test_plateau_on_batches_is_refused():
    with pytest.raises(TypeError, match=r"EpochSchedulerCB"):
        BatchSchedulerCB(ReduceLROnPlateau)


def test_monitor_of_another_scheduler_is_refused():
    with pytest.raises(ValueError, match=r"\(monitor='loss'\).*ReduceLROnPlateau"):
        EpochSchedulerCB(StepLR, monitor="loss", step_size=1)


def test_monitored_name_is_checked_before_training(make_learner, at):
    batches = []
    cb = EpochSchedulerCB(ReduceLROnPlateau, monitor="eval/lss")
    learn = make_learner(cbs=[MetricsCB(), cb, at("before_batch", batches.append)])
    with pytest.raises(ValueError, match=r"monitor='eval/lss'.*'eval/loss'"):
        learn.fit()
    assert batches == []


def test_monitor_of_validation_is_refused_in_a_fit_without_it(make_learner, at):
    batches = []
    cb = EpochSchedulerCB(ReduceLROnPlateau, monitor="eval/loss")
    learn = make_learner(cbs=[MetricsCB(), cb, at("before_batch", batches.append)])
    with pytest.raises(ValueError, match="monitor='eval/loss'"):
        learn.fit(2, valid=False)
    assert batches == []


def test_bare_optimizer_class_is_refused(make_learner, bare_sgd):
    cb = BatchSchedulerCB(OneCycleLR)
    learn = make_learner(opt_func=bare_sgd)
    with pytest.raises(TypeError, match=r"BareSGD.*torch.optim.Optimizer"):
        learn.fit(cbs=[cb])
    with pytest.raises(TypeError, match=r"BareSGD.*torch.optim.Optimizer"):
        cb.preview(learn)


def test_loader_without_length_needs_the_length_by_hand(make_learner):
    learn = make_learner()
    learn.dls.train = NoLength(learn.dls.train)
    with pytest.raises(ValueError, match=r"total_steps.*train loader.*length.*total_steps"):
        learn.fit(4, cbs=[BatchSchedulerCB(OneCycleLR)])
    with pytest.raises(ValueError, match=r"preview.*train loader.*length"):
        BatchSchedulerCB(OneCycleLR).preview(learn)
    lrs = recorded(learn, BatchSchedulerCB(OneCycleLR, total_steps=12))
    assert lrs == BatchSchedulerCB(OneCycleLR).preview(make_learner(), 4)
    assert recorded(learn, EpochSchedulerCB(CosineAnnealingLR))[0] == 0.1


# Steps ----------------------------------------------------------------------------------------------


def test_schedule_follows_optimizer_steps(make_learner, at):
    def every_other(learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException

    learn = make_learner(n_batches=8, cbs=[at("before_step", every_other)])
    lrs = recorded(learn, BatchSchedulerCB(StepLR, step_size=1, gamma=0.5), 1)
    assert lrs == [0.1, 0.05, 0.025, 0.0125]


def test_single_batch_runs_the_whole_schedule(make_learner):
    lrs = recorded(make_learner(cbs=[SingleBatchCB()]), BatchSchedulerCB(OneCycleLR))
    assert lrs == BatchSchedulerCB(OneCycleLR).preview(make_learner(n_batches=1), 4)


def test_epoch_scheduler_keeps_the_lr_within_an_epoch(make_learner):
    lrs = recorded(make_learner(), EpochSchedulerCB(StepLR, step_size=1, gamma=0.5), 3)
    assert lrs == [0.1] * 3 + [0.05] * 3 + [0.025] * 3


class AccumulateCB(Callback):
    """Gather the gradients of two batches for a step, and say so; an odd batch at the end is left over."""

    def plan_steps(self, learn, steps):
        return [n and n // 2 for n in steps]

    def before_step(self, learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException


class UnlikeCB(AccumulateCB):
    """Gather from epoch 1 on."""

    def plan_steps(self, learn, steps):
        return [*steps[:1], *super().plan_steps(learn, steps[1:])]

    def before_step(self, learn):
        if learn.epoch > 0:
            super().before_step(learn)


@pytest.mark.parametrize("n_batches", [6, 7])
def test_one_cycle_ends_at_its_lowest_lr_with_accumulated_gradients(make_learner, n_batches):
    cb = BatchSchedulerCB(OneCycleLR)
    learn = make_learner(n_batches=n_batches, cbs=[AccumulateCB(), cb])
    by_hand = [
        lr for lr, _ in torchs_own_loop(lambda opt: OneCycleLR(opt, 0.1, total_steps=12), BatchSchedulerCB)
    ]
    assert cb.preview(learn, 4) == by_hand
    learn.remove_cb(cb)
    assert recorded(learn, cb) == by_hand
    assert by_hand[-1] == min(by_hand) == pytest.approx(0.1 / 25 / 1e4)
    assert (learn.epoch_steps, learn.total_steps, learn.n_steps) == ([3] * 4, 12, 12)


@pytest.mark.parametrize("scheduler_f", [OneCycleLR, CosineAnnealingLR, LinearLR, PolynomialLR])
def test_course_is_the_planned_one_where_epochs_differ(make_learner, scheduler_f):
    _, kwargs, filled = CASES[scheduler_f.__name__]
    by_hand = [
        lr
        for lr, _ in torchs_own_loop(lambda opt: scheduler_f(opt, **kwargs, **filled(12)), BatchSchedulerCB)
    ]
    cb = BatchSchedulerCB(scheduler_f, **kwargs)
    learn = make_learner(n_batches=6, cbs=[UnlikeCB()])
    assert cb.preview(learn, 3) == by_hand
    assert recorded(learn, cb, 3) == by_hand
    assert learn.epoch_steps == [6, 3, 3]


def test_lengths_that_are_given_are_checked_against_the_plan(make_learner):
    learn = make_learner(n_batches=6, cbs=[AccumulateCB()])
    recorded(learn, BatchSchedulerCB(OneCycleLR, total_steps=12))
    recorded(learn, BatchSchedulerCB(OneCycleLR, epochs=4, steps_per_epoch=3))
    with pytest.raises(ValueError, match=r"total_steps=24.*12.*4 epochs"):
        recorded(learn, BatchSchedulerCB(OneCycleLR, total_steps=24))
    with pytest.raises(ValueError, match=r"steps_per_epoch=6.*3"):
        recorded(learn, BatchSchedulerCB(OneCycleLR, epochs=4, steps_per_epoch=6))
    with pytest.raises(ValueError, match=r"T_max=24.*12"):
        recorded(learn, BatchSchedulerCB(CosineAnnealingLR, T_max=24))


def test_epoch_scheduler_steps_once_an_epoch_whatever_is_planned(make_learner):
    cb = EpochSchedulerCB(StepLR, step_size=1, gamma=0.5)
    learn = make_learner(n_batches=4, cbs=[UnlikeCB()])
    assert cb.preview(learn, 3) == recorded(learn, cb, 3) == [0.1] * 4 + [0.05] * 2 + [0.025] * 2


def test_preview_steps_after_an_epoch_without_a_step_too(make_learner):
    class RestCB(Callback):
        def plan_steps(self, learn, steps):
            return [0 if epoch == 1 else n for epoch, n in enumerate(steps)]

        def before_step(self, learn):
            if learn.epoch == 1:
                raise CancelStepException

    cb = EpochSchedulerCB(StepLR, step_size=1, gamma=0.5)
    learn = make_learner(n_batches=2, cbs=[RestCB()])
    assert recorded(learn, cb, 3) == [0.1] * 2 + [0.025] * 2
    assert cb.preview(learn, 3) == [0.1] * 2 + [0.025] * 2


@pytest.mark.parametrize(("values", "last"), [([1.0, 2.0, 3.0], 0.05), ([3.0, 2.0, 5.0], 0.1)])
def test_preview_of_plateau_follows_the_plan(make_learner, values, last):
    cb = EpochSchedulerCB(ReduceLROnPlateau, patience=0, factor=0.5)
    learn = make_learner(n_batches=4, cbs=[UnlikeCB()])
    assert cb.preview(learn, 3, values=values) == [0.1] * 4 + [0.1] * 2 + [last] * 2


def test_epochs_that_differ_have_no_one_number_of_steps(make_learner):
    def function(opt, steps_per_epoch):
        return StepLR(opt, steps_per_epoch)

    learn = make_learner(n_batches=4, cbs=[UnlikeCB()])
    with pytest.raises(
        ValueError,
        match=r"BatchSchedulerCB\(function\).*steps_per_epoch.*epochs",
    ):
        recorded(learn, BatchSchedulerCB(function), 3)
    assert recorded(learn, BatchSchedulerCB(function), 1) == [0.1] * 4
    assert recorded(learn, EpochSchedulerCB(function), 3) == pytest.approx(
        [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    )


def test_function_may_name_all_that_is_known(make_learner):
    def function(opt, total_steps, epochs, steps_per_epoch):
        seen.append((total_steps, epochs, steps_per_epoch))
        return StepLR(opt, 1)

    seen = []
    recorded(make_learner(), BatchSchedulerCB(function))
    assert seen == [(12, 4, 3)]


# Preview --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [False, True])
def test_preview_leaves_learner_model_and_optimizer(make_learner, trained):
    learn = make_learner(param_groups=two_groups)
    if trained:
        learn.fit()
    before = dict(vars(learn))
    opt = learn.opt and (hyperparameters(learn), str(learn.opt.state_dict()), learn.opt.step)
    weight, rng = learn.model.weight.clone(), torch.get_rng_state()
    BatchSchedulerCB(OneCycleLR).preview(learn, 4)
    assert vars(learn) == before
    assert (learn.opt and (hyperparameters(learn), str(learn.opt.state_dict()), learn.opt.step)) == opt
    assert torch.equal(learn.model.weight, weight)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("unit", UNITS, ids=["batch", "epoch"])
def test_nothing_is_asked_for_beyond_the_last_step(make_learner, unit):
    asked = []
    cb = unit(LambdaLR, lr_lambda=lambda i: asked.append(i) or 1.0)
    learn = make_learner(n_batches=PER_EPOCH)
    cb.preview(learn, N_EPOCHS)
    assert asked == list(range(TOTAL[unit]))
    asked.clear()
    recorded(learn, cb)
    assert asked == list(range(TOTAL[unit]))


def test_preview_of_a_kept_optimizer_starts_from_its_lr(make_learner):
    learn = make_learner()
    learn.fit(lr=0.3)
    assert max(BatchSchedulerCB(CosineAnnealingLR).preview(learn, 4)) == 0.3


def test_preview_of_plateau_needs_a_value_for_each_epoch(make_learner):
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau.*3"):
        EpochSchedulerCB(ReduceLROnPlateau).preview(make_learner(), 3, values=[1.0, 1.0])


def test_repr_names_the_scheduler():
    assert repr(BatchSchedulerCB(OneCycleLR)) == "BatchSchedulerCB(OneCycleLR)"
    assert repr(EpochSchedulerCB(sequential)) == "EpochSchedulerCB(sequential)"


@pytest.mark.parametrize("cls", [ChainedScheduler, SequentialLR])
def test_scheduler_made_of_others_is_to_be_given_by_function(cls):
    with pytest.raises(TypeError, match=rf"{cls.__name__}.*optimizer -> scheduler"):
        BatchSchedulerCB(cls)


def test_base_class_by_itself_is_refused():
    with pytest.raises(TypeError, match=r"BaseSchedulerCB.*BatchSchedulerCB.*EpochSchedulerCB"):
        BaseSchedulerCB(OneCycleLR)


def test_partial_gives_the_arguments_it_holds(make_learner):
    cb = BatchSchedulerCB(partial(OneCycleLR, max_lr=0.3))
    assert max(cb.preview(make_learner(), n_epochs=5)) == pytest.approx(0.3, rel=0.05)


def test_arguments_without_a_name_are_refused():
    with pytest.raises(TypeError, match=r"BatchSchedulerCB\(..., 0.1\).*name"):
        BatchSchedulerCB(OneCycleLR, 0.1)


def test_plateau_of_a_metric_has_to_say_whether_more_is_better(make_learner):
    cb = EpochSchedulerCB(ReduceLROnPlateau, monitor="MulticlassAccuracy")
    metrics = MetricsCB(MulticlassAccuracy=MulticlassAccuracy())
    with pytest.raises(ValueError, match=r"mode='max'.*mode='min'"):
        make_learner(cbs=[metrics, cb]).fit(2)


@pytest.mark.parametrize("second", [BatchSchedulerCB, EpochSchedulerCB])
def test_two_schedulers_are_refused(make_learner, second):
    learn = make_learner(cbs=BatchSchedulerCB(OneCycleLR))
    with pytest.raises(ValueError, match="write lr; give one a function optimizer -> ChainedScheduler"):
        learn.add_cb(second(StepLR, step_size=1))


@pytest.mark.parametrize("kwargs", [{"base_momentum": 0.7}, {"max_momentum": 0.9}, {"cycle_momentum": True}])
@pytest.mark.parametrize("opt_func", [torch.optim.SGD, optim.MomentumSGD, optim.Adam])
def test_momentum_that_cannot_be_cycled_is_refused(make_learner, opt_func, kwargs):
    learn = make_learner(opt_func=opt_func, cbs=[BatchSchedulerCB(OneCycleLR, **kwargs)])
    message = rf"{next(iter(kwargs))}=.*{opt_func.__name__}.*momentum.*betas\[0\]"
    with pytest.raises(ValueError, match=message):
        learn.fit()


def test_momentum_s_arguments_pass_when_it_is_not_to_be_cycled(make_learner):
    kwargs = {"base_momentum": 0.7, "cycle_momentum": False}
    make_learner(opt_func=torch.optim.SGD, cbs=[BatchSchedulerCB(OneCycleLR, **kwargs)]).fit()


@pytest.mark.parametrize("schedule", [cosine, cosine(3)])
def test_a_schedule_of_ours_is_sent_to_schedule_cb(schedule, make_learner):
    with pytest.raises(TypeError, match=r"minilearn.schedules.*ScheduleCB\('lr', ...\)"):
        BatchSchedulerCB(schedule)
    with pytest.raises(TypeError, match=r"ScheduleCB\('lr', ...\)"):
        make_learner(cbs=[schedule])


@pytest.mark.parametrize(("kwargs", "message"), [({"group": 1}, "0 to 0"), ({"n_epochs": 0}, ">= 1")])
def test_preview_of_what_is_not_there_is_refused(make_learner, kwargs, message):
    with pytest.raises(ValueError, match=rf"^preview\({next(iter(kwargs))}=.*{message}"):
        BatchSchedulerCB(OneCycleLR).preview(make_learner(), **kwargs)


def test_preview_after_a_scheduler_made_by_hand(make_learner):
    learn = make_learner(opt_func=optim.SGDAlternate)
    learn.fit()
    OneCycleLR(learn.opt, 0.3, total_steps=5)
    assert len(BatchSchedulerCB(OneCycleLR).preview(learn)) == 3
