import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from toolbox import at, make_learner

import minilearn

PACKAGE = Path(minilearn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """Return a file's name inside the package, such as "callbacks.device"; "" for the package's own."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def is_for_types(node):
    """Whether it is `if TYPE_CHECKING:`, whose imports a type checker alone makes."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(path, source=None):
    """Return what a file imports of minilearn, at any depth but for types, as names inside the package."""
    package = ["minilearn", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    tree = ast.parse(source or path.read_text())
    for_types = {id(node) for block in ast.walk(tree) if is_for_types(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
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
from ..host import with_cbs
from . import metrics
from .. import learner
import minilearn.plot
from minilearn.optim.groups import set_lr
import torch
if TYPE_CHECKING:
    from ..callback import Callback
def late():
    from ..learner import Learner
"""
    assert imports_of(PACKAGE / "callbacks" / "device.py", source) == {
        *("host.with_cbs", "callbacks.metrics", "learner", "plot", "optim.groups.set_lr"),
        "learner.Learner",
    }


def test_the_rules_meet_files():
    assert {name_of(path) for path in FILES} >= {"", "events", "callback", "learner", "callbacks.device"}
    assert len(under("callbacks")) > 5


def test_events_imports_nothing_of_minilearn():
    assert imports_of(PACKAGE / "events.py") == set()


def test_callback_imports_only_events_and_the_checks_of_arguments():
    allowed = ("events", "arguments")
    imported = imports_of(PACKAGE / "callback.py")
    assert [name for name in imported if not any(is_in(name, module) for module in allowed)] == []


@pytest.mark.parametrize("path", under("callbacks"), ids=name_of)
def test_callbacks_never_import_the_learner(path):
    top = {"Learner"}  # through the package itself
    assert [name for name in imports_of(path) if is_in(name, "learner") or name in top] == []


@pytest.mark.parametrize("path", under("optim", "schedules", "models"), ids=name_of)
def test_optim_schedules_and_models_import_only_the_checks_of_arguments(path):
    own = name_of(path).split(".")[0]
    assert [name for name in imports_of(path) if not (is_in(name, own) or is_in(name, "arguments"))] == []


def test_arguments_imports_nothing_of_minilearn():
    assert imports_of(PACKAGE / "arguments.py") == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_star_imports(path):
    tree = ast.walk(ast.parse(path.read_text()))
    assert [
        node.lineno for node in tree if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ] == []


@pytest.mark.slow
def test_import_loads_nothing_heavy_but_torch():
    code = """
import torch, sys
before = set(sys.modules)
import minilearn
new = sys.modules.keys() - before
heavy = {"torchvision", "matplotlib", "rich", "torcheval", "IPython", "pandas", "wandb", "mlflow"}
heavy |= {"torch._dynamo", "sympy"}  # which torch loads for its compiler, and with the first optimizer
print(*sorted(new & heavy))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


# Owners -------------------------------------------------------------------------------------------

OBJECTS = {"mean", "modes", "plan", "processes", "run", "stop", "_made"}  # of the learner


def stored_in(path):
    """Return what a file assigns of a learner's objects: "learn.plan", "learn.stop.signal"."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    names = [ast.unparse(node) for node in nodes if isinstance(node.ctx, ast.Store)]
    return {
        name for name in names if len(parts := name.split(".")) > 1 and parts[-2:][0] in {"learn", *OBJECTS}
    }


@pytest.mark.slow
def test_objects_of_the_learner_are_changed_by_their_own_methods():
    stored = {name_of(path): stored_in(path) for path in FILES}
    inner = {
        file: {name for name in names if name.split(".")[-2] in OBJECTS} for file, names in stored.items()
    }
    assert {file: names for file, names in inner.items() if names} == {}
    assert not [file for file, names in stored.items() if names & {f"learn.{name}" for name in OBJECTS}]


# What hooks may set, as their own step or in place of what is there.
OPEN = {"batch", "xb", "yb", "preds", "loss", "loss_count", "dl", "model", "is_accumulating"}


def fields_set_in(path):
    """Return the learner's fields that a file assigns: learn.epoch, and self.epoch in its own files."""
    own = {"learn", "self"} if name_of(path) in ("learner", "fields", "host") else {"learn"}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in own:
                found.add(node.attr)
    return found


@pytest.mark.slow
def test_each_field_of_the_learner_is_assigned_in_one_file():
    writers = {}
    for path in FILES:
        for field in fields_set_in(path) - OPEN:
            writers.setdefault(field, set()).add(name_of(path))
    assert {field: files for field, files in writers.items() if len(files) > 1} == {}
    assert set().union(*writers.values()) <= {"learner", "fields", "host"}


def test_the_learner_has_few_fields_of_its_own():
    tree = ast.parse((PACKAGE / "learner.py").read_text())
    (init,) = [node for node in ast.walk(tree) if getattr(node, "name", "") == "__init__"]
    stored = [node for node in ast.walk(init) if isinstance(node, ast.Attribute)]
    assert len({node.attr for node in stored if isinstance(node.ctx, ast.Store)}) <= 27  # 39 in version 0.1


def test_the_loops_over_epochs_and_batches_are_in_the_learner():
    tree = ast.parse((PACKAGE / "learner.py").read_text())
    loops = [ast.unparse(node.target) for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert {"self.epoch", "(self.batch_idx, self.batch)"} <= set(loops)


def test_the_learner_imports_no_checkpoints_signals_or_averaging():
    imported = imports_of(PACKAGE / "learner.py")
    unwanted = ("checkpoints", "averaging", "interrupts")
    assert [name for name in imported if any(word in name for word in unwanted)] == []


def test_cuda_is_named_only_where_another_accelerator_will_not_do():
    named = {name_of(path) for path in FILES if "torch.cuda." in path.read_text()}
    # Graphs and streams; which GPU is a process's, for NCCL; random states; the name of a GPU.
    assert named == {"callbacks.graph", "callbacks.distributed", "seeding", "provenance"}


def test_hooks_know_the_type_of_the_learner():
    untyped = [name_of(path) for path in FILES if re.search(r"[(,]\s*learn: Any", path.read_text())]
    assert untyped == []


@pytest.mark.slow
def test_files_import_each_other_in_one_direction():
    names = {name_of(path) for path in FILES} - {""}

    def file_of(name):
        return name if name in names else name.rpartition(".")[0]

    graph = {name_of(path): {file_of(name) for name in imports_of(path)} & names for path in FILES}
    assert list(TopologicalSorter({name: of - {name} for name, of in graph.items()}).static_order())


@pytest.mark.slow
def test_folders_import_each_other_in_one_direction():
    graph = {}
    for path in FILES:
        here = name_of(path).split(".")[0]
        there = {name.split(".")[0] for name in imports_of(path)} & {name_of(p).split(".")[0] for p in FILES}
        graph.setdefault(here, set()).update(there - {here, ""})
    graph.pop("")  # the package's own file has all names
    assert list(TopologicalSorter(graph).static_order())


def test_a_batch_crosses_few_files():
    root, files, n_batches = str(PACKAGE), [], 0

    def note(frame, event, arg):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            files.append(frame.f_code.co_filename)

    def mark(learn):
        nonlocal n_batches
        n_batches += 1
        sys.setprofile(note if n_batches == 3 else None)

    cbs = [
        minilearn.MetricsCB(),
        minilearn.ProgressCB(),
        minilearn.DeviceCB("cpu"),
        at("before_batch", mark, -(10**6)),
    ]
    learn = make_learner(5, cbs=cbs)
    try:
        learn.fit(1, valid=False)
    finally:
        sys.setprofile(None)
    found = {name_of(Path(file)) for file in files}
    assert n_batches > 3
    assert {"learner", "host", "fitting.mean", "callbacks.metrics"} <= found
    assert len(found) <= 9  # 10 in version 0.1
