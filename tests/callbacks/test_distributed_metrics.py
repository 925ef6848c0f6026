"""Metrics of all kinds over real processes on gloo: the values are those of one process."""

from pathlib import Path

import metrics_worker as worker
import pytest
import torch
from test_distributed import assert_alike, launch
from toolbox import untimed_rows

from minilearn import CheckpointCB

pytestmark = pytest.mark.slow

WORKER = Path(worker.__file__)


@pytest.fixture(scope="module")
def alone():
    return worker.measured()


def launched(n, every, folder):
    codes, said = launch(n, str(every), folder, WORKER)
    assert codes == [0] * n, said
    return torch.load(folder / f"metrics-{n}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launched(2, 7, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return launched(3, 0, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    return launched(2, 1, tmp_path_factory.mktemp("each"))


@pytest.mark.full
@pytest.mark.parametrize("n", ["two", pytest.param("three", marks=pytest.mark.full)])
def test_values_are_those_of_one_process(n, alone, request):
    found = request.getfixturevalue(n)["measured"]
    assert_alike(found["rows"], alone["rows"])
    assert all(rows == found["rows"] for rows in found["all_rows"])
    assert len(alone["rows"]) == 6


@pytest.mark.full
@pytest.mark.parametrize(("kind", "n"), [("two", 4), pytest.param("each", 28, marks=pytest.mark.full)])
def test_resumed_from_each_step_values_are_those_of_the_straight_run(kind, n, request):
    found = request.getfixturevalue(kind)["resumed"]
    assert len(found["found"]) == n
    assert {path: rows for path, rows in found["found"].items() if rows != found["straight"]} == {}


@pytest.mark.full
def test_one_process_continues_what_two_measured(two, tmp_path):
    for i, path in enumerate(two["resumed"]["found"]):
        cbs = [worker.metrics(), worker.LogCB(), CheckpointCB(tmp_path / str(i))]
        learn = worker.shared_learner(cbs)
        learn.fit(2, resume=path)
        assert_alike(untimed_rows(learn), two["resumed"]["straight"])
