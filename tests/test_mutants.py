import ast
import json
from difflib import SequenceMatcher
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_benchmarks import load

ROOT = Path(__file__).parents[1]
SOURCE = '''
"""A docstring, 1."""
import torch
if TYPE_CHECKING:
    from a import b

def f(x: Literal[1], n: int = 2) -> Tensor[3]:
    """Another, 1 < 2."""
    if x < 3 and not n:
        raise ValueError(f"{x + 1}: expected {4 - 1}")
    warnings.warn("1" + "2")
    return n + 1
'''
EDITS = [
    ("another constant", "def f(x: Literal[1], n: int = 3) -> Tensor[3]:"),
    ("a condition negated", "    if (not (x < 3 and (not n))):"),
    ("and / or", "    if (x < 3 or not n):"),
    ("another comparison", "    if x <= 3 and not n:"),
    ("another constant", "    if x < 4 and not n:"),
    ("no not", "    if x < 3 and (n):"),
    ("drop a statement", "        pass"),
    ("return None", "    return None"),
    ("another operator", "    return (n - 1)"),
    ("another constant", "    return n + 2"),
]


@pytest.fixture(scope="module")
def mutants():
    load("edits")
    return load("mutants")


def changed_lines(before, after):
    return [
        block for block in SequenceMatcher(None, before, after, False).get_opcodes() if block[0] != "equal"
    ]


def test_edits_leave_docstrings_annotations_imports_and_messages(mutants):
    before = SOURCE.splitlines()
    found = []
    for edit in mutants.edits_of(SOURCE):
        after = edit.apply(SOURCE).splitlines()
        ((_, _, _, first, last),) = changed_lines(before, after)
        found.append((edit.kind, "\n".join(after[first:last])))
    assert found == EDITS


def test_the_core_has_files_and_folders(mutants, tmp_path):
    for name in ("learner.py", "checkpoints/codec.py", "callbacks/device.py"):
        path = tmp_path / "minilearn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    found = [path.relative_to(tmp_path).as_posix() for path in mutants.core_files(tmp_path)]
    assert found == ["minilearn/checkpoints/codec.py", "minilearn/learner.py"]


@pytest.mark.full
def test_drawing_is_a_function_of_the_seed_and_more_begin_with_the_same(mutants):
    ten = mutants.draw(ROOT, 10, seed=0)
    assert mutants.draw(ROOT, 15, seed=0)[:10] == ten
    assert mutants.draw(ROOT, 10, seed=1) != ten
    assert len({mutant.key for mutant in ten}) == 10


@pytest.mark.full
def test_each_mutant_parses_and_differs_in_one_place(mutants):
    for mutant in mutants.draw(ROOT, 200, seed=2):
        before = (ROOT / mutant.path).read_text()
        assert ast.dump(ast.parse(mutant.source)) != ast.dump(ast.parse(before))
        ((_, first, last, _, _),) = changed_lines(before.splitlines(), mutant.source.splitlines())
        assert (first + 1, last) == (mutant.edit.line, mutant.edit.end_line)


def test_tests_named_for_the_file_come_first_and_then_the_quick_ones(mutants):
    seconds = {"tests/test_a.py": 1, "tests/test_b.py": 3, "tests/data/test_loaders.py": 9, "tests/c.py": 0}
    mutant = SimpleNamespace(path="minilearn/data/loaders.py")
    assert mutants.in_order(mutant, seconds) == [
        *("tests/data/test_loaders.py", "tests/c.py", "tests/test_a.py", "tests/test_b.py")
    ]


def test_what_has_no_file_of_tests_of_its_name_has_others(mutants):
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set().union(*mutants.TESTED_IN.values()) <= files


def repo_of(folder):
    """Write a package of one line, f, whose test looks at f(1) and hangs where f(1) is None."""
    files = {
        "minilearn/__init__.py": "",
        "minilearn/learner.py": "def f(x):\n    return x * 2\n",
        "tests/test_learner.py": "import time\nfrom minilearn.learner import f\n\n"
        "def test_f():\n    if f(0) is None:\n        time.sleep(60)\n    assert f(1) != 3\n\n"
        "def test_that_always_fails():\n    assert False\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.full
@pytest.mark.slow
def test_caught_hanging_and_surviving_mutants_are_told_apart_and_the_log_is_taken_up(
    mutants, tmp_path, monkeypatch
):
    repo, log = repo_of(tmp_path / "repo"), tmp_path / "log.jsonl"
    monkeypatch.setattr(mutants, "copy_repo", lambda repo, to: mutants.shutil.copytree(repo, to))
    monkeypatch.setattr(mutants, "STALL_S", 3)
    args = SimpleNamespace(repo=repo, log=log, n=9, seed=0, max_s=60)
    results = mutants.run(args)
    assert {result["diff"].splitlines()[-1]: result["outcome"] for result in results} == {
        "+    return None": "hangs",
        "+    return (x + 2)": "caught",
        "+    return x * 3": "caught",
    }
    unchanged, *logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert unchanged["failing"] == ["tests/test_learner.py::test_that_always_fails"]
    assert logged == results
    monkeypatch.setattr(mutants, "measure", None)  # nothing is measured again
    assert mutants.run(args) == results
    said = mutants.said([*results, {"outcome": "survived", "diff": "the diff"}])
    assert said == "4 mutants: 3 caught (1 by hanging), 1 survived\n\nthe diff"
    (repo / "minilearn" / "learner.py").write_text("")
    with pytest.raises(SystemExit, match=r"log\.jsonl.*repo.*--log"):
        mutants.run(args)


@pytest.mark.full
@pytest.mark.slow
def test_file_that_cannot_be_collected_is_told_before_the_first_mutant(mutants, tmp_path, monkeypatch):
    repo = repo_of(tmp_path / "repo")
    (repo / "tests" / "test_other.py").write_text("import no_such_module\n")
    monkeypatch.setattr(mutants, "copy_repo", lambda repo, to: mutants.shutil.copytree(repo, to))
    args = SimpleNamespace(repo=repo, log=tmp_path / "log.jsonl", n=1, seed=0, max_s=60)
    with pytest.raises(SystemExit, match="test_other cannot be collected without any change"):
        mutants.run(args)
