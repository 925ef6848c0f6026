"""Fits that are planned in steps: fit(n_steps=..., epoch_steps=...)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..arguments import unless_none, whole_number
from ..callback import Callback
from ..data.adapters.adapter import short
from ..data.adapters.continued import Continued, Place
from ..plan import Plan

if TYPE_CHECKING:
    from ..learner import Learner

_MANY = 10**9  # batches, to see how many of them a step takes


def check_steps(n_epochs: Any, n_steps: Any, epoch_steps: Any, train: bool) -> None:
    """Raise TypeError or ValueError for steps that a fit cannot have."""
    for name, value in (("n_steps", n_steps), ("epoch_steps", epoch_steps)):
        unless_none(whole_number, f"fit({name}", value, 1, _MANY, of=" of optimizer steps")
        if value is not None and not train:
            raise ValueError(f"fit(train=False, {name}={value}): a fit without training takes no steps")
    if n_steps is not None and n_epochs != 1:
        raise ValueError(
            f"fit(n_epochs={n_epochs!r}, n_steps={n_steps}): the epochs follow from the steps: expected "
            f"fit(n_steps=...), or fit({n_epochs!r}, epoch_steps=...)"
        )


def steps_of_epochs(learn: Learner, n_epochs: int, n_steps: int | None, epoch_steps: int | None) -> list[int]:
    """Return the steps of each epoch; without epoch_steps, an epoch is as long as a pass."""
    if n_steps is None:
        assert epoch_steps is not None
        return [epoch_steps] * n_epochs
    if epoch_steps is None:
        lengths = learn.dls.adapters["train"].lengths(learn.n_epochs_trained, 1)
        epoch_steps = learn.planned_steps(1, lengths)[0] if lengths != [None] else n_steps
    per_epoch = min(epoch_steps or n_steps, n_steps)
    n_whole, left = divmod(n_steps, per_epoch)
    return [per_epoch] * n_whole + [left] * (left > 0)


@contextmanager
def in_steps(
    learn: Learner, n_epochs: int, n_steps: int | None, epoch_steps: int | None, valid: bool
) -> Iterator[int]:
    """Read the training data in epochs of so many steps inside a `with`, which gets the number of epochs.

    Raises: ValueError if the callbacks do not take these steps from any number of batches, and if the loader
        is to be validated on too.
    """
    if n_steps is epoch_steps is None:
        yield n_epochs
        return
    if valid and any(loader is learn.dls.train for loader in learn.dls.sets.values()):
        raise ValueError(
            f"fit(n_steps={n_steps}, epoch_steps={epoch_steps}): {short(learn.dls.train)} is both dls.train "
            "and a validation set, and its pass, which continues from epoch to epoch, cannot be read in "
            "between: expected another loader of the same data to validate on"
        )
    learn._set_plan(Plan(n_epochs, ("train",)))  # for callbacks that plan steps
    adapters, train = learn.dls.adapters, learn.dls.adapters["train"]
    steps = steps_of_epochs(learn, n_epochs, n_steps, epoch_steps)
    per_step = max(round(_MANY / max(learn.planned_steps(1, _MANY)[0] or _MANY, 1)), 1)
    lengths = [n * per_step for n in steps]
    planned = learn.planned_steps(len(steps), [*lengths])
    if planned != steps or learn.planned_steps(1, 2 * lengths[0]) == steps[:1]:
        n, k = next(((n, k) for n, k in zip(planned, steps, strict=True) if n != k), (planned[0], steps[0]))
        raise ValueError(
            f"fit(epoch_steps={k}): {_planners(learn)} plans {n} steps for such an epoch: expected "
            "fit(n_epochs), or the fit without it"
        )
    adapters["train"] = Continued(train, Place(lengths))
    try:
        yield len(steps)
    finally:
        adapters["train"] = train


def _planners(learn: Learner) -> str:
    """Return the callbacks that plan steps."""
    return " or ".join(repr(cb) for cb in learn.cbs if type(cb).plan_steps is not Callback.plan_steps)
