import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from minilearn import MLP, StridedCNN, optim, set_seed, shapes

pytestmark = pytest.mark.slow

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


@pytest.fixture
def main(call_main):
    return partial(call_main, "fashion_mnist")


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
    assert " ".join(tiny.result) == (
        "claim data n_images command date commit uncommitted device threads processes torch python "
        "minilearn n seeds row time_s recs mistakes histories"
    )
    assert (tiny.result["data"], tiny.result["n"], tiny.result["seeds"]) == ("Fashion-MNIST", 1, [3])
    assert tiny.result["n_images"] == {"train": 40, "eval": 10}
    assert tiny.result["command"].endswith("--bs 8 --seed 3")
    assert len(tiny.result["time_s"]) == 1


def test_result_has_a_row_for_each_phase(tiny):
    train, valid = tiny.result["histories"][0]
    assert (train["train"], valid["train"], train["epoch"], valid["epoch"]) == ("train", "eval", 0, 0)
    assert tiny.result["row"]["eval accuracy"] == {
        "mean": valid["MulticlassAccuracy"],
        "sd": None,
        "each": [valid["MulticlassAccuracy"]],
    }


def test_pictures_are_written_and_open(tiny):
    assert sorted(path.name for path in tiny.out.glob("*.png")) == PICTURES
    assert all(imread(tiny.out / name).ndim == 3 for name in PICTURES)


def test_table_stands_beside_the_published_one(example):
    history = [
        {"MulticlassAccuracy": 0.5, "loss": 1.25, "epoch": 0, "train": phase} for phase in ("train", "eval")
    ]
    head, *rows = example("fashion_mnist").table(history, published=True).splitlines()
    assert head.split() == ["accuracy", "loss", "epoch", "part", "published:", "accuracy", "loss"]
    assert [row.split() for row in rows] == [
        ["0.500", "1.250", "0", "train", "0.792", "0.578"],
        ["0.500", "1.250", "0", "eval", "0.798", "0.559"],
    ]


def test_another_run_than_the_documents_has_no_published_table_beside_it(tiny):
    lines = tiny.text.splitlines()  # of one epoch, in batches of 8
    start = next(i for i, line in enumerate(lines) if line.startswith("accuracy"))
    assert lines[start].split() == ["accuracy", "loss", "epoch", "part"]
    rows = [line.split() for line in lines[start + 1 : start + 3]]
    for row, of_history in zip(rows, tiny.result["histories"][0], strict=True):
        assert row[:2] == [f"{of_history[name]:.3f}" for name in ("MulticlassAccuracy", "loss")]
    assert "published:" not in tiny.text
    assert "other settings" in tiny.result["claim"]


def test_published_table_needs_epochs_lr_and_batch_size_of_the_document(
    example, main, small_data, capsys, monkeypatch
):
    monkeypatch.setattr(example("fashion_mnist"), "draw", lambda *args: None)
    for args in (["--epochs", "7"], ["--lr", "0.1"], ["--bs", "30"]):
        main("--data", small_data, "--epochs", "6", *args)
        assert "published:" not in capsys.readouterr().out, args
    main("--data", small_data)
    assert "published:" in capsys.readouterr().out


def test_run_warns_of_nothing(tiny):
    assert "Warning" not in tiny.errors


@pytest.mark.slow
def test_runs_count_the_seeds_up(example, main, tmp_path, monkeypatch):
    monkeypatch.setattr(
        example("report"), "load", lambda *args, **kwargs: (shapes(bs=64, n_train=300, n_valid=300), "small")
    )
    monkeypatch.setattr(example("fashion_mnist"), "draw", lambda *args: None)
    results = []
    for args in (["--seed", "3", "--runs", "2"], ["--seed", "3"], ["--seed", "4"]):
        main("--epochs", "1", *args)
        results.append(json.loads((tmp_path / "out" / "fashion_mnist.json").read_text()))
    both, third, fourth = results
    a, b = (result["row"]["eval accuracy"]["mean"] for result in (third, fourth))
    assert a != b
    of_both = both["row"]["eval accuracy"]
    assert (both["n"], both["seeds"], of_both["each"]) == (2, [3, 4], [a, b])
    assert of_both["mean"] == pytest.approx((a + b) / 2)
    assert of_both["sd"] == pytest.approx(abs(a - b) / 2**0.5)  # of a sample of two
    losses = [[row["loss"] for row in history] for history in both["histories"]]
    assert losses == [[row["loss"] for row in result["histories"][0]] for result in (third, fourth)]


@pytest.mark.slow
def test_without_data_it_says_so_and_runs_on_the_built_in_set(main, cache, tmp_path, monkeypatch, capsys):
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    main("--epochs", "1")
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if "No Fashion-MNIST" in line]
    assert len(said) == 1
    assert "running on the built-in set of drawn shapes instead" in said[0]
    assert "built-in shapes, 1 epoch: eval accuracy" in out
    assert "published" not in out
    assert json.loads((tmp_path / "out" / "fashion_mnist.json").read_text())["data"] == "built-in shapes"


def test_missing_data_folder_is_one_line(main, tmp_path):
    with pytest.raises(SystemExit) as info:
        main("--data", str(tmp_path / "nowhere"))
    assert (
        str(info.value)
        == f"--data: root='{tmp_path / 'nowhere'}': there is no such folder; make it, or leave root out"
    )


def test_broken_data_folder_ends_with_its_message(main, tmp_path, write_idx):
    data = write_idx(tmp_path / "data")
    (data / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"^--data: .*training set.*broken"):
        main("--data", str(data))


@pytest.mark.parametrize("option", ["--epochs", "--runs", "--bs"])
def test_none_of_what_is_counted_is_refused(option, main, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(option, "0")
    assert f"argument {option}: 0: expected 1 or more" in capsys.readouterr().err


def tables_of(text):
    """Return each table in document 003: (train accuracy, train loss, eval accuracy, eval loss) an epoch."""
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    tables = []
    for row in (row for row in rows if len(row) == 5 and row[2].isdigit()):
        if row[2:4] == ["0", "train"]:
            tables.append([])
        if row[3] == "train":
            tables[-1].append(())
        tables[-1][-1] += (float(row[0]), float(row[1]))
    return tables


def test_published_figures_of_the_main_job_are_the_documents(example, document):
    assert list(example("fashion_mnist").PUBLISHED) == tables_of(document("003"))[-1]


def test_published_tables_are_the_documents(example, document):
    published = {name: list(table) for name, table in example("fashion_mnist_optimizers").PUBLISHED.items()}
    # What the document says, and what it did.
    assert published.pop("no momentum, lr .2, then .05") == published["MomentumCB(), lr .2, then .05"]
    for name in ("MomentumSGD, lr 1.25", "Adam, lr .01"):
        assert published.pop(f"{name.split(',')[0]}, BatchNorm as there") == published[name]
    for name in ("not shuffled", "BatchNorm and order as there"):
        assert published.pop(f"Adam, {name}") == published["Adam, lr .01"]
    with_momentum_cb, at_lower_lr, *rest = tables_of(document("003"))
    assert list(published.values()) == [with_momentum_cb + at_lower_lr, *rest]


# Document 003 -------------------------------------------------------------------------------------


@pytest.fixture
def small_data(tmp_path, write_idx):
    for name in ("MNIST", "FashionMNIST"):
        write_idx(tmp_path / "data", name, n_train=60, n_valid=20)
    return str(tmp_path / "data")


@pytest.mark.full
def test_document_003_is_run_table_for_table(example, call_main, tmp_path, small_data, capsys):
    call_main("fashion_mnist_optimizers", "--data", small_data, "--runs", "2")
    result = json.loads((tmp_path / "out" / "fashion_mnist_optimizers.json").read_text())
    published = example("fashion_mnist_optimizers").PUBLISHED
    assert list(result["histories"]) == list(result["rows"]) == list(published)
    for name, histories in result["histories"].items():
        order = [(epoch, phase) for epoch in range(len(published[name])) for phase in ("train", "eval")]
        assert [[(row["epoch"], row["train"]) for row in history] for history in histories] == [order] * 2
        rows = example("fashion_mnist_optimizers").epochs_of(histories)
        assert {len(row[value]["each"]) for row in rows for value in ("accuracy", "loss")} == {2}
    assert (result["n"], result["data"]) == (2, "Fashion-MNIST")
    pictures = [
        f"fashion_mnist_optimizers_{p}.png" for p in ("hists", "runs", "schedule", "smoothing", "stats")
    ]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == pictures
    text = capsys.readouterr().out
    assert "  MomentumSGD, lr 1.25 " in text
    assert "(0.866)" in text


def test_train_gives_the_learner_with_the_optimizer_asked_for(example):
    script = example("fashion_mnist_optimizers")
    dls = shapes(64, n_train=128, n_valid=64)
    learn = script.train(MLP(784, 10), 0.5, 1, opt_func=optim.MomentumSGD, dls=dls)
    assert type(learn.opt) is optim.MomentumSGD
    assert (learn.opt.param_groups[0]["lr"], learn.n_epochs) == (0.5, 1)


def test_train_1cycle_gives_recorder_and_statistics(example):
    script = example("fashion_mnist_optimizers")
    recorder, stats = script.train_1cycle(StridedCNN(), n_epochs=2, dls=shapes(64, n_train=640, n_valid=64))
    lr, mom = torch.tensor(recorder.recs["lr"]), torch.tensor(recorder.recs["mom"])
    assert len(lr) == 20
    assert lr.max().item() == pytest.approx(1e-2, rel=0.02)
    # "The learning rate schedule is negatively correlated to the momentum", says the document.
    assert torch.corrcoef(torch.stack([lr, mom]))[0, 1] < -0.99
    assert [len(of.means) for of in stats.stats.values()] == [2] * 4  # every tenth step


def test_detached_batch_norm_gives_the_same_numbers_and_other_gradients(example):
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(3), example("fashion_mnist_optimizers").DetachedBatchNorm(3)
    x = torch.randn(64, 3, 8, 8) * 2 + 1
    inputs = [x.clone().requires_grad_() for _ in norms]
    outputs = [norm(given) for norm, given in zip(norms, inputs, strict=True)]
    torch.testing.assert_close(
        *outputs, rtol=1e-3, atol=1e-3
    )  # of 4096 numbers, one has the unbiased variance
    for output in outputs:
        output.square().sum().backward()
    assert inputs[0].grad.abs().max() < 0.05  # batch statistics take all of this back
    std = x.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(inputs[1].grad, 2 * outputs[1].detach() / std, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var)
    assert torch.equal(*[norm.eval()(x) for norm in norms])


def test_smoothing_follows_the_document_s_average(example):
    figure = example("fashion_mnist_optimizers").plot_smoothing()
    ax = figure.axes[2]
    ys = ax.collections[0].get_offsets()[:, 1]
    line = ax.lines[0].get_ydata()
    assert ax.get_title() == "beta=0.9"
    assert line[:2] == pytest.approx([0.1 * ys[0], 0.09 * ys[0] + 0.1 * ys[1]])


# Document 002 -------------------------------------------------------------------------------------


@pytest.mark.full
def test_document_002_is_run_experiment_for_experiment(example, call_main, tmp_path, small_data, capsys):
    call_main("mnist_optimizers", "--data", small_data)
    result = json.loads((tmp_path / "out" / "mnist_optimizers.json").read_text())
    rows, report = result["rows"], example("report")
    assert list(rows) == list(example("mnist_optimizers").RUNS)
    assert all(set(row) == {*report.MEASURES, "time_s", "n_epochs"} for row in rows.values())
    epochs = {name: row["n_epochs"]["mean"] for name, row in rows.items()}
    assert epochs.pop("cycles, early stopping") <= 30
    assert list(epochs.values()) == [5, 5, 5, 5, 5, 15, 15, 15, 15, 5, 3, 3]
    pictures = [f"mnist_optimizers_{name}.png" for name in ("lrs", "runs", "schedules")]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == pictures
    by_hand, by_torch = rows["annealed by hand"], rows["annealed by MultiStepLR"]
    assert all(by_hand[measure] == by_torch[measure] for measure in report.MEASURES)
    assert "The lr by hand is that by MultiStepLR at every step." in capsys.readouterr().out


@pytest.fixture
def digits():
    return shapes(64, n_train=256, n_valid=64)


def test_two_groups_decay_differently(example, digits):
    learn, _ = example("mnist_optimizers").RUNS["SGD, two groups of weight decay"](digits)
    groups = learn.opt.param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 1e-3]
    assert sum(len(group["params"]) for group in groups) == len([*learn.model.parameters()])
    assert learn.history[-2]["loss"] < 0.5 * learn.history[0]["loss"]


def test_warm_up_is_the_document_s(example, digits):
    _, recorder = example("mnist_optimizers").RUNS["warm-up, then a line"](digits)
    n = len(digits.train)
    assert recorder.recs["lr"][:n] == pytest.approx([0.1 * u / n for u in range(1, n + 1)])
    assert recorder.recs["lr"][n:] == pytest.approx(
        [0.1 * (1 - i / (4 * n)) for i in range(1, 4 * n)] + [0.0]
    )


def test_batch_grows_where_the_lr_would_fall(example, digits):
    learn, _ = example("mnist_optimizers").RUNS["growing batch"](digits)
    assert learn.epoch_steps == [4] * 6 + [1] * 9


def test_early_stopping_sees_none_of_the_images_that_it_is_reported_on(example, digits):
    script = example("mnist_optimizers")
    dls = script.held_out(digits)
    parts = [loader.tensors[0] for loader in (dls.train, dls.valid)]
    assert [len(part) for part in parts] == [214, 42]  # of 256, each sixth
    assert torch.equal(parts[1], digits.train.tensors[0][5::6])
    assert sorted(torch.cat(parts).sum((1, 2, 3)).tolist()) == sorted(
        digits.train.tensors[0].sum((1, 2, 3)).tolist()
    )
    assert (dls.train.shuffle, dls.valid.shuffle) == (True, False)
    assert len(next(iter(dls.valid))[0]) == 42
    learn, _ = script.RUNS["cycles, early stopping"](digits)
    assert learn.dls.valid.n_samples == 42


def test_training_images_of_the_unshuffled_runs_come_in_the_order_of_the_file(example, digits):
    dls = example("fashion_mnist_optimizers").unshuffled(digits)
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in dls.train]), digits.train.tensors[0])
    assert digits.train.shuffle  # the other runs' data stay as they are


def test_sgd_alternate_is_torch_s_sgd_at_a_constant_lr(example, digits):
    histories = []
    for name in ("SGDAlternate", "torch's SGD, no decay"):
        set_seed(0)
        learn, _ = example("mnist_optimizers").RUNS[name](digits)
        histories.append([row["loss"] for row in learn.history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-3)  # float32, 12 steps


# What the scripts share ---------------------------------------------------------------------------


def test_mean_and_sd_are_those_of_a_sample(example):
    value = example("report").mean_sd([1.0, 2.0, 4.5])
    assert value == {"mean": 2.5, "sd": pytest.approx(3.25**0.5), "each": [1.0, 2.0, 4.5]}
    assert example("report").said(value, 2) == "2.50 ± 1.80"
    assert example("report").said(example("report").mean_sd([2.0])) == "2.0000"


def test_result_says_what_each_run_was_made_by_where_they_differ(example):
    report = example("report")
    runs = [{"threads": 1, "torch": "2", "date": "b"}, {"threads": 2, "torch": "2", "date": "a"}]
    assert report.merged(runs) == {"threads": [1, 2], "torch": "2", "date": "b"}
    assert report.merged([{"threads": 1}, {}]) == {"threads": [1, "unknown"], "date": "unknown"}


def test_result_as_text_is_the_same_json_with_rows_on_a_line(example):
    result = {"rows": [{"a": 1.5, "b": "x  y"}, {"a": None}], "n": [1, 2], "s": "[ z {", "t": {"u": "]"}}
    text = example("report").as_text(result)
    assert json.loads(text) == result
    assert text.splitlines()[2] == '  { "a": 1.5, "b": "x  y" },'


def test_measures_are_those_of_the_last_epoch(example):
    row = {"MulticlassAccuracy": 0.5, "loss": 2.0}
    history = [
        {**row, "train": "train"},
        {**row, "train": "eval"},
        {"MulticlassAccuracy": 0.75, "loss": 1.0, "train": "train"},
        {"MulticlassAccuracy": 0.25, "loss": 3.0, "train": "iterate"},
        {"MulticlassAccuracy": 0.5, "loss": 1.5, "train": "eval"},
    ]
    found = example("report").measures_of([history, history])
    assert {name: of["each"] for name, of in found.items()} == {
        "eval accuracy": [0.5, 0.5],
        "eval loss": [1.5, 1.5],
        "train accuracy": [0.75, 0.75],
        "train loss": [1.0, 1.0],
    }


def test_thinned_curve_is_drawn_where_it_was(example):
    report = example("report")
    curve = report.thinned(list(range(10)), n=3)
    assert curve == {"every": 3, "values": [0, 3, 6, 9]}
    figure = matplotlib.figure.Figure()
    ax = figure.subplots()
    report.draw_thinned(ax, curve, unit=2.0)
    assert ax.lines[0].get_xdata().tolist() == [0.0, 1.5, 3.0, 4.5]


def test_bar_is_the_interval_of_the_mean(example):
    figure = matplotlib.figure.Figure()
    ax = figure.subplots()
    example("report").draw_interval(ax, [[1.0], [2.0], [3.0]], "C0", "a")
    (low, high) = ax.collections[0].get_segments()[0][:, 1]
    # Mean 2, sd 1; 4.3027 is Student's t for 2 degrees of freedom.
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
