import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from toolbox import StopCB, SyncCounter, dealt, every_rest, noisy_learner, state_of, stop
from torch.optim import SGD

from minilearn import CSVLoggerCB, GradientAccumulationCB, MetricsCB, ThroughputCB
from minilearn.callbacks import throughput
from minilearn.checkpoints.codec import first_difference

COLUMNS = ("samples_per_s", "memory_mb")


def n_in(row):
    return round(row["samples_per_s"] * row["time_s"], 6)


def test_rows_have_samples_per_second_and_memory(make_learner):
    learn = make_learner(n=10, bs=4, n_valid=2, cbs=[MetricsCB(), ThroughputCB()])
    learn.fit(2)
    assert [n_in(row) for row in learn.history] == [10, 8, 10, 8]
    for row in learn.history:
        assert 50 < row["memory_mb"] < 100_000  # of a process that has loaded torch
    peaks = [row["memory_mb"] for row in learn.history]
    assert peaks == sorted(peaks)


def test_accumulated_batches_count(make_learner):
    learn = make_learner(4, cbs=[MetricsCB(), ThroughputCB(), GradientAccumulationCB(2)])
    learn.fit()
    assert n_in(learn.history[0]) == 16


def test_nested_validation_is_left_out(make_learner, at):
    look = at("after_step", lambda learn: learn.validate())
    learn = make_learner(cbs=[MetricsCB(), ThroughputCB(), look])
    learn.fit()
    assert [n_in(row) for row in learn.history] == [12, 4]
    assert "samples_per_s" not in learn.validate()


def test_columns_are_in_the_log(make_learner, tmp_path):
    make_learner(cbs=[MetricsCB(), ThroughputCB(), CSVLoggerCB(tmp_path / "log.csv")]).fit()
    head = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert head == "epoch,train,MulticlassAccuracy,loss,samples_per_s,memory_mb,lr,time_s"


@pytest.mark.slow
def test_phase_that_is_resumed_has_all_its_samples(tmp_path):
    def make(seed, *cbs):
        return noisy_learner(MetricsCB(), ThroughputCB(), *cbs, seed=seed)

    straight = make(1)
    straight.fit(2)
    for n in dealt(range(1, 2 * (3 + 2 + 1) + 1)):
        folder = tmp_path / str(n)
        stop(make(1, every_rest(folder), StopCB(n)))
        learn = make(2, every_rest(folder))
        learn.fit(2, resume=True)
        assert [n_in(row) for row in learn.history] == [12, 8, 12, 8], n
        assert first_difference(state_of(straight), state_of(learn, "CheckpointCB")) == ""


def test_verify_resume_leaves_it_out(make_learner):
    said = make_learner(cbs=[MetricsCB(), ThroughputCB()]).verify_resume(2)
    assert "samples_per_s" not in said


def test_ordinary_step_waits_for_nothing(make_learner, at):
    counts = []
    counter = SyncCounter()
    cbs = [ThroughputCB(), MetricsCB(), at("after_batch", lambda learn: counts.append(counter.n), order=1000)]
    learn = make_learner(n_batches=10, n_valid=0, cbs=cbs, opt_func=partial(SGD, foreach=False))
    with counter:
        learn.fit()
    assert len(set(counts)) == 1


def test_device_s_own_peak_is_used_and_begins_anew_with_each_phase(make_learner, monkeypatch):
    peaks, n_resets = iter([3_000_000, 1_500_000]), []
    module = SimpleNamespace(
        max_memory_allocated=lambda device: next(peaks), reset_peak_memory_stats=n_resets.append
    )
    monkeypatch.setattr(throughput, "_module_of", lambda device: module)
    learn = make_learner(cbs=[MetricsCB(), ThroughputCB()])
    learn.fit()
    assert [row["memory_mb"] for row in learn.history] == [3.0, 1.5]
    assert n_resets == [torch.device("cpu")] * 2  # the model's own


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_a_gpu_has_a_tensor_that_is_gone(make_learner, at):
    def take(learn):
        if learn.training:
            torch.empty(50_000_000, dtype=torch.uint8, device="cuda")

    learn = make_learner(cbs=[MetricsCB(), ThroughputCB(), at("after_loss", take)], default_cbs=True)
    learn.fit()
    train, valid = learn.history
    assert 49 <= train["memory_mb"] - valid["memory_mb"] < 60  # beside what other tests have left there


def test_without_metrics_it_is_refused_before_training(make_learner):
    learn = make_learner(cbs=ThroughputCB())
    with pytest.raises(ValueError, match=r"ThroughputCB\(\).*MetricsCB"):
        learn.fit()
    assert learn.n_steps == 0


def test_metric_of_the_same_name_is_refused(make_learner):
    class Zero:
        def reset(self):
            pass

        def update(self, preds, target):
            pass

        def compute(self):
            return 0.0

    learn = make_learner(cbs=[MetricsCB(memory_mb=Zero()), ThroughputCB()])
    with pytest.raises(ValueError, match=re.escape("'memory_mb'") + ".*another name"):
        learn.fit()
