"""Say which parameters have gradients, sparse or dense, that an optimizer refused at its step."""

from __future__ import annotations

from collections.abc import Mapping
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor


def note_layouts(error: BaseException, opt: Any, named: Mapping[str, Tensor]) -> None:
    """Note on an error of a step which parameters have the gradients that it refuses, if it is about such.

    Args:
        named: the parameters by name.
    """
    if "sparse" not in (text := str(error).lower()):
        return
    stepped = opt
    for frame, _ in walk_tb(error.__traceback__):  # the innermost one is the part that refuses
        owner = frame.f_locals.get("self")
        stepped = owner if isinstance(owner, torch.optim.Optimizer) else stepped
    own = {id(p) for group in getattr(stepped, "param_groups", ()) for p in group["params"]}
    is_dense = "support dense" in text
    found = [
        name
        for name, p in named.items()
        if id(p) in own and p.grad is not None and (p.grad.layout is torch.strided) == is_dense
    ]
    if not found:
        return
    kind, more = "dense" if is_dense else "sparse", f" and {len(found) - 3} more" if len(found) > 3 else ""
    tables = "names of the tables" if is_dense else ", ".join(map(repr, found[:3])) + (more and ", ...")
    error.add_note(
        f"minilearn: {kind} gradients have {', '.join(found[:3])}{more}: expected an optimizer for each, "
        f"opt_func=Combined(([{tables}], SparseAdam), AdamW) with minilearn.optim.Combined; or make the "
        "tables with sparse=False"
    )
