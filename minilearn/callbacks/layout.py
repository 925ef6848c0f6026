"""How the model is run, not what it computes: memory in channels-last order, and torch.compile."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arguments import check_flags, shown
from ..batches import map_tensors
from ..callback import Callback, Order
from ..optim.groups import keep_order_of_memory

if TYPE_CHECKING:
    from ..learner import Learner

_WITH_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that record CUDA graphs


class ChannelsLastCB(Callback):
    """Keep the weights and each batch of images in channels-last order, in which convolutions are fastest.

    Values and shapes stay the same; only the order in memory changes, to (N, H, W, C). The model keeps it
    after the fit.

    Runs at: prepare, before_batch; order 30. Writes: xb (images: inputs of four dimensions).
    """

    order = Order.CHANNELS_LAST
    may_come_and_go = True

    def prepare(self, learn: Learner) -> None:
        learn.model.to(memory_format=torch.channels_last)
        if learn.opt is not None:
            keep_order_of_memory(learn.opt)

    def before_batch(self, learn: Learner) -> None:
        learn.xb = map_tensors(_channels_last, learn.xb)


class CompileCB(Callback):
    """Compile the model with torch.compile at the first fit; it stays compiled.

    It is compiled in place, by `model.compile()`: the learner's model stays the same module, with the same
    names in its state_dict and in checkpoints.

    Args:
        **kwargs: torch.compile's: mode ("reduce-overhead" records CUDA graphs, which help where a step is
            short; "max-autotune"), dynamic, backend, fullgraph, options.

    Runs at: before_fit, before_batch, after_predict; order -20. Writes: preds (with CUDA graphs a copy,
        because the next batch reuses their memory).
    Raises: errors of the compiler at the first batch, with its own text.
    """

    order = Order.COMPILE
    may_come_and_go = True
    in_graph = True
    free_on_resume = ("backend", "mode", "fullgraph", "dynamic", "options")  # which change no result

    def __init__(self, **kwargs: Any) -> None:
        names = [*inspect.signature(torch.compile).parameters][1:]  # without the model
        if unknown := sorted(kwargs.keys() - set(names)):
            raise TypeError(
                f"CompileCB({unknown[0]}={shown(kwargs[unknown[0]])}): expected what torch.compile takes: "
                f"{', '.join(names)}"
            )
        check_flags("CompileCB", torch.compile, kwargs)
        self.kwargs = kwargs
        self._has_graphs = kwargs.get("mode") in _WITH_GRAPHS

    def __repr__(self) -> str:
        return f"CompileCB({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a run may resume without it."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        if getattr(learn.model, "_compiled_call_impl", None) is not None or hasattr(learn.model, "_orig_mod"):
            return  # compiled by an earlier fit, or by the user
        if str(getattr(learn.model.forward, "__module__", "")).startswith("torch."):
            _compile_module_of_torch(learn.model, self.kwargs)
        else:
            learn.model.compile(**self.kwargs)

    def before_batch(self, learn: Learner) -> None:
        if self._has_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def after_predict(self, learn: Learner) -> None:
        if self._has_graphs and not learn.training and isinstance(learn.preds, Tensor):
            learn.preds = learn.preds.clone()


def _compile_module_of_torch(model: nn.Module, kwargs: dict[str, Any]) -> None:
    """Compile a module such as nn.Sequential in place, with a function that torch may trace around its call.

    In older versions of torch, such as 2.9, `model.compile()` compiles nothing for them, without a word
    (pytorch/pytorch#150915).
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    model._compiled_call_impl = torch.compile(call, **kwargs)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
