"""ProgressCB: bars and a growing table in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..arguments import flag, number, shown
from ..callback import Callback, Order
from ..terminal import default_console, takes_bars
from .pace import Pace
from .progress_views import Bars, Lines, Notebook

if TYPE_CHECKING:
    from rich.console import Console

    from ..learner import Learner


class ProgressCB(Callback):
    """Show the progress of the fit, with the loss, steps per second, the time left, and its rows.

    In a terminal, two bars (epochs, batches) below a growing table of rows; in a notebook the same as HTML;
    anywhere else (a file, a pipe) one plain line per epoch, and one now and then inside a long epoch. The
    time left is that of the batches, and of the whole fit, with its validations. Where somebody else draws in
    the terminal, such as tqdm or a live display of rich, plain lines above that; from rich 14.1 on, bars in a
    live display whose console is given.

    Args:
        plot: in a notebook, also redraw the history's curves after each epoch.
        console: the rich Console to write to. Default: standard output.
        quiet: show nothing, and let others print nothing about the progress. Metrics and device stay as they
            are: Learner(..., cbs=ProgressCB(quiet=True)).
        every_s: outside a terminal and a notebook, seconds from one line to the next inside an epoch, > 0.

    Runs at: before_fit, before_epoch, before_train, before_validate, after_batch, after_train,
        after_validate, cleanup_epoch, cleanup_fit, release; order 80. Reads: history, opt, loss (only where
        it is shown, at most 10 times a second, because reading it waits for the device).
    Raises: ValueError for plot=True with quiet=True, and before training for plot=True outside a notebook.
    """

    order = Order.PROGRESS
    in_nested = False
    in_lr_find = False
    in_each_process = False
    shows_progress = True

    def __init__(
        self,
        plot: bool = False,
        console: Console | None = None,
        quiet: bool = False,
        every_s: float = 30.0,
    ) -> None:
        if console is not None and not hasattr(console, "is_terminal"):
            raise TypeError(f"ProgressCB(console={shown(console)}): expected a Console of rich")
        self.plot, self.console = flag("ProgressCB(plot", plot), console
        self.quiet = flag("ProgressCB(quiet", quiet)
        if quiet and plot:
            raise ValueError("ProgressCB(plot=True, quiet=True): a quiet one shows no plot: expected one")
        self.every_s = number("ProgressCB(every_s", every_s, above=0)
        self.shows_progress = not quiet  # type: ignore[misc]  # of this one
        self._view: Lines | Bars | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a run may resume in another terminal."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        self._open(learn)

    def _open(self, learn: Learner) -> None:
        if self.quiet:
            return
        console = self.console or default_console()
        if self.plot and not console.is_jupyter:
            raise ValueError(
                "ProgressCB(plot=True) draws only in a notebook: here use plot_history(learn.history)"
            )
        self._n_shown = len(learn.history)
        pace = Pace(learn)
        if console.is_jupyter:
            self._view = Notebook(console, pace, self.plot)
        else:
            self._view = self._bars(console, pace) or Lines(console, pace, self.every_s)

    def _bars(self, console: Console, pace: Pace) -> Bars | None:
        """Return bars, unless they have no place."""
        from rich.errors import LiveError

        def make_way() -> None:
            if self._view is bars:  # else it has made way already
                self._view = Lines(console, pace, self.every_s, made_way=True)
                bars.stop()

        if not takes_bars(console):
            return None
        try:
            bars = Bars(console, pace, make_way)
        except LiveError:  # before 14.1, rich has one live display in a console
            return None
        return bars

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
        if self._view:
            self._view.pace.end(learn)
            if learn.purpose == "validate":
                self._view.end_epoch(0, self._new_rows(learn), learn.history)

    def _begin(self, learn: Learner) -> None:
        if self._view:
            first = learn.plan.first_batch(learn.phase, learn.epoch)
            self._view.pace.begin(learn, learn.dls.adapter_of(learn.dl).n_batches, first)
            self._view.begin()

    def after_batch(self, learn: Learner) -> None:
        view = self._view
        if view is not None and time.perf_counter() >= view.next_s:
            loss = learn.loss
            view.pace.look(learn)
            view.advance(learn, float(loss.detach()) if isinstance(loss, Tensor) else None)

    def after_train(self, learn: Learner) -> None:
        if self._view:
            self._view.pace.end(learn)
            self._view.end_train(lambda: self._new_rows(learn))

    def cleanup_epoch(self, learn: Learner) -> None:
        if self._view:
            self._view.pace.end_epoch(learn)
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
