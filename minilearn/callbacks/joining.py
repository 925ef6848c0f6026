"""Metrics over the samples of all processes: each kind joined by its own rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..batches import map_tensors
from ..processes import Processes
from .at_end import AtEnd

_MERGED = ("merge_state", "state_dict", "load_state_dict")
_COUNT = "_update_count"
States = dict[str, dict[str, Any]]  # of a metric and of those in it, by path and by name


def check_joinable(owner: Any, name: str, metric: Any) -> None:
    """Raise TypeError for a metric that several processes cannot join."""
    if isinstance(metric, AtEnd) or is_torchmetrics(metric):
        return
    # Others like torchmetrics' have a merge_state of one state, and a compute() that joins by itself.
    if hasattr(metric, "unsync") or not all(callable(getattr(metric, method, None)) for method in _MERGED):
        raise TypeError(
            f"{owner!r}: metric {name} is a {type(metric).__name__}, which cannot be merged over processes: "
            f"expected a function, one of torchmetrics, or one with {', '.join(_MERGED)}, such as those of "
            "torcheval.metrics; merge_state(metrics) adds what the same metrics in other processes counted"
        )


def joined(processes: Processes, metrics: dict[str, Any], others: dict[str, list[States]]) -> dict[str, Any]:
    """Return metrics over the samples of all processes; the same objects where there is nothing to join.

    Args:
        others: states of torchmetrics' that no process continues, by name; see `States`.
    """
    found, merged = dict[str, Any](), dict[str, Any]()
    for name, metric in metrics.items():
        if isinstance(metric, AtEnd):
            found[name] = metric.gathered(processes)
        elif not is_torchmetrics(metric):
            merged[name] = metric
        elif processes.n_shards == 1 and not others.get(name):
            found[name] = metric
        else:
            own = [states_of(metric), *others.get(name, ())]
            parts = processes.all_gather(own) if processes.n_shards > 1 else [own]
            found[name] = Synchronized(metric, [states for part in parts for states in part])
    found |= processes.joint(merged)
    return {name: found[name] for name in metrics}


def saved(
    processes: Processes, metrics: dict[str, Any], others: dict[str, list[States]]
) -> tuple[dict[str, Any], dict[str, list[States]]]:
    """Return what a checkpoint has of metrics: the first process's, or joint ones, and the other states.

    Torchmetrics' rules cannot join states and then continue, so those of each process are kept apart.
    """
    if processes.n_shards == 1:
        return metrics, {name: states for name, states in others.items() if states}
    by_rule = {name: metric for name, metric in metrics.items() if is_torchmetrics(metric)}
    found = by_rule | joined(processes, {k: m for k, m in metrics.items() if k not in by_rule}, {})
    parts = dict[str, list[States]]()
    for name, metric in by_rule.items():
        own, *rest = zip(*processes.all_gather((states_of(metric), others.get(name, []))), strict=True)
        parts[name] = [*own[1:], *(states for more in rest for left in more for states in left)]
    return {name: found[name] for name in metrics}, parts


def take_share(processes: Processes, metric: Any, parts: list[States]) -> list[States]:
    """Leave in a metric that was restored what this process continues; return what no process does.

    Args:
        parts: the states of the other processes, when they were saved.
    """
    rank = processes.rank if processes.n_shards > 1 else 0  # else each has the same samples
    if rank and is_torchmetrics(metric) and rank <= len(parts):
        put(metric, parts[rank - 1])
    elif rank and isinstance(metric, AtEnd):
        metric.drop()
    elif rank:
        metric.reset()
    return [] if rank else parts[processes.n_shards - 1 :]


# Torchmetrics -------------------------------------------------------------------------------------


def is_torchmetrics(metric: Any) -> bool:
    """Whether a metric is one of torchmetrics, or a collection of them."""
    module = sys.modules.get("torchmetrics")
    return module is not None and isinstance(metric, module.Metric | module.MetricCollection)


def _inner(metric: Any) -> dict[str, Any]:
    """Return a metric, if it has states, and all metrics in it, by their paths."""
    module = sys.modules["torchmetrics"]
    if isinstance(metric, module.MetricCollection):
        metric.items(keep_base=True, copy_state=False)  # those of one group get the states of its first
    return {path: part for path, part in metric.named_modules() if isinstance(part, module.Metric)}


def states_of(metric: Any) -> States:
    """Return the states of a metric of torchmetrics that its rules synchronize, on the CPU."""
    return {
        path: {name: map_tensors(_on_cpu, getattr(part, name)) for name in (*part._defaults, _COUNT)}
        for path, part in _inner(metric).items()
    }


def _on_cpu(t: Tensor) -> Tensor:
    return t.detach().cpu()


def put(metric: Any, states: States) -> None:
    """Put states into a metric of torchmetrics."""
    for path, part in _inner(metric).items():
        copied = partial(Tensor.to, device=part.device, copy=True)
        for name, value in states[path].items():
            setattr(part, name, map_tensors(copied, value))
        part._computed = None


class Synchronized:
    """Compute a metric of torchmetrics over several states of it, by its own rules (dist_reduce_fx).

    Unlike its own synchronization, this leaves out processes that had no sample: their lists are empty, which
    a collective cannot gather, and their zeros would count in a mean.
    """

    def __init__(self, metric: Any, states: list[States]) -> None:
        self.metric, self.states = metric, states

    def compute(self) -> Any:
        """Return the value over all states; the metric keeps its own."""
        with self._in_it():
            return self.metric.compute()

    @contextmanager
    def _in_it(self) -> Iterator[None]:
        parts = _inner(self.metric)
        own = {path: {n: getattr(p, n) for n in (*p._defaults, _COUNT)} for path, p in parts.items()}
        syncs = {path: part._to_sync for path, part in parts.items()}
        try:
            put(self.metric, {path: self._reduced(path, part) for path, part in parts.items()})
            for part in parts.values():
                part._to_sync = False
            yield
        finally:
            for path, part in parts.items():
                for name, value in own[path].items():
                    setattr(part, name, value)
                part._to_sync = syncs[path]

    def _reduced(self, path: str, part: Any) -> dict[str, Any]:
        states = [state[path] for state in self.states]
        states = [state for state in states if state[_COUNT]] or states[:1]
        reduced: dict[str, Any] = {_COUNT: sum(state[_COUNT] for state in states)}
        for name, default in part._defaults.items():
            values = [state[name] for state in states]
            rule = part._reductions[name]
            reduced[name] = values[0] if len(values) == 1 else _reduced(values, default, rule)
        return reduced


def _reduced(values: list[Any], default: Any, rule: Any) -> Any:
    if isinstance(default, list):
        items = [item for v in values for item in (v if isinstance(v, list) else [v])]
        is_list = rule is None or getattr(rule, "__name__", "") == "dim_zero_cat"  # compute() joins a list
        return items if is_list or not items else rule(items)
    stacked = torch.stack(values)
    return stacked if rule is None else rule(stacked)
