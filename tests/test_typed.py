"""What a type checker says of users' scripts: tests/typed/wrong.py and its correct twin, right.py."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TYPED = ROOT / "tests" / "typed"


@pytest.mark.slow
def test_mypy_finds_each_mistake_of_a_user_and_nothing_else():
    pytest.importorskip("mypy", reason="needs mypy: the extra dev")
    # A user's settings: strict, and no more. The cache makes the second run one of seconds.
    options = ["--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'typed'}"]
    output = ["--no-error-summary", "--show-error-codes", "--hide-error-context", "--no-pretty"]
    said = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *output, "right.py", "wrong.py"],
        cwd=TYPED,
        env={**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert said.stderr == ""
    errors = re.findall(r"^(\S+?):(\d+): error: .*\[([\w-]+)\]$", said.stdout, re.MULTILINE)
    lines = (TYPED / "wrong.py").read_text().splitlines()
    expected = [
        ("wrong.py", str(i), line.partition("# error: ")[2])
        for i, line in enumerate(lines, 1)
        if "# error: " in line
    ]
    assert len(expected) == 10
    assert sorted(errors) == sorted(expected), said.stdout


@pytest.mark.slow
def test_correct_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(TYPED / "right.py"), run_name="__main__")
    assert "epoch 1: loss" in capsys.readouterr().out
    assert (tmp_path / "lr.png").stat().st_size > 0
