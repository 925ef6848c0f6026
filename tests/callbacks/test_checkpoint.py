import math
import os
import signal
import threading
from contextlib import suppress
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from toolbox import CountCB, Scripted, SyncCounter, fail_at, names_in, scripted
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import minilearn.callbacks.checkpoint as module
from minilearn import (
    Callback,
    CancelFitException,
    CancelStepException,
    CancelValidateException,
    CheckpointCB,
    DataLoaders,
    EarlyStoppingCB,
    MetricsCB,
    ProgressCB,
    RecorderCB,
    TensorLoader,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import capture, checkpoints_in, position_of, read
from minilearn.files import write_torch


@pytest.fixture
def writes(monkeypatch):
    """Collect the names of the files that are written."""
    names = []

    def write(path, value):
        names.append(path.name)
        write_torch(path, value)

    monkeypatch.setattr(module, "write_torch", write)
    return names


def train(epoch, batch=0):
    return f"epoch-{epoch:04d}-train-{batch:06d}.pt"


def valid(epoch, batch):
    return f"epoch-{epoch:04d}-valid-{batch:06d}.pt"


# When and where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [train(1), train(2), train(3), train(3)]),
        ({"every_epochs": 1}, [train(1), train(2), train(3), train(3)]),
        ({"every_epochs": 2}, [train(2), train(3)]),
        ({"every_epochs": 3}, [train(3), train(3)]),
        ({"every_epochs": 9}, [train(3)]),
        ({"every_steps": 2}, [train(0, 2), train(1, 1), train(1, 3), train(2, 2), train(3)]),
        ({"every_steps": 3}, [train(0, 3), train(1, 3), train(2, 3), train(3)]),
        ({"every_steps": 4}, [train(1, 1), train(2, 2), train(3)]),
        ({"every_steps": 99}, [train(3)]),
        ({"every_steps": 4, "every_epochs": 2}, [train(1, 1), train(2), train(2, 2), train(3)]),
        ({"every_minutes": 1e9}, [train(3)]),
    ],
    ids=str,
)
def test_files_are_written_when_due_and_at_the_end(make_learner, tmp_path, writes, kwargs, expected):
    learn = make_learner(n_batches=3, n_valid=2, cbs=[CheckpointCB(tmp_path, keep=99, **kwargs)])
    learn.fit(3)
    assert writes == expected
    assert names_in(tmp_path) == sorted(set(expected))
    assert learn.saved_to == tmp_path / train(3)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        # 20 s a batch: those of training end at 20 to 120, of validation at 140 to 180
        ({"every_minutes": 1}, [train(0, 3), train(0, 6), valid(0, 3), train(1)]),
        ({"every_minutes": 0.5}, [train(0, 2), train(0, 4), train(0, 6), valid(0, 2), train(1)]),
        ({"every_minutes": 2.5}, [valid(0, 2), train(1)]),
        ({"every_minutes": 1, "every_steps": 4}, [train(0, 3), train(0, 4), valid(0, 1), train(1)]),
        ({"every_minutes": 2.5, "every_epochs": 1}, [valid(0, 2), train(1), train(1)]),
    ],
    ids=str,
)
def test_minutes_count_from_the_last_file(make_learner, at, tmp_path, writes, monkeypatch, kwargs, expected):
    def tick(learn):
        clock[0] += 20

    clock = [5000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    cbs = [at("before_batch", tick), CheckpointCB(tmp_path, **kwargs)]
    make_learner(n_batches=6, n_valid=3, cbs=cbs).fit()
    assert writes == expected


def test_minutes_of_a_second_fit_count_from_its_beginning(make_learner, at, tmp_path, writes, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    learn = make_learner(cbs=[CheckpointCB(tmp_path, every_minutes=1)])
    learn.fit()
    clock[0] = 1e6
    learn.fit()
    assert writes == [train(1), train(2)]


def test_steps_of_a_second_fit_count_from_its_beginning(make_learner, tmp_path, writes):
    learn = make_learner(n_batches=2, cbs=[CheckpointCB(tmp_path, every_steps=2)])
    learn.fit()
    learn.fit()
    assert writes == [train(0, 2), train(1), train(1, 2), train(2)]


def test_accumulated_batches_of_one_step_make_one_file(make_learner, at, tmp_path, writes):
    def cancel(learn):
        if learn.batch_idx % 3:
            raise CancelStepException

    def make(*cbs):
        gather = at("before_step", cancel)
        return make_learner(n_batches=6, cbs=[gather, CheckpointCB(tmp_path, every_steps=1), *cbs])

    with pytest.raises(ZeroDivisionError):
        make(at("before_batch", lambda learn: learn.batch_idx == 1 and 1 / 0)).fit()
    make().fit(resume=True)
    assert writes == [train(0, 1), train(0, 4), train(1)]


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [5, 6]), (3, [4, 5, 6]), (99, range(1, 7))])
def test_newest_files_stay(make_learner, tmp_path, keep, expected):
    make_learner(n_valid=0, cbs=[MetricsCB(), CheckpointCB(tmp_path, keep=keep, monitor="loss")]).fit(6)
    assert names_in(tmp_path) == ["best.pt", *(train(n) for n in expected)]


def test_two_files_stay_by_default(make_learner, tmp_path):
    make_learner(cbs=[CheckpointCB(tmp_path)]).fit(4)
    assert names_in(tmp_path) == [train(3), train(4)]


def test_training_of_an_epoch_is_older_than_its_validation(make_learner, at, tmp_path):
    cbs = [at("after_validate", lambda learn: 1 / 0), CheckpointCB(tmp_path, every_minutes=1e-9, keep=3)]
    with pytest.raises(ZeroDivisionError):
        make_learner(n_batches=12, n_valid=2, cbs=cbs).fit()
    assert names_in(tmp_path) == [train(0, 12), valid(0, 1), valid(0, 2)]


def test_nothing_is_written_after_an_error(make_learner, at, tmp_path, writes):
    learn = make_learner(cbs=[CheckpointCB(tmp_path, every_steps=1), at("after_step", fail_at(2))])
    with pytest.raises(ZeroDivisionError):
        learn.fit()
    assert writes == [train(0, 1)]
    assert learn.saved_to == tmp_path / train(0, 1)


@pytest.mark.parametrize("event", ["before_fit", "after_epoch", "after_fit"])
def test_fit_that_is_cancelled_is_saved_at_its_end(make_learner, at, tmp_path, event):
    def cancel(learn):
        raise CancelFitException

    make_learner(cbs=[CheckpointCB(tmp_path, every_steps=99), at(event, cancel)]).fit()
    saved = read(tmp_path / train(0 if event == "before_fit" else 1))
    assert saved["position"] == {"epoch": 1, "phase": "over", "batch": 0}


def test_interrupted_fit_is_saved_where_it_stopped(make_learner, at, tmp_path):
    def interrupt(learn):
        if learn.n_steps == 2:
            signal.raise_signal(signal.SIGINT)

    learn = make_learner(cbs=[CheckpointCB(tmp_path, every_steps=99), at("after_step", interrupt)])
    with pytest.raises(KeyboardInterrupt, match=r"epoch 0.*train batch 1.*step 2.*resume='"):
        learn.fit(2)
    assert names_in(tmp_path) == [train(0, 2)]
    assert read(learn.saved_to)["position"] == {"epoch": 0, "phase": "train", "batch": 2}


def test_folder_is_made_with_its_parents(make_learner, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    learn = make_learner(cbs=[CheckpointCB("~/runs/1")])
    learn.fit()
    assert names_in(tmp_path / "runs" / "1") == [train(1)]
    assert learn.saved_to == tmp_path / "runs" / "1" / train(1)


def test_folder_is_not_made_before_the_fit(tmp_path):
    CheckpointCB(tmp_path / "a")
    assert names_in(tmp_path) == []


def test_saved_to_is_of_the_running_fit(make_learner, tmp_path):
    learn, cb = make_learner(), CheckpointCB(tmp_path)
    assert (learn.saved_to, learn.run_id, learn.n_fits) == (None, None, 0)
    learn.fit(cbs=[cb])
    assert learn.saved_to == tmp_path / train(1)
    learn.fit()
    assert learn.saved_to is None


def test_several_fits_go_on_in_the_folder(make_learner, tmp_path):
    learn = make_learner(cbs=[CheckpointCB(tmp_path, keep=9)])
    learn.fit(2)
    run_id = learn.run_id
    learn.fit(1)
    assert names_in(tmp_path) == [train(1), train(2), train(3)]
    assert [read(tmp_path / train(n))["fit"]["index"] for n in (1, 2, 3)] == [0, 0, 1]
    assert {read(tmp_path / train(n))["run"] for n in (1, 2, 3)} == {run_id}
    assert (learn.run_id, learn.n_fits) == (run_id, 2)


def test_each_run_has_an_id_of_its_own(make_learner, tmp_path):
    ids = []
    for name in "ab":
        learn = make_learner(cbs=[CheckpointCB(tmp_path / name)])
        learn.fit()
        ids.append(learn.run_id)
    assert ids[0] != ids[1]
    assert all(len(run_id) == 32 for run_id in ids)


@pytest.mark.parametrize(
    "call",
    [
        lambda learn: learn.fit(train=False),
        lambda learn: learn.validate(),
        lambda learn: learn.predict(learn.dls.valid),
        lambda learn: learn.lr_find(n_steps=10),
    ],
    ids=["fit(train=False)", "validate", "predict", "lr_find"],
)
def test_nothing_is_written_but_in_training(make_learner, tmp_path, call):
    cb = CheckpointCB(tmp_path / "a", every_steps=1, every_minutes=1e-9, monitor="loss")
    learn = make_learner(cbs=[MetricsCB(), cb])
    call(learn)
    assert names_in(tmp_path) == []
    assert (learn.saved_to, learn.run_id, learn.n_fits) == (None, None, 0)


def test_validation_inside_of_a_fit_writes_nothing(make_learner, at, tmp_path, writes):
    look = at("after_step", lambda learn: learn.validate())
    cb = CheckpointCB(tmp_path, every_steps=2, monitor="loss")
    make_learner(n_batches=3, cbs=[MetricsCB(), look, cb]).fit()
    assert writes == [train(0, 2), "best.pt", train(1)]


def test_loader_of_a_validation_inside_of_the_fit_does_not_matter(make_learner, at, tmp_path, writes):
    look = at("after_step", lambda learn: learn.validate(DataLoader(SAMPLES, 4)))
    make_learner(n_batches=1, n_valid=2, cbs=[look, CheckpointCB(tmp_path, every_minutes=1e-9)]).fit()
    assert writes == [train(0, 1), valid(0, 1), valid(0, 2), train(1), train(1)]


# What is in a file ------------------------------------------------------------------------------------


def test_file_has_the_state_at_its_place(make_learner, tmp_path):
    learn = make_learner(n_batches=3, cbs=[MetricsCB(), CheckpointCB(tmp_path, every_steps=2, keep=9)])
    learn.fit(2)
    saved = read(tmp_path / train(1, 1))
    assert saved["position"] == {"epoch": 1, "phase": "train", "batch": 1}
    expected = {"index": 0, "n_epochs": 2, "phases": ["train", "eval"], "epoch_steps": [3, 3]}
    assert saved["fit"] == expected | {"cancelled_by": ""}
    assert (saved["fields"]["n_steps"], saved["fields"]["n_epochs_trained"]) == (4, 2)
    assert [(row["epoch"], row["train"]) for row in saved["history"]] == [(0, "train"), (0, "eval")]
    end = read(learn.saved_to)
    assert end["position"] == {"epoch": 2, "phase": "over", "batch": 0}
    assert first_difference(end["model"], {k: v.detach() for k, v in learn.model.state_dict().items()}) == ""
    assert first_difference(saved["model"], end["model"]) != ""


def test_last_file_is_the_state_of_the_learner(make_learner, tmp_path):
    learn = make_learner(cbs=[RecorderCB(), CountCB(), CheckpointCB(tmp_path)])
    learn.fit(2)
    saved = read(learn.saved_to)
    del saved["settings"], saved["beginnings"], saved["made_by"]
    now = capture(learn, position_of(learn))
    assert first_difference(saved | {"fit": 0}, now | {"fit": 0}) == ""
    assert now["fit"] == saved["fit"] | {"index": 1}  # the fit is finished


def test_file_is_plain_data_for_torch(make_learner, tmp_path):
    learn = make_learner(cbs=[CheckpointCB(tmp_path), RecorderCB(), MetricsCB()])
    learn.fit()
    saved = torch.load(learn.saved_to, weights_only=True)
    plain = nn.Linear(3, 2)
    plain.load_state_dict(saved["model"])
    assert torch.equal(plain.weight, learn.model.weight)


def test_wrapped_model_has_the_names_of_the_plain_one(make_learner, tmp_path):
    learn = make_learner(model=DataParallel(nn.Sequential(nn.Linear(3, 2))), cbs=[CheckpointCB(tmp_path)])
    learn.fit()
    saved = torch.load(learn.saved_to, weights_only=True)
    assert list(saved["model"]) == ["0.weight", "0.bias"]
    assert saved["opt"]["params"] == [["0.weight", "0.bias"]]


def test_states_of_two_of_a_class_are_under_their_names(make_learner, tmp_path):
    learn = make_learner(n_batches=3, cbs=[CountCB(), CountCB(10), CheckpointCB(tmp_path), CountCB(20)])
    learn.fit()
    states = read(learn.saved_to)["cbs"]
    assert list(states) == ["CountCB", "CountCB 2", "CountCB 3", "CheckpointCB"]
    assert [states[name] for name in list(states)[:3]] == [{"n": 3}, {"n": 13}, {"n": 23}]


def test_file_is_little_more_than_its_tensors(make_learner, tmp_path):
    x, y = torch.randn(64, 100), torch.randint(10, (64,))
    model = nn.Sequential(nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10))
    cbs = [MetricsCB(), RecorderCB(), CheckpointCB(tmp_path)]
    learn = make_learner(model=model, dls={"train": TensorLoader(x, y, bs=8)}, cbs=cbs)
    learn.fit()
    n = sum(p.numel() for p in model.parameters())
    assert 90_000 < n < 110_000
    tensors = 3 * 4 * n  # weights and the two moments of AdamW, float32
    assert tensors < learn.saved_to.stat().st_size < 1.02 * tensors + 16 * 1024


def test_part_of_a_large_tensor_is_written_alone(make_learner, at, tmp_path):
    class PartCB(Callback):
        def before_fit(self, learn):
            self.part = torch.zeros(100_000)[:3]

    learn = make_learner(cbs=[PartCB(), CheckpointCB(tmp_path)])
    learn.fit()
    assert learn.saved_to.stat().st_size < 40 * 1024


def test_ordinary_step_waits_for_no_device_and_captures_nothing(make_learner, tmp_path, monkeypatch):
    def capture_rest(*args):
        captured.append(1)
        return real(*args)

    real, counts = module.capture_rest, []
    monkeypatch.setattr(module, "capture_rest", capture_rest)
    for i, n_batches in enumerate((2, 20)):
        cb, captured = CheckpointCB(tmp_path / str(i), every_steps=50, every_minutes=99), []
        learn = make_learner(n_batches=n_batches, n_valid=0, opt_func=SGD, cbs=[cb])
        with SyncCounter() as counter:
            learn.fit()
        counts.append((counter.n, len(captured)))
    assert counts[0] == counts[1]
    # What is there when the fit begins, twice; a trial after the first batch; the file.
    assert counts[0][1] == 4


@pytest.mark.slow
def test_epoch_without_a_checkpoint_saves_no_rows(make_learner, tmp_path, monkeypatch):
    def capture_rest(learn, *args):
        captured.append(len(learn.history))
        return real(learn, *args)

    real = module.capture_rest
    monkeypatch.setattr(module, "capture_rest", capture_rest)
    for i, n_epochs in enumerate((2, 9)):
        captured = []
        learn = make_learner(cbs=[MetricsCB(), CheckpointCB(tmp_path / str(i), every_minutes=99)])
        learn.fit(n_epochs)
        # When the fit begins, twice; a trial in the first training and validation; the file.
        assert captured == [0, 0, 0, 1, 2 * n_epochs]


# The best ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "values", "n_writes", "best_epoch"),
    [
        ("min", [3, 1, 2], 2, 1),
        ("min", [1, 2, 3], 1, 0),
        ("min", [3, 2, 1], 3, 2),
        ("min", [1, 1, 1], 1, 0),
        ("max", [1, 3, 2], 2, 1),
        ("max", [-3, -2, -2], 2, 1),
        ("min", [math.nan, 2, math.nan], 1, 1),
        ("max", [1, math.nan, 2], 2, 2),
        ("min", [math.nan] * 3, 0, None),
        ("max", [-math.inf, 0, 0], 1, 1),
    ],
)
def test_file_of_the_best_epoch_is_kept(
    make_learner, at, tmp_path, writes, mode, values, n_writes, best_epoch
):
    weights = []
    keep = at("after_epoch", lambda learn: weights.append(learn.model.weight.detach().clone()))
    cb = CheckpointCB(tmp_path, every_epochs=9, monitor="score", mode=mode)
    make_learner(cbs=[scripted(values), keep, cb]).fit(3)
    assert writes.count("best.pt") == n_writes
    assert cb.best == (None if best_epoch is None else values[best_epoch])
    if best_epoch is None:
        assert names_in(tmp_path) == [train(3)]
        return
    saved = read(tmp_path / "best.pt")
    assert saved["position"] == {"epoch": best_epoch + 1, "phase": "", "batch": 0}
    assert torch.equal(saved["model"]["weight"], weights[best_epoch])
    assert saved["cbs"]["CheckpointCB"]["best"] == values[best_epoch]


def test_monitored_loss_needs_no_mode(make_learner, tmp_path):
    cb = CheckpointCB(tmp_path, monitor="train/loss")
    learn = make_learner(cbs=[MetricsCB(), cb])
    learn.fit(3)
    assert cb.best == min(row["loss"] for row in learn.history if row["train"] == "train")


@pytest.mark.parametrize("who", ["EarlyStoppingCB", "user"])
def test_epoch_that_ends_the_fit_may_be_the_best(make_learner, at, tmp_path, who):
    def cancel(learn):
        if learn.epoch == 1:
            raise CancelFitException

    weights = []
    keep = at("after_epoch", lambda learn: weights.append(learn.model.weight.detach().clone()))
    stop = at("after_epoch", cancel)
    if who == "EarlyStoppingCB":
        stop = EarlyStoppingCB("score", patience=1, mode="min", min_delta=9, restore_best=False)
    cb = CheckpointCB(tmp_path, monitor="score", mode="min")
    learn = make_learner(cbs=[scripted([3, 2, 1]), keep, stop, cb])
    learn.fit(3)
    assert learn.n_epochs_trained == 2
    assert (cb.best, read(tmp_path / "best.pt")["position"]["epoch"]) == (2, 2)
    assert torch.equal(read(tmp_path / "best.pt")["model"]["weight"], weights[1])


def test_best_of_several_fits_is_the_best_of_all(make_learner, tmp_path, writes):
    cb = CheckpointCB(tmp_path, monitor="score", mode="min")
    learn = make_learner(cbs=[scripted([2, 3, 1]), cb])
    learn.fit()
    learn.fit()
    assert (cb.best, writes.count("best.pt")) == (2, 1)
    learn.fit()
    assert (cb.best, writes.count("best.pt")) == (1, 2)


@pytest.mark.parametrize(("values", "best"), [((2, 3, 4), 2), ((2, 3, 1), 1)])
def test_best_is_known_to_a_resumed_run(make_learner, at, tmp_path, values, best):
    def make(*cbs):
        return make_learner(cbs=[scripted(values), CheckpointCB(tmp_path, monitor="score", mode="min"), *cbs])

    with pytest.raises(ZeroDivisionError):
        make(at("before_batch", fail_at(3))).fit(3)
    before = (tmp_path / "best.pt").read_bytes()
    learn = make()
    learn.fit(3, resume=True)
    assert learn.cbs[-1].best == best
    assert ((tmp_path / "best.pt").read_bytes() == before) is (best == 2)


def test_best_may_be_gone_on_from(make_learner, tmp_path):
    learn = make_learner(cbs=[scripted([2, 1, 3]), CheckpointCB(tmp_path / "a", monitor="score", mode="min")])
    learn.fit(3)
    again = make_learner(cbs=[scripted([2, 1, 3]), CheckpointCB(tmp_path / "b", monitor="score", mode="min")])
    again.fit(3, resume=tmp_path / "a" / "best.pt")
    assert torch.equal(again.model.weight, learn.model.weight)
    assert again.cbs[-1].best == 1


def test_validation_cancelled_in_an_epoch_is_named(make_learner, at, tmp_path):
    def cancel(learn):
        raise CancelValidateException

    cb = CheckpointCB(tmp_path, monitor="loss")
    learn = make_learner(cbs=[MetricsCB(), cb, at("before_validate", cancel)])
    with pytest.raises(ValueError, match=r"monitor='loss'.*epoch 0.*eval"):
        learn.fit()


# Folders ----------------------------------------------------------------------------------------------


def test_folder_of_another_run_is_refused(make_learner, tmp_path):
    make_learner(cbs=[CheckpointCB(tmp_path)]).fit()
    before = names_in(tmp_path)
    learn = make_learner(cbs=[CheckpointCB(tmp_path)])
    weight = learn.model.weight.detach().clone()
    with pytest.raises(
        ValueError,
        match=rf"CheckpointCB\('.*'\).*{train(1)}.*another run",
    ):
        learn.fit()
    assert names_in(tmp_path) == before
    assert torch.equal(learn.model.weight, weight)


def test_folder_with_later_files_is_refused(make_learner, tmp_path):
    def make():
        return make_learner(cbs=[CheckpointCB(tmp_path, every_steps=2, keep=9)])

    make().fit(2)
    with pytest.raises(ValueError, match=rf"{train(2)}.*{train(0, 2)}"):
        make().fit(2, resume=tmp_path / train(0, 2))


def test_folder_without_later_files_is_gone_on_in(make_learner, tmp_path):
    def make():
        return make_learner(cbs=[CheckpointCB(tmp_path, every_steps=2, keep=9)])

    make().fit(2)
    expected = read(tmp_path / train(2))
    for name in (train(1, 1), train(1, 3), train(2)):
        (tmp_path / name).unlink()
    make().fit(2, resume=tmp_path / train(0, 2))
    assert names_in(tmp_path) == [train(0, 2), train(1, 1), train(1, 3), train(2)]
    assert first_difference(expected, read(tmp_path / train(2))) == ""


def test_other_files_in_the_folder_stay_and_side_files_go(make_learner, tmp_path):
    others = ["notes.txt", "epoch-9.pt", "epoch-0009-train-000001.pt.bak", ".hidden"]
    sides = [f".{train(1)}.123.part", ".best.pt.9.part"]
    for name in others + sides:
        (tmp_path / name).write_text("x")
    make_learner(cbs=[CheckpointCB(tmp_path, keep=1)]).fit(2)
    assert names_in(tmp_path) == sorted([*others, train(2)])


def test_file_in_place_of_the_folder_is_refused(make_learner, tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(NotADirectoryError, match=r"^CheckpointCB\('.*a'\).*file.*folder"):
        make_learner(cbs=[CheckpointCB(tmp_path / "a")]).fit()


def test_folder_that_cannot_be_written_to_is_refused(make_learner, tmp_path, monkeypatch):
    batches = []
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    learn = make_learner(cbs=[CheckpointCB(tmp_path)])
    with pytest.raises(PermissionError, match=r"CheckpointCB\('.*'\).*folder \S+"):
        learn.fit()
    assert batches == []


def test_full_disk_leaves_the_files_that_are_there(make_learner, at, tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    def fill(learn):
        if learn.epoch == 1:
            monkeypatch.setattr(os, "fsync", fail)

    learn = make_learner(cbs=[CheckpointCB(tmp_path), at("after_epoch", fill)])
    with pytest.raises(OSError, match=f"No space left.*{train(2)}"):
        learn.fit(2)
    assert names_in(tmp_path) == [train(1)]
    assert learn.saved_to == tmp_path / train(1)


@pytest.mark.parametrize("spelling", ["a", "./a", "b/../a"])
def test_two_in_one_folder_are_refused(make_learner, tmp_path, spelling):
    (tmp_path / "b").mkdir()
    cbs = [CheckpointCB(f"{tmp_path}/a"), CheckpointCB(f"{tmp_path}/{spelling}")]
    with pytest.raises(ValueError, match=r"'.*a'.*folder"):
        make_learner(cbs=cbs).fit()


def test_two_with_a_folder_each_go_together(make_learner, tmp_path):
    def make():
        often = CheckpointCB(tmp_path / "often", every_steps=1, keep=1)
        return make_learner(cbs=[often, CheckpointCB(tmp_path / "seldom", keep=9)])

    learn = make()
    learn.fit(2)
    assert names_in(tmp_path / "often") == [train(2)]
    assert names_in(tmp_path / "seldom") == [train(1), train(2)]
    assert list(read(tmp_path / "often" / train(2))["cbs"]) == ["CheckpointCB", "CheckpointCB 2"]


def test_folder_is_to_be_named_where_there_are_two(make_learner, tmp_path):
    learn = make_learner(cbs=[CheckpointCB(tmp_path / "a"), CheckpointCB(tmp_path / "b")])
    with pytest.raises(ValueError, match=r"CheckpointCB.*2"):
        learn.fit(2, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 5])
def test_run_with_two_folders_goes_on_from_the_newest(make_learner, at, tmp_path, step):
    def make(*cbs):
        often = CheckpointCB(tmp_path / "often", every_steps=1, keep=1)
        return make_learner(cbs=[often, CheckpointCB(tmp_path / "seldom", keep=9), *cbs])

    straight = make_learner()
    straight.fit(2)
    with pytest.raises(ZeroDivisionError):
        make(at("before_batch", fail_at(step))).fit(2)
    learn = make()
    learn.fit(2, resume=tmp_path / "often")
    assert torch.equal(learn.model.weight, straight.model.weight)
    assert names_in(tmp_path / "seldom") == [train(1), train(2)]


def test_copy_of_the_newest_file_may_be_gone_on_from(make_learner, at, tmp_path):
    def make(*cbs):
        return make_learner(cbs=[MetricsCB(), CheckpointCB(tmp_path, monitor="loss"), *cbs])

    with pytest.raises(ZeroDivisionError):
        make(at("before_batch", fail_at(4))).fit(2)
    (tmp_path / "best.pt").rename(tmp_path / "copy.pt")
    make().fit(2, resume=tmp_path / "copy.pt")  # of the same place as the newest in the folder
    assert train(2) in names_in(tmp_path)


# Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        *(
            ({name: value}, rf"^{name}={value!r}.*whole number.*>= 1")
            for name in ("every_steps", "every_epochs", "keep")
            for value in (0, -1, 1.5, True, "2")
        ),
        *(({"every_minutes": value}, rf"^every_minutes={value!r}.*> 0") for value in (0, -1, 0.0, math.nan)),
        ({"mode": "min"}, r"^mode='min'.*monitor"),
        ({"monitor": "loss", "mode": "low"}, r"^mode='low'.*'min'.*'max'"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        CheckpointCB(tmp_path, **kwargs)


@pytest.fixture
def refused(make_learner, tmp_path):
    """Assert that a fit is refused before its first batch: refused(error, message, *cbs, **kwargs)."""

    def check(error, message, *cbs, checkpoint=None, **kwargs):
        checkpoint = checkpoint or CheckpointCB(tmp_path / "a", every_steps=1)
        learn = make_learner(cbs=[*cbs, checkpoint], **kwargs)
        before = [p.detach().clone() for p in learn.model.parameters()]
        with pytest.raises(error, match=message):
            learn.fit()
        assert learn.n_steps == 0
        assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters(), strict=True))
        assert not list(tmp_path.glob("a/*.pt"))

    return check


def test_callback_that_runs_later_is_refused(refused):
    late = type("LateCB", (Callback,), {"order": 2001, "after_step": lambda self, learn: None})()
    refused(ValueError, r"^LateCB\(\).*order 2001.*2000", late)


def test_callback_of_the_same_order_is_not(make_learner, tmp_path):
    equal = type("EqualCB", (Callback,), {"order": 2000, "after_step": lambda self, learn: None})()
    make_learner(cbs=[equal, CheckpointCB(tmp_path)]).fit()


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.ones(3), torch.tensor(0))] * 8)


class Unending:
    def __iter__(self):
        return iter([(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))] * 2)


SAMPLES = TensorDataset(torch.ones(8, 3), torch.zeros(8, dtype=torch.int64))
LOADERS = {
    "DataLoader": (
        lambda: DataLoader(SAMPLES, 4),
        r"DataLoader.*DatasetLoader",
    ),
    "IterableDataset": (
        lambda: DataLoader(Stream(), 4),
        "IterableDataset",
    ),
    "iterable": (Unending, r"Unending.*TensorLoader.*DatasetLoader"),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_loader_that_cannot_be_resumed_is_refused(refused, kind):
    make, message = LOADERS[kind]
    refused(
        ValueError,
        rf"CheckpointCB\('.*'\).*dls.train.*{message}",
        dls={"train": make()},
    )


@pytest.mark.parametrize("kind", LOADERS)
def test_loader_put_in_place_that_cannot_be_resumed_is_refused(refused, at, kind):
    make, message = LOADERS[kind]
    put = at("before_train", lambda learn: setattr(learn, "dl", make()))
    refused(ValueError, rf"CheckpointCB\('.*'\).*training loader.*{message}", put)


@pytest.mark.parametrize("kind", ["TensorLoader", "list"])
def test_loader_put_in_place_that_can_be_resumed_is_not(make_learner, at, tmp_path, kind):
    put = at("before_train", lambda learn: setattr(learn, "dl", list(learn.dl)), -90)
    learn = make_learner(cbs=[CheckpointCB(tmp_path, every_steps=2), *([put] if kind == "list" else [])])
    learn.fit()
    assert names_in(tmp_path) == [train(0, 2), train(1)]


class NamelessCB(Callback):
    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "a callback"


class Slots:
    __slots__ = ("x",)


def looped():
    value = {"inner": []}
    value["inner"].append(value)
    return value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iter([1]), r"^NamelessCB\.value.*list_iterator.*state_dict"),
        (threading.Lock, r"^NamelessCB\.value.*lock.*state_dict"),
        (lambda: (n for n in ()), r"^NamelessCB\.value.*generator"),
        (lambda: {"a": [0, {"b c": threading.Lock()}]}, r"^NamelessCB\.value\.a\[1\]\['b c'\].*lock"),
        (Slots, r"^NamelessCB\.value.*Slots"),
        (lambda: SimpleNamespace(inner=threading.Lock()), r"^NamelessCB\.value\.inner.*lock"),
        (lambda: np.array([object()]), r"^NamelessCB\.value.*ndarray"),
        (
            looped,
            r"^NamelessCB\.value\.inner\[0\].*itself.*state_dict",
        ),
        (
            lambda: {Slots: 1},
            r"^NamelessCB\.value.*key <class .*Slots'>",
        ),
        (lambda: {(0, torch.Size([1])): 1}, r"^NamelessCB\.value.*key \(0, torch.Size"),
    ],
)
def test_attribute_that_cannot_be_saved_is_named_before_training(refused, make, message):
    refused(TypeError, message, NamelessCB(make()))


def test_attribute_of_the_second_of_a_class_is_named(refused):
    refused(TypeError, r"^NamelessCB 2\.value.*lock", NamelessCB(1), NamelessCB(threading.Lock()))


def test_metric_that_cannot_be_saved_is_named(refused):
    metric = Scripted(iter([1.0]))
    refused(TypeError, r"^MetricsCB\.metrics\.score\.values.*list_iterator", MetricsCB(score=metric))


def test_field_of_the_learner_that_cannot_be_saved_is_named(refused, at):
    put = at("before_fit", lambda learn: setattr(learn, "lock", threading.Lock()))
    message = r"^learn\.lock.*lock.*callback.*state_dict"
    refused(TypeError, message, put)


def test_state_of_the_model_that_cannot_be_saved_is_named(refused):
    class Locked(nn.Linear):
        def get_extra_state(self):
            return {"lock": threading.Lock()}

    refused(TypeError, r"^model\._extra_state\.lock.*lock", model=Locked(3, 2))


def test_optimizer_without_state_dict_is_refused(refused, bare_sgd):
    message = r"^BareSGD.*state_dict.*torch.optim"
    refused(TypeError, message, opt_func=bare_sgd)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"monitor": "los", "mode": "min"}, r"^monitor='los'.*'loss'"),
        ({"monitor": "score"}, r"^monitor='score'.*mode='max'.*mode='min'"),
    ],
)
def test_what_cannot_be_monitored_is_refused(refused, tmp_path, kwargs, message):
    refused(ValueError, message, scripted([1]), checkpoint=CheckpointCB(tmp_path / "a", **kwargs))


class AverageCB(Callback):
    """Make a helper of a class of torch's at an event."""

    def __init__(self, event, step=0):
        self.event, self.at_step = event, step

    def _make(self, event, learn):
        if event == self.event and learn.n_steps == self.at_step:
            self.average = torch.optim.swa_utils.AveragedModel(learn.model)

    def before_fit(self, learn):
        self._make("before_fit", learn)

    def before_train(self, learn):
        self._make("before_train", learn)

    def after_step(self, learn):
        self._make("after_step", learn)

    def cleanup_train(self, learn):
        if self.event == "before_train":
            del self.average


@pytest.mark.parametrize("event", ["before_fit", "before_train"])
def test_helper_that_will_be_there_to_be_loaded_into_is_saved(make_learner, tmp_path, event):
    cb = AverageCB(event)
    make_learner(cbs=[cb, CheckpointCB(tmp_path, every_steps=2, keep=9)]).fit()
    saved = read(tmp_path / train(0, 2))["cbs"]["AverageCB"]["average"]
    assert saved[:2] == ("state", "AveragedModel")


def test_helper_made_in_the_phase_is_named(make_learner, tmp_path):
    learn = make_learner(cbs=[AverageCB("after_step", 2), CheckpointCB(tmp_path, every_steps=1)])
    message = r"^AverageCB\.average.*phase"
    with pytest.raises(TypeError, match=message):
        learn.fit()
    assert names_in(tmp_path) == [train(0, 1)]


def test_helper_made_in_the_fit_is_named_at_its_end(make_learner, tmp_path):
    cbs = [AverageCB("after_step", 2), CheckpointCB(tmp_path)]
    with pytest.raises(TypeError, match=r"^AverageCB\.average.*fit"):
        make_learner(cbs=cbs).fit()


# A validation loader that cannot be taken up ----------------------------------------------------------


@pytest.fixture
def with_plain_valid(make_learner):
    """Make a learner whose validation loader is a plain DataLoader of 3 batches."""

    def make(*cbs):
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
        y = (x.sum(1) > 0).long()
        dls = DataLoaders(TensorLoader(x[:8], y[:8], bs=4), DataLoader(TensorDataset(x[8:], y[8:]), 4))
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
        return make_learner(dls=dls, model=model, cbs=[MetricsCB(), *cbs])

    return make


def test_nothing_is_written_in_a_validation_that_cannot_be_taken_up(with_plain_valid, tmp_path, writes):
    with_plain_valid(CheckpointCB(tmp_path, every_minutes=1e-9)).fit()
    assert writes == [train(0, 1), train(0, 2), train(1), train(1)]


class SumCB(Callback):
    def __init__(self):
        self.total = torch.zeros(())

    def after_batch(self, learn):
        self.total += learn.loss.detach()


@pytest.mark.slow
def test_validation_that_cannot_be_taken_up_begins_again(with_plain_valid, at, tmp_path):
    def interrupt(learn):
        if not learn.training and learn.batch_idx == 1 and learn.epoch == 0:
            signal.raise_signal(signal.SIGINT)

    sums = [SumCB() for _ in range(3)]
    torch.manual_seed(0)
    straight = with_plain_valid(sums[0])
    straight.fit(2)
    torch.manual_seed(0)
    learn = with_plain_valid(CheckpointCB(tmp_path), sums[1], at("after_batch", interrupt))
    with pytest.raises(KeyboardInterrupt, match=r"SIGINT.*resume='"):
        learn.fit(2)
    assert read(learn.saved_to)["position"] == {"epoch": 0, "phase": "eval", "batch": 0}
    torch.manual_seed(5)
    learn = with_plain_valid(CheckpointCB(tmp_path), sums[2])
    learn.fit(2, resume=True)
    assert torch.equal(sums[2].total, sums[0].total)
    ends = [capture(one, position_of(one)) for one in (straight, learn)]
    for end in ends:
        for row in end["history"]:
            row.pop("time_s")
    parts = ("model", "opt", "rng", "history", "position", "fields")
    assert first_difference(*({name: end[name] for name in parts} for end in ends)) == ""


# Words ------------------------------------------------------------------------------------------------


def test_repr_has_the_folder():
    assert repr(CheckpointCB("runs/1", every_steps=2)) == "CheckpointCB('runs/1')"


def test_nothing_is_printed(make_learner, tmp_path, capsys):
    make_learner(cbs=[CheckpointCB(tmp_path, every_steps=1)]).fit(2)
    with suppress(ValueError):
        make_learner(cbs=[CheckpointCB(tmp_path)]).fit()
    assert capsys.readouterr() == ("", "")


def test_resumed_run_says_so_beside_a_progress_bar(make_learner, at, tmp_path, capsys):
    with pytest.raises(ZeroDivisionError):
        make_learner(cbs=[CheckpointCB(tmp_path), at("after_step", fail_at(4))]).fit(2)
    cbs = [CheckpointCB(tmp_path), ProgressCB(console=Console(file=StringIO()))]
    make_learner(cbs=[*cbs, at("after_step", lambda learn: None)]).fit(2, resume=True)
    assert capsys.readouterr().out == f"Resumed from {tmp_path / train(1)}\n"


def test_folder_whose_best_is_of_another_run_is_refused(make_learner, tmp_path):
    make_learner(cbs=[MetricsCB(), CheckpointCB(tmp_path, monitor="loss")]).fit()
    for path in checkpoints_in(tmp_path):
        path.unlink()
    before = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(ValueError, match=r"best\.pt.*another run"):
        make_learner(cbs=[MetricsCB(), CheckpointCB(tmp_path, monitor="loss")]).fit()
    assert (tmp_path / "best.pt").read_bytes() == before


def test_run_that_another_one_joins_in_its_folder_is_ended(make_learner, at, tmp_path):
    def join(learn):
        if learn.n_steps == 2:
            other = make_learner(cbs=[CheckpointCB(tmp_path / "other")])
            other.fit()
            other.saved_to.rename(tmp_path / "epoch-0007-train-000000.pt")

    learn = make_learner(cbs=[CheckpointCB(tmp_path, every_steps=1), at("after_step", join)])
    with pytest.raises(ValueError, match=r"epoch-0007-train-000000\.pt.*another run"):
        learn.fit()
    assert read(tmp_path / "epoch-0000-train-000001.pt")["run"] == learn.run_id


def test_best_that_is_a_file_of_the_user_s_own_is_refused(make_learner, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match=r"best\.pt.*another run"):
        make_learner(cbs=[CheckpointCB(tmp_path)]).fit()
