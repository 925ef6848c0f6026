"""CheckpointCB: the complete state of a run on disk, as often as you like."""

from __future__ import annotations

import math
import signal
import threading
import time
import uuid
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..arguments import number, unless_none, whole_number
from ..arguments import path as checked_path
from ..callback import Callback, Order
from ..checkpoints.begun import Begun
from ..checkpoints.best import Bests, best_name, give_name
from ..checkpoints.run_file import bit_differences, made_by, run_facts, write_run_file
from ..checkpoints.run_folder import RunFolder
from ..checkpoints.settings import setting_differences, settings_of
from ..checkpoints.snapshot import (
    BEST,
    Saved,
    capture_beginning,
    capture_rest,
    capture_weights,
    check_opt,
    checkpoints_in,
    name_of,
    needs_of,
    position_of,
    without_what_is_the_same,
)
from ..files import write_torch
from ..plan import Position
from ..processes import whole_in_first
from ..warning import warn
from ..weights import tensors_by_name
from .averaging import seen_by_validation
from .monitor import Monitor

if TYPE_CHECKING:
    from ..learner import Learner


class CheckpointCB(Callback):
    """Write checkpoints from which `learn.fit(n, resume=folder)` continues, bit for bit::

        learn = Learner(model, dls, cbs=[CheckpointCB("runs/1", every_minutes=10)])
        learn.fit(50, resume=True)  # start the script again after a crash, and it continues

    A checkpoint holds model, loss, optimizer, with plain attributes of theirs that have changed, callbacks
    (see Callback.state_dict), history, random numbers, samplers and the position in the data. What it would
    hold is tried, without writing, after the first batch of training and of validation. It is written under a
    temporary name, synced and renamed, so the folder has only complete files. One is always written when the
    fit ends, also when Ctrl-C, SIGTERM or SIGHUP ends it early. If the newest is damaged, a resumed fit uses
    the one before it, and renames the damaged one.

    While a fit runs, the folder is locked: the same script, started a second time, is refused. The lock ends
    with its process, however that ends.

    Args:
        folder: created if need be; for one run only. A relative one is relative to the working directory at
            this call, even if that changes later.
        every_steps, every_epochs, every_minutes: how often, each >= 1 (minutes > 0); several may be given.
            None given: after each epoch.
        keep: how many of the newest to keep, >= 1.
        monitor: also keep `best.pt`, from the epoch with the best value of this name in the rows of history,
            such as "eval/loss"; a bare name means that of validation.
        mode: "min" or "max"; may be left out for a loss.
        keep_best: with a monitor, also keep `best-epoch-0007.pt` and the like, the checkpoints of so many
            best epochs, >= 1. `best.pt` is then a second name of the best one, a hard link where the file
            system has these. One that is no longer among the best is removed after the next checkpoint, when
            no resumed run can need it. A resumed run whose folder lacks one warns at the end of its first
            epoch, and the next good epoch takes its place.
        signals: more signals that stop the fit as SIGTERM does, such as (signal.SIGUSR1,), which a batch
            system sends before the job's time is up. With several processes, any one may get it.

    Runs at: prepare, release, before_fit, before_train, before_validate, cleanup_train, cleanup_validate,
        after_epoch, cleanup_epoch, at_rest; order 2000, after all others. Writes: saved_to, the newest
        checkpoint; run_id.
    State: best, the best value so far, and the best epochs. Files: epoch-0002-train-000263.pt, whose next
        batch is number 263 of epoch 2 (of the learner's life, from 0), or -valid-, and -valid2- in the second
        validation set; best.pt; run.json, with versions, commit, command, settings and a fingerprint of the
        data; .lock, while a fit runs; those of a damaged checkpoint end in .damaged.
    Raises: before training: RuntimeError for a folder to which another process is writing; ValueError for
        signals that have a handler, and for signals in a thread, where they cannot have one; ValueError for a
        folder that has another run's checkpoints, a loader that cannot resume inside an epoch, a monitored
        name that is not measured; TypeError, with its name, for what a
        checkpoint cannot hold. OSError, during training, for a full disk and the like: existing checkpoints
        stay intact.
    """

    order = Order.CHECKPOINT
    in_evaluation = False
    in_lr_find = False
    free_on_resume: ClassVar[tuple[str, ...]] = (
        "folder",
        "every_steps",
        "every_epochs",
        "every_minutes",
        "keep",
        "keep_best",
    )

    def __init__(
        self,
        folder: str | Path,
        every_steps: int | None = None,
        every_epochs: int | None = None,
        every_minutes: float | None = None,
        keep: int = 2,
        monitor: str | None = None,
        mode: str | None = None,
        signals: Iterable[int] = (),
        keep_best: int | None = None,
    ) -> None:
        every_steps, every_epochs = (
            unless_none(whole_number, name, value)
            for name, value in (("every_steps", every_steps), ("every_epochs", every_epochs))
        )
        every_minutes = unless_none(number, "every_minutes", every_minutes, above=0)
        if monitor is None and mode is not None:
            raise ValueError(f"mode={mode!r} without monitor: expected the name of the value to monitor")
        self.folder, self._as_given = checked_path("CheckpointCB(folder", folder).absolute(), str(folder)
        self.signals = _checked(signals)
        self._in_folder = RunFolder(self.folder, repr(self))
        if (every_steps, every_epochs, every_minutes) == (None, None, None):
            every_epochs = 1
        self.every_steps, self.every_epochs, self.every_minutes = every_steps, every_epochs, every_minutes
        self.keep = whole_number("keep", keep)
        self.keep_best = unless_none(whole_number, "keep_best", keep_best)
        if monitor is None and keep_best is not None:
            raise ValueError(
                f"keep_best={keep_best!r} without monitor: expected the name of the value to monitor"
            )
        self.monitor = Monitor(monitor, mode) if monitor is not None else None
        self._bests: Bests | None = None
        if self.monitor is not None and self.keep_best is not None:
            self._bests = Bests(self.keep_best, self.monitor.is_better)
        self.best: float | None = None
        self._is_best = self._is_good = False  # of the epoch that ends: the best, or one of the best
        self._are_loaded = False  # whether the best epochs are of the resumed run, with files not looked for
        self._last_step, self._last_s = 0, 0.0
        self._at_validation: Saved | None = None
        self._is_untried = False  # whether nothing was captured in this kind of phase yet
        self._settings: Saved = {}  # when the fit began
        self._made_by: Saved = {}  # versions and hardware
        self._needs: dict[bool, set[str]] = {}  # inside a phase or not -> see needs_of

    def __repr__(self) -> str:
        return f"CheckpointCB({self._as_given!r})"

    @property
    def saves_to(self) -> Path:
        """The folder."""
        return self.folder

    def state_dict(self) -> dict[str, Any]:
        """Return the best value with what it is of, and the step of the last checkpoint by steps."""
        state: dict[str, Any] = {"best": self.best, "_last_step": self._last_step}
        state |= {} if self._bests is None else {"bests": self._bests.state_dict()}
        return state | ({} if self.monitor is None else {"best_of": self.monitor.says()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them; a best value of another monitor is dropped."""
        self._last_step = state["_last_step"]
        is_same = self.monitor is not None and self.monitor.says() == state.get("best_of")
        self.best = state["best"] if is_same or "best_of" not in state else None
        if self._bests is not None and is_same and "bests" in state:
            self._bests.load_state_dict(state["bests"])
            self._are_loaded = True

    # Hooks ----------------------------------------------------------------------------------------

    def prepare(self, learn: Learner) -> None:
        self._in_folder = RunFolder(self.folder, repr(self))
        learn.run.saved_by(self.at_rest)
        self._check_signals()
        learn.run.stopped_by(self.signals)
        others = [cb for cb in learn.cbs if isinstance(cb, CheckpointCB) and cb is not self]
        if any(cb.folder.resolve() == self.folder.resolve() for cb in others):
            raise ValueError(f"two callbacks write to {str(self.folder)!r}: expected a folder for each")
        if self.folder.is_dir():  # now, before anything there is read or changed
            self._in_folder.take(learn)

    def release(self, learn: Learner) -> None:
        self._in_folder.free()

    def before_fit(self, learn: Learner) -> None:
        self._check(learn)
        learn.run.named(learn.processes.broadcast(learn.run_id or uuid.uuid4().hex))
        if learn.rank == 0:
            self._in_folder.check(learn)
        self._last_step, self._last_s = 0, learn.processes.broadcast(time.monotonic())
        begin(learn)
        self._needs, self._settings = {False: set()}, settings_of(learn)
        capture_rest(learn, Position(0), self._needs[False])
        self._made_by = made_by(learn)
        if learn.run.source is not None:
            saved = learn.run.source.saved
            for text in (*setting_differences(learn, saved, self._settings), *bit_differences(learn, saved)):
                warn(text)
        capture_weights(learn)  # raises now for what a checkpoint cannot hold, as capture_rest does
        learn.run.began("epoch", capture_beginning(learn))
        if learn.rank == 0:
            write_run_file(self.folder, run_facts(learn, self._settings))

    def before_train(self, learn: Learner) -> None:
        # A callback may have replaced dls.train.
        if why := learn.dls.adapter_of(learn.dl).why_not_resumable():
            raise ValueError(f"{self!r} cannot keep the position in the training loader: {why}")
        self._needs[True] = needs_of(learn)
        self._is_untried = learn.epoch == learn.plan.start.epoch and not learn.is_nested

    def cleanup_train(self, learn: Learner) -> None:
        if not learn.is_failing:
            learn.run.began("validation", capture_beginning(learn))

    def cleanup_validate(self, learn: Learner) -> None:
        if not learn.is_failing and len(learn.plan.sets) > 1:  # the next set begins
            learn.run.began("validation", capture_beginning(learn))

    def before_validate(self, learn: Learner) -> None:
        self._needs[True] = needs_of(learn)
        self._is_untried = learn.epoch == learn.plan.start.epoch and not learn.is_nested
        self._at_validation = None  # of an earlier set
        if learn.dls.adapter_of(learn.dl).why_not_resumable():  # it has to start again, from this state
            here = Position(learn.epoch, "eval", part=learn.plan.part)
            self._at_validation = deepcopy(capture_rest(learn, here))

    def after_epoch(self, learn: Learner) -> None:
        if self._bests is not None and self._are_loaded:
            self._forget_missing(learn, self._bests)
        if self.monitor is not None:
            value, best = self.monitor.value(learn), self.monitor.worst if self.best is None else self.best
            if self.monitor.is_better(value, best):
                self.best, self._is_best = value, True
            if self._bests is not None:
                self._is_good = self._bests.add(value, learn.n_epochs_trained - 1)

    def cleanup_epoch(self, learn: Learner) -> None:
        is_best, is_good, self._at_validation = self._is_best, self._is_good, None
        self._is_best = self._is_good = False
        # Here, because this epoch may also end the fit.
        if is_good:
            path = self._write(learn, best_name(learn.n_epochs_trained - 1), position_of(learn))
            if is_best and learn.rank == 0:
                give_name(path, BEST)
        elif is_best:
            self._write(learn, BEST, position_of(learn))

    def at_rest(self, learn: Learner) -> None:
        if self._is_untried and learn.scopes[-1:] != ["fit"]:
            # What the first batch made and no checkpoint can hold is found now, not after the epoch.
            self._is_untried = False
            self._rest_of(learn, position_of(learn))
            capture_weights(learn)
        if self._is_due(learn):
            position, rest = position_of(learn), None
            if position.phase == "eval" and self._at_validation is not None:
                if not learn.stop.is_asked:
                    return
                position, rest = position._replace(batch=0), self._at_validation
            self._last_step, self._last_s = learn.n_steps, _now_s(learn)
            learn.run.saved(self._write(learn, name_of(learn.n_epochs_trained, position), position, rest))
            if learn.rank == 0:
                for old in checkpoints_in(self.folder)[: -self.keep]:
                    old.unlink()
                if self._bests is not None:
                    self._bests.remove_dropped(self.folder)
            if self._bests is not None:
                self._bests.dropped.clear()
        if learn.scopes[-1:] == ["fit"]:
            learn.run.began("epoch", capture_beginning(learn))

    # Its parts ------------------------------------------------------------------------------------

    def _is_due(self, learn: Learner) -> bool:
        if not learn.scopes or learn.stop.is_asked:
            return True
        if self.every_steps and learn.n_steps % self.every_steps == 0 and learn.n_steps != self._last_step:
            return True
        if self.every_epochs and learn.scopes[-1] == "fit" and (learn.epoch + 1) % self.every_epochs == 0:
            return True
        return self.every_minutes is not None and _now_s(learn) - self._last_s >= 60 * self.every_minutes

    def _write(self, learn: Learner, name: str, position: Position, rest: Saved | None = None) -> Path:
        if rest is None:
            rest = self._rest_of(learn, position)
        begun = learn.run.beginnings if position.is_inside else {}
        begun = {key: without_what_is_the_same(beginning, rest) for key, beginning in begun.items()}
        best: Saved = {}
        if name.startswith("best"):  # the best weights, if training continues with others
            with seen_by_validation(learn):
                named = tensors_by_name(learn.model).items()
                best = {"best": {key: whole_in_first(t.detach()).clone() for key, t in named}}
        path, more = self.folder / name, {"settings": self._settings, "beginnings": begun}
        more["made_by"] = self._made_by
        saved = rest | capture_weights(learn) | best | more  # in all processes, to collect their shards
        if learn.rank == 0:
            if (found := checkpoints_in(self.folder)) and found[-1] != learn.saved_to:
                self._in_folder.check_run(learn, found[-1])  # another run may have begun to write here
            write_torch(path, saved)
        return path

    def _forget_missing(self, learn: Learner, bests: Bests) -> None:
        """Warn of best epochs whose files are gone from the folder of the resumed run, and forget them."""
        self._are_loaded, source = False, learn.run.source
        if source is None or source.path.parent.resolve() != self.folder.resolve():
            return  # they are in the folder that the run was resumed from
        here = bests.missing_in(self.folder), (self.folder / BEST).is_file()
        missing, has_best = learn.processes.broadcast(here)
        if not missing:
            return
        bests.forget(missing)
        if not has_best:
            self.best = bests.kept[0][0] if bests.kept else None
        if learn.rank:
            return
        if not has_best and bests.kept:
            give_name(self.folder / best_name(bests.kept[0][1]), BEST)
        warn(
            f"{self!r}: {', '.join(map(best_name, missing))} of the resumed run is no longer there: was it "
            "deleted, or moved? The next good epoch takes its place"
        )

    def _rest_of(self, learn: Learner, position: Position) -> Saved:
        """Return the state without weights. Raises: TypeError for what could not be loaded."""
        needs: set[str] = set()
        rest = capture_rest(learn, position, needs)
        if late := sorted(needs - self._needs[position.is_inside]):
            raise TypeError(
                f"{late[0]} was made after {'the phase' if position.is_inside else 'the fit'} began, so "
                "there would be no object to load it into: make it in before_fit, or define "
                "state_dict(self) and load_state_dict(self, state)"
            )
        return rest

    def _check(self, learn: Learner) -> None:
        check_opt(learn.opt)
        if why := learn.dls.adapters["train"].why_not_resumable():
            raise ValueError(f"{self!r} cannot keep the position in dls.train: {why}")
        if late := [cb for cb in learn.cbs if self.order < cb.order != Order.RESTORE]:
            raise ValueError(
                f"{late[0]!r} has order {late[0].order}, so it would run after its state was saved: expected "
                f"{self.order} or less"
            )
        if self.monitor is not None:
            self.monitor.check(learn)

    def _check_signals(self) -> None:
        if self.signals and threading.current_thread() is not threading.main_thread():
            raise ValueError(
                f"{self!r}: signals={self.signals!r} in a thread, where handlers cannot be set: expected a "
                "fit in the main thread, or no signals"
            )
        free = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
        for one in self.signals:
            if (handler := signal.getsignal(one)) not in free:
                raise ValueError(
                    f"{self!r}: signals has {one.name}, which has a handler already, {handler!r}: "
                    "expected one of the two"
                )


def _checked(signals: Iterable[int]) -> tuple[signal.Signals, ...]:
    said = f"CheckpointCB(signals={signals!r})"
    if not isinstance(signals, Iterable) or isinstance(signals, str):
        raise TypeError(f"{said}: expected several, such as (signal.SIGUSR1,)")
    found: list[signal.Signals] = []
    for one in signals:
        is_known = isinstance(one, int) and not isinstance(one, bool) and one in set(signal.Signals)
        if not is_known or signal.Signals(one).name in _NOT_FOR_STOPPING:
            raise ValueError(
                f"{said}: {one!r} cannot stop a fit: expected signals such as signal.SIGUSR1 or SIGXCPU"
            )
        found.append(signal.Signals(one))
    return tuple(dict.fromkeys(found))


# These cannot be handled, mean a fault in the program, or are used by torch to watch its workers.
_NOT_FOR_STOPPING = ("SIGKILL", "SIGSTOP", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGCHLD")


def _now_s(learn: Learner) -> float:
    """Return this process's time, or with several processes the first one's as of the last step."""
    if learn.n_processes == 1:
        return time.monotonic()
    clock_s = learn.processes.clock_s
    return -math.inf if clock_s is None else clock_s


def begin(learn: Learner) -> None:
    """Note what the learner is like, if this is its first fit with checkpoints."""
    if learn.run.begun is None:
        begun = Begun()
        learn.run.has_begun(begun)
        capture_rest(learn, position_of(learn))
        begun.is_beginning = False
