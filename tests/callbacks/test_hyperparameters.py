from functools import partial
from itertools import pairwise

import pytest
import torch
from toolbox import NoLength, mentions
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, MultiStepLR, OneCycleLR, StepLR

from minilearn import (
    SWACB,
    BatchSchedulerCB,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    EpochSchedulerCB,
    MetricsCB,
    RecorderCB,
    ScheduleCB,
    SingleBatchCB,
    optim,
)
from minilearn.schedules import (
    constant,
    cosine,
    cycled,
    multi_step,
    one_cycle,
    polynomial,
    step_decay,
    triangular,
    warm_up,
)


def halve(step):
    return 0.5**step


def share(n_steps):
    return 1 / n_steps


def fall(step):
    """Fall below 0 at step 4."""
    return 1 - step / 3


MOMENTUM_SGD = partial(SGD, momentum=0.8, weight_decay=0.4)


def two_groups(model):
    return [
        {"params": [model.weight]},
        {"params": [model.bias], "lr": 0.02, "momentum": 0.5, "weight_decay": 0.1},
    ]


def three_groups(model):
    weight, bias = model.weight, model.bias
    model.scale = torch.nn.Parameter(torch.ones(1))
    return [{"params": [weight]}, {"params": [bias], "lr": 0.2}, {"params": [model.scale], "lr": 0.4}]


def used(learn, path, cbs, n_epochs=1, **kwargs):
    """Fit and return what each step used in the first group."""
    recorder = RecorderCB(value=path)
    learn.fit(n_epochs, cbs=[*(cbs if isinstance(cbs, list) else [cbs]), recorder], **kwargs)
    return recorder.recs["value"]


def used_by_each(learn, key, cbs, n_epochs=1, **kwargs):
    """Fit and return what each step used, a list for each group."""
    recorder = RecorderCB(values=lambda cb: [group[key] for group in cb.learn.opt.param_groups])
    learn.fit(n_epochs, cbs=[*(cbs if isinstance(cbs, list) else [cbs]), recorder], **kwargs)
    return [list(values) for values in zip(*recorder.recs["values"], strict=True)]


def hyperparameters(learn):
    groups = optim.groups_of(learn.opt)
    return [
        {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}
        for group in groups
    ]


class Watched(dict):
    """A group that keeps a list of what is written into it."""

    def __init__(self, group, written):
        super().__init__(group)
        self.written = written

    def __setitem__(self, key, value):
        self.written.append((key, value))
        super().__setitem__(key, value)


# By a function of the step --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opt_func", "name", "start"),
    [
        (SGD, "lr", 0.1),
        (MOMENTUM_SGD, "momentum", 0.8),
        (MOMENTUM_SGD, "weight_decay", 0.4),
        (AdamW, "lr", 0.1),
        (AdamW, "betas.0", 0.9),
        (AdamW, "betas.1", 0.999),
        (AdamW, "eps", 1e-8),
        (AdamW, "weight_decay", 0.01),
        (torch.optim.RMSprop, "alpha", 0.99),
        (partial(optim.SGD, wd=0.2), "wd", 0.2),
        (optim.SGD, "lr", 0.1),
        (optim.MomentumSGD, "mom", 0.9),
        (optim.RMSProp, "sqr_mom", 0.99),
        (optim.Adam, "beta1", 0.9),
        (optim.Adam, "beta2", 0.99),
        (partial(optim.SGDAlternate, momentum=0.7), "momentum", 0.7),
    ],
)
def test_function_multiplies_what_the_group_had(make_learner, opt_func, name, start):
    learn = make_learner(n_batches=4, opt_func=opt_func)
    learn.fit()
    before = hyperparameters(learn)
    assert used(learn, f"pg.{name}", ScheduleCB(name, halve), n_epochs=2) == [
        start * 0.5**step for step in range(8)
    ]
    assert hyperparameters(learn) == before


def test_hyperparameters_of_a_bare_class_are_its_attributes(make_learner, bare_sgd):
    learn = make_learner(opt_func=partial(bare_sgd, wd=0.4))
    cbs = [ScheduleCB("lr", halve), ScheduleCB("wd", {0: 0.3}, group=0)]
    recorder = RecorderCB(lr="pg.lr", wd="pg.wd")
    learn.fit(cbs=[*cbs, recorder])
    assert recorder.recs == {"lr": [0.1, 0.05, 0.025], "wd": [0.3] * 3}
    assert (learn.opt.lr, learn.opt.wd) == (0.1, 0.4)


def test_one_of_the_betas_leaves_the_other_as_it_is(make_learner):
    learn = make_learner()
    recorder = RecorderCB(betas=lambda cb: cb.pg["betas"])
    learn.fit(cbs=[ScheduleCB("betas.0", halve), recorder])
    assert recorder.recs["betas"] == [(0.9, 0.999), (0.45, 0.999), (0.225, 0.999)]
    assert learn.opt.param_groups[0]["betas"] == (0.9, 0.999)


def test_each_of_the_betas_has_its_schedule(make_learner):
    learn = make_learner()
    recorder = RecorderCB(betas=lambda cb: cb.pg["betas"])
    learn.fit(cbs=[ScheduleCB("betas.1", {0: 0.5}), ScheduleCB("betas.0", halve), recorder])
    assert recorder.recs["betas"] == [(0.9, 0.5), (0.45, 0.5), (0.225, 0.5)]
    assert learn.opt.param_groups[0]["betas"] == (0.9, 0.999)


def test_function_is_asked_once_for_each_step_and_not_for_more(make_learner):
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0

    make_learner(cbs=[ScheduleCB("lr", schedule)]).fit(2)
    assert asked == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("base", "expected"), [(0.4, [0.4, 0.2, 0.1]), (0, [0, 0, 0])])
def test_base_is_multiplied_in_place_of_what_the_group_had(make_learner, base, expected):
    learn = make_learner(param_groups=two_groups, opt_func=MOMENTUM_SGD)
    lrs = used_by_each(learn, "lr", ScheduleCB("lr", halve, base=base))
    assert lrs == [expected] * 2
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.02]


def test_base_of_1_gives_the_functions_values_even_where_the_group_has_0(make_learner):
    learn = make_learner(opt_func=SGD)
    assert used(learn, "pg.momentum", ScheduleCB("momentum", lambda step: step / 4, base=1)) == [0, 0.25, 0.5]
    assert learn.opt.param_groups[0]["momentum"] == 0


def test_function_may_come_to_0(make_learner):
    assert used(make_learner(), "pg.lr", ScheduleCB("lr", lambda step: 1 - step / 2)) == [0.1, 0.05, 0]


def test_hyperparameter_without_a_known_range_takes_any_number(make_learner):
    learn = make_learner(opt_func=torch.optim.ASGD)
    assert used(learn, "pg.lambd", ScheduleCB("lambd", lambda step: -step)) == [0, -1e-4, -2e-4]


# The length of the fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "made"),
    [
        (cosine, cosine(6)),
        (warm_up, warm_up(6)),
        (polynomial, polynomial(6)),
        (triangular, triangular(6)),
        (one_cycle, one_cycle(6)),
        (partial(one_cycle, pct_start=0.5, start=0.1), one_cycle(6, pct_start=0.5, start=0.1)),
        (partial(cosine, low=0.2), cosine(6, low=0.2)),
        (partial(partial(polynomial, power=2), low=0.5), polynomial(6, 2, 0.5)),
        (partial(cycled, triangular(3), low=0.0), cycled(triangular(3), 6)),
        (lambda n_steps: step_decay(n_steps // 2), step_decay(3)),
    ],
)
def test_factory_gets_the_steps_of_the_fit(make_learner, factory, made):
    lrs = used(make_learner(), "pg.lr", ScheduleCB("lr", factory), n_epochs=2)
    assert lrs == [0.1 * made(step) for step in range(6)]


def test_factory_gets_the_length_of_each_fit(make_learner):
    cb = ScheduleCB("lr", polynomial)
    learn = make_learner(n_batches=2)
    assert used(learn, "pg.lr", cb) == [0.1, 0.05]
    assert used(learn, "pg.lr", cb, n_epochs=2) == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert used(learn, "pg.lr", [cb, SingleBatchCB()]) == [0.1]


def test_schedule_that_is_made_already_keeps_its_length(make_learner):
    assert used(make_learner(), "pg.lr", ScheduleCB("lr", polynomial(2)), 2) == [0.1, 0.05, 0, 0, 0, 0]


def test_function_of_step_and_n_steps_is_bound_by_the_user(make_learner):
    def line(step, n_steps):
        return 1 - step / n_steps

    lrs = used(make_learner(), "pg.lr", ScheduleCB("lr", partial(line, n_steps=4)))
    assert lrs == pytest.approx([0.1, 0.075, 0.05])


@pytest.mark.parametrize(
    "factory", [partial(polynomial, n_steps=2), partial(partial(polynomial, n_steps=2), low=0.0)]
)
def test_factory_with_its_length_given_makes_a_schedule_of_that_length(make_learner, factory):
    assert used(make_learner(), "pg.lr", ScheduleCB("lr", factory)) == [0.1, 0.05, 0]


def test_loader_without_a_length_needs_a_schedule_that_knows_its_own(make_learner, at):
    learn = make_learner()
    learn.dls.train = NoLength(learn.dls.train)
    batches = []
    message = r"^cosine.*n_steps.*train loader.*length.*n_steps"
    with pytest.raises(ValueError, match=message):
        learn.fit(cbs=[ScheduleCB("lr", cosine), at("before_batch", batches.append)])
    assert batches == []
    assert used(learn, "pg.lr", ScheduleCB("lr", polynomial(4))) == pytest.approx([0.1, 0.075, 0.05])
    assert used(learn, "pg.lr", ScheduleCB("lr", {1: 0.2}), 2) == [0.1] * 3 + [0.2] * 3
    assert learn.opt.param_groups[0]["lr"] == 0.1


def test_factory_that_makes_no_function_is_refused(make_learner):
    with pytest.raises(TypeError, match=r"^share.*n_steps=3.*0.333.*function"):
        make_learner(cbs=[ScheduleCB("lr", share)]).fit()


def test_callable_without_a_signature_is_taken_for_the_schedule(make_learner):
    class Opaque:
        __signature__ = "none, as of some builtins"

        def __call__(self, step):
            return 0.5**step

    assert used(make_learner(), "pg.lr", ScheduleCB("lr", Opaque())) == [0.1, 0.05, 0.025]


# By a table of epochs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({0: 0.5}, [0.5] * 4),
        ({1: 0.5}, [0.8, 0.5, 0.5, 0.5]),
        ({2: 0.6, 3: 0.7}, [0.8, 0.8, 0.6, 0.7]),
        ({3: 0.7, 0: 0.5, 2: 0.0}, [0.5, 0.5, 0.0, 0.7]),
    ],
    ids=["from the first", "its own before", "two", "unsorted"],
)
def test_table_gives_the_value_from_its_epoch_on(make_learner, table, expected):
    learn = make_learner(n_batches=2, opt_func=MOMENTUM_SGD)
    moms = used(learn, "pg.momentum", ScheduleCB("momentum", table), 4)
    assert moms == [mom for mom in expected for _ in range(2)]
    assert learn.opt.param_groups[0]["momentum"] == 0.8


def test_table_counts_the_epochs_of_the_fit(make_learner):
    learn = make_learner(n_batches=1, opt_func=SGD)
    learn.fit(3)
    cb = ScheduleCB("lr", {1: 0.5})
    assert used(learn, "pg.lr", cb, 2) == used(learn, "pg.lr", cb, 2) == [0.1, 0.5]


def test_table_writes_at_its_epochs_and_leaves_the_others_alone(make_learner):
    learn, written = make_learner(opt_func=SGD), []
    learn.fit()
    learn.opt.param_groups[0] = Watched(learn.opt.param_groups[0], written)
    learn.fit(5, cbs=[ScheduleCB("lr", {3: 0.2, 1: 0.5})])
    assert written == [("lr", 0.5), ("lr", 0.2), ("lr", 0.1)]  # and what it was


def test_table_may_have_both_betas(make_learner):
    learn = make_learner(n_batches=1)
    cb = ScheduleCB("betas", {1: (0.5, 0.6)})
    recorder = RecorderCB(betas=lambda cb: cb.pg["betas"])
    learn.fit(2, cbs=[cb, recorder])
    assert recorder.recs["betas"] == [(0.9, 0.999), (0.5, 0.6)]
    assert learn.opt.param_groups[0]["betas"] == (0.9, 0.999)


def test_table_may_have_one_of_the_betas(make_learner):
    learn = make_learner(n_batches=1)
    assert used(learn, "pg.betas", ScheduleCB("betas.1", {1: 0.5}), 2) == [(0.9, 0.999), (0.9, 0.5)]


def test_table_may_have_a_switch(make_learner):
    learn = make_learner(n_batches=1, opt_func=partial(MOMENTUM_SGD, nesterov=True))
    assert used(learn, "pg.nesterov", ScheduleCB("nesterov", {1: False}), 3) == [True, False, False]


def test_table_raises_a_hyperparameter_from_0(make_learner):
    learn = make_learner(n_batches=1, opt_func=SGD)
    assert used(learn, "pg.weight_decay", ScheduleCB("weight_decay", {0: 5e-4, 2: 0.0}), 3) == [
        5e-4,
        5e-4,
        0,
    ]


def test_table_is_followed_over_an_epoch_that_is_left_out(make_learner, at):
    def leave(learn):
        if learn.epoch == 1:
            raise CancelEpochException

    for order in (0, 99):
        learn = make_learner(n_batches=1, cbs=[at("before_epoch", leave, order)])
        assert used(learn, "pg.lr", ScheduleCB("lr", {1: 0.5}), 3) == [0.1, 0.5]


# Groups ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "scheduled"),
    [(None, [0, 1, 2]), (0, [0]), (1, [1]), (2, [2]), ([0, 2], [0, 2]), ((2, 1), [1, 2]), ([1, 1], [1])],
)
@pytest.mark.parametrize("schedule", [halve, {0: 0.5}], ids=["function", "table"])
def test_group_chooses_where_it_is_written(make_learner, group, scheduled, schedule):
    learn = make_learner(param_groups=three_groups, opt_func=SGD)
    lrs = used_by_each(learn, "lr", ScheduleCB("lr", schedule, group=group))
    for i, start in enumerate((0.1, 0.2, 0.4)):
        new = [start, start / 2, start / 4] if schedule is halve else [0.5] * 3
        assert lrs[i] == (new if i in scheduled else [start] * 3)
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.2, 0.4]


def test_two_callbacks_have_a_group_each(make_learner):
    learn = make_learner(param_groups=two_groups, opt_func=MOMENTUM_SGD)
    cbs = [ScheduleCB("weight_decay", halve, group=1), ScheduleCB("weight_decay", {0: 0.3}, group=0)]
    assert used_by_each(learn, "weight_decay", cbs) == [[0.3] * 3, [0.1, 0.05, 0.025]]
    assert [group["weight_decay"] for group in learn.opt.param_groups] == [0.4, 0.1]


# After the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [None, RuntimeError, CancelFitException, KeyboardInterrupt], ids=lambda error: str(error)
)
@pytest.mark.parametrize("event", ["before_fit", "before_step", "after_step", "after_epoch", "cleanup_fit"])
def test_values_are_as_before_however_the_fit_ended(make_learner, at, error, event):
    def stop(learn):
        if error and (event in ("before_fit", "cleanup_fit") or learn.n_steps == 4 or learn.epoch == 1):
            raise error("on purpose")

    learn = make_learner(param_groups=two_groups, opt_func=MOMENTUM_SGD)
    learn.fit()
    before = hyperparameters(learn)
    cbs = [
        ScheduleCB("lr", halve),
        ScheduleCB("momentum", {0: 0.3, 1: 0.2}),
        ScheduleCB("weight_decay", cosine, group=1),
        ScheduleCB("weight_decay", {1: 0.0}, group=0),
    ]
    changed = []
    look = at("after_epoch", lambda learn: changed.append(hyperparameters(learn) != before), -1)
    try:
        learn.fit(3, cbs=[*cbs, look, at(event, stop, 99)])
    except (RuntimeError, KeyboardInterrupt) as caught:
        assert type(caught) is error  # noqa: PT017
    assert hyperparameters(learn) == before
    assert all(changed)
    assert bool(changed) is (event != "before_fit" or error is None)
    assert used(learn, "pg.lr", cbs, 2)[:2] == [0.1, 0.05]  # and the callbacks begin again


def test_each_fit_starts_from_the_lr_that_is_asked_of_it(make_learner):
    cb = ScheduleCB("lr", halve)
    learn = make_learner(param_groups=two_groups, opt_func=MOMENTUM_SGD)
    assert used(learn, "pg.lr", cb) == [0.1, 0.05, 0.025]
    assert used(learn, "pg.lr", cb, lr=0.4) == [0.4, 0.2, 0.1]
    assert used(learn, "pg.lr", cb) == [0.4, 0.2, 0.1]
    assert used_by_each(learn, "lr", cb, lr=[0.2, 0.8]) == [[0.2, 0.1, 0.05], [0.8, 0.4, 0.2]]
    assert [group["lr"] for group in learn.opt.param_groups] == [0.2, 0.8]
    assert used(learn, "pg.lr", cb, reset_opt=True) == [0.1, 0.05, 0.025]


def test_value_that_the_user_changed_between_fits_is_the_new_base(make_learner):
    learn = make_learner(opt_func=MOMENTUM_SGD)
    cb = ScheduleCB("momentum", halve)
    assert used(learn, "pg.momentum", cb) == [0.8, 0.4, 0.2]
    learn.opt.param_groups[0]["momentum"] = 0.4
    assert used(learn, "pg.momentum", cb) == [0.4, 0.2, 0.1]
    assert learn.opt.param_groups[0]["momentum"] == 0.4


def test_callback_keeps_nothing_of_a_fit(make_learner):
    cb = ScheduleCB("lr", cosine)
    before = dict(vars(cb))
    make_learner(cbs=[cb]).fit()
    assert vars(cb) == before


@pytest.mark.parametrize(
    "cb",
    [ScheduleCB("lr", halve), ScheduleCB("lr", {5: 0.1}), ScheduleCB("nonsense", halve, group=7)],
    ids=str,
)
def test_fit_without_training_is_left_alone(make_learner, cb):
    learn = make_learner(cbs=[MetricsCB()])
    learn.fit(2, train=False, cbs=[cb])
    assert learn.opt is None
    learn.fit()
    before = hyperparameters(learn)
    values = []
    learn.opt.param_groups[0] = Watched(learn.opt.param_groups[0], values)
    learn.fit(2, train=False, cbs=[cb])
    learn.add_cb(cb)
    learn.validate()
    learn.predict(learn.dls.valid)
    assert values == []
    assert hyperparameters(learn) == before


def test_validation_in_the_middle_of_a_fit_changes_nothing(make_learner, at):
    learn = make_learner(cbs=[MetricsCB(), at("after_step", lambda learn: learn.validate())])
    assert used(learn, "pg.lr", ScheduleCB("lr", halve)) == [0.1, 0.05, 0.025]


def test_lr_find_goes_without_it(make_learner):
    finders = []
    for cbs in ([], [ScheduleCB("momentum", {0: 0.1}), ScheduleCB("lr", halve)]):
        learn = make_learner(opt_func=MOMENTUM_SGD, cbs=cbs)
        finders.append(learn.lr_find(n_steps=20))
        assert learn.cbs == tuple(cbs)
    assert finders[0].lrs == finders[1].lrs
    assert finders[0].losses == finders[1].losses
    assert used(learn, "pg.momentum", []) == [0.1] * 3


# Steps ----------------------------------------------------------------------------------------------


def by_hand(learn, opt, values):
    """Train an epoch, and write `values`, a dict for each step, into the first group before it."""
    for (xb, yb), new in zip(learn.dls.train, values, strict=True):
        torch.nn.functional.cross_entropy(learn.model(xb), yb).backward()
        opt.param_groups[0].update(new)
        opt.step()
        opt.zero_grad()
    return learn.model.weight


@pytest.mark.parametrize(
    ("opt_func", "name", "start"),
    [
        (SGD, "lr", 0.1),
        (MOMENTUM_SGD, "momentum", 0.8),
        (MOMENTUM_SGD, "weight_decay", 0.4),
        (AdamW, "lr", 0.1),
        (AdamW, "weight_decay", 0.01),
        (partial(AdamW, foreach=True), "lr", 0.1),
        (partial(SGD, foreach=False, fused=False), "lr", 0.1),
        (optim.MomentumSGD, "mom", 0.9),
        (optim.Adam, "beta1", 0.9),
        (partial(optim.SGD, wd=0.4), "wd", 0.4),
    ],
)
def test_weights_are_those_of_a_loop_that_writes_the_groups(make_learner, opt_func, name, start):
    learn, twin, other = (make_learner(n_batches=4, opt_func=opt_func) for _ in range(3))
    learn.fit(cbs=[ScheduleCB(name, halve)])
    opt = opt_func(twin.model.parameters(), lr=0.1)
    expected = by_hand(twin, opt, [{name: start * 0.5**step} for step in range(4)])
    torch.testing.assert_close(learn.model.weight, expected, rtol=1e-5, atol=1e-6)  # fused or not
    other.fit()
    assert not torch.allclose(learn.model.weight, other.model.weight, rtol=1e-4)


@pytest.mark.parametrize("opt_func", [AdamW, SGD])
def test_it_works_on_the_fused_kernel(make_learner, at, opt_func):
    learn = make_learner(opt_func=opt_func)
    weights = [learn.model.weight.detach().clone()]
    look = at("after_step", lambda learn: weights.append(learn.model.weight.detach().clone()))
    learn.fit(cbs=[ScheduleCB("lr", lambda step: float(step == 1)), look])
    assert learn.opt.param_groups[0]["fused"]
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [False, True, False]  # at lr 0 it stays


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(halve, [0.1, 0.05, 0.025, 0.0125]), ({0: 0.3, 1: 0.2}, [0.3, 0.3, 0.2, 0.2])],
    ids=["function", "table"],
)
@pytest.mark.parametrize("opt_func", [partial(AdamW, foreach=False), partial(SGD, foreach=False)])
def test_lr_that_is_a_tensor_is_written_in_place(make_learner, schedule, expected, opt_func):
    learn = make_learner(n_batches=2, lr=torch.tensor(0.1), opt_func=opt_func)
    learn.fit()
    lr = learn.opt.param_groups[0]["lr"]
    cb = ScheduleCB("lr", schedule)
    for _ in range(2):
        assert used(learn, "pg.lr", cb, 2) == pytest.approx(expected, rel=1e-6)  # float32
        assert learn.opt.param_groups[0]["lr"] is lr
        assert lr.item() == pytest.approx(0.1)


def test_lr_that_is_a_tensor_may_have_a_base(make_learner):
    learn = make_learner(lr=torch.tensor(0.1), opt_func=partial(AdamW, foreach=False))
    cb = ScheduleCB("lr", halve, base=0.4)
    assert used(learn, "pg.lr", cb) == pytest.approx([0.4, 0.2, 0.1], rel=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_recorder_reads_what_the_step_used(make_learner, at, reverse):
    seen = []
    look = at("before_step", lambda learn: seen.append(learn.opt.param_groups[0]["lr"]))
    recorder = RecorderCB(lr="pg.lr")
    cbs = [ScheduleCB("lr", halve), recorder, look]
    make_learner(cbs=cbs[::-1] if reverse else cbs).fit()
    assert recorder.recs["lr"] == seen == [0.1, 0.05, 0.025]


def test_steps_that_were_cancelled_do_not_count(make_learner, at):
    def skip_even(learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException

    learn = make_learner(n_batches=6, cbs=[at("before_step", skip_even)])
    assert used(learn, "pg.lr", ScheduleCB("lr", halve)) == [0.1, 0.05, 0.025]


def test_factory_gets_the_steps_that_another_callback_plans(make_learner, at):
    def skip_even(learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException

    every_other = at("before_step", skip_even)
    every_other.plan_steps = lambda learn, steps: [n // 2 for n in steps]
    learn = make_learner(n_batches=4, cbs=[every_other])
    assert used(learn, "pg.lr", ScheduleCB("lr", polynomial), 2) == pytest.approx([0.1, 0.075, 0.05, 0.025])


# With other schedulers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        BatchSchedulerCB(CosineAnnealingLR),
        EpochSchedulerCB(StepLR, step_size=1),
        BatchSchedulerCB(OneCycleLR, cycle_momentum=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("reverse", [False, True])
def test_scheduler_of_the_lr_is_refused_with_it(make_learner, at, other, reverse):
    cb = ScheduleCB("lr", {0: 0.1}, group=0)
    cbs = [cb, other]
    batches = []
    learn = make_learner(cbs=[*(cbs[::-1] if reverse else cbs), at("before_batch", batches.append)])
    with pytest.raises(ValueError, match=mentions(f"{cb!r} ... {other!r} ... lr")):
        learn.fit(3)
    assert batches == []


@pytest.mark.parametrize(
    ("opt_func", "name"),
    [(MOMENTUM_SGD, "momentum"), (AdamW, "betas.0"), (AdamW, "betas")],
)
@pytest.mark.parametrize(
    ("scheduler_f", "kwargs"), [(OneCycleLR, {}), (CyclicLR, {"base_lr": 0.01, "step_size_up": 2})]
)
def test_scheduler_that_cycles_the_momentum_is_refused_with_it(
    make_learner, opt_func, name, scheduler_f, kwargs
):
    learn = make_learner(opt_func=opt_func)
    learn.fit()
    before = hyperparameters(learn)
    cb = ScheduleCB(name, {0: 0.1 if name != "betas" else (0.1, 0.2)})
    other = BatchSchedulerCB(scheduler_f, **kwargs)
    message = f"{cb!r} ... {other!r} ... {name} ... cycle_momentum=False"
    with pytest.raises(ValueError, match=mentions(message)):
        learn.fit(cbs=[cb, other])
    assert hyperparameters(learn) == before
    without = BatchSchedulerCB(scheduler_f, **kwargs, cycle_momentum=False)
    moms = used(learn, f"pg.{name}", [cb, without])
    assert moms == [0.1 if name != "betas" else (0.1, 0.2)] * 3
    assert hyperparameters(learn) == before


@pytest.mark.parametrize(
    ("opt_func", "name", "other"),
    [
        (MOMENTUM_SGD, "momentum", BatchSchedulerCB(CosineAnnealingLR)),
        (MOMENTUM_SGD, "weight_decay", BatchSchedulerCB(OneCycleLR)),
        (AdamW, "betas.1", BatchSchedulerCB(OneCycleLR)),
        (AdamW, "eps", EpochSchedulerCB(OneCycleLR)),
        (AdamW, "betas.0", EpochSchedulerCB(StepLR, step_size=1)),
        (optim.MomentumSGD, "mom", BatchSchedulerCB(OneCycleLR)),
    ],
)
def test_what_another_scheduler_does_not_write_is_free(make_learner, opt_func, name, other):
    learn = make_learner(opt_func=opt_func)
    learn.fit()
    before = hyperparameters(learn)
    start = RecorderCB(value=f"pg.{name}")
    learn.fit(cbs=start)
    (start,) = set(start.recs["value"])
    assert used(learn, f"pg.{name}", [ScheduleCB(name, halve), other], 2)[:3] == [
        start,
        start / 2,
        start / 4,
    ]
    assert hyperparameters(learn) == before


def test_momentum_of_a_group_is_free_when_an_old_cycle_left_its_marks(make_learner):
    learn = make_learner(opt_func=MOMENTUM_SGD)
    learn.fit()
    OneCycleLR(learn.opt, 0.1, total_steps=3)  # the user's own: max_momentum stays in the group
    learn.opt.param_groups[0].update(lr=0.1, momentum=0.8)
    cbs = [ScheduleCB("momentum", halve), BatchSchedulerCB(LambdaLR, lr_lambda=constant())]
    assert used(learn, "pg.momentum", cbs) == [0.8, 0.4, 0.2]


@pytest.mark.parametrize(
    ("opt_func", "one", "two", "clash"),
    [
        (SGD, ("lr", halve), ("lr", {0: 0.1}), "lr"),
        (SGD, ("lr", halve, 1), ("lr", halve), "lr"),
        (SGD, ("lr", halve), ("lr", halve, 0), "lr"),
        (SGD, ("lr", {0: 0.1}, 1), ("lr", {0: 0.1}, [0, 1]), "lr"),
        (AdamW, ("betas.0", halve), ("betas", {0: (0.5, 0.5)}), "betas.0"),
        (AdamW, ("betas", {0: (0.5, 0.5)}), ("betas.1", halve), "betas"),
        (AdamW, ("betas.1", halve), ("betas.1", halve), "betas.1"),
        (SGD, ("lr", halve, 0), ("lr", halve, 1), None),
        (SGD, ("lr", {0: 0.1}, [1]), ("lr", halve, [0]), None),
        (MOMENTUM_SGD, ("lr", halve), ("momentum", halve), None),
        (AdamW, ("betas.0", halve), ("betas.1", halve), None),
        (AdamW, ("betas.0", halve, 0), ("betas", {0: (0.5, 0.5)}, 1), None),
    ],
)
def test_two_of_a_kind_are_refused_where_they_would_write_the_same(
    make_learner, at, opt_func, one, two, clash
):
    def groups(model):
        return [[model.weight], [model.bias]]

    cbs, batches = [ScheduleCB(*one), ScheduleCB(*two)], []
    learn = make_learner(
        opt_func=opt_func, param_groups=groups, cbs=[*cbs, at("before_batch", batches.append)]
    )
    if clash is None:
        learn.fit(cbs=MetricsCB())
        return
    with pytest.raises(ValueError, match=mentions(f"{cbs[0]!r} ... {cbs[1]!r} ... {clash} ... group")):
        learn.fit()
    assert batches == []


def test_lr_falls_to_a_tenth_before_the_epochs_with_index_6_and_11_three_ways(make_learner, at):
    """Document 002 writes it into its loop, and then gives it to MultiStepLR."""

    def fall(learn):
        if learn.epoch in (6, 11):
            for pg in learn.opt.param_groups:
                pg["lr"] *= 0.1

    def lrs(cb):
        learn = make_learner(n_batches=2, opt_func=partial(SGD, momentum=0.9, weight_decay=5e-4))
        return used(learn, "pg.lr", cb, 15), learn.model.weight

    written, weight = lrs(at("before_epoch", fall))
    assert written == pytest.approx([0.1] * 12 + [0.01] * 10 + [0.001] * 8, rel=1e-12)
    for cb in (
        EpochSchedulerCB(MultiStepLR, milestones=[6, 11]),
        ScheduleCB("lr", {6: 0.01, 11: 0.001}),
        ScheduleCB("lr", multi_step([12, 22])),
    ):
        others, other_weight = lrs(cb)
        assert others == pytest.approx(written, rel=1e-12)
        torch.testing.assert_close(other_weight, weight)


# Refused --------------------------------------------------------------------------------------------

IN_SGD = ", ".join(key for key in SGD([torch.zeros(1)], lr=0.1).param_groups[0] if key != "params")


@pytest.mark.parametrize(
    ("opt_func", "kwargs", "message"),
    [
        (SGD, {"name": "mom"}, f"'mom' ... group 0 ... {IN_SGD}"),
        (SGD, {"name": "lr.0"}, "'lr.0' ... group 0 ... lr, "),
        (
            AdamW,
            {"name": "momentum"},
            "'momentum' ... group 0 ... betas.0 ... lr, betas, eps, ",
        ),
        (AdamW, {"name": "mom"}, "'mom' ... group 0 ... lr, betas, eps"),
        (AdamW, {"name": "betas.2"}, "'betas.2' ... group 0 ... lr, betas"),
        (AdamW, {"name": "betas.x"}, "'betas.x' ... group 0 ... lr, betas"),
        (optim.Adam, {"name": "weight_decay"}, "'weight_decay' ... group 0 ... lr, wd"),
        (optim.SGD, {"name": "momentum"}, "'momentum' ... group 0 ... lr, wd"),
        (SGD, {"group": 2}, "group=2 ... indices ... 0 ... 1"),
        (SGD, {"group": -1}, "group=-1 ... indices ... 0 ... 1"),
        (SGD, {"group": [0, 2]}, "group=[0, 2] ... indices ... 0 ... 1"),
        (SGD, {"group": [-1, 0]}, "group=[-1, 0] ... indices ... 0 ... 1"),
        (SGD, {"group": []}, "group=[] ... indices ... 0 ... 1"),
        (
            SGD,
            {"schedule": {0: 0.1, 7: 0.2, 2: 0.1}},
            "ScheduleCB('lr', {0: 0.1, 7: 0.2, 2: 0.1}) ... epoch 2 ... 2 (0 ... 1)",
        ),
        (SGD, {"schedule": lambda step: -1.0}, "step 0: lr=-0.1 ... >= 0"),
        (
            MOMENTUM_SGD,
            {"name": "momentum", "base": 1},
            "step 0: momentum=1.0 ... 0 <= momentum < 1",
        ),
        (AdamW, {"name": "betas.0", "base": 2}, "step 0: betas.0=2.0 ... 0 <= betas.0 < 1"),
        (
            AdamW,
            {"name": "betas"},
            "'betas' ... (0.9, 0.999) ... group 0 ... 'betas.0'",
        ),
        (
            SGD,
            {"name": "momentum", "group": 1},
            "momentum ... 0 ... group 1 ... table ... base=1",
        ),
    ],
)
def test_what_cannot_be_scheduled_is_refused_before_the_first_step(
    make_learner, at, opt_func, kwargs, message
):
    learn = make_learner(opt_func=opt_func, param_groups=lambda model: [[model.weight], [model.bias]])
    learn.fit()
    before, weight, batches, changed = hyperparameters(learn), learn.model.weight.clone(), [], []
    other = next(key for key in ("dampening", "eps", "wd") if key in before[0])
    cbs = [
        ScheduleCB(other, constant(0.5), base=1),
        ScheduleCB(**({"name": "lr", "schedule": halve} | kwargs)),
        at("before_batch", batches.append),
        at("cleanup_fit", lambda learn: changed.append(hyperparameters(learn) != before), -1),
    ]
    with pytest.raises(ValueError, match=mentions(message)):
        learn.fit(2, cbs=cbs)
    assert batches == []
    assert changed == [True]  # by the first callback, until it is put back
    assert hyperparameters(learn) == before
    assert torch.equal(learn.model.weight, weight)


def test_each_group_is_looked_at(make_learner):
    def groups(model):
        return [{"params": [model.weight]}, {"params": [model.bias], "momentum": 0}]

    learn = make_learner(opt_func=MOMENTUM_SGD, param_groups=groups)
    with pytest.raises(ValueError, match=r"momentum.*0.*group 1"):
        learn.fit(cbs=[ScheduleCB("momentum", halve)])
    learn.fit(cbs=[ScheduleCB("momentum", halve, group=0)])


def test_second_group_out_of_range_leaves_the_first_as_it_was(make_learner):
    learn = make_learner(opt_func=MOMENTUM_SGD, param_groups=two_groups)
    learn.fit()
    learn.opt.param_groups[1]["momentum"] = 0.95
    before = hyperparameters(learn)
    with pytest.raises(ValueError, match=r"step 0: momentum=1.045.*0 <= momentum < 1"):
        learn.fit(cbs=[ScheduleCB("momentum", constant(1.1))])
    assert hyperparameters(learn) == before


def test_multiplier_that_leads_out_of_range_names_the_step(make_learner):
    learn = make_learner(n_batches=6, opt_func=SGD)
    recorder = RecorderCB(lr="pg.lr")
    with pytest.raises(ValueError, match=r"^ScheduleCB\('lr', fall\).*step 4.*lr=-0.033.*>= 0"):
        learn.fit(cbs=[ScheduleCB("lr", fall), recorder])
    assert recorder.recs["lr"] == pytest.approx([0.1, 0.2 / 3, 0.1 / 3, 0])
    assert learn.opt.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            ("lr", 0.5),
            TypeError,
            "ScheduleCB('lr', schedule=0.5) ... step -> multiplier ... schedules ... {epoch: value}",
        ),
        (("lr", [0.1, 0.2]), TypeError, "ScheduleCB('lr', schedule=[0.1, 0.2]) ... step -> multiplier"),
        (("lr", None), TypeError, "ScheduleCB('lr', schedule=None) ... step -> multiplier"),
        ((halve, "lr"), TypeError, "hyperparameter ... 'lr'"),
        ((0, halve), TypeError, "ScheduleCB(name=0) ... hyperparameter ... 'lr'"),
        (("lr", {}), ValueError, "ScheduleCB('lr', {}) ... {epoch: value}"),
        (("lr", {-1: 0.1}), ValueError, "ScheduleCB('lr') ... epoch -1 ... whole number"),
        (("lr", {0: 0.1, 1.5: 1}), ValueError, "ScheduleCB('lr') ... epoch 1.5 ... whole number"),
        (("lr", {True: 0.1}), ValueError, "ScheduleCB('lr') ... epoch True ... whole number"),
        (("lr", {"1": 0.1}), ValueError, "ScheduleCB('lr') ... epoch '1' ... whole number"),
        (
            ("lr", {0: 0.1, 3: -0.1}),
            ValueError,
            "ScheduleCB('lr') ... epoch 3 ... lr=-0.1 ... >= 0",
        ),
        (
            ("momentum", {2: 1}),
            ValueError,
            "ScheduleCB('momentum') ... epoch 2 ... momentum=1 ... 0 <= momentum < 1",
        ),
        (
            ("betas.1", {2: 1.0}),
            ValueError,
            "ScheduleCB('betas.1') ... epoch 2 ... betas.1=1.0 ... 0 <= betas.1 < 1",
        ),
        (
            ("betas", {0: (0.9, 1)}),
            ValueError,
            "ScheduleCB('betas') ... epoch 0 ... betas=(0.9, 1) ... two numbers",
        ),
        (("betas", {0: 0.9}), ValueError, "ScheduleCB('betas') ... epoch 0 ... betas=0.9 ... two numbers"),
        (
            ("betas", {3: (0.9,)}),
            ValueError,
            "ScheduleCB('betas') ... epoch 3 ... betas=(0.9,) ... two numbers",
        ),
        (("wd", {0: "1"}), ValueError, "ScheduleCB('wd') ... epoch 0 ... wd='1' ... >= 0"),
        (
            ("lr", {0: 0.1}, None, 1),
            ValueError,
            "ScheduleCB('lr', {0: 0.1}) ... base=1 ... function ... table",
        ),
        (("lr", {0: 0.1}, None, 0), ValueError, "ScheduleCB('lr', {0: 0.1}) ... base=0 ... function"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_when_it_is_made(args, error, message):
    with pytest.raises(error, match=mentions(message)):
        ScheduleCB(*args)


# What it takes for something else -------------------------------------------------------------------


@pytest.mark.parametrize("factory", [lambda step: None, lambda step: [1.0]])
def test_function_that_gives_no_number_is_refused(make_learner, factory):
    with pytest.raises(TypeError, match=r"ScheduleCB\('lr', .*\).*step 0.*number"):
        make_learner(cbs=[ScheduleCB("lr", factory)]).fit()


@pytest.mark.parametrize("name", ["lr.", "betas.-1", "betas."])
def test_name_that_is_another_spelling_is_refused(make_learner, name):
    learn = make_learner()
    with pytest.raises(ValueError, match=rf"'{name}'.*group 0.*lr, betas"):
        learn.fit(cbs=[ScheduleCB(name, {0: -1.0 if name == "lr." else 0.5})])


def test_parameters_are_no_hyperparameter(make_learner):
    with pytest.raises(ValueError, match=r"'params'.*group 0.*lr, betas"):
        make_learner(cbs=[ScheduleCB("params", {0: 1.0})]).fit()


@pytest.mark.parametrize("group", ["0", 1.0, [[0]], True], ids=repr)
def test_group_that_is_no_index_is_refused_in_the_same_words(make_learner, group):
    learn = make_learner(opt_func=SGD, param_groups=two_groups)
    with pytest.raises(ValueError, match=mentions(f"group={group!r} ... indices ... 0 ... 1")):
        learn.fit(cbs=[ScheduleCB("lr", halve, group=group)])


def test_hyperparameter_that_is_no_number_is_refused(make_learner):
    with pytest.raises(ValueError, match=r"foreach.*None.*group 0.*table"):
        make_learner(cbs=[ScheduleCB("foreach", halve)]).fit()


def test_multiplier_that_is_a_tensor_is_a_number_like_any_other(make_learner, at):
    kinds = []
    look = at("before_step", lambda learn: kinds.append(type(learn.opt.param_groups[0]["lr"])))
    make_learner(cbs=[ScheduleCB("lr", lambda step: torch.tensor(0.5)), look]).fit()
    assert kinds == [float] * 3


# repr -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cb", "expected"),
    [
        (ScheduleCB("lr", cosine), "ScheduleCB('lr', cosine)"),
        (ScheduleCB("wd", halve, group=1), "ScheduleCB('wd', halve, group=1)"),
        (ScheduleCB("wd", halve, group=0), "ScheduleCB('wd', halve, group=0)"),
        (ScheduleCB("lr", {1: 0.1}, group=[0, 1]), "ScheduleCB('lr', {1: 0.1}, group=[0, 1])"),
        (ScheduleCB("betas.0", partial(cosine, low=0.1)), "ScheduleCB('betas.0', a function)"),
    ],
)
def test_repr_has_the_name_and_the_schedule(cb, expected):
    assert repr(cb) == expected


@pytest.mark.parametrize("schedule", [triangular(3), cosine(3)])
def test_repr_has_no_inner_name(schedule):
    assert repr(ScheduleCB("lr", schedule)) in (
        "ScheduleCB('lr', a function)",
        "ScheduleCB('lr', triangular)",
        "ScheduleCB('lr', cosine)",
    )


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (constant, r"^constant.*constant\(...\)"),
        (multi_step, r"^multi_step.*multi_step\(...\)"),
        (partial(cosine, 3), r"step 0.*number"),
        (OneCycleLR, r"^ScheduleCB\('lr', OneCycleLR\).*BatchSchedulerCB\(OneCycleLR\)"),
    ],
    ids=["constant", "multi_step", "partial", "torch"],
)
def test_schedule_in_another_form_is_refused_with_the_right_one(make_learner, schedule, message):
    with pytest.raises(TypeError, match=message):
        make_learner().fit(cbs=[ScheduleCB("lr", schedule)])


@pytest.mark.parametrize("base", ["x", True, [1.0], float("nan")])
def test_base_is_a_number(base):
    with pytest.raises(ValueError, match=mentions(f"ScheduleCB('lr', base={base!r}) ... number")):
        ScheduleCB("lr", halve, base=base)


@pytest.mark.parametrize("cb", [ScheduleCB("lr", cosine), BatchSchedulerCB(OneCycleLR)], ids=repr)
def test_a_schedule_of_the_fit_s_length_warns_when_steps_were_not_taken(make_learner, at, cb):
    def every_other(learn):
        if learn.batch_idx % 2 == 0:
            raise CancelStepException

    learn = make_learner(n_batches=6, cbs=[at("before_step", every_other), cb])
    with pytest.warns(UserWarning, match=r"3.*6.*plan_steps"):
        learn.fit()


def test_a_group_added_during_the_fit_is_left_alone_at_the_end(make_learner, at):
    extra = torch.nn.Parameter(torch.zeros(1))

    def add(learn):
        if learn.epoch == 1:
            learn.opt.add_param_group({"params": [extra], "lr": 0.7})

    learn = make_learner(opt_func=SGD, cbs=[at("before_epoch", add), EpochSchedulerCB(StepLR, step_size=1)])
    learn.fit(2)
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1, 0.7]


# What a function sets ---------------------------------------------------------------------------------


def noted(make_learner, at, schedule, n_epochs=2, **kwargs):
    """Return what a function was given last before each batch: (phase, value)."""
    now, seen = [], []
    look = at("before_batch", lambda learn: seen.append((learn.phase, now[-1] if now else None)))
    cb = ScheduleCB(lambda learn, value: now.append(value), schedule, **kwargs)
    make_learner(cbs=[cb, look, MetricsCB()]).fit(n_epochs)
    return seen


def test_function_gets_the_value_of_each_step(make_learner, at):
    seen = noted(make_learner, at, lambda step: 10 * step)
    assert [value for phase, value in seen if phase == "train"] == [0, 10, 20, 30, 40, 50]
    assert [value for phase, value in seen if phase == "eval"] == [30, 50]  # no step follows the last


def test_function_gets_the_values_of_a_table_from_its_epochs_on(make_learner, at):
    seen = noted(make_learner, at, {1: (32, 32), 3: (64, 64)}, n_epochs=4)
    assert [value for _, value in seen] == [None] * 4 + [(32, 32)] * 8 + [(64, 64)] * 4


def test_function_gets_the_value_of_each_epoch(make_learner, at):
    seen = noted(make_learner, at, lambda epoch: f"level {epoch}", per="epoch")
    assert [value for _, value in seen] == ["level 0"] * 4 + ["level 1"] * 4


def test_length_is_filled_in_by_steps_or_epochs(make_learner, at):
    steps = noted(make_learner, at, polynomial, base=0.9)
    assert [value for phase, value in steps if phase == "train"] == pytest.approx(
        [0.9 * polynomial(6)(step) for step in range(6)]
    )
    epochs = noted(make_learner, at, polynomial, n_epochs=3, base=0.9, per="epoch")
    assert [value for phase, value in epochs if phase == "eval"] == pytest.approx(
        [0.9 * polynomial(3)(epoch) for epoch in range(3)]
    )


def test_hyperparameter_by_epochs_is_the_same_for_all_steps_of_one(make_learner):
    learn = make_learner(opt_func=MOMENTUM_SGD)
    assert (
        used(learn, "pg.lr", ScheduleCB("lr", halve, per="epoch"), 3) == [0.1] * 3 + [0.05] * 3 + [0.025] * 3
    )
    assert learn.opt.param_groups[0]["lr"] == 0.1


def test_verify_resume_sets_what_its_copies_have(make_learner):
    def set_scale(learn, value):
        learn.model.scale = value

    learn = make_learner(cbs=[ScheduleCB(set_scale, lambda step: step), MetricsCB()])
    learn.verify_resume(2)
    assert not hasattr(learn.model, "scale")


def test_only_fits_that_train_set_anything(make_learner):
    def set_it(learn, value):
        raise ZeroDivisionError

    learn = make_learner(cbs=[ScheduleCB(set_it, {0: 1}), MetricsCB()])
    learn.validate()
    learn.predict(learn.dls.valid)
    learn.fit(train=False)
    learn.lr_find(n_steps=10)
    with pytest.raises(ZeroDivisionError):
        learn.fit()


@pytest.mark.parametrize(
    ("setter", "kwargs", "error", "message"),
    [
        (lambda value: None, {}, TypeError, "ScheduleCB( ... 'lr' ... (learn, value)"),
        (lambda learn, value: None, {"group": 1}, ValueError, "group=1 ... no groups"),
        (lambda learn, value: None, {"per": "batch"}, ValueError, "per='batch' ... 'step' or 'epoch'"),
    ],
)
def test_functions_that_cannot_set_a_value_are_refused(setter, kwargs, error, message):
    with pytest.raises(error, match=mentions(message)):
        ScheduleCB(setter, {0: 1}, **kwargs)


def test_maker_of_a_schedule_that_was_not_called_is_refused(make_learner):
    learn = make_learner(cbs=[ScheduleCB(lambda learn, value: None, lambda step: halve)])
    with pytest.raises(TypeError, match="still to be called"):
        learn.fit()
    assert learn.n_steps == 0


def test_two_functions_and_a_schedule_of_the_lr_go_together(make_learner):
    cbs = [ScheduleCB(lambda learn, value: None, halve) for _ in range(2)]
    make_learner(cbs=[*cbs, ScheduleCB("lr", halve)], opt_func=SGD).fit(2)


class Dial:
    def turn(self, learn, value):
        self.value = value


def test_two_schedules_of_one_function_are_refused(make_learner):
    dial = Dial()
    learn = make_learner(cbs=[ScheduleCB(dial.turn, {0: 1}), ScheduleCB(dial.turn, cosine, base=1)])
    with pytest.raises(ValueError, match=r"both call Dial\.turn: expected one"):
        learn.fit(1)


def test_function_s_own_name_means_nothing(make_learner):
    seen = []

    def set_lr(learn, value):
        seen.append(value)

    set_lr.__qualname__ = "lr"
    cbs = [
        ScheduleCB(set_lr, lambda step: step),
        SWACB(1, swa_lr=0.05),
        BatchSchedulerCB(OneCycleLR),
        MetricsCB(),
    ]
    make_learner(cbs=cbs, opt_func=SGD).fit(2)
    assert {*seen} == {0, 1, 2, 3, 4, 5}
