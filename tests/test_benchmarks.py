import importlib.util
from pathlib import Path

import pytest
import torch

from minilearn import set_seed

CPU = torch.device("cpu")
PATH = Path(__file__).parents[1] / "benchmarks" / "overhead.py"


@pytest.fixture(scope="module")
def overhead():
    spec = importlib.util.spec_from_file_location("overhead", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
