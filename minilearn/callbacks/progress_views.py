"""How ProgressCB shows a fit: plain lines, bars in a terminal, or HTML in a notebook."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from ..notebook import cell, table
from ..optim.groups import groups_of
from ..plot import plot_history
from ..terminal import Shared, print_line, wrapped
from .pace import Pace, time_text

if TYPE_CHECKING:
    from rich.console import Console

    from ..learner import Learner

_MIN_WAIT_S = 0.1  # at most 10 refreshes a second
_MAX_SHARE = 0.01  # and at most this share of the time spent on drawing


def _row_text(row: dict[str, Any]) -> str:
    values = [f"{k} {cell(k, v)}" for k, v in row.items() if k not in ("epoch", "train", "time_s")]
    return f"{row['train']}: {', '.join(values)}"


def _lr_text(opt: Any) -> str:
    """Return the lr, or from the lowest to the highest where groups differ: "lr 1e-05 to 0.001"."""
    lrs = [float(lr) for group in groups_of(opt) if (lr := group.get("lr")) is not None]
    ends = dict.fromkeys(f"{lr:.3g}" for lr in (min(lrs), max(lrs))) if lrs else ()
    return f"lr {' to '.join(ends)}" if ends else ""


class Lines:
    """Print one plain line per epoch, and others inside a long one.

    Args:
        console: where to.
        pace: of the fit.
        every_s: seconds from one line to the next inside an epoch.
        made_way: in place of bars, for somebody else's.
    """

    def __init__(self, console: Console, pace: Pace, every_s: float, made_way: bool = False) -> None:
        self.console, self.pace, self.every_s, self.made_way = console, pace, every_s, made_way
        self.next_s = time.perf_counter() + every_s

    def begin(self) -> None:
        pass

    def advance(self, learn: Learner, loss: float | None) -> None:
        pace, values = self.pace, list[str]()
        if loss is not None:
            values.append(f"loss {loss:.4f}")
        if learn.training and (lr := _lr_text(learn.opt)):
            values.append(lr)
        of = "" if pace.n_batches is None else f"/{pace.n_batches}"
        where = f"{self._head(max(learn.n_epochs_trained - 1, 0), learn.epoch)}{pace.row} {pace.n}{of}: "
        left_s = pace.left_of_fit(learn)
        left = [] if left_s is None else [f"{time_text(left_s)} left"]
        self._print([where + ", ".join(values), pace.speed(), *left])

    def _head(self, number: int, epoch: int) -> str:
        if self.pace.is_fit:
            return f"epoch {number} ({epoch + 1}/{self.pace.n_epochs})  "
        return f"epoch {number}  " if self.pace.is_trained else ""

    def _print(self, parts: list[str]) -> None:
        print_line(self.console, parts, erase=self.made_way)
        self.next_s = time.perf_counter() + self.every_s

    def end_train(self, rows: Callable[[], list[dict[str, Any]]]) -> None:
        pass

    def end_epoch(self, epoch: int, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        if not rows:
            return
        parts = [_row_text(row) for row in rows]
        parts.append(f"{sum(row['time_s'] for row in rows):.1f} s")
        parts[0] = self._head(rows[0]["epoch"], epoch) + parts[0]
        self._print(parts)

    def stop(self) -> None:
        pass


class Bars:
    """Show two bars of rich in a terminal, with the rows printed above them.

    Args:
        console: the terminal.
        pace: of the fit.
        make_way: called when somebody else draws there; None in a notebook.

    Raises: rich.errors.LiveError where rich before 14.1 draws something else in this console.
    """

    def __init__(self, console: Console, pace: Pace, make_way: Callable[[], None] | None = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            "{task.description:>6}",
            BarColumn(30),
            MofNCompleteColumn(),
            "[progress.remaining]{task.fields[left]}",
            "{task.fields[info]}",
        )
        self.console, self.pace, self.make_way = console, pace, make_way
        self.head: tuple[str, ...] = ()  # the names above the rows printed last
        # Refreshed by hand: rich's own thread would compete for the interpreter.
        self.progress = Progress(
            *(TextColumn(c) if isinstance(c, str) else c for c in columns),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self.rows: list[dict[str, Any]] = []  # not drawn yet
        unknown: dict[str, Any] = {"info": "", "left": time_text(None)}
        self.epochs = self.progress.add_task("epochs", total=pace.n_epochs, **unknown)
        self.batches = self.progress.add_task("", total=None, **unknown)
        self.batch: dict[str, Any] = {"info": ""}
        self.is_new = False
        self.next_s = 0.0
        self.shared: list[Shared] = []
        self._open()

    def _open(self) -> None:
        streams = sys.stdout, sys.stderr
        self.progress.start()
        for name, before in zip(("stdout", "stderr"), streams, strict=True):
            if (
                self.make_way is not None and (proxy := getattr(sys, name)) is not before
            ):  # rich's, from now on
                self.shared.append(Shared(proxy, before, self.make_way))
                setattr(sys, name, self.shared[-1])

    def begin(self) -> None:
        pace = self.pace
        self.batch = {"description": pace.row, "total": pace.n_batches, "completed": pace.first}
        self.batch |= {"info": "", "left": time_text(None)}
        self.is_new = True
        self._draw_if_due()

    def advance(self, learn: Learner, loss: float | None) -> None:
        pace, info = self.pace, self.pace.speed()
        info = info if loss is None else f"loss {loss:.4f}  {info}"
        self.batch |= {"completed": pace.n, "info": info, "left": time_text(pace.left_of_phase())}
        self.progress.update(self.epochs, left=time_text(pace.left_of_fit(learn)))
        self._draw_if_due()

    def end_train(self, rows: Callable[[], list[dict[str, Any]]]) -> None:
        self.add(rows())

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
            if sum(widths.values()) + 2 * len(widths) - 2 > self.console.width:  # too narrow for a table
                parts = [f"epoch {row['epoch']}  {_row_text(row)}", f"{row['time_s']:.1f} s"]
                lines += [Text(line) for line in wrapped(parts, self.console.width)]
                continue
            if self.head != tuple(row):
                self.head = tuple(row)
                lines.append(Text("  ".join(f"{name:>{w}}" for name, w in widths.items()), "bold"))
            line = "  ".join(f"{cell(name, row[name]):>{w}}" for name, w in widths.items())
            lines.append(Text(line, "dim" if row["train"] == "train" else ""))
        self.rows.clear()
        self.console.print(Text("\n").join(lines))

    def stop(self) -> None:
        self.progress.stop()  # which also puts standard output and error back
        for shared in self.shared:
            shared.is_over = True
        if self.rows:
            self._print_rows()


class Notebook(Bars):
    """Show the same as HTML, in one output that is replaced."""

    def __init__(self, console: Console, pace: Pace, plot: bool) -> None:
        self.plot = plot
        self.figure: Any = None
        super().__init__(console, pace)

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
        self.output.update(HTML(f"{table(self.rows)}<pre>{escape(text.getvalue())}</pre>"))

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
