"""torch's schedulers as callbacks, per step or per epoch; arguments that the fit knows are filled in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..arguments import is_whole, shown, whole_number
from ..callback import Callback, Order
from ..optim.building import build_opt
from ..optim.calling import call_opt_func
from ..optim.groups import Group, forget_schedule, set_value
from ..parameters import extra_groups
from ..plan import sum_of
from ..warning import warn
from .monitor import Monitor
from .scheduler_arguments import (
    FitLength,
    check_complete,
    check_given,
    check_parts,
    check_scheduler,
    check_values,
    from_the_fit,
    has_the_length,
    takes_value,
    unpacked,
)

if TYPE_CHECKING:
    from ..learner import Learner


_MOST_EPOCHS = 10**7


class BaseSchedulerCB(Callback):
    """Make a scheduler on the learner's optimizer when a fit begins; a subclass says when it steps.

    Each fit has its own schedule, which starts from the lr at the start of the fit. When the fit ends, lr,
    momentum and betas are what they were before it, and those of a group that was added during the fit are
    what it came with. If SWACB sets the lr from some epoch on, the schedule
    covers only the part of the fit before that epoch; then momentum and betas are restored.

    Args:
        scheduler_f: a class of torch.optim.lr_scheduler, or a function that takes the optimizer (and
            perhaps some of the arguments below, by name) and returns a scheduler.
        monitor: for ReduceLROnPlateau, and a scheduler of your own whose `step` takes a value, what it
            watches: "loss", "eval/loss", "train/MulticlassAccuracy", ... Default "loss".
        **kwargs: arguments of the scheduler. Those that you leave out and the fit knows are filled in:
            total_steps, T_max, total_iters (the length of the fit), epochs, steps_per_epoch, all in
            the unit in which this callback steps; max_lr (the lr of each group); step_size_up (half of the
            fit; torch has 2000); and cycle_momentum, False where the optimizer has no momentum to cycle.

    State: `sched`, the torch scheduler.
    Raises: before the first batch: ValueError for an argument that contradicts the fit's length, for a
        monitored name that is not measured, for a length that is needed but not known; TypeError for
        a scheduler instance, an optimizer without parameter groups, or a ReduceLROnPlateau inside another
        scheduler.
    Source: document 003. Differs: there it is stepped once more after the last batch, which turns
        OneCycleLR's lr up again, and in document 001 "per epoch" steps every batch.
    """

    order = Order.SCHEDULER
    only_one = (
        "both would write lr; give one a function optimizer -> ChainedScheduler or SequentialLR of the two, "
        "or ScheduleCB a product or sequence"
    )
    in_evaluation = False
    in_lr_find = False
    settings_in_state = True  # of torch's scheduler
    unit: ClassVar[str] = "steps"

    def __init__(
        self, scheduler_f: Callable[..., Any], *args: Any, monitor: str | None = None, **kwargs: Any
    ) -> None:
        name = type(self).__name__
        if args:
            raise TypeError(f"{name}(..., {args[0]!r}): expected the scheduler's arguments by name")
        if type(self) is BaseSchedulerCB:
            raise TypeError("BaseSchedulerCB never steps: use BatchSchedulerCB or EpochSchedulerCB")
        scheduler_f, kwargs = unpacked(scheduler_f, kwargs)
        check_scheduler(name, scheduler_f)
        self.scheduler_f, self.kwargs, self._monitored = scheduler_f, kwargs, monitor
        self.is_plateau = False  # what a function makes is not known yet
        self.monitor: Monitor | None = None
        if isinstance(scheduler_f, type):
            check_values(name, scheduler_f, kwargs)
            self._watch(takes_value(scheduler_f), kwargs.get("mode"))
        elif monitor is not None:
            Monitor(monitor)
        self.sched: Any = None
        self._has_length = False  # whether it was made for the fit's length
        self._until: float = 0  # it is stepped for at most this many units
        self._before: list[Group] = []  # the groups' hyperparameters when the fit began

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self.scheduler_f, '__name__', self.scheduler_f)})"

    def _watch(self, is_plateau: bool, mode: str | None) -> None:
        """Say whether the scheduler is stepped with a measured value."""
        name, monitor = type(self).__name__, self._monitored
        if is_plateau and self.unit != "epochs":
            raise TypeError(
                f"{name}(ReduceLROnPlateau): what it watches is measured once an epoch; use EpochSchedulerCB"
            )
        if monitor is not None and not is_plateau:
            raise ValueError(f"{name}(monitor={monitor!r}): only ReduceLROnPlateau watches a value")
        self.is_plateau = is_plateau
        self.monitor = Monitor("loss" if monitor is None else monitor, mode) if is_plateau else None

    # Hooks ----------------------------------------------------------------------------------------

    def before_fit(self, learn: Learner) -> None:
        _check_opt(self, learn.opt)
        self._before = [_hyperparameters(group) for group in learn.opt.param_groups]
        steps = self._ruled(learn, learn.epoch_steps)
        self.sched = self._make(learn.opt, steps)
        if self.monitor:
            self.monitor.check(learn)
        length = sum_of(steps) if self.unit == "steps" else len(steps)
        self._until = math.inf if length is None else length

    def before_epoch(self, learn: Learner) -> None:
        if self.sched is not None and learn.epoch >= learn.schedule_epochs:  # from here on SWACB sets the lr
            self._until = -1
            for group, values in zip(learn.opt.param_groups, self._before, strict=False):
                if "max_momentum" in group:  # it was cycled until here
                    _restore(group, {key: value for key, value in values.items() if key != "lr"})

    def _step(self, learn: Learner, *values: Any) -> None:
        """Step the scheduler; note first what a group that was added during the fit came with."""
        groups = learn.opt.param_groups
        self._before += [_hyperparameters(group) for group in groups[len(self._before) :]]
        self.sched.step(*values)

    def cleanup_fit(self, learn: Learner) -> None:
        self.sched, before = None, self._before
        self._before = []
        for group, values in zip(learn.opt.param_groups if before else (), before, strict=False):
            _restore(group, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler, and the groups' values before the fit."""
        sched = None if self.sched is None else self.sched.state_dict()
        best_of = {} if self.monitor is None else {"best_of": self.monitor.says()}
        return {"sched": sched, "before": self._before} | best_of

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them; before_fit has made a new scheduler. Of another monitor, nothing is the best yet."""
        self._before = state["before"]
        if self.sched is not None and state["sched"] is not None:
            if odd := state["sched"].keys() - self.sched.state_dict().keys():  # torch would set any attribute
                raise ValueError(
                    f"{self!r}: the checkpoint sets {min(odd)}, which is not the scheduler's state"
                )
            is_same = self.monitor is None or state.get("best_of") in (None, self.monitor.says())
            of_the_best = () if is_same else ("best", "num_bad_epochs", "mode", "mode_worse")
            self.sched.load_state_dict({k: v for k, v in state["sched"].items() if k not in of_the_best})
            # Steps were taken before the stop, but torch sees none on the new optimizer and would warn.
            self.sched.optimizer._opt_called = True

    # Preview --------------------------------------------------------------------------------------

    @overload
    def preview(
        self, learn: Learner, n_epochs: int = 1, *, group: int, values: Sequence[float] = ()
    ) -> list[float]: ...

    @overload
    def preview(
        self, learn: Learner, n_epochs: int = 1, group: int | None = None, values: Sequence[float] = ()
    ) -> list[Any]: ...

    def preview(
        self, learn: Learner, n_epochs: int = 1, group: int | None = None, values: Sequence[float] = ()
    ) -> list[Any]:
        """Return the lr of each step of `learn.fit(n_epochs)`, without training.

        If SWACB sets the lr from some epoch on, only the steps before it.

        Args:
            group: which parameter group's, one number a step. None: one number a step if all groups have the
                same lr at each step, and otherwise a list a step, with the lr of each group; `plot_lines`
                draws a line for each.
            values: for ReduceLROnPlateau, the monitored value of each epoch.
        """
        n_epochs = whole_number("preview(n_epochs", n_epochs, 1, _MOST_EPOCHS)
        steps = self._planned(learn, n_epochs)
        opt = _stand_in(learn)
        _check_opt(self, opt)
        groups = opt.param_groups
        if group is not None and not is_whole(group, 0, len(groups) - 1):
            raise ValueError(f"preview(group={shown(group)}): expected None or 0 to {len(groups) - 1}")
        sched = self._make(opt, [*steps])
        opt._opt_called = True  # else torch would warn that no step came before the scheduler's
        if self.is_plateau and (not isinstance(values, Sequence) or len(values) < len(steps)):
            raise ValueError(f"preview: ReduceLROnPlateau needs values, one for each of {len(steps)} epochs")
        lrs: list[list[float]] = []
        for epoch, n_steps in enumerate(steps):
            for _ in range(n_steps):
                lrs.append([float(pg["lr"]) for pg in groups])
                if self.unit == "steps" and len(lrs) < sum(steps):
                    sched.step()
            if self.unit == "epochs" and epoch + 1 < len(steps):
                sched.step(values[epoch]) if self.is_plateau else sched.step()
        if group is None and any(len(set(of_step)) > 1 for of_step in lrs):
            return lrs
        return [of_step[group or 0] for of_step in lrs]

    def _planned(self, learn: Learner, n_epochs: int) -> list[int]:
        """Return the steps of the epochs that the schedule would cover in a fit of n_epochs."""
        lengths = learn.dls.adapters["train"].lengths(learn.n_epochs_trained, n_epochs)
        planned = learn.planned_steps(n_epochs, lengths)
        ruled = planned[: learn.scheduled_epochs(n_epochs)]
        known = [n for n in ruled if n is not None]
        if len(known) < len(ruled):
            raise ValueError(
                "preview: the train loader has no length; expected one with len(), to count steps by"
            )
        return known

    def _ruled(self, learn: Learner, steps: list[int | None]) -> list[int | None]:
        """Return the steps of the epochs that the schedule covers."""
        if not learn.schedule_epochs:
            raise ValueError(f"{self!r} has no epoch of its own: SWACB sets the lr from the first one on")
        return steps[: learn.schedule_epochs]

    def _make(self, opt: Any, epoch_steps: list[int | None]) -> Any:
        """Make the scheduler on an optimizer whose fit has these steps in each epoch."""
        for group in opt.param_groups:
            forget_schedule(group)
        length = FitLength(self.unit, epoch_steps, sum_of(epoch_steps))
        name, made_by = repr(self), self.scheduler_f
        check_given(name, made_by, self.kwargs, opt, length)
        filled_in = from_the_fit(name, made_by, self.kwargs, opt, length)
        arguments = self.kwargs | filled_in
        check_complete(name, made_by, arguments)
        self._has_length = has_the_length(filled_in)
        sched = made_by(opt, **arguments)
        if not isinstance(sched, LRScheduler):
            raise TypeError(
                f"{name}: the function gave {sched!r}; expected a scheduler of torch.optim.lr_scheduler"
            )
        check_parts(name, sched)
        if not isinstance(made_by, type):
            self._watch(takes_value(type(sched)), getattr(sched, "mode", None))
        return sched


class BatchSchedulerCB(BaseSchedulerCB):
    """Step a scheduler after each optimizer step but the last.

    Runs at: before_fit, before_epoch, after_step, after_fit, cleanup_fit; order 60. Writes: the groups' lr
        (momentum, betas).
    Arguments and errors: see BaseSchedulerCB. A callback that cancels steps says in `plan_steps` how
    many will be taken.
    """

    unit = "steps"

    def after_step(self, learn: Learner) -> None:
        if learn.n_steps < self._until:
            self._step(learn)
        elif learn.n_steps == self._until + 1:
            warn_of_more(self, learn)

    def after_fit(self, learn: Learner) -> None:
        if self._has_length:
            warn_of_plan(self, learn)


def warn_of_plan(cb: Callback, learn: Learner) -> None:
    """Warn if fewer steps were taken than planned, so that a schedule did not reach its end."""
    skipped = sum(getattr(cb, "n_skipped", 0) for cb in learn.cbs)  # by MixedPrecisionCB, rightly
    if learn.total_steps is None or learn.n_steps + skipped >= learn.total_steps:
        return
    why = "a callback that cancels steps says so in plan_steps"
    if learn.n_steps + skipped + learn.mean.n_uncounted >= learn.total_steps:
        if learn.mean.has_warned:  # of the cause
            return
        why = f"the loss counted nothing in {learn.mean.n_uncounted} of them, so they were not taken"
    warn(
        f"{cb!r}: the fit took {learn.n_steps} of {learn.total_steps} planned steps, so the schedule did "
        f"not reach its end; {why}",
    )


def warn_of_more(cb: Callback, learn: Learner) -> None:
    """Warn of the first step that was not planned, at which a schedule has already reached its end."""
    warn(
        f"{cb!r}: the fit takes more steps than planned, now number {learn.n_steps} in epoch {learn.epoch}, "
        "and the schedule stays at its end: did the training loader grow? a callback that replaces it, or "
        "takes more steps, says so in plan_steps"
    )


class EpochSchedulerCB(BaseSchedulerCB):
    """Step a scheduler after each epoch but the last.

    Runs at: before_fit, before_epoch, after_epoch, cleanup_fit; order 60. Writes: the groups' lr (momentum,
        betas).
    Arguments and errors: see BaseSchedulerCB.
    """

    unit = "epochs"

    def after_epoch(self, learn: Learner) -> None:
        if self.sched is not None and learn.epoch + 1 < self._until:
            self._step(learn, *([self.monitor.value(learn)] if self.monitor else []))


def _check_opt(cb: Callback, opt: Any) -> None:
    if not isinstance(opt, torch.optim.Optimizer):
        raise TypeError(
            f"{cb!r} on a {type(opt).__name__}: torch's schedulers need a torch.optim.Optimizer, with "
            "param_groups; use one, or set the lr in a callback of your own"
        )


def _hyperparameters(group: Group) -> Group:
    """Copy the hyperparameters that a scheduler changes in a group."""
    return {
        k: v.clone() if isinstance(v, Tensor) else v
        for k, v in group.items()
        if k in ("lr", "momentum", "betas")
    }


def _restore(group: Group, before: Group) -> None:
    for key, value in before.items():
        set_value(group, key, value)
    forget_schedule(group)


def _stand_in(learn: Learner) -> Any:
    """Make an optimizer like the learner's, with one number per group, for a schedule to run on.

    The number has as many dimensions as the group's first parameter, because some take only matrices.
    """
    if learn.opt is None:
        real = build_opt(learn.opt_func, learn.model, learn.lr, learn.param_groups, extra_groups(learn))
    else:
        real = learn.opt
    if not isinstance(real, torch.optim.Optimizer):
        return real
    groups = [{**g, **_hyperparameters(g), "params": [_number_like(g)]} for g in real.param_groups]
    for group in groups:
        forget_schedule(group)
    return call_opt_func(learn.opt_func, groups, groups[0]["lr"])


def _number_like(group: Group) -> nn.Parameter:
    ndim = next((p.ndim for p in group["params"]), 1)
    return nn.Parameter(torch.zeros((1,) * max(ndim, 1)))
