"""Make the pages of the site that come from elsewhere in the repository: notebooks, jobs, pictures.

`mkdocs build` calls `on_config`, which writes all pages to build/pages: those of docs/, the notebooks of nbs/
with their stored outputs, the README of examples/, and the jobs with code, picture and result. A link that
leaves docs/ leads to the page made of that file, or else to the file in the repository; pictures are copied.
So links work in the repository and on the site.

Run: mkdocs build --strict, or mkdocs serve. Zensical, MkDocs' successor, has no hooks: python docs/hooks.py
writes the pages and build/mkdocs.yml for it, then zensical build -f build/mkdocs.yml.
"""

from __future__ import annotations

import ast
import base64
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS, NOTEBOOKS, TASKS = ROOT / "docs", ROOT / "nbs", ROOT / "examples" / "tasks"
PAGES = ROOT / "build" / "pages"
MAIN = "https://github.com/minilearn/minilearn"
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
MADE = "made:"  # begins a link to a file that is made here
LEFT_OUT = {"style.md", "release.md", "measured"}  # for those who change minilearn; data of measured.md


def notebooks() -> list[Path]:
    """Return the notebooks."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def jobs() -> list[Path]:
    """Return the folders of the jobs."""
    return [path.parent for path in sorted(TASKS.glob("*/train.py"))]


def made() -> dict[Path, str]:
    """Return the files of the repository that have a page, with the place of the page."""
    found = {path: f"tutorials/{path.stem}.md" for path in notebooks()}
    found |= {folder: f"jobs/{folder.name}.md" for folder in jobs()}
    found |= {TASKS / "README.md": "jobs/index.md", TASKS: "jobs/index.md", NOTEBOOKS: "tutorials/index.md"}
    found |= {ROOT / "examples" / "README.md": "examples.md"}
    own = (path for path in DOCS.rglob("*") if path.is_file() and is_page(path))
    return found | {path: str(path.relative_to(DOCS)) for path in own}


def is_page(path: Path) -> bool:
    """Return whether a file of docs/ is part of the site."""
    return path.suffix not in (".py", ".pyc") and path.relative_to(DOCS).parts[0] not in LEFT_OUT


class Site:
    """Collect the files of the site: place -> content."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.made = made()

    def add(self, place: str, text: str, source: Path) -> None:
        """Add a page, whose links are relative to the folder of `source`."""
        self.files[place] = self.linked(text, place, source).encode()

    def linked(self, text: str, place: str, source: Path) -> str:
        """Return a page's text with links that lead to where things are on the site."""
        depth = "../" * place.count("/")

        def moved(match: re.Match[str]) -> str:
            label, (target, mark, anchor) = match[1], match[2].partition("#")
            if target.startswith(MADE):
                return f"{label}({depth}{target.removeprefix(MADE)})"
            if not target or re.match(r"[a-z]+:", target):
                return match[0]
            path = (source.parent / target).resolve()
            if path in self.made:
                there = self.made[path]
            elif not path.exists():
                raise ValueError(f"{source}: the link {match[2]} leads to {path}, which is not there")
            elif path.suffix == ".png":
                there = f"pictures/{path.relative_to(ROOT).as_posix().replace('/', '_')}"
                self.files[there] = path.read_bytes()
            else:
                kind = "tree" if path.is_dir() else "blob"
                return f"{label}({MAIN}/{kind}/main/{path.relative_to(ROOT).as_posix()}{mark}{anchor})"
            return f"{label}({depth}{there}{mark}{anchor})"

        return "".join(part if is_code else LINK.sub(moved, part) for is_code, part in parts_of(text))

    def write(self, folder: Path) -> None:
        """Write what changed, and remove what is no longer part of the site."""
        for place, content in self.files.items():
            path = folder / place
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for path in folder.rglob("*"):
            if path.is_file() and path.relative_to(folder).as_posix() not in self.files:
                path.unlink()


def parts_of(text: str) -> Iterator[tuple[bool, str]]:
    """Give the parts of a page in turn: whether it is a fenced block of code, and its text."""
    part, fence = "", ""
    for line in text.splitlines(keepends=True):
        mark = line.strip()[:3]
        if not fence and mark in ("```", "~~~"):
            yield False, part
            part, fence = line, mark
        elif fence and line.strip() == fence:
            yield True, part + line
            part, fence = "", ""
        else:
            part += line
    yield bool(fence), part


# Notebooks ------------------------------------------------------------------------------------------


def fenced(text: str, language: str) -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def output_of(output: dict[str, Any], name: str, site: Site) -> str:
    """Return a stored output of a notebook as markdown.

    Args:
        name: of its picture, without a suffix.
    """
    if output["output_type"] == "stream":
        text = "".join(output["text"])
        return fenced(text, "text") if text.strip() else ""
    data = output["data"]
    if "image/png" in data:
        site.files[f"tutorials/{name}.png"] = base64.b64decode("".join(data["image/png"]))
        return f"![The figure that the code above makes]({MADE}tutorials/{name}.png)\n"
    if "text/html" in data:
        table = "".join(data["text/html"]).replace("<pre></pre>", "")
        return f'<div class="output" markdown="0">{table}</div>\n' if table.strip() else ""
    return fenced("".join(data["text/plain"]), "text")


def notebook(path: Path, site: Site) -> str:
    """Return a notebook as markdown, with its stored outputs."""
    parts = []
    for i, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source + "\n")
        elif source:
            parts.append(fenced(source, "python"))
            parts += [output_of(o, f"{path.stem}_{i}_{j}", site) for j, o in enumerate(cell["outputs"])]
    where = f"{MAIN}/blob/main/nbs/{path.name}"
    origin = f"\nThis page is the notebook [`{path.name}`]({where}), with what it gave when it ran.\n"
    title, _, rest = "\n".join(parts).partition("\n")
    return f"{title}\n{origin}{rest}"


# Jobs -----------------------------------------------------------------------------------------------


def of_tasks(name: str) -> Any:
    """Import a module of examples/tasks."""
    sys.path.insert(0, str(TASKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TASKS))


def job(folder: Path) -> str:
    """Return the page of a job: what its docstring says, picture, result and code."""
    found, table = of_tasks("jobs").JOBS, of_tasks("table")
    name, code = folder.name, (folder / "train.py").read_text()
    about = ast.get_docstring(ast.parse(code)) or ""
    result = json.loads((folder / "result.json").read_text())
    cells = [cell.strip() for cell in table.row(name, result).strip("|").split(" | ")]
    heads = [cell.strip() for cell in table.HEAD[0].strip("|").split("|")]
    said = "\n".join(f"| {head} | {cell} |" for head, cell in zip(heads[1:], cells[1:], strict=True))
    title = found[name].title
    first, _, rest = about.partition("\n\n")
    files = " and ".join(f"[`{f}`]({f})" for f in ("model.py", "by_hand.py") if (folder / f).is_file())
    return f"""# {title[0].upper()}{title[1:]}

{first}

{rest}

![What came out, drawn](picture.png)

| | result |
|---|---|
{said}

n = {result["n"]}; "±" is the standard deviation over the seeds; [what the columns mean](../README.md).

## The code

[`train.py`](train.py) runs with `python examples/tasks/{name}/train.py`. Beside it are {files}.

{fenced(code, "python")}"""


# All ------------------------------------------------------------------------------------------------


def orders() -> str:
    """Return a table of the orders of callbacks: what the comments in the source say."""
    code = (ROOT / "minilearn" / "callback.py").read_text()
    found = re.findall(r"^    ([A-Z_]+) = (-?\d+)  # (.*)$", code, re.MULTILINE)
    lines = [f"| {number} | `{name}` | {said} |" for name, number, said in found]
    return "\n".join(["| order | name | whose, and why |", "|---|---|---|", *lines])


def pages() -> Site:
    """Return the files of the site."""
    site = Site()
    for path, place in site.made.items():
        if path.is_dir():
            continue
        if path.suffix == ".ipynb":
            site.add(place, notebook(path, site), path)
        elif path.suffix == ".md":
            site.add(place, path.read_text().replace("<!-- orders -->", orders()), path)
        else:
            site.files[place] = path.read_bytes()
    for folder in jobs():
        site.add(f"jobs/{folder.name}.md", job(folder), folder / "train.py")
    titles = [(path, json.loads(path.read_text())["cells"][0]["source"]) for path in notebooks()]
    lines = [f"- [{''.join(text).splitlines()[0].lstrip('# ')}]({path.name})" for path, text in titles]
    documents = "[the five documents](../docs/documents.md)"
    tours = f"# Notebooks\n\nGuided tours with pictures, one for each of {documents}:\n\n"
    site.add("tutorials/index.md", tours + "\n".join(lines) + "\n", NOTEBOOKS / "index.md")
    return site


def on_config(config: Any) -> Any:
    """Write the pages, and have mkdocs read them."""
    pages().write(PAGES)
    config["docs_dir"] = str(PAGES)
    return config


def without_hooks() -> str:
    """Return mkdocs.yml for the folder build/, and for a builder that finds the pages there."""
    text = (ROOT / "mkdocs.yml").read_text()
    for old, new in (
        ("docs_dir: docs\n", f"docs_dir: {PAGES.name}\n"),
        ("hooks: [docs/hooks.py]", "# no hooks"),
        ("watch: [docs, nbs, examples]\n", ""),
        ("paths: [.]", "paths: [..]"),
        ("extensions: [docs/docstrings.py]", "extensions: [../docs/docstrings.py]"),
    ):
        if text.count(old) != 1:
            raise ValueError(f"mkdocs.yml: expected {old!r} once, to write {new!r}")
        text = text.replace(old, new)
    return text


if __name__ == "__main__":
    pages().write(PAGES)
    (PAGES.parent / "mkdocs.yml").write_text(without_hooks())
    print(PAGES.parent / "mkdocs.yml")
