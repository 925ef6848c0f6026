"""Going on with a fit: the checkpoint is found and checked, and put back before the batch that comes next."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .callbacks.checkpoint import CheckpointCB
from .callbacks.progress import ProgressCB
from .checkpoint import (
    BEST,
    Position,
    Saved,
    capture_rest,
    capture_weights,
    checkpoints_in,
    loaders_of,
    put,
    read,
)
from .checks import check_fields
from .data.loaders import batches_from
from .events import CancelFitException
from .interrupts import StopFetchError, stopped
from .optim.groups import SCHEDULE_KEYS
from .seeding import set_rng_state
from .state import Loader, has_state
from .weights import SUFFIX, check_alike, tensors_by_name

if TYPE_CHECKING:
    from .learner import Learner

_END = object()


@dataclass
class Resume:
    """A checkpoint that a fit is about to go on from, and what to put back if it does not come to that."""

    path: Path
    saved: Saved
    position: Position
    before: dict[str, Any]
    loaders: list[tuple[Any, Any]]

    def undo(self, learn: Learner) -> None:
        """Leave the learner as it was before it."""
        learn.history[:] = self.before["history"]
        learn.n_epochs_trained = self.before["n_epochs_trained"]
        learn.run.is_at(*self.before["run"])
        for loader, state in self.loaders:
            loader.load_state_dict(state)


# Before the fit -----------------------------------------------------------------------------------


def begin_resume(learn: Learner, resume: str | Path | bool) -> bool:
    """Find and check the checkpoint to go on from; return whether there is a fit to run.

    Until `restore`, only the history, the count of epochs and the loaders' seeds are the checkpoint's.
    """
    if (path := _found(learn, resume)) is None:  # the first start of a script that resumes itself
        _say(learn, "There is no checkpoint yet: a new run begins")
        return True
    try:
        saved = read(path)
    except ValueError as error:
        if older := checkpoints_in(path.parent)[:-1]:
            raise ValueError(f"{error}; the one before it: resume={str(older[-1])!r}") from error
        raise
    check_alike(saved["model"], tensors_by_name(learn.model), path)
    index, n_fits = saved["fit"]["index"], learn.n_fits
    if path == Path(str(resume)).expanduser() or learn.run_id not in (None, saved["run"]):
        n_fits = (
            index  # asked for by name, or of another run than the learner's: no matter which fit it is of
        )
    if index < n_fits:
        return True  # of a fit that is finished: this one starts from its end
    if index > n_fits:
        _skip(learn, saved)
        if learn.rank == 0:
            this, other = learn.n_fits + 1, index + 1
            print(f"Left out fit {this} of this run, which is finished: {path} is of fit {other}")
        return False
    _check(learn, saved, path)
    position = Position(**saved["position"])
    before = {"n_epochs_trained": learn.n_epochs_trained, "run": (learn.run_id, learn.n_fits)}
    before["history"] = list(learn.history)
    loaders = _pure_loaders(learn, saved)
    learn.resuming = Resume(path, saved, position, before, [(part, part.state_dict()) for part, _ in loaders])
    for loader, state in loaders:
        loader.load_state_dict(state)
    learn.run.is_at(saved["run"], index)
    learn.n_epochs_trained = saved["fields"]["n_epochs_trained"] - (position.phase == "train")
    learn.history[:] = _loaded(saved["history"])
    over = ": this fit is finished, nothing is left to train" if position.phase == "over" else ""
    _say(learn, f"Resumed from {path}{over}")
    return True


def _found(learn: Learner, resume: str | Path | bool) -> Path | None:
    folders = [cb.folder for cb in learn.cbs if isinstance(cb, CheckpointCB)]
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
        return path
    if found := checkpoints_in(path):
        return found[-1]
    if (path / BEST).is_file():  # of a run that ended before its first checkpoint, but after an epoch
        return path / BEST
    if any(path.resolve() == folder.resolve() for folder in folders):
        return None
    raise FileNotFoundError(
        f"fit(resume={str(resume)!r}): there is no checkpoint there, and no CheckpointCB writes to it"
    )


def _check(learn: Learner, saved: Saved, path: Path) -> None:
    """Raise ValueError, with what differs, unless the learner is as the one of the checkpoint."""
    now = capture_rest(learn, Position(0))
    here: Any
    there: Any
    for name, what, why in (
        ("n_epochs", "epochs", "for more of them, call fit once again after this one"),
        ("phases", "phases", "is the validation loader missing?"),
        ("epoch_steps", "steps in its epochs", "is it another batch size, or other data?"),
    ):
        here, there = now["fit"][name], saved["fit"][name]
        if here != there:
            raise ValueError(
                f"{path} is of a fit with {_brief(there)} {what}, this one has {_brief(here)}; {why}"
            )
    here, there = capture_weights(learn)["opt"], saved["opt"]
    if here["class"] != there["class"]:
        raise ValueError(f"{path} is of a run with {there['class']}, the optimizer here is {here['class']}")
    _check_groups(here, there, path)
    here, there = now["cbs"], saved["cbs"]
    if missing := [key for key, state in there.items() if state and key not in here]:
        raise ValueError(
            f"{path} has the state of {missing[0]}, not among the callbacks here: "
            f"{', '.join(here) or 'none'}; give it too"
        )
    if added := [key for key, state in here.items() if state and key not in there]:
        raise ValueError(
            f"{path} has no state of {added[0]}: it is of a run with {', '.join(there) or 'none'}"
        )
    for name, now_state in now["loaders"].items():
        if name in saved["loaders"] and (now_state is None) != (saved["loaders"][name] is None):
            kinds = ("no state", "a state")
            has = saved["loaders"][name] is not None
            raise ValueError(
                f"{path} is of a run with other data: its {name} loader had {kinds[has]}, this one has "
                f"{kinds[not has]}"
            )
    for loader, state in _pure_loaders(learn, saved):
        try:
            copy(loader).load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path} is of a run with other data: {error}") from None


def _check_groups(here: Any, there: Any, path: Path) -> None:
    if len(here["params"]) != len(there["params"]):
        raise ValueError(
            f"{path} is of an optimizer with {len(there['params'])} parameter groups, this one has "
            f"{len(here['params'])}"
        )
    for i, (a, b) in enumerate(zip(here["params"], there["params"], strict=True)):
        if a != b:
            odd = [name for name in [*b, *a] if name not in a or name not in b] or ["their order"]
            raise ValueError(f"{path} has other parameters in group {i} of the optimizer: {odd[0]}, for one")
    groups = [part["state"]["param_groups"] for part in (here, there)]
    for i, (a, b) in enumerate(zip(*groups, strict=True)):
        if odd := sorted((a.keys() ^ b.keys()) - set(SCHEDULE_KEYS)):
            place = "only here" if odd[0] in a else "only in the file"
            raise ValueError(f"{path}: {odd[0]} is {place}, in group {i} of the optimizer")


def _pure_loaders(learn: Learner, saved: Saved) -> list[tuple[Any, Any]]:
    """Return the loaders whose order is a pure function of their state, each with its state."""
    states = saved["loaders"]
    parts = [(x, states[name]) for name, x in loaders_of(learn).items() if hasattr(x, "batches")]
    return [(loader, _loaded(state)) for loader, state in parts if state]


def _skip(learn: Learner, saved: Saved) -> None:
    """Give a learner whose fit was finished before the newest weights and rows that there are."""
    learn.run.named(saved["run"])
    learn.history[:] = _loaded(saved["history"])
    for name, t in tensors_by_name(learn.model).items():
        t.detach().copy_(_loaded(saved["model"][name]))


def _loaded(saved: Any) -> Any:
    return Loader(torch.device("cpu"), "").load(saved, None, "")


def _brief(value: Any) -> str:
    if isinstance(value, list) and len(value) > 1 and value.count(value[0]) == len(value):
        return f"{len(value)} times {value[0]}"
    return str(value)


def _say(learn: Learner, text: str) -> None:
    if learn.rank == 0 and any(isinstance(cb, ProgressCB) for cb in learn.cbs):
        print(text)


# In the loop --------------------------------------------------------------------------------------


def epochs_of(learn: Learner) -> Iterator[int]:
    """Give the epochs that are left to a fit."""
    first = 0
    if learn.resuming is not None:
        position = learn.resuming.position
        if position.phase == "over":
            raise CancelFitException  # what is left is to close what before_fit opened
        if not position.is_inside:
            _restore(learn)
        first = position.epoch
    for epoch in range(first, learn.n_epochs):
        yield epoch
        if epoch == first:
            check_fields(learn)


def is_trained(learn: Learner) -> bool:
    """Whether the epoch's training was over when the run that goes on stopped."""
    return learn.resuming is not None and learn.resuming.position.phase == "eval"


def batches_of(learn: Learner) -> Iterator[tuple[int, Any]]:
    """Give the batches that are left to a phase, each with its number."""
    first = 0
    if learn.resuming is not None:
        first, rng = learn.resuming.position.batch, learn.resuming.saved["rng"]
        _restore(learn)
    batches = batches_from(learn.dl, first)
    if first:  # a loader may draw when its pass begins, as it did before
        set_rng_state(_loaded(rng))
    # Between batches all is at rest, unless the loader moves on while it reads, and remembers it.
    may_stop = not learn.is_aside and (hasattr(learn.dl, "batches") or not has_state(learn.dl))
    i, learn.batch_idx = first, first - 1  # of the batch before, for a stop while the first one is read
    while True:
        try:
            try:
                learn.stop.begin_fetch(may_stop)
                batch = next(batches, _END)
            finally:
                learn.stop.end_fetch()
        except StopFetchError:  # also one that comes when the batch was just read
            learn.stop.end_fetch()
            _save(learn)
            raise stopped(learn) from None
        if batch is _END:
            break
        yield i, batch
        if i == first and learn.epoch == 0:
            check_fields(learn)
        i += 1
    if i == 0:
        raise ValueError(
            f"the {learn.phase} loader gave no batch in epoch {learn.epoch}: expected at least one"
        )


def _save(learn: Learner) -> None:
    """Save between two batches, where at_rest has fired already, for all but what saves."""
    for cb in learn.cbs if "train" in learn.phases else ():
        if isinstance(cb, CheckpointCB):
            cb.at_rest(learn)


def end_resume(learn: Learner) -> bool:
    """Put back the state of a fit that was over when its checkpoint was written; return whether it was."""
    if learn.resuming is None or learn.resuming.position.phase != "over":
        return False
    _restore(learn)
    return True


def _restore(learn: Learner) -> None:
    saved, position = learn.resuming.saved, learn.resuming.position
    put(learn, saved)
    for name, loader in loaders_of(learn).items():  # the last is that of the phase
        if name in saved["loaders"] and saved["loaders"][name]:
            loader.load_state_dict(_loaded(saved["loaders"][name]))
    if position.is_inside:
        learn.modes.apply()
    set_rng_state(_loaded(saved["rng"]))
    learn.resuming = None
