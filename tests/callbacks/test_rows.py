"""Names and values of metrics in the rows, and in everything that reads the rows."""

import csv
import json
import math
import warnings
from collections import OrderedDict, namedtuple
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch
import torchmetrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toolbox import at, mentions
from torcheval.metrics import MulticlassConfusionMatrix, MulticlassF1Score

from minilearn import (
    CheckpointCB,
    CSVLoggerCB,
    EarlyStoppingCB,
    MetricsCB,
    ProgressCB,
    TensorBoardCB,
    TerminateOnNaNCB,
    plot_history,
)
from minilearn.notebook import table


class Constant:
    """A metric of one given value."""

    def __init__(self, value=0.125):
        self.value = value

    def reset(self):
        pass

    def update(self, preds, target):
        assert not any(t.requires_grad for t in [preds] if isinstance(t, torch.Tensor))

    def compute(self):
        return self.value


Scores = namedtuple("Scores", ["precision", "recall"])

VALUES = {  # what m computes, and its columns
    "float": (0.5, {"m": 0.5}),
    "int": (3, {"m": 3}),
    "bool": (True, {"m": 1}),
    "nan": (math.nan, {"m": math.nan}),
    "tensor": (torch.tensor(0.5), {"m": 0.5}),
    "tensor of one": (torch.tensor([0.5]), {"m": 0.5}),
    "tensor of whole numbers": (torch.tensor(3), {"m": 3}),
    "tensor of bfloat16": (torch.tensor(0.5, dtype=torch.bfloat16), {"m": 0.5}),
    "tensor with a gradient": (torch.tensor(0.5, requires_grad=True), {"m": 0.5}),
    "numpy number": (np.float32(0.5), {"m": 0.5}),
    "numpy whole number": (np.int64(3), {"m": 3}),
    "numpy array of one": (np.array(0.5), {"m": 0.5}),
    "fraction": (Fraction(1, 2), {"m": 0.5}),
    "list": ([0.5, 1.0], {"m_0": 0.5, "m_1": 1.0}),
    "list of one": ([0.5], {"m_0": 0.5}),
    "list of tensors": ([torch.tensor(0.5), torch.tensor([2])], {"m_0": 0.5, "m_1": 2}),
    "tuple": ((0.5, np.float64(1.0)), {"m_0": 0.5, "m_1": 1.0}),
    "array": (np.array([0.5, 1.0]), {"m_0": 0.5, "m_1": 1.0}),
    "vector": (torch.tensor([0.5, 1.0]), {"m_0": 0.5, "m_1": 1.0}),
    "matrix": (torch.tensor([[1, 2], [3, 4]]), {"m_0_0": 1, "m_0_1": 2, "m_1_0": 3, "m_1_1": 4}),
    "empty tensor": (torch.empty(0), {"m": math.nan}),
    "empty list": ([], {"m": math.nan}),
    "dict": ({"p": torch.tensor(0.5), "r": 0.25}, {"m_p": 0.5, "m_r": 0.25}),
    "OrderedDict": (OrderedDict(p=0.5), {"m_p": 0.5}),
    "mapping": (MappingProxyType({"p": 0.5}), {"m_p": 0.5}),
    "dict by number": ({0: 0.5, 1: 0.25}, {"m_0": 0.5, "m_1": 0.25}),
    "nested dict": ({"top": {"1": 0.5, "5": 1.0}}, {"m_top_1": 0.5, "m_top_5": 1.0}),
    "dict of vectors": ({"p": torch.tensor([0.5, 1.0])}, {"m_p_0": 0.5, "m_p_1": 1.0}),
    "named like the row": ({"loss": 0.5, "epoch": 2}, {"m_loss": 0.5, "m_epoch": 2}),
    "named tuple": (Scores(0.5, torch.tensor(0.25)), {"m_precision": 0.5, "m_recall": 0.25}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", VALUES)
def test_a_metrics_values_are_columns_of_numbers_everywhere(case, tmp_path, make_learner, capsys):
    value, columns = VALUES[case]
    cbs = [CSVLoggerCB(tmp_path / "rows.csv"), TensorBoardCB(tmp_path / "tb", "run"), ProgressCB()]
    monitor = EarlyStoppingCB(f"eval/{next(iter(columns))}", mode="max", patience=9)
    learn = make_learner(cbs=[MetricsCB(m=Constant(value)), *cbs, monitor])
    learn.fit(2)

    for row in learn.history:
        assert list(row) == [*columns, "loss", "epoch", "train", "time_s"]
        assert {type(row[name]) for name in columns} <= {int, float}
        assert {name: row[name] for name in columns} == pytest.approx(columns, nan_ok=True)
    assert json.loads(json.dumps(learn.history[0]))["loss"] == learn.history[0]["loss"]

    with open(tmp_path / "rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for name in columns:
        assert [float(line[name]) for line in lines] == pytest.approx([columns[name]] * 4, nan_ok=True)

    events = EventAccumulator(str(tmp_path / "tb" / "run"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {f"{name}/{phase}" for name in columns for phase in ("train", "eval")} <= {*tags}

    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in columns)
    assert len(plot_history(learn.history).axes) == len(columns) + 1
    assert monitor.best == pytest.approx(next(iter(columns.values())), nan_ok=True) or math.isinf(
        monitor.best
    )


@pytest.mark.parametrize(
    "value",
    [None, "high", 1j, object(), [0.5, None], {"p": "high"}, torch.tensor([1j, 2j]), np.array(["a", "b"])],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_is_no_number_is_refused_with_the_name(value, make_learner):
    with pytest.raises(TypeError, match=r"metric m\w* computes .*expected a number"):
        make_learner(cbs=[MetricsCB(m=Constant(value))]).fit()


@pytest.mark.parametrize("value", [{"a": {"b": 1}, "a_b": 2}, {1: 1, "1": 2}], ids=repr)
def test_two_values_of_one_name_are_refused(value, make_learner):
    with pytest.raises(ValueError, match=r"metric m computes two values .* m_(a_b|1)"):
        make_learner(cbs=[MetricsCB(m=Constant(value))]).fit()


def test_a_value_with_the_name_of_another_metric_is_refused(make_learner):
    learn = make_learner(cbs=[MetricsCB(m=Constant([1, 2]), m_1=Constant())])
    with pytest.raises(ValueError, match=r"'m_1'.*another metric"):
        learn.fit()


def test_thousands_of_values_are_refused(make_learner):
    with pytest.raises(ValueError, match=r"metric m .*1000"):
        make_learner(cbs=[MetricsCB(m=Constant(torch.zeros(40, 40)))]).fit()


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "epoch", "train", "time_s", "lr"])
def test_names_of_the_row_are_refused_before_training(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*MetricsCB\(my_{name}=...\)"):
        MetricsCB(**{name: Constant()})
    with pytest.raises(ValueError, match=rf"'{name}'"):
        MetricsCB(type(name, (Constant,), {})())


@pytest.mark.parametrize("name", ["", " ", "train/f1", "eval/loss"])
def test_names_that_no_monitor_could_give_are_refused(name):
    with pytest.raises(ValueError, match=f"{name!r}.*phase"):
        MetricsCB(**{name: Constant()})


@pytest.mark.parametrize(
    "name", ["val/f1", "f1 score", "Ähnlichkeit", "epochs", "my_loss", "1", "top-5", "a,b"]
)
def test_other_names_reach_all_readers(name, make_learner, tmp_path):
    cbs = [CSVLoggerCB(tmp_path / "rows.csv"), EarlyStoppingCB(name, mode="max")]
    learn = make_learner(cbs=[MetricsCB(**{name: Constant()}), *cbs])
    learn.fit()
    assert cbs[1].best == 0.125
    with open(tmp_path / "rows.csv", newline="") as file:
        assert [line[name] for line in csv.DictReader(file)] == ["0.125"] * 2
    make_learner(cbs=[MetricsCB(**{name: Constant()}), CSVLoggerCB(tmp_path / "rows.csv")]).fit()


# Collections --------------------------------------------------------------------------------------


def collection(**kwargs):
    kind = {"task": "multiclass", "num_classes": 2}
    metrics = {"acc": torchmetrics.Accuracy(**kind), "f1": torchmetrics.F1Score(**kind)}
    return torchmetrics.MetricCollection(metrics, **kwargs)


COLLECTIONS = {
    "unnamed": (lambda: MetricsCB(collection()), ["acc", "f1"]),
    "named": (lambda: MetricsCB(m=collection()), ["m_acc", "m_f1"]),
    "with a prefix": (lambda: MetricsCB(collection(prefix="val/")), ["val/acc", "val/f1"]),
    "with a postfix": (lambda: MetricsCB(collection(postfix="_x")), ["acc_x", "f1_x"]),
    "beside another": (lambda: MetricsCB(collection(), top=Constant()), ["acc", "f1", "top"]),
    "two": (lambda: MetricsCB(collection(), m=collection()), ["acc", "f1", "m_acc", "m_f1"]),
}


@pytest.mark.parametrize("case", COLLECTIONS)
def test_collections_of_torchmetrics_have_a_column_for_each(case, make_learner, tmp_path):
    make, names = COLLECTIONS[case]
    cbs = [make(), CSVLoggerCB(tmp_path / "rows.csv")]
    assert cbs[0].names == [*names, "loss"]
    learn = make_learner(cbs=[*cbs, EarlyStoppingCB(names[0], mode="max"), CheckpointCB(tmp_path / "run")])
    learn.fit(2)
    assert [[*row][: len(names)] for row in learn.history] == [names] * 4
    preds, target = learn.model(learn.dls.valid.tensors[0]).argmax(1), learn.dls.valid.targets
    assert learn.history[-1][names[0]] == (preds == target).float().mean().item()
    again = make_learner(cbs=[make(), CSVLoggerCB(tmp_path / "rows.csv")])  # the same columns
    again.fit()


def test_names_of_a_collection_are_checked_before_training():
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=2)
    with pytest.raises(ValueError, match="'loss'"):
        MetricsCB(torchmetrics.MetricCollection({"loss": metric}))
    with pytest.raises(ValueError, match=r"'acc'.*another metric"):
        MetricsCB(collection(), acc=Constant())


def test_a_value_for_each_class_is_a_column(make_learner):
    wrapped = torchmetrics.wrappers.ClasswiseWrapper(
        torchmetrics.Accuracy(task="multiclass", num_classes=2, average=None), labels=["cat", "dog"]
    )
    f1 = MulticlassF1Score(num_classes=2, average=None)
    learn = make_learner(cbs=[MetricsCB(MulticlassConfusionMatrix(2), acc=wrapped, f1=f1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the metrics' own
        learn.fit()
    matrix = [f"MulticlassConfusionMatrix_{i}_{j}" for i in range(2) for j in range(2)]
    wrapped = ["acc_multiclassaccuracy_cat", "acc_multiclassaccuracy_dog"]
    assert [*learn.history[0]][:8] == [*matrix, *wrapped, "f1_0", "f1_1"]


@pytest.mark.parametrize("name", ["m_0", "eval/m_7", "train/m_p_q", "m"])
def test_what_a_metric_may_compute_can_be_monitored_and_is_looked_for_at_the_end_of_an_epoch(
    name, make_learner
):
    learn = make_learner(cbs=[MetricsCB(m=Constant({"p": 0.5})), EarlyStoppingCB(name, mode="max")])
    with pytest.raises(ValueError, match=mentions(f"monitor={name!r} ... m_p, loss")):
        learn.fit()


@pytest.mark.parametrize("name", ["n_0", "loss_0", "eval/m2", "valid/m"])
def test_what_no_metric_computes_is_refused_before_training(name, make_learner):
    learn = make_learner(cbs=[MetricsCB(m=Constant({"p": 0.5})), EarlyStoppingCB(name, mode="max")])
    with pytest.raises(ValueError, match=f"monitor={name!r}"):
        learn.fit()
    assert learn.n_steps == 0


def test_rows_of_other_columns_are_shown_with_their_names(make_learner):
    values = [[1.0], [1.0, 2.0]]

    class Growing(Constant):
        def compute(self):
            return values[self.value]

    metric = Growing(0)
    learn = make_learner(cbs=[MetricsCB(m=metric)])
    learn.fit(valid=False)
    metric.value = 1
    learn.fit(valid=False)
    assert len(plot_history(learn.history).axes) == 3
    assert "<th>m_1</th>" in (html := table(learn.history))
    assert html.count("<td>") == 2 * 6


# Losses that are not finite -----------------------------------------------------------------------


def spoil(value, when):
    def change(learn):
        if when(learn):
            learn.loss = learn.loss * value

    return at("after_loss", change)


SPOILED = {
    "nan in an epoch": (
        math.nan,
        lambda learn: learn.training and learn.epoch == 1,
        "train ... epoch 1 is nan",
    ),
    "nan in a batch": (math.nan, lambda learn: learn.n_steps == 2, "train ... epoch 0 is nan"),
    "inf in the last batch": (
        math.inf,
        lambda learn: learn.training and learn.n_steps == 8,
        "epoch 2 is inf",
    ),
    "-inf in the last batch": (-math.inf, lambda learn: learn.training and learn.n_steps == 8, "2 is -inf"),
    "inf, and nan after it": (math.inf, lambda learn: learn.training, "train ... epoch 0 is nan"),
    "nan in validation": (math.nan, lambda learn: not learn.training, "eval ... epoch 0 is nan"),
    "from the second epoch on": (math.nan, lambda learn: learn.epoch > 0, "train ... epoch 1 is nan"),
    "inf in the last validation": (
        math.inf,
        lambda learn: not learn.training and learn.epoch == 2,
        "eval ... epoch 2 is inf",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_loss_that_is_not_finite_is_warned_of_once(case, make_learner):
    value, when, said = SPOILED[case]
    learn = make_learner(cbs=[MetricsCB(), spoil(value, when)])
    with pytest.warns(UserWarning, match=mentions(said)) as found:
        learn.fit(3)
    assert len(found) == 1


def test_each_fit_and_each_validation_warns(make_learner):
    learn = make_learner(cbs=[MetricsCB(), spoil(math.nan, lambda learn: True)])
    for run in (learn.fit, learn.fit, learn.validate):
        with pytest.warns(UserWarning, match="nan"):
            run()


def test_finite_losses_and_what_ends_at_nan_warn_of_nothing(make_learner):
    make_learner(cbs=[MetricsCB()]).fit(2)
    learn = make_learner(cbs=[MetricsCB(), TerminateOnNaNCB(), spoil(math.nan, lambda learn: True)])
    with pytest.raises(FloatingPointError):
        learn.fit()


def test_a_sweep_of_the_lr_may_diverge(make_learner):
    learn = make_learner(cbs=[MetricsCB(), spoil(math.nan, lambda learn: learn.n_steps > 10)], n_batches=6)
    assert learn.lr_find().lrs
