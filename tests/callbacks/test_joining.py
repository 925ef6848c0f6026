"""Metrics of several processes, joined by the rules of each kind; here the processes are simulated."""

from functools import partial

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics import Metric
from torchmetrics.wrappers import ClasswiseWrapper, MultioutputWrapper

from minilearn import AtEnd, DistributedCB, MetricsCB
from minilearn.callbacks.functions import BatchMean
from minilearn.callbacks.joining import (
    Synchronized,
    check_joinable,
    is_torchmetrics,
    joined,
    put,
    saved,
    states_of,
    take_share,
)
from minilearn.processes import Processes

KIND = {"task": "multiclass", "num_classes": 3}


class Rules(Metric):
    """A state for each rule."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("mean", torch.zeros(()), dist_reduce_fx="mean")
        self.add_state("most", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.add_state("least", torch.tensor(torch.inf), dist_reduce_fx="min")
        self.add_state("own", torch.ones(()), dist_reduce_fx=lambda stacked: stacked.prod(0))
        self.add_state("kept", torch.zeros(()), dist_reduce_fx=None)
        self.add_state("cat", [], dist_reduce_fx="cat")
        self.add_state("uneven", [], dist_reduce_fx=None)
        self.add_state("tuples", [], dist_reduce_fx=None)
        self.add_state("counts", [], dist_reduce_fx=lambda items: [torch.stack(items).sum()])

    def update(self, preds, target):
        self.total = self.total + preds.sum()
        self.mean = preds.mean()
        self.most, self.least = torch.maximum(self.most, preds.max()), torch.minimum(self.least, preds.min())
        self.own = self.own * 2
        self.kept = preds.sum()
        self.cat.append(preds[:, 0])
        self.uneven.append(preds)
        self.tuples.append((len(preds), "n"))
        self.counts.append(torch.tensor(len(preds)))

    def compute(self):
        return {name: getattr(self, name) for name in self._defaults}


def batches(n=9, n_classes=3):
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(b, n_classes, generator=g), torch.randint(n_classes, (b,), generator=g))
        for b in range(1, n + 1)
    ]


def process(rank, n):
    """Return one of n processes, each with its own part of a batch."""
    found = Processes()
    found.are(rank, n)
    return found


class Simulated:
    """Run code in several processes, one after another: first to hear what each says, then to tell all."""

    def __init__(self, n, monkeypatch):
        self.n, self.said, self.rank = n, {}, 0
        monkeypatch.setattr(Processes, "all_gather", self._all_gather)
        monkeypatch.setattr(Processes, "gather", self._gather)

    def _all_gather(self, value):
        self.said.setdefault(self.i, {})[self.rank] = value
        found = self.said[self.i]
        self.i += 1
        return [found.get(rank, value) for rank in range(self.n)]

    def _gather(self, value):
        found = self._all_gather(value)
        return found if self.rank == 0 else []

    def run(self, function):
        self.said = {}
        for _ in range(4):  # enough for each to hear what depends on what it heard
            found = []
            for self.rank in range(self.n):
                self.i = 0
                found.append(function(process(self.rank, self.n)))
        return found


METRICS = {
    "accuracy": partial(torchmetrics.Accuracy, **KIND),
    "macro": partial(torchmetrics.Precision, average="macro", **KIND),
    "lists": partial(torchmetrics.AUROC, **KIND),
    "bins": partial(torchmetrics.AUROC, thresholds=10, **KIND),
    "matrix": partial(torchmetrics.ConfusionMatrix, **KIND),
    "collection": lambda: torchmetrics.MetricCollection(
        [torchmetrics.Precision(**KIND), torchmetrics.Recall(**KIND), torchmetrics.AUROC(**KIND)]
    ),
    "collection, no groups": lambda: torchmetrics.MetricCollection(
        [torchmetrics.Precision(**KIND), torchmetrics.Recall(**KIND)], compute_groups=False
    ),
    "classes": lambda: ClasswiseWrapper(torchmetrics.Recall(average=None, **KIND)),
    "function": lambda: BatchMean(lambda preds, target: preds[:, 0].mean()),
    "at the end": lambda: AtEnd(lambda preds, target: (preds[:, 0] * target).sum().item()),
}


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=1e-6)


def parts_and_whole(make, n, n_batches=9):
    """Return metrics of n processes with shares of the batches, and one with all of them."""
    parts, whole = [make() for _ in range(n)], make()
    for i, (preds, target) in enumerate(batches(n_batches)):
        parts[i % n].update(preds, target)
        whole.update(preds, target)
    return parts, whole


@pytest.mark.filterwarnings("ignore:No (posi|nega)tive samples")  # torchmetrics' own
@pytest.mark.parametrize("n_batches", [9, 2, 1])  # 3 processes: some have no sample at all
@pytest.mark.parametrize("name", METRICS)
def test_the_joint_metric_is_that_of_all_samples(name, n_batches, monkeypatch):
    parts, whole = parts_and_whole(METRICS[name], 3, n_batches)

    def value(processes):
        return joined(processes, {"m": parts[processes.rank]}, {})["m"].compute()

    first, *others = Simulated(3, monkeypatch).run(value)
    assert equal(first, whole.compute())
    if name != "at the end":  # which only the first computes
        assert all(equal(first, other) for other in others)


@pytest.mark.parametrize("name", METRICS)
def test_joining_leaves_each_part_as_it_was(name, monkeypatch):
    parts, _ = parts_and_whole(METRICS[name], 2)
    again, _ = parts_and_whole(METRICS[name], 2)

    def value(processes):
        return joined(processes, {"m": parts[processes.rank]}, {})["m"].compute()

    Simulated(2, monkeypatch).run(value)
    for part, other in zip(parts, again, strict=True):
        for preds, target in batches(3):
            part.update(preds, target)
            other.update(preds, target)
        assert equal(part.compute(), other.compute())


@pytest.mark.parametrize("n_new", [1, 2, 3])
@pytest.mark.parametrize("name", METRICS)
def test_other_numbers_of_processes_continue_it(name, n_new, monkeypatch):
    """Two processes save; others load this, add more, save, and load again."""
    parts, whole = parts_and_whole(METRICS[name], 2)
    more = [(preds + 1, target) for preds, target in batches(4)]
    found, others = Simulated(2, monkeypatch).run(lambda p: saved(p, {"m": parts[p.rank]}, {}))[0]
    for n in (n_new, 2):
        new, left = [METRICS[name]() for _ in range(n)], []
        for rank, metric in enumerate(new):
            if is_torchmetrics(metric):
                put(metric, states_of(found["m"]))  # as loading does
            else:
                metric.load_state_dict(found["m"].state_dict())
            left.append(take_share(process(rank, n), metric, others.get("m", [])))
        for i, (preds, target) in enumerate(more):
            new[i % n].update(preds, target)
            whole.update(preds, target)
        simulated = Simulated(n, monkeypatch)
        found, others = simulated.run(lambda p: saved(p, {"m": new[p.rank]}, {"m": left[p.rank]}))[0]  # noqa: B023
    value = simulated.run(lambda p: joined(p, {"m": new[p.rank]}, {"m": left[p.rank]})["m"].compute())[0]
    assert equal(value, whole.compute())


def test_each_rule_of_torchmetrics_is_followed():
    parts, _ = parts_and_whole(Rules, 3, 6)
    idle = Rules()
    value = Synchronized(parts[0], [states_of(part) for part in (*parts, idle)]).compute()
    given = batches(6)
    sums = [sum(given[i][0].sum() for i in (rank, rank + 3)) for rank in range(3)]
    last = [given[rank + 3][0] for rank in range(3)]
    torch.testing.assert_close(value["total"], sum(sums))
    torch.testing.assert_close(value["mean"], torch.stack([p.mean() for p in last]).mean())
    assert value["most"] == max(preds.max() for preds, _ in given)
    assert value["least"] == min(preds.min() for preds, _ in given)
    assert value["own"] == 4**3
    torch.testing.assert_close(value["kept"], torch.stack([p.sum() for p in last]))
    order = [given[i][0] for rank in range(3) for i in (rank, rank + 3)]
    torch.testing.assert_close(
        torch.cat([*map(torch.atleast_1d, value["cat"])]), torch.cat([p[:, 0] for p in order])
    )
    assert [p.numel() for p in value["uneven"]] == [p.numel() for p in order]
    assert value["tuples"] == [(len(p), "n") for p in order]
    assert value["counts"] == [21]


def test_several_outputs_are_joined_one_by_one():
    def make():
        return MultioutputWrapper(torchmetrics.R2Score(), 2)

    parts, whole = [make() for _ in range(2)], make()
    for i, (preds, _) in enumerate(batches(6)):
        for metric in (parts[i % 2], whole):
            metric.update(preds[:, :2], preds[:, 1:])
    value = Synchronized(parts[1], [states_of(part) for part in parts]).compute()
    torch.testing.assert_close(value, whole.compute())


def boxes(n, seed):
    """Return predictions and targets of n images, each with up to 3 boxes; some have none."""
    g = torch.Generator().manual_seed(seed)

    def some():
        k = int(torch.randint(4, (), generator=g))
        corner = torch.rand(k, 2, generator=g) * 10
        return torch.cat([corner, corner + 20], 1), torch.randint(2, (k,), generator=g)

    found = []
    for _ in range(n):
        b, labels = some()
        moved = b + torch.rand(b.shape, generator=g)
        scores = torch.rand(len(b), generator=g)
        pred = {"boxes": moved, "scores": scores, "labels": labels}
        found.append((pred, {"boxes": b, "labels": labels}))
    return [pred for pred, _ in found], [target for _, target in found]


@pytest.mark.parametrize("n_batches", [5, 1])
def test_mean_average_precision_is_that_of_all_images(n_batches, monkeypatch):
    pytest.importorskip("pycocotools")
    from torchmetrics.detection import MeanAveragePrecision

    parts, whole = [MeanAveragePrecision() for _ in range(2)], MeanAveragePrecision()
    for i in range(n_batches):
        for metric in (parts[i % 2], whole):
            metric.update(*boxes(3, i))
    simulated = Simulated(2, monkeypatch)
    value = simulated.run(lambda p: joined(p, {"m": parts[p.rank]}, {})["m"].compute())[1]
    expected = whole.compute()
    assert 0 < expected["map"] < 1
    assert equal(value, expected)


def test_samples_come_batch_by_batch_from_all_processes(monkeypatch):
    seen = []
    parts = [AtEnd(lambda preds, target: seen.append(preds.tolist()) or 0.0) for _ in range(2)]
    for i in range(3):
        for rank in range(2):
            parts[rank].update(torch.tensor([10.0 * i + rank]), torch.zeros(1))
    parts[0].update(torch.tensor([30.0]), torch.zeros(1))  # the other one has no sample of the last batch
    Simulated(2, monkeypatch).run(lambda p: joined(p, {"m": parts[p.rank]}, {})["m"].compute())
    assert seen[-1] == [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0]


@pytest.mark.parametrize("make", [*METRICS.values(), lambda: BatchMean(nn.MSELoss())])
def test_each_kind_can_be_joined(make):
    check_joinable(DistributedCB(), "m", make())
    assert MetricsCB(m=make()).names[-1] == "loss"
