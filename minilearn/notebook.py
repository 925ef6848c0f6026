"""How objects show themselves in a notebook: HTML, escaped, with no script and nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .arguments import brief, shown

if TYPE_CHECKING:
    from .learner import Learner

_MOST_POINTS = 200  # of a curve, of which each stands for as many steps
_WIDTH, _HEIGHT = 160, 40  # of a curve, in pixels


def cell(name: str, value: Any) -> str:
    """Return a value of a row of history as text; the name says how many digits. It never fails."""
    if isinstance(value, list):
        return "[" + ", ".join(cell("", item) for item in value) + "]"
    if name in ("time_s", "samples_per_s", "memory_mb") and isinstance(value, int | float):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.4f}"
    try:
        return str(value)
    except Exception:  # of a class of the user's
        return shown(value)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as an HTML table, with a column for each name."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    texts = [[cell(name, row[name]) if name in row else "" for name in names] for row in rows]
    return html_table([str(name) for name in names], texts)


_LEFT = " style='text-align:left'"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 0) -> str:
    """Return a table of plain texts, which are escaped, its first `left` columns flush left.

    Without a head, the first column is one, and all are flush left.
    """

    def line(tags: Sequence[str], texts: Sequence[str], left: int) -> str:
        cells = zip(tags, texts, [_LEFT] * left + [""] * (len(texts) - left), strict=True)
        return "".join(f"<{tag}{style}>{escape(text)}</{tag}>" for tag, text, style in cells)

    lines = [line(["th"] * len(head), head, left)] if head else []
    for row in rows:
        tags = ["td"] * len(row) if head else ["th", *["td"] * (len(row) - 1)]
        lines.append(line(tags, row, left if head else len(row)))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Return a table of plain texts as lines, its first `left` columns flush left."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = []
    for line in lines:
        cells = (
            t.ljust(w) if i < left else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))
        )
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


class Shows:
    """Show an object as a line of text, and in a notebook as a table. Neither fails or reads data.

    A subclass says in `_facts` what there is to tell: name -> text, "" for a name that goes without saying.
    """

    def _facts(self) -> dict[str, Any]:
        return {}

    def __repr__(self) -> str:
        kind = type(self).__name__
        try:
            facts = self._facts().items()
            parts = [f"{name}={_text(value)}" if name else str(value) for name, value in facts]
            return f"{kind}({', '.join(parts)})"
        except Exception:  # an attribute is missing, or of another kind
            return f"{kind}(...)"

    def _repr_html_(self) -> str:
        kind = type(self).__name__
        try:
            rows = [(name or "data", _text(value)) for name, value in self._facts().items()]
            return f"<p><b>{escape(kind)}</b></p>{html_table((), rows)}"
        except Exception:
            return f"<p>{escape(repr(self))}</p>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else brief(value)


def tensor_text(tensor: Any) -> str:
    """Return the shape and dtype of a tensor, and its device unless that is the CPU."""
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{device}"


def loader_text(loader: Any) -> str:
    """Return a line for any loader, without reading it."""
    try:
        if isinstance(loader, Shows):
            return repr(loader)
        if isinstance(loader, list | tuple):
            return f"{type(loader).__name__} of {len(loader):,} batches"
        facts = []
        if (dataset := getattr(loader, "dataset", None)) is not None:
            n = f" of {len(dataset):,}" if hasattr(type(dataset), "__len__") else ""
            facts.append(f"{type(dataset).__name__}{n}")
        if (bs := getattr(loader, "batch_size", None)) is not None:
            facts.append(f"batch_size={bs}")
        return f"{type(loader).__name__}({', '.join(facts)})"
    except Exception:  # a class of the user's
        return type(loader).__name__


def curve(values: Sequence[Any]) -> str:
    """Return numbers as a small curve, an inline SVG; "" if fewer than two of them are finite.

    Of many, each point is the mean of as many values. Values that are not finite leave a gap.
    """
    n = max(1, -(-len(values) // _MOST_POINTS))
    chunks = [[float(v) for v in values[i : i + n]] for i in range(0, len(values), n)]
    points = [sum(chunk) / len(chunk) for chunk in chunks]
    finite = [y for y in points if math.isfinite(y)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    x_of, y_of = (_WIDTH - 4) / (len(points) - 1), (_HEIGHT - 4) / ((high - low) or 1.0)
    lines: list[list[str]] = [[]]
    for i, y in enumerate(points):
        if math.isfinite(y):
            lines[-1].append(f"{2 + i * x_of:.1f},{_HEIGHT - 2 - (y - low) * y_of:.1f}")
        else:
            lines.append([])
    style = 'fill="none" stroke="currentColor" stroke-linecap="round"'
    dotted = (line * 2 if len(line) == 1 else line for line in lines if line)  # a point is a line to itself
    drawn = "".join(f'<polyline points="{" ".join(line)}" {style}/>' for line in dotted)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f"<svg {size}>{drawn}</svg>"


def _learner_facts(learn: Learner) -> dict[str, str]:
    """Return what there is to tell of a learner; "?" for what cannot be told, as in a failed __init__."""
    found = {}
    for name, tell in _TOLD.items():
        try:
            found[name] = tell(learn)
        except Exception:  # an attribute is missing, or of another kind
            found[name] = "?"
    return {name: text for name, text in found.items() if text}


def _model_text(learn: Learner) -> str:
    params = list(learn.model.parameters())
    n = sum(p.numel() for p in params if not hasattr(p, "materialize"))  # a lazy one has no size yet
    frozen = sum(p.numel() for p in params if not hasattr(p, "materialize") and not p.requires_grad)
    devices = ", ".join(dict.fromkeys(str(p.device) for p in params))
    on = f" on {devices}" if devices else ""
    return f"{type(learn.model).__name__}, {n:,} parameters{f', {frozen:,} frozen' * bool(frozen)}{on}"


def _data_text(learn: Learner) -> str:
    parts = []
    for name, adapter in learn.dls.adapters.items():
        n = adapter.n_batches
        parts.append(f"{name} {'of unknown length' if n is None else _counted(n, 'batch', 'batches')}")
    return ", ".join(parts)


def _loss_text(learn: Learner) -> str:
    return "by the targets" if learn.loss_func is None else brief(learn.loss_func)


def _opt_text(learn: Learner) -> str:
    return brief(learn.opt_func) if learn.opt is None else type(learn.opt).__name__


def _trained_text(learn: Learner) -> str:
    return _counted(learn.n_epochs_trained, "epoch", "epochs")


def _now_text(learn: Learner) -> str:
    return f"in {learn.purpose}, {learn.where()}" if learn.is_fitting else ""


def _cbs_text(learn: Learner) -> str:
    return ", ".join(shown(cb) for cb in learn.cbs)


def _counted(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


_TOLD: dict[str, Callable[[Learner], str]] = {
    "model": _model_text,
    "data": _data_text,
    "loss": _loss_text,
    "optimizer": _opt_text,
    "trained": _trained_text,
    "now": _now_text,
    "callbacks": _cbs_text,
}


def learner_text(learn: Learner) -> str:
    """Return a learner as a line, such as "Learner(MLP, 7,850 parameters on cpu; train 938 batches; ...)"."""
    facts = _learner_facts(learn)
    data = facts.get("data", "no data")
    now = [facts["now"]] if "now" in facts else []
    trained = facts["trained"] + " trained" * (facts["trained"] != "?")
    parts = [facts["model"], data, facts["optimizer"], trained, *now]
    return f"{type(learn).__name__}({'; '.join(parts)})"


def learner_html(learn: Learner) -> str:
    """Return a learner as a table, with its newest rows."""
    rows = html_table((), list(_learner_facts(learn).items()))
    history = getattr(learn, "history", None) or []
    try:
        newest = table(history[-4:]) if history else ""
    except Exception:  # rows of a user's own
        newest = ""
    return f"<p><b>{escape(type(learn).__name__)}</b></p>{rows}{newest}"
