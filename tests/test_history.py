"""learn.history: a list of rows that shows itself as a table."""

import json
import pickle
from copy import deepcopy

import pytest
from toolbox import make_learner

from minilearn import CheckpointCB, MetricsCB
from minilearn.rows import History

ROWS = [
    {"accuracy": 0.5, "loss": 2.0, "epoch": 0, "train": "train", "time_s": 0.125},
    {"loss": 3.0, "epoch": 0, "train": "eval", "time_s": 1},
]


class Odd:
    def __repr__(self):
        raise ValueError("no text")


def test_history_is_a_list_of_dicts():
    learn = make_learner(cbs=MetricsCB())
    learn.fit(1)
    assert isinstance(learn.history, list)
    assert [type(row) for row in learn.history] == [dict, dict]
    assert learn.history == [*learn.history]
    assert json.loads(json.dumps(learn.history)) == learn.history
    assert pickle.loads(pickle.dumps(learn.history)) == deepcopy(learn.history) == learn.history
    assert type(learn.history[-1:]) is History


def test_text_has_a_column_for_each_value():
    lines = repr(History(ROWS)).splitlines()
    assert lines[0].split() == ["accuracy", "loss", "epoch", "train", "time_s"]
    assert lines[1].split() == ["0.5000", "2.0000", "0", "train", "0.1"]
    assert lines[2].split() == ["3.0000", "0", "eval", "1.0"]
    assert len(set(map(len, lines))) == 1


def test_text_of_a_long_history_leaves_rows_out():
    lines = repr(History({"loss": float(i), "epoch": i} for i in range(100))).splitlines()
    assert len(lines) == 1 + 10 + 1 + 10
    assert [line.split()[-1] for line in (lines[10], lines[12], lines[-1])] == ["9", "90", "99"]
    assert lines[11] == "... 80 more rows"


def test_html_has_all_rows_escaped():
    html = History([*ROWS, {"<script>": "<b>", "epoch": 1}])._repr_html_()
    assert html.count("<tr>") == 4
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;" in html


@pytest.mark.parametrize("row", [None, 3, {"loss": Odd()}, {1: Odd(), ("a", 2): [None]}, {}])
def test_odd_rows_are_shown_all_the_same(row):
    history = History([{"loss": 1.0}, row])
    assert repr(history)
    assert history._repr_html_()


def test_history_without_rows():
    assert repr(History()) == "History: no row yet"
    assert History()._repr_html_() == "<p>no row yet</p>"


def test_history_of_a_resumed_run_is_one_too(tmp_path):
    def learner():
        return make_learner(cbs=[MetricsCB(), CheckpointCB(tmp_path)])

    first = learner()
    first.fit(2)
    second = learner()
    second.fit(2, resume=tmp_path)
    assert second.history == first.history
    assert type(second.history) is History
