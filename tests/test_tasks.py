"""The jobs of examples/tasks, each for a few steps, from its own script."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from toolbox import StopCB, StoppedError, every_rest, state_of

from minilearn import set_seed
from minilearn.checkpoints.codec import first_difference

REPO = Path(__file__).parents[1]
TASKS = REPO / "examples" / "tasks"
sys.path.insert(0, str(TASKS))

from jobs import JOBS  # noqa: E402  found on the path of the line above
from run import load, n_lines  # noqa: E402
from table import page  # noqa: E402

sys.path.remove(str(TASKS))

EXISTING = [job for job in JOBS if (TASKS / job / "train.py").is_file()]
MOST_LINES = 60


@pytest.fixture
def train(request, monkeypatch, tmp_path):
    data = REPO.parent / "shared" / "data"
    if "MINILEARN_DATA" not in os.environ and data.is_dir():
        monkeypatch.setenv("MINILEARN_DATA", str(data))
    monkeypatch.chdir(tmp_path)  # for what a job writes beside its folder, such as W&B's
    try:
        yield load(request.param)
    finally:
        plt.close("all")


def settings_of(train):
    return getattr(train, "SMALL", {"n_epochs": 2})


def small(train, *cbs, stopped=False, **kwargs):
    """Fit the job's learner for a few steps; return it."""
    set_seed(3)
    learn = train.learner(3, small=True)
    with pytest.raises(StoppedError) if stopped else nullcontext():
        learn.fit(**settings_of(train), cbs=list(cbs), **kwargs)
    return learn


def test_a_job_is_under_its_lines():
    lines = {job: n_lines(TASKS / job / "train.py") for job in EXISTING}
    assert not {job: n for job, n in lines.items() if n >= MOST_LINES}


def test_results_are_those_of_the_jobs():
    found = {job: json.loads((TASKS / job / "result.json").read_text()) for job in EXISTING}
    for job, result in found.items():
        assert (result["job"], result["bar"]) == (JOBS[job].title, JOBS[job].bar)
        assert result["n"] >= 3
        assert result["lines"] == n_lines(TASKS / job / "train.py")
        assert set(JOBS[job].shown) <= set(result["measures"])
        assert (TASKS / job / "picture.png").is_file()


def test_table_is_that_of_the_results():
    assert page() == (TASKS / "README.md").read_text()


@pytest.mark.full
@pytest.mark.parametrize("train", EXISTING, indirect=True)
class TestJob:
    def test_it_is_killed_and_resumes_bit_for_bit(self, train, tmp_path):
        rests = StopCB(-1)  # counts them, and stops at none
        expected = state_of(small(train, every_rest(tmp_path / "straight"), rests), "CheckpointCB")
        n_rests = -1 - rests.n
        assert n_rests > 2
        for n in sorted({1, n_rests // 2, n_rests - 1}):
            small(train, every_rest(tmp_path / str(n)), StopCB(n), stopped=True)
            learn = small(train, every_rest(tmp_path / str(n)), resume=True)
            assert first_difference(expected, state_of(learn, "CheckpointCB")) == "", n

    def test_it_predicts_what_is_finite(self, train):
        learn = small(train)
        preds = train.predict(learn) if hasattr(train, "predict") else learn.predict(learn.dls["eval"])
        for pred in preds if isinstance(preds, tuple | list) else [preds]:
            assert torch.isfinite(torch.as_tensor(pred).float()).all()

    def test_it_proves_that_it_can_be_resumed(self, train):
        set_seed(3)
        assert train.learner(3, small=True).verify_resume(at=2, **settings_of(train))

    def test_it_runs_from_end_to_end(self, train, tmp_path, request):
        set_seed(3)
        measures = train.run(3, folder=tmp_path, small=True)
        job = Path(train.__file__).parent.name
        assert set(JOBS[job].shown) <= set(measures)
        assert measures["seconds"] > 0
        assert (tmp_path / "picture.png").is_file()
        set_seed(3)
        by_hand = load(job, "by_hand").run(3, small=True)
        assert by_hand["seconds"] > 0
        assert set(by_hand) <= set(measures)


@pytest.mark.full
@pytest.mark.parametrize("train", ["sequences"], indirect=True)
def test_the_packed_sequences_can_be_resumed_too(train):
    set_seed(3)
    assert train.wave_learner(3, small=True).verify_resume(at=2, n_epochs=2)
