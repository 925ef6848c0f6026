"""What the learner sets up before a fit or a phase, and restores after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints.resuming import resumed
from ..host import Pass, stray
from ..optim.building import build_opt
from ..optim.groups import check_kept, check_step, has_modes, needs_closure, params_of, set_lr
from ..parameters import all_params, elsewhere, extra_groups, named_params, roots_of
from ..plan import Plan
from ..seeding import kept_rng
from .checks import (
    check_alone,
    check_batch,
    check_fields,
    check_makers,
    check_model,
    check_reduction,
    warn_of_norms,
)
from .interrupts import interrupts
from .layers import watch
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
def started(learn: Learner, resume: Any, closure_cb: Callable[[], Any]) -> Iterator[bool]:
    """Surround the epochs of a fit, or those left of a resumed one; give whether the fit has to run.

    Args:
        closure_cb: makes the owner of `step` for an optimizer that needs a closure.
    """
    needs_one = "train" in learn.phases and learn.has_default("step") and needs_closure(learn.opt)
    owner = learn.extra_cbs(closure_cb()) if needs_one else nullcontext()
    with owner, resumed(learn, resume) as start:
        if start is not None:
            steps = learn.epoch_steps if learn.run.source is None else learn.run.source.epoch_steps
            learn._set_plan(replace(learn.plan, start=start, epoch_steps=steps))
        yield start is not None
        check_fields(learn)
        if start is not None and not start.is_over:
            learn.stop.drop_pause()
            learn._rest()


@contextmanager
def pass_of(learn: Learner, cbs: Any, purpose: str, trains: bool) -> Iterator[None]:
    """Surround a pass that is not nested: prepare and release the callbacks, and restore the modes."""
    check_model(learn.model, learn.loss_func, learn.opt_func)  # which may have been set since
    n_scopes = len(learn.scopes)
    learn.modes.begin()
    learn._begin()
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
    modes, is_idle, surrounded = [], learn.processes.is_idle, ExitStack()
    surrounded.enter_context(learn.kept("dl", "training"))
    if {"train", "validate"} & set(learn.scopes):
        learn.modes.find()
        modules = [m for root in roots_of(learn) for m in root.modules()]
        modes = [(m, m.training, learn.modes.found.get(m)) for m in modules]
        surrounded.enter_context(learn._batch_aside())
        surrounded.enter_context(learn.modes.evaluating())
    try:
        learn._set_phase(dl, training)
        learn.modes.apply()
        if training:
            learn.dls.adapter_of(dl).begin_epoch(learn.n_epochs_trained - 1, learn.epoch)
            learn.mean.begin_epoch(learn)
        with torch.set_grad_enabled(training):
            yield
        if training:
            learn.mean.end_epoch(learn)
    finally:
        learn.processes.are_idle(is_idle)
        surrounded.close()
        learn.modes.apply()
        for module, mode, found in modes:
            if learn.modes.found.get(module) == found:  # else it was frozen or unfrozen in this phase
                module.training = mode


@contextmanager
def reading(learn: Learner, first: int) -> Iterator[Iterator[tuple[int, Any]]]:
    """Read the batches of a phase, from number `first` on, inside a `with`, which gets them numbered.

    A request to stop that comes while a batch is read does not wait for it.
    """
    adapter = learn.dls.adapter_of(learn.dl)
    with kept_rng() if first else nullcontext():  # the pass began earlier and has drawn its random numbers
        read = adapter.read(first)
    # Between batches the learner is at rest, unless reading changes the loader's state.
    may_stop = learn.rests and not adapter.moves_on
    is_free = not learn.is_nested and learn.mean.is_free(learn, adapter)
    is_first = learn.epoch == learn.plan.start.epoch and not learn.is_nested
    try:
        with watch(learn, is_first) as watching:
            after_first: list[Callable[[], None]] = [watching.close]
            after_first += [partial(check_fields, learn)] * is_first
            batches = _numbered(learn, read, first, may_stop, is_free, after_first)
            with learn.stop.while_reading(batches) if may_stop else nullcontext():
                yield batches
    except StopFetchError:  # also one that comes just after the batch was read
        learn.run.save(learn)  # at_rest has already fired; only saving is left
        raise stopped(learn) from None
    finally:
        adapter.end(read)
    if learn.batch_idx < 0:
        name = learn.plan.row_of(learn)
        raise ValueError(f"the {name} loader gave no batch in epoch {learn.epoch}: expected at least one")
    adapter.check_read(learn.batch_idx + 1)


def _numbered(
    learn: Learner,
    read: Iterator[Any],
    first: int,
    may_stop: bool,
    is_free: bool,
    after_first: list[Callable[[], None]],
) -> Iterator[tuple[int, Any]]:
    i = first
    while True:
        if may_stop and learn.stop.asked is not None:  # since the last batch
            raise StopFetchError
        batch: Any = next(read, _END)
        if batch is _END:
            return
        if is_free:
            learn.mean.given(batch[-1])
        yield i, batch
        if i == first:
            for check in after_first:
                check()
        i += 1


def plan(learn: Learner, n_epochs: int, train: bool, valid: bool) -> None:
    """Plan the steps of a fit, and infer what was not given from a small batch."""
    phases = ("train",) * train + ("eval",) * valid
    sets = tuple(learn.dls.sets) or ("eval",)
    learn._set_plan(Plan(n_epochs, phases, learn.scheduled_epochs(n_epochs), [0] * n_epochs, sets=sets))
    if train:  # callbacks that plan steps may read the other fields
        lengths = learn.dls.adapters["train"].lengths(learn.n_epochs_trained, n_epochs)
        steps = learn.planned_steps(n_epochs, lengths)
        learn._set_plan(replace(learn.plan, epoch_steps=steps))
    learn.batch = None
    needs_target = learn.has_default("get_loss") or any(cb.needs_target for cb in learn.cbs)
    if learn.purpose in ("fit", "lr_find", "validate") and needs_target:
        for name in [*learn.dls.valid_keys] * valid + ["train"] * train:
            adapter = learn.dls.adapters[name]
            if name != "train" and train and adapter.opens_to_peek:
                continue  # its first pass comes only after the training pass
            try:
                learn.batch = adapter.peek(learn.n_epochs_trained if name == "train" else None)
            except StopIteration as error:
                raise stray(error, f"the {name} loader") from error
            check_batch(learn)
        if not learn.has_default("get_loss"):
            return
        if learn.loss_func is learn._made.loss_func:  # None, or inferred from other data
            learn._infer_loss(learn.yb)
        check_reduction(learn)


def opt_for(learn: Learner, lr: float | Sequence[float] | None, reset_opt: bool) -> Any:
    """Return the optimizer of a fit: a new one, or the one that is kept, with the lr of this fit."""
    opt, makers = None if reset_opt else learn.opt, (learn.opt_func, learn.param_groups)
    is_new = opt is None
    if lr is None and learn._made.is_new_lr:
        lr = learn.lr
    if is_new:
        first_lr = learn.lr if lr is None else lr
        opt = build_opt(
            *(learn.opt_func, learn.model, first_lr, learn.param_groups),
            *(extra_groups(learn), elsewhere(learn)),
        )
        learn._made.made_by(makers, opt)
        if has_modes(opt) and not any(getattr(cb, "measures_norms", False) for cb in learn.cbs):
            warn_of_norms(learn, opt)
    else:
        check_kept(opt, named_params(learn), elsewhere(learn))
        check_makers(learn._made.makers, makers)
    learn._made.use_lr()
    has_own_lr = learn.param_groups or getattr(learn.opt_func, "has_own_lr", False)
    if lr is not None and (not is_new or has_own_lr):  # it overrides an lr that a group has
        set_lr(opt, lr)
    if learn.has_default("step"):
        check_step(opt)
    for p in chain(all_params(learn), params_of(opt)):
        p.grad = None  # left by an interrupted fit, or by the user's own backward
    return opt
