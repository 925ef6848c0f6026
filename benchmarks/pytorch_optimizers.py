"""Count the optimizers of the package pytorch_optimizer that train, and that are resumed bit for bit.

Each one trains a small net for two epochs through `Learner.verify_resume`, which stops copies in the middle
of the second epoch and of its validation, resumes them, and compares every bit. Most are given as `opt_func`
as they are. Some want more of the caller, such as a closure or groups for matrices: WAYS says what. The
package is an extra: pip install minilearn[optimizers]

Run: python benchmarks/pytorch_optimizers.py --out docs/measured
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import SEED, about, parser_of, report
from torch import nn

from minilearn import Callback, ClosureCB, DataLoaders, Learner, TensorLoader, set_seed
from minilearn.optim import Combined, is_matrix

N, BS, LR = 16, 4, 1e-2


class GraphCB(Callback):
    """Keep the graph of the gradients, of which some optimizers take gradients again."""

    def backward(self, learn: Learner) -> None:
        """Own the step: backward with its own graph."""
        learn.loss.backward(create_graph=True)


def by_use_of_muon(model: nn.Module) -> list[dict[str, Any]]:
    """Divide parameters into matrices and the rest, as the package's Muon and its kin expect them."""
    parts = ([p for p in model.parameters() if (p.ndim == 2) is wanted] for wanted in (True, False))
    return [{"params": part, "use_muon": use} for part, use in zip(parts, (True, False), strict=True)]


def with_groups(kind: Any) -> dict[str, Any]:
    """Give groups of matrices and of the rest."""
    return {"opt_func": kind, "param_groups": by_use_of_muon}


def with_graph(kind: Any) -> dict[str, Any]:
    """Give gradients with a graph."""
    return {"opt_func": kind, "cbs": [GraphCB()]}


# What some want of the caller: name -> (what it is, arguments of the learner).
WAYS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    **dict.fromkeys(
        ("adago", "adamuon", "muon", "muonclip", "normuon"),
        ("groups with use_muon, by param_groups", with_groups),
    ),
    **dict.fromkeys(("adahessian", "sophiah"), ("a callback with backward(create_graph=True)", with_graph)),
    "alig": ("ClosureCB()", lambda kind: {"opt_func": kind, "cbs": [ClosureCB()]}),
    "bsam": (
        "num_data, ClosureCB()",
        lambda kind: {"opt_func": partial(kind, num_data=N), "cbs": [ClosureCB()]},
    ),
    "ranger21": ("num_iterations", lambda kind: {"opt_func": partial(kind, num_iterations=2 * N // BS)}),
    "spectralsphere": (
        "Combined, for matrices only",
        lambda kind: {"opt_func": Combined((is_matrix, kind), torch.optim.AdamW)},
    ),
}


def learner(opt_func: Any, **kwargs: Any) -> Learner:
    """Make a learner of a net of two layers, on 16 samples in shuffled batches of 4."""
    set_seed(SEED)
    x = torch.randn(N + BS, 3)
    y = (x.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    dls = DataLoaders(TensorLoader(x[:N], y[:N], bs=BS, shuffle=True), TensorLoader(x[N:], y[N:], bs=BS))
    return Learner(model, dls, lr=LR, opt_func=opt_func, default_cbs=False, **kwargs)


def tried(name: str, kind: Any) -> dict[str, str]:
    """Return what one optimizer wanted, why it does not train, and why it is not resumed; "" for neither."""
    how, arguments = WAYS.get(name, ("", lambda kind: {"opt_func": kind}))
    found = {"name": name, "how": how, "training": "", "resuming": ""}
    try:
        learner(**arguments(kind)).fit(2)
    except Exception as error:
        return found | {"training": f"{type(error).__name__}: {error}".partition("\n")[0]}
    try:
        said = learner(**arguments(kind)).verify_resume()
    except Exception as error:
        return found | {"resuming": f"{type(error).__name__}: {error}".partition("\n")[0]}
    return found | ({"resuming": said} if "not compared" in said else {})


def measure() -> list[dict[str, str]]:
    """Try each optimizer of the package by its name there; a class with two names counts once."""
    import pytorch_optimizer

    found, seen = [], set()
    for name in sorted(pytorch_optimizer.get_supported_optimizers()):
        try:
            kind = pytorch_optimizer.load_optimizer(name)
        except Exception as error:  # it needs another package
            found.append({"name": name, "how": "", "training": f"{error}", "resuming": ""})
            continue
        if kind not in seen:
            seen.add(kind)
            found.append(tried(name, kind))
    return found


def said(result: dict[str, Any]) -> str:
    """Return a result as text: the counts, and each optimizer that is not as the others, with the reason."""
    rows = result["optimizers"]
    trained = [row for row in rows if not row["training"]]
    resumed = [row for row in trained if not row["resuming"]]
    lines = [
        f"pytorch_optimizer {result['pytorch_optimizer']}, torch {result['torch']}: {len(rows)} classes",
        f"  train                  {len(trained):4}",
        f"  resume bit for bit     {len(resumed):4}",
        f"  of these with more     {sum(bool(row['how']) for row in resumed):4}",
    ]
    for title, of in (("with more", resumed), ("does not train", rows), ("is not resumed", trained)):
        key = {"with more": "how", "does not train": "training", "is not resumed": "resuming"}[title]
        lines += [f"  {title}: {row['name']}: {_short(row[key])}" for row in of if row[key]]
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


if __name__ == "__main__":
    args = parser_of(__doc__).parse_args()
    warnings.simplefilter("ignore")
    version = importlib.metadata.version("pytorch_optimizer")
    head = about("pytorch_optimizers", seeds=[SEED], pytorch_optimizer=version)
    report(head | {"optimizers": measure()}, said, args.out)
