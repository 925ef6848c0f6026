"""Two processes on gloo, with a time limit, a logger, the best checkpoints and a schedule of anything."""

from pathlib import Path

import limited_worker as worker
import pytest
import test_distributed
import torch
from toolbox import same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limited")
    codes, said = test_distributed.launch(2, "limited", folder, Path(worker.__file__))
    assert codes == [0, 0], said
    return torch.load(folder / "found.pt")


@pytest.mark.full
def test_paused_by_the_first_clock_and_resumed_it_is_the_straight_run(found):
    straight, limited = found["straight"], found["limited"]
    assert found["n_starts"][0] == found["n_starts"][1] > 2
    assert limited["rows"] == straight["rows"]
    assert same(limited["weights"], straight["weights"])
    assert all(len(rows) == len(straight["rows"]) for rows in limited["all_rows"])


@pytest.mark.full
def test_only_the_first_process_has_a_run_and_sends_each_step_once(found):
    [run], others = found["runs"]
    assert others == []
    assert run == list(range(1, len(run) + 1))
    assert len(run) == 3 * 10


@pytest.mark.full
def test_samples_are_those_of_both_processes(found):
    assert found["straight"]["n"] == found["limited"]["n"] == [83, 20] * 3


@pytest.mark.full
def test_the_best_epochs_are_the_same(found):
    assert found["limited"]["files"] == found["straight"]["files"]
    assert len(found["limited"]["files"]) == 3
