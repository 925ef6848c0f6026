"""DeviceCB: model and batches on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..arguments import default_device as default_device
from ..arguments import device as checked
from ..batches import to_device
from ..callback import Callback, Order
from ..parameters import follow_params, roots_of, values_in

if TYPE_CHECKING:
    from ..learner import Learner


class DeviceCB(Callback):
    """Move the model, a loss that is a module, the optimizer's state and each batch to a device.

    Also the modules, parameters and optimizers that callbacks keep, such as a teacher or a discriminator: as
    attributes, or in lists and dicts that are attributes.

    Args:
        device: default the accelerator that torch finds, else the CPU.

    Runs at: prepare; before_batch; order -100, before all others. Writes: batch.
    Shapes: a batch keeps its nesting of tuples, lists and dicts; see `minilearn.data.to_device`.
    Raises: ValueError before training for a device that this machine lacks.
    """

    order = Order.DEVICE

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = default_device() if device is None else checked("DeviceCB(device", device)
        self._may_move = not self.device.type == default_device().type == "cpu"  # else all tensors are there

    def __repr__(self) -> str:
        return f"DeviceCB({str(self.device)!r})"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a run may resume on another device."""
        return {}

    def prepare(self, learn: Learner) -> None:
        for root in roots_of(learn):
            root.to(self.device)
        if not self._may_move:
            return
        opts = [learn.opt]
        for kept in values_in(learn).values():
            if isinstance(kept, nn.Module):
                kept.to(self.device)
            elif isinstance(kept, nn.Parameter):
                kept.data = kept.data.to(self.device)
            elif isinstance(kept, torch.optim.Optimizer):
                opts.append(kept)
        for opt in opts:
            follow_params(opt)

    def before_batch(self, learn: Learner) -> None:
        if self._may_move:
            learn.batch = to_device(learn.batch, self.device)
