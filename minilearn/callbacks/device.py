"""DeviceCB: model and batches on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..batches import to_device
from ..callback import Callback, Order
from ..parameters import roots_of

if TYPE_CHECKING:
    from ..learner import Learner


def default_device() -> torch.device:
    """Return the accelerator that torch finds (CUDA, MPS, XPU, ...), else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


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
        self.device = default_device() if device is None else torch.device(device)
        kind, index, found = self.device.type, self.device.index or 0, default_device().type
        self._may_move = not kind == found == "cpu"  # else all tensors are there
        if kind in ("cpu", "meta"):  # which need no hardware of their own
            return
        if kind != found:
            raise ValueError(
                f"DeviceCB({str(device)!r}): this machine has no {kind} that torch can use; it has {found}"
            )
        if index >= (n := torch.accelerator.device_count()):
            raise ValueError(f"DeviceCB({str(device)!r}): expected an index below {n}")

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
