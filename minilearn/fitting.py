"""What the learner sets up before a fit or a phase, and puts back after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from .callback import Pass
from .checks import check_alone, check_batch, check_makers, infer_loss
from .data.loaders import DataLoaders, check_not_empty, n_batches, peek, sum_of
from .optim.groups import build_opt, check_kept, check_step, set_lr

if TYPE_CHECKING:
    from .learner import Learner


@dataclass(frozen=True)
class Plan:
    """What a fit is going to do, once it is planned.

    n_epochs; phases ("train", "eval" or both); schedule_epochs (how many epochs, from the first on, schedules
    of the lr rule); epoch_steps (optimizer steps of each epoch, None where not known).
    """

    n_epochs: int = 0
    phases: tuple[str, ...] = ()
    schedule_epochs: int = 0
    epoch_steps: list[int | None] = field(default_factory=list)

    @property
    def total_steps(self) -> int | None:
        """The steps of all epochs; None where one's are not known."""
        return sum_of(self.epoch_steps)


@contextmanager
def pass_of(learn: Learner, cbs: Any, purpose: str, trains: bool) -> Iterator[None]:
    """Surround a pass that is in no other: callbacks are prepared and released, modes are put back."""
    n_scopes = len(learn.scopes)
    learn.modes.begin()
    learn.epoch = learn.n_steps = learn.batch_idx = 0
    learn.is_gathering = False
    learn.processes.are(0, 1)  # unless DistributedCB says otherwise
    with learn.extra_cbs(cbs, Pass(purpose, trains)), ExitStack() as prepared:
        try:
            for cb in learn.cbs:
                if learn.takes_part(cb):
                    prepared.callback(cb.release, learn)
                    cb.prepare(learn)
            check_alone(learn)
            yield
            learn.batch = learn.preds = None  # they and the last graph take memory
            learn.loss = learn.loss.detach() if isinstance(learn.loss, torch.Tensor) else None
        finally:
            if learn.resuming is not None:  # it did not come to that
                learn.resuming.undo(learn)
                learn.resuming = None
            learn.modes.end()
            del learn.scopes[n_scopes:]  # a second signal may have come between any two lines


@contextmanager
def phase_of(learn: Learner, dl: Any, training: bool) -> Iterator[None]:
    """Set the loader, the model's mode and gradients for a phase.

    A phase inside another, a validate that a callback calls, leaves the batch's fields as they were.
    """
    outer = {name: getattr(learn, name) for name in ("dl", "training")}
    modes = []
    if {"train", "validate"} & set(learn.scopes):
        modes = [(m, m.training, learn.modes.found.get(m)) for m in learn.model.modules()]
        inner = ("batch", "batch_idx", "preds", "loss", "share", "loss_weight")
        outer |= {name: getattr(learn, name) for name in inner}
    try:
        learn.dl, learn.training = dl, training
        learn.modes.apply()
        if training:
            for part in (dl, getattr(dl, "sampler", None)):  # torch's DistributedSampler has set_epoch too
                if part is not None and hasattr(part, "set_epoch"):
                    part.set_epoch(learn.n_epochs_trained - 1)
        with torch.set_grad_enabled(training):
            yield
    finally:
        vars(learn).update(outer)
        learn.modes.apply()
        for module, mode, found in modes:
            if learn.modes.found.get(module) == found:  # else it was frozen, or the contrary, in this phase
                module.training = mode


def plan(learn: Learner, n_epochs: int, train: bool, valid: bool) -> None:
    """Plan the steps of a fit, and infer from a small batch what was not given."""
    phases = ("train",) * train + ("eval",) * valid
    learn.plan = Plan(n_epochs, phases, learn.scheduled_epochs(n_epochs), [0] * n_epochs)
    if train:  # callbacks that plan steps may ask for the rest
        steps = learn.planned_steps(n_epochs, n_batches(learn.dls.train))
        learn.plan = replace(learn.plan, epoch_steps=steps)
    learn.batch = None
    if learn.purpose in ("fit", "lr_find", "validate") and learn.has_default("get_loss"):
        for loader in [learn.dls.valid] * valid + [learn.dls.train] * train:
            learn.batch = peek(loader)
            check_batch(learn.batch)
        if learn.loss_func is learn._inferred_loss:  # None, or inferred from other data
            learn.loss_func = learn._inferred_loss = infer_loss(learn.batch[1])


def prepare_opt(learn: Learner, lr: float | Sequence[float] | None, reset_opt: bool) -> None:
    """Build the optimizer, or set the lr of the one that lives on."""
    is_new, makers = learn.opt is None or reset_opt, (learn.opt_func, learn.param_groups)
    if lr is None and learn._is_new_lr:
        lr = learn.lr
    if is_new:
        learn.opt = build_opt(learn.opt_func, learn.model, learn.lr if lr is None else lr, learn.param_groups)
        learn._opt_made_by = makers
    else:
        check_kept(learn.opt, learn.model)
        check_makers(learn._opt_made_by, makers)
    learn._is_new_lr = False
    if lr is not None and (not is_new or learn.param_groups):  # it rules over an lr that a group has
        set_lr(learn.opt, lr)
    if learn.has_default("step"):
        check_step(learn.opt)
    groups = getattr(learn.opt, "param_groups", ())  # none in a bare class
    for p in chain(learn.model.parameters(), *(group["params"] for group in groups)):
        p.grad = None  # of a fit that broke off, or of the user's own backward


@contextmanager
def side_run(learn: Learner, dl: Any) -> Iterator[list[dict[str, Any]]]:
    """Have `dl` as the validation loader and a history of its own, which is given, for a while."""
    check_not_empty("given", dl)
    history, dls, is_aside = learn.history, learn.dls, learn.is_aside
    learn.history, learn.is_aside = [], True
    learn.dls = DataLoaders(dls.train, dl, classes=dls.classes, source=dls.source)
    try:
        yield learn.history
    finally:
        learn.history, learn.dls, learn.is_aside = history, dls, is_aside
