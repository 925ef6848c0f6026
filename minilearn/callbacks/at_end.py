"""AtEnd: a function of all predictions of a phase as a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import said
from ..batches import map_tensors, tensors_in
from ..processes import Processes
from .arrays import followed
from .functions import label_of, signature_of, takes_target_first

_CHUNK_BYTES = 2**25  # of samples that stay on a device before they are copied to the CPU together


class AtEnd:
    """Compute a metric once, at the end of a phase, from the predictions of all its batches.

        MetricsCB(auc=(AtEnd(roc_auc_score), lambda preds, target: (preds.softmax(1)[:, 1], target)))

    This is for functions that are not a mean over samples, such as those of sklearn and scipy. They get numpy
    arrays (bfloat16 as float32), or lists where the predictions or targets are lists. With several processes,
    the first one gathers the samples of all, and computes.

    Memory: the predictions and targets of the whole phase, on the CPU. 50,000 samples of 1,000 classes in
    float32 need 200 MB, and twice that while they are joined. On an accelerator they are copied in chunks of
    32 MB. A checkpoint inside the phase has them too; they are freed when it ends. A `pick` that reduces them
    saves all of this.

    Args:
        function: (target, preds) or (preds, target) -> what a metric may compute. The names of its first two
            parameters say which: y_true, target, labels, ... and y_pred, y_score, preds, logits, ...

    Shapes: preds and target (N, ...) each, tensors, arrays or lists, with the same N in a batch and the same
        other dimensions in all batches.
    State: the predictions and targets so far.
    Raises: TypeError for a function whose parameters do not say what comes first, and for predictions or
        targets that are neither tensor, array nor list; ValueError for shapes that cannot be joined, and for
        a function that joins every sample with every other one, (N, 1) with (N,).
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        if isinstance(function, type) or not callable(function) or hasattr(function, "update"):
            raise TypeError(
                f"{said('AtEnd(function', function)}: expected a function of all predictions and targets, "
                "such as sklearn.metrics.roc_auc_score; a metric object needs no AtEnd, and a pick is given "
                "as (AtEnd(function), pick)"
            )
        first = takes_target_first(function)
        if first is None:
            raise TypeError(
                f"AtEnd: {label_of(function)}{signature_of(function)} does not say whether predictions or "
                "targets come first: expected the parameters (preds, target) or (y_true, y_pred); write "
                "AtEnd(lambda preds, target: ...)"
            )
        self.function, self.is_target_first = function, first
        self.reset()

    def reset(self) -> None:
        """Begin a phase."""
        self.n_batches = 0
        self.drop()

    def drop(self) -> None:
        """Forget all samples, which another process has, and keep the number of the next batch."""
        self._numbers: list[int] = []  # which batches the samples are of
        self._sizes: list[int] = []  # samples in each of these
        self._chunks: list[tuple[Any, Any]] = []  # on the CPU
        self._new: list[tuple[Any, Any]] = []  # not copied yet
        self._n_bytes = 0  # of these

    def update(self, preds: Any, target: Any) -> None:
        """Keep a batch, without waiting for the device as a rule."""
        pair = _kept(preds, "preds"), _kept(target, "targets")
        sizes = [len(part) for part in pair]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"AtEnd({label_of(self.function)}): a batch has {sizes[0]} predictions and {sizes[1]} "
                "targets: expected as many of each"
            )
        if self._new or self._chunks:
            for part, first in zip(pair, (self._new or self._chunks)[0], strict=True):
                self._check_alike(part, first)
        self._new.append(pair)
        self._numbers.append(self.n_batches)
        self._sizes.append(sizes[0])
        self.n_batches += 1
        self._n_bytes += sum(t.nbytes for t in tensors_in(pair))
        if self._n_bytes >= _CHUNK_BYTES:
            self._copy()

    def _check_alike(self, part: Any, first: Any) -> None:
        shapes = [tuple(p.shape[1:]) if isinstance(p, Tensor) else type(p).__name__ for p in (first, part)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"AtEnd({label_of(self.function)}): batches of (N, *{shapes[0]}) and (N, *{shapes[1]}) "
                "cannot be joined: expected the same dimensions after the first; choose what is to be "
                "measured with a pick, such as lambda preds, target: (preds[mask], target[mask])"
            )

    def _copy(self) -> None:
        """Copy what is new to the CPU."""
        if self._new:
            preds, target = zip(*self._new, strict=True)
            self._chunks.append((_on_cpu(_joined(preds)), _on_cpu(_joined(target))))
            self._new, self._n_bytes = [], 0

    def compute(self) -> Any:
        """Return what the function makes of all samples; nan if there are none."""
        if not self._sizes:
            return math.nan
        self._copy()
        preds, target = followed(*(_as_array(_joined(parts)) for parts in zip(*self._chunks, strict=True)))
        try:
            return self.function(target, preds) if self.is_target_first else self.function(preds, target)
        except Exception as error:
            error.add_note(
                f"minilearn: {self!r} was given preds, {_described(preds)}, and a target, "
                f"{_described(target)}; if it takes a part of them, say which with a pick, "
                "(AtEnd(function), lambda preds, target: ...)"
            )
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return the samples so far, on the CPU."""
        self._copy()
        preds, target = zip(*self._chunks, strict=True) if self._chunks else ((), ())
        if len(self._chunks) > 1:
            self._chunks = [(_joined(preds), _joined(target))]
        chunks = [list(pair) for pair in self._chunks]
        numbers, sizes = list(self._numbers), list(self._sizes)
        return {"n_batches": self.n_batches, "numbers": numbers, "sizes": sizes, "chunks": chunks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.drop()
        self.n_batches = state["n_batches"]
        self._numbers, self._sizes = list(state["numbers"]), list(state["sizes"])
        self._chunks = [(preds, target) for preds, target in state["chunks"]]

    def gathered(self, processes: Processes) -> AtEnd:
        """Return a metric with the samples of all processes, batch by batch; in all but the first, empty."""
        if processes.n_shards == 1:
            return self
        states = processes.gather(self.state_dict())
        n_batches = processes.all_gather(self.n_batches)
        joint = AtEnd(self.function)
        batches = []
        for rank, state in enumerate(states):
            for preds, target in state["chunks"]:
                parts = _split(preds, state["sizes"]), _split(target, state["sizes"])
                batches += [(i, rank, *pair) for i, *pair in zip(state["numbers"], *parts, strict=True)]
        batches.sort(key=lambda batch: batch[:2])
        if batches:
            joint._numbers, _, preds, target = map(list, zip(*batches, strict=True))
            joint._sizes = [len(part) for part in preds]
            joint._chunks = [(_joined(preds), _joined(target))]
        joint.n_batches = max(n_batches)
        return joint

    def __deepcopy__(self, memo: Any) -> AtEnd:
        new = AtEnd(self.function)
        new.load_state_dict(self.state_dict())
        return new

    def __repr__(self) -> str:
        return f"AtEnd({label_of(self.function)})"


def _kept(part: Any, what: str) -> Any:
    """Return a copy of what a batch has, because the model or the loader may write over it."""
    if isinstance(part, np.ndarray):
        part = torch.from_numpy(part) if part.dtype.kind in "biufc" else part.tolist()
    if isinstance(part, Tensor) and part.ndim:
        return part.detach().clone()
    if isinstance(part, list):
        return [map_tensors(lambda t: t.detach().clone(), item) for item in part]
    kind = "tensor without dimensions" if isinstance(part, Tensor) else type(part).__name__
    raise TypeError(
        f"AtEnd was given {what} that are a {kind}: expected a tensor or array (N, ...), or a list of N items"
    )


def _joined(parts: Any) -> Any:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([*parts]) if isinstance(parts[0], Tensor) else [item for part in parts for item in part]


def _split(part: Any, sizes: list[int]) -> Iterable[Any]:
    if isinstance(part, Tensor):
        return torch.split(part, sizes)
    ends = np.cumsum(sizes).tolist()
    return [part[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _on_cpu(part: Any) -> Any:
    return map_tensors(Tensor.cpu, part)


def _described(part: Any) -> str:
    return f"{part.shape} of {part.dtype}" if isinstance(part, np.ndarray) else f"a list of {len(part)}"


def _as_array(part: Any) -> Any:
    if not isinstance(part, Tensor):
        return part
    return (part.float() if part.dtype is torch.bfloat16 else part).numpy()
