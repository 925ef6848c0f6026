"""What the learner sets up before a fit or a phase, and puts back after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from .callbacks.predictions import PredictionsCB
from .checks import check_alone, check_batch, infer_loss
from .data.loaders import DataLoaders, check_not_empty, n_batches, peek
from .optim.groups import build_opt, check_kept, check_step, set_lr


@contextmanager
def fit_of(learn: Any, cbs: Any) -> Iterator[None]:
    """Give a fit its own callbacks, and leave each module in the mode in which it was found."""
    learn.found_modes, n_scopes = {m: m.training for m in learn.model.modules()}, len(learn.scopes)
    learn.epoch = learn.n_steps = learn.batch_idx = 0
    learn.is_gathering = False
    learn.rank, learn.n_processes = 0, 1  # unless DistributedCB says otherwise
    with learn.extra_cbs(cbs):
        try:
            for cb in learn.cbs:
                cb.prepare(learn)
            check_alone(learn)
            yield
            learn.batch = learn.preds = None  # they and the last graph take memory
            learn.loss = learn.loss.detach() if isinstance(learn.loss, torch.Tensor) else None
        finally:
            if learn.resuming is not None:  # it did not come to that
                learn.resuming.undo(learn)
                learn.resuming = None
            for module, training in learn.found_modes.items():
                module.training = training
            learn.found_modes = {}
            del learn.scopes[n_scopes:]  # a second signal may have come between any two lines


@contextmanager
def phase_of(learn: Any, dl: Any, training: bool) -> Iterator[None]:
    """Set the loader, the model's mode and gradients for a phase.

    A phase inside another, a validate that a callback calls, leaves the batch's fields as they were.
    """
    outer = {name: getattr(learn, name) for name in ("dl", "training")}
    modes = []
    if {"train", "validate"} & set(learn.scopes):
        modes = [(m, m.training, learn.found_modes.get(m)) for m in learn.model.modules()]
        inner = ("batch", "batch_idx", "preds", "loss", "share", "loss_weight")
        outer |= {name: getattr(learn, name) for name in inner}
    try:
        learn.dl, learn.training = dl, training
        set_mode(learn)
        if training:
            for part in (dl, getattr(dl, "sampler", None)):  # torch's DistributedSampler has set_epoch too
                if part is not None and hasattr(part, "set_epoch"):
                    part.set_epoch(learn.n_epochs_trained - 1)
        with torch.set_grad_enabled(training):
            yield
    finally:
        vars(learn).update(outer)
        set_mode(learn)
        for module, mode, found in modes:
            if learn.found_modes.get(module) == found:  # else it was frozen, or the contrary, in this phase
                module.training = mode


def set_mode(learn: Any) -> None:
    """Set the model's mode for the phase, but for modules that were found in evaluation mode."""
    learn.model.train(learn.training)
    if not learn.training:
        return
    if learn.found_modes[learn.model]:
        for module, training in learn.found_modes.items():
            module.training = training  # what the user put there stays
    for norm in learn.frozen_norms:
        norm.training = False


def plan(learn: Any, n_epochs: int, train: bool, valid: bool) -> None:
    """Plan the steps of a fit, and infer from a small batch what was not given."""
    learn.n_epochs, learn.phases = n_epochs, ("train",) * train + ("eval",) * valid
    learn.schedule_epochs = learn.scheduled_epochs(n_epochs)
    learn.epoch_steps = [0] * n_epochs
    if train:
        learn.epoch_steps = learn.planned_steps(n_epochs, n_batches(learn.dls.train))
    learn.total_steps = None if None in learn.epoch_steps else sum(learn.epoch_steps)
    learn.batch = None
    predicts_only = any(isinstance(cb, PredictionsCB) for cb in learn.cbs)
    if learn.has_default("get_loss") and not predicts_only:
        for loader in [learn.dls.valid] * valid + [learn.dls.train] * train:
            learn.batch = peek(loader)
            check_batch(learn.batch)
        if learn.loss_func is None:
            learn.loss_func = infer_loss(learn.batch[1])


def prepare_opt(learn: Any, lr: float | Sequence[float] | None, reset_opt: bool) -> None:
    """Build the optimizer, or set the lr of the one that lives on."""
    is_new = learn.opt is None or reset_opt
    if is_new:
        learn.opt = build_opt(learn.opt_func, learn.model, learn.lr if lr is None else lr, learn.param_groups)
    if not is_new:
        check_kept(learn.opt, learn.model)
    if lr is not None and (not is_new or learn.param_groups):  # it rules over an lr that a group has
        set_lr(learn.opt, lr)
    if learn.has_default("step"):
        check_step(learn.opt)
    groups = getattr(learn.opt, "param_groups", ())  # none in a bare class
    for p in chain(learn.model.parameters(), *(group["params"] for group in groups)):
        p.grad = None  # of a fit that broke off, or of the user's own backward


@contextmanager
def side_run(learn: Any, dl: Any) -> Iterator[list[dict[str, Any]]]:
    """Have `dl` as the validation loader and a history of its own, which is given, for a while."""
    check_not_empty("given", dl)
    history, dls, is_aside = learn.history, learn.dls, learn.is_aside
    learn.history, learn.is_aside = [], True
    learn.dls = DataLoaders(dls.train, dl, classes=dls.classes, source=dls.source)
    try:
        yield learn.history
    finally:
        learn.history, learn.dls, learn.is_aside = history, dls, is_aside
