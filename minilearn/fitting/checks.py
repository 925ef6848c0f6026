"""Checks of what a fit is given and what is inferred from it, before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import flag, function, shown, unless_none, whole_number
from ..counting import argument_of, is_cross_entropy, is_elementwise, is_torchs
from ..data.resumable import TensorLoader
from ..optim.calling import check_keywords
from ..optim.combined import Combined
from ..optim.groups import check_lrs
from ..parameters import loss_params
from ..warning import warn

if TYPE_CHECKING:
    from ..callback import Callback
    from ..learner import Learner


_MOST_EPOCHS = 10**7  # their steps are planned one by one
_DEFAULT_LR = 1e-3  # of a learner that was given none


def check_learner(
    model: Any, loss_func: Any, opt_func: Any, lr: Any, default_cbs: Any, **functions: Any
) -> None:
    """Raise TypeError or ValueError for what a learner cannot be made of."""
    check_model(model, loss_func, opt_func)
    check_lrs("lr", lr)
    if isinstance(opt_func, Combined) and not isinstance(lr, Sequence) and lr != _DEFAULT_LR:
        opt_func.check_takes(lr)
    flag("default_cbs", default_cbs)
    for name, value in functions.items():
        unless_none(function, name, value)


def check_model(model: Any, loss_func: Any, opt_func: Any) -> None:
    """Raise TypeError for a model, loss or optimizer of the wrong kind."""
    if isinstance(model, type) or not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: expected an instance of nn.Module")
    if isinstance(loss_func, type):
        name = loss_func.__name__
        raise TypeError(f"loss_func is the class {name}: expected an instance; write {name}()")
    if loss_func is not None and not callable(loss_func):
        raise TypeError(f"loss_func={loss_func!r}: expected a function (preds, target) -> loss")
    if not callable(opt_func):
        raise TypeError(
            f"opt_func={shown(opt_func)} is a {type(opt_func).__name__}: expected something that takes "
            "(params, lr) and makes an optimizer, such as the class torch.optim.AdamW (the learner calls it)"
        )
    check_keywords(opt_func)


def check_fit(
    learn: Learner,
    n_epochs: Any,
    train: bool,
    valid: bool,
    resume: Any = None,
    lr: Any = None,
    reset_opt: bool = False,
) -> int:
    """Return the number of epochs; raise for a fit that cannot run or would do nothing."""
    if learn.is_fitting:
        raise RuntimeError("fit inside a fit: this learner is running; a callback may call validate")
    n_epochs = whole_number("fit(n_epochs", n_epochs, 1, _MOST_EPOCHS, of=" of epochs")
    for name, value in (("train", train), ("valid", valid), ("reset_opt", reset_opt)):
        flag(f"fit({name}", value, "; an lr is given by name, lr=..." if name != "reset_opt" else "")
    unless_none(check_lrs, "lr", lr)
    if resume == "" or not isinstance(resume, bool | str | Path | None):
        kind = ValueError if resume == "" else TypeError
        raise kind(f"fit(resume={shown(resume)}): expected a folder of checkpoints, a checkpoint, or True")
    if resume is not None and not train:
        raise ValueError(f"fit(train=False, resume={resume!r}): only training can be resumed")
    valid = valid and learn.dls.valid is not None
    if not train and not valid:
        raise ValueError(f"fit(train={train}) without validation does nothing: expected one of the two")
    check_model(learn.model, learn.loss_func, learn.opt_func)
    if train:
        learn.dls.adapters["train"].check_not_empty("train")
        if not any(p.requires_grad for p in [*learn.model.parameters(), *loss_params(learn).values()]):
            raise ValueError(
                f"{type(learn.model).__name__} has no parameter that needs a gradient: expected at least "
                "one; was all of it frozen, or are its layers in a plain list instead of a ModuleList?"
            )
    if valid:
        for name in learn.dls.valid_keys:
            learn.dls.adapters[name].check_not_empty(name)
    return n_epochs


def check_alone(learn: Learner) -> None:
    """Warn if several processes were started and each is about to train by itself."""
    n = os.environ.get("WORLD_SIZE", "1")
    if learn.n_processes == 1 and n != "1" and not torch.distributed.is_initialized():
        warn(
            f"WORLD_SIZE is {n}, so {n} processes were started, but there is no DistributedCB: each of them "
            "trains by itself, on all of the data"
        )


def check_makers(before: tuple[Any, Any] | None, now: tuple[Any, Any]) -> None:
    """Raise ValueError if a kept optimizer was made with something other than the learner has now."""
    for name, old, new in zip(("opt_func", "param_groups"), before or now, now, strict=True):
        if old is not new:
            raise ValueError(
                f"{name} is {new!r} now, but the optimizer, which is kept, was made with {old!r}: make a new "
                "one, fit(reset_opt=True)"
            )


# What other libraries call requests to a fit, and what to write instead.
_FOREIGN = {
    "stop_training": "raise CancelFitException",
    "should_stop": "raise CancelFitException",
}


def check_fields(learn: Learner) -> None:
    """Warn once about new fields that look like misspellings of ours, or like another library's."""
    own = learn.own_fields()
    new = [name for name in own if not name.startswith("_") and name not in learn._made.warned]
    if not new:
        return
    ours = {name for name in dir(learn) if not name.startswith("_")} - own.keys()
    for name in new:
        learn._made.warned.add(name)
        if name in _FOREIGN:
            advice = f"nothing reads it; {_FOREIGN[name]}"
        elif meant := next((other for other in sorted(ours) if _is_one_edit(name, other)), None):
            advice = f"did you mean learn.{meant}?"
        else:
            continue
        warn(
            f"learn.{name} was set, which is not a field of the learner: {advice} (A field of your own "
            "belongs on the callback.)"
        )


def _is_one_edit(a: str, b: str) -> bool:
    """Whether one letter added, removed, changed or swapped with the next turns one name into another."""
    while a[:1] == b[:1] and a:
        a, b = a[1:], b[1:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[1::-1] == b[:2] and a[2:] == b[2:])


def check_reached(cb: Any, epochs: Iterable[int], n_epochs: int) -> None:
    """Raise ValueError for an epoch in a callback's table that the fit does not have."""
    if late := [epoch for epoch in epochs if epoch >= n_epochs]:
        raise ValueError(
            f"{cb!r}: epoch {late[0]} is never reached, the fit has {n_epochs} (0 to {n_epochs - 1})"
        )


def check_batch(learn: Learner) -> None:
    """Raise ValueError for a batch that cannot be unpacked, or that has no target where one is needed."""
    if learn.batch is None:
        raise ValueError("the loader gave no batch: expected at least one")
    if learn.yb is not None:
        return
    needy = next((repr(cb) for cb in learn.cbs if cb.needs_target), "")
    is_own = learn.loss_func is not None and not is_torchs(learn.loss_func)
    if learn.unpack_func is not None and is_own and not needy:
        return  # unpack says that there is none, and a loss of the user's own may read only predictions
    batch = learn.batch
    found = f"the loader gives a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        found += f" with {', '.join(map(repr, batch))}"
    elif isinstance(batch, tuple | list):
        found += f" of {len(batch)}"
    if learn.unpack_func is not None:
        found += ", of which unpack= makes inputs"
    raise ValueError(
        f"{found}, without a target, which {needy or 'loss_func'} needs: expected batches (inputs, "
        "target), where inputs may be a tuple or a dict, or a dict with 'labels' or 'target'; say what the "
        "target is, Learner(..., unpack=lambda batch: (inputs, target)), such as (inputs, inputs) for an "
        "autoencoder, or (inputs, None) with a loss of your own that reads only predictions, or write a "
        "callback that owns get_loss"
    )


def check_reduction(learn: Learner) -> None:
    """Raise ValueError for one of torch's losses that gives a value for each element."""
    if is_torchs(learn.loss_func) and argument_of(learn.loss_func, "reduction", "mean") == "none":
        raise ValueError(
            f"loss_func={learn.loss_func!r} has reduction='none', which gives a loss for each element: "
            "expected one number per batch, reduction='mean'"
        )


def check_one_number(loss_func: Any, loss: Any) -> None:
    """Raise for a loss that is not one number: TypeError if it is no tensor, ValueError for its shape."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"the loss of {loss_func!r} has shape {tuple(loss.shape)}: expected one number per batch, "
                "its mean; loss.mean(), or reduction='mean'"
            )
        return
    advice = "return it from loss_func"
    if isinstance(loss, tuple | list | Mapping):
        first = repr(next(iter(loss), "loss")) if isinstance(loss, Mapping) else "0"
        advice = f"return the sum of its parts, or the part to train on, such as loss[{first}]"
    elif isinstance(loss, int | float | np.number | np.ndarray):
        advice = "leave out item() and numpy(), because a number has no gradients"
    text = repr(loss)
    found = f"the {type(loss).__name__} {text if len(text) < 80 else text[:76] + ' ...'}"
    raise TypeError(
        f"learn.loss is {found if loss is not None else None}: expected loss_func={loss_func!r}, a hook that "
        f"changes the loss, or the owner of get_loss to give a tensor of one number; {advice}"
    )


def check_gradient(learn: Learner) -> None:
    """Raise ValueError for a loss of loss_func that has no gradient, or is complex."""
    if not torch.is_grad_enabled() or not learn.has_default("backward"):
        return
    if learn.loss.is_complex():
        raise ValueError(
            f"the loss of {learn.loss_func!r} is {learn.loss.dtype}: expected a real number, such as "
            "loss.real or loss.abs()"
        )
    if not learn.loss.requires_grad:
        raise ValueError(
            f"the loss of {learn.loss_func!r} has no gradient, so nothing can be trained: was it computed "
            "with detach(), item(), no_grad() or argmax(), or are all layers frozen that preds depend on?"
        )


def infer_loss(target: Any) -> Callable[[Any, Any], Tensor]:
    """Return cross-entropy for integer targets, mean squared error for floating ones."""
    if isinstance(target, Tensor) and target.is_floating_point():
        return F.mse_loss
    if isinstance(target, Tensor) and not target.is_complex() and str(target.dtype) != "torch.bool":
        return F.cross_entropy
    if not isinstance(target, Tensor):
        raise ValueError(
            f"no loss can be inferred from targets of {type(target).__name__}: expected a tensor of integers "
            "or floats; make one, torch.as_tensor, or give loss_func"
        )
    raise ValueError(
        f"no loss can be inferred from targets of {target.dtype}: expected integers or floats; give loss_func"
    )


def check_targets(loss_func: Any, preds: Any, target: Any, loader: Any) -> None:
    """Raise ValueError for class numbers that the model has no output for, or shapes that would broadcast.

    For torch's own losses: a subclass with a forward of its own may take anything. Checks all targets of a
    loader that has them in memory, otherwise those of this batch.

    Shapes: preds (N, C, ...), target (N, ...) for cross-entropy; the same shape for both otherwise.
    """
    if not isinstance(preds, Tensor) or not isinstance(target, Tensor) or not is_torchs(loss_func):
        return
    if is_cross_entropy(loss_func):
        targets = target
        if isinstance(loader, TensorLoader) and torch.equal(next(iter(loader))[-1].to(target.device), target):
            targets = loader.targets  # all of them, unless a callback changes the targets of batches
        check_classes(preds, target, argument_of(loss_func, "ignore_index", -100), targets)
    elif is_elementwise(loss_func) and preds.shape != target.shape:
        raise ValueError(
            f"preds are {tuple(preds.shape)} and targets {tuple(target.shape)}: expected the same shape, "
            "because the loss would broadcast one over the other; reshape the targets"
        )


def shapes_of(preds: Tensor, target: Tensor) -> str:
    """Say two shapes, for a message."""
    return f"shape {tuple(preds.shape)} with values of shape {tuple(target.shape)}"


def check_classes(preds: Tensor, target: Tensor, ignored: int, targets: Tensor | None = None) -> None:
    """Raise ValueError for targets that torch's cross-entropy refuses.

    Args:
        ignored: the class number that the loss ignores.
        targets: those whose range is checked, such as all of a loader. Default: target.

    Shapes: preds (N, C, ...); target (N, ...) class numbers, or (N, C, ...) probabilities.
    """
    if preds.ndim == 1 and not target.ndim:
        return  # one sample without a batch
    if preds.ndim < 2:
        raise ValueError(
            f"preds are {tuple(preds.shape)} and targets {tuple(target.shape)}: cross-entropy expects a "
            "number for each class, preds (N, C); for one number per sample, two classes, use "
            "F.binary_cross_entropy_with_logits with targets as floats of the shape of preds"
        )
    if target.is_floating_point():
        _check_probabilities(preds, target)
        return
    _check_class_numbers(preds, target)
    targets = target if targets is None else targets
    targets = targets[targets != ignored]
    n_classes = preds.shape[1]
    if not targets.numel():
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"targets run from {low} to {high}, but the model gives {n_classes} outputs, for classes 0 "
            f"to {n_classes - 1}: do the labels count from 1, or is the last layer too small? "
            "(For regression the targets have to be floats.)"
        )


def _check_probabilities(preds: Tensor, target: Tensor) -> None:
    """Raise ValueError for floats that are not a probability of each class."""
    if target.shape != preds.shape:
        raise ValueError(
            f"targets are {target.dtype} of shape {tuple(target.shape)}, and preds {tuple(preds.shape)}: "
            "cross-entropy expects class numbers, target.long(), or a probability of each class, in the "
            "shape of preds"
        )


def _check_class_numbers(preds: Tensor, target: Tensor) -> None:
    """Raise ValueError for class numbers of a kind or shape that torch's cross-entropy refuses."""
    expected = preds.shape[:1] + preds.shape[2:]
    if target.shape == preds.shape != expected:
        raise ValueError(
            f"targets are {target.dtype} of the shape of preds, {tuple(preds.shape)}: cross-entropy expects "
            f"class numbers of shape {tuple(expected)}; for one-hot targets give target.argmax(1), or "
            "target.float() as probabilities; for labels that do not exclude each other use "
            "F.binary_cross_entropy_with_logits"
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"targets are {target.dtype}: expected class numbers as torch.int64; target.long()")
    if target.shape != expected:
        hint = "; target.squeeze(1)" if target.shape == (*expected[:1], 1, *expected[1:]) else ""
        if are_classes_last(preds, target):
            last = preds.ndim - 2
            hint = (
                "; if the classes are in the last dimension of preds, as of sequences, give loss_func=lambda "
                f"preds, target: F.cross_entropy(preds.flatten(0, {last}), target.flatten()), which ignores "
                "targets of -100 (ignore_index), or put the classes into dimension 1 in the model"
            )
        raise ValueError(
            f"targets are {tuple(target.shape)} and preds {tuple(preds.shape)}: expected class numbers of "
            f"shape {tuple(expected)}{hint}"
        )


def are_classes_last(preds: Tensor, target: Tensor) -> bool:
    """Whether preds look like (N, ..., C) for targets (N, ...), where torch's losses take (N, C, ...)."""
    return preds.ndim > 2 and target.shape == preds.shape[:-1]


def warn_of_norms(learn: Learner, opt: Any) -> None:
    """Warn that BatchNorms have the statistics of other weights than a schedule-free optimizer evaluates."""
    named = learn.model.named_modules()
    norms = [name for name, m in named if isinstance(m, _BatchNorm) and learn.modes.of(m)]
    if norms:
        warn(
            f"{type(opt).__name__} is schedule-free: it evaluates other weights than it trains, and the "
            f"BatchNorm {norms[0]!r} has the statistics of those in training, so validation and predictions "
            "may be wrong: add NormStatisticsCB(), or use LayerNorm or GroupNorm"
        )


def check_again(learn: Learner, backward: bool) -> Callback:
    """Return the callback that calls `learn.again`. Raises: RuntimeError if it cannot be called here."""
    flag("again(backward", backward)
    scopes = [scope for scope in learn.scopes if scope in ("batch", "train", "validate")]
    caller = learn.running_cb
    if scopes[-1:] != ["batch"] or caller is None:
        raise RuntimeError(
            "learn.again() runs a batch's forward once more, without the callback that calls it: expected a "
            "call in a callback's hook, between before_batch and cleanup_batch"
        )
    if not learn.training:
        if backward:
            raise RuntimeError(
                "learn.again(backward=True) has no gradients to add to: expected it in training"
            )
    elif learn.is_accumulating or learn.mean.has_rest or learn.mean.n > 1:
        raise RuntimeError(
            "learn.again() while batches are being accumulated: the step has several batches, and this is "
            "one of them; expected a learner without GradientAccumulationCB"
        )
    return caller


def no_loss(learn: Learner) -> RuntimeError:
    """Return the error for a forward that left no loss for backward."""
    by = learn.cancelled_by.get("forward")
    how = f"{by} cancelled the forward before there was one" if by else "get_loss set none"
    return RuntimeError(
        f"learn.loss is None, because {how}: expected learn.preds and learn.loss to be set, or "
        "CancelBatchException, which leaves the batch out"
    )
