from collections import Counter
from functools import partial

import pytest
import torch
from toolbox import StopCB, SyncCounter, stop, untimed_rows
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torcheval.metrics import MulticlassAccuracy

from minilearn import (
    BatchSchedulerCB,
    CheckpointCB,
    DeviceCB,
    Learner,
    MetricsCB,
    RecorderCB,
    TerminateOnNaNCB,
)


class Seen:
    """A metric that computes the number of batches it was given, and of samples."""

    def reset(self):
        self.sizes = []

    def update(self, preds, target):
        assert preds.shape[0] == target.shape[0]
        assert not preds.requires_grad
        self.sizes.append(len(target))

    def compute(self):
        return [len(self.sizes), sum(self.sizes)]


def at_zero(make_learner, **kwargs):
    """Make a learner whose predictions are all 0, so that a batch's loss is the mean of target ** 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    train = [(torch.ones(2, 1), torch.ones(2, 1)), (torch.ones(1, 1), torch.full((1, 1), 4.0))]
    valid = [(torch.ones(3, 1), torch.full((3, 1), 2.0)), (torch.ones(1, 1), torch.full((1, 1), 3.0))]
    return make_learner(model=model, dls={"train": train, "eval": valid}, lr=0.0, **kwargs)


def test_loss_weighs_each_batch_by_its_size(make_learner):
    learn = at_zero(make_learner, cbs=[MetricsCB()])
    learn.fit()
    assert untimed_rows(learn) == [
        {"loss": (2 * 1 + 1 * 16) / 3, "epoch": 0, "train": "train"},
        {"loss": (3 * 4 + 1 * 9) / 4, "epoch": 0, "train": "eval"},
    ]


def test_batch_of_a_dict_is_weighed_by_its_first_tensor(make_learner):
    class OfDict(nn.Linear):
        def forward(self, first):
            return super().forward(first)

    train = [({"first": torch.ones(n, 1)}, torch.full((n, 1), value)) for n, value in ((3, 1.0), (1, 3.0))]
    model = OfDict(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    learn = make_learner(model=model, dls={"train": train}, lr=0.0, cbs=[MetricsCB()])
    learn.fit()
    assert learn.history[0]["loss"] == (3 * 1 + 1 * 9) / 4


def test_rows_have_the_documents_shape(make_learner):
    learn = make_learner(cbs=[MetricsCB(MulticlassAccuracy())])
    learn.fit(2)
    assert all(
        list(row) == ["MulticlassAccuracy", "loss", "epoch", "train", "time_s"] for row in learn.history
    )
    assert [(row["epoch"], row["train"]) for row in learn.history] == [
        (0, "train"),
        (0, "eval"),
        (1, "train"),
        (1, "eval"),
    ]


def test_epoch_counts_on_from_fit_to_fit(make_learner):
    learn = make_learner(n_valid=0, cbs=[MetricsCB()])
    learn.fit(2)
    learn.fit()
    assert [row["epoch"] for row in learn.history] == [0, 1, 2]


def test_metrics_equal_torcheval_by_hand(make_learner):
    learn = make_learner(
        lr=0.0, n_batches=5, cbs=[MetricsCB(MulticlassAccuracy(), both=MulticlassAccuracy(k=2))]
    )
    learn.fit(2)
    by_hand = {}
    for phase in ("train", "eval"):
        metric = MulticlassAccuracy()
        for xb, yb in learn.dls[phase]:
            metric.update(learn.model(xb), yb)
        by_hand[phase] = metric.compute().item()
    assert 0 < by_hand["train"] < 1
    for row in learn.history:
        assert (row["MulticlassAccuracy"], row["both"]) == (by_hand[row["train"]], 1.0)


def test_metrics_begin_anew_in_each_phase(make_learner):
    learn = make_learner(n_batches=3, n_valid=2, cbs=[MetricsCB(sizes=Seen())])
    learn.fit(2)
    assert [(row["sizes_0"], row["sizes_1"]) for row in learn.history] == [(3, 12), (2, 8)] * 2


@pytest.mark.parametrize(
    "loss_func", [None, F.cross_entropy, nn.CrossEntropyLoss(), partial(F.cross_entropy, label_smoothing=0.1)]
)
def test_accuracy_is_inferred_for_cross_entropy(make_learner, loss_func):
    learn = make_learner(loss_func=loss_func, cbs=[MetricsCB()])
    learn.fit()
    assert list(learn.history[0])[:2] == ["MulticlassAccuracy", "loss"]


@pytest.mark.parametrize("loss_func", [None, F.l1_loss])
def test_no_metric_is_inferred_for_regression(make_learner, loss_func):
    learn = make_learner(regression=True, loss_func=loss_func, cbs=[MetricsCB()])
    learn.fit()
    assert next(iter(learn.history[0])) == "loss"


def test_no_metric_is_inferred_for_another_loss_over_classes(make_learner):
    learn = make_learner(loss_func=F.multi_margin_loss, cbs=[MetricsCB()])
    learn.fit()
    assert next(iter(learn.history[0])) == "loss"


def test_no_metric_is_inferred_when_one_is_named(make_learner):
    learn = make_learner(cbs=[MetricsCB(top1=MulticlassAccuracy())])
    learn.fit()
    assert list(learn.history[0])[:2] == ["top1", "loss"]


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"Seen.*MetricsCB\(top1="):
        MetricsCB(Seen(), Seen())
    assert set(MetricsCB(Seen(), other=Seen()).names) == {"Seen", "other", "loss"}


@pytest.mark.parametrize("given", [lambda: MetricsCB(Seen), lambda: MetricsCB(Seen=Seen)])
def test_metric_class_instead_of_an_instance_is_refused(given):
    with pytest.raises(TypeError, match=r"Seen.*Seen\(\)"):
        given()


def test_metric_without_update_is_refused():
    class NoUpdate:
        reset = compute = Seen.compute

    with pytest.raises(TypeError, match=r"odd=.*update.*reset\(\), upd"):
        MetricsCB(odd=NoUpdate())


def test_loss_that_is_no_tensor_is_refused(make_learner, at):
    learn = make_learner(cbs=[MetricsCB(), at("after_loss", lambda learn: setattr(learn, "loss", 0.5))])
    with pytest.raises(TypeError, match=r"learn.loss.*0.5.*get_loss.*tensor"):
        learn.fit(train=False)


def test_users_hooks_find_the_finished_row(make_learner, at):
    found = []
    hooks = [
        at(event, lambda learn: found.append(untimed_rows(learn)[-1]))
        for event in ("after_train", "after_validate")
    ]
    learn = make_learner(cbs=[*hooks, MetricsCB()])
    learn.fit()
    assert found == untimed_rows(learn)


def test_validate_returns_its_row_and_leaves_history(make_learner):
    learn = make_learner(cbs=[MetricsCB()])
    learn.fit(lr=0.0)
    before = untimed_rows(learn)
    row = learn.validate()
    assert (row["loss"], row["train"]) == (before[1]["loss"], "eval")
    assert untimed_rows(learn) == before


@pytest.mark.parametrize("event", ["before_batch", "after_loss", "after_step", "after_batch"])
@pytest.mark.parametrize("order", [-60, 0])
def test_validate_inside_a_batch_leaves_the_training_row(make_learner, at, event, order):
    def validate(learn):
        if learn.training and learn.batch_idx == 1:
            learn.validate()

    alone, watched = make_learner(cbs=[MetricsCB(sizes=Seen())]), make_learner(cbs=[MetricsCB(sizes=Seen())])
    alone.fit(2)
    watched.fit(2, cbs=[at(event, validate, order)])
    assert untimed_rows(watched) == untimed_rows(alone)


def test_validate_that_fails_inside_a_batch_leaves_the_training_row(make_learner, at):
    def validate(learn):
        if learn.training:
            with pytest.raises(RuntimeError):
                learn.validate(
                    [(torch.ones(1, 3), torch.tensor([0])), (torch.ones(1, 99), torch.tensor([0]))]
                )

    alone, watched = make_learner(cbs=[MetricsCB()]), make_learner(cbs=[MetricsCB()])
    alone.fit()
    watched.fit(cbs=[at("after_batch", validate)])
    assert untimed_rows(watched) == untimed_rows(alone)


def counted(counts, method):
    def count(self, *args, **kwargs):
        counts[method] += 1
        return method(self, *args, **kwargs)

    return count


def syncs(monkeypatch, make_learner, n_batches, *more):
    """Return how often fit(1) waits for the device."""
    counts = Counter()
    with monkeypatch.context() as patch:
        for name in ("tolist", "numpy", "cpu"):  # these wait without an operation of their own
            patch.setattr(torch.Tensor, name, counted(counts, getattr(torch.Tensor, name)))
        cbs = [DeviceCB("cpu"), MetricsCB(MulticlassAccuracy()), RecorderCB(), BatchSchedulerCB(OneCycleLR)]
        learn = make_learner(n_batches=n_batches, cbs=[*cbs, *more])
        with SyncCounter() as counter:
            learn.fit()
    assert learn.opt.param_groups[0]["fused"]
    assert learn.n_steps == n_batches
    return counter.n + counts.total()


def test_no_step_waits_for_the_device(monkeypatch, make_learner):
    n = syncs(monkeypatch, make_learner, 5)
    assert n == syncs(monkeypatch, make_learner, 50)
    assert n > 0  # at the end of the epoch


def test_counter_of_waits_sees_one_in_each_step(monkeypatch, make_learner, at):
    n = [
        syncs(monkeypatch, make_learner, i, at("after_loss", lambda learn: learn.loss.item()))
        for i in (5, 50)
    ]
    assert n[1] == n[0] + 45


@pytest.mark.slow
def test_look_for_nan_waits_once_in_so_many_steps(monkeypatch, make_learner):
    n = [syncs(monkeypatch, make_learner, i, TerminateOnNaNCB(every=50)) for i in (5, 45, 100)]
    assert n[0] == n[1] < n[2] < n[1] + 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_step_waits_for_the_gpu(make_learner, at):
    def forbid(learn):  # the first batch is looked at, to check the targets
        torch.cuda.set_sync_debug_mode("error" if learn.training and learn.batch_idx > 1 else "default")

    cbs = [DeviceCB("cuda"), MetricsCB(MulticlassAccuracy()), RecorderCB(), BatchSchedulerCB(OneCycleLR)]
    allow = at("cleanup_batch", lambda learn: torch.cuda.set_sync_debug_mode("default"), 999)
    learn = make_learner(n_batches=50, cbs=[*cbs, at("before_batch", forbid), allow])
    learn.fit()
    assert learn.n_steps == 50


def test_rows_list_the_unnamed_metrics_first(make_learner):
    cb = MetricsCB(MulticlassAccuracy(), top1=MulticlassAccuracy())
    assert cb.names == ["MulticlassAccuracy", "top1", "loss"]


def test_two_of_them_are_refused(make_learner):
    with pytest.raises(ValueError, match=r"MetricsCB\(\) and MetricsCB\(\): .*give all metrics to one"):
        make_learner(cbs=MetricsCB()).fit(cbs=MetricsCB())


@pytest.mark.parametrize("ignored", [-100, 0, 2])
def test_default_accuracy_without_ignored_targets_is_that_of_sklearn(ignored):
    accuracy_score = pytest.importorskip("sklearn.metrics").accuracy_score
    rng = torch.Generator().manual_seed(0)
    preds, target = torch.randn(60, 3, generator=rng), torch.randint(0, 3, (60,), generator=rng)
    target[::7] = ignored
    learn = Learner(
        nn.Identity(),
        {"eval": [(preds[:40], target[:40]), (preds[40:], target[40:])], "train": [(preds, target)]},
        nn.CrossEntropyLoss(ignore_index=ignored),
        cbs=[MetricsCB()],
        default_cbs=False,
    )
    kept = target != ignored
    expected = accuracy_score(target[kept], preds.argmax(1)[kept])
    assert learn.validate()["MulticlassAccuracy"] == pytest.approx(expected)


def test_resumed_metric_and_sum_are_moved_before_their_first_batch(make_learner, tmp_path):
    calls = []

    class Told(MulticlassAccuracy):
        def load_state_dict(self, state):
            calls.append("load")
            return super().load_state_dict(state)

        def to(self, device):
            calls.append("to")
            return super().to(device)

        def update(self, preds, target):
            calls.append("update")
            return super().update(preds, target)

    def learner(*cbs):
        saver = CheckpointCB(tmp_path, every_steps=1)
        return make_learner(n_batches=4, cbs=[MetricsCB(Told()), saver, *cbs])

    stop(learner(StopCB(2)), n_epochs=1)
    calls.clear()
    learner(StopCB(-1)).fit(resume=True)
    assert calls[calls.index("load") :][:3] == ["load", "to", "update"]
