"""run.json, and what is said when a run is resumed with other versions or another machine."""

import json
import math
import platform
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from toolbox import StopCB, every_rest, make_learner, stop
from torch.optim.lr_scheduler import OneCycleLR

import minilearn
from minilearn import EMACB, BatchSchedulerCB, CheckpointCB, CSVLoggerCB, MetricsCB, RecorderCB
from minilearn import provenance as made
from minilearn.checkpoints.run_file import RUN_FILE
from minilearn.checkpoints.snapshot import checkpoints_in
from minilearn.files import read_torch, write_torch


def facts_in(folder):
    return json.loads((folder / RUN_FILE).read_text())


def test_file_says_where_a_run_comes_from(tmp_path):
    make = partial(BatchSchedulerCB, OneCycleLR, max_lr=0.1)
    learn = make_learner(
        cbs=[CheckpointCB(tmp_path / "run"), make(), EMACB(0.9), CSVLoggerCB(tmp_path / "a.csv")]
    )
    learn.fit(2)
    facts = facts_in(tmp_path / "run")
    assert facts["run"] == learn.run_id
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["minilearn"] == minilearn.__version__
    assert facts["command"].startswith("python ")
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"] == "cpu"
    assert facts["cpu"].startswith(made._cpu_name())
    assert {"commit", "uncommitted", "is_clean"} <= facts.keys()
    assert facts["settings"]["EMACB"]["decay"] == 0.9
    assert facts["settings"]["BatchSchedulerCB"]["max_lr"] == 0.1
    assert facts["settings"]["CSVLoggerCB"]["path"] == str(tmp_path / "a.csv")
    assert facts["settings"]["group 0 of the optimizer"]["weight_decay"] == 0.01
    assert facts["model"]["n_parameters"] == 8
    assert (facts["data"]["train.n_samples"], facts["data"]["valid.n_samples"]) == (12, 4)
    assert facts["earlier"] == []


def test_file_is_there_before_the_first_checkpoint(tmp_path):
    stop(make_learner(cbs=[CheckpointCB(tmp_path, every_epochs=9), StopCB(1)]))
    assert facts_in(tmp_path)["n_epochs"] == 2
    assert checkpoints_in(tmp_path) == []


@pytest.mark.parametrize("is_clean", [True, False, made.UNKNOWN])
def test_tree_is_clean_or_not(tmp_path, monkeypatch, is_clean):
    changed = {True: [], False: ["a.py"], made.UNKNOWN: made.UNKNOWN}[is_clean]
    made.checkout.cache_clear()
    monkeypatch.setattr(made, "_checkout", lambda folder: {"commit": "1", "uncommitted": changed})
    make_learner(cbs=[CheckpointCB(tmp_path)]).fit()
    made.checkout.cache_clear()
    assert (facts_in(tmp_path)["is_clean"], facts_in(tmp_path)["uncommitted"]) == (is_clean, changed)


def test_git_is_asked_once_in_a_process(tmp_path, monkeypatch):
    asked = []
    made.checkout.cache_clear()
    monkeypatch.setattr(made, "_git", lambda *arguments: asked.append(arguments))
    learn = make_learner(cbs=[CheckpointCB(tmp_path)])
    learn.fit()
    learn.fit()
    made.checkout.cache_clear()
    assert len(asked) == 2


def test_earlier_starts_stay_in_the_file(tmp_path, monkeypatch):
    stop(make_learner(cbs=[every_rest(tmp_path), StopCB(6)]))
    before = facts_in(tmp_path)
    monkeypatch.setattr(sys, "argv", ["again.py"])
    make_learner(cbs=[every_rest(tmp_path)]).fit(2, resume=True)
    facts = facts_in(tmp_path)
    assert facts["command"] == "python again.py"
    assert [start["command"] for start in facts["earlier"]] == [before["command"]]
    assert facts["run"] == before["run"]


def test_start_that_is_the_same_is_not_written_twice(tmp_path):
    for _ in range(3):
        stop(make_learner(cbs=[every_rest(tmp_path), StopCB(2)]), resume=True)
    assert facts_in(tmp_path)["earlier"] == []


@pytest.mark.parametrize("contents", ["mine", "{}", "[1]", '{"run": 1}', "", "null", "\x00"])
def test_file_of_the_users_own_is_left(tmp_path, contents):
    (tmp_path / RUN_FILE).write_text(contents)
    with pytest.warns(UserWarning, match=r"run\.json is not of minilearn"):
        make_learner(cbs=[CheckpointCB(tmp_path)]).fit()
    assert (tmp_path / RUN_FILE).read_text() == contents


def test_numbers_that_json_does_not_have_are_text(tmp_path):
    learn = make_learner(cbs=[CheckpointCB(tmp_path), minilearn.GradientClippingCB(math.inf)])
    learn.fit()

    def refuse(name):
        raise AssertionError(name)

    facts = json.loads((tmp_path / RUN_FILE).read_text(), parse_constant=refuse)
    assert facts["settings"]["GradientClippingCB"]["max_norm"] == "inf"


@pytest.mark.parametrize("call", ["validate", "predict", "fit without training"])
def test_other_passes_write_none(tmp_path, call):
    learn = make_learner(cbs=[CheckpointCB(tmp_path / "run")])
    {
        "validate": learn.validate,
        "predict": lambda: learn.predict(learn.dls.valid),
        "fit without training": lambda: learn.fit(train=False),
    }[call]()
    assert not (tmp_path / "run").exists()


# Other versions and machines --------------------------------------------------------------------------

MACHINES = {
    "torch": "2.6.0+cu124",
    "cpu": "Intel 8088, NO AVX",
    "threads": 64,
    "device": "NVIDIA H100",
}


def rewritten(folder, **facts):
    path = checkpoints_in(folder)[-1]
    saved = read_torch(path)
    saved["made_by"].update(facts)
    write_torch(path, saved)


@pytest.mark.parametrize("name", MACHINES)
def test_another_machine_or_torch_may_change_bits(tmp_path, name):
    stop(make_learner(cbs=[every_rest(tmp_path), StopCB(6)]))
    rewritten(tmp_path, **{name: MACHINES[name]})
    with pytest.warns(UserWarning, match=rf"bits.*{name}=.*here, and {MACHINES[name]!r}".replace("+", r"\+")):
        make_learner(cbs=[every_rest(tmp_path)]).fit(2, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["python", "minilearn", "later"])
def test_other_versions_do_not(tmp_path, name):
    stop(make_learner(cbs=[every_rest(tmp_path), StopCB(6)]))
    rewritten(tmp_path, **{name: "3.0.0"})
    make_learner(cbs=[every_rest(tmp_path)]).fit(2, resume=True)


def test_checkpoint_that_does_not_say_is_resumed(tmp_path):
    stop(make_learner(cbs=[RecorderCB(lr="pg.lr"), MetricsCB(), every_rest(tmp_path), StopCB(6)]))
    path = checkpoints_in(tmp_path)[-1]
    saved = read_torch(path)
    del saved["made_by"]
    saved["settings"] = {"RecorderCB": {}, "group 0 of the optimizer": {"lr": 0.1, "betas[0]": 0.9}}
    write_torch(path, saved)
    make_learner(cbs=[RecorderCB(lr="pg.lr"), MetricsCB(), every_rest(tmp_path)]).fit(2, resume=True)


def test_folder_of_the_run_is_named_in_a_full_disk(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("minilearn.checkpoints.run_file.written_whole", fail)
    with pytest.raises(OSError, match=r"No space left.*run\.json"):
        make_learner(cbs=[CheckpointCB(Path(tmp_path))]).fit()
