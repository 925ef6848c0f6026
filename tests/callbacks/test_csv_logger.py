"""CSVLoggerCB over restarts: no line is there twice or lost, whatever else happens to the file."""

import csv
import os
from contextlib import suppress
from pathlib import Path

import pytest
from toolbox import StopCB, StoppedError, make_learner, noisy_learner

from minilearn import Callback, CheckpointCB, CSVLoggerCB, EarlyStoppingCB, MetricsCB, TensorBoardCB


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def table(path="log.csv"):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def places(path="log.csv"):
    return [(int(line["epoch"]), line["train"]) for line in table(path)]


def epochs(*numbers):
    return [(i, phase) for i in numbers for phase in ("train", "eval")]


def learner(*cbs, folder="run", log="log.csv", **kwargs):
    saver = [CheckpointCB(folder, **kwargs)] if folder else []
    return noisy_learner(MetricsCB(), CSVLoggerCB(log), *saver, *cbs)


def crash(n, n_epochs=2, **kwargs):
    with pytest.raises(StoppedError):
        learner(StopCB(n), **kwargs).fit(n_epochs, resume=True)


# Starts, with 3 batches of training, 2 of validation and 6 rests in an epoch -----------------------------

SELDOM = {"every_minutes": 99}


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize("every", [{"every_steps": 1}, {"every_steps": 2}, {}, SELDOM])
@pytest.mark.parametrize("ns", [(1,), (5,), (6,), (8,), (11,), (12,), (8, 8, 8), (11, 1, 9)])
def test_each_line_is_there_once_after_any_crashes(ns, every):
    before = "epoch,train,MulticlassAccuracy,loss,lr,time_s\n0,train,0.1,1.5,0.1,3\n"
    Path("log.csv").write_text(before)
    for n in ns:
        with suppress(StoppedError):
            learner(StopCB(n), **every).fit(2, resume=True)
    learn = learner(**every)
    learn.fit(2, resume=True)
    assert places() == [(0, "train"), *epochs(0, 1)]
    assert [line["loss"] for line in table()[1:]] == [str(row["loss"]) for row in learn.history]
    assert sorted(os.listdir()) == ["log.csv", "run"]


def finished(folder="before"):
    learner(folder=folder).fit(1, resume=True)


def with_early_stopping():
    cb = EarlyStoppingCB(monitor="eval/loss", patience=1, min_delta=99.0)
    noisy_learner(MetricsCB(), CSVLoggerCB("log.csv"), CheckpointCB("before"), cb).fit(9, resume=True)


def without_checkpoints():
    learner(folder=None).fit(1)


def dead_without_checkpoints():
    with pytest.raises(StoppedError):
        learner(StopCB(8), folder=None).fit(2)


def dead_in_another_folder():
    crash(8, folder="before", **SELDOM)


BEFORE = {
    "a finished run": (finished, epochs(0)),
    "a finished run in the same process": (lambda: (finished(), finished("a third")), epochs(0, 0)),
    "a run that stopped early": (with_early_stopping, epochs(0, 1)),
    "one without checkpoints": (without_checkpoints, epochs(0)),
    "one without checkpoints that died": (dead_without_checkpoints, epochs(0)),
    "one of another folder that died": (dead_in_another_folder, epochs(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("before", BEFORE)
def test_lines_of_other_runs_stay_beside_those_of_a_start_that_died(before):
    make, lines = BEFORE[before]
    make()
    assert places() == lines
    crash(8, **SELDOM)
    assert places() == lines + epochs(0)
    crash(8, **SELDOM)
    learner(**SELDOM).fit(2, resume=True)
    assert places() == lines + epochs(0, 1)


def test_start_that_is_not_to_resume_keeps_the_lines_of_the_one_that_died():
    crash(8, **SELDOM)
    learner(**SELDOM).fit(1)
    assert places() == epochs(0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("n", range(1, 13))
def test_second_fit_that_dies_before_its_first_checkpoint(n):
    def script(*cbs):
        learn = learner(*cbs, every_epochs=9)
        learn.fit(1, resume=True)
        learn.fit(2, resume=True)

    class Second(StopCB):
        def at_rest(self, learn):
            if learn.n_fits == 1:
                super().at_rest(learn)

    for _ in range(2):
        with suppress(StoppedError):
            script(Second(n))
    script()
    assert places() == epochs(0, 1, 2)


@pytest.mark.slow
@pytest.mark.dealt
@pytest.mark.parametrize("more", [(), (8,), (11, 8), (3, 9)])
@pytest.mark.parametrize("n", [2, 5, 7, 8, 11])
@pytest.mark.parametrize("every", [{"every_steps": 1}, {}, SELDOM])
def test_lines_that_another_run_adds_between_two_starts_stay(n, every, more):
    crash(n, **every)
    learner(folder="other").fit(1)
    mine = table()[-2:]
    for k in more:
        with suppress(StoppedError):
            learner(StopCB(k), **every).fit(2, resume=True)
    learner(**every).fit(2, resume=True)
    assert [line for line in table() if line in mine] == mine
    assert sorted(places()) == sorted([*epochs(0), *epochs(0, 1)])
    assert ".log.csv.unfinished" not in os.listdir()


class AtCB(Callback):
    """Call a function after the training of an epoch."""

    def __init__(self, call, at=1):
        self.call, self.at = call, at

    def state_dict(self):
        return {}

    def after_train(self, learn):
        if learn.epoch == self.at:
            self.call()


def test_line_that_another_process_adds_in_the_fit_stays():
    learner(AtCB(lambda: learner(folder=None).fit(1))).fit(3)
    assert places() == [*epochs(0), *epochs(0), *epochs(1, 2)]


def test_log_that_is_moved_away_in_the_fit_is_written_again():
    learner(AtCB(lambda: os.rename("log.csv", "old.csv"))).fit(2)
    assert (places("old.csv"), places()) == (epochs(0), epochs(0, 1))


def test_log_that_is_edited_in_the_fit_is_continued_with_a_warning():
    def edit():
        lines = Path("log.csv").read_text().splitlines()
        Path("log.csv").write_text("\n".join([lines[0], lines[2]]) + "\n")

    with pytest.warns(UserWarning, match=r"log\.csv.*changed"):
        learner(AtCB(edit)).fit(2)
    assert places() == [(0, "eval"), *epochs(1)]


# What is in the file ------------------------------------------------------------------------------------

ROW = "epoch,train,MulticlassAccuracy,loss,lr,time_s\n0,train,0.1,1.5,0.1,3\n"
THERE = {
    "0 bytes": ("", 0),
    "an empty line": ("\n", 0),
    "only the header": (ROW.splitlines()[0] + "\n", 0),
    "a mark of UTF-8": ("\ufeff" + ROW, 1),
    "ends of lines of Windows": (ROW.replace("\n", "\r\n"), 1),
    "no end of the last line": (ROW[:-1], 1),
    "one column more": ("epoch,train,gap,lr,time_s\n0,train,0.5,0.1,3\n", 1),
    "none of the metrics": ("epoch,train,time_s\n0,train,3\n", 1),
    "a name outside ASCII": ("epoch,train,précision β,time_s\n0,train,0.5,3\n", 1),
    "a name with a comma and a quote": ('epoch,train,"a,""b""",time_s\n0,train,0.5,3\n', 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("there", THERE)
def test_log_that_is_there_is_continued(there):
    text, n = THERE[there]
    with open("log.csv", "w", newline="", encoding="utf-8") as file:
        file.write(text)
    first = table() if n and not text.startswith("\ufeff") else []
    crash(8, every_steps=1)
    learner(every_steps=1).fit(2, resume=True)
    assert places() == [(0, "train")] * n + epochs(0, 1)
    assert all(table()[0][name] == value for line in first for name, value in line.items())


class GapCB(Callback):
    """Add a column to the rows of validation, from some epoch on."""

    def __init__(self, name="gap", first=0):
        self.name, self.first = name, first

    def state_dict(self):
        return {}

    def after_validate(self, learn):
        if learn.epoch >= self.first:
            learn.history[-1][self.name] = 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gap", "précision β", "日本", "a,b", 'a"b', "a\nb"])
@pytest.mark.parametrize("first", [0, 1])
def test_column_of_a_callback_is_written_and_resumed(name, first):
    for n in (4, 6, 6):
        with pytest.raises(StoppedError):
            learner(GapCB(name, first), StopCB(n), every_steps=1).fit(3, resume=True)
    learner(GapCB(name, first), every_steps=1).fit(3, resume=True)
    assert places() == epochs(0, 1, 2)
    assert [line[name] for line in table()] == ["", ""] * first + ["", "0.5"] * (3 - first)
    assert list(table()[0])[-2:] == ["lr", "time_s"]


def test_log_of_runs_with_other_columns_is_continued():
    learner(folder=None).fit(1)
    learner(GapCB(), folder=None).fit(1)
    learner(folder=None).fit(1)
    assert places() == epochs(0, 0, 0)
    assert [line["gap"] for line in table()] == ["", "", "", "0.5", "", ""]


def test_name_outside_ascii_needs_no_locale(monkeypatch):
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    learner(GapCB("β"), folder=None).fit(1)
    learner(GapCB("β"), folder=None).fit(1)
    assert [line["β"] for line in table()] == ["", "0.5"] * 2


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"caf\xe9,b\n1,2\n", b"a;b\n1;2\n", b"\x80PDF"])
def test_other_file_is_refused_before_training_and_stays(data):
    Path("log.csv").write_bytes(data)
    learn = learner(folder=None)
    with pytest.raises(ValueError, match=r"CSVLoggerCB\('log\.csv'\): the file there"):
        learn.fit(1)
    assert (learn.n_steps, Path("log.csv").read_bytes()) == (0, data)


def test_folder_in_place_of_the_file_is_refused():
    os.mkdir("log.csv")
    with pytest.raises(IsADirectoryError, match=r"log\.csv.*file"):
        learner().fit(1)


# Two loggers, and the working directory -----------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["log.csv", "./log.csv", "run/../log.csv", "link.csv"])
def test_two_with_one_file_are_refused(tmp_path, spelling):
    os.mkdir("run")
    os.symlink(tmp_path / "log.csv", "link.csv")
    with pytest.raises(ValueError, match=r"two callbacks write to .*log\.csv"):
        learner(CSVLoggerCB(spelling)).fit(1)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 6, 8, 11])
def test_two_with_a_file_each_resume_together(n):
    def make(*cbs):
        return learner(CSVLoggerCB("b/log.csv"), *cbs, every_steps=2)

    with pytest.raises(StoppedError):
        make(StopCB(n)).fit(2, resume=True)
    make().fit(2, resume=True)
    assert places() == places("b/log.csv") == epochs(0, 1)


def test_files_are_where_they_were_meant_if_the_working_directory_changes(tmp_path):
    os.mkdir("other")
    board = TensorBoardCB("board", "a", every=1)
    learn = learner(board, AtCB(lambda: os.chdir("other")))
    learn.fit(3, resume=True)
    assert os.listdir() == []
    os.chdir(tmp_path)
    assert places() == epochs(0, 1, 2)
    assert sorted(os.listdir()) == ["board", "log.csv", "other", "run"]
    assert (repr(learn.cbs[-1]), repr(board)) == ("CheckpointCB('run')", "TensorBoardCB('board')")


def test_working_directory_may_change_before_the_fit(tmp_path):
    learn = make_learner(cbs=[MetricsCB(), CSVLoggerCB("log.csv"), CheckpointCB("run")])
    os.mkdir("other")
    os.chdir("other")
    learn.fit(1, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "other", "run"]
