"""What the model's layers get in the first batch of a phase: checked by hooks, which are then removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..batches import n_samples
from ..parameters import roots_of
from ..processes import is_part

if TYPE_CHECKING:
    from ..learner import Learner

_OF_FLOATS = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase)  # layers whose input has the dtype of the weights


def watch(learn: Learner, is_first: bool) -> ExitStack:
    """Check what the layers get until the returned stack is closed.

    A layer that torch.compile compiles is not checked, because it would be compiled again.

    Args:
        is_first: whether this is the first pass of a fit, in which inputs of a wrong dtype are refused too.

    Raises, in the forward: ValueError for a BatchNorm that will get one value per channel, from a batch of
        one sample, and for inputs of another dtype than the layer's weights.
    """
    hooks, alone = ExitStack(), _loader_of_one(learn, is_first)
    if not (is_first or alone) or any(_is_compiled(m) for root in roots_of(learn) for m in root.modules()):
        return hooks
    for name, module in learn.model.named_modules():
        checks = _checks_of(learn, module, name or "the model", is_first, alone)
        for check in checks:
            hooks.callback(module.register_forward_pre_hook(_Hook(check), with_kwargs=True).remove)
    return hooks


class _Hook:
    """Call a check with a layer's input; a copy of the layer, or a pickled one, checks nothing."""

    def __init__(self, check: Callable[[nn.Module, Any], None] | None = None) -> None:
        self.check = check

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.check is not None:
            self.check(module, args[0] if args else kwargs.get("input"))

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _checks_of(
    learn: Learner, module: nn.Module, name: str, is_first: bool, alone: str
) -> Iterator[Callable[[nn.Module, Any], None]]:
    if alone and _computes_as(module, (_BatchNorm,)):
        is_joint = isinstance(module, nn.SyncBatchNorm) and learn.n_processes > 1
        measures = module.running_mean is None or (module.training and "train" in alone)
        if measures and not is_joint:
            yield lambda module, x: _check_values(learn, module, name, x, alone)
    if not is_first or any(is_part(p) for p in module.parameters(recurse=False)):
        return
    if _computes_as(module, _OF_FLOATS):
        yield lambda module, x: _check_dtype(module, name, x)
    elif _computes_as(module, (nn.Embedding, nn.EmbeddingBag)):
        yield lambda module, x: _check_indices(name, x)


def _computes_as(module: nn.Module, kinds: tuple[Any, ...]) -> bool:
    """Whether a layer is of one of these kinds of torch, with their own forward."""
    return isinstance(module, kinds) and type(module).forward.__module__.startswith("torch.nn.modules.")


def _loader_of_one(learn: Learner, is_first: bool) -> str:
    """Say which loader gives a batch of one sample, if one is known to: of this phase, or of validation."""
    if (
        not learn.training
        or learn.is_nested
        or not any(isinstance(m, _BatchNorm) for m in learn.model.modules())
    ):
        return ""  # it matters to nothing else, and a list of batches is read for it
    loaders = {"train": learn.dl}
    if is_first and "eval" in learn.phases:
        loaders |= {name: learn.dls.adapters[name].loader for name in learn.dls.valid_keys}
    for name, loader in loaders.items():
        if learn.dls.adapter_of(loader).smallest() == 1:
            return f"the {name} loader, a {type(loader).__name__}, gives a batch of one sample"
    return ""


def _check_values(learn: Learner, module: Any, name: str, x: Any, alone: str) -> None:
    """Raise ValueError if a BatchNorm gets no more values of a channel than there are samples."""
    if isinstance(x, Tensor) and x.ndim > 1 and x.numel() <= x.shape[1] * (n_samples(learn.xb) or 0):
        raise ValueError(
            f"{alone}, of which {name}, a {type(module).__name__}, gets one value per channel, too few for "
            "their variance: expected drop_last=True, a batch size that leaves no single sample at the end "
            "of an epoch, or a plan without such a batch"
        )


def _check_dtype(module: nn.Module, name: str, x: Any) -> None:
    """Raise ValueError for an input of another dtype than the weights."""
    p = next(module.parameters(recurse=False), None)
    if (
        p is None
        or not isinstance(x, Tensor)
        or x.dtype == p.dtype
        or torch.is_autocast_enabled(x.device.type)
    ):
        return
    if not p.is_floating_point() or x.is_complex() or p.is_complex():
        return
    advice = "x.float()" if p.dtype == torch.float32 else f"x.to({p.dtype})"
    other = ", or MixedPrecisionCB in place of model.half()" if p.dtype.itemsize == 2 else ""
    raise ValueError(
        f"the inputs of {name}, a {type(module).__name__}, are {x.dtype}, and its weights {p.dtype}: "
        f"expected the same; write {advice} in the data set, in unpack= or in the model's forward{other}"
    )


def _check_indices(name: str, x: Any) -> None:
    """Raise ValueError for an input of an embedding that is not of int32 or int64."""
    if isinstance(x, Tensor) and x.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"the inputs of {name}, an embedding, are {x.dtype}: expected indices as torch.int64; x.long()"
        )
