"""DeviceCB: model and batches on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arguments import default_device as default_device
from ..arguments import device as checked
from ..batches import to_device
from ..callback import Callback, Order
from ..parameters import roots_of

if TYPE_CHECKING:
    from ..learner import Learner


class DeviceCB(Callback):
    """Move the model, a loss that is a module, the optimizer's state and each batch to a device.

    Also the parameters and modules among the attributes of callbacks that bring parameters.

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

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a run may resume on another device."""
        return {}

    def prepare(self, learn: Learner) -> None:
        for root in roots_of(learn):
            root.to(self.device)
        for cb in learn.cbs:
            if type(cb).extra_params is not Callback.extra_params:  # it brings parameters to be trained
                self._move(cb)
        for p, state in getattr(learn.opt, "state", {}).items():  # a kept optimizer after a change of device
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    state[key] = value.to(p.device)

    def _move(self, cb: Callback) -> None:
        for value in vars(cb).values():
            if isinstance(value, nn.Module):
                value.to(self.device)
            elif isinstance(value, nn.Parameter):
                value.data = value.data.to(self.device)

    def before_batch(self, learn: Learner) -> None:
        if self._may_move:
            learn.batch = to_device(learn.batch, self.device)
