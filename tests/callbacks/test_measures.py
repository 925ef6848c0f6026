"""What MetricsCB takes: functions, picks, metrics at the end of a phase and in validation only."""

import csv
import math
import re
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torchmetrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toolbox import SyncCounter, at, mentions, untimed_rows
from torch import nn
from torch.nn import functional as F
from torcheval.metrics import MulticlassAccuracy

from minilearn import (
    EMACB,
    SWACB,
    AtEnd,
    CheckpointCB,
    CSVLoggerCB,
    EarlyStoppingCB,
    GradientAccumulationCB,
    GradientClippingCB,
    InValidation,
    Learner,
    MetricsCB,
    MixedPrecisionCB,
    ProgressCB,
    SingleBatchCB,
    TensorBoardCB,
    plot_history,
)
from minilearn.callbacks import at_end
from minilearn.callbacks.functions import takes_target_first

sklearn = pytest.importorskip("sklearn.metrics")


def rmse(preds, target):
    return F.mse_loss(preds, target).sqrt()


def uneven(n_features=3, n_out=2, sizes=(4, 3, 1)):
    """Make batches of several sizes."""
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(n, n_features, generator=g), torch.randint(n_out, (n,), generator=g)) for n in sizes]


def validated(metrics, batches, model=None, **kwargs):
    """Return the row of a model that gives back its inputs."""
    model = model or nn.Identity()
    learn = Learner(
        model, {"train": batches, "eval": batches}, kwargs.pop("loss_func", F.cross_entropy),
        cbs=[metrics], default_cbs=False, **kwargs,
    )  # fmt: skip
    return learn.validate()


def joint(batches):
    return torch.cat([preds for preds, _ in batches]), torch.cat([target for _, target in batches])


# Functions ----------------------------------------------------------------------------------------


def accuracy(preds, target):
    return (preds.argmax(1) == target).float().mean()


class HalfRight(nn.Module):
    def forward(self, preds, target):
        return (preds.argmax(1) == target).float().mean() / 2


NAMED = {
    "a function": (lambda: MetricsCB(accuracy), "accuracy"),
    "torch's": (lambda: MetricsCB(F.cross_entropy), "cross_entropy"),
    "a module": (lambda: MetricsCB(HalfRight()), "HalfRight"),
    "a lambda": (lambda: MetricsCB(nll=lambda preds, target: F.cross_entropy(preds, target)), "nll"),
    "a partial": (lambda: MetricsCB(smooth=partial(F.cross_entropy, label_smoothing=0.1)), "smooth"),
    "an array": (lambda: MetricsCB(one=lambda preds, target: np.float32(0.5)), "one"),
    "a tensor of one": (lambda: MetricsCB(one=lambda preds, target: torch.ones(1, 1)), "one"),
    "at the end": (lambda: MetricsCB(AtEnd(accuracy_of_arrays)), "accuracy_of_arrays"),
    "picked": (lambda: MetricsCB((accuracy, lambda preds, target: (preds, target))), "accuracy"),
    "in validation": (lambda: MetricsCB(InValidation((accuracy, lambda p, t: (p, t)))), "accuracy"),
    "a picked object": (lambda: MetricsCB((MulticlassAccuracy(), lambda p, t: (p, t))), "MulticlassAccuracy"),
}


def accuracy_of_arrays(y_true, y_pred):
    return (y_pred.argmax(1) == y_true).mean()


@pytest.mark.parametrize("case", NAMED)
def test_a_metric_has_the_name_of_its_function_or_class_or_the_keyword(case):
    make, name = NAMED[case]
    row = validated(cb := make(), uneven())
    assert [*row][:2] == [name, "loss"] == cb.names
    assert type(row[name]) is float


@pytest.mark.parametrize(
    "metric",
    [
        lambda preds, target: 0,
        partial(F.cross_entropy, label_smoothing=0.1),
        AtEnd(lambda preds, target: 0),
        InValidation(lambda preds, target: 0),
        (lambda preds, target: 0, 0),
    ],
    ids=["lambda", "partial", "AtEnd", "InValidation", "picked"],
)
def test_a_function_without_a_name_is_refused(metric):
    with pytest.raises(TypeError, match=mentions("no name ... MetricsCB(my_metric=")):
        MetricsCB(metric)


def test_batches_are_averaged_by_their_number_of_samples():
    batches = uneven()
    row = validated(MetricsCB(accuracy, nll=F.cross_entropy), batches)
    preds, target = joint(batches)
    assert row["accuracy"] == pytest.approx((preds.argmax(1) == target).float().mean().item())
    assert row["nll"] == row["loss"]
    by_hand = sum(len(t) * accuracy(p, t).double() for p, t in batches) / len(target)
    assert row["accuracy"] == by_hand.item()


def test_a_functions_own_count_weighs_its_batches():
    class OfRight:
        """The mean over the samples of class 1."""

        __name__ = "of_right"

        def __call__(self, preds, target):
            return preds[target == 1].mean()

        def count(self, preds, target):
            return (target == 1).sum()

    batches = [*uneven(), (torch.ones(2, 3), torch.zeros(2, dtype=torch.long))]  # none in the last
    preds, target = joint(batches)
    row = validated(MetricsCB(OfRight()), batches)
    assert row["of_right"] == pytest.approx(preds[target == 1].mean().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_count_on_a_device_weighs_as_one_on_the_cpu(dtype, monkeypatch):
    def mean_of_first(preds, target):
        return preds[target == 1, 0].mean()

    mean_of_first.count = lambda preds, target: (target == 1).sum().to(dtype)
    batches = [*uneven(), (torch.ones(2, 3), torch.zeros(2, dtype=torch.long))]  # nan, of no sample
    expected = validated(MetricsCB(mean_of_first), batches)
    monkeypatch.setattr("minilearn.callbacks.functions.on_host", lambda count: count)
    assert validated(cb := MetricsCB(mean_of_first), batches) | {"time_s": 0} == expected | {"time_s": 0}
    assert isinstance(cb.metrics["mean_of_first"].n, torch.Tensor)


def test_a_batch_without_samples_counts_nothing_and_none_at_all_is_nan():
    nothing = lambda preds, target: (preds[:0], target[:0])  # noqa: E731
    first = lambda preds, target: (preds[target == 0], target[target == 0])  # noqa: E731
    batches = [*uneven(), (torch.ones(1, 3), torch.ones(1, dtype=torch.long))]
    row = validated(MetricsCB(none=(accuracy, nothing), first=(accuracy, first)), batches)
    assert math.isnan(row["none"])
    preds, target = first(*joint(batches))
    assert row["first"] == pytest.approx(accuracy(preds, target).item())


def test_a_functions_nan_is_in_the_row():
    assert math.isnan(validated(MetricsCB(bad=lambda preds, target: math.nan), uneven())["bad"])


@pytest.mark.parametrize(
    "value", [torch.ones(2), None, "high", torch.tensor(1j), [0.5]], ids=["two", "None", "text", "1j", "list"]
)
def test_a_function_that_returns_no_number_is_refused(value):
    def odd(preds, target):
        return value

    with pytest.raises(TypeError, match=mentions("odd returned ... one number")):
        validated(MetricsCB(odd), uneven())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda preds: 0, "(preds) ... (preds, target)"),
        (torchmetrics.functional.accuracy, "task ... partial"),
        (sklearn.recall_score, "y_true ... AtEnd(function)"),
        (partial(sklearn.fbeta_score, beta=2), "target first"),
        (lambda target, preds: 0, "target first ... lambda preds, target: function(target, preds)"),
        (3, "m=3 has no reset ... function (preds, target)"),
        (None, "m=None has no reset"),
        ((accuracy,), "(metric, pick)"),
        ((accuracy, MulticlassAccuracy()), "(metric, pick)"),
        ((accuracy, True), "(metric, pick)"),
        ((accuracy, None), "(metric, pick)"),
        (((accuracy, 0), 0), "(metric, pick)"),
        ((MulticlassAccuracy, 0), "MulticlassAccuracy()"),
    ],
)
def test_what_is_no_metric_is_refused_before_training(function, said):
    with pytest.raises(TypeError, match=mentions(said)):
        MetricsCB(m=function)


def test_a_module_moves_to_the_device_of_the_loss(make_learner):
    class Moved(HalfRight):
        def to(self, device):
            devices.append(device)

    devices = []
    make_learner(cbs=[MetricsCB(Moved())]).validate()
    assert devices == [torch.device("cpu")]


def test_a_function_sees_no_gradient_and_no_step_waits_for_it(make_learner):
    def seen(preds, target):
        assert not preds.requires_grad
        return preds.mean()

    def waits(n_batches):
        learn = make_learner(n_batches, cbs=[MetricsCB(seen, (rmse_of_classes, lambda p, t: (p, t)))])
        with SyncCounter() as counter:
            learn.fit(1)
        return counter.n

    assert waits(3) == waits(30)


def rmse_of_classes(preds, target):
    return F.mse_loss(preds[:, 0], target.float()).sqrt()


def sign_accuracy(preds, target):
    return ((preds > 0).float() == target).float().mean()


COLUMNS = {
    "a function": sign_accuracy,
    "torch's": F.l1_loss,
    "a module": nn.MSELoss(),
    "with a pick": (sign_accuracy, lambda preds, target: (preds.sigmoid(), target)),
    "in validation": InValidation(sign_accuracy),
}
SQUEEZED = {
    "a function": lambda preds, target: sign_accuracy(preds.squeeze(1), target),
    "by index": lambda preds, target: sign_accuracy(preds[:, 0], target),
    "like the target": lambda preds, target: sign_accuracy(preds.view_as(target), target),
    "a pick": (sign_accuracy, lambda preds, target: (preds.squeeze(1), target)),
    "the target's dimension": lambda preds, target: sign_accuracy(preds, target[:, None]),
}


def of_column(preds, target):
    return (preds[:, 0] - target).square().mean()


def columns_against_rows():
    """Make predictions (N, 1) and targets (N,), half of which have the sign of the prediction."""
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 1, generator=g), (torch.arange(n) % 2).float()) for n in (4, 4, 1)]


@pytest.mark.parametrize("metric", COLUMNS.values(), ids=COLUMNS)
def test_a_function_that_joins_every_sample_with_every_other_one_is_refused(metric):
    said = "metric acc joins ... (4, 1) ... (4,) ... (4, 4) ... squeeze ... acc=(metric, lambda ... [None]"
    with pytest.raises(ValueError, match=mentions(said)):
        validated(MetricsCB(acc=metric), columns_against_rows(), loss_func=of_column)


def test_a_function_that_pairs_predictions_by_mistake_is_refused():
    order = MetricsCB(order=lambda preds, target: (preds[:, :1] > preds[:, 1]).float().mean())
    said = "metric order joins ... (4, 1) ... (4,) ... preds[:, 0] and preds[:, 1]"
    with pytest.raises(ValueError, match=mentions(said)):
        validated(order, uneven(n_features=2))


def test_it_is_refused_in_the_first_batch_of_training():
    batches = columns_against_rows()
    metrics = MetricsCB(acc=sign_accuracy)
    learn = Learner(nn.Linear(1, 1), {"train": batches}, of_column, cbs=[metrics], default_cbs=False)
    with pytest.raises(ValueError, match=mentions("acc joins ... (4, 1) ... (4,)")):
        learn.fit()
    assert learn.n_steps == 1


@pytest.mark.parametrize("metric", SQUEEZED.values(), ids=SQUEEZED)
def test_a_function_that_squeezes_by_itself_is_accepted(metric):
    batches = columns_against_rows()
    preds, target = joint(batches)
    row = validated(MetricsCB(acc=metric), batches, loss_func=of_column)
    assert row["acc"] == pytest.approx(sign_accuracy(preds[:, 0], target).item(), rel=1e-6)


def test_a_function_that_means_every_pair_is_accepted():
    batches = columns_against_rows()[:1]
    row = validated(MetricsCB(acc=lambda p, t: sign_accuracy(p, t[None])), batches, loss_func=of_column)
    preds, target = batches[0]
    assert row["acc"] == pytest.approx(sign_accuracy(preds, target[None]).item(), rel=1e-6)


def test_functions_are_watched_in_the_first_batch_of_each_phase_only():
    seen = []

    def modes(preds, target):
        seen.append(torch._C._len_torch_function_stack())
        return 0.0

    learn = Learner(
        nn.Linear(3, 2), {"train": uneven(), "eval": uneven()}, cbs=[MetricsCB(modes)], default_cbs=False
    )
    learn.fit()
    assert seen == [1, 0, 0] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_function_is_compiled_in_the_first_batch():
    graphs = []

    def backend(graph, inputs):
        graphs.append(1)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(sign_accuracy, backend=backend, fullgraph=True)
    metrics = MetricsCB(acc=lambda preds, target: compiled(preds[:, 0], target))
    validated(metrics, columns_against_rows()[:1], loss_func=of_column)
    assert graphs == [1]


# Picks --------------------------------------------------------------------------------------------

Two = namedtuple("Two", ["age", "sex"])


@dataclass
class Out:
    age: torch.Tensor
    sex: torch.Tensor


class Heads(nn.Module):
    """Give several outputs, in a container."""

    def __init__(self, make):
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.make(x[:, 0] * self.weight, x[:, 1:] * self.weight)


def heads_row(make, make_target, **picks):
    batches = [(x, make_target(x[:, 2], y)) for x, y in uneven()]

    def loss(preds, target):
        return torch.zeros((), requires_grad=True)

    return validated(MetricsCB(**picks), batches, Heads(make), loss_func=loss), joint(uneven())


CONTAINERS = {
    "dict": (lambda age, sex: {"age": age, "sex": sex}, ("age", "sex")),
    "OrderedDict": (lambda age, sex: OrderedDict(age=age, sex=sex), ("age", "sex")),
    "tuple": (lambda age, sex: (age, sex), (0, 1)),
    "list": (lambda age, sex: [age, sex], (0, 1)),
    "named tuple": (Two, ("age", "sex")),
    "named tuple by number": (Two, (0, 1)),
    "dataclass": (Out, ("age", "sex")),
}


@pytest.mark.parametrize("target", ["dict", "tuple"])
@pytest.mark.parametrize("case", CONTAINERS)
def test_a_metric_sees_what_its_pick_gives(case, target):
    make, keys = CONTAINERS[case]
    if isinstance(keys[0], str) and target == "tuple":
        make_target = Two
    else:
        make_target = CONTAINERS[target][0] if isinstance(keys[0], str) else CONTAINERS["tuple"][0]
    row, (x, y) = heads_row(make, make_target, age=(F.mse_loss, keys[0]), sex=(MulticlassAccuracy(), keys[1]))
    assert row["age"] == pytest.approx(F.mse_loss(x[:, 0], x[:, 2]).item(), abs=1e-6)
    assert row["sex"] == pytest.approx((x[:, 1:].argmax(1) == y).float().mean().item())


def test_a_pick_is_any_function():
    def pick(preds, target):
        return preds.sex, target["sex"]

    row, (x, y) = heads_row(Out, CONTAINERS["dict"][0], sex=(accuracy, pick))
    assert row["sex"] == pytest.approx((x[:, 1:].argmax(1) == y).float().mean().item())


@pytest.mark.parametrize(
    ("pick", "said"),
    [
        ("weight", "pick='weight': preds, a dict of age, sex"),
        (0, "pick=0: preds, a dict"),
        (lambda preds, target: preds["age"], "returned a Tensor ... (preds, target)"),
        (lambda preds, target: None, "returned a NoneType"),
    ],
)
def test_a_pick_of_what_is_not_there_is_refused(pick, said):
    with pytest.raises((TypeError, KeyError), match=mentions(said)):
        heads_row(CONTAINERS["dict"][0], CONTAINERS["dict"][0], m=(accuracy, pick))


@pytest.mark.parametrize("pick", [0, "logits"])
def test_an_index_never_takes_a_sample_of_a_tensor(pick):
    with pytest.raises(TypeError, match=mentions(f"pick={pick!r}: preds, a Tensor")):
        validated(MetricsCB(m=(accuracy, pick)), uneven())


@pytest.mark.parametrize("make", [MulticlassAccuracy, lambda: AtEnd(accuracy_of_arrays)])
def test_one_object_for_two_outputs_is_refused(make):
    metric = make()
    with pytest.raises(ValueError, match="metrics a and b are one"):
        MetricsCB(a=(metric, 0), b=InValidation((metric, 1)))
    assert MetricsCB(a=(accuracy, 0), b=(accuracy, 1)).names == ["a", "b", "loss"]


def test_an_index_beyond_the_outputs_is_refused():
    with pytest.raises((TypeError, IndexError)):
        heads_row(CONTAINERS["tuple"][0], CONTAINERS["tuple"][0], m=(accuracy, 2))


@pytest.mark.parametrize("case", CONTAINERS)
def test_an_error_of_a_metric_says_what_it_was_given_and_how_to_pick(case):
    make, _ = CONTAINERS[case]
    with pytest.raises(Exception) as caught:  # noqa: PT011 the metric's own
        heads_row(make, CONTAINERS["dict"][0], m=MulticlassAccuracy())
    [note] = [note for note in caught.value.__notes__ if "metric m" in note]
    assert type(make(1, 2)).__name__ in note
    assert "a dict" in note
    part = {"dataclass": "preds.age", "named tuple": "preds[0]"}.get(case, "preds[")
    assert f"MetricsCB(m=(metric, lambda preds, target: ({part}" in note
    assert "target['age']" in note


def test_an_error_of_a_metric_of_tensors_has_no_note_about_picks():
    with pytest.raises(IndexError) as caught:
        validated(MetricsCB(lost=lambda preds, target: [][0]), uneven())
    assert not [note for note in caught.value.__notes__ if "pick" in note]


# At the end ---------------------------------------------------------------------------------------


def positive(preds, target):
    return preds.softmax(1)[:, 1], target


SKLEARN = {
    "roc_auc": (AtEnd(sklearn.roc_auc_score), positive),
    "average_precision": (AtEnd(sklearn.average_precision_score), positive),
    "log_loss": (AtEnd(sklearn.log_loss), lambda preds, target: (preds.softmax(1), target)),
    "brier": (AtEnd(sklearn.brier_score_loss), positive),
    "recall": (AtEnd(sklearn.recall_score), lambda preds, target: (preds.argmax(1), target)),
    "precision": (AtEnd(sklearn.precision_score), lambda preds, target: (preds.argmax(1), target)),
    "kappa": (AtEnd(lambda preds, target: sklearn.cohen_kappa_score(preds, target)),
              lambda preds, target: (preds.argmax(1), target)),
    "fbeta": (AtEnd(partial(sklearn.fbeta_score, beta=2)), lambda preds, target: (preds.argmax(1), target)),
}  # fmt: skip


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_functions_of_sklearn_are_over_all_predictions(name, dtype):
    metric, pick = SKLEARN[name]
    if name == "log_loss" and dtype is torch.bfloat16:
        pytest.skip("probabilities in bfloat16 do not sum to 1, of which sklearn warns")
    batches = [(x.to(dtype), y) for x, y in uneven(2, sizes=(8, 5, 6, 1))]
    row = validated(MetricsCB(m=(metric, pick)), batches)
    preds, target = pick(*joint(batches))
    preds, target = (preds.float() if dtype is torch.bfloat16 else preds).numpy(), target.numpy()
    by_hand = metric.function(target, preds) if name != "kappa" else metric.function(preds, target)
    assert row["m"] == pytest.approx(by_hand, abs=1e-12)


def test_a_recall_is_no_precision():
    batches = [(torch.eye(2)[[1, 1, 1, 0]], torch.tensor([1, 0, 0, 0]))]
    row = validated(
        MetricsCB(**{name: SKLEARN[name] for name in ("recall", "precision")}), batches, loss_func=None
    )
    assert (row["recall"], row["precision"]) == (1.0, pytest.approx(1 / 3))


ORDERS = {
    "y_true, y_pred": True,
    "y_true, y_score": True,
    "target, preds": True,
    "labels, logits": True,
    "labels_true, labels_pred": True,
    "y, y_hat": True,
    "gt, x": True,
    "preds, target": False,
    "input, target": False,
    "logits, labels": False,
    "y_pred, y_true": False,
    "x, target": False,
    "pred, gt": False,
    "x, y": None,
    "a, b": None,
    "y1, y2": None,
    "preds, scores": None,
    "target, labels": None,
}


@pytest.mark.parametrize("names", ORDERS)
def test_the_names_of_the_parameters_say_which_comes_first(names):
    function = eval(f"lambda {names}, *, weight=None: 0.0")
    assert takes_target_first(function) is ORDERS[names]
    if ORDERS[names] is None:
        with pytest.raises(TypeError, match=mentions("(preds, target) or (y_true, y_pred)")):
            AtEnd(function)


def test_those_of_sklearn_and_of_torchmetrics_say_it():
    names = [name for name in dir(sklearn) if name.endswith(("_score", "_error", "_loss"))]
    found = [getattr(sklearn, name) for name in names]
    told = [f for f in found if takes_target_first(f) is not None]
    second = [f.__name__ for f in told if not takes_target_first(f)]
    assert second == ["calinski_harabasz_score", "davies_bouldin_score", "silhouette_score"]  # (X, labels)
    assert len(told) > 40
    functional = torchmetrics.functional
    found = [getattr(functional, name) for name in functional.__all__ if not name.endswith("similarity")]
    assert [f.__name__ for f in found if takes_target_first(f)] == []


@pytest.mark.parametrize("wrong", [3, None, MulticlassAccuracy(), MulticlassAccuracy, max, len, (rmse, 0)])
def test_at_end_takes_a_function(wrong):
    with pytest.raises(TypeError, match="AtEnd"):
        AtEnd(wrong)


@pytest.mark.parametrize("wrong", [3, None, MulticlassAccuracy, (3, 0), "loss"])
def test_in_validation_takes_a_metric(wrong):
    with pytest.raises(TypeError, match=r"InValidation|MulticlassAccuracy\(\)"):
        InValidation(wrong)


@pytest.mark.parametrize("chunk", [0, 100, 2**25])
def test_samples_are_those_of_each_batch_in_order_however_they_are_copied(chunk, monkeypatch):
    monkeypatch.setattr(at_end, "_CHUNK_BYTES", chunk)
    seen = []
    buffer = torch.empty(4, 3)

    class Reusing(nn.Module):
        def forward(self, x):
            return buffer[: len(x)].copy_(x)

    batches = uneven(sizes=(4, 4, 3, 1))
    row = validated(
        MetricsCB(n=AtEnd(lambda preds, target: seen.append((preds, target)) or len(preds))),
        batches,
        Reusing(),
    )
    preds, target = joint(batches)
    assert row["n"] == 12
    assert [type(part) for part in seen[0]] == [np.ndarray] * 2
    assert (seen[0][0] == preds.numpy()).all()
    assert (seen[0][1] == target.numpy()).all()


def test_lists_of_a_batch_are_joined_to_one_list():
    boxes = [[{"boxes": torch.ones(n, 4) * n, "name": "cat"} for n in sizes] for sizes in ((1, 2), (0,))]
    batches = [(x, y[:n]) for (x, y), n in zip(uneven(sizes=(2, 1)), (2, 1), strict=True)]
    given = iter(boxes)
    seen = []
    metric = AtEnd(lambda preds, target: seen.extend(preds) or 0.5)
    validated(MetricsCB(m=(metric, lambda preds, target: (next(given), target))), batches)
    assert [len(item["boxes"]) for item in seen] == [1, 2, 0]
    assert seen[1]["name"] == "cat"


@pytest.mark.parametrize(
    ("pick", "said"),
    [
        (lambda p, t: (p, None), "targets that are a NoneType"),
        (lambda p, t: ({"a": p}, t), "predictions|preds that are a dict"),
        (lambda p, t: (p.mean(), t), "tensor without dimensions"),
        (lambda p, t: (p[:1], t), "1 predictions and 4 targets"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_the_first_batch(pick, said):
    with pytest.raises((TypeError, ValueError), match=said):
        validated(MetricsCB(m=(AtEnd(lambda preds, target: 0), pick)), uneven())


def test_batches_of_other_lengths_are_refused_in_the_second_batch():
    batches = [(torch.ones(2, n), torch.zeros(2, dtype=torch.long)) for n in (3, 4)]
    with pytest.raises(ValueError, match=mentions("(N, *(3,)) and (N, *(4,)) ... preds[mask]")):
        validated(MetricsCB(m=AtEnd(lambda preds, target: 0)), batches)


def test_an_error_of_the_function_passes_through():
    with pytest.raises(ZeroDivisionError):
        validated(MetricsCB(m=AtEnd(lambda preds, target: 1 / 0)), uneven())


def test_an_error_of_the_function_says_what_it_was_given_and_how_to_pick():
    with pytest.raises(ValueError, match="multi_class") as caught:
        validated(MetricsCB(auc=AtEnd(sklearn.roc_auc_score)), uneven(n_features=3, n_out=3, sizes=(9, 9)))
    [note] = [note for note in caught.value.__notes__ if "AtEnd" in note]
    assert "preds, (18, 3) of float32, and a target, (18,) of int64" in note
    assert "(AtEnd(function), lambda preds, target: ...)" in note


def test_at_end_begins_again_in_each_phase(make_learner):
    learn = make_learner(n_batches=3, n_valid=2, cbs=[MetricsCB(n=AtEnd(lambda preds, target: len(preds)))])
    learn.fit(2)
    assert [row["n"] for row in learn.history] == [12, 8, 12, 8]


def test_at_end_frees_the_samples_after_the_phase_and_saves_them_inside_it(make_learner, tmp_path):
    def kept(learn):
        sizes.append([len(part) for pair in metric.state_dict()["chunks"] for part in pair])

    sizes, metric = [], AtEnd(lambda preds, target: len(preds))
    learn = make_learner(n_batches=2, n_valid=2, cbs=[MetricsCB(n=metric), at("at_rest", kept)])
    learn.fit()
    assert sizes == [[4, 4], [8, 8], [4, 4], [8, 8], [], []]


def test_at_end_waits_for_no_step(make_learner):
    def waits(n_batches):
        learn = make_learner(n_batches, cbs=[MetricsCB(n=AtEnd(lambda preds, target: len(preds)))])
        with SyncCounter() as counter:
            learn.fit(1)
        return counter.n

    assert waits(3) == waits(30)


AT_END_JOINED = {
    "a comparison": lambda preds, target: ((preds > 0) == target).mean(),
    "a difference": lambda preds, target: np.abs(preds - target).mean(),
    "after other operations": lambda preds, target: np.mean((preds.clip(0, 1).copy() - target * 2) ** 2),
    "a choice": lambda preds, target: np.where(preds > 0, target, preds).mean(),
}
AT_END_ACCEPTED = {
    "by index": lambda preds, target: ((preds[:, 0] > 0) == target).mean(),
    "flattened": lambda preds, target: ((preds.ravel() > 0) == target).mean(),
    "the target's dimension": lambda preds, target: ((preds > 0) == target[:, None]).mean(),
    "a column of it": lambda preds, target: ((preds > 0) == target.reshape(-1, 1)).mean(axis=0),
    "of torch": lambda preds, target: (
        ((torch.tensor(preds)[:, 0] > 0) == torch.tensor(target)).float().mean()
    ),
    "in place": lambda preds, target: np.equal(preds[:, 0] > 0, target, out=np.empty(len(target))).mean(),
    "sklearn's": lambda preds, target: sklearn.accuracy_score(target, preds > 0),
}


@pytest.mark.parametrize("function", AT_END_JOINED.values(), ids=AT_END_JOINED)
def test_a_function_at_the_end_that_joins_all_samples_is_refused(function):
    said = "(9, 1) ... (9,) ... every sample with every other one ... preds.squeeze(1) ... target[None]"
    with pytest.raises(ValueError, match=mentions(said)):
        validated(MetricsCB(acc=AtEnd(function)), columns_against_rows(), loss_func=of_column)


@pytest.mark.parametrize("function", AT_END_ACCEPTED.values(), ids=AT_END_ACCEPTED)
def test_a_function_at_the_end_that_squeezes_by_itself_is_accepted(function):
    batches = columns_against_rows()
    preds, target = joint(batches)
    row = validated(MetricsCB(acc=AtEnd(function)), batches, loss_func=of_column)
    found = next(value for name, value in row.items() if name.startswith("acc"))
    assert found == pytest.approx(sign_accuracy(preds[:, 0], target).item(), rel=1e-6)


def test_a_function_at_the_end_may_mean_every_pair():
    batches = columns_against_rows()
    preds, target = joint(batches)
    pairs = AtEnd(lambda preds, target: ((preds - target[None]) ** 2).mean())
    row = validated(MetricsCB(pairs=pairs), batches, loss_func=of_column)
    assert row["pairs"] == pytest.approx(((preds - target[None]) ** 2).mean().item(), rel=1e-6)


def test_other_shapes_at_the_end_are_plain_arrays():
    kinds = []
    keep = AtEnd(lambda preds, target: kinds.append((type(preds), type(target))) or 0.0)
    validated(MetricsCB(keep=keep), uneven(n_features=2))
    assert kinds == [(np.ndarray, np.ndarray)]


# In validation ------------------------------------------------------------------------------------


class NeverInTraining:
    """A metric that fails in training."""

    def __init__(self):
        self.n = 0

    def reset(self):
        self.n = 0

    def update(self, preds, target):
        assert not torch.is_grad_enabled()
        self.n += 1

    def compute(self):
        assert self.n
        return self.n


def test_in_validation_training_rows_have_no_such_column_and_all_readers_take_it(
    make_learner, tmp_path, capsys
):
    cbs = [CSVLoggerCB(tmp_path / "rows.csv"), TensorBoardCB(tmp_path / "tb", "run"), ProgressCB()]
    stop = EarlyStoppingCB("n", mode="max", patience=9)
    learn = make_learner(n_valid=2, cbs=[MetricsCB(accuracy, n=InValidation(NeverInTraining())), *cbs, stop])
    learn.fit(2)
    assert [[*row][:-4] for row in learn.history] == [["accuracy"], ["accuracy", "n"]] * 2
    assert [row.get("n") for row in learn.history] == [None, 2] * 2
    assert stop.best == 2
    with open(tmp_path / "rows.csv", newline="") as file:
        assert [line["n"] for line in csv.DictReader(file)] == ["", "2", "", "2"]
    events = EventAccumulator(str(tmp_path / "tb" / "run"))
    events.Reload()
    assert "n/eval" in events.Tags()["scalars"]
    assert "n/train" not in events.Tags()["scalars"]
    assert "n 2" in capsys.readouterr().out
    assert len(plot_history(learn.history).axes) == 3
    assert learn.validate()["n"] == 2


@pytest.mark.parametrize(("monitor", "valid"), [("train/n", True), ("n", False), ("eval/n", False)])
def test_a_monitor_of_what_is_not_measured_then_is_refused_before_training(monitor, valid, make_learner):
    learn = make_learner(
        cbs=[MetricsCB(n=InValidation(NeverInTraining())), EarlyStoppingCB(monitor, mode="max")]
    )
    with pytest.raises(ValueError, match=mentions(f"monitor={monitor!r} is not measured")):
        learn.fit(valid=valid)
    assert learn.n_steps == 0


def test_in_validation_takes_picks_and_what_is_in_another(make_learner):
    def pick(preds, target):
        return preds, target

    given = [
        InValidation((NeverInTraining(), pick)),
        (InValidation(NeverInTraining()), pick),
        InValidation(InValidation(NeverInTraining())),
        InValidation((InValidation(NeverInTraining()), pick)),
    ]
    learn = make_learner(cbs=[MetricsCB(**{f"n{i}": metric for i, metric in enumerate(given)})])
    learn.fit()
    assert [[*row][:-4] for row in learn.history] == [
        [],
        ["n0", "n1", "n2", "n3"],
    ]


@pytest.mark.parametrize("metric", ["function", "at end", "torchmetrics"])
def test_validation_nested_in_training_leaves_its_rows(metric, make_learner):
    def make():
        kinds = {
            "function": accuracy,
            "at end": AtEnd(accuracy_of_arrays),
            "torchmetrics": torchmetrics.Accuracy(task="multiclass", num_classes=2),
        }
        return MetricsCB(m=kinds[metric], v=InValidation(NeverInTraining()))

    def validate(learn):
        if learn.training and learn.batch_idx == 1:
            rows.append(learn.validate())

    rows = []
    alone, watched = make_learner(cbs=[make()]), make_learner(cbs=[make()])
    alone.fit(2)
    watched.fit(2, cbs=[at("after_step", validate)])
    assert untimed_rows(watched) == untimed_rows(alone)
    assert [row["v"] for row in rows] == [1, 1]


def test_a_metric_in_validation_can_be_tried_on_one_batch_before_the_fit():
    sizes = []

    def each(preds, target):
        sizes.append(len(target))
        return (preds.argmax(1) == target).float()

    learn = Learner(
        nn.Linear(3, 2), {"train": uneven(), "eval": uneven()}, cbs=[MetricsCB(InValidation(each))],
        default_cbs=False,
    )  # fmt: skip
    with pytest.raises(TypeError, match=mentions("each returned ... (4,) ... one number")):
        learn.validate(cbs=SingleBatchCB())
    assert sizes == [4]
    assert learn.n_steps == 0


# Torchmetrics -------------------------------------------------------------------------------------

KIND = {"task": "multiclass", "num_classes": 2}
TORCHMETRICS = {
    "accuracy": (lambda: torchmetrics.Accuracy(**KIND), ["m"]),
    "AUROC": (lambda: torchmetrics.AUROC(**KIND), ["m"]),
    "binned AUROC": (lambda: torchmetrics.AUROC(**KIND, thresholds=5), ["m"]),
    "collection": (
        lambda: torchmetrics.MetricCollection(
            {"acc": torchmetrics.Accuracy(**KIND), "f1": torchmetrics.F1Score(average="macro", **KIND)}
        ),
        ["m_acc", "m_f1"],
    ),
    "matrix": (lambda: torchmetrics.ConfusionMatrix(**KIND), [f"m_{i}_{j}" for i in (0, 1) for j in (0, 1)]),
}


@pytest.mark.parametrize("case", TORCHMETRICS)
def test_torchmetrics_equals_its_loop_by_hand(case, make_learner):
    make, names = TORCHMETRICS[case]
    learn = make_learner(n_batches=5, n_valid=3, lr=0.0, cbs=[MetricsCB(m=make())])
    learn.fit(2)
    for row in learn.history:
        metric = make()
        for xb, yb in learn.dls[row["train"]]:
            metric.update(learn.model(xb).detach(), yb)
        value = metric.compute()
        expected = [*value.values()] if isinstance(value, dict) else value.reshape(-1).tolist()
        assert [*row][: len(names)] == names
        assert [row[name] for name in names] == [float(v) for v in expected]


def mean_of_first(cls):
    class OfFirst(cls):
        def update(self, preds, target):
            super().update(preds[:, 0])

    return OfFirst()


@pytest.mark.parametrize("cls", [torchmetrics.MeanMetric, torchmetrics.SumMetric, torchmetrics.MaxMetric])
def test_aggregators_of_torchmetrics_with_an_update_of_preds_and_target(cls, make_learner):
    learn = make_learner(cbs=[MetricsCB(m=mean_of_first(cls))])
    row = learn.validate()
    metric = cls()
    for xb, _ in learn.dls.valid:
        metric.update(learn.model(xb)[:, 0].detach())
    assert row["m"] == metric.compute().item()


BESIDE = {
    "EMA": lambda: [EMACB(0.5)],
    "SWA": lambda: [SWACB(1, every_steps=1)],
    "bfloat16": lambda: [MixedPrecisionCB(dtype=torch.bfloat16)],
    "accumulation and clipping": lambda: [GradientAccumulationCB(2), GradientClippingCB(0.5)],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BESIDE)
def test_all_kinds_go_with_other_callbacks(case, make_learner):
    metrics = MetricsCB(
        accuracy,
        own=MulticlassAccuracy(),
        end=AtEnd(accuracy_of_arrays),
        valid=InValidation(AtEnd(accuracy_of_arrays)),
        tm=torchmetrics.Accuracy(**KIND),
        several=torchmetrics.MetricCollection({"acc": torchmetrics.Accuracy(**KIND)}),
        picked=(accuracy, lambda preds, target: (preds, target)),
    )
    learn = make_learner(n_batches=4, n_valid=2, cbs=[metrics, *BESIDE[case]()])
    learn.fit(3)
    rows = [*learn.history, learn.validate()]
    assert len(rows) >= 7
    for row in rows:
        assert (
            len({round(row[name], 6) for name in ("accuracy", "own", "end", "tm", "several_acc", "picked")})
            == 1
        )
        assert ("valid" in row) is (row["train"] != "train")
        assert row.get("valid", row["end"]) == row["end"]
    n_preds = len(learn.predict(learn.dls.valid))
    assert n_preds == 8
    assert learn.lr_find().lrs


@pytest.mark.slow
def test_verify_resume_takes_all_kinds(make_learner):
    metrics = MetricsCB(
        accuracy, end=InValidation((AtEnd(sklearn.roc_auc_score), positive)), tm=torchmetrics.Accuracy(**KIND)
    )
    y = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
    learn = make_learner(2, 2, cbs=[metrics])
    learn.dls.valid.tensors = (learn.dls.valid.tensors[0], y)
    learn.verify_resume()


def test_a_resumed_run_warns_of_no_function(make_learner, tmp_path):
    def run(**kwargs):
        metrics = MetricsCB(accuracy, end=(AtEnd(accuracy_of_arrays), lambda preds, target: (preds, target)))
        learn = make_learner(cbs=[metrics, CheckpointCB(tmp_path)])
        learn.fit(2, **kwargs)
        return untimed_rows(learn)

    first = run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(resume=True) == first


def flat_loss(preds, target):
    return F.cross_entropy(preds.flatten(0, 1), target.flatten())


@pytest.mark.parametrize(
    "metric", [lambda: torchmetrics.Accuracy(task="multiclass", num_classes=5), MulticlassAccuracy]
)
def test_a_metric_that_refuses_classes_in_the_last_dimension_says_the_pick_that_cures_it(metric):
    def fit(given):
        batches = {"train": [(torch.randn(4, 3, 2), torch.randint(5, (4, 3)))]}
        Learner(nn.Linear(2, 5), batches, loss_func=flat_loss, cbs=MetricsCB(top1=given)).fit()

    with pytest.raises(Exception, match=r"\w") as error:
        fit(metric())
    notes = " ".join(error.value.__notes__)
    cure = "top1=(metric, lambda preds, target: (preds.flatten(0, 1), target.flatten()))"
    assert re.search(mentions(f"metric top1 ... (4, 3, 5) ... (4, 3) ... {cure}"), notes)
    fit((metric(), lambda preds, target: (preds.flatten(0, 1), target.flatten())))
