"""The pages of the site: each block of code runs, and each public name is in the reference."""

import html
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import minilearn
import minilearn.data
from minilearn.events import STEPS, events

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
# A block of code, and what it prints where the page says it.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
IMPORTED = re.compile(r"^ *(?:import|from) (\w+)", re.MULTILINE)


def blocks():
    """Return the blocks of code of all pages; the quick suite runs those of the first page."""
    return [
        pytest.param(
            code, said, id=f"{path.stem} {i}", marks=() if path.stem == "index" else pytest.mark.full
        )
        for path in sorted(DOCS.rglob("*.md"))
        for i, (code, said) in enumerate(BLOCK.findall(path.read_text()), 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "said"), blocks())
@pytest.mark.filterwarnings("ignore")  # of other trainers
def test_block_runs_as_it_stands(code, said, tmp_path, monkeypatch, capsys):
    if missing := [name for name in IMPORTED.findall(code) if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")  # the block itself imports what is there
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    finally:
        plt.close("all")
    if said:
        assert capsys.readouterr().out.strip() == said.strip()


def test_reference_has_each_public_name():
    pages = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    named = set(re.findall(r"^::: minilearn\.(\w+)$", pages, re.MULTILINE))
    assert named - {"events"} == set(minilearn.__all__)
    of_data = set(re.findall(r"^::: minilearn\.data\.(\w+)$", pages, re.MULTILINE))
    assert of_data == set(minilearn.data.__all__) - set(minilearn.__all__)


def public():
    """Give the public functions and classes, and the methods of these, each with its name."""
    for module in (minilearn, minilearn.data, minilearn.optim):
        for name in module.__all__:
            value = getattr(module, name)
            if not str(getattr(value, "__module__", "")).startswith("minilearn"):
                continue
            yield name, value
            if inspect.isclass(value):
                own = [(key, part) for key, part in vars(value).items() if not key.startswith("_")]
                yield from ((f"{name}.{key}", part) for key, part in own if inspect.isfunction(part))


def test_docstrings_refer_only_to_what_the_reference_has():
    pages = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    named = {f"minilearn.{name}" for name in re.findall(r"^::: minilearn\.([\w.]+)$", pages, re.MULTILINE)}
    named |= {f"minilearn.optim.{name}" for name in minilearn.optim.__all__}  # the page has the module
    said = {
        (name, other)
        for name, value in public()
        for other in re.findall(r"[Ss]ee `(minilearn\.[\w.]+)`", inspect.getdoc(value) or "")
    }
    assert ("SGD", "minilearn.optim.Optimizer") in said
    assert {(name, other) for name, other in said if other not in named} == set()


@pytest.mark.parametrize("name", ["export", "lr_find", "predict", "summary", "validate", "verify_resume"])
def test_a_learner_s_method_tells_its_arguments(name):
    method = getattr(minilearn.Learner, name)
    said = inspect.getdoc(method).partition("\nArgs:\n")[2]
    for one in inspect.signature(method).parameters.keys() - {"self"}:
        assert re.search(rf"^ +[\w ,*]*\b{one}\b[\w ,*]*:", said, re.MULTILINE), one


@pytest.mark.slow
def test_each_page_is_in_the_navigation(hooks):
    navigation = (REPO / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = [place for place in hooks.pages().files if place.endswith(".md")]
    assert sorted(re.findall(r"[\w/-]+\.md", navigation)) == sorted(pages)
    assert len([page for page in pages if page.startswith("jobs/")]) == 1 + len(hooks.jobs())


# What is made for the site --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks():
    return load("hooks")


def load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_link_leads_to_the_page_or_to_the_repository(hooks):
    text = "[a](../README.md#run-it) [b](how-to/metrics.md#x) [c](../nbs/004_swats.ipynb) [d](https://x.org)"
    site = hooks.Site()
    linked = site.linked(text, "explanation/page.md", DOCS / "page.md")
    assert linked.split() == [
        f"[a]({hooks.MAIN}/blob/main/README.md#run-it)",
        "[b](../how-to/metrics.md#x)",
        "[c](../tutorials/004_swats.md)",
        "[d](https://x.org)",
    ]
    picture = "![p](../examples/results/fashion_mnist_losses.png)"
    assert site.linked(picture, "index.md", DOCS / "index.md") in (
        f"![p]({place})" for place in site.files if place.startswith("pictures/")
    )
    code = "```python\nx = [a](nowhere.md)\n```\n"
    assert site.linked(code, "index.md", DOCS / "index.md") == code


def test_link_that_leads_nowhere_is_named(hooks):
    with pytest.raises(ValueError, match=r"index\.md.*nowhere\.md.*not there"):
        hooks.Site().linked("[a](nowhere.md)", "index.md", DOCS / "index.md")


def test_notebook_s_page_has_its_outputs(hooks):
    site = hooks.pages()
    page = site.files["tutorials/003_optimizers_from_scratch.md"].decode()
    pictures = re.findall(r"\]\(\.\./(tutorials/003\w+\.png)\)", page)
    assert len(pictures) >= 5
    assert all(site.files[picture].startswith(b"\x89PNG") for picture in pictures)
    assert page.startswith("# Optimizers from scratch")
    assert "learn.fit(2)" in page
    assert "<table>" in page


def test_job_s_page_has_its_text_code_and_result(hooks):
    site = hooks.pages()
    for folder in hooks.jobs():
        page = site.files[f"jobs/{folder.name}.md"].decode()
        assert (folder / "train.py").read_text().strip() in page
        assert "| reached |" in page
        assert f"](../pictures/examples_tasks_{folder.name}_picture.png)" in page


def test_diagram_has_the_events_in_the_order_of_the_loop():
    page = (DOCS / "reference" / "events.md").read_text()
    diagram = page[page.index('<div class="loop"') : page.index("## Orders")]
    loop = list(dict.fromkeys(events()))[: events().index("cleanup_fit") + 1]
    found = re.findall(r"<code(?: class=\"(step)\")?>(\w+)</code>", diagram)
    names = [name for _, name in found]
    assert set(names) == set(loop)
    assert {name for kind, name in found if kind} == set(STEPS)
    train = names[: names.index("before_validate")]
    assert [name for name in train if name != "unpack"] == [
        name for name in loop if name in train and name != "unpack"
    ]
    assert names[-3:] == ["after_fit", "cleanup_fit", "at_rest"]


def test_table_of_orders_has_each(hooks):
    rows = re.findall(r"^\| (-?\d+) \| `(\w+)` \| \S", hooks.orders(), re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(o.value, o.name) for o in minilearn.Order]


def test_labels_of_a_docstring_become_paragraphs_and_documents_links():
    pytest.importorskip("griffe")
    docstrings = load("docstrings")
    said = docstrings.markdown(
        "Do it::\n\n    a <b> c\n\nIt reads <class>.\n\nArgs:\n    x: > 0, of <y>, `<z>`.\n\n"
        "Runs at: prepare;\n    order 3. Reads: opt.\nSource: document 003.\n"
        "It is one of two:\n    a: of __len__\n        or f(**x)\n    b: `__len__`\nThen more.\n\n    f(**x)"
    )
    assert said.startswith("Do it:\n\n    a <b> c\n")
    assert "It reads &lt;class>." in said
    assert "Args:\n    x: &gt; 0, of &lt;y>, `<z>`." in said
    assert "**Runs at:** prepare; order 3. **Reads:** opt." in said
    assert "It is one of two:\n\n- a: of \\_\\_len\\_\\_ or f(\\*\\*x)\n- b: `__len__`\n\nThen more." in said
    assert said.endswith("\n    f(**x)")
    anchor = "003-optimizers-and-schedules-from-scratch"
    assert f"**Source:** document [003](../documents.md#{anchor})." in said


def test_a_builder_without_hooks_finds_the_pages(hooks):
    text = hooks.without_hooks()
    assert "docs_dir: pages\n" in text
    assert "docs/hooks.py" not in text


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_site_is_built_without_a_warning_and_a_browser_finds_no_fault(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium: apt-get install chromium")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    said = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert load("check").faults(site) == []
    assert lost_words(site) == {}


def lost_words(site):
    """Return the words of docstrings that are in no page of the reference, by public name."""
    pages = " ".join(path.read_text() for path in (site / "reference").rglob("index.html"))
    text = html.unescape(re.sub(r"<[^>]+>", "", pages))
    found = {}
    for module in (minilearn, minilearn.data, minilearn.optim):
        for name in module.__all__:
            value = getattr(module, name)
            if str(getattr(value, "__module__", "")).startswith("minilearn"):
                words = (inspect.getdoc(value) or "").replace("`", "").split()
                if lost := [word for word in words if word.strip(".,;:()") not in text]:
                    found[name] = lost
    return found
