"""GradualUnfreezeCB: fine-tune the last part of a model first, and the others later, at lower lrs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..arguments import is_whole, number, shown
from ..callback import Callback, Order
from ..fitting.checks import check_reached
from ..optim.groups import divide_lrs, groups_of, set_value
from ..weights import unwrapped

if TYPE_CHECKING:
    from ..learner import Learner


_MOST_EPOCHS = 10**7  # of a fit
Which = str | type[nn.Module]  # a module, as `learn.freeze` takes it


class GradualUnfreezeCB(Callback):
    """Train the last part of a model first, and unfreeze the others at later epochs of the fit::

        GradualUnfreezeCB()                        # each epoch one more child of the model, last to first
        GradualUnfreezeCB(3)                       # every three epochs
        GradualUnfreezeCB({1: None})               # in epoch 0 only the last child, then the whole model
        GradualUnfreezeCB({1: "layer4", 2: ["layer3", "layer2"], 4: None})

    What is frozen has no gradients, and its BatchNorms keep their statistics, as with `learn.freeze`. The
    optimizer has its groups and state from the start. After the fit, parts that it did not reach are still
    frozen; `learn.unfreeze()` trains them again. Each fit begins again, so give it to one:
    `learn.fit(5, cbs=GradualUnfreezeCB())`.

    With `lr_div`, earlier layers learn more slowly: the lr of each parameter group is that of the next one
    divided by it, and the last one has the lr of the learner or the fit::

        lr_i = lr / lr_div ** (n - 1 - i)

    This needs a group for each layer, from the inputs to the outputs, such as
    `Learner(..., param_groups=minilearn.optim.by_layer)`. Schedules then start from these lrs, each group
    from its own. After the fit the groups have the lrs that they had before it.

    Args:
        epochs: a number n >= 1: the children of the model that have parameters, from the last to the first,
            are unfrozen one by one, every n epochs. Or a table {epoch of the fit, from 1: modules}: names
            or classes of modules, as for `learn.freeze`, or None for all that is still frozen. Modules in
            the table are frozen when the fit begins; with a None among them, all but the last child is.
        lr_div: >= 1; 2.6 in the paper.

    Runs at: before_fit, before_epoch; at_rest; release; order 45, before schedules read the lrs. Writes:
        requires_grad and modes of the model; lr of the groups. In lr_find nothing is unfrozen.
    State: the lrs before the fit; checkpoints have what is frozen.
    Raises: before training: ValueError for an epoch that the fit does not have, a module that the model does
        not have, a model with a single child, and lr_div without a group for each layer.
    Source: Howard and Ruder 2018; with {1: None} it is close to fastai's fine_tune.
    Differs: from fine_tune, which has a schedule of its own for each of two fits. For this, call
        `learn.freeze(); learn.fit(1, ...); learn.unfreeze(); learn.fit(5, lr=..., ...)`.
    """

    order = Order.CLIPPING
    only_one = "each would freeze what the other has unfrozen"
    in_evaluation = False

    def __init__(
        self, epochs: int | Mapping[int, Which | Sequence[Which] | None] = 1, lr_div: float = 1.0
    ) -> None:
        self.epochs = _checked(epochs)
        self.lr_div = number("GradualUnfreezeCB(lr_div", lr_div, low=1)
        self._stages: dict[int, tuple[Which, ...]] = {}  # epoch -> what is unfrozen; () for everything
        self._before: list[Any] = []  # the lr of each group before the fit; empty if they were not divided

    def __repr__(self) -> str:
        more = "" if self.lr_div == 1 else f", lr_div={self.lr_div}"
        return f"GradualUnfreezeCB({self.epochs}{more})"

    def state_dict(self) -> dict[str, Any]:
        """Return the lrs before the fit; the model's part of the checkpoint has what is frozen."""
        return {"before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._before = state["before"]

    def before_fit(self, learn: Learner) -> None:
        if isinstance(self.epochs, int):
            children = unwrapped(learn.model).named_children()
            names = [name for name, child in children if next(child.parameters(), None) is not None]
            # The first child, at last, with the parameters of the model itself.
            thawed = [(name,) for name in names[-2:0:-1]] + [()]
            self._stages = {(i + 1) * self.epochs: which for i, which in enumerate(thawed)}
        else:
            self._stages = {epoch: _listed(which) for epoch, which in self.epochs.items()}
            if learn.purpose != "lr_find":
                check_reached(self, self._stages, learn.n_epochs)
        if self.lr_div != 1:
            before = [_copied(group["lr"]) for group in groups_of(learn.opt)]
            divide_lrs(learn.opt, self.lr_div)
            self._before = before
        if () in self._stages.values():
            learn.freeze()
        if named := [which for several in self._stages.values() for which in several]:
            learn.freeze(*named)

    def before_epoch(self, learn: Learner) -> None:
        if learn.purpose != "lr_find" and learn.epoch in self._stages:
            learn.unfreeze(*self._stages[learn.epoch])

    def at_rest(self, learn: Learner) -> None:
        if not learn.scopes:  # the fit is over, and schedules have put back what they began with
            self._put_back(learn)

    def release(self, learn: Learner) -> None:
        self._put_back(learn)  # after a fit that was left by an error

    def _put_back(self, learn: Learner) -> None:
        before, self._before = self._before, []
        if before:
            for group, lr in zip(groups_of(learn.opt), before, strict=False):
                set_value(group, "lr", lr)


def _copied(lr: Any) -> Any:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _listed(which: Any) -> tuple[Which, ...]:
    if which is None:
        return ()
    return (which,) if isinstance(which, str | type) else tuple(which)


def _checked(epochs: Any) -> Any:
    if is_whole(epochs, 1, _MOST_EPOCHS):
        return int(epochs)
    if not isinstance(epochs, Mapping) or not epochs:
        raise ValueError(
            f"GradualUnfreezeCB(epochs={shown(epochs)}): expected a whole number >= 1, every how many epochs "
            "one more child is unfrozen, or a table {epoch: modules}"
        )
    for epoch, which in epochs.items():
        if not is_whole(epoch, 1):
            raise ValueError(
                f"GradualUnfreezeCB(epochs={shown(epochs)}): {epoch!r}: expected epochs as whole numbers >= "
                "1; what is trained from the start is left out"
            )
        is_list = isinstance(which, Sequence) and bool(which) and not isinstance(which, str)
        for one in which if is_list else [which]:
            is_module = isinstance(one, str) or (isinstance(one, type) and issubclass(one, nn.Module))
            if not is_module and (is_list or one is not None):
                raise ValueError(
                    f"GradualUnfreezeCB(epochs={shown(epochs)}): epoch {epoch}: expected names or classes of "
                    "modules, or None for all that is still frozen"
                )
    return {int(epoch): which for epoch, which in sorted(epochs.items())}
