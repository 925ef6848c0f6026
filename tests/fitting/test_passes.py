"""What kind of pass runs, and which hooks run in it."""

import pytest
import torch
from torch import nn

from minilearn import EMACB, SWACB, Callback, MetricsCB, ProgressCB, RecorderCB, TensorLoader, TestTimeFlipCB
from minilearn.events import STEPS, events


class TraceCB(Callback):
    """Note each event with the purpose of its pass."""

    def __init__(self):
        self.seen = []


def tracing(event):
    def hook(self, learn):
        self.seen.append((learn.purpose, event))

    return hook


for event in events():
    if event not in STEPS:
        setattr(TraceCB, event, tracing(event))


@pytest.fixture
def trace():
    return TraceCB()


def of(trace, purpose):
    return [event for kind, event in trace.seen if kind == purpose]


FORWARD = ["before_forward", "after_predict", "after_loss", "after_forward", "cleanup_forward"]
BATCH = ["before_batch", *FORWARD, "after_batch", "cleanup_batch"]
PREDICT = ["before_batch", "before_forward", "after_predict", "cleanup_forward", "cleanup_batch"]


def test_fit_has_all_hooks_and_its_validation_too(make_learner, trace):
    make_learner(cbs=trace).fit()
    assert {purpose for purpose, _ in trace.seen} == {"fit"}
    assert set(of(trace, "fit")) == set(events()) - set(STEPS)


def test_fit_without_training_fires_fit_epoch_and_validate(make_learner, trace):
    make_learner(cbs=trace, n_valid=1).fit(train=False)
    assert of(trace, "fit") == [
        *("before_fit", "before_epoch", "before_validate", *BATCH, "at_rest"),
        *("after_validate", "cleanup_validate", "after_epoch", "cleanup_epoch", "at_rest"),
        *("after_fit", "cleanup_fit", "at_rest"),
    ]


def test_validate_fires_validate_and_its_batches(make_learner, trace):
    make_learner(cbs=trace, n_valid=2).validate()
    assert trace.seen == [
        ("validate", event)
        for event in ("before_validate", *BATCH, *BATCH, "after_validate", "cleanup_validate")
    ]


def test_predict_fires_what_surrounds_the_model(make_learner, trace):
    learn = make_learner(cbs=trace, n_valid=2)
    learn.predict(learn.dls.valid)
    assert trace.seen == [("predict", event) for event in PREDICT * 2]


def test_measuring_of_norms_fires_no_after_predict(make_learner, trace):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    make_learner(model=model, cbs=[trace, SWACB(0)], n_batches=2, n_valid=1).fit(1)
    assert set(of(trace, "measure")) == {*PREDICT} - {"after_predict"}
    assert set(of(trace, "validate")) == {"before_validate", *BATCH, "after_validate", "cleanup_validate"}


@pytest.mark.parametrize("event", ["before_fit", "before_epoch", "before_train", "after_step", "after_fit"])
def test_nested_pass_fires_the_same_as_one_alone_and_restores_the_purpose(make_learner, trace, at, event):
    purposes = []

    def inside(learn):
        purposes.append((learn.purpose, learn.is_nested))
        learn.validate()
        learn.predict(learn.dls.valid)
        purposes.append((learn.purpose, learn.is_nested))

    learn = make_learner(cbs=[trace, at(event, inside)], n_batches=1, n_valid=1)
    learn.fit()
    assert of(trace, "validate") == ["before_validate", *BATCH, "after_validate", "cleanup_validate"]
    assert of(trace, "predict") == PREDICT
    assert purposes == [("fit", False)] * 2
    assert learn.purpose is None


def test_purpose_of_lr_find_is_its_own(make_learner, at):
    seen = []
    learn = make_learner(
        cbs=[at(event, lambda learn: seen.append(learn.purpose)) for event in ("before_fit", "after_step")]
    )
    learn.lr_find(n_steps=10)
    assert seen == ["lr_find"] * 11
    learn.fit()
    assert seen[11:] == ["fit"] * 4


def test_purpose_is_none_after_an_error(make_learner, at):
    learn = make_learner(cbs=at("after_loss", lambda learn: 1 / 0))
    for run in (learn.fit, learn.validate):
        with pytest.raises(ZeroDivisionError):
            run()
        assert (learn.purpose, learn.scopes) == (None, [])


@pytest.mark.parametrize("event", ["before_train", "after_step"])
def test_nested_pass_leaves_the_random_numbers_of_training_as_they_were(make_learner, at, event):
    def drawn(*cbs):
        torch.manual_seed(0)
        numbers = []
        note = at("before_batch", lambda learn: learn.training and numbers.append(torch.rand(1).item()))
        make_learner(cbs=[note, *cbs]).fit()
        return numbers

    def inside(learn):
        learn.validate()

    draw = at("before_batch", lambda learn: learn.training or torch.rand(3), order=1)
    assert drawn(draw) == drawn(draw, at(event, inside))


# prepare and release --------------------------------------------------------------------------------


def make_ready(name, seen, order=0, fails=""):
    class ReadyCB(Callback):
        def prepare(self, learn):
            seen.append(f"prepare {name}")
            if fails == "prepare":
                raise ZeroDivisionError

        def release(self, learn):
            seen.append(f"release {name}")

    ReadyCB.order = order
    return ReadyCB()


RUNS = {
    "fit": lambda learn: learn.fit(),
    "validate": lambda learn: learn.validate(),
    "predict": lambda learn: learn.predict(learn.dls.valid),
}


@pytest.mark.parametrize("name", RUNS)
def test_each_outermost_pass_is_prepared_and_released_in_reverse_order(make_learner, at, name):
    seen = []
    inside = at("after_predict", lambda learn: learn.is_nested or learn.validate())
    learn = make_learner(cbs=[make_ready("b", seen, 1), make_ready("a", seen), inside])
    RUNS[name](learn)
    assert seen == ["prepare a", "prepare b", "release b", "release a"]


@pytest.mark.parametrize("name", RUNS)
def test_what_was_prepared_is_released_after_an_error(make_learner, at, name):
    seen = []
    learn = make_learner(cbs=[make_ready("a", seen), at("after_predict", lambda learn: 1 / 0)])
    with pytest.raises(ZeroDivisionError):
        RUNS[name](learn)
    assert seen == ["prepare a", "release a"]


def test_prepare_that_fails_is_released_with_those_before_it(make_learner):
    seen = []
    cbs = [make_ready("a", seen), make_ready("b", seen, 1, "prepare"), make_ready("c", seen, 2)]
    with pytest.raises(ZeroDivisionError):
        make_learner(cbs=cbs).fit()
    assert seen == ["prepare a", "prepare b", "release b", "release a"]


def test_what_sits_out_evaluation_is_not_prepared_for_it(make_learner):
    seen = []
    cb = make_ready("a", seen)
    type(cb).in_evaluation = False
    learn = make_learner(cbs=cb)
    learn.validate()
    assert seen == []
    learn.fit()
    assert seen == ["prepare a", "release a"]


def test_missing_attribute_that_only_before_fit_makes_is_explained(make_learner):
    class CountCB(Callback):
        def before_fit(self, learn):
            self.n = 0

        def after_batch(self, learn):
            self.n += 1

    learn = make_learner(cbs=CountCB())
    with pytest.raises(AttributeError) as caught:
        learn.validate()
    assert any("before_fit does not run" in note and "prepare" in note for note in caught.value.__notes__)
    learn.fit()
    learn.validate()


# Users' callbacks beside everything ---------------------------------------------------------------


class RowCB(Callback):
    """Read the newest row when an epoch is over."""

    def __init__(self):
        self.rows = []

    def after_epoch(self, learn):
        self.rows.append(learn.history[-1])


class KeepCB(Callback):
    """Collect predictions and targets of validation."""

    def __init__(self):
        self.pairs = []

    def after_batch(self, learn):
        if not learn.training:
            self.pairs.append((learn.preds.argmax(1), learn.yb))


class ResetCB(Callback):
    """Forget the records of the fit before."""

    def before_fit(self, learn):
        self.losses = []

    def after_step(self, learn):
        self.losses.append(learn.loss.item())


class InsideCB(Callback):
    """Validate and predict at each event of training that can."""

    def before_train(self, learn):
        learn.validate()

    def after_step(self, learn):
        learn.predict(learn.dls.valid)

    def after_epoch(self, learn):
        learn.validate()


@pytest.mark.parametrize("average", [None, SWACB, EMACB])
@pytest.mark.parametrize("is_nested", [False, True])
def test_plain_callbacks_of_users_need_no_guard(average, is_nested):
    from minilearn import Learner

    rows, kept, reset, recorder = RowCB(), KeepCB(), ResetCB(), RecorderCB()
    x, y = torch.randn(12, 3, 4, 4), torch.arange(12) % 2
    dls = {"train": TensorLoader(x[:8], y[:8], bs=4), "eval": TensorLoader(x[8:], y[8:], bs=2)}
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    cbs = [MetricsCB(), TestTimeFlipCB(), rows, kept, reset, recorder]
    cbs += [average()] if average else []
    cbs += [InsideCB()] if is_nested else []
    learn = Learner(model, dls, lr=0.1, cbs=cbs, default_cbs=False)
    learn.validate()  # before any fit
    learn.predict(learn.dls.valid)
    assert rows.rows == []
    learn.fit(3)
    n_kept = len(kept.pairs)
    assert [row["epoch"] for row in rows.rows] == [0, 1, 2]
    assert all(row in learn.history for row in rows.rows)
    assert len(reset.losses) == len(recorder.recs["loss"]) == 6
    learn.predict(learn.dls.valid)
    assert (len(kept.pairs), len(reset.losses), len(rows.rows)) == (n_kept, 6, 3)
    learn.validate()
    assert (len(kept.pairs), len(reset.losses), len(rows.rows)) == (n_kept + 2, 6, 3)


def test_progress_shows_a_validate_of_its_own_and_none_of_a_predict(make_learner, capsys):
    learn = make_learner(cbs=[MetricsCB(), ProgressCB()])
    learn.validate()
    assert "eval:" in capsys.readouterr().out
    learn.predict(learn.dls.valid)
    assert capsys.readouterr().out == ""
