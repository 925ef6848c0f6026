"""learn.log: named values of batches in rows, and in everything that reads rows."""

import csv
import functools
import io
import math
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toolbox import (
    NoLength,
    StopCB,
    SyncCounter,
    at,
    dealt,
    every_rest,
    make_learner,
    mentions,
    noisy_learner,
    state_of,
    stop,
    syncs_in_fit,
    untimed_rows,
)
from torch import nn
from torch.nn import functional as F

from minilearn import (
    EMACB,
    SWACB,
    Callback,
    CancelBatchException,
    CancelStepException,
    CheckpointCB,
    CSVLoggerCB,
    EarlyStoppingCB,
    GradientAccumulationCB,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    ProgressCB,
    TensorBoardCB,
    plot_history,
)
from minilearn.checkpoints.codec import first_difference

NAN = float("nan")


def rows_of(learn, name, phase=None):
    return [row[name] for row in learn.history if phase in (None, row["train"])]


def logging_at(event, value=None, name="v", order=0, **kwargs):
    """Make a callback that logs at an event, by default the number of the batch."""
    value = value or (lambda learn: learn.batch_idx + 1.0)
    return at(event, lambda learn: learn.log(name, value(learn), **kwargs), order)


def uneven(*cbs, **kwargs):
    """Make a learner on batches of 4, 4 and 2 samples, validated with one of 4."""
    return make_learner(n=10, cbs=[MetricsCB(), *cbs], **kwargs)


def mean(values, weights):
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


EVENTS = [
    *("before_batch", "before_forward", "after_predict", "after_loss", "after_forward", "cleanup_forward"),
    *("after_backward", "before_step", "after_step", "cleanup_step", "after_batch", "cleanup_batch"),
]


@pytest.mark.parametrize("order", [-100, 0, 2000])
@pytest.mark.parametrize("event", EVENTS)
def test_a_value_is_weighted_by_the_samples_wherever_it_is_logged(event, order):
    learn = uneven(logging_at(event, order=order), logging_at("after_loss", name="at_loss"))
    learn.fit(2)
    expected = mean([1, 2, 3], [4, 4, 2])
    assert rows_of(learn, "v", "train") == rows_of(learn, "at_loss", "train") == [expected] * 2
    if event not in ("after_backward", "before_step", "after_step", "cleanup_step"):
        assert rows_of(learn, "v", "eval") == [1.0] * 2
    columns = [*learn.history[0]]
    assert {*columns[-6:-4]} == {"v", "at_loss"}
    assert columns[-4:] == ["loss", "epoch", "train", "time_s"]


def test_the_mean_of_the_loss_itself_is_the_loss():
    learn = uneven(logging_at("after_loss", lambda learn: learn.loss))
    learn.fit(3)
    assert rows_of(learn, "v") == rows_of(learn, "loss")


def test_tokens_that_the_loss_ignores_do_not_count():
    x, y = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2
    y[[0, 1, 2, 5]] = -100
    learn = uneven(logging_at("after_batch"))
    learn.dls.train.tensors = (x, y)
    learn.fit()
    assert rows_of(learn, "v", "train") == [mean([1, 2, 3], [1, 3, 2])]


def test_a_count_that_is_given_is_the_weight_and_nothing_counts_nothing():
    counts = [3, torch.tensor([0.0]), np.float32(1.0)]
    values = [torch.tensor([[2.0]]), NAN, np.array(4.0)]

    def log(learn):
        if learn.training:
            learn.log("v", values[learn.batch_idx], counts[learn.batch_idx])
            learn.log("none", NAN, count=0)

    learn = uneven(at("after_predict", log))
    learn.fit()
    assert rows_of(learn, "v", "train") == [mean([2, 4], [3, 1])]
    assert math.isnan(learn.history[0]["none"])
    assert "v" not in learn.history[1]


def test_numbers_and_tensors_of_all_kinds_make_one_mean():
    values = [True, torch.tensor(2), torch.tensor([3.0], dtype=torch.bfloat16, requires_grad=True)]
    learn = uneven(at("after_loss", lambda learn: learn.training and learn.log("v", values[learn.batch_idx])))
    learn.fit()
    assert rows_of(learn, "v", "train") == [mean([1, 2, 3], [4, 4, 2])]


def test_a_value_that_changes_after_it_was_logged_is_what_it_was():
    kept = torch.zeros((), dtype=torch.float64)

    def log(learn):
        kept.fill_(learn.batch_idx + 1.0)
        learn.log("v", kept)
        kept.fill_(100.0)

    learn = uneven(at("after_predict", log))
    learn.fit(valid=False)
    assert rows_of(learn, "v") == [mean([1, 2, 3], [4, 4, 2])]


def test_sums_are_in_float64():
    learn = uneven(logging_at("after_loss", lambda learn: torch.tensor(0.1) if learn.batch_idx else 1e9))
    learn.fit(valid=False)
    assert rows_of(learn, "v")[0] == pytest.approx(mean([1e9, float(torch.tensor(0.1))], [4, 6]), rel=1e-15)


def test_two_values_of_a_batch_count_twice():
    learn = uneven(logging_at("after_predict"), logging_at("after_step", lambda learn: 0.0))
    learn.fit(valid=False)
    assert rows_of(learn, "v") == [mean([1, 2, 3], [4, 4, 2]) / 2]


def test_what_a_sum_loss_has_is_added_and_divided_by_the_samples():
    def log(learn):
        learn.log("sum", learn.loss)
        learn.log("mean", learn.loss / len(learn.yb), len(learn.yb))

    learn = uneven(at("after_loss", log), loss_func=nn.CrossEntropyLoss(reduction="sum"))
    learn.fit(2)
    assert rows_of(learn, "sum") == rows_of(learn, "loss")
    assert rows_of(learn, "mean") == pytest.approx(rows_of(learn, "loss"), rel=1e-6)


class SplitLossCB(Callback):
    """Make the loss of two parts, and log them where the loss is made."""

    logs = ("near", "far")

    def get_loss(self, learn):
        near, far = F.cross_entropy(learn.preds, learn.yb), learn.preds.square().mean()
        learn.log("near", near)
        learn.log("far", 0.1 * far)
        learn.loss = near + 0.1 * far


class Split(Learner):
    def get_loss(self):
        SplitLossCB.get_loss(None, self)


SPLIT = {
    "callback": lambda *cbs, **kwargs: noisy_learner(SplitLossCB(), MetricsCB(), *cbs, **kwargs),
    "subclass": lambda *cbs, **kwargs: noisy_learner(MetricsCB(), *cbs, cls=Split, **kwargs),
}


@pytest.mark.parametrize("make", SPLIT.values(), ids=[*SPLIT])
def test_parts_of_a_loss_add_up_beside_everything_that_changes_the_step(make):
    cbs = [GradientAccumulationCB(3), MixedPrecisionCB(), EMACB(0.9)]
    learn = make(*cbs, n_train=5)
    learn.fit(2)
    assert {row["train"] for row in learn.history} == {"train", "iterate", "eval"}
    total = [a + b for a, b in zip(rows_of(learn, "near"), rows_of(learn, "far"), strict=True)]
    assert total == pytest.approx(rows_of(learn, "loss"), rel=1e-5)  # parts in float32
    assert learn.validate()["near"] == learn.history[-1]["near"]


# Batches that do not count, and passes without rows ---------------------------------------------------


@pytest.mark.parametrize("event", ["before_batch", "after_predict", "after_backward", "cleanup_batch"])
def test_what_a_cancelled_batch_logged_is_dropped_with_its_loss(event):
    def cancel(learn):
        if learn.training and learn.batch_idx == 1:
            raise CancelBatchException

    learn = uneven(logging_at(event), logging_at("before_batch", lambda learn: 5.0, "w"))
    learn.add_cb(at("after_backward", cancel, 5))
    learn.fit(2)
    assert rows_of(learn, "v", "train") == [mean([1, 3], [4, 2])] * 2
    assert rows_of(learn, "w", "train") == [5.0] * 2


def test_what_only_a_cancelled_batch_logged_is_in_no_row():
    def cancel(learn):
        if learn.batch_idx == 1:
            learn.log("v", 1.0)
            raise CancelBatchException

    learn = uneven(at("after_predict", cancel))
    learn.fit(valid=False)
    assert "v" not in learn.history[0]


def test_a_step_of_batches_that_were_kept_takes_no_value_outside_a_batch():
    def cancel(learn):
        if learn.training and learn.batch_idx == 2:
            raise CancelBatchException

    cbs = [GradientAccumulationCB(3), logging_at("after_step"), at("before_forward", cancel)]
    learn = uneven(*cbs)
    learn.fit()
    assert learn.n_steps == 1
    assert "v" not in learn.history[0]


def test_a_cancelled_step_keeps_what_its_batch_logged():
    def cancel(learn):
        raise CancelStepException

    learn = uneven(logging_at("after_loss"), at("before_step", cancel))
    learn.fit(valid=False)
    assert rows_of(learn, "v") == [mean([1, 2, 3], [4, 4, 2])]


def test_the_second_forward_of_again_logs_nothing():
    values = logging_at("after_predict", lambda learn: 100.0 if learn.is_again else learn.batch_idx + 1)
    learn = uneven(values, at("after_backward", lambda learn: learn.again()))
    learn.fit(valid=False)
    assert rows_of(learn, "v") == [mean([1, 2, 3], [4, 4, 2])]


def test_predict_logs_nothing_and_validate_returns_the_value():
    learn = uneven(logging_at("after_predict"))
    assert len(learn.predict(learn.dls.valid)) == 4
    assert learn.validate()["v"] == 1.0
    assert learn.history == []


def test_predict_needs_no_metrics():
    learn = make_learner(cbs=[logging_at("after_predict")])
    assert len(learn.predict(learn.dls.valid)) == 4


def test_a_prediction_nested_in_a_batch_adds_nothing_to_it():
    def predict(learn):
        if not learn.is_nested and learn.training:
            learn.predict(learn.dls.valid)

    values = logging_at("after_predict", lambda learn: 100.0 if learn.is_nested else learn.batch_idx + 1)
    learn = uneven(values, at("after_loss", predict))
    learn.fit(valid=False)
    assert rows_of(learn, "v") == [mean([1, 2, 3], [4, 4, 2])]


@pytest.mark.parametrize("event", ["before_batch", "after_loss", "after_step", "after_batch"])
def test_a_validation_nested_in_a_batch_has_values_of_its_own(event):
    rows = []

    def validate(learn):
        if not learn.is_nested and learn.training:
            rows.append(learn.validate())

    learn = uneven(logging_at("after_predict"), logging_at("cleanup_batch"), at(event, validate, 1))
    learn.fit()
    assert [row["v"] for row in rows] == [1.0] * 3
    assert rows_of(learn, "v") == [mean([1, 2, 3], [4, 4, 2]), 1.0]


def test_averaged_weights_and_the_iterate_have_values_of_their_own():
    learn = noisy_learner(MetricsCB(), SWACB(1), logging_at("after_loss", lambda learn: learn.loss))
    learn.fit(3)
    assert [row["train"] for row in learn.history].count("iterate") == 2
    assert rows_of(learn, "v") == rows_of(learn, "loss")


def test_a_sweep_of_the_lr_leaves_nothing():
    learn = uneven(logging_at("after_loss"))
    learn.fit()
    rows = deepcopy(learn.history)
    learn.lr_find(n_steps=10)
    assert learn.history == rows
    learn.fit()
    assert rows_of(learn, "v")[2:] == rows_of(learn, "v")[:2]


def test_a_name_that_an_earlier_phase_had_is_not_in_the_row():
    learn = uneven(at("after_loss", lambda learn: learn.epoch == 0 and learn.log("v", 1.0)))
    learn.fit(2)
    assert ["v" in row for row in learn.history] == [True, True, False, False]


class NoLossCB(Callback):
    """Compute a loss in training only."""

    def get_loss(self, learn):
        learn.log("v", learn.batch_idx + 1)
        if learn.training:
            learn.loss = F.cross_entropy(learn.preds, learn.yb)


def test_in_batches_without_a_loss_samples_count():
    learn = uneven(NoLossCB())
    learn.fit()
    row = learn.validate([*learn.dls.train])
    assert learn.history[0]["v"] == row["v"] == mean([1, 2, 3], [4, 4, 2])
    assert "loss" not in row


def test_in_batches_without_a_loss_values_are_means_even_if_the_loss_of_training_is_a_sum():
    class Half(Learner):
        def get_loss(self):
            if self.training:
                super().get_loss()
            self.log("v", 2.0)

    like = make_learner()
    learn = Half(
        like.model, like.dls, nn.CrossEntropyLoss(reduction="sum"), default_cbs=False, cbs=[MetricsCB()]
    )
    learn.fit()
    assert rows_of(learn, "v") == [2 / 4, 2.0]


def test_a_batch_that_does_not_tell_its_samples_needs_a_count():
    class Odd(NoLossCB):
        def unpack(self, learn):
            learn.xb, learn.yb = learn.batch["x"], None

        def predict(self, learn):
            learn.preds = None

    learn = uneven(Odd())
    with pytest.raises(TypeError, match=mentions("'v' ... dict ... count")):
        learn.validate(NoLength([{"x": "text"}]))


def test_a_look_at_the_data_before_training_logs_nothing():
    class Unpack(Callback):
        def unpack(self, learn):
            learn.xb, learn.yb = learn.batch
            learn.log("v", learn.batch_idx + 1)

    learn = uneven(Unpack())
    learn.fit()
    assert rows_of(learn, "v") == [mean([1, 2, 3], [4, 4, 2]), 1.0]


# Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event", ["before_fit", "before_train", "after_train", "after_validate", "after_epoch", "at_rest"]
)
def test_outside_a_batch_it_is_an_error_that_says_what_to_write(event):
    with pytest.raises(RuntimeError, match=mentions("learn.log('v') ... learn.history[-1]")):
        uneven(logging_at(event)).fit()


def test_after_a_nested_validation_it_is_outside_its_batches():
    def validate(learn):
        if not learn.is_nested:
            learn.validate()

    learn = uneven(at("after_step", validate), at("after_validate", lambda learn: learn.log("v", 1)))
    with pytest.raises(RuntimeError, match=r"learn.history\[-1\]"):
        learn.fit(valid=False)


def test_outside_a_pass_it_is_an_error():
    with pytest.raises(RuntimeError, match="'v'"):
        uneven().log("v", 1.0)


def test_without_a_row_to_write_to_it_is_an_error():
    with pytest.raises(RuntimeError, match=mentions("learn.log('v') ... MetricsCB()")):
        make_learner(cbs=[logging_at("after_loss")]).fit()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2), "shape (2,)"),
        (torch.zeros(0), "shape (0,)"),
        (torch.tensor(1j), "tensor"),
        (None, "None"),
        ("1", "'1'"),
        ([1.0], "[1.0]"),
        (np.zeros(2), "[0., 0.]"),
    ],
)
def test_what_is_no_number_is_refused(value, said):
    learn = uneven(at("after_loss", lambda learn: learn.log("v", value)))
    with pytest.raises(TypeError, match=mentions(f"learn.log('v' ... {said} ... mean")):
        learn.fit()


@pytest.mark.parametrize("count", [-1, NAN, math.inf, torch.tensor(-1.0), torch.ones(2), "4", True, [1]])
def test_a_count_that_is_none_is_refused(count):
    learn = uneven(logging_at("after_loss", count=count))
    with pytest.raises(ValueError, match=mentions("learn.log('v' ... count= ... >= 0")):
        learn.fit()


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("loss", ValueError, "the row itself"),
        ("lr", ValueError, "my_lr"),
        ("acc", ValueError, "a metric"),
        ("train/v", ValueError, "'train/v' ... phase"),
        (" ", ValueError, "empty"),
        (3, TypeError, "name=3"),
        (["v"], TypeError, "name=['v']"),
    ],
)
def test_a_name_that_a_row_cannot_have_is_refused(name, kind, said):
    def accuracy(preds, target):
        return (preds.argmax(1) == target).float().mean()

    learn = make_learner(cbs=[MetricsCB(acc=accuracy), logging_at("after_predict", name=name)])
    with pytest.raises(kind, match=mentions(said)):
        learn.fit()


def test_a_name_that_a_metric_turns_out_to_have_is_refused():
    class Two:
        def reset(self):
            pass

        update = lambda self, preds, target: None  # noqa: E731
        compute = lambda self: [1.0, 2.0]  # noqa: E731

    learn = make_learner(cbs=[MetricsCB(m=Two()), logging_at("after_predict", name="m_1")])
    with pytest.raises(ValueError, match=mentions("logged value ... 'm_1' ... a metric")):
        learn.fit()


@pytest.mark.parametrize("names", ["kl", ["kl"], (1,), 3])
def test_declared_names_are_a_tuple(names):
    learn = uneven(type("Odd", (Callback,), {"logs": names})())
    with pytest.raises(TypeError, match=mentions(f"Odd.logs = {names!r} ... ('kl',)")):
        learn.fit()


def test_declared_names_are_checked_before_training():
    learn = uneven(type("Odd", (Callback,), {"logs": ("loss",)})())
    with pytest.raises(ValueError, match="'loss'"):
        learn.fit()
    assert learn.n_steps == 0


def test_an_attribute_of_the_users_own_may_be_called_logs():
    class Keeps(Callback):
        def __init__(self):
            self.logs = [{"a": 1}]

    uneven(Keeps()).fit()


# Readers of rows --------------------------------------------------------------------------------------


def test_logs_plots_and_progress_have_the_column(tmp_path, capsys):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    cbs = [CSVLoggerCB(tmp_path / "rows.csv"), TensorBoardCB(tmp_path / "tb", "run"), ProgressCB()]
    learn = uneven(logging_at("after_loss", name="kl"), *cbs)
    learn.fit(2)
    said = capsys.readouterr().out
    assert said.count("kl 1.8000") == 2
    assert said.count("kl 1.0000") == 2
    with open(tmp_path / "rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["kl"]) for line in lines] == [1.8, 1.0, 1.8, 1.0]
    events = EventAccumulator(str(tmp_path / "tb" / "run"))
    events.Reload()
    assert {"kl/train", "kl/eval"} <= {*events.Tags()["scalars"]}
    assert [ax.get_title() for ax in plot_history(learn.history).axes][-2:] == ["kl", "loss"]
    uneven(logging_at("after_loss", name="kl"), ProgressCB(console=console)).fit()
    assert "kl" in text.getvalue()


def test_a_column_that_begins_later_is_empty_before(tmp_path):
    later = at("after_loss", lambda learn: learn.epoch and learn.log("v", 1.0))
    uneven(later, CSVLoggerCB(tmp_path / "rows.csv")).fit(2)
    with open(tmp_path / "rows.csv", newline="") as file:
        assert [line["v"] for line in csv.DictReader(file)] == ["", "", "1.0", "1.0"]


def test_a_foreign_file_is_refused_with_the_declared_names_among_the_columns(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    cbs = [MetricsCB(), SplitLossCB(), CSVLoggerCB(tmp_path / "rows.csv")]
    with pytest.raises(ValueError, match="epoch, train, near, far, loss, lr, time_s"):
        make_learner(cbs=cbs).fit()


class FallingCB(Callback):
    """Log a number that falls, rises and falls again with the epochs."""

    values = (3.0, 1.0, 2.0, 4.0)

    def after_loss(self, learn):
        learn.log("kl", self.values[learn.epoch] + 10 * learn.training)


class DeclaredCB(FallingCB):
    logs = ("kl",)


@pytest.mark.parametrize("name", ["kl", "eval/kl", "train/kl"])
@pytest.mark.parametrize("cb", [FallingCB, DeclaredCB])
def test_monitors_may_name_a_logged_value(cb, name, tmp_path):
    stopping = EarlyStoppingCB(name, mode="min", patience=2)
    best = CheckpointCB(tmp_path, every_epochs=1, monitor=name, mode="min")
    learn = uneven(cb(), stopping, best)
    learn.fit(4)
    assert stopping.best == best.best == 1.0 + 10 * (name == "train/kl")
    assert stopping.best_epoch == 1


def test_a_declared_name_needs_a_mode_unless_it_is_a_loss():
    with pytest.raises(ValueError, match=mentions("monitor='kl' ... mode='max'")):
        uneven(DeclaredCB(), EarlyStoppingCB("kl")).fit()


@pytest.mark.parametrize(
    ("name", "cbs", "said"),
    [
        ("eval/Kl", [DeclaredCB], "did you mean 'eval/kl'"),
        ("los", [FallingCB], "did you mean 'loss' ... logs = ('los',)"),
        ("valid/loss", [FallingCB], "loss"),
        ("kl", [], "expected one of MulticlassAccuracy, loss, train/"),
    ],
)
def test_a_misspelt_name_and_one_that_nobody_can_log_are_refused_before_training(name, cbs, said):
    learn = uneven(*(cb() for cb in cbs), EarlyStoppingCB(name, mode="min"))
    with pytest.raises(ValueError, match=mentions(f"monitor={name!r} is not measured ... {said}")):
        learn.fit()
    assert learn.n_steps == 0


def test_of_a_phase_that_does_not_run_nothing_can_be_monitored():
    learn = uneven(FallingCB(), EarlyStoppingCB("eval/kl", mode="min"))
    with pytest.raises(ValueError, match="monitor='eval/kl'"):
        learn.fit(valid=False)
    assert learn.n_steps == 0


def log_d(learn):
    if learn.epoch:
        learn.log("d_loss", 1.0)


def negative_log(preds, target):
    return -torch.log(preds.softmax(1).gather(1, target[:, None])).mean()


class Pair(NamedTuple):
    first: list
    second: dict


class OwnLoss(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, preds, target):
        return self.inner(preds, target)


class AttributeCB(Callback):
    def __init__(self, log=None):
        self.held = log

    def after_loss(self, learn):
        if self.held is not None:
            self.held(learn)


HELD = Pair([AttributeCB(log_d)], {})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"cbs": [at("after_loss", log_d)]},
        {"cbs": [AttributeCB(log_d)]},
        {"cbs": [at("after_loss", lambda learn: [log_d(one) for one in (learn,)])]},
        {"cbs": [at("after_loss", lambda learn: getattr(learn, "lo" + "g") and None)]},
        {"loss_func": negative_log},
        {"loss_func": OwnLoss(negative_log)},
        {"loss_func": lambda p, t, held=HELD: F.cross_entropy(p, t)},
        {"unpack": lambda batch, log=log_d: batch},
    ],
    ids=["hook", "attribute", "nested", "getattr", "torch.log", "in a module", "in a default", "unpack"],
)
def test_an_undeclared_name_that_may_be_logged_is_looked_for_after_the_first_epoch(kwargs):
    cbs = [MetricsCB(), *kwargs.pop("cbs", []), EarlyStoppingCB("eval/d_loss")]
    learn = make_learner(cbs=cbs, **kwargs)
    with pytest.raises(ValueError, match=mentions("monitor='eval/d_loss' ... learn.log('d_loss' ... logs")):
        learn.fit(3)
    assert len(learn.history) == 2


def test_a_loss_that_reaches_a_learner_may_log():
    learn = make_learner(cbs=[MetricsCB(), EarlyStoppingCB("eval/d_loss")])

    def log(to):
        held = vars(to)  # no name `log` here, but a learner in the closure
        return lambda preds, target: F.cross_entropy(preds, target) + 0 * len(held) + 0 * (to is None)

    learn.loss_func = log(learn)
    with pytest.raises(ValueError, match="monitor='eval/d_loss'"):
        learn.fit(3)
    assert len(learn.history) == 2


def test_a_misspelt_name_found_late_has_the_hint_and_the_names_with_their_phases():
    learn = make_learner(cbs=[MetricsCB(), EarlyStoppingCB("val_loss")], loss_func=negative_log)
    said = (
        "monitor='val_loss' ... did you mean 'eval/loss' ... one of loss, train/loss, eval/loss, or learn.log"
    )
    with pytest.raises(ValueError, match=mentions(said)):
        learn.fit()


def smooth(preds, target):
    return F.cross_entropy(preds, target, label_smoothing=WEIGHT)


WEIGHT = 0.1


class Smooth(nn.CrossEntropyLoss):
    def forward(self, preds, target):
        return smooth(preds, target) * torch.ones(()) + 0 * super().forward(preds, target)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"loss_func": lambda p, t: F.cross_entropy(p, t)},
        {"loss_func": lambda p, t: smooth(p, t).exp().clamp(min=1).sqrt()},
        {"loss_func": smooth},
        {"loss_func": functools.partial(smooth)},
        {"loss_func": Smooth()},
        {"loss_func": OwnLoss(Smooth())},
        {"unpack": lambda batch: tuple(batch)},
        {"cbs": [at("after_step", lambda learn: None)]},
        {"cbs": [AttributeCB()]},
        {"cbs": [AttributeCB(lambda learn: learn.preds)]},
    ],
    ids=[
        *("lambda", "lambda of a function", "function", "partial", "subclass", "module", "unpack"),
        *("hook", "callback", "its function"),
    ],
)
@pytest.mark.parametrize("by", ["EarlyStoppingCB", "CheckpointCB"])
def test_a_misspelt_name_is_refused_before_training_if_no_code_can_log_it(kwargs, by, tmp_path):
    kwargs = dict(kwargs)
    cb = EarlyStoppingCB("val_loss")
    if by == "CheckpointCB":
        cb = CheckpointCB(tmp_path / "run", monitor="val_loss", keep_best=2)
    learn = make_learner(cbs=[MetricsCB(), *kwargs.pop("cbs", []), cb], **kwargs)
    with pytest.raises(ValueError, match=mentions("monitor='val_loss' ... did you mean 'eval/loss'")):
        learn.fit()
    assert learn.n_steps == 0
    assert not learn.history


# Waiting for the device -------------------------------------------------------------------------------


def test_a_step_does_not_wait_for_the_device():
    def syncs(n_batches):
        cbs = [logging_at("after_loss", lambda learn: learn.loss), logging_at("after_step", name="w")]
        return syncs_in_fit(make_learner(n_batches, cbs=[MetricsCB(), *cbs], loss_func=CountedLoss()))

    assert syncs(3) == syncs(9)


class CountedLoss(nn.CrossEntropyLoss):
    def count(self, preds, target):
        return len(target)


def test_a_count_on_a_device_is_not_waited_for(monkeypatch):
    def run(log):
        def hook(learn):
            with SyncCounter() as counter:
                log(learn)
            assert counter.n == 0

        learn = uneven(at("after_loss", hook))
        learn.fit(valid=False)
        return rows_of(learn, "v")

    meant = run(lambda learn: learn.log("v", 2.0**30 + learn.batch_idx, learn.batch_idx))
    for name in ("minilearn.counting", "minilearn.callbacks.logged"):
        monkeypatch.setattr(f"{name}.on_host", lambda count: count)  # as one on a device
    assert meant == [mean([2.0**30 + 1, 2.0**30 + 2], [1, 2])]
    assert (
        run(lambda learn: learn.log("v", 2.0**30 + learn.batch_idx, torch.tensor(learn.batch_idx))) == meant
    )
    values, counts = torch.tensor([NAN, 3.0, math.inf]), torch.tensor([0, 2, 0])
    assert run(lambda learn: learn.log("v", values[learn.batch_idx], counts[learn.batch_idx])) == [3.0]
    assert run(lambda learn: learn.log("v", values.tolist()[learn.batch_idx], counts[learn.batch_idx])) == [3]


# Resuming ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", SPLIT.values(), ids=[*SPLIT])
def test_resumed_from_each_place_the_values_are_those_of_the_straight_run(make, tmp_path):
    def learner(*cbs, seed=1):
        seldom = at("after_step", lambda learn: learn.n_steps % 2 and learn.log("seldom", learn.n_steps))
        early = at("before_batch", lambda learn: learn.log("early", learn.batch_idx, len(learn.yb)))
        return make(seldom, early, GradientAccumulationCB(3), *cbs, seed=seed, n_train=4)

    straight = learner()
    straight.fit(2)
    expected = state_of(straight)
    assert {"near", "far", "seldom", "early"} <= {*straight.history[0]}
    assert "logged" in expected["cbs"]["MetricsCB"]
    for i in dealt([*range(1, 2 * (4 + 2 + 1) + 1)]):
        folder = tmp_path / str(i)
        stop(learner(every_rest(folder), StopCB(i)))
        learn = learner(every_rest(folder), seed=100 + i)
        learn.fit(2, resume=folder)
        assert first_difference(expected, state_of(learn, "CheckpointCB")) == "", i
        assert untimed_rows(learn) == untimed_rows(straight)


@pytest.mark.slow
@pytest.mark.parametrize("make", SPLIT.values(), ids=[*SPLIT])
def test_verify_resume_compares_them(make):
    assert "after" in make(n_train=4).verify_resume()


def test_a_checkpoint_without_logged_values_has_no_entry_for_them():
    learn = make_learner(cbs=[cb := MetricsCB()])
    learn.fit()
    assert "logged" not in cb.state_dict()
