"""TransformersCB: models that compute their own loss and return it with their logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import function, text, unless_none
from ..batches import is_several, items_of, n_samples, rebuilt
from ..callback import Callback
from ..counting import only_counted
from ..fitting.checks import check_one_number
from ..warning import warn
from ..weights import unwrapped

if TYPE_CHECKING:
    from ..learner import Learner


_IGNORED = -100  # the label that torch's cross-entropy, and so transformers' models, leave out


class TransformersCB(Callback):
    """Train a model whose output has `.loss` and `.logits`, such as those of Hugging Face transformers::

        model = AutoModelForSequenceClassification.from_pretrained(name)
        learn = Learner(model, {"train": train, "eval": valid}, lr=2e-5, cbs=TransformersCB())
        learn.fit(3)
        learn.predict(valid)  # the logits
        learn.model.save_pretrained("folder")

    Batches are dicts, as tokenizers and collators make them; what stands under "labels", "label", "target" or
    "targets" goes into the model as `labels`. A pair (inputs, labels) works too. The output may be any object
    with these attributes, or a dict. `learn.preds`, which metrics and `predict` see, are the logits;
    `learn.loss` is the model's loss. A `loss_func` that is given to the learner is used instead, on (logits,
    labels); the model then gets no labels.

    The model's loss is a mean, and `learn.loss_count` is what it is a mean over: the labels that are not
    -100. A causal model compares the logits at each position with the next label, so the first label of each
    sequence does not count. Whether a model does this is found in the first batch, from the gradients of its
    logits, or from the value of the loss where there are none. So an accumulated step, and one of several
    processes, is that of one batch with all tokens, and the rows of history have the mean over all tokens.

    Args:
        output: the field of the output that is `learn.preds`. None: "logits", or the whole output without
            its loss, if it has no logits.
        count: (preds, labels) -> what the model's loss is a mean over, for a model with another rule.

    Runs at: prepare; cleanup_forward. Owns: predict, get_loss. Reads: xb, yb. Writes: preds, loss,
        loss_count.
    State: whether the model shifts its labels.
    Raises: ValueError for an output without a loss, for instance because the batch has no labels, and for a
        loss that is not one number.
    Warns: if it cannot be found what the loss is a mean over; it then counts all labels that are not -100.
    Differs: from the Trainer, whose versions before 4.46 weigh accumulated batches alike, whatever their
        number of tokens. No num_items_in_batch is passed to the model.
    """

    def __init__(self, output: str | None = None, count: Callable[[Any, Any], Any] | None = None) -> None:
        self.output = unless_none(text, "TransformersCB(output", output, "the name of a field")
        self.count = unless_none(function, "TransformersCB(count", count, "a function (preds, labels) -> n")
        self._shifts: bool | None = None  # None until it is known
        self._loss: Any = None  # of the forward that is running
        self._raw: Any = None  # its logits, before a hook changes them

    def __repr__(self) -> str:
        return f"TransformersCB({'' if self.output is None else repr(self.output)})"

    def state_dict(self) -> dict[str, Any]:
        """Return whether the model shifts its labels."""
        return {"shifts": self._shifts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self._shifts = state["shifts"]

    def prepare(self, learn: Learner) -> None:
        self._shifts = None  # the model may be another one

    def predict(self, learn: Learner) -> None:
        inputs, labels = learn.xb, learn.yb
        more = {} if labels is None or _is_given(learn) else {"labels": labels}
        if isinstance(inputs, Mapping):
            out = learn.model(**{**inputs, **more})
        else:
            out = learn.model(*(inputs if is_several(inputs) else (inputs,)), **more)
        self._loss = _field(out, "loss")
        learn.preds = self._raw = self._preds_of(learn, out)

    def _preds_of(self, learn: Learner, out: Any) -> Any:
        name = self.output
        if name is None:
            if (logits := _field(out, "logits")) is not None:
                return logits
            items = items_of(out)
            if isinstance(out, Tensor) or items is None or 0 in items:
                raise TypeError(
                    f"{self!r}: {_name_of(learn)} gave a {type(out).__name__}: expected an output with .loss "
                    "and .logits, as from a model of transformers (with return_dict=True); without this "
                    "callback the output is the predictions, and loss_func computes the loss"
                )
            return _without_loss(out, items)
        if (part := _field(out, name)) is None:
            raise ValueError(
                f"{self!r}: the output of {_name_of(learn)} has no {name!r}: expected one of {_names_in(out)}"
            )
        return part

    def get_loss(self, learn: Learner) -> None:
        if _is_given(learn):
            learn.get_loss()
            return
        if self._loss is None:
            if learn.training or learn.yb is None:
                raise self._no_loss(learn)
            return  # the model computes one in training only
        check_one_number(_name_of(learn), self._loss)
        learn.loss = self._loss
        if learn.loss_count is None:  # 0 in a process that has no sample
            learn.loss_count = count = self._counted(learn)
            if learn.training and isinstance(count, Tensor) and learn.preds is not self._raw:
                only_counted(self._raw, count)  # the loss does not depend on the copy that learn.preds is

    def cleanup_forward(self, learn: Learner) -> None:
        self._loss = self._raw = None

    def _no_loss(self, learn: Learner) -> ValueError:
        batch = learn.batch
        found = f"a {type(batch).__name__}" + (
            f" with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
        )
        return ValueError(
            f"{self!r}: {_name_of(learn)} gave no loss for {found}: expected labels in the batch, under "
            "'labels' or 'label', or a pair (inputs, labels); or give the learner a loss_func, which gets "
            "the logits and the target"
        )

    # What the loss is a mean over -----------------------------------------------------------------

    def _counted(self, learn: Learner) -> Any:
        labels = learn.yb
        if labels is None and isinstance(learn.xb, Mapping):
            labels = learn.xb.get("labels")
        if self.count is not None:
            return self.count(learn.preds, labels)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.ndim:
            return n_samples(learn.xb if labels is None else labels)
        kept = labels != _IGNORED
        if labels.ndim == 1:
            return kept.sum()
        if self._shifts is None:
            self._shifts = self._found(learn, labels, kept)
        return kept[..., 1:].sum() if self._shifts else kept.sum()

    def _found(self, learn: Learner, labels: Tensor, kept: Tensor) -> bool | None:
        """Return whether the model compares logits with the next label; None if no label is kept yet.

        This waits for the device, once in a pass.
        """
        if not kept.any():
            return None
        loss, logits = self._loss.detach(), self._raw
        if isinstance(logits, Tensor) and logits.shape[:-1] == labels.shape:
            found = None if _is_compiled(learn.model) else _by_gradient(self._loss, logits, kept)
            if found is None:
                found = _by_value(loss, logits.detach(), labels)
            if found is not None:
                return found
        if (known := _by_name(unwrapped(learn.model))) is not None:
            return known
        warn(
            f"{self!r}: the loss of {_name_of(learn)} is not the cross-entropy of its logits and labels, so "
            "it is not known what it is a mean over; it counts as a mean over all labels that are not -100. "
            "Give TransformersCB(count=...), a function (preds, labels) -> number, if it is another one"
        )
        return False


def _is_given(learn: Learner) -> bool:
    """Whether the user gave a loss_func, rather than an earlier fit having inferred one."""
    return learn.loss_func is not None and learn.loss_func is not learn._made.loss_func


def _name_of(learn: Learner) -> str:
    return type(unwrapped(learn.model)).__name__


def _field(out: Any, name: str) -> Any:
    return out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)


def _names_in(out: Any) -> str:
    items = items_of(out)
    names = getattr(out, "_fields", None) or (None if items is None else items.keys())
    return ", ".join(map(str, names)) if names else f"the fields of an object, not of a {type(out).__name__}"


def _without_loss(out: Any, items: dict[Any, Any]) -> Any:
    """Return an output without its loss, so that the predictions of several batches can be joined."""
    if "loss" not in items:
        return out
    if isinstance(out, Mapping):
        kept = {name: item for name, item in items.items() if name != "loss"}
        kind: Any = type(out) if is_dataclass(out) else dict  # those of transformers are both
        return kind(**kept)
    return rebuilt(out, items | {"loss": None})


def _is_compiled(model: Any) -> bool:
    """Whether torch.compile made a part of a model: its backward runs only once."""
    parts = [(hasattr(m, "_orig_mod"), getattr(m, "_compiled_call_impl", None)) for m in model.modules()]
    return any(is_wrapped or call is not None for is_wrapped, call in parts)


def _by_gradient(loss: Tensor, logits: Tensor, kept: Tensor) -> bool | None:
    """Say which logits the loss depends on: those of the kept labels, or those one place before."""
    if not loss.requires_grad or not logits.requires_grad or logits is loss:
        return None
    (grad,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
    if grad is None:
        return None
    is_used = (grad != 0).any(-1)
    if torch.equal(is_used, kept):
        return False
    return True if torch.equal(is_used, _shifted(kept, False)) else None


@torch.no_grad()
def _by_value(loss: Tensor, logits: Tensor, labels: Tensor) -> bool | None:
    """Say which of two cross-entropies the loss is, by rows, because logits may be large."""
    distances = []
    for wanted in (labels, _shifted(labels, _IGNORED)):
        rows = zip(logits.flatten(0, -3), wanted.flatten(0, -2), strict=True)
        total = sum(F.cross_entropy(row.float(), y, reduction="sum").double() for row, y in rows)
        distances.append(float((total / (wanted != _IGNORED).sum() - loss).abs() / loss.abs()))
    plain, shifted = distances
    digits = 1e-4 if loss.dtype.itemsize > 2 else 1e-2  # those of rounding, in 32 and in 16 bits
    if min(distances) > digits or max(distances) < 4 * min(distances) + 1e-6:
        return None
    return shifted < plain


def _shifted(labels: Tensor, last: Any) -> Tensor:
    return torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], last)], -1)


def _by_name(model: Any) -> bool | None:
    """Say what the class of a transformers' model does; None for another one."""
    if not hasattr(model, "config"):
        return None
    config, name = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        return False
    kind = getattr(model, "loss_type", None) or name
    if any(part in kind for part in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return True
    return False if "ForMaskedLM" in kind or "ForTokenClassification" in kind else None
