"""What MetricsCB takes: kinds of metrics, in which phases each is measured, and what it sees of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..arguments import said, shown
from ..batches import items_of
from .at_end import AtEnd
from .functions import label_of, signature_of, takes_target_first

_METHODS = ("reset", "update", "compute")


class InValidation:
    """Measure a metric in validation and not in training, whose rows then have no such column.

        MetricsCB(InValidation(MeanAveragePrecision()), auc=InValidation(AtEnd(roc_auc_score)))

    This is for metrics that cost too much in training, or for models whose predictions exist only in
    evaluation mode. It first runs after the first training epoch: before a long fit,
    `learn.validate(cbs=SingleBatchCB())` tries it on one batch.

    Args:
        metric: what MetricsCB takes: a function, a metric, or (metric, pick).
    """

    def __init__(self, metric: Any) -> None:
        check_metric("", unwrapped(metric)[0], "InValidation(metric")
        self.metric = metric

    def __repr__(self) -> str:
        return f"InValidation({shown(self.metric)})"


# What is given ------------------------------------------------------------------------------------


def unwrapped(given: Any) -> tuple[Any, Any, bool]:
    """Return the metric itself, its pick (None without one), and whether it is for validation only."""
    pick, in_validation = None, False
    while isinstance(given, InValidation) or type(given) is tuple:
        if isinstance(given, InValidation):
            given, in_validation = given.metric, True
            continue
        is_pick = len(given) == 2 and pick is None and not isinstance(given[1], bool | type)
        if not is_pick or not (callable(given[1]) or isinstance(given[1], int | str)) or _is_object(given[1]):
            raise TypeError(
                f"{shown(given)} is given as a metric: expected (metric, pick), where pick is a function "
                "(preds, target) -> (preds, target), or the index or key of an output and its target"
            )
        given, pick = given
    return given, pick, in_validation


def name_of(metric: Any) -> str:
    """Return the name of a metric that is given without one.

    Raises: TypeError for a lambda or a partial.
    """
    if isinstance(metric, type):
        return metric.__name__
    function = metric.function if isinstance(metric, AtEnd) else metric
    if _is_object(function) or not callable(function):
        return type(function).__name__
    name: str = getattr(function, "__name__", "")
    if not name and not hasattr(function, "func"):  # an object that can be called, such as a module
        return type(function).__name__
    if not name.isidentifier():
        given = "AtEnd(...)" if isinstance(metric, AtEnd) else "..."
        raise TypeError(
            f"a metric is {shown(function)}, which has no name for its column: expected one, "
            f"MetricsCB(my_metric={given})"
        )
    return name


def _is_object(metric: Any) -> bool:
    """Whether a metric has methods of one that accumulates; if not, it is a function."""
    return any(hasattr(metric, method) for method in _METHODS)


def is_function(metric: Any) -> bool:
    """Whether a metric is a function of a batch."""
    return callable(metric) and not _is_object(metric)


def check_metric(name: str, metric: Any, argument: str = "") -> None:
    """Raise TypeError for what is neither a function of (preds, target) nor a metric object."""
    what = said(argument, metric) if argument else f"metric {name}={shown(metric)}"
    if isinstance(metric, type):
        raise TypeError(
            f"metric {name} is the class {metric.__name__}: expected an instance; write {metric.__name__}()"
        )
    if is_function(metric):
        _check_function(what, metric)
    elif missing := [method for method in _METHODS if not callable(getattr(metric, method, None))]:
        raise TypeError(
            f"{what} has no {', '.join(missing)}: expected a function (preds, target) -> number, or an "
            "object with reset(), update(preds, target) and compute(), such as those of torcheval and "
            "torchmetrics"
        )


def _check_function(what: str, function: Any) -> None:
    try:
        inspect.signature(function).bind(None, None)
    except ValueError:  # written in C, without a signature
        return
    except TypeError as error:
        raise TypeError(
            f"{what} takes {signature_of(function)}: expected a function (preds, target) -> number; give "
            f"other arguments with functools.partial ({error})"
        ) from None
    if takes_target_first(function):
        raise TypeError(
            f"{what} takes {signature_of(function)}, the target first: expected a function (preds, target) "
            "of a batch. Those of sklearn are for all predictions: AtEnd(function). Else swap them, "
            "lambda preds, target: function(target, preds)"
        )


# What it sees -------------------------------------------------------------------------------------


def picked(pick: Any, preds: Any, target: Any) -> tuple[Any, Any]:
    """Return what a metric is to see of the predictions and the target.

    Args:
        pick: a function (preds, target) -> (preds, target), or an index or key of both.

    Raises: TypeError for a function that returns anything else, and for a key of what has no parts.
    """
    if not callable(pick):
        return _part_of(preds, pick, "preds"), _part_of(target, pick, "the target")
    found = pick(preds, target)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise TypeError(
            f"pick {label_of(pick)} returned a {type(found).__name__}: expected (preds, target), as in "
            "lambda preds, target: (preds[0], target)"
        )
    return found[0], found[1]


def _part_of(parts: Any, key: Any, what: str) -> Any:
    is_named = hasattr(parts, "_fields") and not isinstance(key, int)
    found = parts._asdict() if is_named else items_of(parts)
    is_index = isinstance(key, int) and isinstance(parts, tuple | list)
    if found is None or not (-len(found) <= key < len(found) if is_index else key in found):
        has = f"a {type(parts).__name__}" + (f" of {', '.join(map(str, found))}" if found else "")
        raise TypeError(
            f"pick={key!r}: {what}, {has}, has no such part: expected one of both preds and target; for one "
            "of preds only, lambda preds, target: (preds[...], target)"
        )
    return parts[key] if is_index else found[key]


def explain(error: Exception, name: str, preds: Any, target: Any, has_pick: bool) -> None:
    """Add to an error of a metric what it was given, and how to give it something else.

    Nothing is added for two tensors, unless the classes are in the last dimension of preds.
    """
    if isinstance(preds, Tensor) and isinstance(target, Tensor):
        if not has_pick and preds.ndim > 2 and target.shape == preds.shape[:-1]:
            error.add_note(
                f"minilearn: metric {name} was given preds {tuple(preds.shape)} and a target "
                f"{tuple(target.shape)}; most metrics expect classes in dimension 1. If they are in the last "
                f"one, give a pick, MetricsCB({name}=(metric, lambda preds, target: "
                f"(preds.flatten(0, {preds.ndim - 2}), target.flatten())))"
            )
        return
    kinds = f"preds, a {type(preds).__name__}, and a target, a {type(target).__name__}"
    if has_pick:
        error.add_note(f"minilearn: metric {name} has a pick, and before it {kinds}")
        return
    error.add_note(
        f"minilearn: metric {name} was given {kinds}; if it takes a part of them, say which with a pick, "
        f"MetricsCB({name}=(metric, lambda preds, target: ({_first_part('preds', preds)}, "
        f"{_first_part('target', target)})))"
    )


def _first_part(what: str, parts: Any) -> str:
    found = items_of(parts)
    if isinstance(parts, Tensor) or not found:
        return what
    key = next(iter(found))
    return f"{what}[{key!r}]" if isinstance(parts, tuple | list | Mapping) else f"{what}.{key}"
