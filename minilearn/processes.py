"""What several processes that train together agree on. With one process each of these changes nothing."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_FAILED = "minilearn/failed"  # where the first process that fails leaves its message
_groups: dict[str, Any] = {}


# Meeting and parting ------------------------------------------------------------------------------


def join(device: torch.device, timeout_s: float) -> None:
    """Meet the other processes that torchrun started, unless that was done."""
    if _FAILED in _groups:
        raise RuntimeError("the processes parted when a fit failed: start the script anew")
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timeout)
        except RuntimeError as error:
            error.add_note(
                f"minilearn: process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} waited up to "
                f"{timeout_s} s for the others: all have to call fit, or validate"
            )
            raise
        atexit.register(_part)
    if "control" not in _groups:
        _groups["control"] = dist.new_group(backend="gloo", timeout=timeout)


def _control() -> Any:
    """Return the group for what the CPU says to the CPU, beside the tensors of training."""
    return _groups["control"]


def _part() -> None:
    if dist.is_initialized() and _FAILED not in _groups:
        gc.collect()  # what is left of DDP may abort the process at its end (torch 2.14, over gloo)
        dist.destroy_process_group()


def fail(rank: int, error: BaseException | None) -> None:
    """Leave a message for the others and part from them, or add that of the one that failed first."""
    if _FAILED in _groups or not dist.is_initialized():
        return
    _groups[_FAILED] = True
    with suppress(Exception):  # the one that had the store may be gone
        store = dist.distributed_c10d._get_default_store()
        own = f"process {rank}: {type(error).__name__}: {error}"
        first = store.compare_set(_FAILED, "", own).decode()
        if error is not None and first != own:
            error.add_note(f"minilearn: first to fail was {first}")
    if dist.get_backend() == "gloo":
        dist.destroy_process_group()  # those who wait for this one get an error now


# Asking -------------------------------------------------------------------------------------------


def ask(values: Sequence[float]) -> Callable[[], list[float]]:
    """Begin to exchange numbers; what is returned waits for the largest of each, over all processes."""
    said = torch.tensor(values, dtype=torch.float64)
    work: Any = dist.all_reduce(said, dist.ReduceOp.MAX, group=_control(), async_op=True)

    def answer() -> list[float]:
        work.wait()
        return said.tolist()

    return answer


@dataclass
class Processes:
    """The processes that train together, of which this is one. With one process no method changes anything.

    rank (of this process, from 0), n (how many there are), is_idle (whether this one has no sample of the
    batch, and only takes part in the step), clock_s (the first one's clock, as all have it since the last
    step; None before). DistributedCB says which there are.
    """

    rank: int = 0
    n: int = 1
    clock_s: float | None = None
    is_idle: bool = False

    def are(self, rank: int, n: int) -> None:
        """Say which process this is, of how many."""
        self.rank, self.n, self.clock_s, self.is_idle = rank, n, None, False

    def tick(self, clock_s: float) -> None:
        """Take the first process's clock."""
        self.clock_s = clock_s

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value, in all of them; any value that can be pickled."""
        if self.n == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=_control())
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks."""
        if self.n == 1:
            return [value]
        found: list[Any] = [None] * self.n
        dist.all_gather_object(found, value, group=_control())
        return found

    def broadcast_into(self, tensors: Iterable[Tensor]) -> None:
        """Write the first process's values into the tensors of all of them."""
        if self.n > 1:
            for tensor in tensors:
                if not is_part(tensor):  # of which each process has a part of its own
                    dist.broadcast(tensor.detach(), src=0)

    def joint(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return metrics of the samples of all processes; with one process these themselves."""
        if self.n == 1 or not metrics:
            return metrics
        from torcheval.metrics.toolkit import get_synced_metric_collection

        return dict(get_synced_metric_collection(metrics))

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.n == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=_control())
        return sums.tolist()

    def mean_of(self, value: Any, like: Tensor) -> Any:
        """Return the mean of a number over all processes, on the device of a tensor; no one waits."""
        if self.n == 1:
            return value
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        total = torch.as_tensor(value, device=like.device).to(dtype, copy=True)
        dist.all_reduce(total)
        return total / self.n

    def are_idle(self, is_idle: bool) -> None:
        """Say whether this process has no sample of the batch, and only takes part in the step."""
        self.is_idle = is_idle

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Write into each tensor its mean over all processes."""
        if self.n > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.n) if tensor.is_floating_point() else tensor.floor_divide_(self.n)


# Tensors in parts ---------------------------------------------------------------------------------


def is_part(tensor: Any) -> bool:
    """Whether a tensor is one of which each process has a part."""
    module = sys.modules.get("torch.distributed.tensor")  # which takes long to import
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which each process has a part; all of them have to ask."""
    full: Any = tensor
    return full.full_tensor() if is_part(tensor) else tensor


def whole_in_first(tensor: Tensor) -> Tensor:
    """Return all of a tensor in the first process, on its CPU, and nothing of it in the others."""
    if not is_part(tensor):
        return tensor
    part: Any = tensor
    found: Tensor = part.full_tensor()
    return found.cpu() if dist.get_rank() == 0 else found.new_empty(0)


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor's values as `tensor` has them: the same part in each process, or all of it."""
    if not is_part(tensor) or is_part(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    part: Any = tensor
    # Each process has read the whole: nothing is to be sent.
    return distribute_tensor(value.to(part.device), part.device_mesh, part.placements, src_data_rank=None)
