"""Look at the predictions of data, batch by batch, and leave the learner as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batches import Samples, map_tensors, n_samples
from ..callback import Callback, Order
from ..data.adapters.adapter import short
from ..events import CancelBatchException, CancelValidateException
from ..fitting.predicting import given, unpacked_by
from ..learner import Learner
from ..seeding import kept_rng

# What a pass sets of a learner.
_OF_A_PASS = (
    *("epoch", "n_steps", "batch_idx", "is_accumulating", "plan", "dl", "training"),
    *("_current", "preds", "loss", "loss_count", "loss_by"),
)


class _LookCB(Callback):
    """Call a function with each batch's inputs, predictions and target, and leave the batch before its loss.

    Args:
        look: of (learner, how many samples came before); it returns False when it has seen enough.
        name: of the function that a user called, for errors.
    """

    order = Order.PREDICTIONS

    def __init__(self, look: Callable[[Learner, int], bool], name: str) -> None:
        self.look, self.name, self.n_samples, self.n_seen = look, name, 0, 0

    def after_predict(self, learn: Learner) -> None:
        if learn.is_again:
            return
        if learn.n_processes > 1:
            raise RuntimeError(
                f"{self.name} over {learn.n_processes} processes would see only the samples of one: expected "
                "a learner without DistributedCB; learn.load(path) takes the weights over"
            )
        is_more = self.look(learn, self.n_samples)
        self.n_samples += n_samples(learn.xb) or 0
        self.n_seen += 1
        raise CancelBatchException if is_more else CancelValidateException


def look_at(learn: Learner, data: Any, name: str, look: Callable[[Learner, int], bool]) -> Any:
    """Predict the batches of data, with `look` after each prediction; return the loader of the data.

    Random numbers, the loader's order and the learner's fields stay as they are.
    """
    if data is None and learn.dls.valid is None:
        raise ValueError(f"{name}: this learner has no valid loader; give the data, {name}(learn, dl)")
    loader, unpack = given(learn, learn.dls.valid if data is None else data)
    adapter = learn.dls.adapter_of(loader, f"{name}(dl")
    collect = _LookCB(look, name)
    unmoved = kept_rng(*adapter.generators())
    with unmoved, adapter.unmoved(), learn.kept(*_OF_A_PASS), unpacked_by(learn, unpack):
        learn._evaluate(loader, [collect], "predict")
    if not collect.n_seen:
        raise ValueError(f"{name}: {short(loader)} gave no batch, or a hook cancelled each: expected some")
    return loader


def target_of(learn: Learner, name: str) -> Any:
    """Return the target of the batch. Raises: ValueError if it has none."""
    if learn.yb is None:
        raise ValueError(
            f"{name}: a {type(learn.dl).__name__} gives batches without a target: expected (inputs, target)"
        )
    return learn.yb


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample as the model saw it, on the CPU.

    Attributes:
        index: its number in the data, as `learn.predict_batches` gives it; None where it is not known.
        loss: None where none was computed.
        inputs, pred, target: without the dimension of samples.
    """

    index: int | None
    loss: float | None
    inputs: Any
    pred: Any
    target: Any


def index_of(learn: Learner, n: int, n_before: int) -> Tensor | None:
    """Return the numbers of the n samples of the batch; None where the order of the data is not known."""
    try:
        index = learn.index
    except ValueError:  # the loader does not say it
        in_order = not learn.dls.adapter_of(learn.dl).why_no_order()
        return torch.arange(n_before, n_before + n) if in_order else None
    return index if len(index) == n else None


def sample_of(learn: Learner, j: int, index: Tensor | None, loss: float | None) -> Sample:
    """Return sample j of the batch."""

    def one(part: Any) -> Any:
        if isinstance(part, Samples):
            return part[j]
        return map_tensors(lambda t: t[j].detach().cpu() if t.ndim else t.detach().cpu(), part)

    number = None if index is None else int(index[j])
    return Sample(number, loss, one(learn.xb), one(learn.preds), one(learn.yb))
