import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import minilearn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def commands():
    return [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]


@pytest.mark.parametrize(
    "block",
    BLOCKS,
    ids=["one-liner", "optimizer", "schedules", "averages", "processes", "checkpoints", "logs", "callback"],
)
def test_code_in_readme_runs_as_it_stands(block, monkeypatch, capsys, tmp_path, write_cifar):
    monkeypatch.chdir(tmp_path)  # where the one with checkpoints writes
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = partial(minilearn.cifar10, root=write_cifar(tmp_path, n_train=40))
    monkeypatch.setattr(minilearn, "cifar10", lambda bs: images(bs=16))
    monkeypatch.setattr(minilearn, "fashion_mnist", lambda: minilearn.shapes(64, n_train=256, n_valid=64))
    exec(block, {})
    assert "eval: MulticlassAccuracy" in capsys.readouterr().out


def test_readme_has_two_commands_of_one_line():
    assert [line.split("&&")[-1].strip() for line in commands()] == [
        ".venv/bin/python examples/fashion_mnist.py",
        ".venv/bin/python -m pytest",
    ]


def test_ci_runs_the_test_command_of_readme():
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"test_command=\$\((grep .*)\)", script)
    assert found
    said = subprocess.run(["bash", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == commands()[1]
    assert 'bash -c "$test_command"' in script


def test_paths_named_in_readme_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_figures_of_readme_are_those_of_the_committed_result():
    import json

    result = json.loads((ROOT / "examples/results/fashion_mnist.json").read_text())
    accuracy, n = result["row"]["eval accuracy"], result["n"]
    mean = accuracy["mean"]
    assert f"Over {n} seeds it reaches {mean:.4f} ± {accuracy['sd']:.4f}" in README
    assert result["command"] in README
    assert n == 5
    assert mean >= 0.902


def test_version_is_the_package_s():
    said = subprocess.run(
        [sys.executable, "-c", "import importlib.metadata as m; print(m.version('minilearn'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == minilearn.__version__
