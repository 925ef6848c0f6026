import re
import subprocess
import sys
from pathlib import Path

import pytest

import minilearn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


SITE = "https://github.com/minilearn/minilearn/"
RAW = "https://raw.githubusercontent.com/minilearn/minilearn/main/"
CORE = ("events.py", "callback.py", "host.py", "learner.py")


def commands():
    return [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]


@pytest.mark.slow
def test_code_in_readme_runs_as_it_stands_block_after_block(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minilearn, "fashion_mnist", lambda: minilearn.shapes(64, n_train=256, n_valid=64))
    names = {name: getattr(minilearn, name) for name in minilearn.__all__}  # "all names are in minilearn"
    exec(BLOCKS[0], names)
    assert "epoch 5 (6/6)  train: MulticlassAccuracy" in capsys.readouterr().out
    assert len(BLOCKS) == 7
    for block in BLOCKS[1:]:
        if said := re.search(r"^# (\w+): (.*?) \.\.\.$", block, re.MULTILINE):
            error = {"ValueError": ValueError}[said[1]]
            with pytest.raises(error, match=f"^{re.escape(said[2])}"):
                exec(block, names)
        else:
            exec(block, names)
    said = capsys.readouterr().out
    assert "the same bit for bit" in said
    assert "(the owner)" in said


def test_readme_is_for_sixty_seconds():
    assert len(README.splitlines()) <= 150


def test_the_core_is_as_short_as_readme_says():
    lines = sum(len((ROOT / "minilearn" / name).read_text().splitlines()) for name in CORE)
    claims = [README, *((ROOT / "docs" / name).read_text() for name in ("explanation/where-things-are.md",))]
    for text in claims:
        assert all(f"`{name}`" in text for name in CORE)
        (said,) = re.findall(r"fewer than ([\d,]+) lines", text)
        assert lines < int(said.replace(",", "")) <= lines + 300


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


def test_links_of_readme_work_anywhere_and_lead_to_what_exists():
    """They are absolute, because PyPI shows README too."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    for link in links:
        found = re.fullmatch(f"(?:{SITE}(?:blob|tree)/main/|{RAW})([^#]+)(?:#(.*))?", link)
        assert found, link
        path = ROOT / found[1]
        assert path.exists(), link
        assert path.is_dir() == ("/tree/" in link), link
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if found[2] else []
        assert not found[2] or found[2] in [title.lower().replace(" ", "-") for title in headings], link


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
