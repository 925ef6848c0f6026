"""What a loss does with its arguments: watched in the first batch of a fit, whoever wrote the loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batches import n_samples, samples_of
from ..counting import ELEMENTWISE, OF_CLASSES, Rule, is_torchs
from .checks import check_classes, check_one_number
from .joins import Joins, eager, is_compiled

if TYPE_CHECKING:
    from ..learner import Learner

_SAME_DTYPE = (F.binary_cross_entropy, F.huber_loss)  # functions that take no mixture of dtypes
_FLOATS = (*_SAME_DTYPE, F.binary_cross_entropy_with_logits, F.kl_div)
_NO_BOOL = (*_FLOATS, F.l1_loss, F.gaussian_nll_loss, F.soft_margin_loss, F.multilabel_soft_margin_loss)


@contextmanager
def watched(learn: Learner) -> Iterator[None]:
    """Check what the owner of get_loss does with preds and target, inside a `with`.

    This sees the arguments that torch's losses get, even if a function or a subclass changes preds and target
    before it calls them. It also sees each operation that joins values of preds with values of the target.
    What torch.compile made is left as it is, because it would be compiled again.

    Raises: ValueError for an operation that would broadcast a tensor over another one that has another number
        of dimensions, (N, 1) over (N,), see `joins`, and for arguments that torch's losses do not take;
        TypeError for a loss_func that returns None.
    """
    if "get_loss" not in learn._hooks:  # this pass computes no loss
        yield
        return
    name, owner, _ = learn._hooks["get_loss"][0]
    is_default = learn.has_default("get_loss")
    losses = [learn.loss_func] if is_default else [owner, learn.loss_func]
    if any(map(is_compiled, losses)):
        yield
    else:
        # Another owner need not read the target: it may be the only one that can unpack the batch.
        target = [learn.batch, *([learn.xb, learn.yb] if learn.is_unpacked else [])]
        said = f"loss_func={learn.loss_func!r}" if is_default else name
        n = samples_of(learn, learn.xb, learn.yb) if learn.is_unpacked else n_samples(learn.batch)
        watch = _Watch(said, learn.preds, target, n, is_torchs(learn.loss_func))
        with eager(), watch:
            yield
        if is_default and not is_torchs(learn.loss_func):
            learn.mean.found(watch.rule(learn.loss, learn.yb))
    if is_default and learn.loss is None:
        check_one_number(learn.loss_func, None)


class _Watch(Joins):
    """Check what torch's losses get as well, and note the cross-entropies."""

    def __init__(self, said: str, preds: Any, target: Any, n: int | None, is_checked: bool) -> None:
        super().__init__(said, preds, target, "in the loss", n)
        self._is_checked = is_checked  # whether its class numbers are checked already
        self._calls: list[tuple[dict[str, Any], Any]] = []  # of cross-entropy: arguments and result

    def rule(self, loss: Any, target: Any) -> Rule | None:
        """Return what the loss is a mean over, if it is one cross-entropy of the target; else None."""
        if len(self._calls) != 1 or self._calls[0][1] is not loss or not isinstance(target, Tensor):
            return None
        named = self._calls[0][0]
        given, ignored = named.get("target"), named.get("ignore_index", -100)
        is_other = any(named.get(name) is not None for name in ("weight", "size_average", "reduce"))
        if is_other or named.get("reduction", "mean") != "mean" or not isinstance(given, Tensor):
            return None
        if given.is_floating_point() or target.is_floating_point() or not target.ndim:
            return None
        is_safe = not named.get("label_smoothing", 0.0)
        after = target[..., 1:]
        padded = torch.cat([after, torch.full_like(target[..., :1], ignored)], -1)
        for part in (target, after, padded):
            if part.numel() == given.numel() and torch.equal(part.reshape(-1).to(given), given.reshape(-1)):
                return Rule(ignored, part is not target, is_safe)
        return None

    def before(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if func in ELEMENTWISE:
            _check_dtypes(func, args, kwargs)
        elif func in OF_CLASSES and not self._is_checked:
            _check_classes_of(func, args, kwargs)

    def after(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        if func in OF_CLASSES:
            self._calls.append((_bound(func, args, kwargs), out))


def _bound(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function of torch by name, those that are tensors as (input, target)."""
    try:
        named = inspect.signature(func).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # torch says what is wrong, or it has no signature
        names = ("input", "target")
        named = dict(zip(names, args, strict=False)) | dict(kwargs)
    return named


def _check_dtypes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for targets of a dtype that one of torch's losses does not take."""
    named = _bound(func, args, kwargs)
    preds, target = named.get("input"), named.get("target")
    if not isinstance(preds, Tensor) or not isinstance(target, Tensor) or not preds.is_floating_point():
        return
    is_mixed = preds.dtype != target.dtype and torch.float64 in (preds.dtype, target.dtype)
    is_wrong = (
        (target.dtype == torch.bool and func in _NO_BOOL)
        or (not target.is_floating_point() and func in _FLOATS)
        or (is_mixed and func in _SAME_DTYPE)
    )
    if is_wrong:
        advice = "target.float()" if preds.dtype == torch.float32 else f"target.to({preds.dtype})"
        raise ValueError(
            f"targets are {target.dtype}, but {func.__name__} takes floats of the dtype of preds, "
            f"{preds.dtype}: expected {advice}, in the data set or in unpack="
        )


def _check_classes_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    named = _bound(func, args, kwargs)
    preds, target = named.get("input"), named.get("target")
    if isinstance(preds, Tensor) and isinstance(target, Tensor):
        ignored = named.get("ignore_index", -100)
        check_classes(preds, target, -100 if ignored is None else ignored)
