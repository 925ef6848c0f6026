"""DeviceCB: model and batches on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..callback import Callback
from ..data.loaders import to_device


def default_device() -> torch.device:
    """Return CUDA if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class DeviceCB(Callback):
    """Move the model, the optimizer's state and each batch to a device.

    Args:
        device: default CUDA if there is one, else MPS, else the CPU.

    Runs at: before_fit, before_batch; order -100, before all others. Writes: batch.
    Shapes: a batch keeps its nesting of tuples, lists and dicts; see `minilearn.data.to_device`.
    Raises: ValueError before training for a device that is not there.
    """

    order = -100

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = default_device() if device is None else torch.device(device)
        kind, index = self.device.type, self.device.index or 0
        backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(kind)
        if backend is not None and not backend.is_available():
            raise ValueError(f"DeviceCB({str(device)!r}): this machine has no {kind} that torch can use")
        if kind == "cuda" and index >= torch.cuda.device_count():
            raise ValueError(
                f"DeviceCB({str(device)!r}): expected an index below {torch.cuda.device_count()}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a run may go on on another device."""
        return {}

    def before_fit(self, learn: Any) -> None:
        learn.model.to(self.device)
        for p, state in getattr(learn.opt, "state", {}).items():  # a kept optimizer after a change of device
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    state[key] = value.to(p.device)

    def before_batch(self, learn: Any) -> None:
        learn.batch = to_device(learn.batch, self.device)
