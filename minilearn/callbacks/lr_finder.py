"""LRFinderCB and lr_find: a sweep of the learning rate that leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict, Unpack

from ..arguments import counted, is_number, number, shown, whole_number
from ..callback import Callback, Order
from ..checkpoints.memory import Memory
from ..events import CancelFitException
from ..optim.groups import groups_of, set_value
from ..parameters import roots_of
from ..plot import new_figure
from ..seeding import kept_rng

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..learner import Learner


_MOST_STEPS = 10**6


class Sweep(TypedDict, total=False):
    """The arguments of `learn.lr_find`; see LRFinderCB."""

    start_lr: float
    end_lr: float
    n_steps: int
    diverge: float
    smooth: float


class LRFinderCB(Callback):
    """Raise the lr of every group exponentially from step to step, and record the loss.

    lr_i = start_lr * (end_lr / start_lr) ** (i / (n_steps - 1)). The fit is cancelled after n_steps,
    or when, after 10 steps, the smoothed loss is above `diverge` times its best, or any is not finite.

    Args:
        start_lr, end_lr: 0 < start_lr < end_lr.
        n_steps: 10 to 1,000,000.
        diverge: times the best smoothed loss, > 1.
        smooth: 0 <= smooth < 1, weight of the past in the average of losses.

    Runs at: before_fit, after_forward, before_step, after_step; order 60. Writes: lr.
    State: lrs and losses, one number per step; suggestion, see `lr_find`.
    Source: Smith 2015, "Cyclical learning rates"; document 003's library has the class.
    """

    order = Order.SCHEDULER

    def __init__(
        self,
        start_lr: float = 1e-6,
        end_lr: float = 10.0,
        n_steps: int = 100,
        diverge: float = 4.0,
        smooth: float = 0.9,
    ) -> None:
        if not is_number(start_lr, above=0) or not is_number(end_lr) or not start_lr < end_lr:
            raise ValueError(
                f"start_lr={shown(start_lr)}, end_lr={shown(end_lr)}: expected 0 < start_lr < end_lr"
            )
        self.start_lr, self.end_lr = float(start_lr), float(end_lr)
        self.n_steps = whole_number("n_steps", n_steps, 10, _MOST_STEPS)
        self.diverge, self.smooth = (
            number("diverge", diverge, above=1, infinite=True),
            number("smooth", smooth, low=0, below=1),
        )
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._average = 0.0

    def before_fit(self, learn: Learner) -> None:
        self.lrs, self.losses, self.smoothed, self._average = [], [], [], 0.0

    def after_forward(self, learn: Learner) -> None:
        if not learn.training:
            return
        loss, n = learn.loss.item(), float(learn.loss_count)
        total, n_all = learn.processes.sums([loss * n if n else 0.0, n])
        if not n_all:  # nothing to learn from
            return
        loss = total / n_all
        self._average = self.smooth * self._average + (1 - self.smooth) * loss
        smoothed = self._average / (1 - self.smooth ** (len(self.losses) + 1))
        settled = len(self.losses) >= 10  # the first averages rest on single batches
        if not math.isfinite(loss) or (settled and smoothed > self.diverge * min(self.smoothed)):
            raise CancelFitException
        lr = self.start_lr * (self.end_lr / self.start_lr) ** (len(self.losses) / (self.n_steps - 1))
        self.lrs.append(lr)
        self.losses.append(loss)
        self.smoothed.append(smoothed)

    def before_step(self, learn: Learner) -> None:
        for group in groups_of(learn.opt):
            set_value(group, "lr", self.lrs[-1])

    def after_step(self, learn: Learner) -> None:
        if len(self.losses) >= self.n_steps:
            raise CancelFitException

    @property
    def suggestion(self) -> float:
        """The lr at which the smoothed loss falls fastest (per factor of lr), before its lowest point.

        Raises: ValueError if the loss never fell.
        """
        lowest = min(range(len(self.smoothed)), key=self.smoothed.__getitem__, default=0)
        # Differences over 5 steps at each side; the first few averages rest on single batches.
        slopes = {
            i: self.smoothed[i + 5] - self.smoothed[i - 5]
            for i in range(5, min(lowest, len(self.smoothed) - 6) + 1)
        }
        if not slopes or min(slopes.values()) >= 0:
            raise ValueError(
                f"no suggestion: the loss never fell between lr {self.start_lr:g} and {self.end_lr:g} "
                f"({counted(len(self.losses), 'step')}); try a lower start_lr or more n_steps, and look at "
                "plot()"
            )
        return self.lrs[min(slopes, key=slopes.__getitem__)]

    def plot(self) -> Figure:
        """Return a figure of the loss over lr, with the suggestion marked."""
        figure, axes = new_figure(1, 1, 5, 3.5)
        ax = axes[0, 0]
        ax.plot(self.lrs, self.losses, linewidth=0.7, alpha=0.4, label="loss")
        ax.plot(self.lrs, self.smoothed, label="smoothed")
        try:
            ax.axvline(
                self.suggestion, color="tab:red", linestyle="--", label=f"suggestion {self.suggestion:.2g}"
            )
        except ValueError:
            ax.set_title("no suggestion: the loss never fell")
        ax.set(
            xscale="log",
            xlabel="lr",
            ylabel="loss",
            ylim=(0.9 * min(self.smoothed), 1.1 * max(self.smoothed[0], min(self.losses))),
        )
        ax.legend()
        return figure


def lr_find(learn: Learner, **kwargs: Unpack[Sweep]) -> LRFinderCB:
    """Sweep the lr with LRFinderCB(**kwargs), and restore everything; see `Learner.lr_find`."""
    finder = LRFinderCB(**kwargs)
    for cb in (cb for cb in learn.cbs if cb.in_lr_find):
        cb.prepare(learn)  # permanent changes to the model are not part of the sweep
    train, first, n_epochs = learn.dls.adapters["train"], learn.n_epochs_trained, 0
    n_left = finder.n_steps
    while n_left > 0:
        n_left -= train.lengths(first + n_epochs, 1)[0] or 1
        n_epochs += 1
    with _untouched(learn):
        # A new optimizer: the kept one's state is not touched, and its moments fit its own lr.
        try:
            learn._fit_for("lr_find", n_epochs, valid=False, cbs=[finder], reset_opt=True)
        except BaseException as error:
            error.add_note("minilearn: in lr_find; a callback that is to sit it out sets in_lr_find = False")
            raise
    return finder


@contextmanager
def _untouched(learn: Learner) -> Iterator[None]:
    train = learn.dls.adapters["train"]
    loaders = [adapter.loader for adapter in learn.dls.adapters.values()]
    data = [getattr(loader, "dataset", None) for loader in loaders]
    # The optimizer is kept by reference: the sweep makes one of its own.
    opt = [learn.opt, getattr(learn.opt, "state", None), *getattr(learn.opt, "param_groups", ())]
    memory = Memory([learn, learn.dls, *loaders, *data, *opt, *learn.cbs])
    memory.keep(*roots_of(learn), learn.history, learn.cancelled_by, *learn.own_fields().values())
    for owner in (learn.run, learn.stop, learn.modes, learn.processes, learn.mean):
        memory.keep_fields(owner)
    for cb in learn.cbs:
        if cb.in_lr_find:
            memory.keep_fields(cb)
    fields = dict(vars(learn))
    epochs = [(part, part.epoch) for part in train.parts() if hasattr(part, "epoch")]
    with kept_rng(*train.generators()), train.unmoved():
        try:
            learn.drop_cbs(lambda cb: not cb.in_lr_find)
            yield
        finally:
            vars(learn).clear()
            vars(learn).update(fields)  # callbacks and their hooks too
            for part, epoch in epochs:
                part.epoch = epoch
            memory.put_back()
