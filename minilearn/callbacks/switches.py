"""SwitchPointsCB: when each tensor switched from Adam to SGD under SWATS, and at which learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..callback import Callback, Order
from ..optim.swats import SWATS
from ..plot import new_figure

if TYPE_CHECKING:
    from ..learner import Learner


class SwitchPoint(NamedTuple):
    """Say where a parameter switched: its name, after how many of its steps, and SGD's first lr."""

    name: str
    step: int
    lr: float


class SwitchPointsCB(Callback):
    """Keep the switch points of optim.SWATS.

    Runs at: before_fit, cleanup_epoch; order 95, after all that trains. Reads: opt's state, only at the end
        of an epoch, because the optimizer itself keeps the points.
    State: `points`, in the order of their steps, and `names`, those of all trained parameters.
    Raises: TypeError before training for another optimizer.
    Source: document 004, whose tables these are.
    """

    order = Order.SWITCHES
    may_come_and_go = True
    in_evaluation = False
    in_lr_find = False

    def __init__(self) -> None:
        self.points: list[SwitchPoint] = []
        self.names: list[str] = []
        self.n_steps = 0  # in the learner's life, as far as the optimizer counts them

    def before_fit(self, learn: Learner) -> None:
        if not isinstance(learn.opt, SWATS):
            raise TypeError(
                f"{self!r} with {type(learn.opt).__name__}: expected optim.SWATS, the only one that switches"
            )

    def cleanup_epoch(self, learn: Learner) -> None:
        states = {name: learn.opt.state.get(p) for name, p in learn.model.named_parameters()}
        self.names = [name for name, state in states.items() if state]
        self.points = sorted(
            (
                SwitchPoint(name, int(state["switched_at"]), float(state["sgd_lr"]))
                for name, state in states.items()
                if state and "switched_at" in state
            ),
            key=lambda point: point.step,
        )
        self.n_steps = int(max((state["step"].item() for state in states.values() if state), default=0))

    def state_dict(self) -> dict[str, Any]:
        """Return the points as plain lists."""
        return {"points": [list(p) for p in self.points], "names": self.names, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them."""
        self.points = [SwitchPoint(*point) for point in state["points"]]
        self.names, self.n_steps = list(state["names"]), state["n_steps"]

    def table(self) -> str:
        """Return the document's table, a line per tensor: layer, steps, and the lr estimated for SGD."""
        width = max([len("Layer"), *(len(point.name) for point in self.points)])
        lines = [f"{'Layer':{width}}  {'Steps':>7}  Estimated lr for SGD"]
        lines += [f"{point.name:{width}}  {point.step:7}  {point.lr:.6f}" for point in self.points]
        return "\n".join([*lines, f"{len(self.points)} of {len(self.names)} tensors have switched"])

    def plot(self) -> Any:
        """Return a figure with a bar for each parameter: its steps with Adam, then those with SGD."""
        at = {point.name: point.step for point in self.points}
        figure, axes = new_figure(1, 1, 6.5, max(2.0, 0.16 * len(self.names)))
        ax = axes[0][0]
        rows = range(len(self.names))
        by_adam = [at.get(name, self.n_steps) for name in self.names]
        ax.barh(rows, by_adam, color="C0", label="Adam")
        ax.barh(rows, [self.n_steps - n for n in by_adam], left=by_adam, color="C1", label="SGD")
        ax.set_yticks(rows, self.names, fontsize=6)
        ax.invert_yaxis()
        ax.set_xlabel("step")
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure
