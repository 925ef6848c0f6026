"""What works without torcheval, which is no longer developed, and torchmetrics, and imports neither."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torcheval import metrics as torcheval

from minilearn import MetricsCB
from minilearn.callbacks.accuracy import MulticlassAccuracy
from minilearn.processes import Processes

# Each function of the script does one thing, with these blocked and all warnings as errors.
SCRIPT = """
import os, sys, tempfile
from pathlib import Path

for name in ("torcheval", "torcheval.metrics", "torcheval.metrics.toolkit", "torchmetrics", "sklearn"):
    sys.modules[name] = None

import torch
from torch import nn
from torch.nn import functional as F
from minilearn import *

torch.set_num_threads(1)
x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()
folder = Path(tempfile.mkdtemp())


def learner(*cbs, **kwargs):
    torch.manual_seed(0)
    dls = DataLoaders(TensorLoader(x, y, bs=4), TensorLoader(x, y, bs=4))
    return Learner(nn.Linear(3, 2), dls, lr=0.1, cbs=cbs, **kwargs)


def default():
    learn = learner()
    learn.fit(3)
    right = (learn.model(x).argmax(1) == y).float().mean().item()
    assert learn.history[-1]["MulticlassAccuracy"] == right > 0.5


def validate():
    learn = learner()
    right = (learn.model(x).argmax(1) == y).float().mean().item()
    assert learn.validate()["MulticlassAccuracy"] == right


def ignored_targets():
    learn = learner(loss_func=nn.CrossEntropyLoss(ignore_index=1))
    right = (learn.model(x).argmax(1) == y)[y == 0].float().mean().item()
    assert learn.validate()["MulticlassAccuracy"] == right


def own_metric():
    class Count:
        def reset(self): self.n = 0
        def update(self, preds, target): self.n += len(target)
        def compute(self): return self.n

    assert learner(MetricsCB(n=Count())).validate()["n"] == 20


def functions():
    metrics = MetricsCB(F.cross_entropy, n=AtEnd(lambda preds, target: len(preds)))
    row = learner(metrics).validate()
    assert row["cross_entropy"] == row["loss"] and row["n"] == 20


def loggers():
    learner(CSVLoggerCB(folder / "rows.csv"), TensorBoardCB(folder / "tb")).fit()
    assert "MulticlassAccuracy" in (folder / "rows.csv").read_text()


def monitors():
    stop = EarlyStoppingCB("MulticlassAccuracy", mode="max")
    learner(stop).fit(2)
    assert stop.best > 0


def resume():
    learner(CheckpointCB(folder / "run", every_minutes=1e-9, keep=100)).fit(2)
    middle = sorted((folder / "run").glob("epoch-0001-train*"))[0]
    learn = learner(CheckpointCB(folder / "other"))
    learn.fit(2, resume=middle)
    assert learn.history[-1]["MulticlassAccuracy"] > 0


def verify_resume():
    learner().verify_resume()


def lr_find():
    assert learner().lr_find().lrs


def averages():
    learner(EMACB()).fit(2)


def other_forwards():
    learner(MixupCB(), MixedPrecisionCB(), GradientAccumulationCB(2)).fit()


def one_process():
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    learner(DistributedCB()).fit()


for name in sys.argv[1:]:
    try:
        globals()[name]()
        print("DONE", name, "ok", flush=True)
    except Exception as error:
        print("DONE", name, type(error).__name__, *str(error).split(), flush=True)
found = [name for name, module in sys.modules.items() if module]
assert not [name for name in found if name.startswith(("torcheval", "torchmetrics", "sklearn"))]
"""
NAMES = [line[4:-3] for line in SCRIPT.splitlines() if line.startswith("def ") and line.endswith("():")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the script once; return what it says of each function."""
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(path), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("DONE ")]
    return dict(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_works_without_torcheval_and_torchmetrics_and_without_a_warning(name, results):
    assert results[name] == "ok"


def test_metrics_of_torcheval_still_work(make_learner):
    learn = make_learner(cbs=[MetricsCB(torcheval.MulticlassAccuracy(), own=MulticlassAccuracy())])
    learn.fit()
    for row in learn.history:
        assert row["MulticlassAccuracy"] == row["own"]


# The accuracy -------------------------------------------------------------------------------------


def batches(n=5, n_classes=3):
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(b, n_classes, generator=g), torch.randint(n_classes, (b,), generator=g))
        for b in range(1, n + 1)
    ]


def test_accuracy_is_that_of_torcheval_bit_for_bit():
    own, other = MulticlassAccuracy(), torcheval.MulticlassAccuracy()
    for preds, target in batches(50):
        own.update(preds, target)
        other.update(preds, target)
        assert torch.equal(own.compute(), other.compute())
    assert own.compute().dtype == torch.float32


def test_accuracy_counts_exactly_beyond_the_whole_numbers_of_float32():
    metric = MulticlassAccuracy()
    metric.load_state_dict({"num_correct": torch.tensor(2**24), "num_total": torch.tensor(2**24)})
    for _ in range(3):
        metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert metric.num_total == 2**24 + 3


def test_accuracy_loads_the_state_that_torcheval_saved():
    own, other = MulticlassAccuracy(), torcheval.MulticlassAccuracy()
    other.update(*batches()[-1])
    own.load_state_dict(other.state_dict())
    for preds, target in batches():
        own.update(preds, target)
        other.update(preds, target)
    assert torch.equal(own.compute(), other.compute())


def test_accuracy_begins_again_and_keeps_its_device():
    metric = MulticlassAccuracy().to("cpu")
    assert metric.compute().isnan()
    metric.update(*batches()[2])
    assert not metric.compute().isnan()
    assert metric.reset().compute().isnan()
    state = metric.state_dict()
    metric.update(*batches()[2])
    assert state["num_total"] == 0  # a copy


# Metrics of several processes ---------------------------------------------------------------------

JOINED = {
    "the default": partial(MulticlassAccuracy, -100),
    "accuracy": torcheval.MulticlassAccuracy,
    "top 2": partial(torcheval.MulticlassAccuracy, k=2),
    "per class": partial(torcheval.MulticlassRecall, num_classes=3, average=None),
    "F1": partial(torcheval.MulticlassF1Score, num_classes=3, average="macro"),
    "matrix": partial(torcheval.MulticlassConfusionMatrix, 3),
    "AUROC": partial(torcheval.MulticlassAUROC, num_classes=3),
    "precision": partial(torcheval.MulticlassPrecision, num_classes=3, average="macro"),
    "recall": partial(torcheval.MulticlassRecall, num_classes=3, average="macro"),
}


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_metrics_of_several_processes_are_joined(name, rank, monkeypatch):
    parts = [JOINED[name]() for _ in range(3)]
    whole = JOINED[name]()
    for i, (preds, target) in enumerate(batches(9)):
        for metric in (parts[i % 3], whole):
            metric.update(preds, target)

    def all_gather(self, value):
        return [{"m": part.state_dict()} for part in parts]

    monkeypatch.setattr(Processes, "all_gather", all_gather)
    processes = Processes(rank, 3, 3)
    before = parts[rank].compute()
    joint = processes.joint({"m": parts[rank]})["m"]
    torch.testing.assert_close(joint.compute(), whole.compute())
    torch.testing.assert_close(parts[rank].compute(), before)  # unchanged


@pytest.mark.parametrize("loss_func", [F.cross_entropy, nn.CrossEntropyLoss(), None])
def test_the_default_accuracy_is_minilearns_own(loss_func, make_learner):
    learn = make_learner(loss_func=loss_func, cbs=[MetricsCB()])
    learn.fit()
    assert type(learn.cbs[0].metrics["MulticlassAccuracy"]) is MulticlassAccuracy
