import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from matplotlib.image import imread

from minilearn import shapes

REPO = Path(__file__).parents[1]
SCRIPT = REPO / "examples" / "fashion_mnist.py"
PICTURES = [f"fashion_mnist_{name}.png" for name in ("losses", "mistakes", "schedule")]
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}


def run(out, *args):
    without = ("MINILEARN_DATA", "no_proxy", "NO_PROXY")
    env = {name: value for name, value in os.environ.items() if name not in without}
    # The example finds no data in its cache folder, but matplotlib finds its fonts.
    env |= {
        "XDG_CACHE_HOME": str(out / "cache"),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
        **NO_NETWORK,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, SCRIPT, "--epochs", "1", "--out", out, *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("fashion_mnist_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(example, monkeypatch, tmp_path):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", "--out", str(tmp_path / "out"), *args])
        example.main()

    return call


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, write_idx):
    out, data = tmp_path_factory.mktemp("out"), write_idx(tmp_path_factory.mktemp("data"), n_train=40)
    done = run(out, "--data", data, "--bs", "8", "--seed", "3")
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "fashion_mnist.json").read_text())
    return SimpleNamespace(out=out, text=done.stdout, errors=done.stderr, result=result)


def test_help_lists_the_options(main, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main("--help")
    text = capsys.readouterr().out
    assert all(option in text for option in ("--epochs", "--seed", "--data", "--out", "--runs"))


def test_result_is_written_with_what_it_ran_on(tiny):
    assert " ".join(tiny.result) == ("claim command data device threads torch n eval_accuracy time_s history")
    assert (tiny.result["data"], tiny.result["n"]) == ("Fashion-MNIST", 1)
    assert tiny.result["command"].endswith("--bs 8 --seed 3")
    assert len(tiny.result["time_s"]) == 1


def test_result_has_a_row_for_each_phase(tiny):
    train, valid = tiny.result["history"]
    assert (train["train"], valid["train"], train["epoch"], valid["epoch"]) == ("train", "eval", 0, 0)
    assert tiny.result["eval_accuracy"] == {
        "mean": valid["MulticlassAccuracy"],
        "sd": None,
        "each": [valid["MulticlassAccuracy"]],
    }


def test_pictures_are_written_and_open(tiny):
    assert sorted(path.name for path in tiny.out.glob("*.png")) == PICTURES
    assert all(imread(tiny.out / name).ndim == 3 for name in PICTURES)


def test_table_stands_beside_the_published_one(tiny):
    lines = tiny.text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("accuracy"))
    assert lines[start].split() == ["accuracy", "loss", "epoch", "part", "published:", "accuracy", "loss"]
    rows = [line.split() for line in lines[start + 1 : start + 3]]
    assert [row[2:] for row in rows] == [["0", "train", "0.792", "0.578"], ["0", "eval", "0.798", "0.559"]]
    for row, of_history in zip(rows, tiny.result["history"], strict=True):
        assert row[:2] == [f"{of_history[name]:.3f}" for name in ("MulticlassAccuracy", "loss")]


def test_run_warns_of_nothing(tiny):
    assert "Warning" not in tiny.errors


def test_runs_count_the_seeds_up(example, main, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "load", lambda root, bs: (shapes(bs=64, n_train=300, n_valid=300), "small"))
    results = []
    for args in (["--seed", "3", "--runs", "2"], ["--seed", "3"], ["--seed", "4"]):
        main("--epochs", "1", *args)
        results.append(json.loads((tmp_path / "out" / "fashion_mnist.json").read_text()))
    both, third, fourth = results
    a, b = third["eval_accuracy"]["mean"], fourth["eval_accuracy"]["mean"]
    assert a != b
    assert (both["n"], both["eval_accuracy"]["each"]) == (2, [a, b])
    assert both["eval_accuracy"]["mean"] == pytest.approx((a + b) / 2)
    assert both["eval_accuracy"]["sd"] == pytest.approx(abs(a - b) / 2**0.5)  # of a sample of two
    assert [row["loss"] for row in both["history"]] == [row["loss"] for row in third["history"]]


@pytest.mark.slow
def test_without_data_it_says_so_and_runs_on_the_built_in_set(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stdout.splitlines() if "No Fashion-MNIST" in line]
    assert len(said) == 1
    assert "running on the built-in set of drawn shapes instead" in said[0]
    assert "built-in shapes, 1 epochs: eval accuracy" in done.stdout
    assert "published" not in done.stdout
    assert json.loads((tmp_path / "fashion_mnist.json").read_text())["data"] == "built-in shapes"


def test_missing_data_folder_is_one_line(main, tmp_path):
    with pytest.raises(SystemExit) as info:
        main("--data", str(tmp_path / "nowhere"))
    assert str(info.value) == f"--data: root='{tmp_path / 'nowhere'}': there is no such folder"


def test_broken_data_folder_ends_with_its_message(main, tmp_path, write_idx):
    data = write_idx(tmp_path / "data")
    (data / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"^--data: .*a file of the training set is broken"):
        main("--data", str(data))


@pytest.mark.parametrize("option", ["--epochs", "--runs", "--bs"])
def test_none_of_what_is_counted_is_refused(option, main, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(option, "0")
    assert f"argument {option}: 0: expected 1 or more" in capsys.readouterr().err


def test_published_figures_are_the_documents(example):
    documents = sorted((REPO.parent / "shared" / "seeds").glob("003*.txt"))
    if not documents:
        pytest.skip("needs document 003, ../shared/seeds/003*.txt")
    rows = [line.split("|") for line in documents[0].read_text().splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[3].strip() in ("train", "eval")][-12:]
    assert [row[2].strip() for row in rows] == [str(epoch) for epoch in range(6) for _ in range(2)]
    assert [row[3].strip() for row in rows] == ["train", "eval"] * 6
    figures = [float(cell) for row in rows for cell in row[:2]]
    assert [figure for epoch in example.PUBLISHED for figure in epoch] == figures
