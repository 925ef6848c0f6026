"""CSVLoggerCB: the rows of history as a CSV file."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import path as checked_path
from ..callback import Callback, Order
from ..checkpoints.trust import check_names
from ..files import check_folder, written_whole
from ..optim.groups import groups_of
from ..warning import warn
from .logged import declared
from .metrics import MetricsCB

if TYPE_CHECKING:
    from ..learner import Learner

Line = dict[str, Any]

_STATE = ("_lines", "_n_before", "_n_rows", "_lr")
_ALWAYS = ("epoch", "train", "time_s")  # the columns by which a log of ours is known


class CSVLoggerCB(Callback):
    """Write the rows of history to a CSV file, one line for each phase of each epoch.

    Columns: epoch, train ("train" or "eval"), the metrics, loss, lr (of the last step, of the first group)
    and time_s; those that callbacks add to the rows; those that are in the file already. The file, in UTF-8,
    is complete at any moment. Existing lines stay, also those that another process adds, and new ones are
    appended. A fit that resumes replaces what it wrote after the checkpoint; without a checkpoint yet,
    fit(resume=...) replaces the lines of the start that died. So no line is there twice, and none is lost.

    Args:
        path: of the file; its folder is created if it is missing. A relative one is relative to the working
            directory at this call, even if that changes later.

    Runs at: before_fit, after_train, cleanup_epoch, cleanup_fit; order 85, when rows are finished. Reads:
        history, opt.
    State: the rows written. Files: .NAME.unfinished beside the log, while a fit with CheckpointCB runs, and
        if it died: which lines are its own.
    Raises: before training: OSError, with its name, for a folder that cannot be written; ValueError for a
        file that is not such a log, and for two callbacks with one file.
    """

    order = Order.ROW_LOG
    may_come_and_go = True
    in_evaluation = False
    in_lr_find = False
    in_each_process = False

    def __init__(self, path: str | Path) -> None:
        self.path, self._as_given = checked_path("CSVLoggerCB(path", path).absolute(), str(path)
        self._lines: list[Line] | None = None  # the lines of the file
        self._n_before = 0  # how many of them are from before this fit
        self._is_again = False  # whether an earlier start of this fit may have written lines that come now
        self._n_rows = 0  # of history, written or from before this fit
        self._lr: float | None = None

    def __repr__(self) -> str:
        return f"CSVLoggerCB({self._as_given!r})"

    def before_fit(self, learn: Learner) -> None:
        check_folder(self, self.path.parent)
        if self.path.is_dir():
            raise IsADirectoryError(f"{self!r}: {self.path} is a folder; expected the path of a file")
        for cb in learn.cbs:
            if cb is not self and isinstance(cb, CSVLoggerCB) and cb.path.resolve() == self.path.resolve():
                raise ValueError(f"two callbacks write to {str(self.path)!r}: expected a file for each")
        self._lines = self._read(learn)
        n_before = self._marked().get(_start_of(learn)) if learn.run.is_restarted else None
        self._is_again = n_before is not None
        self._lines = self._lines[:n_before]  # what was there before the start that died
        self._n_before, self._n_rows = len(self._lines), len(learn.history)

    def after_train(self, learn: Learner) -> None:
        lr = groups_of(learn.opt)[0].get("lr")
        self._lr = None if lr is None else float(lr)

    def cleanup_epoch(self, learn: Learner) -> None:
        new = learn.history[self._n_rows :]
        self._n_rows = len(learn.history)
        if self._lines is None or not new:  # before_fit failed, or the fit ends in the middle of its training
            return
        start, marked = _start_of(learn), self._marked()
        self._lines = self._kept(self._lines, marked.get(start))
        if start and marked.get(start) != self._n_before:
            self._mark(marked | {start: self._n_before})
        for row in new:
            lr = self._lr if row["epoch"] == learn.n_epochs_trained - 1 else None  # not known: logged since
            line = {"epoch": row["epoch"], "train": row["train"]} | row | {"lr": lr}
            line["time_s"] = line.pop("time_s")  # last
            self._lines.append(line)
        self._write(self._lines)

    def cleanup_fit(self, learn: Learner) -> None:
        marked = self._marked()
        if not learn.is_failing and marked.pop(_start_of(learn), None) is not None:
            self._mark(marked)

    def state_dict(self) -> dict[str, Any]:
        """Return the lines, and the last lr."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them; what an interrupted process wrote later is to be replaced."""
        check_names(self, state, _STATE, type(self).__name__)
        state = {"_n_before": len(state["_lines"] or ())} | state  # version 0.1 has no _n_before
        vars(self).update({name: state[name] for name in _STATE})
        self._is_again = True

    # The file -------------------------------------------------------------------------------------

    def _read(self, learn: Learner) -> list[Line]:
        columns, lines = self._found()
        if columns and not set(_ALWAYS) <= set(columns):
            measured = [name for cb in learn.cbs if isinstance(cb, MetricsCB) for name in cb.names]
            measured = list(dict.fromkeys([*measured[:-1], *declared(learn.cbs), *measured[-1:]]))
            expected = ["epoch", "train", *measured, "lr", "time_s"]
            raise ValueError(
                f"{self!r}: the file there has the columns {', '.join(columns)}; expected a log with "
                f"{', '.join(expected)}: choose another file, or move it away"
            )
        return lines

    def _found(self) -> tuple[list[str], list[Line]]:
        """Return the columns and lines of the file; none of a file that is missing or empty."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")  # a spreadsheet puts a mark before it
        except FileNotFoundError:
            return [], []
        except UnicodeDecodeError as error:
            raise ValueError(f"{self!r}: the file there is not text in UTF-8 ({error})") from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        lines: list[Line] = list(reader)
        return [*(reader.fieldnames or ())], lines

    def _kept(self, lines: list[Line], n_marked: int | None) -> list[Line]:
        """Return the lines that stay: ours, and those that others wrote since; not those to be replaced."""
        found = self._found()[1]
        ours = [_as_text(line) for line in lines]
        if not found:  # it was moved away
            return lines
        if [_as_text(line) for line in found[: len(ours)]] != ours:
            warn(
                f"{self!r}: the file was changed by another program; its lines stay, and new ones come after "
                "them"
            )
            self._is_again, self._n_before = False, len(found)
            return found
        rest, own = found[len(ours) :], ours[self._n_before :]
        if self._is_again and (own or n_marked is not None):  # else this fit has written no line yet
            first = max((n_marked or 0) - len(ours), 0)  # those before it are of others
            rest = rest[:first] + rest[first + _n_continuing(own, rest[first:]) :]
        self._is_again = False
        if rest:
            self._n_before = len(lines) + len(rest)
        return lines + rest

    def _write(self, lines: list[Line]) -> None:
        columns = list(dict.fromkeys(name for line in lines for name in line))
        columns.sort(key=lambda name: name in ("lr", "time_s"))  # last, after what callbacks add
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        with written_whole(self.path) as file:
            file.write(text.getvalue().encode())

    # The mark beside it ---------------------------------------------------------------------------

    @property
    def _mark_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.unfinished")

    def _marked(self) -> dict[str, int]:
        """Return the fits that write to the file, or died, and how many lines were there before each."""
        with suppress(FileNotFoundError, ValueError):
            found = json.loads(self._mark_path.read_text())
            return found if isinstance(found, dict) else {}
        return {}

    def _mark(self, marked: dict[str, int]) -> None:
        if not marked:
            self._mark_path.unlink(missing_ok=True)
            return
        with written_whole(self._mark_path) as file:
            file.write(json.dumps(marked).encode())


def _start_of(learn: Learner) -> str:
    """Return what is the same in each start of a fit that can be resumed: its folder and number; or ""."""
    folders = [str(cb.saves_to.resolve()) for cb in learn.cbs if cb.saves_to is not None]
    return f"fit {learn.n_fits} of {folders[0]}" if folders else ""


def _as_text(line: Line) -> Line:
    """Return a line as the file has it, without empty fields, for comparison."""
    return {name: str(value) for name, value in line.items() if value not in (None, "")}


def _n_continuing(ours: list[Line], rest: list[Line]) -> int:
    """Return how many lines of the rest continue our fit, up to one of an earlier place: another run's."""
    seen = {(line.get("epoch"), line.get("train")) for line in ours}
    epoch = int(ours[-1]["epoch"]) if ours else 0
    for i, line in enumerate(rest):
        place = (line.get("epoch"), line.get("train"))
        if place in seen or not str(place[0]).isdecimal() or int(str(place[0])) < epoch:
            return i
        seen.add(place)
        epoch = int(str(place[0]))
    return len(rest)
