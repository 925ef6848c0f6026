"""verify_resume: a check that a learner can be stopped and resumed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from fastcore.basics import listify
from torch import nn

from .arguments import counted, whole_number
from .batches import tensors_in
from .callback import Callback
from .callbacks.checkpoint import CheckpointCB, begin
from .callbacks.csv_logger import CSVLoggerCB
from .callbacks.loggers import BaseLoggerCB
from .callbacks.progress import ProgressCB
from .callbacks.throughput import ThroughputCB
from .callbacks.time_limit import TimeLimitCB
from .checkpoints.begun import Begun, attributes_of
from .checkpoints.codec import NoFormError, differences, digest_of
from .checkpoints.snapshot import Saved, Savers, capture, keyed, position_of
from .fitting.mean import trained
from .fitting.request import PAUSE
from .fitting.steps import steps_of_epochs
from .parameters import all_tensors
from .plan import sum_of
from .seeding import kept_rng, set_seed

if TYPE_CHECKING:
    from .learner import Learner

# They write to the run's own places, look at the clock or end the fit by it.
_LEFT_OUT = (ProgressCB, CheckpointCB, CSVLoggerCB, BaseLoggerCB, ThroughputCB, TimeLimitCB)
_MOST_STEPS = 10**6
_NEVER = ("train", 0, -1)
Trace = list[dict[str, bytes]]


def verify_resume(learn: Learner, at: int | None = None, n_epochs: int | None = None, **kwargs: Any) -> str:
    """Train copies of a learner, stop and resume some of them, and compare; see `Learner.verify_resume`."""
    steps = kwargs.get("n_steps"), kwargs.get("epoch_steps")
    at, n_epochs, stops = _stops(learn, at, n_epochs, kwargs.get("valid", True), *steps)
    given = [cb for cb in listify(kwargs.pop("cbs", None)) if not isinstance(cb, _LEFT_OUT)]

    def run(copied: Any, cbs: list[Callback], **more: Any) -> _End:
        trace = _TraceCB()
        with kept_rng(), copied.extra_cbs(deepcopy(given)):
            if "resume" in more:
                set_seed(2**32 - 1)  # a new process has any state
            copied.fit(n_epochs, cbs=[*cbs, trace], **kwargs, **more)
            return _End(trace.steps, capture(copied, position_of(copied)), _held_by(copied))

    first, second = run(_copy(learn), []), run(_copy(learn), [])
    if said := _first_step(first.trace, second.trace, 0):
        raise RuntimeError(
            f"two straight runs of this learner differ, so no resumed one can be the same: first in {said}; "
            "does the dataset remember, is a generator not seeded, or a kernel not deterministic?"
        )
    if len(first.trace) <= at:
        raise ValueError(
            f"verify_resume(at={at}): the fit has {counted(len(first.trace), 'step')}, n_epochs={n_epochs}"
        )
    said_of = []
    for stop in stops:
        with tempfile.TemporaryDirectory() as folder:
            saver = _StopCB(folder, *stop)
            with suppress(_StoppedError):
                run(_copy(learn), [saver])
            if saver.stopped_at is None:
                continue  # nothing is saved there, such as in the validation of an average
            resumed = run(_copy(learn), [_StopCB(folder, *_NEVER)], resume=folder)
        where, n = saver.where(), saver.stopped_at
        if said := _first_step(first.trace[n:], resumed.trace, n):
            raise RuntimeError(f"the run resumed {where} differs from the straight one: first in {said}")
        said = _compare_ends(first, second, resumed, where)
        said_of.append(where)
    return f"resumed {' and '.join(said_of)}: {said}"


def _stops(
    learn: Learner,
    at: int | None,
    n_epochs: int | None,
    valid: bool,
    n_steps: int | None,
    epoch_steps: int | None,
) -> tuple[int, int, list[tuple[str, int, int]]]:
    """Return the step of the first stop, the epochs of the fit, and all stops as (phase, epoch, count)."""
    if n_epochs is not None:
        n_epochs = whole_number("verify_resume(n_epochs", n_epochs, of=" of epochs")
    n_planned = 2 if n_epochs is None else n_epochs

    def steps(n: int) -> list[int | None]:
        if n_steps is not None or epoch_steps is not None:
            return [*steps_of_epochs(learn, n, n_steps, epoch_steps)]
        return learn.planned_steps(n, learn.dls.adapters["train"].lengths(learn.n_epochs_trained, n))

    planned = steps(n_planned)
    per_epoch, is_default = planned[0], at is None
    epoch = min(1, len(planned) - 1) if per_epoch else 0
    if at is None:
        at = epoch * (per_epoch or 0) + max(1, (planned[epoch] or 2) // 2)
    at = whole_number("verify_resume(at", at, 1, _MOST_STEPS, of=" of steps")
    if n_epochs is None and n_steps is not None:
        n_epochs = 1  # as many as the steps take
    elif n_epochs is None:
        if not per_epoch:
            raise ValueError("verify_resume: the train loader has no length, so n_epochs has to be given")
        n_epochs = at // per_epoch + 1
        while (sum_of(steps(n_epochs)) or at + 1) <= at:  # later epochs may be shorter than the first
            n_epochs += 1
    stops = [("train", 0, at)]
    if is_default and valid and learn.dls.valid is not None:
        n_batches = learn.dls.adapters[learn.dls.valid_keys[-1]].n_batches
        stops.append(("eval", epoch, (n_batches or 1) // 2))
    return at, n_epochs, stops


@dataclass
class _End:
    trace: Trace
    saved: Saved
    held: dict[str, bytes]  # digests of what is trained or counts, by its path


def _compare_ends(first: _End, second: _End, resumed: _End, where: str) -> str:
    unlike = {path for path, _ in differences(first.saved, second.saved)}
    begin = f"the run resumed {where} differs from the straight one at the end"
    for path, how in differences(first.saved, resumed.saved):
        if path not in unlike and not path.startswith(_OF_THE_RUN):
            raise RuntimeError(f"{begin}: {path}: {how}")
    names = first.held.keys() | second.held.keys() | resumed.held.keys()
    odd_in_both = {name for name in names if first.held.get(name) != second.held.get(name)}
    for name in sorted(names - odd_in_both):
        if first.held.get(name) != resumed.held.get(name):
            raise RuntimeError(
                f"{begin}: {name}, which the checkpoint lacks: return it in state_dict(self) of the callback "
                "that has it, or keep it in a buffer or a plain attribute of the model"
            )
    saved = first.saved
    parts = f"{counted(len(saved['model']), 'tensor')} of the model, the optimizer, "
    parts += (
        f"{counted(len(saved['cbs']), 'callback')}, {counted(len(saved['history']), 'row')}, random numbers"
    )
    said = f"the same bit for bit ({parts})"
    unlike = {path for path in unlike if not path.startswith(_OF_THE_RUN)} | odd_in_both
    if odd := sorted({re.sub(r"\[\d+\]", "[*]", path) for path in unlike}):
        said += f"; not compared, because straight runs differ in it: {', '.join(odd)}"
    return said


class _Everything(Begun):
    """Take everything as changed, and as loadable."""

    def __init__(self) -> None:
        super().__init__()
        self.is_beginning = False

    def is_as_it_was(self, path: str, digest: bytes) -> bool:
        return False

    def could_load(self, needs: set[str]) -> bool:
        return True


def _held_by(learn: Learner) -> dict[str, bytes]:
    """Return digests of all that is trained or counts: tensors, plain attributes, modules, optimizers.

    Unlike a checkpoint, this does not ask callbacks for their state.
    """
    savers = Savers(learn, _Everything())
    found = {
        f"{root}.{name}.{key}" if name else f"{root}.{key}": digest_of(form)
        for root, parts in savers.attributes(learn).items()
        for name, values in parts.items()
        for key, form in values.items()
    }
    for i, p in enumerate(trained(learn)):
        found[f"parameter {i} of the optimizer"] = digest_of(p.detach())
    holders = {key: vars(cb) for key, cb in keyed(learn.cbs).items()}
    for key, attributes in {**holders, "learn": learn.own_fields()}.items():
        for path, value in _trainable_in(attributes, key, set()):
            with suppress(NoFormError):
                found[path] = digest_of(savers.of(value).save(value, path))
    return found


def _trainable_in(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Give the modules, optimizers and parameters in attributes, however nested, with their paths."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module | torch.optim.Optimizer | nn.Parameter):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in list(value.items()):
            yield from _trainable_in(inner, f"{path}.{key}", seen)
    elif isinstance(value, list | tuple | set):
        for i, inner in enumerate(value):
            yield from _trainable_in(inner, f"{path}[{i}]", seen)


def _first_step(a: Trace, b: Trace, start: int) -> str:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if odd := next((name for name in x if x[name] != y[name]), None):
            return f"the {odd} of step {start + i}{_HINTS[odd]}"
    return f"step {start + min(len(a), len(b))}, which only one has" if len(a) != len(b) else ""


_OF_THE_RUN = ("run", "fit.index", "attributes", "identities.kept")  # the straight ones wrote no checkpoints
_HINTS = {
    "batch": " (its samples depend on more than seed, epoch and index)",
    "loss": " (with the same batch: it depends on random numbers, or on state that is not in the checkpoint)",
    "weights": " (with the same loss: look at the optimizer, or a callback that changes the step)",
}


class _StoppedError(BaseException):
    """Simulate the end of a process."""


class _StopCB(CheckpointCB):
    """Save at one place, and end the process there, so to speak: (phase, epoch, batches), or a step."""

    free_on_resume = ("folder", "phase", "epoch", "count")

    def __init__(self, folder: str, phase: str, epoch: int, count: int) -> None:
        super().__init__(folder, every_steps=10**9)
        self.place = phase, epoch, count
        self.stopped_at: int | None = None  # steps

    def at_rest(self, learn: Learner) -> None:
        phase, epoch, count = self.place
        is_inside = learn.scopes[-1:] == ["validate"] and (learn.epoch, learn.batch_idx) == (epoch, count)
        is_inside = is_inside and learn.plan.part == len(learn.plan.sets) - 1
        is_here = learn.n_steps == count if phase == "train" else is_inside
        if is_here:
            learn.stop.hear(PAUSE, 1)  # so that it is saved in any case
        super().at_rest(learn)
        if is_here:
            self.stopped_at = learn.n_steps
            raise _StoppedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def where(self) -> str:
        phase, epoch, _ = self.place
        return f"after step {self.stopped_at}" if phase == "train" else f"in the validation of epoch {epoch}"


class _TraceCB(Callback):
    """Keep a hash of what each step got and produced."""

    order = CheckpointCB.order

    def __init__(self) -> None:
        self.steps: Trace = []
        self.n_steps = 0  # before this batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def before_fit(self, learn: Learner) -> None:
        begin(learn)  # in all runs, so that their states have the same form

    def before_batch(self, learn: Learner) -> None:
        if learn.training:
            self.n_steps = learn.n_steps

    def after_batch(self, learn: Learner) -> None:
        # Not after a batch whose gradients are accumulated for a later step.
        if learn.training and learn.n_steps > self.n_steps:
            parts = {"batch": learn.batch, "loss": learn.loss, "weights": all_tensors(learn)}
            self.steps.append({name: digest_of([*tensors_in(part)]) for name, part in parts.items()})


def _copy(learn: Learner) -> Any:
    """Copy a learner; the copy shares the data and the callbacks that are left out of it."""
    left_out = [cb for cb in learn.cbs if isinstance(cb, _LEFT_OUT)]
    memo = {id(part): part for part in [*left_out, *_data_of(learn)]}
    done = dict(memo)  # a failed copy would leave halves in memo
    try:
        copied = deepcopy(learn, done)
        for opt, new in zip(_optimizers_of(learn), _optimizers_of(copied), strict=True):
            own = attributes_of(opt, with_modes=False)  # which torch's copy of an optimizer lacks
            lost = own.keys() - vars(new).keys()
            vars(new).update({name: deepcopy(own[name], done) for name in lost})
    except Exception as error:
        raise TypeError(f"verify_resume works on copies, and {_odd_part(learn, memo)} ({error})") from error
    copied.drop_cbs(lambda cb: isinstance(cb, _LEFT_OUT))
    copied.run.is_at(None, 0)
    copied.run.has_begun(None)
    return copied


def _optimizers_of(learn: Learner) -> list[Any]:
    """Return the optimizer, and the parts of several in one, whose copies lack their own attributes."""
    return [] if learn.opt is None else [learn.opt, *getattr(learn.opt, "parts", ())]


def _data_of(learn: Learner) -> list[Any]:
    """Return the tensors and arrays of the data sets, which no run changes."""
    return [part for adapter in learn.dls.adapters.values() for part in adapter.data()]


def _odd_part(learn: Learner, memo: dict[int, Any]) -> str:
    for cb in learn.cbs:
        try:
            deepcopy(cb, {**memo, id(learn): learn})
        except Exception:
            return f"{cb!r} cannot be copied"
    return "this learner cannot be copied"
