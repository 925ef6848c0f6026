"""DistributedCB: the same script for one process and for many, with torch.distributed."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..arguments import check_flags, function, number, shown, unless_none
from ..callback import Callback, Hook, Order
from ..data.adapters import Adapter, adapter_of
from ..optim.groups import params_of
from ..parameters import extra_params, loss_tensors, roots_of
from ..processes import Processes, ask, fail, is_part, join
from ..seeding import packed_rng, rng_state, seed_of, set_rng_state
from ..weights import tensors_by_name
from .device import DeviceCB, default_device
from .joining import check_joinable
from .metrics import MetricsCB
from .other_optimizers import OtherOptimizers
from .precision import MixedPrecisionCB

if TYPE_CHECKING:
    from ..learner import Learner


_LONGEST_S = 10**9  # 30 years, which a timedelta can hold


class DistributedCB(Callback):
    """Train in as many processes as torchrun starts; with one, or without torchrun, it changes nothing::

        Learner(model, dls, cbs=[DistributedCB()]).fit(6)   # train.py
        torchrun --nproc-per-node 8 train.py                # the same training, on 8 GPUs

    The batch size is that of all processes together, so lr, schedules and the number of steps stay the same
    as with one process. Each process takes its shard of each batch. All samples have the same weight, so the
    losses are those of one process, up to rounding. What looks at a whole batch sees only the shard:
    BatchNorm (its running statistics are the first process's), MixupCB and CutMixCB.

    The order of the data is the first process's, a pure function of (seed, epoch); a process's shard is one
    of (seed, epoch, rank). Metrics are computed over the samples of all processes, and all have the same
    history. Only the first process shows progress, logs and writes checkpoints. Any number of processes can
    resume from them; all of them must see the folder. Random numbers of the model (dropout) differ from
    process to process. A signal stops all after the same step. A process that fails ends the others.

    A loss that is a module, and parameters that callbacks add, start each fit with the first process's
    values. Their gradients are averaged like the model's; one that a process lacks counts as 0.

    So do optimizers beside the learner's, such as a GAN's second one, that callbacks or the learner keep as
    attributes, and the modules with their parameters. A backward of yours on a loss that is a mean over the
    samples of the batch is weighted by the samples of this process (do not multiply it by learn.loss_weight),
    and gradients are averaged before the optimizer's step. All processes have to take that step.

    All processes have to call fit and validate. Any one may call predict, which returns all predictions
    (except if the model is sharded).

    Args:
        shard: None: each process has the full model (DistributedDataParallel). Classes of modules: these, and
            the rest of the model, are sharded, and each process keeps its shard of parameters, gradients and
            optimizer state (fully_shard, FSDP2). True: each child of the model that has parameters.
        parallelize: a function (model, mesh) that shards the model in place, for tensor parallelism of your
            own, such as torch's parallelize_module; mesh is a one-dimensional DeviceMesh of all processes,
            named "model". All of them then have the same batches and random numbers. It is not called with
            one process.
        timeout_s: seconds after which a process gives up waiting for another.
        **kwargs: for DistributedDataParallel or fully_shard, such as find_unused_parameters, mp_policy.

    Runs at: prepare, release; before_fit, _train, _validate, _batch, _forward; after_predict; at_rest;
        cleanup_forward, _train, _fit; order 1500. Writes: rank, n_processes; loss_count, of a batch that has
        no sample here; dl (its own shard of each batch); model, during a predict in training; the first time,
        the weights (the first process's).
    Raises: before training: TypeError for a loader that may give different batches in each process, for
        batches that cannot be cut by rows (such as those of a list with tensors of other lengths than the
        target), and for a metric that cannot be merged; ValueError for a DistributedSampler that gives
        samples twice, the wrong kind of device, processes that resume from different checkpoints, with
        shard= for parameters outside the model, and with parallelize= for a model without DTensors, or whose
        other tensors differ between the processes; for other optimizers that differ, or have parameters of
        the model.
        In training: RuntimeError for processes that are out of sync; for another optimizer that was not found
        before, steps with a closure, or with gradients of the learner's loss; for a step by gradients of the
        model from another backward than the learner's, except if the model is sharded.
    Differs: from the usual scripts, where the batch size is that of one process. A callback that owns
        backward must multiply the loss by learn.loss_weight if it is not None. A callback that cancels has to
        do so in all processes: by the history or the number of steps, not by its own batch. If one process
        takes another path, all end with an error, at the latest after waiting for timeout_s.
    """

    order = Order.PROCESSES
    only_one = "there is one group of processes"

    def __init__(
        self,
        shard: bool | type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
        timeout_s: float = 600,
        parallelize: Callable[[nn.Module, Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kinds = shard if isinstance(shard, tuple) else (shard,)
        are_kinds = bool(kinds) and all(isinstance(k, type) and issubclass(k, nn.Module) for k in kinds)
        if shard is not None and shard is not True and not are_kinds:
            raise TypeError(f"DistributedCB(shard={shown(shard)}): expected True, or classes of modules")
        timeout_s = number("DistributedCB(timeout_s", timeout_s, above=0, high=_LONGEST_S)
        self.parallelize = unless_none(function, "DistributedCB(parallelize", parallelize)
        if parallelize is not None and (shard is not None or kwargs):
            other = f"{next(iter(kwargs))}={shown(next(iter(kwargs.values())))}" if kwargs else f"{shard=}"
            raise ValueError(f"DistributedCB(parallelize=..., {other}): expected only one of the two")
        _check_kwargs(kwargs, shard)
        self.shard, self.timeout_s, self.kwargs = shard, timeout_s, kwargs
        self.rank, self.n_processes = (int(os.environ.get(k, v)) for k, v in (("RANK", 0), ("WORLD_SIZE", 1)))
        self._processes = Processes()
        self._ddp: Any = None
        self._ddp_of: Any = None  # which parameters it was made for
        self._shards: dict[Any, tuple[Any, Adapter]] = {}  # loader, and this process's shard of it
        self._adapters: dict[int, Adapter] = {}  # of the loaders that are shards
        self._is_inside: dict[int, Any] = {}  # the models to put back after predict, by depth
        self._extra: list[Any] = []  # trained parameters outside the model
        self._others = OtherOptimizers(self._sizes)
        self._asked: Any = None  # the exchange that is under way
        self._is_seeded = False
        self._seeded: list[Any] = []  # loaders that already have the first process's seed
        self._is_alone = False  # in a predict outside a fit, which one process may run without others

    def __repr__(self) -> str:
        if self.parallelize is not None:
            return f"DistributedCB(parallelize={shown(self.parallelize)})"
        return f"DistributedCB({'' if self.shard is None else f'shard={self.shard!r}'})"

    # Before everything else -----------------------------------------------------------------------

    def prepare(self, learn: Learner) -> None:
        self._processes = learn.processes
        self._processes.are(self.rank, self.n_processes, None if self.parallelize is None else 1)
        if self.shard is not None:
            self._to_shard(learn.model)
        if self.n_processes == 1:
            return
        self._is_alone = learn.purpose == "predict"
        device = self._device(learn)
        join(device, self.timeout_s)
        for adapter in learn.dls.adapters.values():
            if not any(adapter.loader is known for known in self._seeded):
                adapter.agree(self._processes.broadcast)
                self._seeded.append(adapter.loader)
        if not self._is_seeded:  # the first fit
            self._is_seeded = True
            for root in roots_of(learn):
                root.to(device)
                self._processes.broadcast_into(tensors_by_name(root).values())
            if self.parallelize is not None:
                set_rng_state(self._processes.broadcast(rng_state()))
            elif self.rank:
                torch.manual_seed(seed_of(torch.initial_seed(), self.rank))
        if self.shard is not None and not any(is_part(p) for p in learn.model.parameters()):
            self._shard(learn.model, device)
        if self.parallelize is not None and not any(is_part(p) for p in learn.model.parameters()):
            self._parallelize(learn.model, device)

    def _device(self, learn: Learner) -> torch.device:
        device = next((cb.device for cb in learn.cbs if isinstance(cb, DeviceCB)), default_device())
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"{self!r} on {device}: expected processes on CUDA or on the CPU")
        if device.type == "cuda":
            local = int(os.environ.get("LOCAL_RANK", 0))
            if device.index not in (None, local) or local >= torch.cuda.device_count():
                raise ValueError(
                    f"{self!r}: process {self.rank} is number {local} on its machine, with "
                    f"{torch.cuda.device_count()} GPUs, and its device is {device}: expected a GPU for each "
                    "process, and DeviceCB() without an index"
                )
            torch.cuda.set_device(local)
        return device

    def _to_shard(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules that are each sharded separately."""
        if self.shard is True:
            return [m for m in model.children() if any(True for _ in m.parameters())]
        parts = [m for m in model.modules() if m is not model and isinstance(m, self.shard)]  # type: ignore[arg-type]
        if not parts:
            raise ValueError(f"{self!r}: the model has no such module")
        return parts

    def _shard(self, model: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        kwargs = {"mesh": init_device_mesh(device.type, (self.n_processes,))} | self.kwargs
        for part in [*self._to_shard(model), model]:
            fully_shard(part, **kwargs)

    def _parallelize(self, model: nn.Module, device: torch.device) -> None:
        """Have the user's function shard the model, and check what it leaves."""
        from torch.distributed.device_mesh import init_device_mesh

        assert self.parallelize is not None
        mesh = init_device_mesh(device.type, (self.n_processes,), mesh_dim_names=("model",))
        made = self.parallelize(model, mesh)
        name = f"parallelize={shown(self.parallelize)}"
        if made is not None and made is not model:
            raise TypeError(
                f"{name} returned another {type(made).__name__}: expected the model, changed in place"
            )
        tensors = tensors_by_name(model)
        if not any(is_part(t) for t in tensors.values()):
            raise ValueError(
                f"{name} made no parameter a DTensor: expected some, because checkpoints gather only these "
                "from all processes; use parallelize_module, or distribute_tensor"
            )
        plain = {name: _digest(t) for name, t in tensors.items() if not is_part(t)}
        for other in self._processes.all_gather(plain):
            if odd := sorted(key for key in plain.keys() | other.keys() if plain.get(key) != other.get(key)):
                raise ValueError(
                    f"{name} left {odd[0]} different in the processes, and it is no DTensor: a checkpoint "
                    "would have only the first one's; expected the same in all, or a DTensor"
                )

    # A fit ----------------------------------------------------------------------------------------

    def wrap_hook(self, name: str, hook: Hook) -> Hook:
        if self.n_processes > 1 and name.endswith(".backward"):
            return self._then_average(self._others.in_learners(hook))
        if self.n_processes > 1 and name.endswith(".step"):
            return self._others.checked(hook)
        owner = getattr(inspect.unwrap(hook), "__self__", None)
        if self.n_processes > 1 and isinstance(owner, Callback) and not owner.in_each_process:
            return _nothing if self.rank else self._others.apart(hook)
        return hook

    def before_fit(self, learn: Learner) -> None:
        if self.n_processes == 1 or self._is_alone:
            return
        for cb in learn.cbs:
            if isinstance(cb, MetricsCB) and self.parallelize is None:
                for name, metric in cb.metrics.items():
                    check_joinable(self, name, metric)
            is_sharded = self.shard is not None or self.parallelize is not None
            if isinstance(cb, MixedPrecisionCB) and cb.dtype is torch.float16 and is_sharded:
                raise ValueError(f"{cb!r} with {self!r}: the scaler sees only one shard; expected bfloat16")
        source = learn.run.source
        places = self._processes.all_gather(None if source is None else (source.path.name, source.position))
        if any(place != places[0] for place in places):
            raise ValueError(
                f"{self!r}: the processes do not resume from the same checkpoint: {places}; expected a "
                "folder that all of them see"
            )
        self._processes.broadcast_into(loss_tensors(learn).values())
        if "train" in learn.phases:  # a fit without training plans no steps
            self._check_plan(learn)
            self._find_extra(learn)
            self._others.begin(learn, is_averaged=self.shard is None and self.parallelize is None)
        if self.parallelize is not None:
            self._extra = []  # all have the same gradients
        loaders = [learn.dls.train] * ("train" in learn.phases)
        loaders += learn.dls.sets.values() if "eval" in learn.phases else ()
        for loader in loaders:  # now, to refuse what cannot be sharded, or differs, before any training
            self._shard_of(learn, loader)
        self._asked = None

    def _check_plan(self, learn: Learner) -> None:
        plans = self._processes.all_gather(learn.epoch_steps)
        if any(plan != plans[0] for plan in plans):
            raise ValueError(
                f"{self!r}: the processes plan different steps, {plans}: expected the same data in each"
            )

    def _find_extra(self, learn: Learner) -> None:
        """Find trained parameters outside the model, and give all processes the first one's values."""
        of_model = {id(p) for p in learn.model.parameters()}
        self._extra = [p for p in params_of(learn.opt) if id(p) not in of_model]
        if self._extra and self.shard is not None:
            names = {id(p): name for name, p in extra_params(learn).items()}
            raise ValueError(
                f"{self!r}: {names.get(id(self._extra[0]), 'a parameter')} is not part of the model, and its "
                "gradients are averaged only without shard=: expected DistributedCB(), or parameters of the "
                "model"
            )
        self._processes.broadcast_into(self._extra)

    def _then_average(self, backward: Hook) -> Hook:
        """Return a backward that also averages gradients outside the model, which DDP does not know.

        It does so before any hook that looks at finished gradients. One that a process lacks counts as 0.
        """

        @wraps(backward)
        def averaging(learn: Learner) -> None:
            backward(learn)
            if learn.is_accumulating:
                return
            params = [p for p in self._extra if p.requires_grad]
            for p in params:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self._processes.average([p.grad for p in params if p.grad is not None])

        return averaging

    def before_train(self, learn: Learner) -> None:
        self._use_shard(learn)

    def before_validate(self, learn: Learner) -> None:
        if self.n_processes == 1:
            return
        for root in roots_of(learn):
            self._processes.broadcast_into(root.buffers())
        self._others.join_buffers(learn)
        self._use_shard(learn)

    def _use_shard(self, learn: Learner) -> None:
        if self.n_processes == 1 or self.parallelize is not None:
            return
        whole, adapter = learn.dl, self._shard_of(learn, learn.dl)
        adapter.follow(whole, "seed", "epoch", "bs")  # they may have changed since
        learn.dl = adapter.loader
        self._adapters[id(learn.dl)] = adapter

    def _shard_of(self, learn: Learner, loader: Any) -> Adapter:
        adapter = learn.dls.adapter_of(loader)
        key = id(loader), adapter.one_pass() is adapter  # a fit in steps may validate on its training data
        if key not in self._shards:
            shard = adapter.shard(self.rank, self.n_processes)
            # Keep the loader too, so that no other one gets its id.
            self._shards[key] = (loader, adapter_of(shard))
        return self._shards[key][1]

    def before_batch(self, learn: Learner) -> None:
        if self.n_processes == 1:
            return
        sizes = self._sizes(learn)
        learn.processes.are_idle(sizes is not None and sizes[0] == 0)

    def _sizes(self, learn: Learner) -> tuple[int, int] | None:
        """Return how many samples the batch has here, and in all processes; None if not known."""
        adapter = self._adapters.get(id(learn.dl))
        return None if adapter is None else adapter.sizes(learn.batch_idx)

    def before_forward(self, learn: Learner) -> None:
        if self.n_processes == 1:
            return
        if learn.processes.is_idle:
            learn.loss_count = 0
        if not learn.training:
            return
        if (
            self.shard is None and self.parallelize is None
        ):  # a sharded model reduces its gradients at each batch: else p.grad is empty
            inner = next(iter(self._is_inside.values()), learn.model)  # it may be inside DDP already
            ddp = self._wrapped(inner)
            ddp.require_backward_grad_sync = not learn.is_accumulating
            self._is_inside[len(learn.scopes)] = learn.model
            learn.model = ddp

    def _wrapped(self, model: nn.Module) -> Any:
        made_for = [id(model), *(p.requires_grad for p in model.parameters())]
        if self._ddp_of != made_for:  # the first time, and after freeze or unfreeze
            self._ddp, self._ddp_of = nn.parallel.DistributedDataParallel(model, **self.kwargs), made_for
        return self._ddp

    def after_predict(self, learn: Learner) -> None:
        self._unwrap(learn)

    def cleanup_forward(self, learn: Learner) -> None:
        self._unwrap(learn)

    def _unwrap(self, learn: Learner) -> None:
        if len(learn.scopes) in self._is_inside:
            learn.model = self._is_inside.pop(len(learn.scopes))

    # Together -------------------------------------------------------------------------------------

    def at_rest(self, learn: Learner) -> None:
        """Exchange signals, one step late so that no process waits; outside the batch loops, at once."""
        self._exchange(learn, wait="train" not in learn.scopes and "validate" not in learn.scopes)

    def cleanup_train(self, learn: Learner) -> None:
        """Make sure that all have left the training before they exchange anything else."""
        if not learn.is_failing:
            self._exchange(learn, wait=True)

    def _exchange(self, learn: Learner, wait: bool) -> None:
        if self.n_processes == 1 or self._is_alone:
            return
        if self._asked is not None:
            self._hear(learn)
        phase = 4 * len(learn.scopes) + 2 * wait + learn.training  # different for each caller
        place = [learn.epoch, learn.batch_idx, learn.n_steps, phase]
        time_s = -1.0 if self.rank else time.monotonic()
        self._asked = ask([learn.stop.said, time_s, *place, *(-x for x in place)])
        if wait:
            self._hear(learn)

    def _hear(self, learn: Learner) -> None:
        said, time_s, *places = self._asked()
        self._asked = None
        learn.stop.agree(int(said))
        learn.processes.tick(time_s)
        highest, lowest = places[:4], [0.0 - x for x in places[4:]]
        if highest == lowest:
            return
        spans = zip(("epoch", "batch", "step"), lowest, highest, strict=False)
        differ = [f"{name} {low:.0f} to {high:.0f}" for name, low, high in spans if low != high]
        how = ", ".join(differ) or "one left a loop"
        error = RuntimeError(
            f"{self!r}: the processes are out of sync ({how}); process {self.rank} is in {learn.where()}: "
            "what cancels or skips something has to do so in all of them, by the history or the number of "
            "steps, not by its own batch"
        )
        fail(self.rank, error)  # here too, because no cleanup_fit may follow the last epoch
        raise error

    def cleanup_fit(self, learn: Learner) -> None:
        if learn.is_failing:
            self._leave(learn)

    def release(self, learn: Learner) -> None:
        self._others.end()
        self._shards, self._adapters, self._is_inside, self._extra = {}, {}, {}, []
        # The next fit makes a new one: an old one may abort the process at exit, see processes.py.
        self._ddp = self._ddp_of = None
        self._leave(learn)  # after a validate that failed

    def _leave(self, learn: Learner) -> None:
        """Tell the others if this process fails, so that they do not wait for it."""
        error = sys.exc_info()[1]
        if self.n_processes > 1 and error is not None and not learn.stop.is_asked:
            fail(self.rank, error)

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the random number state of each process."""
        return {"rng": self._processes.all_gather(_rng())} if self.n_processes > 1 else {}

    def epoch_state(self) -> dict[str, Any]:
        """Return nothing: a beginning has the random numbers of each process already."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; a different number of processes starts with new random numbers."""
        if self.n_processes == 1:
            return
        states = state.get("rng", [])
        same = len(states) == self.n_processes
        rng = states[self.rank] if same else seed_of(torch.initial_seed(), self.rank)
        if not same and self.parallelize is not None and states:
            rng = states[0]  # the same in all
        self._processes.after_restore(partial(_put_rng, rng))


def _nothing(learn: Learner) -> None:
    """Replace the hooks that run only in the first process."""


def _check_kwargs(kwargs: dict[str, Any], shard: Any) -> None:
    takes: Any = nn.parallel.DistributedDataParallel
    if kwargs and shard is not None:
        from torch.distributed.fsdp import fully_shard as takes  # slow to import
    check_flags("DistributedCB", takes, kwargs)
    names = [*inspect.signature(takes).parameters][1:]  # without the module
    for name, value in kwargs.items():
        if name not in names:
            raise TypeError(
                f"DistributedCB({name}={value!r}): expected shard, timeout_s, or what torch's "
                f"{takes.__name__} takes: {', '.join(names)}"
            )


def _digest(tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(values.numpy().tobytes(), digest_size=8).hexdigest()


# Random numbers -----------------------------------------------------------------------------------


def _rng() -> dict[str, Any]:
    """Return the state of this process's generators, with that of its own GPU only."""
    return packed_rng(devices=False) | {"own_cuda": torch.cuda.get_rng_state() if _has_cuda() else None}


def _put_rng(state: Any) -> None:
    if isinstance(state, int):
        torch.manual_seed(state)
        return
    if "cpu" in state:  # written by version 0.1, without python's and numpy's
        state = rng_state(devices=False) | {"torch": state["cpu"], "own_cuda": state["cuda"]}
    set_rng_state(state)
    if state["own_cuda"] is not None and _has_cuda():
        torch.cuda.set_rng_state(state["own_cuda"].cpu())


def _has_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
