"""Combined: several optimizers as one, each for its own parameters, such as Muon for matrices only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..arguments import counted, shown
from .calling import call_opt_func, check_keywords, is_equal, name_of_lr
from .groups import EXTRA, PART, Group, needs_closure

Which = Callable[..., Any] | str | Sequence[str]
Make = Callable[[Callable[..., Any], list[Group], Any], Any]  # (opt_func, groups, lr) -> optimizer
_EXAMPLE = "Combined((is_matrix, Muon), AdamW)"


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether a parameter is a matrix; those of embeddings and of the last layer are too.

    To leave these to another optimizer, write such a function yourself:
    `lambda name, p: p.ndim == 2 and "embed" not in name and not name.startswith("head")`.
    """
    return p.ndim == 2


class Combined:
    """Train each parameter with one of several optimizers, which together act as one::

        Learner(model, dls, lr=3e-4, opt_func=Combined((is_matrix, partial(Muon, lr=0.02)), AdamW))

    The optimizer that it makes has the groups of all parts, one after the other, so schedules, clipping,
    checkpoints and `opt_summary` see one optimizer. The name of its part is in each group under "part".

    The lr: a part whose partial has an lr begins with it, and the others with the learner's. Where all parts
    have one, leave the learner's out. A list has one for each group, in the order of the parts. Schedules
    scale each from where it is. `fit(lr=x)` sets all groups to x, and `fit(lr=[x, y])` each to its own.

    With `param_groups`, each of its groups is divided among the parts; a group without parameters for a part
    is left out there. Parameters outside the model (of a loss, of callbacks) belong to the last part.

    With `DistributedCB(shard=)`, torch's Muon steps whole matrices, not shards. It iterates in bfloat16, so
    sums in another order change a step by a few percent of its norm, and more where the gradient has no full
    rank, as that of a classifier's last layer.

    Optimizers that step at different times, as in a GAN, are not parts: the second one is an attribute of a
    callback, which calls its `step` in a hook, and so is its scheduler, made in `before_fit` for
    `learn.total_steps`. Checkpoints and resumed fits have both. Over several processes the callback averages
    the gradients itself, `learn.processes.average([p.grad for p in ...])`.

    Args:
        *parts: pairs (which, opt_func), and as the last one perhaps an opt_func for all other parameters.
            opt_func is what the learner takes: a class or a function of (params, lr). which is a function
            (name, parameter) -> bool or parameter -> bool, or the name of a module or parameter ("head",
            "layers.0.weight"), or a list of names.

    Raises: TypeError for parts of another form, and for a partial with an argument that its optimizer has
        not. When the optimizer is made: ValueError, with their names, for parameters that several parts
        choose or none does, and for a part that chooses none; TypeError for a part that is no
        torch.optim.Optimizer, or whose step needs a closure.
    """

    def __init__(self, *parts: Any) -> None:
        if len(parts) < 2:
            raise TypeError(f"Combined of {counted(len(parts), 'part')}: expected two or more, {_EXAMPLE}")
        self.parts = [_checked(i, part, i == len(parts) - 1) for i, part in enumerate(parts)]
        self.labels = _labels([opt_func for _, opt_func in self.parts])

    def __repr__(self) -> str:
        return f"Combined({', '.join(self.labels)})"

    @property
    def has_own_lr(self) -> bool:
        """Whether a part has an lr of its own."""
        return any(lr is not None for lr in self._own_lrs())

    def check_takes(self, lr: Any) -> None:
        """Raise ValueError for a learner's one lr that no part would begin with, as each has its own."""
        own = self._own_lrs()
        if any(one is None or is_equal(one, lr) for one in own):
            return
        lrs = ", ".join(f"lr={one!r} of {label}" for one, label in zip(own, self.labels, strict=True))
        raise ValueError(
            f"lr={lr!r}, and no part of {self!r} takes it: expected no lr, because each part has its own "
            f"({lrs}); or leave the lr out of the part that is to begin with {lr!r}"
        )

    def _own_lrs(self) -> list[Any]:
        return [_own_lr(opt_func) for _, opt_func in self.parts]

    def __call__(self, params: Any, lr: Any = 1e-3) -> CombinedOptimizer:
        """Make the optimizer of parameters, groups, or pairs (name, parameter), as torch takes them."""
        params = list(params)
        names = {id(part[1]): part[0] for part in params if isinstance(part, tuple)}
        plain = [part[1] if isinstance(part, tuple) else part for part in params]
        groups = plain if plain and isinstance(plain[0], dict) else [{"params": plain}]
        if not all(PART in group for group in groups):
            groups = self.split([{**group, "params": _listed(group["params"])} for group in groups], names)
        return self.made(groups, lr, call_opt_func)

    def split(self, groups: Sequence[Group], names: Mapping[int, str]) -> list[Group]:
        """Divide groups among the parts.

        Args:
            groups: each with a list of parameters.
            names: those of parameters, by id. Others are called by their places.

        Returns: groups in the order of the parts, each with its part's name, and its own lr if it has one.
        """
        places = (p for group in groups for p in group["params"])
        called = {id(p): names.get(id(p), str(i)) for i, p in enumerate(places)}
        part_of = {id(p): self._part_of(p, called) for g in groups if EXTRA not in g for p in g["params"]}
        self._check(part_of, called)
        found, last = [], [len(self.parts) - 1]
        for i, (label, (_, opt_func)) in enumerate(zip(self.labels, self.parts, strict=True)):
            own_lr = _own_lr(opt_func)
            for group in groups:
                params = [p for p in group["params"] if part_of.get(id(p), last)[0] == i]
                if params:
                    lr = {} if own_lr is None else {"lr": own_lr}
                    found.append({**lr, **group, "params": params, PART: label})
        return found

    def _part_of(self, p: Tensor, called: Mapping[int, str]) -> list[int]:
        """Return the numbers of the parts that choose a parameter; the last one's if it takes the rest."""
        chosen = [
            i for i, (which, _) in enumerate(self.parts) if which is not None and which(called[id(p)], p)
        ]
        takes_rest = self.parts[-1][0] is None
        return chosen or ([len(self.parts) - 1] if takes_rest else [])

    def _check(self, part_of: Mapping[int, list[int]], called: Mapping[int, str]) -> None:
        if names := [called[p] for p, chosen in part_of.items() if len(chosen) > 1]:
            raise ValueError(
                f"{self!r}: several parts choose {_shortened(names)}: expected one part for each parameter"
            )
        if names := [called[p] for p, chosen in part_of.items() if not chosen]:
            raise ValueError(
                f"{self!r}: no part chooses {_shortened(names)}: expected an opt_func for all others as the "
                f"last part, such as {_EXAMPLE}"
            )
        for i, (which, _) in enumerate(self.parts):
            if which is not None and not any(i in chosen for chosen in part_of.values()):
                raise ValueError(
                    f"{self!r}: part {i} ({self.labels[i]}) chooses no parameter, of "
                    f"{_shortened([called[p] for p in part_of])}"
                )

    def made(self, groups: Sequence[Group], lr: Any, make: Make) -> CombinedOptimizer:
        """Return the optimizer of groups that `split` gave; `make` makes each part of its own groups."""
        opts = []
        for label, (_, opt_func) in zip(self.labels, self.parts, strict=True):
            own = [{k: v for k, v in g.items() if k != PART} for g in groups if g[PART] == label]
            if not own:
                continue  # there is no rest
            opt = make(opt_func, own, lr)
            if not isinstance(opt, torch.optim.Optimizer):
                raise TypeError(f"{label} made a {type(opt).__name__}: expected a torch.optim.Optimizer")
            if needs_closure(opt):
                raise TypeError(f"{label}.step needs a closure: expected parts that step without one")
            for group in opt.param_groups:
                group[PART] = label
            opts.append(opt)
        return CombinedOptimizer(opts)


def _checked(i: int, part: Any, is_last: bool) -> tuple[Callable[[str, Tensor], Any] | None, Any]:
    """Return a part as (which, opt_func), where which is a function of (name, parameter), or None."""
    is_pair = isinstance(part, tuple) and len(part) == 2
    which, opt_func = part if is_pair else (None, part)
    if not callable(opt_func) or (not is_pair and not is_last) or isinstance(opt_func, torch.optim.Optimizer):
        last = " or, for all other parameters, an opt_func" if is_last else ""
        raise TypeError(
            f"part {i} of Combined is {shown(part)}: expected (which, opt_func){last}; {_EXAMPLE}"
        )
    check_keywords(opt_func)
    return (None if which is None and not is_pair else _as_function(i, which)), opt_func


def _as_function(i: int, which: Any) -> Callable[[str, Tensor], Any]:
    names = (which,) if isinstance(which, str) else which
    if isinstance(names, tuple | list) and names and all(isinstance(name, str) for name in names):
        return partial(_is_in, tuple(names))
    if not callable(which) or isinstance(which, type):
        raise TypeError(
            f"part {i} of Combined chooses by {shown(which)}: expected a function (name, parameter) -> bool, "
            "or names of modules or parameters"
        )
    try:
        inspect.signature(which).bind("", None)
    except TypeError:
        return partial(_of_parameter, which)
    except ValueError:  # written in C
        pass
    return which


def _is_in(names: tuple[str, ...], name: str, p: Tensor) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in names)


def _of_parameter(which: Callable[[Tensor], Any], name: str, p: Tensor) -> Any:
    return which(p)


def _own_lr(opt_func: Any) -> Any:
    name = name_of_lr(opt_func)
    return opt_func.keywords.get(name) if isinstance(opt_func, partial) and name is not None else None


def _labels(opt_funcs: Sequence[Any]) -> list[str]:
    """Return a name for each part: its class, numbered if there are several."""
    inner = [f.func if isinstance(f, partial) else f for f in opt_funcs]
    plain = [getattr(f, "__name__", type(f).__name__) for f in inner]
    seen = [plain[: i + 1].count(name) for i, name in enumerate(plain)]
    return [name if n == 1 else f"{name} {n}" for name, n in zip(plain, seen, strict=True)]


def _listed(params: Any) -> list[Tensor]:
    return [params] if isinstance(params, Tensor) else list(params)


def _shortened(names: Iterable[str]) -> str:
    found = list(names)
    return f"{', '.join(found[:5])}{f' ({len(found)} in all)' if len(found) > 5 else ''}"


class CombinedOptimizer(torch.optim.Optimizer):
    """Step several optimizers, over different parameters, as one; see `Combined`.

    Its groups are the parts' own dicts, one part after the other, and `state` shows the parts' states. The
    state_dict has the form of torch's, with parameters numbered through.

    Args:
        parts: the optimizers, at least one.

    Raises: ValueError for a parameter that two of them have; for a state_dict of other parts.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        seen: set[int] = set()
        for opt in parts:
            own = {id(p) for group in opt.param_groups for p in group["params"]}
            if seen & own:
                raise ValueError(f"{type(opt).__name__} has parameters that another part has too")
            seen |= own
        self.parts: list[torch.optim.Optimizer] = []  # none yet: torch adds the groups to this one
        super().__init__([{"params": group["params"]} for opt in parts for group in opt.param_groups], {})
        self.parts = list(parts)
        self._link([group for opt in parts for group in opt.param_groups])

    def _link(self, groups: list[Group]) -> None:
        """Make these dicts the groups of this optimizer and of its parts."""
        self.param_groups = groups
        start = 0
        for opt in self.parts:
            n = len(opt.param_groups)
            opt.param_groups = groups[start : start + n]
            start += n
        known = [opt.defaults for opt in self.parts]
        # What torch's schedulers read here has to hold for all groups.
        self.defaults = {k: v for k, v in known[0].items() if all(k in defaults for defaults in known)}
        self.state: Any = _States(self)
        clears = [getattr(opt.zero_grad, "__func__", None) for opt in self.parts]
        if any(clear is not torch.optim.Optimizer.zero_grad for clear in clears):
            self.zero_grad = self._zero_grad  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups = [group for opt in state["parts"] for group in opt.param_groups]
        self.parts = state["parts"]
        super().__setstate__({"param_groups": groups, "state": {}, "defaults": {}})
        self._link(groups)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step each part; call `closure` once before, with gradients enabled, and return its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for opt in self.parts:
            opt.step()
        return loss

    def _zero_grad(self, set_to_none: bool = True) -> None:
        for opt in self.parts:
            opt.zero_grad(set_to_none)

    def train(self) -> None:
        """Put the weights of schedule-free parts into training mode."""
        for opt in self.parts:
            if callable(switch := getattr(opt, "train", None)):
                switch()

    def eval(self) -> None:
        """Put the weights of schedule-free parts into evaluation mode."""
        for opt in self.parts:
            if callable(switch := getattr(opt, "eval", None)):
                switch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the part that it names, {"params": ..., "part": "AdamW"}."""
        if not self.parts:
            super().add_param_group(param_group)
            return
        labels = list(dict.fromkeys(group[PART] for group in self.param_groups))
        if param_group.get(PART) not in labels:
            raise ValueError(
                f"a group with {PART}={param_group.get(PART)!r}: expected one of "
                f"{', '.join(map(repr, labels))}, because each parameter has one optimizer"
            )
        known = {id(p) for group in self.param_groups for p in group["params"]}
        params = _listed(param_group["params"])
        if any(id(p) in known for p in params):
            raise ValueError("some parameters appear in more than one parameter group")
        opt = self.parts[labels.index(param_group[PART])]
        opt.add_param_group({**param_group, "params": params})
        self._link([group for opt in self.parts for group in opt.param_groups])

    # In checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts as one, and under "parts" what only some optimizers have."""
        state: dict[Any, Any] = {}
        groups: list[Group] = []
        rest = []
        start = 0
        for i, opt in enumerate(self.parts):
            own = dict(opt.state_dict())
            for key, value in own.pop("state", {}).items():
                state[key + start if type(key) is int else f"{PART} {i} {key}"] = value
            for group in own.pop("param_groups", []):
                groups.append({**group, "params": [n + start for n in group["params"]]})
            rest.append(own)
            start += _n_params(opt)
        return {"state": state, "param_groups": groups, **({"parts": rest} if any(rest) else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them; the groups stay the same dicts, which schedulers and callbacks may hold."""
        saved = [group.get(PART) for group in state_dict["param_groups"]]
        if saved != (own := [group[PART] for group in self.param_groups]):
            raise ValueError(f"the state is of an optimizer of {saved}, and this one is of {own}")
        groups, all_rest = self.param_groups, state_dict.get("parts", [{}] * len(self.parts))
        start = first = 0
        for i, (opt, rest) in enumerate(zip(self.parts, all_rest, strict=True)):
            n, n_groups, prefix = _n_params(opt), len(opt.param_groups), f"{PART} {i} "
            part: dict[Any, Any] = {}
            for key, value in state_dict["state"].items():
                if type(key) is int and start <= key < start + n:
                    part[key - start] = value
                elif type(key) is str and key.startswith(prefix):
                    part[key.removeprefix(prefix)] = value
            own_groups = [
                {**group, "params": [k - start for k in group["params"]]}
                for group in state_dict["param_groups"][first : first + n_groups]
            ]
            opt.load_state_dict({"state": part, "param_groups": own_groups, **rest})
            for old, new in zip(groups[first : first + n_groups], opt.param_groups, strict=True):
                if old is not new:
                    old.clear()
                    old.update(new)
            start, first = start + n, first + n_groups
        self._link(groups)


def _n_params(opt: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in opt.param_groups)


class _States(MutableMapping[Any, Any]):
    """Show the states of an optimizer's parts as one mapping, by parameter."""

    def __init__(self, opt: CombinedOptimizer) -> None:
        self._opt = opt

    def _of(self, key: Any) -> Any:
        """Return the part's state that has a key, or is to have it."""
        states = [opt.state for opt in self._opt.parts]
        found = next((state for state in states if key in state), None)
        if found is None:
            ids = ({id(p) for group in opt.param_groups for p in group["params"]} for opt in self._opt.parts)
            found = next((s for s, own in zip(states, ids, strict=True) if id(key) in own), states[0])
        return found

    def __getitem__(self, key: Any) -> Any:
        return self._of(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._of(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._of(key)[key]

    def __contains__(self, key: Any) -> bool:
        return any(key in opt.state for opt in self._opt.parts)

    def __iter__(self) -> Iterator[Any]:
        return (key for opt in self._opt.parts for key in opt.state)

    def __len__(self) -> int:
        return sum(len(opt.state) for opt in self._opt.parts)
