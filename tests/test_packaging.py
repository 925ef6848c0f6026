"""What pyproject.toml says of the project, and the lowest versions that CI makes of it."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lowest():
    spec = importlib.util.spec_from_file_location("lowest", REPO / ".ci" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lowest


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_each_dependency_has_a_lower_bound(lowest, extra):
    assert set(lowest(PROJECT, [])) <= set(lowest(PROJECT, [extra]))


def test_of_two_bounds_the_higher_one_is_the_lowest_version(lowest):
    project = {
        "name": "own",
        "dependencies": ["a>=1.9", "b >= 2"],
        "optional-dependencies": {"x": ["a>=1.10", "c[z]>=3"], "all": ["own[x]", "b>=1"], "none": ["d"]},
    }
    assert lowest(project, []) == {"a": "1.9", "b": "2"}
    assert lowest(project, ["all"]) == {"a": "1.10", "b": "2", "c": "3"}
    with pytest.raises(ValueError, match=r"'d'.*lower bound"):
        lowest(project, ["none"])


@pytest.mark.parametrize("line", ["a<2", "a>=1,<2", "a==1", "a>=1; python_version<'3'"])
def test_what_is_more_than_a_lower_bound_is_refused(lowest, line):
    with pytest.raises(ValueError, match="NAME>=VERSION"):
        lowest({"name": "own", "dependencies": [line], "optional-dependencies": {}}, [])


def test_pythons_are_those_that_ci_tries():
    named = {f"3.{minor}" for minor in re.findall(r"Python :: 3\.(\d+)", " ".join(PROJECT["classifiers"]))}
    others = re.search(r"for version in ([\d. ]+);", (REPO / ".ci" / "full").read_text())[1].split()
    assert named == {PROJECT["requires-python"].removeprefix(">="), *others}


def test_extras_are_those_that_are_named():
    named = {"tensorboard", "wandb", "mlflow", "docs", "examples", "tasks", "test", "dev", "bench"}
    assert named <= set(PROJECT["optional-dependencies"])
