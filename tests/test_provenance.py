import json
import shlex
import subprocess
import sys

import pytest
import torch

import minilearn
from minilearn import provenance as made
from minilearn.provenance import UNKNOWN, provenance


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Stand for a script in a folder of its own, which is no checkout."""
    path = tmp_path / "a b.py"
    path.write_text("")
    monkeypatch.setattr(sys, "argv", [str(path), "--only", "one cycle, short"])
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return path


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def test_command_can_be_pasted(script):
    assert shlex.split(provenance()["command"]) == ["python", *sys.argv]


def test_versions_threads_and_date_are_those_of_this_process(script):
    found = provenance()
    assert (found["torch"], found["minilearn"]) == (torch.__version__, minilearn.__version__)
    assert (found["threads"], found["processes"]) == (torch.get_num_threads(), 1)
    assert found["date"].endswith("+00:00")
    json.dumps(found)


def test_processes_are_those_of_torchrun(script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert provenance()["processes"] == 3


def test_device_is_a_name_and_not_an_architecture(script):
    if not torch.cuda.is_available():
        assert made.device_name().endswith(" cores")
    assert made.device_name().split(",")[0] not in ("", "x86_64", "aarch64")


def test_cpu_without_cpuinfo_has_the_platforms_name(monkeypatch):
    monkeypatch.setattr(made.Path, "is_file", lambda path: False)
    monkeypatch.setattr(made.platform, "processor", lambda: "a processor")
    assert made._cpu_name() == "a processor"


def test_commit_is_that_of_the_scripts_checkout(script):
    git(script.parent, "init", "-q")
    git(script.parent, "add", ".")
    git(script.parent, "commit", "-q", "-m", "first")
    first = provenance()
    assert len(first["commit"]) == 40
    assert first["uncommitted"] == []
    script.write_text("1")
    (script.parent / "new.py").write_text("")
    (script.parent / "notes.md").write_text("")  # no code
    second = provenance()
    assert second["commit"] == first["commit"]
    assert len(second["uncommitted"]) == 2
    assert "new.py" in second["uncommitted"]


def test_outside_of_a_checkout_the_commit_is_unknown(script):
    found = provenance()
    assert (found["commit"], found["uncommitted"]) == (UNKNOWN, UNKNOWN)


def test_without_git_the_commit_is_unknown(script, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["commit"] == UNKNOWN
