import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minilearn import optim, set_seed

CPU = torch.device("cpu")
FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name):
    sys.path.insert(0, str(FOLDER))  # as `python benchmarks/...` has it
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def overhead():
    return load("overhead")


@pytest.fixture
def optimizers():
    return load("optimizers")


@pytest.fixture(scope="module")
def accuracy(overhead):
    generator = torch.Generator().manual_seed(0)
    ys = torch.randint(10, (40, 64), generator=generator)
    xs = torch.randn(10, 784, generator=generator)[ys] + 7 * torch.randn(40, 64, 784, generator=generator)
    batches = list(zip(xs, ys, strict=True))

    def run(name):
        set_seed(0)
        return getattr(overhead, name)(batches, CPU)

    return run


def test_task_can_be_learned_but_not_at_once(accuracy):
    assert 0.3 < accuracy("same_work") < 0.98


def test_minilearn_does_the_work_of_the_same_loop(accuracy):
    assert accuracy("minilearn") == accuracy("same_work")


def test_minilearn_is_as_accurate_as_the_usual_loop(accuracy):
    # The usual loop plans its schedule for one step more, which changes the lr of each step a little.
    assert accuracy("minilearn") == pytest.approx(accuracy("usual"), abs=0.02)


@pytest.mark.parametrize("loop", ["same_work", "usual", "minilearn"])
def test_loop_is_repeatable(loop, accuracy):
    assert accuracy(loop) == accuracy(loop)


def test_measure_prints_each_loop_and_both_ratios(overhead, capsys):
    overhead.measure(CPU, n_steps=3, rounds=2)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("CPU, ")
    assert header.endswith("2 rounds of 3 steps")
    assert [row.split(" us a step")[0].split()[0] for row in rows[:3]] == ["same", "usual", "minilearn"]
    assert [" ".join(row.split()[:3]) for row in rows[3:]] == ["minilearn / same", "minilearn / usual"]


# Optimizers ---------------------------------------------------------------------------------------


def test_every_optimizer_has_a_counterpart(optimizers):
    assert optimizers.PAIRS.keys() == optim.OPTIMIZERS.keys()
    for name, makers in optimizers.PAIRS.items():
        ours, theirs = (make([nn.Parameter(torch.zeros(2))], lr=1e-3, foreach=True) for make in makers)
        assert type(ours) is optim.OPTIMIZERS[name]
        assert type(theirs).__module__.startswith("torch.optim.")


def test_measure_prints_a_row_for_each_optimizer_and_model(optimizers, monkeypatch, capsys):
    monkeypatch.setattr(
        optimizers, "MODELS", {"one layer": lambda: nn.Linear(3, 2), "two": lambda: nn.Bilinear(2, 2, 2)}
    )
    optimizers.measure(CPU, n_steps=2, rounds=3)
    header, columns, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("CPU, 1 threads, torch ")
    assert header.endswith(", 3 rounds of 2 steps, foreach")
    assert columns.split() == ["optimizer", "parameters", "tensors", "ours", "us", "torch", "us", "ratio"]
    assert [row[:40].split() for row in rows] == [
        [name, *model] for name in optim.OPTIMIZERS for model in (["one", "layer", "2"], ["two", "2"])
    ]
    for row in rows:
        ours, theirs, ratio = (float(number) for number in row[40:].split())
        assert ours > 0
        assert theirs > 0
        assert ratio > 0


def test_step_time_is_of_one_step_and_takes_them_all(optimizers, monkeypatch):
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(optimizers.time, "perf_counter", lambda: next(clock))
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    opt = optim.SGD([p], lr=0.125)
    assert optimizers.step_time_us(opt, 4, CPU) == 0.5 / 4 * 1e6
    assert p.item() == 0.5  # 1 - 4 * 0.125


def test_ratio_is_the_median_over_the_rounds_that_count(optimizers, monkeypatch, capsys):
    # Ours and theirs change places each round; the first round, (9, 9), warms up.
    times = iter([9.0, 9.0, 1.0, 2.0, 4.0, 12.0, 1.0, 4.0])
    monkeypatch.setattr(optimizers, "PAIRS", {"SGD": optimizers.PAIRS["SGD"]})
    monkeypatch.setattr(optimizers, "MODELS", {"one": lambda: nn.Linear(3, 2)})
    monkeypatch.setattr(optimizers, "step_time_us", lambda opt, n_steps, device: next(times))
    optimizers.measure(CPU, n_steps=1, rounds=3)
    row = capsys.readouterr().out.splitlines()[-1]
    # ours 1, 12, 1; theirs 2, 4, 4; ratios 0.5, 3, 0.25
    assert row.split() == ["SGD", "one", "2", "1.0", "4.0", "0.50"]


def test_killed_runs_go_on_bit_for_bit():
    command = [sys.executable, FOLDER / "kill.py", "--kills", "2"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    lines = dict(line.rsplit(maxsplit=1) for line in said.stdout.splitlines()[1:])
    assert said.stdout.startswith("2 kills in ")
    assert lines["torn files"] == lines["runs with a difference"] == "0"


def test_checkpoint_prints_its_share_and_size(monkeypatch, capsys):
    module = load("checkpoint")
    monkeypatch.setattr(module, "WIDTH", 50)
    module.measure(CPU, n_steps=2, rounds=1)
    said = capsys.readouterr().out
    assert "at one every 2 steps" in said
    assert float(re.search(r"\((\d\.\d+) times its tensors\)", said)[1]) > 1


# Many processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distributed():
    return load("distributed")


def test_an_exchange_is_the_nodes_and_then_the_networks(distributed):
    # 8 in a node: 7/8 of the bytes over NVLink. 16: and half of an eighth over the network.
    assert distributed.exchange_s(360e9, 8) == 7 / 8
    assert distributed.exchange_s(360e9, 16) == pytest.approx(7 / 8 + 360 / 8 / 2 / 40)
    assert distributed.exchange_s(1e9, 1) == 0


def test_plan_says_what_limits(distributed):
    model = distributed.Model("small", 1e9, 400e9, False, 64)  # 1 ms a sample
    rows = {row[0]: row for row in distributed.plan(model)}
    # 8 GPUs: 8 samples each; the all-reduce of 4 GB, twice, takes 19.4 ms.
    assert rows["8"][1:6] == ("DDP", "8", "8.0", "8.00", "19.4")
    assert rows["8"][6] == "16.0"
    assert rows["8"][-1] == "the exchange of gradients"
    assert rows["1024"][-1] == "a batch of 64: less than a sample for each"
    large = distributed.Model("large", 10e9, 400e12, False, 4096)
    assert distributed.plan(large)[0][1:7] == ("shard=...", "512", "512000.0", "60.00", "194.4", "20.0")


def test_page_has_the_plan_as_it_is_computed(distributed):
    assert distributed.plans() in distributed.PAGE.read_text()


def test_two_processes_are_measured(distributed):
    said = distributed.measure(rounds=1, steps=1, bs=8)
    assert re.search(r"gain +\d+\.\d\d", said)
    assert re.search(r"all-reduce +\d+\.\d\d ms for 1\.0\d MB of gradients", said)
