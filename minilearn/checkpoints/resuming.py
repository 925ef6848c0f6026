"""Resuming a fit: find and check the checkpoint, and restore it before the batch that comes next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import counted
from ..callback import Callback, Order
from ..events import CancelFitException
from ..files import DamagedError
from ..optim.groups import PART, SCHEDULE_KEYS
from ..parameters import loss_tensors
from ..plan import Position
from ..seeding import set_rng_state
from ..terminal import say
from ..warning import warn
from ..weights import SUFFIX, check_alike, tensors_by_name
from .begun import Before
from .codec import Loader
from .loss import check_loss
from .settings import check_classes
from .snapshot import (
    Saved,
    all_in,
    capture_beginning,
    capture_fit,
    capture_weights,
    is_damaged,
    keyed,
    loaders_of,
    read,
    restore,
    restore_beginning,
    restore_loaders,
    state_of,
    with_what_is_the_same,
)

if TYPE_CHECKING:
    from ..learner import Learner


class Source:
    """A checkpoint that a fit resumes from, and what to undo if the fit fails before that."""

    def __init__(self, learn: Learner, path: Path, saved: Saved) -> None:
        self.path, self.saved, self.position = path, saved, Position(**saved["position"])
        self.rows = _loaded(saved["history"])
        self.epoch_steps: list[int | None] = saved["fit"]["epoch_steps"]
        self.is_put = False
        self._run = (learn.run_id, learn.n_fits)
        adapters = [(learn.dls.adapter_of(x), state) for x, state in _pure_loaders(learn, saved)]
        self._loaders = [(adapter, adapter.state(), state) for adapter, state in adapters]
        self._before: tuple[Saved, list[Any]] | None = None
        self._attributes: list[Before] = []  # as in the script, of those that beginnings set

    def begin(self, learn: Learner) -> None:
        """Make the learner part of the run, and give the loaders its seeds."""
        learn.run.resumes(self)
        for adapter, _, state in self._loaders:
            adapter.load_state(state)
        learn.run.is_at(self.saved["run"], self.saved["fit"]["index"])

    def check(self, learn: Learner) -> None:
        """Raise ValueError for weights of another dtype; warn of those that are not finite.

        It is called when callbacks have prepared the model.
        """
        for name, t in tensors_by_name(learn.model).items():
            there = self.saved["model"][name]
            if there.dtype != t.dtype:
                raise ValueError(
                    f"{self.path}: {name} is {there.dtype} in the file, and {t.dtype} in the model: expected "
                    "the same, because a resumed run keeps its dtype; learn.load converts"
                )
            if isinstance(t, torch.nn.Parameter) and not there.isfinite().all():
                warn(
                    f"{self.path}: {name} has numbers that are nan or infinite, so the run can only continue "
                    "with them: resume an earlier checkpoint, or begin again with a lower lr"
                )
                break

    def restore(self, learn: Learner) -> None:
        """Restore the checkpoint into the learner."""
        for attributes, name, value in reversed(self._attributes):
            attributes[name] = value
        restore(learn, self.saved)
        restore_loaders(learn, self.saved["loaders"])
        set_rng_state(_loaded(self.saved["rng"]))
        learn.processes.restored()
        self.is_put = True

    def restore_beginning(self, learn: Learner, what: str) -> None:
        """Restore the state with which the "epoch" or "validation" began, except the weights."""
        before = self._before or (capture_beginning(learn), list(learn.history))
        beginning = self.saved.get("beginnings", {}).get(what)
        if beginning is not None:
            beginning = with_what_is_the_same(beginning, self.saved)
            self._attributes += restore_beginning(learn, beginning, self.rows)
            learn.run.began(what, beginning)
        else:  # written by version 0.1
            learn.history[:] = self.rows
            n_trained = self.saved["fields"]["n_epochs_trained"]
            vars(learn)["n_epochs_trained"] = n_trained - (self.position.phase == "train")
        self._before = before

    def undo(self, learn: Learner) -> None:
        """Leave the learner as it was, unless the checkpoint has been restored."""
        if self.is_put:
            return
        learn.run.is_at(*self._run)
        if self._before is not None:
            restore_beginning(learn, *self._before)
        for adapter, state, _ in self._loaders:
            adapter.load_state(state)


# Before the fit -----------------------------------------------------------------------------------


@contextmanager
def resumed(learn: Learner, resume: str | Path | bool | None) -> Iterator[Position | None]:
    """Make a resumed fit continue where its checkpoint stood; give that place, or None to skip the fit.

    Raises: ValueError, TypeError or FileNotFoundError for `resume`; the learner is then as it was.
    """
    start = Position(0) if resume is None else _find(learn, resume)
    source: Source | None = learn.run.source
    try:
        with nullcontext() if source is None else learn.extra_cbs(_RestoreCB(source)):
            yield start
    except BaseException:
        if source is not None:
            source.undo(learn)
        raise


def _find(learn: Learner, resume: str | Path | bool) -> Position | None:
    """Find and check the checkpoint to resume from; return where it stood, None if the fit is skipped.

    The learner then has the checkpoint's run name and its loaders' seeds, and nothing else of it.
    """
    paths = _found(learn, resume)
    if not paths:  # the first start of a script that always passes resume
        _say(learn, "There is no checkpoint yet: a new run begins")
        learn.run.restarts()
        return Position(0)
    path, saved = _newest(learn, paths)
    check_alike(saved["model"], tensors_by_name(learn.model), path)
    check_loss(learn, saved, path)
    check_classes(learn, saved, path)
    index, n_fits = saved["fit"]["index"], learn.n_fits
    if path == Path(str(resume)).expanduser() or learn.run_id not in (None, saved["run"]):
        n_fits = index  # named directly, or of another run than the learner's: any of its fits will do
    if index < n_fits:
        learn.run.restarts()
        return Position(0)  # it is of an earlier fit, which is finished: this one starts from its end
    if index > n_fits:
        _skip(learn, saved)
        if learn.rank == 0:
            this, other = learn.n_fits + 1, index + 1
            say(
                f"Left out fit {this} of this run, which is finished: weights and rows are those of {path}, "
                f"of fit {other}"
            )
        return None
    _check(learn, saved, path)
    source = Source(learn, path, saved)
    source.begin(learn)
    position = source.position
    over = ": this fit is finished, nothing is left to train" if position.is_over else ""
    _say(learn, f"Resumed from {path}{over}")
    if position.is_over:
        _say_if_cut_short(learn, saved)
    return position


def _newest(learn: Learner, paths: list[Path]) -> tuple[Path, Saved]:
    """Read the first of these checkpoints that is not damaged; warn of those before it."""
    errors: list[DamagedError] = []
    for path in paths:
        try:
            saved = read(path)
        except DamagedError as error:
            errors.append(error)
            continue
        learn.run.leaves_out([path.resolve() for path in paths[: len(errors)]])
        if learn.rank == 0:
            for why in errors:
                warn(f"{why}; the fit resumes from an older one, {path.name}")
        return path, saved
    folder = paths[0].parent
    if len(paths) == 1 and not all(is_damaged(path) for path in all_in(folder)):
        more = f"; resume={str(folder)!r} resumes from the newest one there that is not damaged"
        raise DamagedError(f"{errors[0]}{more}") from errors[0]
    raise DamagedError("; ".join(map(str, errors))) from errors[0]


def _found(learn: Learner, resume: str | Path | bool) -> list[Path]:
    """Return the checkpoints that `resume` stands for, the newest first; none for a folder without one."""
    folders = [cb.saves_to for cb in learn.cbs if cb.saves_to is not None]
    if resume is True:
        if len(folders) != 1:
            raise ValueError(
                f"fit(resume=True) means the folder of the CheckpointCB: expected one, {len(folders)} here"
            )
        resume = folders[0]
    if isinstance(resume, bool) or not isinstance(resume, str | Path):
        raise TypeError(f"fit(resume={resume!r}): expected a folder of checkpoints, a checkpoint, or True")
    path = Path(resume).expanduser()
    if path.suffix == SUFFIX:
        return [path]
    if (found := all_in(path)) or any(path.resolve() == folder.resolve() for folder in folders):
        return found
    raise FileNotFoundError(
        f"fit(resume={str(resume)!r}): there is no checkpoint there, and no CheckpointCB writes to it"
    )


def _check(learn: Learner, saved: Saved, path: Path) -> None:
    """Raise ValueError, with what differs, unless the learner matches the one of the checkpoint."""
    now = capture_fit(learn) | {"epoch_steps": _steps_with(learn, saved)}
    here: Any
    there: Any
    for name, what, why in (
        ("n_epochs", "epochs", "for more of them, call fit again after this one"),
        ("phases", "phases", "is the validation loader missing?"),
        ("epoch_steps", "steps in its epochs", "is the batch size different, or the data?"),
    ):
        here, there = now[name], saved["fit"][name]
        if here != there:
            raise ValueError(
                f"{path} is of a fit with {_brief(there)} {what}, but this one has {_brief(here)}; {why}"
            )
    here, there = (_told(fit.get("epoch_batches")) for fit in (now, saved["fit"]))
    if here != there:
        raise ValueError(
            f"{path} is of a fit with epochs of {there}, but this one has epochs of {here}; are others "
            "accumulated for a step?"
        )
    here, there = now.get("sets", ["eval"]), saved["fit"].get("sets", ["eval"])
    if "eval" in learn.phases and here != there:
        raise ValueError(
            f"{path} is of a fit with the validation sets {', '.join(there)}, but this one has "
            f"{', '.join(here)}: expected the same, in the same order"
        )
    here, there = capture_weights(learn)["opt"], saved["opt"]
    if here["class"] != there["class"]:
        raise ValueError(
            f"{path} is of a run with {there['class']}, but the optimizer here is {here['class']}"
        )
    _check_groups(here, there, path)
    here, there = keyed(learn.cbs), saved["cbs"]
    _warn_of_callbacks(here, there)
    if missing := [k for k, state in there.items() if state and k not in here and not _may_go(k)]:
        raise ValueError(
            f"{path} has the state of {missing[0]}, which is not among the callbacks here: "
            f"{', '.join(here) or 'none'}; add it"
        )
    for name, loader in loaders_of(learn).items():
        now_state = state_of(learn, loader)
        if name in saved["loaders"] and (now_state is None) != (saved["loaders"][name] is None):
            kinds = ("no state", "a state")
            has = saved["loaders"][name] is not None
            raise ValueError(
                f"{path} is of a run with other data: its {name} loader had {kinds[has]}, but this one "
                f"has {kinds[not has]}"
            )
    for loader, state in _pure_loaders(learn, saved):
        try:
            copy(loader).load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path} is of a run with other data: {error}") from None


def _told(epoch_batches: list[int] | None) -> str:
    return f"{_brief(epoch_batches)} batches" if epoch_batches else "one pass"


def _steps_with(learn: Learner, saved: Saved) -> list[int | None]:
    """Return the steps of each epoch, planned with the seed and the first epoch of the run.

    Only a loader whose epochs differ in length depends on these.
    """
    adapter, state = learn.dls.adapters["train"], saved["loaders"].get("train")
    n, fields = learn.n_epochs, _loaded(saved["fields"])
    first = fields["n_epochs_trained"] - 1 - fields["epoch"]
    if not state or adapter.moves_on or adapter.state() is None or first < 0:
        return list(learn.epoch_steps)
    there = adapter.beside()
    try:
        there.load_state(_loaded(state))
    except ValueError:  # the data differs, which is said below
        return list(learn.epoch_steps)
    return learn.planned_steps(n, there.lengths(first, n))


def _check_added(learn: Learner, saved: Saved, path: Path) -> None:
    """Raise ValueError for a callback with a state that the checkpoint lacks; before_fit may make this."""
    there = saved["cbs"]
    new = {key: cb for key, cb in keyed(learn.cbs).items() if key not in there and not _may_go(key)}
    if added := [key for key, cb in new.items() if cb.state_dict()]:
        raise ValueError(
            f"{path} has no state of {added[0]}: it is of a run with {', '.join(there) or 'none'}"
        )


def _warn_of_callbacks(here: Iterable[str], there: Saved) -> None:
    for key in [key for key in there if key not in here and _may_go(key)]:
        lost = ": its state is not kept" if there[key] else ""
        warn(f"the resumed run had {key}, which is not among the callbacks here{lost}")
    for key in [key for key in here if key not in there and _may_go(key)]:
        warn(f"{key} is new, the resumed run did not have it: it begins with the batch that comes next")


def _may_go(key: str) -> bool:
    """Whether a resumed fit may add or leave out a callback of this name, whose class declares it."""
    kinds = [Callback]
    for kind in kinds:
        kinds += kind.__subclasses__()
    name = key.split(" ")[0]  # it may be numbered
    return any(kind.__name__ == name and kind.may_come_and_go for kind in kinds)


def _check_groups(here: Any, there: Any, path: Path) -> None:
    if len(here["params"]) != len(there["params"]):
        raise ValueError(
            f"{path} is of an optimizer with {len(there['params'])} parameter groups, but this one "
            f"has {len(here['params'])}"
        )
    for i, (a, b) in enumerate(zip(here["params"], there["params"], strict=True)):
        if a != b:
            odd = [name for name in [*b, *a] if name not in a or name not in b] or ["their order"]
            raise ValueError(f"{path} has other parameters in group {i} of the optimizer, such as {odd[0]}")
    groups = [part["state"].get("param_groups", []) for part in (here, there)]  # not there for a wrapper
    for i, (a, b) in enumerate(zip(*groups, strict=True)):
        if a.get(PART) != b.get(PART):
            raise ValueError(
                f"{path} has group {i} of the optimizer in {b.get(PART)}, but here it is in {a.get(PART)}"
            )
        gained = {key for part in (here, there) for key in part.get("gained", {}).get(i, ())}
        if odd := sorted((a.keys() ^ b.keys()) - gained - set(SCHEDULE_KEYS)):
            place = "only here" if odd[0] in a else "only in the file"
            raise ValueError(f"{path}: {odd[0]} is {place}, in group {i} of the optimizer")


def _pure_loaders(learn: Learner, saved: Saved) -> list[tuple[Any, Any]]:
    """Return the loaders whose order is a pure function of their state, each with its state."""
    states = saved["loaders"]
    known = {name: x for name, x in loaders_of(learn).items() if x is not None}
    parts = [(x, states[name]) for name, x in known.items() if not learn.dls.adapter_of(x).moves_on]
    return [(loader, _loaded(state)) for loader, state in parts if state]


def _skip(learn: Learner, saved: Saved) -> None:
    """Give a learner whose fit is already finished the newest weights and rows."""
    learn.run.named(saved["run"])
    learn.history[:] = _loaded(saved["history"])
    for name, t in tensors_by_name(learn.model).items():
        t.detach().copy_(_loaded(saved["model"][name]))
    for name, t in loss_tensors(learn).items():
        t.detach().copy_(_loaded(saved["loss"]["tensors"][name]))


def _loaded(saved: Any) -> Any:
    return Loader(torch.device("cpu"), "").load(saved, None, "")


def _brief(value: Any) -> str:
    if isinstance(value, list) and len(value) > 1 and value.count(value[0]) == len(value):
        return f"{len(value)} times {value[0]}"
    return str(value)


def _say_if_cut_short(learn: Learner, saved: Saved) -> None:
    if (by := saved["fit"].get("cancelled_by")) and learn.rank == 0:
        n_steps, total = saved["fields"]["n_steps"], learn.total_steps
        after = counted(n_steps, "step") if total is None else f"{n_steps} of {counted(total, 'step')}"
        say(f"This fit was cut short by {by} after {after}; for more, call fit again")


def _say(learn: Learner, text: str) -> None:
    if learn.rank == 0 and learn.shows_progress:
        say(text)


# In the fit ---------------------------------------------------------------------------------------


class _RestoreCB(Callback):
    """Restore a checkpoint, after all hooks that had run when it was written.

    `before_fit` runs as in a new fit. Then the state is the one with which the epoch began, or its validation
    if the checkpoint is from there: hooks at the beginning of an epoch and of a phase see it. After the last
    of these hooks it is that of the checkpoint.
    """

    order = Order.RESTORE
    in_nested = False

    def __init__(self, source: Source) -> None:
        self.source = source

    def state_dict(self) -> dict[str, Any]:
        return {}

    def before_fit(self, learn: Learner) -> None:
        _check_added(learn, self.source.saved, self.source.path)
        position = self.source.position
        self.source.check(learn)
        if position.is_over:
            raise CancelFitException  # only what before_fit opened is left to close
        if position.is_inside:
            self.source.restore_beginning(learn, "epoch")
        else:
            self.source.restore(learn)
            learn.run.began("epoch", capture_beginning(learn))

    def before_epoch(self, learn: Learner) -> None:
        if not self.source.is_put and self.source.position.phase == "eval":
            if "train" in learn.phases:  # the training pass is over, and validation may read the same loader
                n_trained = self.source.saved["fields"]["n_epochs_trained"]
                learn.dls.adapters["train"].begin_epoch(n_trained - 1, learn.epoch)
            self.source.restore_beginning(learn, "validation")

    def before_train(self, learn: Learner) -> None:
        self._put_inside(learn)

    def before_validate(self, learn: Learner) -> None:
        self._put_inside(learn)

    def _put_inside(self, learn: Learner) -> None:
        if not self.source.is_put:
            self.source.restore(learn)
            learn.modes.apply()

    def cleanup_epoch(self, learn: Learner) -> None:
        if not learn.is_failing:  # a hook may have cancelled it before its batches
            self._put_inside(learn)

    def cleanup_fit(self, learn: Learner) -> None:
        if not (self.source.is_put or learn.is_failing):
            self.source.restore(learn)
        if self.source.position.is_over:
            learn.cancelled_by["fit"] = self.source.saved["fit"].get("cancelled_by", "")
