import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minilearn.provenance import provenance

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "docs" / "peers.json").read_text())


@pytest.fixture(scope="module")
def page():
    for folder in ("benchmarks", "benchmarks/peers"):
        sys.path.insert(0, str(ROOT / folder))  # as the script has them
    return importlib.import_module("page")


def table_of(**times):
    rows = {
        name: {"times": of, "accuracies": [0.5, 0.7, 0.6], "title": name, "version": "1", "settings": "plain"}
        for name, of in times.items()
    }
    made_by = {"command": "python it", "date": "today", "commit": "abc", "uncommitted": ["a.py"]}
    versions = {"torch": "2", "python": "3", "minilearn": "1"}
    about = {"workload": "loop", "device_type": "cpu", "device": "some CPU", "threads": 2, "rounds": 3}
    return {**about, **made_by, **versions, "n": 10, "rows": rows}


def test_ratio_is_the_median_of_the_rounds_own_ratios(page):
    rows = page.figures(table_of(usual=[10.0, 20.0, 40.0], other=[20.0, 10.0, 44.0]))
    assert [row["name"] for row in rows] == ["usual", "other"]  # the least first
    assert rows[1]["ratios"] == [2.0, 0.5, 1.1]
    assert rows[1]["ratio"] == {"median": 1.1, "min": 0.5, "max": 2.0}
    assert rows[1]["time"] == {"median": 20.0, "min": 10.0, "max": 44.0}
    assert rows[1]["accuracy"] == 0.6


def test_page_says_where_a_table_comes_from_its_ratios_and_settings(page):
    said = page.page({"tables": [table_of(usual=[1.0, 1.0, 1.0], minilearn=[0.5, 0.5, 0.25])]})
    said = said.replace("\n", " ")  # lines are wrapped
    for part in (
        "## loop, CPU, 2 threads: epochs of 10 steps, 3 rounds",
        "Measured on some CPU, 2 threads; torch 2, python 3, minilearn 1.",
        "Commit: abc, with changes in 1 file. Date: today.",
        "    $ python it",
        "| **minilearn** | 1 | 0.5 | 0.2, 0.5 | 0.50 | 0.25, 0.50 | 0.6000 |",
        "loop: plain",
    ):
        assert part in said


def test_framework_that_fails_is_left_out_and_said(page, monkeypatch, capsys):
    peers = importlib.import_module("peers")
    found = {"device": "some CPU", "threads": 2, "version": "1", "settings": "plain", "loss": 0.5}

    def run_one(name, **options):
        if name == "fastai":
            raise peers.FailedError("ImportError: no such module")
        return found | {"time": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(peers, "run_one", run_one)
    options = SimpleNamespace(only=["usual", "minilearn", "fastai"], rounds=2, steps=3, epochs=1)
    first, second = peers.measure("loop", "cpu", options)
    assert (first["rounds"], second["rounds"], second["seeds"]) == (1, 2, [0, 1])
    assert {name: row["times"] for name, row in second["rows"].items()} == {
        "usual": [1.0, 1.0],
        "minilearn": [1.0, 1.0],
    }
    assert "fastai fails, and is left out\nImportError: no such module" in capsys.readouterr().err


def test_page_says_in_how_many_rounds_minilearn_took_less_time(page):
    rows = {"minilearn": [0.5, 0.5, 0.5], "near": [0.6, 0.6, 0.5], "far": [0.9, 0.8, 0.7]}
    said = page.rounds_of(table_of(usual=[1.0, 1.0, 1.0], **rows))
    assert "- 3 of 3: far; usual\n- 2 of 3: near\n" in said


def test_page_names_the_ranges_that_overlap_minilearns_as_they_are_printed(page):
    # 0.998 is printed as 1.00, which is where "usual" is.
    said = page.rounds_of(table_of(usual=[1.0, 1.0, 1.0], minilearn=[0.5, 0.6, 0.998], far=[2.0, 2.0, 2.0]))
    assert said.endswith("overlap minilearn's: usual.\n")
    said = page.rounds_of(table_of(usual=[1.0, 1.0, 1.0], minilearn=[0.5, 0.6, 0.9], far=[2.0, 2.0, 2.0]))
    assert said.endswith("overlap minilearn's: none.\n")


def test_chart_labels_a_bar_with_the_ratio_that_it_shows_and_its_range(page):
    (ax,) = page.draw({"tables": [table_of(usual=[2.0, 2.0, 2.0], other=[3.0, 5.0, 2.0])]}).axes
    assert [bar.get_width() for bar in ax.patches] == [1.5, 1.0]  # the least on top
    assert [text.get_text() for text in ax.texts] == ["1.50 (1.00 to 2.50)", "1.00"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[1.5, 2.5, 1.0]]
    assert "median of 3 rounds; dots: each round" in ax.get_xlabel()


def test_committed_page_is_made_of_the_committed_results(page):
    assert (ROOT / "docs" / "peers.md").read_text() == page.page(RESULTS)


def committed(workload):
    (table,) = [table for table in RESULTS["tables"] if table["workload"] == workload]
    return table


@pytest.mark.parametrize("workload", ["loop", "fashion"])
def test_committed_table_says_where_it_comes_from(workload):
    table = committed(workload)
    assert table.keys() >= {*provenance(), "seeds"}
    assert len(table["seeds"]) == table["rounds"]
    assert {len(row["times"]) for row in table["rows"].values()} == {table["rounds"]}


@pytest.mark.parametrize(("workload", "limit"), [("loop", 0.95), ("fashion", 1.0)])
def test_minilearn_has_the_least_ratio_of_all_frameworks(page, workload, limit):
    rows = [row for row in page.figures(committed(workload)) if row["name"] not in page.BY_HAND]
    assert len(rows) >= 9
    assert rows[0]["name"] == "minilearn"
    assert rows[0]["ratio"]["median"] <= limit
