"""What callbacks and users read from a learner, and what users set between fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .data.adapters.adapter import short
from .data.loaders import DataLoaders
from .host import CallbackHost
from .optim.groups import check_lrs

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from .fitting.made import Made
    from .fitting.mean import StepMean
    from .fitting.request import StopRequest
    from .fitting.run import Run
    from .plan import Plan
    from .processes import Processes
    from .rows import History


_PLANNED = (
    "a fit is planned before it begins: expected fit(n_epochs), plan_steps(self, learn, steps) or "
    "plan_schedules in a callback, or CancelFitException to end it early"
)
_INSTEAD = {
    **dict.fromkeys(("n_epochs", "epoch_steps", "total_steps", "schedule_epochs"), _PLANNED),
    "phases": "expected fit(n_epochs, train=..., valid=...)",
    "loss_weight": "expected a callback that changes learn.loss, or learn.loss_count",
    "is_paused": "expected learn.pause()",
    "stop_signal": "expected learn.pause()",
}


class Fields(CallbackHost):
    """The fields of a Learner that are derived from others, or that belong to one of its objects."""

    _dls: DataLoaders
    _made: Made
    opt: Optimizer  # None until the first fit makes it. Your own needs only step() and zero_grad().
    history: History
    is_accumulating: bool
    training: bool
    epoch: int
    n_steps: int
    batch_idx: int
    dl: Any
    mean: StepMean
    plan: Plan
    processes: Processes
    run: Run
    stop: StopRequest
    _base_fields: frozenset[str]

    # What users set between fits ------------------------------------------------------------------

    @property
    def lr(self) -> float | Sequence[float]:
        """The learning rate that the optimizer is made with; set between fits, it acts once, like fit(lr=x).

        The lr that the steps use is in `learn.opt.param_groups`.
        """
        return self._made.lr

    @lr.setter
    def lr(self, lr: float | Sequence[float]) -> None:
        if self.scopes:
            raise RuntimeError(
                f"learn.lr = {lr!r} during a fit would change nothing: expected ScheduleCB('lr', ...), a "
                "scheduler, or pg['lr'] = ... for each pg in learn.opt.param_groups"
            )
        check_lrs("lr", lr)
        self._made.set_lr(lr)

    @property
    def dls(self) -> DataLoaders:
        """The loaders; it may be set to whatever the constructor takes."""
        return self._dls

    @dls.setter
    def dls(self, dls: Any) -> None:
        self._dls = DataLoaders.of(dls)

    # What callbacks read --------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """Return "train" or "eval", the names in the rows of history where validation sets have none."""
        return "train" if self.training else "eval"

    @property
    def index(self) -> Tensor:
        """Return which samples of the data set are in the batch, (n,) int64 on the CPU.

        These are the numbers of its rows, as the loader gave them, in this process. They are known of a
        TensorLoader, a DatasetLoader, your own loader with `index_of(i)`, and of a torch DataLoader, except
        one over a stream. Mixing and augmentation change the samples, and not their numbers.

        Raises: RuntimeError outside a batch; ValueError where the loader does not say it.
        """
        if self.dl is None or "batch" not in self.scopes:
            raise RuntimeError(
                "learn.index outside a batch: expected a hook of a batch, such as before_batch"
            )
        adapter = self.dls.adapter_of(self.dl)
        if (index := adapter.index(self.batch_idx)) is None:
            raise ValueError(
                f"learn.index: {short(self.dl)} does not say which samples are in batch {self.batch_idx}: "
                "expected a TensorLoader, a DatasetLoader, your own loader with index_of(i), or a torch "
                "DataLoader, without in_order=False, over a data set with an index"
            )
        return index

    @property
    def loss_weight(self) -> Tensor | None:
        """Return the factor for the loss in backward, for the mean over a step; None means 1."""
        return self.mean.weight

    @property
    def is_gathering(self) -> bool:
        """Return is_accumulating, under its name in version 0.1."""
        return self.is_accumulating

    @property
    def n_epochs(self) -> int:
        """Return how many epochs the fit has."""
        return self.plan.n_epochs

    @property
    def phases(self) -> tuple[str, ...]:
        """Return the phases of this fit: "train", "eval" or both."""
        return self.plan.phases

    @property
    def epoch_steps(self) -> list[int | None]:
        """Return the optimizer steps of each epoch of the fit, as planned; None if not known."""
        return self.plan.epoch_steps

    @property
    def total_steps(self) -> int | None:
        """Return the optimizer steps of the fit, as planned; None if the loader has no length."""
        return self.plan.total_steps

    @property
    def schedule_epochs(self) -> int:
        """Return how many epochs of the fit, from the first on, the lr schedules cover."""
        return self.plan.schedule_epochs

    @property
    def rank(self) -> int:
        """Return this process's number among those that train together, counted from 0."""
        return self.processes.rank

    @property
    def n_processes(self) -> int:
        """Return how many processes train together."""
        return self.processes.n

    @property
    def run_id(self) -> str | None:
        """The name of the run that CheckpointCB writes; None without it. It may be set before a fit."""
        return self.run.id

    @run_id.setter
    def run_id(self, name: str) -> None:
        self.run.named(name)

    @property
    def n_fits(self) -> int:
        """Return how many fits of the run are finished."""
        return self.run.n_fits

    @property
    def saved_to(self) -> Path | None:
        """Return the newest checkpoint of this fit."""
        return self.run.saved_to

    @property
    def stop_signal(self) -> int | None:
        """Return the signal that asked this fit to stop, if one came."""
        return self.stop.signal

    @property
    def is_paused(self) -> bool:
        """Whether `pause` stopped the last fit."""
        return self.stop.is_paused

    @property
    def is_fitting(self) -> bool:
        """Whether a fit, or a validate or predict outside one, is running."""
        return self.purpose is not None

    @contextmanager
    def kept(self, *names: str) -> Iterator[None]:
        """Restore these fields after a `with`."""
        own = {name: getattr(self, name) for name in names}
        try:
            yield
        finally:
            vars(self).update(own)

    def own_fields(self) -> dict[str, Any]:
        """Return the attributes that a subclass, a callback or a user gave this learner."""
        return {name: value for name, value in vars(self).items() if name not in self._base_fields}

    def where(self) -> str:
        """Say where in the loop the learner is, for the notes on errors."""
        if not ("train" in self.scopes or "validate" in self.scopes):
            return f"epoch {self.epoch} of {self.n_epochs}"
        # Outside a batch, such as in the loader, batch_idx is that of the last one, -1 before the first.
        when = "" if "batch" in self.scopes else "after " if self.batch_idx >= 0 else "before "
        evaluates = self.purpose in ("validate", "predict")
        of = self.purpose if evaluates else self.plan.row_of(self)
        batch = f"{when}{of} batch {max(self.batch_idx, 0)}"
        if evaluates and not self.is_nested:
            return batch  # no epoch or step is running
        return f"epoch {self.epoch} of {self.n_epochs}, {batch}, step {self.n_steps}"


def _refusing(name: str) -> Callable[[Fields, Any], None]:
    def refuse(learn: Fields, value: Any) -> None:
        advice = _INSTEAD.get(name, "it is read from the objects that it belongs to")
        raise TypeError(f"learn.{name} = {value!r} would change nothing: {advice}")

    return refuse


for _name, _value in list(vars(Fields).items()):
    if isinstance(_value, property) and _value.fset is None:
        setattr(Fields, _name, _value.setter(_refusing(_name)))
