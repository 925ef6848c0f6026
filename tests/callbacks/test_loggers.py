import csv
import json
import os
from functools import partial

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from toolbox import StopCB, StoppedError, SyncCounter
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from minilearn import (
    BatchSchedulerCB,
    CheckpointCB,
    CSVLoggerCB,
    DataLoaders,
    EpochSchedulerCB,
    Learner,
    MetricsCB,
    RecorderCB,
    TensorBoardCB,
    TensorLoader,
)
from minilearn.callbacks import loggers
from minilearn.optim import Adam

EVERY = pytest.mark.parametrize("cls", [TensorBoardCB, CSVLoggerCB])


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """Number TensorBoard's files from 1000: its reader takes the 10th of a second before the 9th."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))


def logger_at(cls, tmp_path):
    return cls(tmp_path / "log" if cls is TensorBoardCB else tmp_path / "log" / "rows.csv")


def read(folder):
    """Return each scalar of a run as [(step, value)], as TensorBoard reads it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def runs(folder):
    return sorted(path.name for path in folder.iterdir())


def close(values):
    return pytest.approx(values, rel=1e-6)  # TensorBoard has float32


# TensorBoardCB ----------------------------------------------------------------------------------------


def test_steps_are_logged_as_the_step_used_them(make_learner, tmp_path):
    recorder = RecorderCB()
    cbs = [TensorBoardCB(tmp_path, "a", every=1), recorder, BatchSchedulerCB(OneCycleLR), MetricsCB()]
    make_learner(cbs=cbs, opt_func=partial(SGD, momentum=0.9, weight_decay=0.01)).fit(2)
    found = read(tmp_path / "a")
    for tag, name in (("step/lr", "lr"), ("step/momentum", "mom"), ("step/loss", "loss")):
        assert [step for step, _ in found[tag]] == list(range(6))
        assert [value for _, value in found[tag]] == close(recorder.recs[name])
    assert [value for _, value in found["step/weight decay"]] == close([0.01] * 6)


def test_lr_that_is_a_tensor_is_logged_as_it_was(make_learner, tmp_path):
    recorder = RecorderCB()
    cbs = [TensorBoardCB(tmp_path, "a", every=1), recorder, EpochSchedulerCB(ExponentialLR, gamma=0.5)]
    make_learner(cbs=cbs, opt_func=lambda params, lr: SGD(params, lr=torch.tensor(lr))).fit(2)
    found = read(tmp_path / "a")["step/lr"]
    assert [value for _, value in found] == close(recorder.recs["lr"])
    assert [value for _, value in found] == close([0.1] * 3 + [0.05] * 3)


def test_rows_are_logged_at_the_end_of_their_epoch(make_learner, tmp_path):
    learn = make_learner(cbs=[TensorBoardCB(tmp_path, "a"), MetricsCB()])
    learn.fit(2)
    found = read(tmp_path / "a")
    for phase in ("train", "eval"):
        rows = [row for row in learn.history if row["train"] == phase]
        for name in ("loss", "MulticlassAccuracy", "time_s"):
            assert [step for step, _ in found[f"{name}/{phase}"]] == [3, 6]
            assert [value for _, value in found[f"{name}/{phase}"]] == close([row[name] for row in rows])
    assert dict(found["epoch"]) == {3: 0, 6: 1}


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [3]), (10, [])])
def test_every_so_many_steps_are_logged(make_learner, tmp_path, every, steps):
    make_learner(cbs=TensorBoardCB(tmp_path, "a", every=every)).fit(2)
    assert [step for step, _ in read(tmp_path / "a").get("step/loss", [])] == steps


@pytest.mark.parametrize(
    ("opt_func", "tags"),
    [
        (SGD, {"lr", "momentum", "weight decay"}),
        (torch.optim.AdamW, {"lr", "beta1", "weight decay"}),
        (Adam, {"lr", "beta1", "weight decay"}),
    ],
)
def test_hyperparameters_are_those_of_the_optimizer(make_learner, tmp_path, opt_func, tags):
    make_learner(cbs=TensorBoardCB(tmp_path, "a", every=1), opt_func=opt_func).fit()
    found = {tag.removeprefix("step/") for tag in read(tmp_path / "a") if tag.startswith("step/")}
    assert found == tags | {"loss"}


def test_each_group_has_its_own(make_learner, tmp_path):
    groups = {"param_groups": lambda model: [{"params": [p]} for p in model.parameters()], "lr": [0.1, 0.2]}
    make_learner(cbs=TensorBoardCB(tmp_path, "a", every=1), opt_func=SGD, **groups).fit()
    found = read(tmp_path / "a")
    assert [value for _, value in found["step/lr of group 1"]] == close([0.2] * 3)


def test_each_fit_has_a_run_of_its_own_and_steps_count_on(make_learner, tmp_path):
    learn = make_learner(cbs=[TensorBoardCB(tmp_path, "a", every=1), MetricsCB()])
    learn.fit(1)
    learn.fit(2)
    learn.validate()
    assert runs(tmp_path) == ["a", "a-2"]
    assert [step for step, _ in read(tmp_path / "a")["step/loss"]] == [0, 1, 2]
    assert [step for step, _ in read(tmp_path / "a-2")["step/loss"]] == [3, 4, 5, 6, 7, 8]
    assert [step for step, _ in read(tmp_path / "a-2")["loss/eval"]] == [6, 9]


def test_run_of_another_process_is_left_as_it_is(make_learner, tmp_path):
    for _ in range(2):
        make_learner(cbs=[TensorBoardCB(tmp_path, "a"), MetricsCB()]).fit()
    assert runs(tmp_path) == ["a", "a-2"]
    assert len(read(tmp_path / "a")["loss/eval"]) == 1


def test_run_is_named_by_date_and_time_by_default(make_learner, tmp_path):
    make_learner(cbs=[TensorBoardCB(tmp_path), MetricsCB()]).fit()
    (name,) = runs(tmp_path)
    assert __import__("re").fullmatch(r"20\d\d-\d\d-\d\d_\d\d-\d\d-\d\d", name)


N_RESTS = 2 * (3 + 1 + 1)


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize("n", range(1, N_RESTS))
@pytest.mark.parametrize("every_steps", [1, 2, 4, None])  # None: at the end of each epoch
def test_resumed_run_continues_where_it_was(make_learner, tmp_path, n, every_steps):
    def make(folder, *cbs):
        logger = TensorBoardCB(folder, "a", every=1)
        saver = CheckpointCB(folder / "saved", every_steps=every_steps)
        schedule = BatchSchedulerCB(OneCycleLR)
        return make_learner(cbs=[logger, saver, schedule, MetricsCB(), *cbs], opt_func=SGD)

    make(tmp_path / "straight").fit(2, resume=True)
    with pytest.raises(StoppedError):
        make(tmp_path / "stopped", StopCB(n)).fit(2, resume=True)
    make(tmp_path / "stopped").fit(2, resume=True)
    expected, found = read(tmp_path / "straight" / "a"), read(tmp_path / "stopped" / "a")
    is_new = (tmp_path / "stopped" / "a-2").exists()
    first = {1: 1, 2: 2, 4: 6, None: 5}[every_steps]  # the rest at which the first checkpoint is written
    assert is_new is (n < first)  # there was none: a new run
    found = read(tmp_path / "stopped" / ("a-2" if is_new else "a"))
    assert found.keys() == expected.keys()
    for tag in expected.keys() - {"time_s/train", "time_s/eval"}:
        assert found[tag] == expected[tag], tag


@pytest.mark.slow
def test_fit_after_a_resumed_one_has_a_run_of_its_own(make_learner, tmp_path):
    def make(*cbs):
        logger, saver = TensorBoardCB(tmp_path / "tb", "a", every=1), CheckpointCB(tmp_path / "saved")
        return make_learner(cbs=[logger, saver, MetricsCB(), *cbs])

    learn = make(StopCB(12))  # in the second fit, after its first epoch
    learn.fit(1, resume=True)
    with pytest.raises(StoppedError):
        learn.fit(2, resume=True)
    learn = make()
    learn.fit(1, resume=True)
    learn.fit(2, resume=True)
    learn.fit(1, resume=True)
    assert runs(tmp_path / "tb") == ["a", "a-2", "a-3"]
    steps = [[step for step, _ in read(tmp_path / "tb" / run)["step/loss"]] for run in ("a", "a-2", "a-3")]
    assert steps == [[0, 1, 2], [3, 4, 5, 6, 7, 8], [9, 10, 11]]


def test_nothing_of_a_started_but_unwritten_run_is_left(make_learner, tmp_path):
    with pytest.raises(ValueError, match="owners"):
        make_learner(cbs=[TensorBoardCB(tmp_path), *two_owners()]).fit()
    assert list(tmp_path.iterdir()) == []


def two_owners():
    from minilearn import Callback

    class StepCB(Callback):
        def step(self, learn):
            learn.opt.step()

    return StepCB(), StepCB()


@EVERY
def test_ordinary_step_waits_for_nothing(make_learner, tmp_path, at, cls):
    counts = []
    counter = SyncCounter()
    cbs = [logger_at(cls, tmp_path), at("after_batch", lambda learn: counts.append(counter.n), order=1000)]
    learn = make_learner(n_batches=30, n_valid=0, cbs=cbs, opt_func=partial(SGD, foreach=False))
    with counter:
        learn.fit()
    assert len(counts) == 30
    assert len(set(counts)) == 1


def test_long_epoch_is_written_now_and_then(make_learner, tmp_path, at, monkeypatch):
    found = []
    folder = tmp_path / "a"

    def look(learn):
        found.append(len(read(folder).get("step/loss", [])) if folder.exists() else 0)

    cb = TensorBoardCB(tmp_path, "a", every=1)
    learn = make_learner(n_batches=4, cbs=[cb, at("after_step", look, order=56)])
    monkeypatch.setattr(loggers, "_FLUSH_S", -1.0)
    monkeypatch.setattr(TensorBoardCB, "_write_steps", flushed(TensorBoardCB._write_steps))
    learn.fit()
    assert found == [1, 2, 3, 4]


def flushed(write):
    def both(self):
        write(self)
        if self._writer is not None:
            self._writer.flush()

    return both


def images_learner(*cbs, n_channels=3):
    x = torch.arange(8 * n_channels * 4.0).reshape(8, n_channels, 2, 2)
    loader = TensorLoader(x, torch.arange(8) % 2, bs=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * n_channels, 2))
    return Learner(model, DataLoaders(loader, loader), cbs=cbs, default_cbs=False)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_images_of_the_first_batches_are_logged_when_asked_for(tmp_path, n_channels):
    images_learner(TensorBoardCB(tmp_path, "a", images=3), n_channels=n_channels).fit(2)
    events = EventAccumulator(str(tmp_path / "a"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["images/train", "images/eval"]
    (image,) = events.Images("images/train")
    assert (image.height, image.width) == (2, 6)  # three, side by side
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_images_of_other_inputs_are_refused(make_learner, tmp_path):
    with pytest.raises(ValueError, match=r"images=2.*\(N, 1 or 3, H, W\)"):
        make_learner(cbs=TensorBoardCB(tmp_path, images=2)).fit()


def test_run_has_its_versions_settings_and_data_as_text(make_learner, tmp_path):
    make_learner(cbs=[TensorBoardCB(tmp_path, "a", every=3), MetricsCB()]).fit()
    events = EventAccumulator(str(tmp_path / "a"))
    events.Reload()
    [text] = events.Tensors("run/text_summary")[0].tensor_proto.string_val
    facts = json.loads(text.decode().removeprefix("```json").removesuffix("```"))
    assert facts["torch"] == torch.__version__
    assert facts["settings"]["TensorBoardCB"]["every"] == 3
    assert facts["data"]["train.n_samples"] == 12


def test_table_of_hyperparameters_has_the_facts_and_what_is_given(make_learner, tmp_path):
    hparams = {"width": 3, "kind": "plain"}
    make_learner(cbs=[TensorBoardCB(tmp_path, "a", hparams=hparams), MetricsCB()], opt_func=SGD).fit(2)
    events = EventAccumulator(str(tmp_path / "a"))
    events.Reload()
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    numbers = {name: value.number_value for name, value in found.items() if value.HasField("number_value")}
    assert numbers == {"lr": 0.1, "n_epochs": 2, "width": 3}
    assert (found["opt"].string_value, found["kind"].string_value) == ("SGD", "plain")


@pytest.mark.parametrize(
    ("kwargs", "error", "said"),
    [
        ({"every": 0}, ValueError, r"every=0\).*whole number.*>= 1"),
        ({"images": -1}, ValueError, r"images=-1\).*whole number.*>= 0"),
        ({"hparams": {"a": [1]}}, TypeError, r"hparams={'a': \[1\]}\).*number.*text"),
    ],
)
def test_arguments_are_checked(kwargs, error, said):
    with pytest.raises(error, match=r"TensorBoardCB\(" + said):
        TensorBoardCB(**kwargs)


def test_missing_tensorboard_is_said_before_training(make_learner, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    learn = make_learner(cbs=TensorBoardCB(tmp_path))
    with pytest.raises(ImportError, match=r'tensorboard.*pip install "minilearn\[tensorboard\]"'):
        learn.fit()
    assert learn.n_steps == 0


@EVERY
def test_folder_that_cannot_be_made_is_named_before_training(make_learner, tmp_path, cls):
    (tmp_path / "log").write_text("x")
    learn = make_learner(cbs=logger_at(cls, tmp_path))
    with pytest.raises(NotADirectoryError, match=rf"{cls.__name__}\(.*file.*folder"):
        learn.fit()
    assert learn.n_steps == 0
    assert (tmp_path / "log").read_text() == "x"


@EVERY
def test_folder_inside_of_a_file_is_named_before_training(make_learner, tmp_path, cls):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=rf"{cls.__name__}\(.*folder \S+log.*\(Not a dir"):
        make_learner(cbs=logger_at(cls, tmp_path / "file")).fit()


@EVERY
def test_folder_that_cannot_be_written_is_named_before_training(make_learner, tmp_path, cls, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path / "log", os.W_OK))
    with pytest.raises(PermissionError, match=rf"{cls.__name__}\(.*folder \S+log"):
        make_learner(cbs=logger_at(cls, tmp_path)).fit()


@pytest.mark.slow
@EVERY
def test_validation_outside_of_a_fit_and_verify_resume_write_nothing(make_learner, tmp_path, cls):
    learn = make_learner(cbs=[logger_at(cls, tmp_path), MetricsCB()])
    learn.validate()
    learn.fit(train=False)
    learn.verify_resume(1)
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "log"])


# CSVLoggerCB ------------------------------------------------------------------------------------------


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_file_has_a_line_for_each_phase_with_the_lr_of_the_last_step(make_learner, tmp_path):
    learn = make_learner(
        cbs=[
            CSVLoggerCB(tmp_path / "a" / "log.csv"),
            EpochSchedulerCB(ExponentialLR, gamma=0.5),
            MetricsCB(),
        ],
        opt_func=SGD,
    )
    learn.fit(2)
    text = (tmp_path / "a" / "log.csv").read_text()
    assert text.splitlines()[0] == "epoch,train,MulticlassAccuracy,loss,lr,time_s"
    expected = [
        {**{key: str(value) for key, value in row.items()}, "lr": str(lr)}
        for row, lr in zip(learn.history, [0.1, 0.1, 0.05, 0.05], strict=True)
    ]
    assert lines(tmp_path / "a" / "log.csv") == expected


def test_file_is_complete_after_each_epoch(make_learner, tmp_path, at):
    seen = []
    path = tmp_path / "log.csv"
    cbs = [CSVLoggerCB(path), MetricsCB(), at("cleanup_epoch", lambda _: seen.append(len(lines(path))), 99)]
    make_learner(cbs=cbs).fit(3)
    assert seen == [2, 4, 6]


def test_lines_that_are_there_stay(make_learner, tmp_path):
    learn = make_learner(cbs=[CSVLoggerCB(tmp_path / "log.csv"), MetricsCB()])
    learn.fit()
    first = (tmp_path / "log.csv").read_text()
    learn.fit()
    make_learner(cbs=[CSVLoggerCB(tmp_path / "log.csv"), MetricsCB()]).fit()
    text = (tmp_path / "log.csv").read_text()
    assert text.startswith(first)
    assert [line["epoch"] for line in lines(tmp_path / "log.csv")] == ["0", "0", "1", "1", "0", "0"]


def test_file_with_other_columns_is_refused_before_training(make_learner, tmp_path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    learn = make_learner(cbs=[CSVLoggerCB(tmp_path / "log.csv"), MetricsCB()])
    with pytest.raises(ValueError, match=r"columns.*a, b.*Multiclass.*time_s"):
        learn.fit()
    assert (tmp_path / "log.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.slow
@pytest.mark.parametrize("n", range(1, N_RESTS))
def test_resumed_run_replaces_what_came_after_the_checkpoint(make_learner, tmp_path, n):
    path = tmp_path / "log.csv"
    path.write_text("epoch,train,MulticlassAccuracy,loss,lr,time_s\n9,train,0.1,1.5,0.1,3\n")

    def make(*cbs):
        saver = CheckpointCB(tmp_path / "saved", every_steps=2)
        return make_learner(cbs=[CSVLoggerCB(path), saver, MetricsCB(), *cbs])

    with pytest.raises(StoppedError):
        make(StopCB(n)).fit(2, resume=True)
    learn = make()
    learn.fit(2, resume=True)
    assert [(line["epoch"], line["train"]) for line in lines(path)] == [
        *[("9", "train"), ("0", "train"), ("0", "eval"), ("1", "train"), ("1", "eval")]
    ]
    assert [line["loss"] for line in lines(path)[1:]] == [str(row["loss"]) for row in learn.history]
