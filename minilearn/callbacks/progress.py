"""ProgressCB: bars and a growing table in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..arguments import flag, shown
from ..callback import Callback, Order
from ..plot import plot_history

if TYPE_CHECKING:
    from rich.console import Console

    from ..learner import Learner

_MIN_WAIT_S = 0.1  # at most 10 refreshes a second
_MAX_SHARE = 0.01  # and at most this share of the time spent on drawing


class ProgressCB(Callback):
    """Show the progress of the fit, with the loss, steps per second, the time left, and its rows.

    In a terminal, two bars (epochs, batches) below a growing table of rows; in a notebook the same as HTML;
    anywhere else (a file, a pipe) one plain line per epoch.

    Args:
        plot: in a notebook, also redraw the history's curves after each epoch.
        console: the rich Console to write to. Default: standard output.

    Runs at: before_fit, before_epoch, before_train, before_validate, after_batch, after_train,
        after_validate, cleanup_epoch, cleanup_fit, release; order 80. Reads: history, loss (at most 10 times
        a second, because reading it waits for the device).
    Raises: ValueError before training for plot=True outside a notebook.
    """

    order = Order.PROGRESS
    in_nested = False
    in_lr_find = False
    in_each_process = False
    shows_progress = True

    def __init__(self, plot: bool = False, console: Console | None = None) -> None:
        if console is not None and not hasattr(console, "is_terminal"):
            raise TypeError(f"ProgressCB(console={shown(console)}): expected a Console of rich")
        self.plot, self.console = flag("ProgressCB(plot", plot), console
        self._view: _Lines | _Bars | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a run may resume in another terminal."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        self._open(learn)

    def _open(self, learn: Learner) -> None:
        from rich.console import Console

        console = self.console or Console()
        if self.plot and not console.is_jupyter:
            raise ValueError(
                "ProgressCB(plot=True) draws only in a notebook: here use plot_history(learn.history)"
            )
        self._n_shown = len(learn.history)
        if console.is_jupyter:
            self._view = _Notebook(console, learn.n_epochs, self.plot)
        elif console.is_terminal:
            self._view = _Bars(console, learn.n_epochs)
        else:
            self._view = _Lines(console, learn.n_epochs)

    def before_epoch(self, learn: Learner) -> None:
        source = learn.run.source  # its rows were shown already, including any of this epoch
        self._n_shown = max(len(learn.history), 0 if source is None else len(source.saved["history"]))

    def before_train(self, learn: Learner) -> None:
        self._begin(learn)

    def before_validate(self, learn: Learner) -> None:
        if learn.purpose == "validate":  # without a fit
            self._open(learn)
        self._begin(learn)

    def after_validate(self, learn: Learner) -> None:
        if self._view and learn.purpose == "validate":
            self._view.end_epoch(0, self._new_rows(learn), learn.history)

    def _begin(self, learn: Learner) -> None:
        if isinstance(self._view, _Bars):
            first = learn.plan.first_batch(learn.phase, learn.epoch)
            self._view.begin(learn.phase, learn.dls.adapter_of(learn.dl).n_batches, first)

    def after_batch(self, learn: Learner) -> None:
        view = self._view
        if isinstance(view, _Bars) and time.perf_counter() >= view.next_s:
            loss = learn.loss
            view.advance(learn.batch_idx + 1, float(loss.detach()) if isinstance(loss, Tensor) else None)

    def after_train(self, learn: Learner) -> None:
        if isinstance(self._view, _Bars):
            self._view.add(self._new_rows(learn))

    def cleanup_epoch(self, learn: Learner) -> None:
        if self._view:
            self._view.end_epoch(learn.epoch, self._new_rows(learn), learn.history)

    def _new_rows(self, learn: Learner) -> list[dict[str, Any]]:
        rows, self._n_shown = learn.history[self._n_shown :], len(learn.history)
        return rows

    def cleanup_fit(self, learn: Learner) -> None:
        self._close()

    def release(self, learn: Learner) -> None:
        self._close()

    def _close(self) -> None:
        view, self._view = self._view, None
        if view:
            view.stop()


def _cell(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_cell("", item) for item in value) + "]"
    if name == "time_s":
        return f"{value:.1f}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class _Lines:
    """Print one plain line per epoch."""

    def __init__(self, console: Console, n_epochs: int) -> None:
        self.console, self.n_epochs = console, n_epochs

    def end_epoch(self, epoch: int, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        if not rows:
            return
        parts = [f"epoch {rows[0]['epoch']} ({epoch + 1}/{self.n_epochs})"]
        for row in rows:
            values = [f"{k} {_cell(k, v)}" for k, v in row.items() if k not in ("epoch", "train", "time_s")]
            parts.append(f"{row['train']}: {', '.join(values)}")
        parts.append(f"{sum(row['time_s'] for row in rows):.1f} s")
        print("  ".join(parts), file=self.console.file, flush=True)  # rich would wrap it

    def stop(self) -> None:
        pass


class _Bars:
    """Show two bars of rich in a terminal, with the rows printed above them."""

    def __init__(self, console: Console, n_epochs: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            "{task.description:>6}",
            BarColumn(30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            "{task.fields[info]}",
        )
        self.console = console
        self.head: tuple[str, ...] = ()  # the names above the rows printed last
        # Refreshed by hand: rich's own thread would compete for the interpreter.
        self.progress = Progress(
            *(TextColumn(c) if isinstance(c, str) else c for c in columns),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self.rows: list[dict[str, Any]] = []  # not drawn yet
        self.epochs = self.progress.add_task("epochs", total=n_epochs, info="")
        self.batches = self.progress.add_task("", total=None, info="")
        self.batch: dict[str, Any] = {"info": ""}
        self.is_new = False
        self.next_s = 0.0
        self._open()

    def _open(self) -> None:
        self.progress.start()

    def begin(self, phase: str, total: int | None, first: int) -> None:
        self.first, self.start_s = first, time.perf_counter()
        self.batch = {"description": phase, "total": total, "completed": first, "info": ""}
        self.is_new = True
        self._draw_if_due()

    def advance(self, n: int, loss: float | None) -> None:
        rate = (n - self.first) / max(time.perf_counter() - self.start_s, 1e-9)
        info = f"{rate:.0f} steps/s" if rate >= 10 else f"{rate:.2f} steps/s"
        self.batch |= {"completed": n, "info": info if loss is None else f"loss {loss:.4f}  {info}"}
        self._draw_if_due()

    def add(self, rows: list[dict[str, Any]]) -> None:
        self.rows.extend(rows)
        self._draw_if_due()

    def end_epoch(self, epoch: int, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        self.progress.update(self.epochs, completed=epoch + 1)
        self.add(rows)

    def _draw_if_due(self) -> None:
        if (start_s := time.perf_counter()) >= self.next_s:
            self._draw()
            now_s = time.perf_counter()
            self.next_s = now_s + max(_MIN_WAIT_S, (now_s - start_s) / _MAX_SHARE)

    def _draw(self) -> None:
        if self.rows:
            self._print_rows()
        self._update_bars()

    def _update_bars(self) -> None:
        if self.is_new:  # a new task, because only a new one can have no total; making it also draws
            self.progress.remove_task(self.batches)
            self.batches = self.progress.add_task(**self.batch)
            self.is_new = False
        else:
            self.progress.update(self.batches, refresh=True, **self.batch)

    def _print_rows(self) -> None:
        from rich.text import Text

        lines = []
        for row in self.rows:
            widths = {name: max(len(name), 8) for name in row}
            if self.head != tuple(row):
                self.head = tuple(row)
                lines.append(Text("  ".join(f"{name:>{w}}" for name, w in widths.items()), "bold"))
            line = "  ".join(f"{_cell(name, row[name]):>{w}}" for name, w in widths.items())
            lines.append(Text(line, "dim" if row["train"] == "train" else ""))
        self.rows.clear()
        self.console.print(Text("\n").join(lines))

    def stop(self) -> None:
        self.progress.stop()
        if self.rows:
            self._print_rows()


def _table(rows: list[dict[str, Any]]) -> str:
    """Return rows as an HTML table, with a column for each name."""
    names = dict.fromkeys(name for row in rows for name in row)
    lines = ["".join(f"<th>{escape(name)}</th>" for name in names)] if rows else []
    cells = ({k: escape(_cell(k, v)) for k, v in row.items()} for row in rows)
    lines += ["".join(f"<td>{row.get(name, '')}</td>" for name in names) for row in cells]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


class _Notebook(_Bars):
    """Show the same as HTML, in one output that is replaced."""

    def __init__(self, console: Console, n_epochs: int, plot: bool) -> None:
        self.plot = plot
        self.figure: Any = None
        super().__init__(console, n_epochs)

    def _open(self) -> None:
        from IPython.display import HTML, display

        self.output = display(HTML(""), display_id=True)

    def _draw(self, bars: bool = True) -> None:
        from IPython.display import HTML
        from rich.console import Console

        text = io.StringIO()
        if bars:
            self._update_bars()
            console = Console(file=text, width=100, force_jupyter=False, force_terminal=False)
            console.print(self.progress.get_renderable())
        self.output.update(HTML(f"{_table(self.rows)}<pre>{escape(text.getvalue())}</pre>"))

    def end_epoch(self, epoch: int, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        super().end_epoch(epoch, rows, history)
        if self.plot and history:
            self._show_figure(history)

    def _show_figure(self, history: list[dict[str, Any]]) -> None:
        from IPython.display import display

        figure = plot_history(history)
        if self.figure is None:
            self.figure = display(figure, display_id=True)
        else:
            self.figure.update(figure)

    def stop(self) -> None:
        self._draw(bars=False)
