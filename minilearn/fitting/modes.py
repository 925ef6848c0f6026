"""The modes of modules in a fit, and of schedule-free optimizers; freezing and unfreezing modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import shown
from ..optim.groups import begin_momentum, has_modes, params_of
from ..parameters import roots_of
from ..weights import plain_name, unwrapped

if TYPE_CHECKING:
    from ..learner import Learner


class Modes:
    """Hold the modes of the modules of a model and its loss, and which BatchNorms of the model are frozen.

    found (module -> whether it was in training mode when the fit began, or when it was added to the model;
    empty outside of a fit), frozen_norms (BatchNorms that `freeze` keeps in evaluation mode).

    Args:
        learn: the learner of this model and loss.
    """

    def __init__(self, learn: Learner) -> None:
        self.learn = learn
        self.found: dict[nn.Module, bool] = {}
        self.frozen_norms: list[nn.Module] = []
        self._in_training: Any = None  # the schedule-free optimizer that was put into training mode
        self._is_held = False  # whether it stays in evaluation mode whatever the phase is

    # In a fit -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Note each module's mode at the beginning of a fit."""
        self.found = {m: m.training for root in roots_of(self.learn) for m in root.modules()}

    def find(self) -> None:
        """Note the mode of each new module: the whole model's, or evaluation mode if the module is in it.

        This is called before modes are set, when a new module still has its original mode.
        """
        for root in roots_of(self.learn):
            for module in root.modules():  # the root comes first
                if module not in self.found:
                    self.found[module] = module.training and self.found.get(root, module.training)

    def end(self) -> None:
        """Leave each module in the mode in which the fit found it."""
        self.find()
        for module, training in self.found.items():
            module.training = training
        self.found = {}
        self._switch(False)

    def apply(self) -> None:
        """Set the modes for the phase: of model and loss, where modules found in evaluation mode stay in it,
        and of a schedule-free optimizer.
        """
        self.find()
        self._switch(self.learn.training)
        for root in roots_of(self.learn):
            root.train(self.learn.training)
            if self.learn.training and self.found[root]:
                for module in root.modules():
                    module.training = self.found[module]  # modes that the user set stay
        if not self.learn.training:
            return
        for norm in self.frozen_norms:
            norm.training = False

    def _switch(self, training: bool) -> None:
        """Set the mode of an optimizer that has modes: which weights it keeps in the model.

        One that never was in training is in evaluation; it may have nothing yet to switch to.
        """
        opt: Any = self.learn.opt
        if self._is_held:
            return
        if training and has_modes(opt):
            opt.train()
            self._in_training = opt
        elif self._in_training is opt and opt is not None:
            opt.eval()
            self._in_training = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have a schedule-free optimizer in evaluation mode inside a `with`; then the weights are as before.

        Switching there and back would change them by rounding.
        """
        opt = self.learn.opt
        if opt is None or self._is_held or self._in_training is not opt:
            yield
            return
        kept = [p.detach().clone() for p in params_of(opt)]
        opt.eval()
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            opt.train()
            with torch.no_grad():
                for p, value in zip(params_of(opt), kept, strict=True):
                    p.copy_(value)

    def restore(self, found: dict[nn.Module, bool], frozen_norms: list[nn.Module]) -> None:
        """Load the modes of a checkpoint."""
        self.found.update(found)
        self.frozen_norms = frozen_norms

    def of(self, module: nn.Module) -> bool:
        """Return the mode in which a fit found, and will leave, a module; outside of a fit, its mode."""
        return self.found.get(module, module.training)

    def is_frozen(self, module: nn.Module) -> bool:
        """Whether it is a BatchNorm that `freeze` keeps in evaluation mode."""
        return any(module is norm for norm in self.frozen_norms)

    # Freezing -------------------------------------------------------------------------------------

    def freeze(self, which: Sequence[str | type[nn.Module]]) -> None:
        """See `Learner.freeze`."""
        model = self.learn.model
        modules = _chosen(model, which) if which else _all_but_last(model)
        own = [] if which else unwrapped(model).parameters(recurse=False)
        for p in [*own, *(p for module in modules for p in module.parameters())]:
            p.requires_grad_(False)
            p.grad = None  # the next step would use it
        norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
        for norm in norms:
            # If the whole model is in evaluation mode, the mode of a part says nothing about the part.
            if self.of(norm) or (not self.of(model) and not self.is_frozen(norm)):
                self.frozen_norms.append(norm)
                self._set(norm, False)

    def unfreeze(self, which: Sequence[str | type[nn.Module]]) -> None:
        """See `Learner.unfreeze`."""
        model = self.learn.model
        for module in _chosen(model, which) if which else [model]:
            module.requires_grad_(True)
            for part in module.modules():
                if self.is_frozen(part):
                    self.frozen_norms = [norm for norm in self.frozen_norms if norm is not part]
                    self._set(part, self.of(model))
        begin_momentum(self.learn.opt)

    def _set(self, module: nn.Module, training: bool) -> None:
        if module in self.found:  # a fit is running: the mode in training, and after the fit
            self.found[module] = training
            training = training and self.learn.training
        module.training = training


def _chosen(model: nn.Module, which: Sequence[str | type[nn.Module]]) -> list[nn.Module]:
    inner = unwrapped(model)
    named = inner.named_modules(remove_duplicate=False)
    modules = {plain_name(inner, name): module for name, module in named if name}
    chosen = []
    for wanted in which:
        if not isinstance(wanted, str | type):
            raise TypeError(
                f"freeze(which={shown(wanted)}): expected names of modules, such as 'layer1' or '0', or "
                "classes"
            )
        if isinstance(wanted, type):
            found = [module for module in modules.values() if isinstance(module, wanted)]
            kinds = sorted({type(module).__name__ for module in modules.values()})
            hint = f"the model has {', '.join(kinds)}"
        else:
            found = [modules[wanted]] if wanted in modules else []
            close = get_close_matches(str(wanted), modules, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"the model has {', '.join(list(modules)[:20])}"
            )
        if not found:
            raise ValueError(f"which={wanted!r} is not a module of {type(unwrapped(model)).__name__}: {hint}")
        chosen += found
    return chosen


def _all_but_last(model: nn.Module) -> list[nn.Module]:
    children = [child for child in unwrapped(model).children() if next(child.parameters(), None) is not None]
    if len(children) < 2:
        raise ValueError(
            f"freeze() leaves the last child that has parameters, and {type(unwrapped(model)).__name__} has "
            f"{len(children)}: name what to freeze, freeze('body')"
        )
    return children[:-1]
