import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from toolbox import StopCB, StoppedError, same

from minilearn import set_seed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]


@pytest.fixture
def script(example):
    return example("optimizer_state")


@pytest.fixture
def main(call_main, tmp_path):
    return partial(call_main, "optimizer_state", "--work", tmp_path / "work")


@pytest.fixture
def short(script, monkeypatch):
    """Make sessions of one epoch, and batches of 16."""
    for name, preset in script.PRESETS.items():
        monkeypatch.setitem(script.PRESETS, name, replace(preset, n_epochs=(1, 1, 1), bs=16))


@pytest.mark.full
@pytest.mark.parametrize("name", ["imagenette", pytest.param("imagewoof", marks=pytest.mark.full)])
def test_document_000_is_run_method_for_method(script, main, short, tmp_path, name, capsys, write_imagenet):
    data = write_imagenet(tmp_path / "data", name)
    main("--dataset", name, "--data", str(data), "--runs", "2", "--preset", "cpu")
    result = json.loads((tmp_path / "out" / f"optimizer_state_{name}_cpu.json").read_text())
    assert list(result["rows"]) == list(script.METHODS)
    assert (result["n"], result["data"]) == (2, f"{name}2-160, 64 px")
    assert (result["seeds"], result["n_images"]) == ([42, 43], {"train": 40, "eval": 10})
    assert (result["processes"], result["n_epochs"]) == (1, [1, 1, 1])
    for row in result["rows"].values():
        assert [len(row[key]["each"]) for key in row] == [2] * 6
    for histories in result["histories"].values():
        assert [[(r["epoch"], r["train"]) for r in history] for history in histories] == [
            [(epoch, phase) for epoch in range(3) for phase in ("train", "eval")]
        ] * 2
    assert imread(tmp_path / "out" / f"optimizer_state_{name}_cpu.png").ndim == 3
    assert "one cycle, kept - new, eval loss: " in capsys.readouterr().out


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
        folder = tmp_path / str(i) / "run"  # each with a first session of its own
        learn, _ = script.train(method, preset, script.report.some_of(dls, 64), folder)
        first.append([row["loss"] for row in learn.history[:2]])
    assert first[0] == first[1]


def test_run_that_broke_off_goes_on_in_its_session(script, short, tmp_path):
    preset = replace(script.PRESETS["small"], n_epochs=(1, 2, 1))
    set_seed(0)
    dls = script.report.some_of(script.shapes(32), 96)

    def losses(folder, *cbs):
        set_seed(0)
        learn, first = script.train("new optimizer, one cycle", preset, dls, folder / "run", cbs)
        return [row["loss"] for row in learn.history], first

    straight = losses(tmp_path / "straight")
    with pytest.raises(StoppedError):
        losses(tmp_path / "stopped", StopCB(12))  # in the second session
    assert losses(tmp_path / "stopped") == straight


@pytest.mark.full
def test_methods_share_their_first_session_and_part_after_it(script, short, tmp_path):
    preset = replace(script.PRESETS["small"], n_epochs=(1, 1, 1))
    found = {}
    for method in ("new optimizer", "kept optimizer", "new optimizer, alone"):
        set_seed(3)
        dls = script.report.some_of(script.shapes(16), 64)
        folder = tmp_path / ("alone" if "alone" in method else "shared") / method
        found[method] = script.train(method.removesuffix(", alone"), preset, dls, folder)
    losses = {method: first for method, (_, first) in found.items()}
    new, kept, alone = losses.values()
    assert new == alone
    assert [len(run) for run in new] == [4, 4, 4]
    assert kept[0] == new[0]
    assert kept[1][0] == new[1][0]  # before the first step of the session
    assert kept[1][1:] != new[1][1:]
    weights = [learn.model.state_dict() for learn, _ in found.values()]
    assert same(weights[0], weights[2])
    lines = (tmp_path / "shared" / "first-constant-lr" / "hashes.jsonl").read_text().splitlines()
    assert [json.loads(line)["steps"] for line in lines] == [4]


def test_processes_that_share_a_first_session_take_turns(script, tmp_path):
    done, begun = [], threading.Event()

    def second():
        begun.set()
        with script.experiments.in_turn(tmp_path / "turn"):
            done.append("second")

    with script.experiments.in_turn(tmp_path / "turn"):
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait()
        time.sleep(0.05)
        done.append("first")
    thread.join()
    assert done == ["first", "second"]


def test_what_follows_the_boundary_is_tested_in_pairs(script):
    losses = {method: [[1.0, 2.0], [2.0, 4.0]] for method in script.METHODS}
    losses["kept optimizer"] = [[0.5, 1.5], [1.5, 3.0]]
    history = [
        {"train": phase, "loss": 1.0, "MulticlassAccuracy": 0.5, "time_s": 1.0} for phase in ("train", "eval")
    ]
    rows = {method: script.row_of([history] * 2, of_runs) for method, of_runs in losses.items()}
    constant, cycle = (d for d in script.compared(rows) if d.measure == script.AT_BOUNDARY)
    assert constant.each == (-0.5, -0.75)
    assert cycle.each == (0.0, 0.0)
    assert script.plot_boundary(losses).axes[0].get_title() == script.CONSTANT


def test_runs_are_logged_for_tensorboard(script, main, short, tmp_path, write_imagenet):
    data = write_imagenet(tmp_path / "data", "imagenette")
    log = tmp_path / "log"
    main("--data", str(data), "--only", "kept optimizer", "--preset", "cpu", "--tensorboard", str(log))
    runs = sorted(path.name for path in (log / "imagenette-cpu").iterdir())
    assert runs == ["kept-optimizer-42", "kept-optimizer-42-2", "kept-optimizer-42-3"]  # one for each session


@pytest.mark.full
@pytest.mark.slow
def test_full_preset_runs(script, main, short, monkeypatch, tmp_path, write_imagenet):
    data = write_imagenet(tmp_path / "data", "imagenette", n_train=1)
    monkeypatch.setitem(script.PRESETS, "full", replace(script.PRESETS["full"], n_images=4, bs=2))
    main("--data", str(data), "--only", "kept optimizer, one cycle", "--preset", "full")
    result = json.loads((tmp_path / "out" / "optimizer_state_imagenette_full.json").read_text())
    assert result["data"] == "imagenette2-160, 128 px"


def test_missing_imagewoof_ends_with_what_to_fetch(main, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)Imagewoof.*imagewoof2-160.tgz"):
        main("--dataset", "imagewoof", "--preset", "cpu")


@pytest.mark.full
def test_first_look_without_data_runs_on_the_built_in_set(main, short, tmp_path, capsys):
    main("--dataset", "imagewoof", "--only", "kept optimizer")
    assert "Running on the built-in set of drawn shapes instead" in capsys.readouterr().out


# The conclusion -------------------------------------------------------------------------------------


@pytest.fixture
def difference(example):
    def make(measure, each=(-0.003,) * 5, corrected=1.0, name="one cycle, kept - new"):
        mean = sum(each) / len(each)
        low, high = mean - 0.001, mean + 0.001
        return example("differences").Difference(name, measure, each, 1.0, low, high, 0.5, corrected)

    return make


def test_conclusion_without_effects_says_how_large_one_may_be(script, difference):
    family = [difference(measure) for measure in ("eval accuracy", "eval loss", "train loss")]
    said = script.conclusion(family)
    assert said.startswith("No effect on eval accuracy is seen: one above 0.0040 is unlikely.")
    assert said.endswith("No effect on eval loss is seen either.")


def test_conclusion_names_an_effect_on_loss_with_its_size_and_seeds(script, difference):
    family = [difference("eval accuracy"), difference("eval loss", corrected=0.01)]
    assert script.conclusion(family).endswith(
        "keeping the state lowers the eval loss by 0.3 %, in each of the 5 seeds: real and tiny."
    )


def test_conclusion_names_an_effect_on_accuracy(script, difference):
    family = [difference("eval accuracy", (0.1, -0.01, 0.1), 0.02, "constant lr, kept - new")]
    said = script.conclusion(family)
    assert said.startswith("Under constant lr, keeping the state raises the eval accuracy by 6.3 %, ")
    assert "in the mean of 3 seeds: real." in said


def test_committed_result_is_of_four_methods_and_several_seeds(example, script):
    found = example("tables").result("optimizer_state_imagenette_cpu")
    assert list(found["rows"]) == list(script.METHODS)
    assert found["n"] >= 3


@pytest.mark.full
def test_killed_run_has_the_weights_of_the_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILEARN_DATA", str(tmp_path))  # without data: on the built-in set
    examples = Path(__file__).parents[1] / "examples"
    work = ("--work", "{work}", "--out", tmp_path / "out")
    script = (examples / "cifar10_schedules.py", "--preset", "small", "--only", "cosine", *work)
    command = [sys.executable, examples / "soak.py", "--work", tmp_path / "work", "--seconds", "0"]
    command += ["--out", tmp_path / "soak.jsonl", "--", *script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.jsonl").read_text())
    assert (found["equal"], found["same_cpu"]) == (True, True)
    assert found["compared"] > found["killed_after"] > found["copied_at"]
    assert not (tmp_path / "work-unbroken").exists()
