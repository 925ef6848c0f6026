"""verify_resume: a check that a learner can be stopped and resumed."""

from __future__ import annotations

import hashlib
import re
import tempfile
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from fastcore.basics import listify

from .arguments import whole_number
from .batches import tensors_in
from .callback import Callback
from .callbacks.checkpoint import CheckpointCB
from .callbacks.loggers import CSVLoggerCB, TensorBoardCB
from .callbacks.progress import ProgressCB
from .checkpoints.codec import differences
from .checkpoints.snapshot import Saved, capture, position_of
from .parameters import all_tensors
from .seeding import kept_rng, set_seed

if TYPE_CHECKING:
    from .learner import Learner

_LEFT_OUT = (ProgressCB, CheckpointCB, CSVLoggerCB, TensorBoardCB)  # they write to the run's own places
_MOST_STEPS = 10**6
Trace = list[dict[str, str]]


def verify_resume(learn: Learner, at: int | None = None, n_epochs: int | None = None, **kwargs: Any) -> str:
    """Train copies of a learner, stop and resume one of them after `at` steps, and compare.

    There are four runs: two straight through, one until the stop, and one that resumes from its checkpoint,
    with all random generators in another state. The batch, loss and weights of each step and the whole state
    at the end are compared bit for bit: model, optimizer, callbacks, history, random numbers. The learner
    itself stays as it is.

    Args:
        at: a step of the fit, >= 1. Default: the middle of the first epoch.
        n_epochs: of the fit. Default: as many as it takes to get beyond `at`.
        **kwargs: more arguments of `fit`.

    Returns: what was found equal, and what could not be compared because it differs between the straight
        runs too, such as a callback's clock.
    Raises: RuntimeError that names the first difference; TypeError for what cannot be copied or saved.
    """
    per_epoch = learn.planned_steps(1, learn.dls.adapters["train"].n_batches)[0]
    if at is None:
        at = max(1, (per_epoch or 2) // 2)
    at = whole_number("verify_resume(at", at, 1, _MOST_STEPS, of=" of steps")
    if n_epochs is None:
        if not per_epoch:
            raise ValueError("verify_resume: the train loader has no length, so n_epochs has to be given")
        n_epochs = at // per_epoch + 1
    given = [cb for cb in listify(kwargs.pop("cbs", None)) if not isinstance(cb, _LEFT_OUT)]

    def run(copied: Any, cbs: list[Callback], **more: Any) -> tuple[Trace, Saved]:
        trace = _TraceCB()
        with kept_rng(), copied.extra_cbs(deepcopy(given)):
            if "resume" in more:
                set_seed(2**32 - 1)  # a new process has any state
            copied.fit(n_epochs, cbs=[*cbs, trace], **kwargs, **more)
            return trace.steps, capture(copied, position_of(copied))

    first, second = run(_copy(learn), []), run(_copy(learn), [])
    if said := _first_step(first[0], second[0], 0):
        raise RuntimeError(
            f"two straight runs of this learner differ, so no resumed one can be the same: first in {said}; "
            "does the dataset remember, is a generator not seeded, or a kernel not deterministic?"
        )
    if len(first[0]) <= at:
        raise ValueError(f"verify_resume(at={at}): the fit has {len(first[0])} steps, n_epochs={n_epochs}")
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointCB(folder, every_steps=at)
        with suppress(_StoppedError):
            run(_copy(learn), [saver, _StopCB(at)])
        resumed = run(_copy(learn), [CheckpointCB(folder, every_steps=at)], resume=folder)
    if said := _first_step(first[0][at:], resumed[0], at):
        raise RuntimeError(f"the resumed run differs from the straight one: first in {said}")
    return _compare_ends(first[1], second[1], resumed[1], at)


def _compare_ends(first: Saved, second: Saved, resumed: Saved, at: int) -> str:
    unlike = {path for path, _ in differences(first, second)}
    for path, how in differences(first, resumed):
        if path not in {*unlike, *_OF_THE_RUN}:
            raise RuntimeError(f"the resumed run differs from the straight one at the end: {path}: {how}")
    parts = f"{len(first['model'])} tensors of the model, the optimizer, {len(first['cbs'])} callbacks"
    parts += f", {len(first['history'])} rows, random numbers"
    said = f"resumed after step {at}: the same bit for bit ({parts})"
    if odd := sorted({re.sub(r"\[\d+\]", "[*]", path) for path in unlike}):
        said += f"; not compared, because straight runs differ in it: {', '.join(odd)}"
    return said


def _first_step(a: Trace, b: Trace, start: int) -> str:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if odd := next((name for name in x if x[name] != y[name]), None):
            return f"the {odd} of step {start + i}{_HINTS[odd]}"
    return f"step {start + min(len(a), len(b))}, which only one has" if len(a) != len(b) else ""


_OF_THE_RUN = ("run", "fit.index")  # the straight ones wrote no checkpoints
_HINTS = {
    "batch": " (its samples depend on more than seed, epoch and index)",
    "loss": " (with the same batch: it depends on random numbers, or on state that is not in the checkpoint)",
    "weights": " (with the same loss: look at the optimizer, or a callback that changes the step)",
}


class _StoppedError(BaseException):
    """Simulate the end of a process."""


class _StopCB(Callback):
    order = CheckpointCB.order

    def __init__(self, at: int) -> None:
        self.at = at

    def state_dict(self) -> dict[str, Any]:
        return {}

    def at_rest(self, learn: Learner) -> None:
        if learn.n_steps == self.at:
            raise _StoppedError


class _TraceCB(Callback):
    """Keep a hash of what each step got and produced."""

    order = CheckpointCB.order

    def __init__(self) -> None:
        self.steps: Trace = []
        self.n_steps = 0  # before this batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def before_batch(self, learn: Learner) -> None:
        if learn.training:
            self.n_steps = learn.n_steps

    def after_batch(self, learn: Learner) -> None:
        # Not after a batch whose gradients are accumulated for a later step.
        if learn.training and learn.n_steps > self.n_steps:
            parts = {"batch": learn.batch, "loss": learn.loss, "weights": all_tensors(learn)}
            self.steps.append({name: _digest(part) for name, part in parts.items()})


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for t in tensors_in(value):
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _copy(learn: Learner) -> Any:
    """Copy a learner; the copy shares the data and the callbacks that are left out of it."""
    left_out = [cb for cb in learn.cbs if isinstance(cb, _LEFT_OUT)]
    memo = {id(part): part for part in [*left_out, *_data_of(learn)]}
    try:
        copied = deepcopy(learn, dict(memo))  # a failed copy would leave halves in memo
    except Exception as error:
        raise TypeError(f"verify_resume works on copies, and {_odd_part(learn, memo)} ({error})") from error
    copied.drop_cbs(lambda cb: isinstance(cb, _LEFT_OUT))
    copied.run.is_at(None, 0)
    return copied


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
