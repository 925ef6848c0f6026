import math

import pytest
from toolbox import mentions

from minilearn import CancelValidateException, EarlyStoppingCB, MetricsCB, Monitor


class Constant:
    def __init__(self, value):
        self.value = value

    def reset(self):
        pass

    def update(self, preds, target):
        pass

    def compute(self):
        return self.value


def losses(learn, phase):
    return [row["loss"] for row in learn.history if row["train"] == phase]


@pytest.fixture
def check(make_learner):
    """Check a name when a fit begins: check(name, valid=True, **kwargs of make_learner)."""

    def fit(name, valid=True, **kwargs):
        metrics = MetricsCB(top1=Constant(1.0))
        learn = make_learner(**({"cbs": [metrics]} | kwargs))
        learn.fit(valid=valid, cbs=[EarlyStoppingCB(name, mode="max")])

    return fit


@pytest.mark.parametrize("name", ["loss", "top1", "train/loss", "train/top1", "eval/loss", "eval/top1"])
def test_measured_names_pass_the_check(check, name):
    check(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("eval/los", "did you mean 'eval/loss'"),
        ("valid/loss", "did you mean 'eval/loss'"),
        ("xyz", ""),
    ],
)
def test_unknown_name_is_refused_with_a_suggestion_and_the_names(check, name, hint):
    names = "top1, loss, train/top1, train/loss, eval/top1, eval/loss"
    with pytest.raises(ValueError, match=mentions(f"monitor='{name}' ... {hint} ... {names}")):
        check(name)


@pytest.mark.parametrize(
    "kwargs", [{"n_valid": 0}, {"valid": False}], ids=["no loader", "fit without validation"]
)
def test_eval_names_need_validation(check, kwargs):
    check("train/loss", **kwargs)
    check("loss", **kwargs)
    with pytest.raises(ValueError, match=r"monitor='eval/loss'.*top1, loss"):
        check("eval/loss", **kwargs)


def test_without_metrics_nothing_is_measured(check):
    with pytest.raises(ValueError, match=r"monitor='loss'.*MetricsCB"):
        check("loss", cbs=[])


def test_bare_name_is_the_newest_of_validation(make_learner):
    learn = make_learner(cbs=[MetricsCB()])
    learn.fit(2)
    assert Monitor("loss").value(learn) == Monitor("eval/loss").value(learn) == losses(learn, "eval")[-1]
    assert Monitor("train/loss").value(learn) == losses(learn, "train")[-1] != losses(learn, "eval")[-1]


@pytest.mark.parametrize("n_epochs_before", [0, 1])
def test_bare_name_is_trainings_in_a_fit_without_validation(make_learner, n_epochs_before):
    learn = make_learner(cbs=[MetricsCB()])
    if n_epochs_before:
        learn.fit(n_epochs_before)
    learn.fit(valid=False)
    assert Monitor("loss").value(learn) == losses(learn, "train")[-1]


def test_each_of_several_values_can_be_monitored(make_learner):
    learn = make_learner(cbs=[MetricsCB(each=Constant([0.5, 1.0]))])
    Monitor("each_1", "max").check(learn)
    learn.fit()
    assert [Monitor(name).value(learn) for name in ("each_0", "train/each_1", "eval/each_1")] == [0.5, 1, 1]


def test_name_that_turns_out_to_have_several_values_is_an_error_that_lists_them(make_learner):
    learn = make_learner(cbs=[MetricsCB(each=Constant([0.5, 1.0]))])
    learn.fit()
    with pytest.raises(ValueError, match=r"monitor='each'.*each_0, each_1, loss"):
        Monitor("each").value(learn)


def test_row_of_a_cancelled_phase_is_asked_for_in_vain(make_learner, at):
    def cancel(learn):
        raise CancelValidateException

    values = []
    cbs = [
        MetricsCB(),
        at("before_validate", cancel),
        at("after_epoch", lambda learn: values.append(Monitor("eval/loss").value(learn))),
    ]
    with pytest.raises(ValueError, match=r"epoch 0.*eval"):
        make_learner(cbs=cbs).fit()


# Which value is better --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "eval/loss", "train/loss", "dice_loss"])
def test_less_of_a_loss_is_better(name):
    assert Monitor(name).mode == "min"


@pytest.mark.parametrize("name", ["top1", "eval/top1", "loss_scale", "loss/top1"])
def test_mode_of_another_value_is_not_known(name):
    assert Monitor(name).mode is None


@pytest.mark.parametrize("name", ["loss", "top1"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_mode_that_is_given_holds(name, mode):
    assert Monitor(name, mode).mode == mode


@pytest.mark.parametrize("mode", ["maximum", "MIN", "", 1, True])
def test_mode_is_min_or_max(mode):
    with pytest.raises(ValueError, match=rf"^mode={mode!r}.*'min'.*'max'"):
        Monitor("loss", mode)


def test_value_of_unknown_mode_is_refused_when_it_is_checked(make_learner):
    learn = make_learner(cbs=[MetricsCB(top1=Constant(1.0))])
    with pytest.raises(ValueError, match=r"monitor='eval/top1'.*mode='max'.*mode='min'"):
        learn.fit(cbs=[EarlyStoppingCB("eval/top1")])


def test_unknown_name_is_refused_before_an_unknown_mode(make_learner):
    learn = make_learner(cbs=[MetricsCB(top1=Constant(1.0))])
    with pytest.raises(ValueError, match="monitor='top2'"):
        learn.fit(cbs=[EarlyStoppingCB("top2")])


@pytest.mark.parametrize(
    ("value", "best", "min_delta", "better_min", "better_max"),
    [
        (1.0, 2.0, 0.0, True, False),
        (2.0, 1.0, 0.0, False, True),
        (1.0, 1.0, 0.0, False, False),
        (1.0, 1.5, 0.5, False, False),
        (1.5, 1.0, 0.5, False, False),
        (1.0, 1.5, 0.25, True, False),
        (1.5, 1.0, 0.25, False, True),
        (-2.0, -1.0, 0.0, True, False),
        (math.nan, 1.0, 0.0, False, False),
        (1.0, math.nan, 0.0, False, False),
        (math.nan, math.nan, 0.0, False, False),
        (-math.inf, 1.0, 0.0, True, False),
        (math.inf, 1.0, 0.0, False, True),
        (3, 4, 0, True, False),
    ],
)
def test_better_is_more_than_min_delta_better(value, best, min_delta, better_min, better_max):
    assert Monitor("x", "min").is_better(value, best, min_delta) is better_min
    assert Monitor("x", "max").is_better(value, best, min_delta) is better_max


def test_min_delta_is_0_by_default():
    assert Monitor("loss").is_better(1.0, 1.0 + 1e-12)
    assert not Monitor("loss").is_better(1.0, 1.0)


def test_every_number_is_better_than_the_worst():
    for value in (-1e300, 0.0, 1e300):
        for mode in ("min", "max"):
            monitor = Monitor("x", mode)
            assert monitor.is_better(value, monitor.worst, min_delta=1e9)
            assert not monitor.is_better(math.nan, monitor.worst)
            assert not monitor.is_better(monitor.worst, monitor.worst)
    assert (Monitor("x", "min").worst, Monitor("x", "max").worst) == (math.inf, -math.inf)


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match=r"monitor=3.*'loss'.*'eval/loss'"):
        Monitor(3)
