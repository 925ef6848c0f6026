"""What a model is made of: its layers, their outputs for a batch of the data, parameters and memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.nn.utils.rnn import PackedSequence

from .batches import items_of, to_device
from .checkpoints.memory import Memory
from .notebook import html_table, text_table
from .optim.summary import memory_text, state_bytes
from .parameters import loss_params
from .seeding import kept_rng
from .weights import unwrapped

if TYPE_CHECKING:
    from .learner import Learner

_HEAD = ("layer", "kind", "output", "parameters", "trainable")
_MOST_PARTS = 4  # of an output that are told


@dataclass(frozen=True)
class Layer:
    """One module of a model that has no modules inside, or has parameters of its own.

    Attributes:
        name: in the model, "" for the model itself.
        kind: its class.
        output: the shapes of its output in its first call; "" if it was not called, as with a layer whose
            weights another one reads.
        n_calls: how often it was called.
        n_params, n_trainable: of its own parameters, those that no layer before it has.
        shares: the name of the first layer before it that has one of its parameters; None if there is none.
        is_made: False for a lazy layer that no batch has reached, whose parameters have no size yet.
    """

    name: str
    kind: str
    output: str
    n_calls: int
    n_params: int
    n_trainable: int
    shares: str | None
    is_made: bool

    def texts(self) -> tuple[str, ...]:
        """Return the cells of its line in a table."""
        times = f" x{self.n_calls}" if self.n_calls > 1 else ""
        parts = [f"{self.n_params:,}"] if self.n_params or self.shares is None else []
        n = " + ".join(parts + ([] if self.shares is None else [f"shared: {self.shares}"]))
        trainable = f"{self.n_trainable:,} of {self.n_params:,}"
        if self.n_trainable in (0, self.n_params):
            trainable = "" if not self.n_params else "yes" if self.n_trainable else "no"
        if not self.is_made:
            n, trainable = "not made yet", ""
        return self.name or "(the model)", self.kind, self.output + times or "-", n, trainable


@dataclass(frozen=True)
class Summary:
    """What `learn.summary()` found. It prints as a table.

    Attributes:
        model: the class of the model.
        device: of its parameters, "" if it has none.
        layers: in the order in which they are in the model.
        inputs, outputs: shapes for the batch that was tried; "" without one.
        n_params, n_trainable: of the model, shared ones counted once.
        param_bytes, buffer_bytes: what they take.
        grad_bytes: what the gradients take while a step is computed.
        opt_bytes: what the optimizer's state takes now; None without an optimizer, or if it does not say.
        notes: what else is to be known, in sentences.
    """

    model: str
    device: str
    layers: tuple[Layer, ...]
    inputs: str
    outputs: str
    n_params: int
    n_trainable: int
    param_bytes: int
    buffer_bytes: int
    grad_bytes: int
    opt_bytes: int | None
    notes: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        tried = f", {self.inputs} -> {self.outputs}" if self.outputs else ""
        yield f"{self.model}{f' on {self.device}' if self.device else ''}{tried}"
        n, frozen = self.n_params, self.n_params - self.n_trainable
        yield f"{n:,} parameters: {self.n_trainable:,} trainable, {frozen:,} frozen"
        state = "not made yet" if self.opt_bytes is None else memory_text(self.opt_bytes)
        yield (
            f"memory: parameters {memory_text(self.param_bytes)}, buffers {memory_text(self.buffer_bytes)}, "
            f"gradients {memory_text(self.grad_bytes)}, optimizer state {state}"
        )
        yield from self.notes

    def __str__(self) -> str:
        head, *rest = self._lines()
        rows = [layer.texts() for layer in self.layers]
        return "\n".join([head, text_table(_HEAD, rows, left=3), *rest])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rest = (escape(line) for line in self._lines())
        rows = html_table(_HEAD, [layer.texts() for layer in self.layers], left=3)
        return f"<p>{head}</p>{rows}<p>{'<br>'.join(rest)}</p>"


def summarize(learn: Learner, example: Any = None) -> Summary:
    """Return the layers of a learner's model, their outputs and memory; see `Learner.summary`."""
    if "batch" in learn.scopes:
        raise RuntimeError(
            "learn.summary() in a batch: expected a call before or after it, or outside the fit"
        )
    model, notes = unwrapped(learn.model), []
    has_lazy = any(map(is_lazy, _tensors_of(model)))
    if has_lazy:
        notes.append("lazy layers are not made yet: the sizes are those that the first batch will give")
        model = deepcopy(model, _new_lazy_buffers(model))
    with kept_rng(), _as_it_was(learn, model, has_lazy):
        seen: dict[nn.Module, tuple[int, str]] = {}
        inputs = outputs = ""
        try:
            is_tried = _take_inputs(learn, example, model)
            if is_tried:
                inputs, outputs = _tried(learn, model, seen)
        except Exception as error:
            error.add_note(
                "minilearn: in learn.summary(), which runs unpack and predict, and no hook that changes a "
                "batch; learn.summary(example=...) takes the inputs as the model gets them"
            )
            raise
        if not is_tried:
            notes.append("no output is known, because there is no data: expected loaders, or example=...")
        return _summary(learn, model, seen, (inputs, outputs), notes)


def _summary(
    learn: Learner,
    model: nn.Module,
    seen: Mapping[nn.Module, tuple[int, str]],
    tried: tuple[str, str],
    notes: list[str],
) -> Summary:
    layers = tuple(_layers_of(model, seen))
    params = [p for p in model.parameters() if not is_lazy(p)]
    if of_loss := sum(p.numel() for p in loss_params(learn).values()):
        notes.append(f"the loss has {of_loss:,} parameters of its own, which are not counted here")
    if tried[1] and any(not layer.n_calls for layer in layers):
        notes.append("- : the layer itself was not called")
    buffers = [b for b in model.buffers() if not is_lazy(b)]
    return Summary(
        model=type(model).__name__,
        device=_device_text([*params, *buffers]),
        layers=layers,
        inputs=tried[0],
        outputs=tried[1],
        n_params=sum(p.numel() for p in params),
        n_trainable=sum(p.numel() for p in params if p.requires_grad),
        param_bytes=_bytes_of(params),
        buffer_bytes=_bytes_of(buffers),
        grad_bytes=_bytes_of([p for p in params if p.requires_grad]),
        opt_bytes=None if learn.opt is None else state_bytes(learn.opt),
        notes=tuple(notes),
    )


# The batch ------------------------------------------------------------------------------------------


@contextmanager
def _as_it_was(learn: Learner, model: nn.Module, is_copy: bool) -> Iterator[None]:
    """Restore the learner, the model and the owners of unpack and predict after a `with`.

    Inside it, the learner has no compiled or wrapped model, and a batch of its own.
    """
    owners = [cb for cb in learn.cbs if any(hasattr(cb, step) for step in ("unpack", "predict"))]
    memory = Memory([learn, learn.dls, *learn.cbs])
    if not is_copy:
        memory.keep(model)
    fields = [] if is_copy else [(vars(module), dict(vars(module))) for module in model.modules()]
    memory.keep(*(value for _, own in fields for name, value in own.items() if _may_change(name, value)))
    memory.keep(*learn.own_fields().values())
    for cb in owners:
        memory.keep_fields(cb)
    with learn.kept("model", "dl", "training"), learn._batch_aside():
        try:
            learn.model = model
            learn._set_phase(learn.dl, training=False)
            yield
        finally:
            for live, own in fields:
                live.clear()
                live.update(own)
            memory.put_back()


def _may_change(name: str, value: Any) -> bool:
    """Whether an attribute of a module is a container or a tensor that a forward may change in place."""
    return name not in vars(nn.Module()) and isinstance(
        value, list | dict | set | deque | np.ndarray | Tensor
    )


def _take_inputs(learn: Learner, example: Any, model: nn.Module) -> bool:
    """Give the learner a batch, on the model's device; return whether there is one."""
    device = next((t.device for t in _tensors_of(model)), torch.device("cpu"))
    if example is not None:
        learn.xb = to_device(example, device)
        return True
    for name in ("train", "valid"):
        if name in learn.dls.adapters and (batch := learn.dls.adapters[name].peek()) is not None:
            learn.dl = learn.dls.adapters[name].loader
            learn.batch = to_device(batch, device)
            return True
    return False


def _tried(learn: Learner, model: nn.Module, seen: dict[nn.Module, tuple[int, str]]) -> tuple[str, str]:
    """Run the model on the learner's batch; note the calls of its modules and the shapes of their outputs."""

    def note(module: nn.Module, args: Any, output: Any) -> None:
        n, first = seen.get(module, (0, ""))
        seen[module] = n + 1, first or _shapes(output)

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            vars(module).pop("_compiled_call_impl", None)  # it would be compiled again, with the hook
            module.training = False
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(note).remove)
        inputs = _shapes(learn.xb)
        learn.callback("predict")
    return inputs, _shapes(learn.preds)


def _shapes(part: Any, depth: int = 3) -> str:
    """Return the shapes of the tensors in an output, in its containers."""
    if isinstance(part, Tensor):
        return str(tuple(part.shape))
    if isinstance(part, PackedSequence):
        return f"packed {tuple(part.data.shape)}"
    items = items_of(part)
    if items is None or not depth:
        return type(part).__name__
    is_named = not isinstance(part, tuple | list)
    texts = [
        f"{key}: " * is_named + _shapes(item, depth - 1) for key, item in items.items() if item is not None
    ]
    more = [f"{len(texts) - _MOST_PARTS} more"] if len(texts) > _MOST_PARTS else []
    inside = ", ".join(texts[:_MOST_PARTS] + more)
    return f"{{{inside}}}" if is_named else f"[{inside}]"


def _new_lazy_buffers(model: nn.Module) -> dict[int, Any]:
    """Return what takes the place of buffers without a size in a copy, because torch cannot copy these."""
    kind: Any = UninitializedBuffer
    return {id(b): kind(False, b.device, b.dtype) for b in model.buffers() if isinstance(b, kind)}


# The layers -----------------------------------------------------------------------------------------


def _layers_of(model: nn.Module, seen: Mapping[nn.Module, tuple[int, str]]) -> Iterator[Layer]:
    owner_of: dict[int, str] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own and next(module.children(), None) is not None:
            continue
        made = [p for p in own if not is_lazy(p)]
        new = [p for p in made if id(p) not in owner_of]
        shares = next((owner_of[id(p)] for p in made if id(p) in owner_of), None)
        owner_of |= dict.fromkeys(map(id, new), name or "(the model)")
        n_calls, output = seen.get(module, (0, ""))
        yield Layer(
            name=name,
            kind=type(module).__name__,
            output=output,
            n_calls=n_calls,
            n_params=sum(p.numel() for p in new),
            n_trainable=sum(p.numel() for p in new if p.requires_grad),
            shares=shares,
            is_made=len(made) == len(own),
        )


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _bytes_of(tensors: list[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _device_text(tensors: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(t.device) for t in tensors))
