import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minilearn

PACKAGE = Path(minilearn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """Return a file's name inside the package, such as "callbacks.device"; "" for the package's own."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports_of(path, source=None):
    """Return what a file imports of minilearn, at any depth, as names inside the package."""
    package = ["minilearn", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(source or path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            # `from . import device` imports a module, `from .device import DeviceCB` a name of one.
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("minilearn.") for name in found if name.split(".")[0] == "minilearn"}


def is_in(name, module):
    return name == module or name.startswith(f"{module}.")


def under(*names):
    return [path for path in FILES if any(is_in(name_of(path), name) for name in names)]


def test_imports_are_found_in_every_form():
    source = """
from ..events import with_cbs
from . import metrics
from .. import learner
import minilearn.plot
from minilearn.optim.groups import set_lr
import torch
def late():
    from ..learner import Learner
"""
    assert imports_of(PACKAGE / "callbacks" / "device.py", source) == {
        *("events.with_cbs", "callbacks.metrics", "learner", "plot", "optim.groups.set_lr"),
        "learner.Learner",
    }


def test_the_rules_meet_files():
    assert {name_of(path) for path in FILES} >= {"", "events", "callback", "learner", "callbacks.device"}
    assert len(under("callbacks")) > 5


def test_events_imports_nothing_of_minilearn():
    assert imports_of(PACKAGE / "events.py") == set()


def test_callback_imports_only_events():
    assert [name for name in imports_of(PACKAGE / "callback.py") if not is_in(name, "events")] == []


@pytest.mark.parametrize("path", under("callbacks"), ids=name_of)
def test_callbacks_never_import_the_learner(path):
    top = {"Learner"}  # through the package itself
    assert [name for name in imports_of(path) if is_in(name, "learner") or name in top] == []


@pytest.mark.parametrize("path", under("optim", "schedules", "models"), ids=name_of)
def test_optim_schedules_and_models_import_nothing_else_of_minilearn(path):
    own = name_of(path).split(".")[0]
    assert [name for name in imports_of(path) if not is_in(name, own)] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_star_imports(path):
    tree = ast.walk(ast.parse(path.read_text()))
    assert [
        node.lineno for node in tree if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ] == []


def test_import_loads_nothing_heavy_but_torch():
    code = """
import torch, sys
before = set(sys.modules)
import minilearn
new = {name.split(".")[0] for name in sys.modules.keys() - before}
print(*sorted(new & {"torchvision", "matplotlib", "rich", "torcheval", "IPython", "pandas"}))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []
