"""What the learner sets up before a fit or a phase, and restores after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints.resuming import resumed
from ..host import Pass
from ..optim.building import build_opt
from ..optim.groups import check_kept, check_step, params_of, set_lr
from ..parameters import elsewhere, extra_groups, named_params, roots_of
from ..plan import Plan
from ..seeding import kept_rng
from .checks import check_alone, check_batch, check_fields, check_makers, check_reduction, infer_loss
from .interrupts import interrupts
from .request import Paused, StopFetchError, stopped

if TYPE_CHECKING:
    from ..learner import Learner

_END = object()


@contextmanager
def fit_of(learn: Learner, cbs: Any, purpose: str, trains: bool) -> Iterator[None]:
    """Surround a fit, which a signal or `learn.pause()` may stop, and count it if it finishes."""
    try:
        with pass_of(learn, cbs, purpose, trains), interrupts(learn):
            yield
    except Paused:
        return
    if trains:
        learn.run.finish()


@contextmanager
def started(learn: Learner, resume: Any) -> Iterator[bool]:
    """Surround the epochs of a fit, or those left of a resumed one; give whether the fit has to run."""
    with resumed(learn, resume) as start:
        if start is not None:
            learn.plan = replace(learn.plan, start=start)
        yield start is not None
        check_fields(learn)
        if start is not None and not start.is_over:
            learn.stop.drop_pause()
            learn.stop.rest(learn)


@contextmanager
def pass_of(learn: Learner, cbs: Any, purpose: str, trains: bool) -> Iterator[None]:
    """Surround a pass that is not nested: prepare and release the callbacks, and restore the modes."""
    n_scopes = len(learn.scopes)
    learn.modes.begin()
    learn.epoch = learn.n_steps = learn.batch_idx = 0
    learn.is_accumulating = False
    learn.mean.begin()
    learn.processes.are(0, 1)  # unless DistributedCB says otherwise
    learn.run.begin()
    learn.cancelled_by.clear()
    with learn.extra_cbs(cbs, Pass(purpose, trains)), ExitStack() as prepared:
        try:
            for cb in learn.cbs:
                if learn.takes_part(cb):
                    prepared.callback(cb.release, learn)
                    cb.prepare(learn)
            check_alone(learn)
            yield
            learn.batch = learn.preds = None  # they and the last graph hold memory
            learn.loss = learn.loss.detach() if isinstance(learn.loss, torch.Tensor) else None
        finally:
            learn.modes.end()
            del learn.scopes[n_scopes:]  # a second signal may have come between any two lines


@contextmanager
def phase_of(learn: Learner, dl: Any, training: bool) -> Iterator[None]:
    """Set the loader, the model's mode and gradients for a phase.

    A nested phase, from a validate that a callback calls, leaves the fields of the outer batch as they were.
    """
    if learn.epoch and not learn.is_nested:
        check_fields(learn)
    outer, is_idle = {name: getattr(learn, name) for name in ("dl", "training")}, learn.processes.is_idle
    modes, surrounded = [], ExitStack()
    if {"train", "validate"} & set(learn.scopes):
        learn.modes.find()
        modules = [m for root in roots_of(learn) for m in root.modules()]
        modes = [(m, m.training, learn.modes.found.get(m)) for m in modules]
        surrounded.enter_context(learn._current.aside())
        surrounded.enter_context(learn.mean.aside())
        inner = ("batch_idx", "preds", "loss", "loss_count", "is_accumulating")
        outer |= {name: getattr(learn, name) for name in inner}
    try:
        learn.dl, learn.training = dl, training
        learn.modes.apply()
        if training:
            learn.dls.adapter_of(dl).set_epoch(learn.n_epochs_trained - 1)
        with torch.set_grad_enabled(training):
            yield
    finally:
        vars(learn).update(outer)
        learn.processes.are_idle(is_idle)
        surrounded.close()
        learn.modes.apply()
        for module, mode, found in modes:
            if learn.modes.found.get(module) == found:  # else it was frozen or unfrozen in this phase
                module.training = mode


def batches_of(learn: Learner) -> Iterator[tuple[int, Any]]:
    """Yield the batches that are left in a phase, each with its number."""
    first = 0 if learn.is_nested else learn.plan.first_batch(learn.phase, learn.epoch)
    adapter = learn.dls.adapter_of(learn.dl)
    with kept_rng() if first else nullcontext():  # the pass began earlier and has drawn its random numbers
        batches = adapter.read(first)
    is_free = not learn.is_nested and learn.mean.is_free(learn, adapter.targets)
    # Between batches the learner is at rest, unless reading changes the loader's state.
    may_stop = learn.rests and not adapter.moves_on
    i, learn.batch_idx = first, first - 1  # the batch before, for a stop while the first one is read
    while True:
        try:
            try:
                learn.stop.begin_fetch(may_stop)
                batch: Any = next(batches, _END)
            finally:
                learn.stop.end_fetch()
        except StopFetchError:  # also one that comes just after the batch was read
            learn.stop.end_fetch()
            learn.run.save(learn)  # at_rest has already fired; only saving is left
            raise stopped(learn) from None
        if batch is _END:
            break
        if is_free:
            learn.mean.given(batch[-1])
        yield i, batch
        if i == first and learn.epoch == learn.plan.start.epoch and not learn.is_nested:
            check_fields(learn)
        i += 1
    if i == 0:
        raise ValueError(
            f"the {learn.phase} loader gave no batch in epoch {learn.epoch}: expected at least one"
        )
    adapter.check_read(i)


def plan(learn: Learner, n_epochs: int, train: bool, valid: bool) -> None:
    """Plan the steps of a fit, and infer what was not given from a small batch."""
    phases = ("train",) * train + ("eval",) * valid
    learn.plan = Plan(n_epochs, phases, learn.scheduled_epochs(n_epochs), [0] * n_epochs)
    if train:  # callbacks that plan steps may read the other fields
        steps = learn.planned_steps(n_epochs, learn.dls.adapters["train"].n_batches)
        learn.plan = replace(learn.plan, epoch_steps=steps)
    learn.batch = None
    needs_target = learn.has_default("get_loss") or any(cb.needs_target for cb in learn.cbs)
    if learn.purpose in ("fit", "lr_find", "validate") and needs_target:
        for name in ["valid"] * valid + ["train"] * train:
            adapter = learn.dls.adapters[name]
            if name == "valid" and train and adapter.opens_to_peek:
                continue  # its first pass comes only after the training pass
            learn.batch = adapter.peek(learn.n_epochs_trained if name == "train" else None)
            check_batch(learn)
        if not learn.has_default("get_loss"):
            return
        if learn.loss_func is learn._made.loss_func:  # None, or inferred from other data
            learn.loss_func = learn._made.infer(infer_loss(learn.yb))
        check_reduction(learn)


def prepare_opt(learn: Learner, lr: float | Sequence[float] | None, reset_opt: bool) -> None:
    """Build the optimizer, or set the lr of the one that is kept."""
    is_new, makers = learn.opt is None or reset_opt, (learn.opt_func, learn.param_groups)
    if lr is None and learn._made.is_new_lr:
        lr = learn.lr
    if is_new:
        first_lr = learn.lr if lr is None else lr
        learn.opt = build_opt(
            *(learn.opt_func, learn.model, first_lr, learn.param_groups),
            *(extra_groups(learn), elsewhere(learn)),
        )
        learn._made.made_by(makers)
    else:
        check_kept(learn.opt, named_params(learn), elsewhere(learn))
        check_makers(learn._made.makers, makers)
    learn._made.use_lr()
    if lr is not None and (not is_new or learn.param_groups):  # it overrides an lr that a group has
        set_lr(learn.opt, lr)
    if learn.has_default("step"):
        check_step(learn.opt)
    for p in chain(named_params(learn).values(), params_of(learn.opt)):
        p.grad = None  # left by an interrupted fit, or by the user's own backward


@contextmanager
def side_run(learn: Learner, dl: Any) -> Iterator[list[dict[str, Any]]]:
    """Use `dl` as the validation loader and a separate history, which is given, inside a `with`."""
    learn.dls.adapter_of(dl, "dls valid").check_not_empty("given")
    history, dls, learn.history = learn.history, learn.dls, []
    learn.dls = dls.with_valid(dl)
    try:
        yield learn.history
    finally:
        learn.history, learn.dls = history, dls
