import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import StopCB, StoppedError
from matplotlib.image import imread

from minilearn import set_seed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINILEARN_DATA", raising=False)


@pytest.fixture
def script(example):
    return example("optimizer_state")


@pytest.fixture
def main(script, monkeypatch, tmp_path):
    def call(*args):
        given = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *args]
        monkeypatch.setattr(sys, "argv", ["optimizer_state.py", *given])
        script.main()

    return call


@pytest.fixture
def short(script, monkeypatch):
    """Make sessions of one epoch, and batches of 16."""
    for name, preset in script.PRESETS.items():
        monkeypatch.setitem(script.PRESETS, name, replace(preset, n_epochs=(1, 1, 1), bs=16))


@pytest.mark.parametrize("name", ["imagenette", "imagewoof"])
def test_document_000_is_run_method_for_method(script, main, short, tmp_path, name, capsys, write_imagenet):
    data = write_imagenet(tmp_path / "data", name)
    main("--dataset", name, "--data", str(data), "--runs", "2", "--preset", "cpu")
    result = json.loads((tmp_path / "out" / f"optimizer_state_{name}_cpu.json").read_text())
    assert list(result["rows"]) == list(script.METHODS)
    assert (result["n"], result["data"]) == (2, f"{name}2-160, 64 px")
    assert {"command", "device", "threads", "torch", "python"} <= set(result)
    for row in result["rows"].values():
        assert [len(row[key]["each"]) for key in row] == [2] * 5
    for histories in result["histories"].values():
        assert [[(r["epoch"], r["train"]) for r in history] for history in histories] == [
            [(epoch, phase) for epoch in range(3) for phase in ("train", "eval")]
        ] * 2
    assert imread(tmp_path / "out" / f"optimizer_state_{name}_cpu.png").ndim == 3
    assert "one cycle: kept minus new" in capsys.readouterr().out


def test_sessions_are_those_of_the_document(script):
    for name in ("full", "cpu"):
        assert script.PRESETS[name].n_epochs == (10, 10, 5)
    assert len(script.METHODS) * len(script.DATASETS) == 8
    model = script.PRESETS["full"].model(n_channels=3)
    assert sum(p.numel() for p in model.parameters()) == 23_528_522  # ResNet50 of ten classes


@pytest.mark.parametrize(
    ("method", "is_new", "cycles"),
    [
        ("new optimizer", True, False),
        ("kept optimizer", False, False),
        ("new optimizer, one cycle", True, True),
        ("kept optimizer, one cycle", False, True),
    ],
)
def test_methods_are_what_their_names_say(script, make_learner, at, method, is_new, cycles):
    opts, lrs = [], []
    look = at("before_step", lambda learn: lrs.append(learn.opt.param_groups[0]["lr"]))
    learn = make_learner(opt_func=torch.optim.Adam, cbs=look)
    for lr in (0.1, 0.2):
        script.METHODS[method](learn, 2, lr)
        opts.append(learn.opt)
    assert (opts[0] is not opts[1]) is is_new
    assert int(next(iter(learn.opt.state.values()))["step"]) == (6 if is_new else 12)
    if not cycles:
        assert lrs == [0.1] * 6 + [0.2] * 6
    else:
        assert max(lrs[:6]) == pytest.approx(0.1, rel=0.2)
        assert lrs[6] == pytest.approx(0.2 / 25)
        assert len(set(lrs)) > 6


def test_methods_begin_alike(script, short, tmp_path):
    # The first session of a pair is the same run.
    dls = script.shapes(64)
    first = []
    for i, method in enumerate(["new optimizer", "kept optimizer"]):
        set_seed(3)
        preset = replace(script.PRESETS["small"], n_epochs=(1, 1, 1))
        learn = script.train(method, preset, script.report.some_of(dls, 64), tmp_path / str(i))
        first.append([row["loss"] for row in learn.history[:2]])
    assert first[0] == first[1]


def test_run_that_broke_off_goes_on_in_its_session(script, short, tmp_path):
    preset = replace(script.PRESETS["small"], n_epochs=(1, 2, 1))
    set_seed(0)
    dls = script.report.some_of(script.shapes(32), 96)

    def losses(folder, *cbs):
        set_seed(0)
        learn = script.train("new optimizer, one cycle", preset, dls, folder, cbs)
        return [row["loss"] for row in learn.history]

    straight = losses(tmp_path / "straight")
    with pytest.raises(StoppedError):
        losses(tmp_path / "stopped", StopCB(12))  # in the second session
    assert losses(tmp_path / "stopped") == straight


def test_runs_are_logged_for_tensorboard(script, main, short, tmp_path, write_imagenet):
    data = write_imagenet(tmp_path / "data", "imagenette")
    log = tmp_path / "log"
    main("--data", str(data), "--only", "kept optimizer", "--preset", "cpu", "--tensorboard", str(log))
    runs = sorted(path.name for path in (log / "imagenette-cpu").iterdir())
    assert runs == ["kept-optimizer-42", "kept-optimizer-42-2", "kept-optimizer-42-3"]  # one for each session


@pytest.mark.slow
def test_full_preset_runs(script, main, short, tmp_path, write_imagenet):
    data = write_imagenet(tmp_path / "data", "imagenette", n_train=2)
    main("--data", str(data), "--only", "kept optimizer, one cycle", "--preset", "full")
    result = json.loads((tmp_path / "out" / "optimizer_state_imagenette_full.json").read_text())
    assert result["data"] == "imagenette2-160, 128 px"


def test_missing_imagewoof_ends_with_what_to_fetch(main, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)Imagewoof was not found.*imagewoof2-160.tgz, and put it into"):
        main("--dataset", "imagewoof", "--preset", "cpu")


def test_first_look_without_data_runs_on_the_built_in_set(main, short, tmp_path, capsys):
    main("--dataset", "imagewoof", "--only", "kept optimizer")
    assert "Running on the built-in set of drawn shapes instead" in capsys.readouterr().out


# The test of significance -----------------------------------------------------------------------------


def rows_of(script, kept, new):
    rows = {method: {"eval accuracy": {"each": new}} for method in script.METHODS}
    rows["kept optimizer"] = {"eval accuracy": {"each": kept}}
    return rows


def test_difference_is_that_of_a_paired_t_test(script):
    # By hand: differences 1, 2, 3; mean 2, sd 1, t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom:
    # p = 0.0742, and the interval is 2 -+ 4.3027 / sqrt 3.
    found = script.compared(rows_of(script, [2, 4, 6], [1, 2, 3]), "eval accuracy")["constant lr"]
    assert found["mean"] == 2
    assert found["p"] == pytest.approx(0.0742, abs=1e-4)
    assert (found["low"], found["high"]) == pytest.approx((-0.4841, 4.4841), abs=1e-4)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ({"mean": 0.01, "low": -0.01, "high": 0.03, "p": 0.2}, "no difference is shown; one above 0.0300 is"),
        ({"mean": 0.01, "low": 0.005, "high": 0.015, "p": 0.01}, "p = 0.01: keeping is better"),
        ({"mean": -0.01, "low": -0.02, "high": -0.005, "p": 0.01}, "p = 0.01: a new one is better"),
        ({"mean": 0.0, "low": 0.0, "high": 0.0, "p": float("nan")}, "nothing to test"),
    ],
)
def test_conclusion_says_what_the_numbers_show(script, difference, said):
    assert said in script.conclusion(difference, "constant lr")


def test_committed_result_is_of_four_methods_and_several_seeds_and_its_conclusion_holds(example, script):
    found = example("tables").result("optimizer_state_imagenette_cpu")
    assert list(found["rows"]) == list(script.METHODS)
    assert found["n"] >= 3
    for measure, tests in found["tests"].items():
        for name, difference in script.compared(found["rows"], measure).items():
            assert tests[name] == pytest.approx(difference)
    page = (script.Path(script.__file__).parent / "README.md").read_text()
    for name, difference in found["tests"]["eval accuracy"].items():
        assert script.conclusion(difference, name) in page
