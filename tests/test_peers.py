import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "docs" / "peers.json").read_text())
BY_HAND = ("usual", "in-memory")


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
    about = {"workload": "loop", "device": "CPU", "machine": "m", "torch": "2", "python": "3", "rounds": 3}
    return {**about, "n": 10, "command": "python it", "rows": rows}


def test_ratio_is_the_median_of_the_rounds_own_ratios(page):
    rows = page.figures(table_of(usual=[10.0, 20.0, 40.0], other=[20.0, 10.0, 44.0]))
    assert [row["name"] for row in rows] == ["usual", "other"]  # quickest first
    assert rows[1]["ratio"] == 1.1  # of 2, 0.5 and 1.1
    assert rows[1]["median"] == 20.0
    assert rows[1]["spread"] == (10.0, 44.0)
    assert rows[1]["accuracy"] == 0.6


def test_page_says_device_command_and_settings(page):
    said = page.page({"tables": [table_of(usual=[1.0, 1.0, 1.0], minilearn=[0.5, 0.5, 0.5])]})
    for part in ("CPU; m; torch 2, python 3", "    python it", "| **minilearn** | 1 | 0.5 |", "loop: plain"):
        assert part in said


def test_committed_page_is_made_of_the_committed_results(page):
    assert (ROOT / "docs" / "peers.md").read_text() == page.page(RESULTS)


def committed(workload):
    (table,) = [table for table in RESULTS["tables"] if table["workload"] == workload]
    return table


@pytest.mark.parametrize(("workload", "limit"), [("loop", 0.95), ("fashion", 1.0)])
def test_minilearn_is_first_of_all_frameworks(page, workload, limit):
    rows = [row for row in page.figures(committed(workload)) if row["name"] not in BY_HAND]
    assert len(rows) >= 9
    assert rows[0]["name"] == "minilearn"
    assert rows[0]["ratio"] <= limit


@pytest.mark.parametrize("workload", ["loop", "fashion"])
def test_readme_has_the_ratios_of_the_committed_results(page, workload):
    said = (ROOT / "README.md").read_text().replace("\n", " ")
    for row in page.figures(committed(workload)):
        if row["name"] not in ("usual", "barebones"):
            assert f"{row['title']} {row['ratio']:.2f}" in said
