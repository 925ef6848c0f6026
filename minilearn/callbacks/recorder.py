"""RecorderCB: the values that each step used, over the learner's life."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import brief, text
from ..arguments import path as checked_path
from ..callback import Callback, Order
from ..notebook import curve
from ..optim.groups import groups_of
from ..plot import plot_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..learner import Learner

_CHUNK = 256  # tensors kept one by one before they are stacked


def g(path: str) -> Callable[[Any], Any]:
    """Return a function that reads a path of attributes, keys and indices, e.g. g("pg.betas.0").

    In RecorderCB it starts at the callback, which has `.learn` and `.pg`, the first parameter group.
    """
    parts = text("path", path, "names separated by single dots, such as 'pg.betas.0'").split(".")
    if not all(parts):
        raise ValueError(f"path={path!r}: expected names separated by single dots, such as 'pg.betas.0'")

    def read(start: Any) -> Any:
        value = start
        for part in parts:
            if isinstance(value, dict):
                value = value[part]
            elif isinstance(value, (list, tuple)):
                value = value[int(part)]
            else:
                value = getattr(value, part)
        return value

    read.path = path  # type: ignore[attr-defined]
    return read


def _as_it_is_now(value: Any) -> Any:
    """Return a value as it is now: a parameter, or a view of one, changes in place later."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone() if value.is_leaf or value._is_view() else value.detach()


def _as_tensor(values: list[Any]) -> Any:
    """Return floats as one tensor, float64, because a list of millions is slow to write."""
    return torch.tensor(values, dtype=torch.float64) if {float} == set(map(type, values)) else values


class RecorderCB(Callback):
    """Record values at each optimizer step, as the step used them.

    Args:
        **what: name -> a path (`g("pg.lr")` or simply "pg.lr"), or a function of this callback (which
            has `.learn` and `.pg`, the first parameter group; of the second one the lr is
            "learn.opt.param_groups.1.lr"). Default: lr, mom (momentum or beta1, where the optimizer has one)
            and loss.

    Runs at: before_fit, after_step, cleanup_train, cleanup_fit; order 50, before the schedulers (60) set the
        next step's values.
    State: `recs`, a dict of lists, one entry per step, continued from fit to fit. Tensors are copied and
        stay on their device until `recs` is read or the epoch ends.
    Raises: ValueError before training for a path into `pg` that does not exist.
    Source: document 003. Differs: there `[scheduler, recorder]` records the next step's lr.
    """

    order = Order.RECORDER
    may_come_and_go = True
    in_evaluation = False
    in_lr_find = False

    def __init__(self, **what: str | Callable[[RecorderCB], Any]) -> None:
        self._what = {name: g(value) if isinstance(value, str) else value for name, value in what.items()}
        for name, value in self._what.items():
            if not callable(value):
                raise TypeError(
                    f"RecorderCB({name}={value!r}): expected a path such as 'pg.lr', or a function"
                )
        self._bare = not what
        self._recs: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}  # values since the last _stack
        self._chunks: dict[str, list[Tensor]] = {}  # (<= _CHUNK, ...) each
        self._n_new = 0
        self.learn: Any = None
        self.pg: Any = None

    def __repr__(self) -> str:
        if not self._recs:
            return super().__repr__()
        first = next(iter(self._recs))  # counted without reading a value from the device
        n = len(self._recs[first]) + len(self._new[first]) + sum(map(len, self._chunks[first]))
        return f"RecorderCB({', '.join(self._recs)}: {n:,} steps)"

    def _repr_html_(self) -> str:
        try:
            return f"<p><code>{escape(repr(self))}</code></p>{self._curves()}"
        except Exception:  # a record is odd, or an attribute is missing
            return f"<p><code>{escape(repr(self))}</code></p>"

    def _curves(self) -> str:
        """Return a table with the last value of each record, and its curve if it is of numbers."""
        lines = []
        for name, values in self.recs.items():
            is_plain = bool(values) and all(isinstance(value, int | float) for value in values)
            last = f"{values[-1]:.4g}" if is_plain else brief(values[-1]) if values else ""
            cells = f"<th>{escape(name)}</th><td>{escape(last)}</td>"
            lines.append(f"<tr>{cells}<td>{curve(values) if is_plain else ''}</td></tr>")
        return f"<table>{''.join(lines)}</table>" if lines else ""

    def before_fit(self, learn: Learner) -> None:
        self.learn, self.pg = learn, groups_of(learn.opt)[0]
        if self._bare:
            self._what = self._defaults()
        for name, value in self._what.items():
            self._recs.setdefault(name, [])
            self._new.setdefault(name, [])
            self._chunks.setdefault(name, [])
            if path := getattr(value, "path", ""):
                self._check_path(name, path, value)
        self._readers = [(self._new[name].append, self._bound(value)) for name, value in self._what.items()]

    def _bound(self, value: Callable[[Any], Any]) -> Callable[[], Any]:
        """Return a function that reads a value, for the usual paths without walking them at each step."""
        match getattr(value, "path", "").split("."):
            case ["pg", key] if key in self.pg:
                return partial(self.pg.__getitem__, key)
            case ["pg", key, index] if isinstance(self.pg.get(key), tuple):
                pg, i = self.pg, int(index)
                return lambda: pg[key][i]
            case ["learn", name]:
                return partial(getattr, self.learn, name)
        return partial(value, self)

    def _defaults(self) -> dict[str, Callable[[Any], Any]]:
        what = {}
        if "lr" in self.pg:
            what["lr"] = g("pg.lr")
        for key, path in {
            "momentum": "pg.momentum",
            "betas": "pg.betas.0",
            "mom": "pg.mom",
            "beta1": "pg.beta1",
        }.items():
            if key in self.pg:
                what["mom"] = g(path)
                break
        return {**what, "loss": g("learn.loss")}

    def _check_path(self, name: str, path: str, value: Callable[[Any], Any]) -> None:
        if not hasattr(self, path.split(".")[0]):
            hint, last = "", path.rpartition(".")[2]
            if last in self.pg:
                hint = (
                    f"; did you mean 'pg.{last}'? That is of the first parameter group; of the second one it "
                )
                hint += f"is 'learn.opt.param_groups.1.{last}'"
            raise ValueError(f"RecorderCB({name}={path!r}): expected a path from pg or learn{hint}")
        if not path.startswith("pg."):
            return  # a path of the learner: what a step makes does not exist yet
        try:
            value(self)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            keys = ", ".join(key for key in self.pg if key != "params")
            raise ValueError(
                f"RecorderCB({name}={path!r}) is not there: the parameter group has {keys}"
            ) from error

    def after_step(self, learn: Learner) -> None:
        try:
            for append, read in self._readers:
                value = read()
                append(value if type(value) is float else _as_it_is_now(value))
        except BaseException:
            for new in self._new.values():
                del new[self._n_new :]  # no half row
            raise
        self._n_new += 1
        if self._n_new == _CHUNK:
            self._stack()

    def cleanup_train(self, learn: Learner) -> None:
        _ = self.recs

    def cleanup_fit(self, learn: Learner) -> None:
        self.learn = self.pg = None

    def _stack(self) -> None:
        """Store the new values: numbers in recs, tensors as one tensor per chunk, on their device."""
        for name, new in self._new.items():
            if new and all(isinstance(value, Tensor) and value.shape == new[0].shape for value in new):
                self._chunks[name].append(torch.stack(new))
            elif new:  # numbers, or tensors of different shapes
                self._read_chunks(name)
                self._recs[name].extend(v.tolist() if isinstance(v, Tensor) else v for v in new)
            new.clear()
        self._n_new = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the records, numbers as one tensor each."""
        recs = self.recs.items()
        return {name: _as_tensor(values) for name, values in recs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the records."""
        _ = self.recs
        for name, values in state.items():
            kept = values.tolist() if isinstance(values, Tensor) else values
            self._recs.setdefault(name, [])[:] = kept

    @property
    def recs(self) -> dict[str, list[Any]]:
        """What was recorded: name -> list with one value per step."""
        self._stack()
        for name in self._chunks:
            self._read_chunks(name)
        return self._recs

    def _read_chunks(self, name: str) -> None:
        for chunk in self._chunks[name]:
            self._recs[name].extend(chunk.tolist())
        self._chunks[name].clear()

    def plot(self, width: float = 4.0, height: float = 3.0) -> Figure:
        """Return a figure with one panel for each record, over steps, of `width` x `height` inches."""
        return plot_lines(self.recs, "step", width, height)

    def to_csv(self, path: str | Path) -> None:
        """Write the records to a file: the step, counted from 0, and a column for each record."""
        recs = self.recs
        with open(checked_path("path", path), "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *recs])
            writer.writerows([i, *row] for i, row in enumerate(zip(*recs.values(), strict=True)))
