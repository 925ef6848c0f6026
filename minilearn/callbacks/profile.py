"""ProfileCB: where the time of a fit goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import choice, counted, flag, is_whole, path, shown
from ..callback import Callback, Hook, Order
from ..events import STEPS
from ..files import check_folder
from ..terminal import say

if TYPE_CHECKING:
    from ..learner import Learner

_STEPS = tuple(f"Learner.{step}" for step in STEPS)  # they have rows of their own in every table


class ProfileCB(Callback):
    """Measure the seconds of each step and hook and of waiting for data, and print a table when the fit ends.

    A row is a step of the algorithm with its owner, such as "Learner.backward"; a hook, such as
    "RecorderCB.after_step"; "data", the time between batches; or "the loop", the rest of the fit: the calls
    between these, and about 0.2 us for each to read the clock. The time of a hook that validates includes
    what runs in that validation, which also has its own rows.

    Args:
        sync: wait for the device after each step and hook, so that a row has the time of what it started, not
            of what it waited for; this slows the fit down.
        trace: also write a trace of torch.profiler to this file, for chrome://tracing or Perfetto.
        at: the batches of the first epoch to trace, from and to.

    Runs at: before_fit, before_batch, after_batch, cleanup_fit; order -1000, before all others.
    State: of the last fit: `seconds`, name -> (calls, seconds); total_s; n_steps.
    Raises: ValueError for an invalid range; before training, ValueError for a range that is never reached,
        and OSError for a folder that cannot be written.
    """

    order = Order.PROFILE
    in_evaluation = False
    in_each_process = False
    in_lr_find = False

    def __init__(
        self, sync: bool = False, trace: str | Path | None = None, at: tuple[int, int] = (10, 20)
    ) -> None:
        is_pair = isinstance(at, tuple | list) and len(at) == 2
        if not is_pair or not is_whole(at[0], 0) or not is_whole(at[1], at[0] + 1):
            raise ValueError(f"ProfileCB(at={shown(at)}): expected two numbers of batches, 0 <= from < to")
        self.sync, self.at = flag("ProfileCB(sync", sync), (int(at[0]), int(at[1]))
        self.trace = None if trace is None else path("ProfileCB(trace", trace).absolute()
        self.seconds: dict[str, tuple[int, float]] = {}
        self.total_s, self.n_steps = 0.0, 0
        self._start_s, self._left_s = 0.0, 0.0
        self._depth = 0  # of nested hooks
        self._inside_s = 0.0  # of the rows that are not nested in others
        self._profiler: Any = None

    def wrap_hook(self, name: str, hook: Hook) -> Hook:
        """Return a hook that is timed."""
        if name.startswith("ProfileCB."):
            return hook

        @wraps(hook)
        def timed(learn: Learner) -> Any:
            self._depth += 1
            start_s = time.perf_counter()
            try:
                return hook(learn)
            finally:
                if self.sync:
                    _wait()
                self._depth -= 1
                self._left_s = time.perf_counter()
                self._add(name, self._left_s - start_s)

        return timed

    def before_fit(self, learn: Learner) -> None:
        if self.trace is not None:
            check_folder(self, self.trace.parent)
            self._check_range(learn)
        self.seconds, self._inside_s, self._depth = {}, 0.0, 0
        self._start_s = self._left_s = time.perf_counter()

    def before_batch(self, learn: Learner) -> None:
        if self._depth == 0:  # else it is a validation in a hook, and part of that hook's time
            self._add("data", time.perf_counter() - self._left_s)
        if self.trace is not None and learn.training and learn.epoch == 0:
            self._trace(learn)

    def after_batch(self, learn: Learner) -> None:
        self._left_s = time.perf_counter()

    def cleanup_fit(self, learn: Learner) -> None:
        self._stop_trace()
        self.total_s, self.n_steps = time.perf_counter() - self._start_s, learn.n_steps
        if self.seconds:
            say(self.table())

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the times belong to this process."""
        return {}

    def table(self, by: str = "hook") -> str:
        """Return the rows as text, the slowest first.

        Args:
            by: "hook", or "callback" or "event" for the sums over each of these.
        """
        parts: dict[str, Callable[[str], str]] = {
            "hook": lambda name: name,
            "callback": lambda name: name if name in _STEPS else name.partition(".")[0],
            "event": lambda name: name.rpartition(".")[2],
        }
        choice("by", by, [*parts])
        sums: dict[str, tuple[int, float]] = {}
        for name, (n, seconds) in self.seconds.items():
            n_before, before = sums.get(parts[by](name), (0, 0.0))
            sums[parts[by](name)] = n_before + n, before + seconds
        rows = [(name, *row) for name, row in sums.items()]
        rows.append(("the loop", max(self.n_steps, 1), max(self.total_s - self._inside_s, 0.0)))
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'':{width}}{'calls':>9}{'seconds':>10}{'us a call':>12}{'share':>8}"]
        for name, n, seconds in sorted(rows, key=lambda row: -row[2]):
            share = seconds / self.total_s if self.total_s else 0.0
            lines.append(f"{name:{width}}{n:9}{seconds:10.3f}{seconds / n * 1e6:12.1f}{share:8.1%}")
        per_step = self.total_s / max(self.n_steps, 1) * 1e3
        return "\n".join(
            [*lines, f"{self.total_s:.3f} s, {counted(self.n_steps, 'step')}, {per_step:.3f} ms a step"]
        )

    def _add(self, name: str, seconds: float) -> None:
        n, before = self.seconds.get(name, (0, 0.0))
        self.seconds[name] = n + 1, before + seconds
        if self._depth == 0:
            self._inside_s += seconds

    # The trace ------------------------------------------------------------------------------------

    def _check_range(self, learn: Learner) -> None:
        n = learn.dls.adapters["train"].n_batches
        if n is not None and n <= self.at[0]:
            raise ValueError(
                f"ProfileCB(at={self.at!r}): there is nothing to trace, an epoch of training has "
                f"{counted(n, 'batch')} (0 to {n - 1})"
            )

    def _trace(self, learn: Learner) -> None:
        first, last = self.at
        if learn.batch_idx == first:
            from torch.profiler import profile

            self._profiler = profile()
            self._profiler.start()
        elif learn.batch_idx == last:
            self._stop_trace()

    def _stop_trace(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
            profiler.export_chrome_trace(str(self.trace))


def _wait() -> None:
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
