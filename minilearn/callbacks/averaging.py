"""Averages of the weights: SWACB and EMACB, seen by validation with their own BatchNorm statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ..arguments import choice, counted, flag, is_number, is_whole, number, shown, unless_none, whole_number
from ..callback import Callback, Order
from ..optim.groups import groups_of, lr_of_each, set_value
from ..parameters import all_tensors, extra_params
from ..plan import sum_of
from ..processes import by_kind, like
from ..seeding import kept_rng
from ..warning import warn
from ..weights import plain_name, tensors_by_name
from .hyperparameters import ScheduleCB
from .scheduler import BaseSchedulerCB

if TYPE_CHECKING:
    from ..learner import Learner

_swa: Any = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class BaseAveragingCB(Callback):
    """Average the weights while they are trained; a subclass says when and how.

    Everything that is trained is averaged: the model's parameters, those of a loss that is a module, and
    those that callbacks bring. `learn.save` and the weights of a checkpoint have only the model's.

    From the first average on, an epoch has two rows of validation: "iterate", for the weights that are being
    trained, and "eval", for their average. So what watches "eval" (early stopping, the best checkpoint) uses
    the average. When the fit ends, the model holds the average; when an error or a signal interrupts it, the
    iterate. `with learn.averaged():` puts the average into the model at any other time.

    Under the average, BatchNorms get their own statistics, measured on training data in the order and with
    the augmentation of the epoch. Callbacks see this as a nested validation that ends each batch after
    after_predict; nothing is saved in it. Training is bit for bit the same as without an average.

    Args:
        n_norm_batches: how many training batches the BatchNorms' statistics are measured on, >= 1, at most
            an epoch. Not used where there are no BatchNorms; frozen ones keep their statistics.

    State: n_averaged, how many iterates are in the average; the average, float32 or wider, on the device of
        the weights; the statistics.
    Differs: torch's update_bn leaves dropout on while it measures.
    """

    order = Order.AVERAGING
    only_one = "validation can see one average"
    measures_norms = True
    in_evaluation = False
    in_lr_find = False

    def __init__(self, n_norm_batches: int = 100) -> None:
        if type(self) is BaseAveragingCB:
            raise TypeError("BaseAveragingCB never averages: use SWACB or EMACB")
        self.n_norm_batches = whole_number("n_norm_batches", n_norm_batches, of=" of batches")
        self.n_averaged = 0
        self._names: list[str] = []
        self._params: list[Tensor] = []  # the averaged parameters, in the order of these names
        self._averages: list[Tensor] = []  # one for each, in its shape
        self._is_wider = False  # whether the average is wider than some weights
        self._statistics: dict[str, Tensor] = {}  # of the BatchNorms under the average; empty: to be measured
        self._swapped = ExitStack()  # open while the model holds the average
        self._is_swapped = False

    # When -----------------------------------------------------------------------------------------

    def before_fit(self, learn: Learner) -> None:
        named = {name: t for name, t in tensors_by_name(learn.model).items() if isinstance(t, nn.Parameter)}
        named |= {name: p for name, p in extra_params(learn).items() if p.requires_grad}
        self._names = [name for name, p in named.items() if p.is_floating_point() or p.is_complex()]
        self._params = [named[name] for name in self._names]
        self._is_wider = any(p.dtype in (torch.float16, torch.bfloat16) for p in self._params)
        self.n_averaged, self._averages, self._statistics = 0, [], {}

    def after_train(self, learn: Learner) -> None:
        # A fit without validation has no "eval" rows, and so no "iterate" rows.
        if self.n_averaged and "eval" in learn.phases:
            for name, loader in learn.dls.sets.items():
                if row := learn.validate(loader):
                    own = "iterate" if len(learn.dls.sets) == 1 else f"iterate/{name}"
                    learn.history.append(row | {"train": own})

    def before_validate(self, learn: Learner) -> None:
        if self.n_averaged:
            self._swapped.enter_context(self.applied(learn))

    def cleanup_validate(self, learn: Learner) -> None:
        self._swapped.close()

    def cleanup_fit(self, learn: Learner) -> None:
        if self.n_averaged and not learn.is_failing:
            if not self._statistics:
                with self.applied(learn):  # measures, and leaves nothing behind if that fails
                    pass
            self._put(learn)

    # The average ----------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self) -> None:
        """Add the present weights to the average."""
        if self._averages:
            params: list[Tensor] = self._params
            if self._is_wider:
                params = [p.to(a.dtype) for p, a in zip(params, self._averages, strict=True)]
            pairs = zip(by_kind(self._averages), by_kind(params), strict=True)
            for averages, weights in pairs:
                self._average(averages, weights)
        else:
            dtypes = [torch.promote_types(p.dtype, torch.float32) for p in self._params]
            self._averages = [p.to(d, copy=True) for p, d in zip(self._params, dtypes, strict=True)]
        self.n_averaged += 1
        self._statistics = {}

    def _average(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        """Update the averages in place with the weights of one more step."""
        raise NotImplementedError

    @contextmanager
    def applied(self, learn: Learner) -> Iterator[None]:
        """Have the model hold the average inside a `with`; no checkpoint is written there."""
        if self._is_swapped:
            yield
            return
        # All tensors, because measuring may fail half-way.
        kept = {name: t.detach().clone() for name, t in all_tensors(learn).items()}
        self._is_swapped = True
        try:
            with learn.no_rest(), learn.modes.evaluating():
                self._put(learn)
                yield
        finally:
            _write(kept, learn)
            self._is_swapped = False

    def _put(self, learn: Learner) -> None:
        """Write the average into the model, with its statistics."""
        _write(dict(zip(self._names, self._averages, strict=True)), learn)
        if not self._statistics:
            self._statistics = _measured(learn, self.n_norm_batches)
        _write(self._statistics, learn)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, with the statistics."""
        averages = dict(zip(self._names, self._averages, strict=False))
        return {"n_averaged": self.n_averaged, "averages": averages, "statistics": self._statistics}

    def epoch_state(self) -> dict[str, Any]:
        """Return all but the average."""
        left_out = ("n_averaged", "averages", "statistics")
        return {name: value for name, value in self.state_dict().items() if name not in left_out}

    def averaged(self, learn: Learner) -> AbstractContextManager[None]:
        if not self.n_averaged:
            raise RuntimeError(f"averaged(): {self!r} has averaged nothing yet")
        return self.applied(learn)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the average; before_fit has already looked at the model."""
        self.n_averaged, self._statistics = state["n_averaged"], state["statistics"]
        named = zip(self._names if state["averages"] else (), self._params, strict=False)
        self._averages = [like(state["averages"][name], p) for name, p in named]


class SWACB(BaseAveragingCB):
    """Average the weights from some epoch on, with equal weight: stochastic weight averaging.

        avg = mean of the weights at the end of each epoch from `start` on

    Who sets the lr: a schedule of the lr covers the epochs before `start` and has that length; from `start`
    on this callback sets it, with momentum and betas as they were before the fit. With swa_lr=None the
    schedule covers the whole fit. So `[BatchSchedulerCB(OneCycleLR), SWACB(20, swa_lr=0.01)]` in a fit of 30
    epochs is one cycle of 20, and then 10 epochs at 0.01.

    Args:
        start: an epoch of the fit, from 0, as a whole number; or a share of the fit, as a float between 0
            and 1, which is rounded down to an epoch.
        swa_lr: the lr from `start` on, one number >= 0 or one per parameter group. None: see above.
        anneal_epochs: over how many epochs the lr moves from its present value to swa_lr; 0 is at once.
        anneal: "cos" or "linear".
        every_steps: from `start` on, average every so many optimizer steps instead of after each epoch.
        n_norm_batches: see BaseAveragingCB.

    Runs at: before_fit, before_train, before_validate, after_step, after_train, cleanup_validate,
        cleanup_fit; order 70. Reads: the weights. Writes: lr; history (the rows "iterate"); in validation and
        after the fit the weights.
    Raises: before training: ValueError for a start after the end, if the numbers of lrs and groups differ,
        and for annealing longer than what is left.
    Source: Izmailov et al. 2018; document 001. Differs: torch's SWALR has to be stepped by hand and anneals
        over 10 epochs by default; the averaging is torch's.
    """

    def __init__(
        self,
        start: int | float = 0.75,
        swa_lr: float | Sequence[float] | None = None,
        anneal_epochs: int = 0,
        anneal: str = "cos",
        every_steps: int | None = None,
        n_norm_batches: int = 100,
    ) -> None:
        super().__init__(n_norm_batches)
        if not is_whole(start, 0) and not (is_number(start, above=0, below=1)):
            raise ValueError(
                f"SWACB(start={shown(start)}): expected an epoch (a whole number from 0), or a share of the "
                "fit (a float between 0 and 1)"
            )
        lrs = swa_lr if isinstance(swa_lr, Sequence) and not isinstance(swa_lr, str) and swa_lr else [swa_lr]
        if swa_lr is not None and not all(is_number(lr, low=0) for lr in lrs):
            raise ValueError(
                f"SWACB(swa_lr={shown(swa_lr)}): expected an lr >= 0, or one for each parameter group"
            )
        self.anneal_epochs = whole_number("SWACB(anneal_epochs", anneal_epochs, 0)
        if anneal_epochs and swa_lr is None:
            raise ValueError(
                f"SWACB(anneal_epochs={anneal_epochs!r}): expected 0, because there is no swa_lr to go to"
            )
        self.anneal = choice("SWACB(anneal", anneal, ("cos", "linear"))
        self.every_steps = unless_none(whole_number, "SWACB(every_steps", every_steps)
        self.start, self.swa_lr = int(start) if is_whole(start) else float(start), swa_lr
        self._first_epoch = 0
        self._first_step: int | None = None  # once it has begun
        self._lrs: list[float] = []  # of each group, where annealing begins
        self._before: list[float] = []  # before the fit
        self._n_anneal = 0  # steps

    def __repr__(self) -> str:
        return f"SWACB(start={self.start}, swa_lr={self.swa_lr})"

    def plan_schedules(self, learn: Learner, n_epochs: int) -> int:
        return n_epochs if self.swa_lr is None else min(n_epochs, self._epoch_of(n_epochs))

    def _epoch_of(self, n_epochs: int) -> int:
        return self.start if isinstance(self.start, int) else int(round(self.start * n_epochs, 9))

    def before_fit(self, learn: Learner) -> None:
        super().before_fit(learn)
        self._first_step, self._lrs, self._before = None, [], []
        first = self._first_epoch = self._epoch_of(learn.n_epochs)
        if first >= learn.n_epochs:
            raise ValueError(
                f"{self!r}: epoch {first} is never reached, the fit has {learn.n_epochs} (0 to "
                f"{learn.n_epochs - 1})"
            )
        left, counts = learn.epoch_steps[first:], learn.epoch_steps[first : first + self.anneal_epochs]
        if self.anneal_epochs > len(left):
            raise ValueError(
                f"{self!r}: anneal_epochs={self.anneal_epochs} from epoch {first} on, of which the fit has "
                f"{len(left)}: expected at most as many"
            )
        n_left, n_anneal = sum_of(left), sum_of(counts)
        if n_anneal is None:
            raise ValueError(f"{self!r}: annealing counts steps, and the train loader has no length")
        if self.every_steps and n_left is not None and self.every_steps > n_left:
            raise ValueError(
                f"{self!r}: every_steps={self.every_steps}, and the fit has {counted(n_left, 'step')} from "
                f"epoch {first} on: nothing would be averaged"
            )
        self._n_anneal = n_anneal
        if self.swa_lr is not None:
            self._check_lrs(learn)

    def _check_lrs(self, learn: Learner) -> None:
        groups = groups_of(learn.opt)
        try:
            lr_of_each(self.swa_lr, groups)
        except ValueError as error:
            raise ValueError(f"{self!r}: {error}") from None
        if any("lr" not in group for group in groups):
            raise TypeError(f"{self!r}: {type(learn.opt).__name__} has no lr to set")
        if not any(isinstance(cb, BaseSchedulerCB) for cb in learn.cbs):  # it restores the earlier lr
            self._before = [float(group["lr"]) for group in groups]
        places = {id(group): i for i, group in enumerate(groups)}
        for cb in learn.cbs:
            if isinstance(cb, ScheduleCB) and cb.name == "lr":
                for group, lr in cb.values_before():
                    self._before[places[id(group)]] = float(lr)

    def before_train(self, learn: Learner) -> None:
        if learn.epoch >= self._first_epoch and self._first_step is None:
            self._first_step = learn.n_steps
            if self.swa_lr is not None:
                self._lrs = [float(group["lr"]) for group in groups_of(learn.opt)]
            self._write_lr(learn)

    def after_step(self, learn: Learner) -> None:
        if self._first_step is None:
            return
        n_steps = learn.n_steps - self._first_step
        if n_steps <= self._n_anneal:
            self._write_lr(learn)
        if self.every_steps and n_steps % self.every_steps == 0:
            self.update()

    def after_train(self, learn: Learner) -> None:
        if self._first_step is not None and not self.every_steps:
            self.update()
        super().after_train(learn)

    def cleanup_fit(self, learn: Learner) -> None:
        super().cleanup_fit(learn)
        if learn.n_steps and not self.n_averaged and not learn.is_failing:
            warn(f"{self!r}: the fit ended before anything was averaged")
        for group, lr in zip(groups_of(learn.opt) if self._before else (), self._before, strict=False):
            set_value(group, "lr", lr)
        self._before = []

    def _write_lr(self, learn: Learner) -> None:
        n_steps = learn.n_steps - (self._first_step or 0)
        done = n_steps / self._n_anneal if self._n_anneal else 1.0
        share = (1 - math.cos(math.pi * done)) / 2 if self.anneal == "cos" else done
        groups = groups_of(learn.opt) if self._lrs else []
        for group, lr, end in zip(groups, self._lrs, lr_of_each(self.swa_lr, groups), strict=False):
            set_value(group, "lr", end if done == 1 else lr + (end - lr) * share)

    def _average(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        _swa(averages, weights, self.n_averaged)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, the step where it began, and the lrs before the fit."""
        own = {"first_step": self._first_step, "lrs": self._lrs, "before": self._before}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them."""
        super().load_state_dict(state)
        self._first_step, self._lrs, self._before = state["first_step"], state["lrs"], state["before"]


class EMACB(BaseAveragingCB):
    """Average the weights of the latest steps, weighting the newest most (exponential moving average).

        avg = d * avg + (1 - d) * p    after each optimizer step; at first avg = p, before the first step
        d = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, ...; d = decay without warm-up

    Args:
        decay: 0 < decay < 1; it looks back over about 1 / (1 - decay) updates.
        warmup: let d rise to `decay`, so that the first weights are soon forgotten.
        every_steps: update after every so many optimizer steps, >= 1.
        n_norm_batches: see BaseAveragingCB.

    Runs at: before_fit, before_validate, before_step, after_step, after_train, cleanup_validate,
        cleanup_fit; order 70. Reads: the weights. Writes: history (the rows "iterate"); in validation and
        after the fit the weights.
    Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(
        self, decay: float = 0.999, warmup: bool = True, every_steps: int = 1, n_norm_batches: int = 100
    ) -> None:
        super().__init__(n_norm_batches)
        self.decay = number("EMACB(decay", decay, above=0, below=1)
        self.warmup, self.every_steps = (
            flag("EMACB(warmup", warmup),
            whole_number("EMACB(every_steps", every_steps),
        )

    def __repr__(self) -> str:
        return f"EMACB(decay={self.decay})"

    def before_fit(self, learn: Learner) -> None:
        super().before_fit(learn)
        if learn.total_steps is not None and self.every_steps > learn.total_steps:
            raise ValueError(
                f"{self!r}: every_steps={self.every_steps}, and the fit has "
                f"{counted(learn.total_steps, 'step')}: the average would be the weights from before the fit"
            )

    def before_step(self, learn: Learner) -> None:
        if not self._averages:
            self.update()  # the weights before the first step

    def after_step(self, learn: Learner) -> None:
        if learn.n_steps % self.every_steps == 0:
            self.update()

    def _average(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        t = self.n_averaged - 1  # the first weights were copied, not averaged
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(averages, weights, self.n_averaged)


# For others ---------------------------------------------------------------------------------------


def seen_by_validation(learn: Learner) -> AbstractContextManager[None]:
    """Have the model hold, inside a `with`, the weights that the "eval" row of an epoch measures."""
    has_average = any(isinstance(cb, BaseAveragingCB) and cb.n_averaged for cb in learn.cbs)
    return learn.averaged() if has_average else nullcontext()


# BatchNorm ----------------------------------------------------------------------------------------


class NormStatisticsCB(Callback):
    """Give BatchNorms, in validation and after the fit, the statistics of the weights that are there then.

    For schedule-free optimizers, which evaluate other weights than those whose batches the BatchNorms saw in
    training. The statistics are measured on training data, as under an average; see BaseAveragingCB. Training
    is bit for bit the same as without this callback. Nothing is saved inside a validation.

    Args:
        n_batches: how many training batches they are measured on, >= 1, at most an epoch.

    Runs at: before_fit, before_validate, cleanup_validate, cleanup_fit; order 70. Writes: the statistics, in
        validation and after the fit.
    State: those that were measured last.
    Raises: before training: ValueError beside SWACB and EMACB, which do the same for their average.
    """

    order = Order.AVERAGING
    only_one = "the statistics are measured once"
    in_evaluation = False
    in_lr_find = False
    measures_norms = True

    def __init__(self, n_batches: int = 100) -> None:
        self.n_batches = whole_number("NormStatisticsCB(n_batches", n_batches, of=" of batches")
        self._kept: dict[str, Tensor] = {}  # those of training, while others are in the model
        self._statistics: dict[str, Tensor] = {}  # those measured last, after `_n_steps`
        self._n_steps = 0
        self._at_rest = ExitStack()  # open while the model has measured statistics

    def __repr__(self) -> str:
        return f"NormStatisticsCB({self.n_batches})"

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics that were measured last, for the end of the fit."""
        return {"statistics": self._statistics, "n_steps": self._n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them."""
        self._statistics, self._n_steps = state["statistics"], state["n_steps"]

    def before_fit(self, learn: Learner) -> None:
        self._statistics = {}
        for cb in learn.cbs:
            if isinstance(cb, BaseAveragingCB):
                raise ValueError(
                    f"{self!r} with {cb!r}, which measures the statistics of its average: leave one out"
                )

    def before_validate(self, learn: Learner) -> None:
        named = {name: m for name, m in learn.model.named_modules() if _is_measured(learn, m)}
        if self._kept or not named:  # nested in another validation, or nothing to measure
            return
        self._kept = _statistics_of(learn, named)
        self._at_rest.enter_context(learn.no_rest())
        self._statistics, self._n_steps = _measured(learn, self.n_batches), learn.n_steps

    def cleanup_validate(self, learn: Learner) -> None:
        self._at_rest.close()
        _write(self._kept, learn)
        self._kept = {}

    def cleanup_fit(self, learn: Learner) -> None:
        if learn.is_failing:
            return
        if self._statistics and self._n_steps == learn.n_steps:
            _write(self._statistics, learn)
        else:
            _measured(learn, self.n_batches)


class _MeasureNormsCB(Callback):
    """Let BatchNorms take their statistics from the batches; the predictions are not used."""

    def __init__(self, norms: list[_BatchNorm]) -> None:
        self.norms = norms

    def before_batch(self, learn: Learner) -> None:
        for norm in self.norms:
            norm.train()


def _measured(learn: Learner, n_batches: int) -> dict[str, Tensor]:
    """Return the statistics of the BatchNorms for the model's present weights; they stay in the model."""
    named = {name: module for name, module in learn.model.named_modules() if _is_measured(learn, module)}
    norms = list(named.values())
    if not norms:
        return {}
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
        train = learn.dls.adapters["train"]
        with kept_rng(*train.generators()), _not_compiled(learn.model):
            learn._evaluate(train.head(n_batches), [_MeasureNormsCB(norms)], "measure")
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    statistics = _statistics_of(learn, named)
    learn.processes.average(statistics.values())  # of the same batches; bits may differ
    return statistics


def _statistics_of(learn: Learner, named: dict[str, Any]) -> dict[str, Tensor]:
    """Return a copy of the statistics of BatchNorms, by their names in the plain model."""
    return {
        plain_name(learn.model, f"{name}.{key}"): getattr(norm, key).clone()
        for name, norm in named.items()
        for key in _STATISTICS
    }


def _not_compiled(model: nn.Module) -> AbstractContextManager[None]:
    """Run modules uncompiled inside a `with`: a mean over all batches breaks the graph of compiled ones."""
    if any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _is_measured(learn: Learner, module: nn.Module) -> bool:
    if not isinstance(module, _BatchNorm) or module.running_mean is None:
        return False
    # Frozen ones keep theirs; a model found in evaluation mode as a whole is still trained.
    is_frozen = learn.modes.is_frozen(module)
    return not is_frozen and (learn.modes.of(module) or not learn.modes.of(learn.model))


@torch.no_grad()
def _write(values: dict[str, Tensor], learn: Learner) -> None:
    """Write values into the parameters and buffers of these names, in place."""
    tensors = all_tensors(learn)
    for name, value in values.items():
        tensors[name].copy_(value)
