"""The pages of the site: each block of code runs, and each public name is in the reference."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import minilearn

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
IMPORTED = re.compile(r"^ *(?:import|from) (\w+)", re.MULTILINE)


def blocks():
    """Return the blocks of code of all pages; the quick suite runs those of the first page."""
    return [
        pytest.param(code, id=f"{path.stem} {i}", marks=() if path.stem == "index" else pytest.mark.full)
        for path in sorted(DOCS.rglob("*.md"))
        for i, code in enumerate(BLOCK.findall(path.read_text()), 1)
    ]


@pytest.mark.parametrize("code", blocks())
@pytest.mark.filterwarnings("ignore")  # of other trainers
def test_block_runs_as_it_stands(code, tmp_path, monkeypatch):
    for package in IMPORTED.findall(code):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    finally:
        plt.close("all")


def test_reference_has_each_public_name():
    pages = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    named = set(re.findall(r"^::: minilearn\.(\w+)", pages, re.MULTILINE))
    assert named - {"events"} == set(minilearn.__all__)


def test_each_page_is_in_the_navigation():
    navigation = (REPO / "mkdocs.yml").read_text()
    assert [path for path in DOCS.rglob("*.md") if str(path.relative_to(DOCS)) not in navigation] == []
