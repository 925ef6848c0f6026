"""Figures. Each function returns a matplotlib Figure and neither shows nor saves it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from .arguments import counted, instances, is_whole, number, shown, whole_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LARGEST_INCHES = 650.0  # of a side, at 100 dots an inch: matplotlib draws at most 2**16 dots
_MOST_STEPS = 10**7


@cache
def _figure_class() -> Any:
    from matplotlib.figure import Figure  # not pyplot, whose figures stay in memory until they are closed

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:  # by itself, a notebook shows only pyplot's figures
            png = io.BytesIO()
            self.savefig(png, format="png")
            return png.getvalue()

    return NotebookFigure


def new_figure(n_rows: int, n_cols: int, width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure and its axes, (n_rows, n_cols), each of `width` x `height` inches."""
    number("width", width, above=0, high=LARGEST_INCHES / n_cols)
    number("height", height, above=0, high=LARGEST_INCHES / n_rows)
    figure = _figure_class()(figsize=(width * n_cols, height * n_rows), layout="constrained")
    return figure, figure.subplots(n_rows, n_cols, squeeze=False)


def plot_lines(
    series: Mapping[str, Sequence[Any]], xlabel: str = "", width: float = 4.0, height: float = 3.0
) -> Figure:
    """Draw one panel for each series, side by side; an entry that is a list gives several lines.

    Args:
        width, height: of a panel, in inches.
    """
    if not isinstance(series, Mapping):
        raise TypeError(f"series={shown(series)}: expected a dict, name -> values")
    if not isinstance(xlabel, str):
        raise TypeError(f"xlabel={shown(xlabel)}: expected a text")
    if not series:
        raise ValueError("plot: nothing was recorded yet")
    figure, axes = new_figure(1, len(series), width, height)
    for ax, (name, values) in zip(axes[0], series.items(), strict=True):
        ax.plot(values, linewidth=1)
        ax.set(xlabel=xlabel, title=name)
        ax.grid(alpha=0.3)
    return figure


def plot_history(history: Sequence[Mapping[str, Any]], width: float = 4.0, height: float = 3.0) -> Figure:
    """Draw each measured value of `learn.history` over epochs, training and validation in one panel."""
    columns = dict.fromkeys(name for row in history for name in row)
    names = [name for name in columns if name not in ("epoch", "train", "time_s")]
    if not names:
        raise ValueError("plot_history: the history has no row yet")
    # "iterate": the weights whose average "eval" measures. Validation sets may have other names.
    found = {row["train"] for row in history}
    phases = [phase for phase in ("train", "iterate", "eval") if phase in found]
    phases = list(dict.fromkeys([*phases, *(row["train"] for row in history)]))
    figure, axes = new_figure(1, len(names), width, height)
    for ax, name in zip(axes[0], names, strict=True):
        for i, phase in enumerate(phases):  # in the same color in each panel
            if rows := [row for row in history if row["train"] == phase and name in row]:
                values = [row["epoch"] for row in rows], [row[name] for row in rows]
                ax.plot(*values, marker=".", color=f"C{i}", label=phase)
        ax.set(xlabel="epoch", title=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def plot_scheduler(sched: Any, n_steps: int, width: float = 4.0, height: float = 3.0) -> Figure:
    """Draw the values of a scheduler at each of n_steps steps, without training or changing it.

    Args:
        sched: a scheduler of torch's (its lr, one line a parameter group), a schedule of
            `minilearn.schedules` or a function of n_steps that makes one (its multiplier), or a mapping of
            names to these, with a panel for each.

    Raises: TypeError for anything else, and for ReduceLROnPlateau, which follows measured values.
    Source: document 003. Differs: there the optimizer is stepped too, and neither is put back.
    """
    name = getattr(sched, "__qualname__", "<")  # "cosine.<locals>.<lambda>" is not a title
    scheds = dict(sched) if isinstance(sched, Mapping) else {"" if "<" in name else name: sched}
    if not scheds or not is_whole(n_steps, 1, _MOST_STEPS):
        raise ValueError(
            f"plot_scheduler(sched={shown(sched)}, n_steps={shown(n_steps)}): expected a schedule, and 1 to "
            f"{_MOST_STEPS:,} steps"
        )
    n_cols = min(4, len(scheds))
    figure, axes = new_figure(-(-len(scheds) // n_cols), n_cols, width, height)
    for ax in axes.flat[len(scheds) :]:
        ax.axis("off")
    for ax, (name, one) in zip(axes.flat, scheds.items(), strict=False):
        ylabel, values = _course(one, n_steps)
        ax.plot(values, linewidth=1.5)
        ax.set(xlabel="step", ylabel=ylabel, title=name)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.grid(alpha=0.3)
    return figure


def _course(sched: Any, n_steps: int) -> tuple[str, list[Any]]:
    """Return what a scheduler or schedule gives, "lr" or "multiplier", and its value at each step."""
    from .schedules import resolve

    is_scheduler = hasattr(sched, "optimizer")
    is_class = isinstance(getattr(sched, "func", sched), type)  # torch's class: not a scheduler yet
    if is_scheduler or is_class or not callable(sched):
        return "lr", _lrs_of(sched, n_steps)
    schedule = resolve(sched, n_steps)
    return "multiplier", [schedule(step) for step in range(n_steps)]


def _lrs_of(sched: Any, n_steps: int) -> list[list[float]]:
    """Return the lrs, (n_steps, groups), that a torch scheduler will set from its present step on."""
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

    from .optim.groups import set_value

    if not isinstance(sched, LRScheduler) or isinstance(sched, ReduceLROnPlateau):
        raise TypeError(
            f"plot_scheduler({sched!r}): expected a scheduler of torch that knows its course, or a schedule "
            "of minilearn.schedules"
        )
    groups = sched.optimizer.param_groups
    state = deepcopy(sched.state_dict())
    values = [{k: deepcopy(v) for k, v in group.items() if k != "params"} for group in groups]
    lrs = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no optimizer step was taken, as intended
            for step in range(n_steps):
                lrs.append([float(group["lr"]) for group in groups])
                if step + 1 < n_steps:  # OneCycleLR cannot be stepped beyond its end
                    sched.step()
    finally:
        sched.load_state_dict(state)
        for group, before in zip(groups, values, strict=True):
            for key, value in before.items():
                set_value(group, key, value)
    return lrs


def plot_images(images: Any, titles: Sequence[str] = (), n_cols: int = 6, size: float = 1.5) -> Figure:
    """Draw images in a grid, each scaled to its own range.

    Args:
        images: (N, 1 or 3, H, W), N >= 1; one channel is drawn in grey.
        titles: one for each image, or none.
        size: of an image, in inches.
    """
    if not hasattr(images, "ndim") or images.ndim != 4:
        raise TypeError(f"images={shown(images)}: expected a tensor (N, 1 or 3, H, W)")
    instances("titles", titles, str, "texts")
    if len(images) == 0:
        raise ValueError("plot_images: no images, expected at least one")
    if titles and len(titles) != len(images):
        raise ValueError(
            f"{counted(len(titles), 'title')} for {counted(len(images), 'image')}: expected one each, or none"
        )
    return draw_images(in_own_range(images), titles, n_cols, size, cmap="gray_r")


def in_own_range(images: Any) -> Any:
    """Return images, (N, C, H, W), each scaled to its own range, from 0 to 1."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


def draw_images(images: Any, titles: Sequence[str], n_cols: int, size: float, cmap: str = "gray") -> Figure:
    """Draw images whose values are from 0 to 1 in a grid; arguments as of `plot_images`."""
    n_cols = min(whole_number("n_cols", n_cols), len(images))
    number("size", size, above=0, high=LARGEST_INCHES / len(images))
    n_lines = max((title.count("\n") + 1 for title in titles), default=0)
    height = size + (0.3 * min(size, 1.5) + 0.15 * (n_lines - 1) if n_lines else 0)
    figure, axes = new_figure(-(-len(images) // n_cols), n_cols, size, height)
    for ax in axes.flat:
        ax.axis("off")
    for i, image in enumerate(images):
        ax = axes.flat[i]
        ax.imshow(image.permute(1, 2, 0).cpu().numpy(), cmap=cmap, vmin=0, vmax=1)
        if titles:
            ax.set_title(titles[i], fontsize=8)
    return figure
