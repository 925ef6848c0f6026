"""Hooks on the model's modules during a fit, and the statistics of their activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arguments import is_number, shown, whole_number
from ..callback import Callback
from ..plot import new_figure

if TYPE_CHECKING:
    from ..learner import Learner

Which = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[nn.Module], bool] | None


class HooksCB(Callback):
    """Call a function after each forward of chosen modules in training; the hooks are removed after the fit.

    Args:
        function: takes (learn, name of the module in the model, module, its inputs as a tuple, its
            output). What it returns is ignored.
        which: a class of modules or a tuple of classes, or a function module -> bool. None: all that
            contain no other module.

    Runs at: before_fit, cleanup_fit. State: names, of the modules chosen.
    Raises: ValueError before training if no module of the model is chosen.
    """

    in_evaluation = False

    def __init__(self, function: Callable[..., Any], which: Which = None) -> None:
        if not callable(function):
            raise TypeError(
                f"HooksCB(function={shown(function)}): expected a function (learn, name, module, inputs, "
                "output)"
            )
        kinds = which if isinstance(which, tuple) else (which,)
        are_kinds = all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds)
        is_function = callable(which) and not isinstance(which, type | nn.Module)
        if not (which is None or are_kinds or is_function):
            raise TypeError(
                f"which={shown(which)}: expected a class of modules, a tuple of them, or a function"
            )
        self.function, self.which = function, which
        self.names: list[str] = []
        self._handles: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: each fit makes new hooks."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        chosen = {name: m for name, m in learn.model.named_modules() if self._is_chosen(m)}
        if not chosen:
            kinds = sorted({type(m).__name__ for m in learn.model.modules()})
            raise ValueError(f"which={self.which!r} chooses no module: the model has {', '.join(kinds)}")
        self.names = list(chosen)
        for name, module in chosen.items():
            self._handles.append(module.register_forward_hook(self._hook(learn, name)))

    def cleanup_fit(self, learn: Learner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _is_chosen(self, module: nn.Module) -> bool:
        if self.which is None:
            return next(module.children(), None) is None
        if isinstance(self.which, (type, tuple)):
            return isinstance(module, self.which)
        return self.which(module)

    def _hook(self, learn: Learner, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if learn.training:
                with torch.no_grad():
                    self.function(learn, name, module, inputs, output)

        return hook


@dataclass
class ModuleStats:
    """Hold the statistics of one module's activations, an entry for each recorded forward."""

    kind: str  # the module's class
    means: list[Tensor] = field(default_factory=list)  # () each, on the model's device
    stds: list[Tensor] = field(default_factory=list)  # ()
    hists: list[Tensor] = field(default_factory=list)  # (n_bins,), shares that add up to 1


_MOST_BINS = 10**6


class StoreModuleStatsCB(HooksCB):
    """Store mean, standard deviation and histogram of the activations of chosen modules in training.

    Args:
        which: see HooksCB. Default: all modules that contain no other.
        every: record every so many steps.
        bounds: the ends of the histogram; activations beyond them count in the outer bins.
        n_bins: of the histogram.

    Runs at: before_fit, cleanup_fit. Reads: the outputs of modules, where they are one tensor.
    State: stats, name -> ModuleStats, of the last fit. Tensors stay on their device, so that no step
        waits for them; `plot_stats()` and `plot_hists()` draw them.
    Source: fast.ai's and document 003's library, which returns it from `train_1cycle`. Differs: there
        the histogram is of absolute values, and values beyond its end are not counted.
    """

    in_lr_find = False

    may_come_and_go = True

    def __init__(
        self,
        which: Which = None,
        every: int = 1,
        bounds: tuple[float, float] = (-5.0, 5.0),
        n_bins: int = 50,
    ) -> None:
        super().__init__(self._store, which)
        is_pair = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(map(is_number, bounds))
        if not is_pair or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds={shown(bounds)}: expected (low, high), low < high, both finite")
        self.every, self.bounds, self.n_bins = (
            whole_number("every", every),
            (float(bounds[0]), float(bounds[1])),
            whole_number("n_bins", n_bins, 1, _MOST_BINS),
        )
        self.stats: dict[str, ModuleStats] = {}

    def before_fit(self, learn: Learner) -> None:
        super().before_fit(learn)
        kinds = {name: type(learn.model.get_submodule(name)).__name__ for name in self.names}
        self.stats = {name: ModuleStats(kind) for name, kind in kinds.items()}

    def _store(
        self, learn: Learner, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any
    ) -> None:
        if learn.n_steps % self.every or not isinstance(output, Tensor) or not output.is_floating_point():
            return
        stats, activations = self.stats[name], output.float()
        stats.means.append(activations.mean())
        stats.stds.append(activations.std(correction=0))
        low, high = self.bounds
        counts = activations.clamp(low, high).histc(self.n_bins, low, high)
        stats.hists.append(counts / activations.numel())

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics, stacked: one tensor for each kind and module."""
        parts = {name: (stats.means, stats.stds, stats.hists) for name, stats in self.stats.items()}
        return {name: [torch.stack(part) for part in three if part] for name, three in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the statistics."""
        for name, stacked in state.items():
            stats = self.stats[name]
            if stacked:
                stats.means, stats.stds, stats.hists = ([*part.unbind()] for part in stacked)

    # Pictures -------------------------------------------------------------------------------------

    def plot_stats(self, width: float = 4.5, height: float = 3.0) -> Any:
        """Return a figure of means and of standard deviations over recorded steps, one line per module."""
        from matplotlib import colormaps

        found = self._found()
        figure, axes = new_figure(1, 2, width, height)
        for i, (name, stats) in enumerate(found.items()):
            colour = colormaps["viridis"](i / max(len(found) - 1, 1))  # from the first module to the last
            axes[0, 0].plot(torch.stack(stats.means).tolist(), linewidth=1, color=colour, label=name)
            axes[0, 1].plot(torch.stack(stats.stds).tolist(), linewidth=1, color=colour)
        for ax, ylabel in zip(
            axes[0], ("mean of activations", "standard deviation of activations"), strict=True
        ):
            ax.set(xlabel=self._xlabel(), ylabel=ylabel)
            ax.grid(alpha=0.3)
        legend = figure.legend(
            axes[0, 0].lines, [""] * len(found), title="module", loc="outside right upper", fontsize=7
        )
        for text, name in zip(legend.get_texts(), found, strict=True):
            text.set_text(name)  # a label that begins with an underscore would be left out
        return figure

    def plot_hists(self, n_cols: int = 4, width: float = 2.6, height: float = 1.8) -> Any:
        """Return the "colourful dimension": each module's histograms side by side, over recorded steps.

        The colour is the logarithm of the share of activations in a bin: bright is a lot, dark 1e-5 or less.
        """
        found = self._found()
        n_cols = min(whole_number("n_cols", n_cols), len(found))
        figure, axes = new_figure(-(-len(found) // n_cols), n_cols, width, height)
        for ax in axes.flat[len(found) :]:
            ax.axis("off")
        for ax, (name, stats) in zip(axes.flat, found.items(), strict=False):
            hists = torch.stack(stats.hists).T.cpu()  # (n_bins, records)
            extent = (0, hists.shape[1], *self.bounds)
            shares = hists.clamp_min(1e-5).log10().numpy()
            image = ax.imshow(shares, origin="lower", aspect="auto", extent=extent, vmin=-5, vmax=0)
            ax.set_title(name, fontsize=8)
            ax.tick_params(labelsize=7)
        figure.supxlabel(self._xlabel(), fontsize=8)
        figure.supylabel("activation", fontsize=8)
        bar = figure.colorbar(image, ax=axes, ticks=list(range(-5, 1)))
        bar.ax.set_yticklabels(["1e-5 or less", *(f"1e{i}" for i in range(-4, 0)), "1"], fontsize=7)
        bar.set_label("share of activations", fontsize=8)
        return figure

    def _found(self) -> dict[str, ModuleStats]:
        found = {f"{name} {stats.kind}": stats for name, stats in self.stats.items() if stats.means}
        if not found:
            raise ValueError("plot: nothing was recorded yet; train with this callback first")
        return found

    def _xlabel(self) -> str:
        return "step" if self.every == 1 else f"record, one every {self.every} steps"
