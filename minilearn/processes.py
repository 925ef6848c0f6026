"""What several processes that train together agree on. With one process, nothing here changes anything."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .batches import map_tensors

_FAILED = "minilearn/failed"  # where the first process that fails leaves its message
_groups: dict[str, Any] = {}


# Joining and leaving ------------------------------------------------------------------------------


def join(device: torch.device, timeout_s: float) -> None:
    """Join the other processes that torchrun started, unless this was done already."""
    if _FAILED in _groups:
        raise RuntimeError("the processes left the group when a fit failed: start the script again")
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            store, rank, n = _meeting_place(timeout)
            dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=n)
        except RuntimeError as error:
            error.add_note(
                f"minilearn: process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} waited up to "
                f"{timeout_s} s for the others: all have to call fit, or validate"
            )
            raise
        atexit.register(_part)
    if "control" not in _groups:
        _groups["control"] = dist.new_group(backend="gloo", timeout=timeout)


def _meeting_place(timeout: timedelta) -> tuple[Any, int, int]:
    """Return the store where the processes meet, this one's rank, and how many there are.

    After a restart torchrun may give the store of the processes that died, with their addresses in it
    (torch 2.14), so each start has names of its own.
    """
    from torch.distributed import distributed_c10d
    from torch.distributed.rendezvous import rendezvous

    store, rank, n = next(rendezvous("env://", timeout=timeout))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return distributed_c10d.PrefixStore(f"minilearn/start-{start}", store), rank, n


def _control() -> Any:
    """Return the group for messages between the CPUs, apart from the tensors of training."""
    return _groups["control"]


def _part() -> None:
    if dist.is_initialized() and _FAILED not in _groups:
        gc.collect()  # what is left of DDP may abort the process at its end (torch 2.14, over gloo)
        dist.destroy_process_group()


def fail(rank: int, error: BaseException | None) -> None:
    """Leave a message for the other processes and leave the group; add the message of the first to fail."""
    if _FAILED in _groups or not dist.is_initialized():
        return
    _groups[_FAILED] = True
    with suppress(Exception):  # the process with the store may be gone
        store = dist.distributed_c10d._get_default_store()
        own = f"process {rank}: {type(error).__name__}: {error}"
        first = store.compare_set(_FAILED, "", own).decode()
        if error is not None and first != own:
            error.add_note(f"minilearn: first to fail was {first}")
    if dist.get_backend() == "gloo":
        dist.destroy_process_group()  # processes that wait for this one get an error now


# Asking -------------------------------------------------------------------------------------------


def ask(values: Sequence[float]) -> Callable[[], list[float]]:
    """Begin an all-reduce of numbers; the returned function waits and returns the largest of each."""
    said = torch.tensor(values, dtype=torch.float64)
    work: Any = dist.all_reduce(said, dist.ReduceOp.MAX, group=_control(), async_op=True)

    def answer() -> list[float]:
        work.wait()
        return said.tolist()

    return answer


@dataclass
class Processes:
    """Hold the processes that train together, including this one. With one process, methods change nothing.

    rank (of this process, from 0), n (how many there are), n_shards (into how many parts a batch is divided:
    n, or 1 where all have the same batches), is_idle (whether this one has no sample of the batch and only
    takes part in the step), clock_s (the first process's clock at the last step, the same in all; None
    before). DistributedCB sets them.
    """

    rank: int = 0
    n: int = 1
    n_shards: int = 1
    clock_s: float | None = None
    is_idle: bool = False
    _put: Callable[[], None] | None = None

    def are(self, rank: int, n: int, n_shards: int | None = None) -> None:
        """Set which process this is, of how many, and into how many parts a batch is divided (None: n)."""
        self.rank, self.n, self.clock_s, self.is_idle = rank, n, None, False
        self._put = None
        self.n_shards = n if n_shards is None else n_shards

    def after_restore(self, put: Callable[[], None]) -> None:
        """Take what puts back this process's own state, once all of a checkpoint is restored."""
        self._put = put

    def restored(self) -> None:
        """Put it back: a checkpoint's random numbers, which are the first process's, are in place by now."""
        put, self._put = self._put, None
        if put is not None:
            put()

    def tick(self, clock_s: float) -> None:
        """Take the first process's clock."""
        self.clock_s = clock_s

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value in all of them; it may be any value that can be pickled."""
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

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in the first one, in the order of their ranks; [] in others."""
        if self.n == 1:
            return [value]
        found: list[Any] | None = None if self.rank else [None] * self.n
        dist.gather_object(value, found, dst=0, group=_control())
        return found or []

    def broadcast_into(self, tensors: Iterable[Tensor]) -> None:
        """Write the first process's values into the tensors of all of them."""
        if self.n > 1:
            for tensor in tensors:
                if not is_part(tensor):  # a shard, different in each process
                    dist.broadcast(tensor.detach(), src=0)

    def joint(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return metrics over the samples of all processes; with one process, the same objects.

        Each of them has state_dict, load_state_dict, and merge_state(metrics), as torcheval's have.
        """
        if self.n_shards == 1 or not metrics:
            return metrics
        for metric in metrics.values():
            if hasattr(metric, "_prepare_for_merge_state"):  # torcheval's, to make few tensors of many
                metric._prepare_for_merge_state()
        states = self.all_gather(
            {name: map_tensors(Tensor.cpu, metric.state_dict()) for name, metric in metrics.items()}
        )
        joint = {}
        for name, metric in metrics.items():
            others = []
            for state in (*states[: self.rank], *states[self.rank + 1 :]):
                others.append(deepcopy(metric))
                others[-1].load_state_dict(state[name])
            joint[name] = deepcopy(metric)
            joint[name].merge_state(others)
        return joint

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes; where all have the same batches, those of one."""
        if self.n_shards == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=_control())
        return sums.tolist()

    def mean_of(self, value: Any, like: Tensor, is_of_part: bool = False) -> Any:
        """Return the mean of a number over all processes, on the device of a tensor, without waiting.

        Args:
            is_of_part: whether it is of a sharded tensor, and so differs where all have the same batches too.
        """
        if self.n == 1 or (self.n_shards == 1 and not is_of_part):
            return value
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        total = torch.as_tensor(value, device=like.device).to(dtype, copy=True)
        dist.all_reduce(total)
        return total / self.n

    def are_idle(self, is_idle: bool) -> None:
        """Set whether this process has no sample of the batch and only takes part in the step."""
        self.is_idle = is_idle

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Write into each tensor its mean over all processes."""
        if self.n_shards > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.n) if tensor.is_floating_point() else tensor.floor_divide_(self.n)


# Sharded tensors ----------------------------------------------------------------------------------


def is_part(tensor: Any) -> bool:
    """Whether a tensor is sharded over the processes (a DTensor)."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import
    return module is not None and isinstance(tensor, module.DTensor)


def by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Divide tensors into those that are sharded and those that are not, which torch._foreach takes apart."""
    if "torch.distributed.tensor" not in sys.modules:
        return [list(tensors)]
    kinds = [[t for t in tensors if is_part(t) is sharded] for sharded in (False, True)]
    return [kind for kind in kinds if kind]


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a sharded one; all processes have to call this."""
    full: Any = tensor
    return full.full_tensor() if is_part(tensor) else tensor


def whole_in_first(tensor: Tensor) -> Tensor:
    """Return the full tensor in the first process, on the CPU, and an empty one in the others."""
    if not is_part(tensor):
        return tensor
    part: Any = tensor
    found: Tensor = part.full_tensor()
    return found.cpu() if dist.get_rank() == 0 else found.new_empty(0)


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """Return a full tensor sharded like `tensor`, or as it is if that is not sharded."""
    if not is_part(tensor) or is_part(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    part: Any = tensor
    # Each process has the full tensor: nothing has to be sent.
    return distribute_tensor(value.to(part.device), part.device_mesh, part.placements, src_data_rank=None)
