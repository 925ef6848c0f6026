import pytest
import torch
from toolbox import untimed_rows
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CallbackHost,
    DataLoaders,
    DeviceCB,
    Learner,
    MetricsCB,
    MomentumCB,
    ProgressCB,
    RecorderCB,
    SingleBatchCB,
    TensorLoader,
    TerminateOnNaNCB,
    with_cbs,
)
from minilearn.events import STEPS, events


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def after_batch(self, learn):
        self.seen.append(learn.epoch)


def nothing(self, learn):
    pass


# Hooks are checked when the class is made ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("after_bacth", "after_batch"),
        ("before_stp", "before_step"),
        ("bacward", "backward"),
        ("zero_grads", "zero_grad"),
        ("before_everything", "minilearn.events"),
        ("after_all_of_it", "minilearn.events"),
        ("cleanup_all", "minilearn.events"),
        ("on_something_end", "minilearn.events"),
        ("on_epoch_end", "after_epoch"),
        ("on_train_epoch_start", "before_epoch"),
        ("on_fit_begin", "before_fit"),
        ("begin_fit", "before_fit"),
        ("on_train_batch_end", "after_batch"),
        ("on_validation_start", "before_validate"),
        ("on_step_end", "after_step"),  # of the optimizer, in transformers and in fastai
    ],
)
def test_a_misspelt_hook_is_an_error_when_the_class_is_made(name, hint):
    with pytest.raises(TypeError, match=rf"My\.{name}.*{hint}"):
        type("My", (Callback,), {name: nothing})


# Keras, skorch, Lightning, fastai, transformers, Ignite, Composer, pytorch-accelerated, XGBoost.
HOOKS_OF_OTHERS = {
    "before_fit": "on_train_begin on_train_start on_fit_start on_training_run_start before_training",
    "after_fit": "on_train_end on_fit_end on_training_run_end after_training fit_end on_end",
    "before_epoch": "on_epoch_begin epoch_start epoch_started on_training_run_epoch_start",
    "after_epoch": "on_epoch_end epoch_completed training_epoch_end on_train_epoch_end",
    "before_validate": "on_validation_epoch_start on_test_begin eval_start on_eval_epoch_start before_val",
    "after_validate": "on_validation_end on_test_end on_evaluate validation_epoch_end on_eval_run_end",
    "before_batch": "on_batch_begin iteration_started before_iteration after_dataloader",
    "after_batch": "on_batch_end iteration_completed on_substep_end",
    r"before_batch \(with `if learn\.training": "on_train_batch_begin before_train_batch on_train_step_start",
    r"after_batch \(with `if not learn\.training": "on_test_batch_end on_validation_batch_end eval_batch_end",
    r"before_forward \(with `if not learn\.training": "eval_before_forward",
    "after_predict": "before_loss after_pred on_loss_begin",
    "after_loss": "before_backward on_before_backward on_backward_begin",
    "after_backward": "on_backward_end on_after_backward on_grad_computed",
    "before_step": "on_before_optimizer_step on_pre_optimizer_step before_update on_step_begin",
    "after_step": "on_step_end on_optimizer_step on_before_zero_grad after_update",
    "get_loss": "training_step validation_step",
    "cleanup_batch": "after_cancel_batch",
    "cleanup_fit": "after_cancel_fit on_exception",
    "prepare": "on_predict_begin on_predict_start predict_start",
    "release": "on_predict_end predict_end",
    "state_dict": "on_save_checkpoint",
}


@pytest.mark.parametrize(
    ("name", "hint"),
    [(name, hint) for hint, names in HOOKS_OF_OTHERS.items() for name in names.split()],
)
def test_a_hook_of_another_library_is_sent_to_one_that_runs_as_often(name, hint):
    with pytest.raises(TypeError, match=rf"My\.{name}.*did you mean {hint}[?`]"):
        type("My", (Callback,), {name: nothing})


def test_a_misspelt_hook_of_a_mixin_is_an_error():
    mixin = type("Mixin", (), {"after_bacth": nothing})
    with pytest.raises(TypeError, match=r"My\.after_bacth"):
        type("My", (mixin, Callback), {})


@pytest.mark.parametrize("wrap", [staticmethod, classmethod])
def test_a_misspelt_hook_is_found_however_it_is_wrapped(wrap):
    with pytest.raises(TypeError, match="after_batch"):
        type("My", (Callback,), {"after_bacth": wrap(nothing)})


@pytest.mark.parametrize(
    "name", ["_after_bacth", "_on_end", "show", "lr_of", "plot", "start_batch", "is_completed"]
)
def test_helpers_are_no_hooks(name):
    assert hasattr(type("My", (Callback,), {name: nothing}), name)


def no_learner(self):
    pass


def two_more(self, learn, other):
    pass


def keyword_only(self, *, learn):
    pass


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (no_learner, r"\(self\)"),
        (two_more, r"\(self, learn, other\)"),
        (keyword_only, r"\(self, \*, learn\)"),
        (staticmethod(nothing), r"\(self, learn\)"),
    ],
)
def test_a_hook_takes_the_learner(function, signature):
    with pytest.raises(TypeError, match=rf"My\.after_step{signature}.*after_step\(self, learn\)"):
        type("My", (Callback,), {"after_step": function})


@pytest.mark.parametrize(
    "function",
    [
        lambda self, learn, more=1: None,
        lambda self, *args: None,
        staticmethod(lambda learn: None),
        classmethod(nothing),
    ],
)
def test_a_hook_may_take_the_learner_in_any_way(function):
    assert hasattr(type("My", (Callback,), {"after_step": function}), "after_step")


async def awaited(self, learn):
    pass


def iterated(self, learn):
    yield


@pytest.mark.parametrize("function", [awaited, iterated])
def test_a_hook_is_not_async_nor_a_generator(function):
    with pytest.raises(TypeError, match=r"My\.after_step"):
        type("My", (Callback,), {"after_step": function})


@pytest.mark.parametrize("value", [3, None, property(lambda self: 0)])
def test_an_event_s_name_is_kept_for_a_method(value):
    with pytest.raises(TypeError, match=r"My\.step = .*method"):
        type("My", (Callback,), {"step": value})


def test_an_inherited_hook_fires(make_learner):
    cb = type("Child", (Watch,), {})()
    make_learner(n_batches=2).fit(valid=False, cbs=cb)
    assert cb.seen == [0, 0]


def test_a_hook_set_on_an_instance_fires_with_the_learner_as_argument(make_learner):
    cb, seen = Callback(), []
    cb.after_step = seen.append
    learn = make_learner(n_batches=2)
    learn.fit(cbs=cb)
    assert seen == [learn, learn]


def test_a_misspelt_hook_on_an_instance_is_an_error(make_learner):
    cb = Callback()
    cb.after_stp = print
    with pytest.raises(TypeError, match="after_step"):
        make_learner(cbs=cb)


def test_a_value_on_an_instance_under_an_event_s_name_is_an_error_before_training(make_learner):
    cb = Callback()
    cb.step = 0
    with pytest.raises(TypeError, match=r"step = 0.*method"):
        make_learner().fit(cbs=cb)


def test_a_hook_on_a_learner_is_an_error():
    with pytest.raises(TypeError, match=r"Mine.after_batch.*Callback"):
        type("Mine", (Learner,), {"after_batch": nothing})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("on_epoch_end", "after_epoch"),
        ("on_train_begin", "before_fit"),
        ("on_validation_epoch_end", "after_validate"),
        ("before_backward", "after_loss"),
        ("after_pred", "after_predict"),
        ("on_step_end", "after_step"),
        ("on_after_backward", "after_backward"),
        ("on_train_batch_end", "after_batch"),
    ],
)
def test_a_hook_of_another_library_on_a_learner_is_an_error_too(name, hint):
    with pytest.raises(TypeError, match=rf"Mine.{name}.*Callback.*{hint}"):
        type("Mine", (Learner,), {name: nothing})
    assert type("Mine", (Learner,), {f"_{name}": nothing, "before": nothing, "on_device": nothing})


def test_hooks_of_a_scope_of_the_user_s_own_are_known_after_with_cbs():
    hooks = {"before_game": nothing}
    with pytest.raises(TypeError, match="with_cbs"):
        type("My", (Callback,), hooks)
    with_cbs("game")
    type("My", (Callback,), hooks)


# Steps have one owner -----------------------------------------------------------------------------


def note_step(step, calls):
    """Make a hook that does a step as the Learner does, and notes it."""

    def hook(self, learn=None):
        calls.append(step)
        getattr(Learner, step)(learn or self)

    return hook


def test_the_learner_owns_each_step_by_default(make_learner):
    learn = make_learner()
    assert [learn.has_default(step) for step in STEPS] == [True] * 6


@pytest.mark.parametrize("step", STEPS)
def test_a_callback_may_own_a_step(step, make_learner):
    calls = []
    learn = make_learner(
        n_batches=2, n_valid=0, cbs=type("Own", (Callback,), {step: note_step(step, calls)})()
    )
    learn.fit()
    n_looks = step == "unpack"  # at a batch, before training
    assert calls == [step] * (2 + n_looks)
    assert not learn.has_default(step)


@pytest.mark.parametrize("step", STEPS)
def test_a_subclass_may_own_a_step(step):
    calls = []
    subclass = type("MyLearner", (Learner,), {step: note_step(step, calls)})
    data = TensorLoader(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]), bs=2)
    subclass(nn.Linear(3, 2), DataLoaders(data), default_cbs=False).fit()
    assert calls == [step] * (2 + (step == "unpack"))


@pytest.mark.parametrize("step", STEPS)
def test_two_callbacks_that_own_a_step_are_an_error_that_names_both(step, make_learner):
    one, two = (type(name, (Callback,), {step: nothing})() for name in ("One", "Two"))
    with pytest.raises(ValueError, match=rf"^{step}.*One\.{step}.*Two\.{step}"):
        make_learner(cbs=[one, two])


def test_a_second_owner_given_to_fit_is_an_error_before_training(make_learner):
    learn = make_learner(cbs=MomentumCB())
    with pytest.raises(ValueError, match=r"MomentumCB\.zero_grad.*Own\.zero_grad"):
        learn.fit(cbs=type("Own", (Callback,), {"zero_grad": nothing})())
    assert len(learn.cbs) == 1


def test_a_subclass_and_a_callback_that_own_a_step_are_an_error_that_names_both():
    subclass = type("MyLearner", (Learner,), {"step": lambda self: None})
    with pytest.raises(ValueError, match=r"step.*MyLearner\.step.*Own\.step"):
        subclass(nn.Linear(3, 2), {"train": [1]}, cbs=type("Own", (Callback,), {"step": nothing})())


# The order of callbacks ---------------------------------------------------------------------------


def test_callbacks_run_by_order_then_as_listed(make_learner):
    class Late(Callback):
        order = 5

    class Inherits(Late):
        pass

    late, inherits, early, early2 = Late(), Inherits(), Callback(), Callback()
    assert make_learner(cbs=[late, early, inherits, early2]).cbs == (early, early2, late, inherits)


def shipped():
    return [
        TerminateOnNaNCB(),
        ProgressCB(),
        BatchSchedulerCB(OneCycleLR),
        RecorderCB(),
        MetricsCB(),
        SingleBatchCB(),
        DeviceCB("cpu"),
    ]


def test_shipped_callbacks_run_in_one_order_however_they_are_listed(make_learner):
    expected = (
        DeviceCB,
        SingleBatchCB,
        MetricsCB,
        TerminateOnNaNCB,
        RecorderCB,
        BatchSchedulerCB,
        ProgressCB,
    )
    for cbs in (shipped(), shipped()[::-1]):
        assert tuple(map(type, make_learner(cbs=cbs).cbs)) == expected


def test_result_does_not_depend_on_the_order_of_the_list(make_learner):
    results = []
    for flip in (1, -1):
        learn = make_learner(
            cbs=[BatchSchedulerCB(OneCycleLR), recorder := RecorderCB(), MetricsCB()][::flip]
        )
        learn.fit(2)
        row = untimed_rows(learn)[-1]
        results.append((recorder.recs, row, learn.model.weight.tolist()))
    assert results[0] == results[1]


def test_explain_prints_the_hooks_of_each_event_in_order(make_learner, capsys):
    class Two(Watch):
        order = -1

    make_learner(cbs=[Watch(), Two(), MomentumCB()]).explain()
    assert capsys.readouterr().out.splitlines() == [
        "unpack       Learner  (the owner)",
        "predict      Learner  (the owner)",
        "get_loss     Learner  (the owner)",
        "backward     Learner  (the owner)",
        "before_step  MomentumCB",
        "step         Learner  (the owner)",
        "zero_grad    MomentumCB  (the owner)",
        "after_batch  Two -> Watch",
        "cleanup_fit  MomentumCB",
    ]


# The set of callbacks -----------------------------------------------------------------------------


def test_callbacks_given_to_fit_are_gone_after_it(make_learner):
    learn, cb = make_learner(n_batches=1, n_valid=0, cbs=Watch()), Watch()
    before = learn.cbs
    learn.fit(cbs=cb)
    assert learn.cbs == before
    learn.fit(cbs=[])
    assert cb.seen == [0]


def test_callbacks_given_to_fit_are_gone_after_an_error(make_learner, at):
    learn = make_learner()
    with pytest.raises(ZeroDivisionError):
        learn.fit(cbs=[Watch(), at("after_loss", lambda learn: 1 / 0)])
    assert learn.cbs == ()
    learn.fit()


def test_a_callback_added_in_the_middle_of_a_fit_takes_part_and_stays(make_learner, at):
    added = Watch()

    def add(learn):
        if learn.epoch == 1 and added not in learn.cbs:
            learn.add_cb(added)

    learn = make_learner(n_batches=2, n_valid=0)
    learn.fit(3, cbs=at("before_batch", add))
    assert added.seen == [1, 1, 2, 2]
    assert learn.cbs == (added,)


def test_a_removed_callback_takes_part_no_more(make_learner, at):
    cb = Watch()

    def remove(learn):
        if learn.epoch == 1:
            learn.remove_cb(cb)

    learn = make_learner(n_batches=2, n_valid=0, cbs=cb)
    learn.fit(2, cbs=at("before_train", remove))
    assert cb.seen == [0, 0]
    assert learn.cbs == ()


def test_remove_cb_refuses_what_was_not_added(make_learner):
    learn = make_learner(default_cbs=True, cbs=Watch())
    for cb in (Watch(), learn.cbs[0]):
        with pytest.raises(ValueError, match=r"\[Watch\(\)\]"):
            learn.remove_cb(cb)


def test_hooks_are_looked_up_per_fit_and_not_per_event(make_learner, monkeypatch):
    calls, find = [], CallbackHost._find_hooks

    def counted(self, cbs):
        calls.append(cbs)
        return find(self, cbs)

    monkeypatch.setattr(CallbackHost, "_find_hooks", counted)
    learn = make_learner(n_batches=5, cbs=Watch())
    calls.clear()
    learn.fit(1)
    per_fit = len(calls)
    calls.clear()
    learn.fit(4)
    assert len(calls) == per_fit <= 3  # when its callbacks come, when it starts, when they go


@pytest.mark.parametrize(
    ("cb", "message"),
    [
        (MetricsCB, r"MetricsCB.*MetricsCB\(\)"),
        (OneCycleLR, r"BatchSchedulerCB\(OneCycleLR\)"),
        (
            StepLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), 1),
            r"BatchSchedulerCB\(OneCycleLR\)",
        ),
        (nn.Linear(1, 1), r"cbs.*Linear\(.*\).*instances.*Callback"),
        ("RecorderCB", r"cbs.*'RecorderCB'.*instances.*Callback"),
    ],
    ids=["class", "scheduler class", "scheduler", "module", "string"],
)
def test_what_is_no_callback_is_an_error(cb, message, make_learner):
    for give in (lambda: make_learner(cbs=[cb]), lambda: make_learner().fit(cbs=cb)):
        with pytest.raises(TypeError, match=message):
            give()


def test_the_same_instance_twice_is_an_error(make_learner):
    cb = Watch()
    with pytest.raises(ValueError, match=r"Watch\(\).*twice"):
        make_learner(cbs=[cb, cb])


def test_the_same_instance_in_learner_and_fit_is_an_error(make_learner):
    cb = Watch()
    learn = make_learner(cbs=cb)
    with pytest.raises(ValueError, match=r"Watch\(\).*twice"):
        learn.fit(cbs=cb)
    with pytest.raises(ValueError, match=r"Watch\(\).*twice"):
        learn.add_cb(cb)
    learn.fit(valid=False)
    assert cb.seen == [0, 0, 0]


# Defaults -----------------------------------------------------------------------------------------


def kinds(learn):
    return [type(cb).__name__ for cb in learn.cbs]


def test_default_callbacks_come_with_the_learner(make_learner):
    assert kinds(make_learner(default_cbs=True)) == ["DeviceCB", "MetricsCB", "ProgressCB"]
    assert kinds(make_learner(default_cbs=False)) == []


@pytest.mark.parametrize("subclass", [False, True])
def test_one_of_the_same_kind_takes_a_default_s_place(subclass, make_learner):
    cb = type("MyMetrics", (MetricsCB,), {})() if subclass else MetricsCB()
    learn = make_learner(default_cbs=True, cbs=cb)
    assert kinds(learn) == ["DeviceCB", type(cb).__name__, "ProgressCB"]
    assert learn.cbs[1] is cb


def test_one_given_to_fit_takes_a_default_s_place_for_that_fit_only(make_learner):
    learn, cb = make_learner(default_cbs=True, n_valid=0), MetricsCB()
    default = learn.cbs[1]
    seen = []
    cb.before_fit = lambda learn: seen.append(learn.cbs)
    learn.fit(cbs=cb)
    assert seen[0][1] is cb
    assert len(seen[0]) == 3
    assert learn.cbs[1] is default
    assert len(learn.history) == 1


# Notes on errors ----------------------------------------------------------------------------------


class BrokenError(Exception):
    pass


def breaks(*_):
    raise BrokenError


def note_of(learn, error=BrokenError, **kwargs):
    with pytest.raises(error) as e:
        learn.fit(2, **kwargs)
    (note,) = e.value.__notes__
    return note


def test_an_error_in_a_callback_says_where_it_was_raised(make_learner, at):
    def break_late(learn):
        if learn.epoch == 1 and learn.batch_idx == 2:
            raise BrokenError

    note = note_of(make_learner(cbs=at("after_loss", break_late)), valid=False)
    assert note == "minilearn: in At.after_loss, epoch 1 of 2, train batch 2, step 5"


@pytest.mark.parametrize(
    ("event", "where"),
    [
        ("before_fit", "epoch 0 of 2"),
        ("before_epoch", "epoch 0 of 2"),
        ("after_step", "epoch 0 of 2, train batch 0, step 1"),
        ("cleanup_step", "epoch 0 of 2, train batch 0, step 1"),
        ("after_train", "epoch 0 of 2, after train batch 2, step 3"),
        ("after_validate", "epoch 0 of 2, after eval batch 0, step 3"),
        ("cleanup_fit", "epoch 1 of 2"),
    ],
)
def test_note_says_what_is_running(event, where, make_learner, at):
    assert note_of(make_learner(cbs=at(event, breaks))) == f"minilearn: in At.{event}, {where}"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_gets_a_note_too(error, make_learner, at):
    def stop(learn):
        raise error

    note = note_of(make_learner(cbs=at("after_step", stop)), error)
    assert note == "minilearn: in At.after_step, epoch 0 of 2, train batch 0, step 1"


def test_an_error_in_the_model_is_one_of_predict(make_learner):
    model = nn.Linear(3, 2)
    model.register_forward_hook(breaks)
    assert note_of(make_learner(model=model)) == (
        "minilearn: in Learner.predict, epoch 0 of 2, train batch 0, step 0"
    )


def test_an_error_in_the_loss_is_one_of_get_loss(make_learner):
    assert note_of(make_learner(loss_func=breaks)) == (
        "minilearn: in Learner.get_loss, epoch 0 of 2, train batch 0, step 0"
    )


def test_an_error_in_the_optimizer_is_one_of_step(make_learner, bare_sgd):
    opt_func = type("Opt", (bare_sgd,), {"step": lambda self: breaks()})
    assert note_of(make_learner(opt_func=opt_func)) == (
        "minilearn: in Learner.step, epoch 0 of 2, train batch 0, step 0"
    )


def test_an_error_in_the_loader_is_one_of_the_phase(make_learner):
    class Loader(list):
        def __iter__(self):
            yield from list.__iter__(self)
            if learn.is_fitting:
                raise BrokenError

    batch = (torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
    learn = make_learner(dls={"train": Loader([batch, batch])})
    assert note_of(learn) == "minilearn: in Learner._train, epoch 0 of 2, after train batch 1, step 2"


def test_a_host_of_the_user_s_own_says_its_scopes():
    class Host(CallbackHost):
        @with_cbs("round")
        def play(self):
            raise BrokenError

    with pytest.raises(BrokenError) as e:
        Host().play()
    assert e.value.__notes__ == ["minilearn: in Host.play, inside round"]


def test_events_lists_each_name_once():
    assert len(events()) == len(set(events()))


def test_an_attribute_named_as_an_event_does_not_break_the_fit_that_set_it(make_learner):
    class CountCB(Callback):
        def before_fit(self, learn):
            self.step = 0

        def after_step(self, learn):
            self.step += 1

    learn = make_learner(cbs=(cb := CountCB()))
    learn.fit()
    assert cb.step == learn.n_steps
    with pytest.raises(TypeError, match=r"step = .*method"):
        learn.fit()


# The plan of steps --------------------------------------------------------------------------------


class PlanCB(Callback):
    """Plan what a function makes of each epoch's steps, and keep what it was given."""

    def __init__(self, function):
        self.function, self.given = function, []

    def plan_steps(self, learn, steps):
        self.given.append(list(steps))
        return [self.function(n) for n in steps]


class FirstPlanCB(PlanCB):
    order = -5


class NoLength(list):
    __len__ = None

    def __iter__(self):
        return iter([(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))] * 2)


def test_plan_of_a_callback_is_by_default_the_one_it_is_given():
    steps = [3, None]
    assert Callback().plan_steps(None, steps) is steps
    assert steps == [3, None]


def test_plan_begins_with_the_batches_of_the_loader(make_learner):
    learn = make_learner(n_batches=5, cbs=Callback())
    assert learn.planned_steps(3, 5) == [5, 5, 5]
    learn.fit(3)
    assert (learn.epoch_steps, learn.total_steps) == ([5, 5, 5], 15)


@pytest.mark.parametrize("flip", [1, -1])
def test_plan_goes_from_callback_to_callback_in_their_order(make_learner, flip):
    first, then = FirstPlanCB(lambda n: n + 1), PlanCB(lambda n: 2 * n)
    learn = make_learner(n_batches=3, cbs=[first, then][::flip])
    learn.fit(2)
    assert (first.given, then.given) == ([[3, 3]], [[4, 4]])
    assert (learn.epoch_steps, learn.total_steps) == ([8, 8], 16)


def test_epochs_may_be_planned_differently(make_learner):
    cb = Callback()
    cb.plan_steps = lambda learn, steps: [n - i for i, n in enumerate(steps)]
    learn = make_learner(n_batches=3, cbs=cb)
    learn.fit(3)
    assert (learn.epoch_steps, learn.total_steps) == ([3, 2, 1], 6)


@pytest.mark.parametrize(
    ("plan", "shown"),
    [
        (lambda steps: None, "None"),
        (lambda steps: steps[:1], r"\[3\]"),
        (lambda steps: [*steps, 3], r"\[3, 3, 3\]"),
        (tuple, r"\(3, 3\)"),
        (sum, "6"),
    ],
    ids=["nothing", "too short", "too long", "tuple", "number"],
)
def test_plan_that_is_no_list_with_each_epoch_is_an_error_that_names_the_callback(make_learner, plan, shown):
    class MyPlan(Watch):
        def plan_steps(self, learn, steps):
            return plan(steps)

    learn = make_learner(n_batches=3, cbs=[cb := MyPlan()])
    message = rf"^MyPlan\(\)\.plan_steps.*{shown}.*2"
    with pytest.raises(ValueError, match=message):
        learn.fit(2)
    with pytest.raises(ValueError, match=message):
        BatchSchedulerCB(OneCycleLR).preview(learn, 2)
    assert cb.seen == []


@pytest.mark.parametrize("entry", [1.5, -1, "3"])
def test_plan_with_what_is_no_count_is_an_error_that_names_the_callback(make_learner, entry):
    with pytest.raises(ValueError, match=r"PlanCB\(<lambda>\)\.plan_steps.*\[.*\]"):
        make_learner(cbs=PlanCB(lambda n: entry)).fit()


def test_wrong_plan_is_noticed_at_the_callback_that_made_it(make_learner):
    first, then = FirstPlanCB(lambda n: n), PlanCB(lambda n: n)
    first.plan_steps = lambda learn, steps: []
    with pytest.raises(ValueError, match=r"FirstPlanCB\(<lambda>\)\.plan_steps.*\[\]"):
        make_learner(cbs=[first, then]).fit()
    assert then.given == []


def test_steps_of_a_loader_without_length_are_none_in_the_plan(make_learner):
    cb = PlanCB(lambda n: n)
    learn = make_learner(dls={"train": NoLength()}, cbs=cb)
    learn.fit(2)
    assert cb.given == [[None, None]]
    assert (learn.epoch_steps, learn.total_steps, learn.n_steps) == ([None, None], None, 4)


def test_callback_may_know_what_the_loader_does_not(make_learner):
    learn = make_learner(dls={"train": NoLength()}, cbs=PlanCB(lambda n: 2))
    recorder = RecorderCB()
    learn.fit(3, cbs=[BatchSchedulerCB(OneCycleLR), recorder])
    assert (learn.epoch_steps, learn.total_steps, learn.n_steps) == ([2] * 3, 6, 6)
    assert recorder.recs["lr"][-1] == pytest.approx(0.1 / 25 / 1e4)


def test_one_epoch_that_is_not_known_leaves_the_total_unknown(make_learner):
    cb = Callback()
    cb.plan_steps = lambda learn, steps: [3, None]
    learn = make_learner(cbs=cb)
    learn.fit(2)
    assert (learn.epoch_steps, learn.total_steps) == ([3, None], None)


def test_plan_is_made_once_before_the_fit_begins(make_learner, at):
    seen = []

    class NoteCB(Callback):
        order = -200

        def plan_steps(self, learn, steps):
            seen.append("plan_steps")
            return [7]

        def before_fit(self, learn):
            seen.append(("before_fit", learn.epoch_steps, learn.total_steps))

    learn = make_learner(cbs=NoteCB())
    learn.fit(cbs=at("before_train", lambda learn: seen.append("before_train")))
    assert seen == ["plan_steps", ("before_fit", [7], 7), "before_train"]


def test_plan_gets_the_learner_with_the_callbacks_of_the_fit(make_learner):
    seen = []
    cb = Callback()
    cb.plan_steps = lambda learn, steps: seen.append((learn, learn.cbs)) or steps
    learn = make_learner(cbs=(watch := Watch()))
    learn.fit(cbs=cb)
    assert seen == [(learn, (watch, cb))]


def test_preview_asks_for_the_plan_too(make_learner):
    cb = PlanCB(lambda n: n - 1)
    learn = make_learner(n_batches=5, cbs=cb)
    assert len(BatchSchedulerCB(OneCycleLR).preview(learn, 3)) == 12
    assert cb.given == [[5] * 3]
    assert learn.epoch_steps == []


def test_fit_without_training_has_no_plan(make_learner):
    cb = PlanCB(lambda n: n)
    learn = make_learner(cbs=cb)
    learn.fit(2, train=False)
    learn.validate()
    learn.predict(learn.dls.valid)
    assert cb.given == []
    learn.fit(2, train=False)
    assert (learn.epoch_steps, learn.total_steps) == ([0, 0], 0)


def test_host_of_the_user_s_own_plans_too():
    first, then = FirstPlanCB(lambda n: n + 1), PlanCB(lambda n: 2 * n)
    assert CallbackHost([then, first]).planned_steps(2, 3) == [8, 8]
    assert CallbackHost().planned_steps(2, None) == [None, None]


# What a class declares ----------------------------------------------------------------------------


def test_only_one_of_a_class_and_its_subclasses_is_allowed_with_its_reason():
    class FirstCB(Callback):
        only_one = "both would write lr"

    class SecondCB(FirstCB):
        pass

    class OtherCB(Callback):
        only_one = "both would show bars"

    host = CallbackHost([FirstCB(), OtherCB()])
    with pytest.raises(ValueError, match=r"FirstCB\(\) and SecondCB\(\): .*both would write lr"):
        host.add_cb(SecondCB())
    assert [type(cb) for cb in host.cbs] == [FirstCB, OtherCB]


def test_only_one_holds_for_the_callbacks_of_a_fit_too(make_learner):
    class OneCB(Callback):
        only_one = "there is one of it"

    learn = make_learner(cbs=OneCB())
    with pytest.raises(ValueError, match="there is one of it"):
        learn.fit(cbs=OneCB())
    learn.fit()


def test_one_that_replaces_a_default_is_still_one():
    class OneCB(Callback):
        only_one = "there is one of it"

    mine = OneCB()
    assert CallbackHost([mine], defaults=[OneCB()]).cbs == (mine,)


PASSES = {
    "fit": (lambda learn: learn.fit(), True),
    "fit without validation": (lambda learn: learn.fit(valid=False), True),
    "fit without training": (lambda learn: learn.fit(train=False), False),
    "validate": (lambda learn: learn.validate(), False),
    "predict": (lambda learn: learn.predict(learn.dls.valid), False),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_sits_out_evaluation_has_no_hook_in_a_pass_that_does_not_train(make_learner, name):
    seen = []

    class TrainingCB(Callback):
        in_evaluation = False

        def before_fit(self, learn):
            seen.append("before_fit")

        def after_predict(self, learn):
            seen.append("after_predict")

        def cleanup_fit(self, learn):
            seen.append("cleanup_fit")

    run, trains = PASSES[name]
    learn = make_learner(cbs=TrainingCB(), n_batches=2, n_valid=1)
    run(learn)
    n_batches = {"fit": 3, "fit without validation": 2}.get(name, 0)
    assert seen == (["before_fit", *["after_predict"] * n_batches, "cleanup_fit"] if trains else [])
    seen.clear()
    learn.fit(valid=False)  # and then it takes part again
    assert seen[0] == "before_fit"


def test_what_sits_out_evaluation_sits_out_a_validation_inside_a_fit(make_learner, at):
    seen = []

    class TrainingCB(Callback):
        in_evaluation = False

        def after_batch(self, learn):
            seen.append(learn.phase)

    inside = at("after_train", lambda learn: learn.validate())
    make_learner(cbs=[TrainingCB(), inside], n_batches=2, n_valid=1).fit(2)
    assert seen == ["train", "train", "eval"] * 2


def test_what_sits_out_nested_passes_has_its_other_hooks_there(make_learner, at):
    seen = []

    class WatchCB(Callback):
        in_nested = False

        def before_validate(self, learn):
            seen.append("before_validate")

        def before_batch(self, learn):
            if not learn.training:
                seen.append("before_batch")

        def after_batch(self, learn):
            if not learn.training:
                seen.append("after_batch")

    inside = at("after_train", lambda learn: learn.validate())
    make_learner(cbs=[WatchCB(), inside], n_batches=2, n_valid=1).fit()
    assert seen == ["before_batch", "before_validate", "before_batch", "after_batch"]


def test_wrapper_that_sits_out_evaluation_wraps_nothing_there(make_learner):
    wrapped = []

    class WrapCB(Callback):
        in_evaluation = False

        def wrap_hook(self, name, hook):
            wrapped.append(name)
            return hook

    learn = make_learner(cbs=WrapCB())
    wrapped.clear()
    learn.validate()
    in_validation = len(wrapped)
    learn.fit()
    assert len(wrapped) > in_validation
