"""The pages say what the results show: each number, each difference that holds, and no other."""

import copy
import json
import re
from pathlib import Path

import pytest
from matplotlib.image import imread

RESULTS = Path(__file__).parents[1] / "examples" / "results"
FILES = sorted(path.stem for path in RESULTS.glob("*.json"))
FAMILIES = [
    *("000", "001", "002", "003", "003, published", "004, small networks"),
    *("004, quarter width", "asides_mnist", "asides_fashion_mnist"),
]
MADE_BY = (
    *("claim", "data", "n_images", "command", "date", "commit", "uncommitted", "device", "threads"),
    *("processes", "torch", "python", "minilearn", "n", "seeds"),
)


@pytest.fixture(scope="module")
def tables(example):
    return example("tables")


@pytest.fixture(scope="module")
def differences(example):
    return example("differences")


@pytest.fixture
def faults(tables, differences):
    """Return what is wrong with the pages beside results, of which some may be altered."""

    def find(**altered):
        def results(name):
            return altered.get(name) or tables.result(name)

        found = []
        for page, families in tables.PAGES.items():
            text = page.read_text()
            found += differences.wrong_claims(text, [tables.family(name, results) for name in families])
            if tables.made(text, results) != text:
                found.append(f"{page.name}: not made from the results; run python examples/tables.py")
        return found

    return find


@pytest.mark.slow
def test_pages_say_what_the_results_show(faults):
    assert faults() == []


def test_all_that_holds_is_in_the_page_of_the_examples(tables):
    assert list(tables.FAMILIES) == FAMILIES == list(tables.PAGES[tables.EXAMPLES])


def test_result_of_a_tree_with_changes_says_so(tables):
    def of(uncommitted):
        return tables.speedrun_row(lambda name: tables.result(name) | {"uncommitted": uncommitted})

    commit = tables.result(tables.SPEEDRUN)["commit"][:7]
    assert f"commit {commit} with changes, which the result names; 20" in of(["examples/report.py"])
    assert f"commit {commit}; 20" in of([])
    assert f"commit {commit}; 20" in of("unknown")  # the commit is unknown too, and the page says that


@pytest.mark.parametrize("name", FAMILIES)
def test_every_measure_of_every_pair_is_tested(tables, name):
    family = tables.family(name)
    names = {d.name for d in family}
    assert len(family) == {"000": 5, "001": 2}.get(name, 4) * len(names)
    assert all((d.p is None) is (len(d.each) == 1) for d in family)
    assert name == "004, quarter width" or all(len(d.each) > 1 for d in family)


# The guard is tested: each change of a result must be noticed in the unchanged pages -----------------


def values_of(result, tables, name, difference):
    """Return the values of the first of a pair, to be altered in place, and what is subtracted of each."""
    rows = result["rows"]
    if name == "003, published":
        each = rows[difference.name][difference.measure]["each"]
        return each, [value - d for value, d in zip(each, difference.each, strict=True)]
    pairs = {
        "000": tables.state_000.PAIRS,
        "001": tables.schedules_001.PAIRS,
        "002": tables.tour_002.PAIRS,
        "003": tables.scratch_003.PAIRS,
        "004, small networks": tables.swats_004.PAIRS,
        "004, quarter width": tables.swats_004.PAIRS,
        **{f"asides_{data}": of_data for data, of_data in tables.asides.PAIRS.items()},
    }
    a, b = pairs[name][difference.name]
    return rows[a][difference.measure]["each"], rows[b][difference.measure]["each"]


def altered(tables, name, choose, alter):
    """Return a copy of a family's result in which one difference is another, and that difference."""
    of = tables.FAMILIES[name][0]
    result = copy.deepcopy(tables.result(of))
    difference = choose(tables.family(name))
    each, base = values_of(result, tables, name, difference)
    each[:] = [other + value for other, value in zip(base, alter(difference), strict=True)]
    return of, result, difference


def again(tables, name, of, result, difference):
    """Return the same difference in an altered result."""
    family = tables.family(name, lambda asked: result if asked == of else tables.result(asked))
    return next(d for d in family if (d.name, d.measure) == (difference.name, difference.measure))


def least_sure(family):
    return max((d for d in family if d.p is not None), key=lambda d: d.p)


def surest(family):
    return min((d for d in family if d.p is not None), key=lambda d: d.p)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_difference_that_became_significant_is_noticed(tables, faults, name):
    def certain(d):
        return [0.05 + 1e-6 * i for i in range(len(d.each))]

    of, result, before = altered(tables, name, least_sure, certain)
    after = again(tables, name, of, result, before)
    assert (before.holds, after.holds) == (False, True)
    found = faults(**{of: result})
    assert any("omitted" in fault and before.name in fault and before.measure in fault for fault in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_difference_that_is_significant_no_more_is_noticed(tables, faults, name):
    def by_chance(d):
        return [(-1) ** i * 0.1 for i in range(len(d.each))]

    of, result, before = altered(tables, name, surest, by_chance)
    after = again(tables, name, of, result, before)
    assert not after.holds
    found = faults(**{of: result})
    assert any("not made from the results" in fault for fault in found)
    claim = f"does not hold: {before.claim}"
    assert (claim in found) is before.holds


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_difference_of_the_other_sign_is_noticed(tables, faults, name):
    of, result, before = altered(tables, name, surest, lambda d: [-value for value in d.each])
    assert again(tables, name, of, result, before).mean == pytest.approx(-before.mean)
    found = faults(**{of: result})
    assert any("not made from the results" in fault for fault in found)
    if before.holds:
        assert f"does not hold: {before.claim}" in found
        assert any("omitted" in fault and before.name in fault for fault in found)


@pytest.mark.slow
def test_another_sign_of_swa_s_difference_is_noticed(tables, faults):
    result = copy.deepcopy(tables.result(tables.EQUAL))
    rows, script = result["rows"], tables.schedules_001
    rows[script.SWA], rows[script.SHORT] = rows[script.SHORT], rows[script.SWA]
    for row, like in ((rows[script.SWA], rows[script.SHORT]), (rows[script.SHORT], rows[script.SWA])):
        row.update({key: like[key] for key in like if key not in row})  # both have what is read
    found = faults(**{tables.EQUAL: result})
    pages = [fault.partition(":")[0] for fault in found if "not made from the results" in fault]
    assert pages == ["documents.md", "averages.md", "README.md"]  # the last one is that of the examples


def shifted(value):
    """Return a result with each number that was measured a little larger."""
    if isinstance(value, dict):
        return {key: shifted(of) for key, of in value.items()}
    if isinstance(value, list):
        return [shifted(of) for of in value]
    return value + 0.01 if isinstance(value, float) else value


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_other_numbers_in_a_result_are_noticed(tables, faults, name):
    assert any(
        "not made from the results" in fault for fault in faults(**{name: shifted(tables.result(name))})
    )


# Results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_result_says_what_made_it(name):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    assert [key for key in MADE_BY if key not in found] == []
    assert len(found["seeds"]) == found["n"]
    assert set(found["n_images"]) == {"train", "eval"}
    assert found["command"].startswith("python examples/")


@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_the_histories(name, example):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    rows = found.get("rows") or {"": found["row"]} if "row" in found or "rows" in found else {}
    histories = found["histories"] if "rows" in found else {"": found["histories"]}
    for experiment, row in rows.items():
        for measure, value in example("report").measures_of(histories[experiment]).items():
            # The run that was stopped early is reported by the weights of its best epoch, on the test set.
            if measure in row and not (experiment == "cycles, early stopping" and "eval" in measure):
                assert row[measure] == value, (experiment, measure)


@pytest.mark.full
def test_every_picture_is_drawn_again_from_the_results(example, monkeypatch, tmp_path, real_data):
    monkeypatch.setenv("MINILEARN_DATA", str(real_data))
    monkeypatch.setattr("sys.argv", ["pictures.py", "--out", str(tmp_path)])
    example("pictures").main()
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == sorted(path.name for path in RESULTS.glob("*.png"))
    assert all(imread(tmp_path / name).ndim == 3 for name in drawn)


def test_pictures_of_the_pages_are_there(tables):
    for page in tables.PAGES:
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            path = page.parent / link if page != tables.README else tables.ROOT / link.partition("/main/")[2]
            assert path.is_file(), link


def test_results_of_documents_002_and_003_are_of_five_seeds_and_the_documents_data(tables):
    for name, data in (("fashion_mnist_optimizers", "Fashion-MNIST"), ("mnist_optimizers", "MNIST")):
        found = tables.result(name)
        assert (found["n"], found["data"]) == (5, data)
        assert f"examples/{name}.py --runs 5 --out examples/results" in found["command"]
        assert found["time_s"] < 15 * 60


def test_best_run_of_document_003_is_at_least_0_902(tables):
    assert tables.result("fashion_mnist_optimizers")["rows"][tables.BEST]["eval accuracy"]["mean"] >= 0.902


def test_each_row_of_document_003_is_within_0_02_or_better(tables, example):
    rows = tables.result("fashion_mnist_optimizers")["rows"]
    for name, published in example("fashion_mnist_optimizers").PUBLISHED.items():
        if "as there" not in name:  # the measurements that explain, not the document's rows
            assert rows[name]["eval accuracy"]["mean"] >= published[-1][2] - 0.02, name
