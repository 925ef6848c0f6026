import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NBS = sorted((Path(__file__).parents[1] / "nbs").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NBS, ids=lambda path: path.stem)


def test_there_is_a_notebook_for_each_document():
    assert [path.stem[:4] for path in NBS] == ["000_", "001_", "002_", "003_", "004_"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_idx, write_cifar, write_imagenet):
    """Return a folder with tiny data for all notebooks."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("MNIST", "FashionMNIST"):
        write_idx(folder, name, n_train=200, n_valid=100)
    write_cifar(folder, n_train=100, n_valid=50)
    write_imagenet(folder, "imagenette", n_train=10, n_valid=5)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("path", NBS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Jupyter's own
def test_notebook_runs_from_top_to_bottom(path, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MINILEARN_DATA", str(data))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()


@EACH
def test_notebook_imports_and_defines_nothing(path):
    code = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    )
    defined = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [node.name for node in defined] == []


@EACH
def test_notebook_keeps_its_outputs_and_figures_and_is_small(path):
    assert path.stat().st_size < 1_000_000
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 5
    assert "Warning" not in json.dumps(outputs)
