"""The complete state of a run: its files, and how it is taken from a learner at rest and restored."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..callback import Callback, Order
from ..files import DamagedError, read_torch
from ..optim.groups import keep_order_of_memory, params_of
from ..parameters import check_brought, elsewhere, extra_params
from ..plan import Position
from ..processes import like
from ..seeding import packed_rng, set_rng_state
from ..weights import SUFFIX, plain_name, tensors_by_name
from .begun import Before, Begun, owner_of, put_attributes
from .best import bests_in
from .codec import ADVICE, LEFT, Loader, Saver, compact, first_difference
from .drawing import capture_drawing, restore_drawing
from .identity import Identities, Objects
from .loss import capture_loss, restore_loss
from .trust import check_names, check_own, warn_of_places, without_places

if TYPE_CHECKING:
    from ..learner import Learner

Saved = dict[str, Any]

FORMAT = 1
BEST = "best.pt"
_NAME = re.compile(r"epoch-(\d+)-(train|valid)(\d*)-(\d+)" + re.escape(SUFFIX))
_OWN_ADVICE = "keep it on a callback, whose state_dict leaves it out"
_NEEDED = ("run", "fit", "position", "fields", "history", "model", "opt", "cbs", "loaders", "rng")
_FIELDS = ("epoch", "batch_idx", "n_steps", "n_epochs_trained", "loss")
SAME = ("same",)
_READ_AT_BEGINNINGS = ("before_epoch", "before_train", "before_validate")


def position_of(learn: Learner) -> Position:
    """Return where a learner at rest stands."""
    if not learn.scopes:
        return Position(learn.n_epochs, "over")
    if learn.scopes[-1] in ("train", "validate"):
        part = 0 if learn.training else learn.plan.part
        return Position(learn.epoch, learn.phase, learn.batch_idx + 1, part)
    return Position(learn.epoch + 1)


# Files --------------------------------------------------------------------------------------------


def name_of(n_epochs_trained: int, position: Position) -> str:
    """Return a checkpoint's file name: which epoch of the learner's life and which batch come next."""
    part = f"valid{position.part + 1 if position.part else ''}" if position.phase == "eval" else "train"
    epoch = n_epochs_trained - position.is_inside
    return f"epoch-{epoch:04d}-{part}-{position.batch:06d}{SUFFIX}"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the earliest first, without the copy of the best."""
    return sorted((path for path in folder.glob("epoch-*") if _NAME.fullmatch(path.name)), key=is_at)


def all_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first, and then those of the best epochs."""
    best = folder / BEST  # the only one if the run ended before its first checkpoint, but after an epoch
    return [*reversed(checkpoints_in(folder)), *bests_in(folder), *([best] if best.is_file() else [])]


def is_damaged(path: Path) -> bool:
    """Whether a file is damaged; all of it is read."""
    try:
        read_torch(path)
    except DamagedError:
        return True
    return False


def is_at(path: Path) -> tuple[int, str, int, int]:
    """Return the place in the run that a checkpoint's name gives, for comparison."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), match[2], int(match[3] or 1), int(match[4])


def read(path: Path) -> Saved:
    """Read a checkpoint. Raises: FileNotFoundError; ValueError for a broken one, or another file."""
    saved = read_torch(path)
    if not isinstance(saved, dict) or "minilearn" not in saved:
        raise ValueError(f"{path} is not a checkpoint of minilearn; learn.load reads weights")
    if saved["minilearn"] != FORMAT:
        raise ValueError(f"{path} has format {saved['minilearn']}, but this minilearn reads {FORMAT}")
    if lacks := [name for name in _NEEDED if name not in saved]:
        raise ValueError(f"{path} is not a whole checkpoint of minilearn: it has no {lacks[0]!r}")
    return saved


# Taking it ----------------------------------------------------------------------------------------


def capture(learn: Learner, position: Position) -> Saved:
    """Return the state of a learner at rest, in saved forms that share its tensors."""
    return capture_rest(learn, position) | capture_weights(learn)


def capture_weights(learn: Learner) -> Saved:
    """Return what validation does not change: the model, the loss, kept gradients, the optimizer."""
    check_opt(learn.opt)
    check_brought(learn)
    tensors, others = tensors_by_name(learn.model), _others(learn)
    more = extra_params(learn) | others
    names = {id(t): name for name, t in (more | tensors).items()}
    loss = capture_loss(learn)
    kept = {name: compact(grad) for name, grad in learn.mean.joint(learn, more).items()}
    extra = {k: v for k, v in learn.model.state_dict().items() if k.endswith("_extra_state")}
    saver = Saver([], type(learn.opt).__module__)
    state = saver.save(learn.opt.state_dict(), "opt")
    if saver.needs:
        raise TypeError(
            f"{type(learn.opt).__name__}: {min(saver.needs)} is an object that a resumed run could not make: "
            "a checkpoint holds tensors, numbers, text and objects of classes in the optimizer's own module"
        )
    return {
        "model": {name: compact(t) for name, t in tensors.items()},
        "extra": Saver([], "").save(extra, "model"),
        "grads": {name: compact(grad) for name, grad in learn.mean.joint(learn, tensors).items()},
        "opt": {
            "class": type(learn.opt).__name__,
            "params": [[names.get(id(p), "?") for p in group["params"]] for group in learn.opt.param_groups],
            "gained": learn._made.gained(learn.opt.param_groups),
            "state": state,
        },
        **({"loss": loss} if loss else {}),
        **({"extra_grads": kept} if kept else {}),
        **({"others": {name: compact(p) for name, p in others.items()}} if others else {}),
    }


def capture_rest(learn: Learner, position: Position, needs: set[str] | None = None) -> Saved:
    """Return all other state: position, callbacks, history, loaders and random numbers.

    Args:
        needs: is filled with the paths of objects in callbacks that can only be loaded into existing ones.
    """
    savers = Savers(learn)
    cbs = _of_callbacks(learn, savers, set() if needs is None else needs)
    saver, model = savers.of(learn, _OWN_ADVICE), learn.model
    norms = set(learn.modes.frozen_norms)
    drawing = capture_drawing(learn, keyed(learn.cbs), savers.shared)
    return {
        "minilearn": FORMAT,
        "run": learn.run_id,
        "fit": {
            "index": learn.n_fits,
            **capture_fit(learn),
            "cancelled_by": learn.cancelled_by.get("fit", "") if position.is_over else "",
        },
        "position": position.form(),
        "mean": saver.save(learn.mean.state_dict(learn), "mean"),
        "fields": saver.save({name: getattr(learn, name) for name in _FIELDS}, "learn"),
        "own": saver.save(learn.own_fields(), "learn"),
        "attributes": savers.attributes(learn),
        "identities": savers.identities.form(),
        "history": Saver([], "").save(learn.history, "history"),
        "frozen": [plain_name(model, name) for name, p in model.named_parameters() if not p.requires_grad],
        "in_eval": [plain_name(model, name) for name, m in model.named_modules() if not learn.modes.of(m)],
        "frozen_norms": [plain_name(model, k) for k, m in model.named_modules() if m in norms],
        "cbs": cbs,
        "loaders": {
            name: saver.save(state_of(learn, loader, position.is_inside), name)
            for name, loader in loaders_of(learn).items()
        },
        "rng": saver.save(packed_rng(), "rng"),
        **({"drawing": drawing} if drawing else {}),
    }


def needs_of(learn: Learner) -> set[str]:
    """Return the paths of objects in callbacks that exist now and can only be loaded into existing ones.

    It looks at callbacks only: the rows of history, of which each epoch adds some, cost more each time.
    """
    needs: set[str] = set()
    _of_callbacks(learn, Savers(learn), needs)
    return needs


def _of_callbacks(learn: Learner, savers: Savers, needs: set[str]) -> Saved:
    """Return the states of the callbacks; add to `needs` what can only be loaded into existing objects."""
    cbs = {}
    for key, cb in keyed(learn.cbs).items():
        saver = savers.of(cb)
        cbs[key] = saver.save(cb.state_dict(), key)
        needs |= saver.needs
    return cbs


def capture_fit(learn: Learner) -> Saved:
    """Return what a resumed fit must have the same: epochs, phases and steps."""
    return {
        "n_epochs": learn.n_epochs,
        "phases": list(learn.phases),
        "epoch_steps": list(learn.epoch_steps),
        **({"sets": list(learn.plan.sets)} if learn.plan.sets != ("eval",) else {}),
        **({"epoch_batches": batches} if (batches := learn.dls.epoch_batches) else {}),
    }


def capture_beginning(learn: Learner) -> Saved:
    """Return a copy of what hooks at the beginning of an epoch or a phase see and may change.

    That is counters, rows, random numbers, loaders, and the states of callbacks with such hooks, not weights.
    """
    savers = Savers(learn)
    cbs = {
        key: savers.of(cb).save(cb.epoch_state(), key)
        for key, cb in keyed(learn.cbs).items()
        if any(hasattr(cb, event) for event in _READ_AT_BEGINNINGS)
    }
    saver = savers.of(learn, _OWN_ADVICE)
    return deepcopy(
        {
            "fields": saver.save({name: getattr(learn, name) for name in _FIELDS}, "learn"),
            "own": saver.save(learn.own_fields(), "learn"),
            "attributes": savers.attributes(learn),
            "identities": savers.identities.form(),
            "n_rows": len(learn.history),
            "cbs": {key: state for key, state in cbs.items() if state},
            "loaders": {
                name: saver.save(state_of(learn, loader), name) for name, loader in loaders_of(learn).items()
            },
            "rngs": [saver.save(state, "rng") for state in learn.processes.all_gather(packed_rng())],
        }
    )


def without_what_is_the_same(beginning: Saved, saved: Saved) -> Saved:
    """Return a beginning with SAME in place of each state that equals the checkpoint's."""
    parts = {}
    for part in ("cbs", "loaders", "own"):
        now = saved[part]
        parts[part] = {
            key: state if key not in now or first_difference(state, now[key]) else SAME
            for key, state in beginning[part].items()
        }
    return beginning | parts


def with_what_is_the_same(beginning: Saved, saved: Saved) -> Saved:
    """Return a beginning with each SAME replaced by the state of the checkpoint that it is in."""
    parts = {}
    for part in ("cbs", "loaders", "own"):
        states = beginning[part].items()
        parts[part] = {key: saved[part][key] if state == SAME else state for key, state in states}
    return beginning | parts


def restore_beginning(learn: Learner, beginning: Saved, rows: list[Any]) -> list[Before]:
    """Restore the state with which an epoch or a phase began; see `capture_beginning`.

    Args:
        rows: the history at that time, perhaps with later rows.

    Returns: which attributes it set in the model, the loss and the optimizer; see `put_attributes`. A
        checkpoint lacks those that are as in the script, so they have to be put back before it is restored.
    """
    device = next(learn.model.parameters()).device
    check_own(learn, beginning["own"])
    objects = Objects(beginning.get("identities"), _shared(learn))
    _put_cbs(learn, beginning["cbs"], device, objects)
    loader = Loader(device, type(learn).__module__, objects)
    _put_own(learn, beginning["own"], loader)
    before = _put_attributes(learn, beginning.get("attributes", {}), device, objects)
    _put_fields(learn, beginning["fields"], loader)
    learn.history[:] = rows[: beginning["n_rows"]]
    restore_loaders(learn, beginning["loaders"])
    rngs = beginning["rngs"]
    set_rng_state(loader.load(rngs[learn.rank if learn.rank < len(rngs) else 0], None, ""))
    return before


def restore_loaders(learn: Learner, saved: Saved) -> None:
    """Restore the states of the loaders; the last one is that of the phase."""
    loader = Loader(torch.device("cpu"), "")
    for name, part in loaders_of(learn).items():
        if saved.get(name):
            learn.dls.adapter_of(part).load_state(loader.load(saved[name], None, ""))


def keyed(cbs: tuple[Callback, ...]) -> dict[str, Callback]:
    """Return callbacks by name: the class, numbered if there are several; without the one that restores."""
    found: dict[str, Callback] = {}
    for cb in cbs:
        if cb.order == Order.RESTORE:
            continue
        n = sum(type(other).__name__ == type(cb).__name__ for other in found.values())
        found[f"{type(cb).__name__} {n + 1}" if n else type(cb).__name__] = cb
    return found


def loaders_of(learn: Learner) -> dict[str, Any]:
    """Return a fit's loaders by name; "now" is that of the phase, which a callback may have replaced."""
    is_inside = learn.scopes and learn.scopes[-1] in ("train", "validate")
    found = {"train": learn.dls.train, "valid": learn.dls.valid}
    found |= {name: learn.dls.adapters[name].loader for name in learn.dls.valid_keys}
    return found | ({"now": learn.dl} if is_inside else {})


def state_of(learn: Learner, loader: Any, is_inside: bool = False) -> Any:
    """Return the state of a loader; None if it has none.

    Args:
        is_inside: whether the learner is at rest in a phase, which reads on: not if the phase was cancelled.
    """
    if loader is None:
        return None
    adapter = learn.dls.adapter_of(loader)
    return adapter.state() if is_inside else adapter.state_now()


def _others(learn: Learner) -> dict[str, torch.Tensor]:
    """Return by name what the optimizer trains and neither the model, the loss nor a callback shows.

    That is what only `param_groups` knows, such as layers in a plain list, or a tensor of a closure.
    """
    known = {id(t) for t in [*tensors_by_name(learn.model).values(), *extra_params(learn).values()]}
    groups = enumerate(getattr(learn.opt, "param_groups", ()))
    named = {f"opt[{i}][{j}]": p for i, group in groups for j, p in enumerate(group["params"])}
    return {name: p for name, p in named.items() if id(p) not in known}


def check_opt(opt: Any) -> None:
    """Raise TypeError for an optimizer whose state cannot be saved."""
    if not all(hasattr(opt, name) for name in ("state_dict", "load_state_dict", "param_groups")):
        raise TypeError(
            f"{type(opt).__name__} has no state_dict, so a checkpoint could not hold its state: expected a "
            "torch.optim.Optimizer, or one on minilearn.optim.Optimizer"
        )


class Savers:
    """Make savers for the parts of a learner, which know of each other's objects."""

    def __init__(self, learn: Learner, begun: Begun | None = None) -> None:
        self.shared, self.begun = _shared(learn), learn.run.begun if begun is None else begun
        self.identities = Identities(self.shared, self.begun)
        trained = params_of(learn.opt) if hasattr(learn.opt, "param_groups") else []
        self.trained = {id(p) for p in trained} | elsewhere(learn)

    def of(self, owner: Any, advice: str = ADVICE) -> Saver:
        """Return a saver for what an object keeps."""
        more = (self.identities, self.begun, self.trained)
        return Saver(self.shared.values(), type(owner).__module__, advice, *more)

    def attributes(self, learn: Learner) -> Saved:
        """Return what changed in the plain attributes of the model, the loss and the optimizer."""
        roots = _roots(learn).items()
        found = {name: self.of(root).attributes(root, name, with_modes=False) for name, root in roots}
        return {name: values for name, values in found.items() if values}


def _roots(learn: Learner) -> dict[str, Any]:
    """Return the model, the loss and the optimizer, if they are objects."""
    loss = owner_of(learn.loss_func)
    saved = (None, learn, learn.model, *learn.cbs)  # as parts of their own; a loss may be a method of one
    of_loss = {} if any(loss is part for part in saved) else {"loss_func": loss}
    return {"model": learn.model, **of_loss, "opt": learn.opt}


def _shared(learn: Learner) -> dict[str, Any]:
    """Return by name what is saved separately, or belongs to the program."""
    dls, opt = learn.dls, learn.opt
    parts = {"learn": learn, "learn.dls": dls, "learn.dl": learn.dl, "learn.history": learn.history}
    parts |= {"learn.dls.train": dls.train, "learn.dls.valid": dls.valid, "learn.dls.test": dls.test}
    parts |= {f"learn.dls.{name}": dls.adapters[name].loader for name in dls.valid_keys}
    parts |= {"learn.opt": opt, "learn.opt.param_groups": opt.param_groups, "learn.opt.state": opt.state}
    parts |= {f"learn.opt.param_groups[{i}]": group for i, group in enumerate(opt.param_groups)}
    state = getattr(opt, "state", {})
    parts |= _of_opt({i: state[p] for i, p in enumerate(params_of(opt)) if p in state})
    parts |= {f"learn.cbs.{key}": cb for key, cb in keyed(learn.cbs).items()}
    for name, root in (("learn.loss_func", owner_of(learn.loss_func)), ("learn.model", learn.model)):
        parts[name] = root
        if isinstance(root, torch.nn.Module):
            named = (root.named_modules(), root.named_parameters(), root.named_buffers())
            parts |= {f"{name}.{inner}": part for items in named for inner, part in items if inner}
    return {name: part for name, part in parts.items() if part is not None}


def _of_opt(state: dict[Any, Any]) -> Saved:
    """Return by name the tensors of the state of an optimizer's parameters, which are given by number."""
    known = {i: values for i, values in state.items() if _is_of_param(i, values)}
    named = ((f"learn.opt.state[{i}].{k}", v) for i, values in known.items() for k, v in values.items())
    return {name: value for name, value in named if isinstance(value, torch.Tensor)}


# Restoring it -------------------------------------------------------------------------------------


def restore(learn: Learner, saved: Saved) -> None:
    """Restore the state, except random numbers, into a learner that was checked to match.

    Users' code runs first: if it raises, weights, optimizer and history are as they were.
    """
    device = next(learn.model.parameters()).device
    check_own(learn, saved["own"])
    opt_state = Loader(device, type(learn.opt).__module__).load(saved["opt"]["state"], None, "opt")
    objects = Objects(saved.get("identities"), _shared(learn) | _of_opt(opt_state.get("state", {})))
    kept = _put_cbs(learn, saved["cbs"], device, objects)
    loader = Loader(device, type(learn).__module__, objects)
    kept += _put_own(learn, saved["own"], loader)
    _put_attributes(learn, saved.get("attributes", {}), device, objects)
    loader = Loader(device, type(learn).__module__)
    extra = loader.load(saved["extra"], None, "model")
    if extra:
        learn.model.load_state_dict(extra, strict=False)
    _put_opt(learn.opt, opt_state)
    others, saved_others = _others(learn), saved.get("others", {})
    with torch.no_grad():
        for name in others.keys() & saved_others.keys():
            others[name].copy_(like(saved_others[name], others[name]))
    for name, p in (extra_params(learn) | others).items():
        grad = saved.get("extra_grads", {}).get(name)
        p.grad = None if grad is None else like(grad.to(p.device, copy=True), p)
    restore_loss(learn, saved.get("loss"), loader)
    frozen, in_eval = set(saved["frozen"]), set(saved["in_eval"])
    with torch.no_grad():
        for name, t in tensors_by_name(learn.model).items():
            t.copy_(like(saved["model"][name], t))
            grad = saved["grads"].get(name)
            t.grad = None if grad is None else like(grad.to(t.device, copy=True), t)
            if isinstance(t, torch.nn.Parameter):
                t.requires_grad_(name not in frozen)
    named = [(plain_name(learn.model, name), module) for name, module in learn.model.named_modules()]
    frozen_norms = [module for name, module in named if name in saved["frozen_norms"]]
    learn.modes.restore({module: name not in in_eval for name, module in named}, frozen_norms)
    learn.history[:] = loader.load(saved["history"], None, "history")
    _put_fields(learn, saved["fields"], loader)
    mean = saved.get("mean") or _mean_of_version_0_1(saved)
    learn.mean.load_state_dict(learn, loader.load(mean, None, "mean"))
    restore_drawing(learn, keyed(learn.cbs), _shared(learn), saved.get("drawing", {}))
    settings = saved.get("settings", {})  # they were compared already
    warn_of_places(f"{key}.{name}" for key, name in kept if name not in settings.get(key, {}))


def _mean_of_version_0_1(saved: Saved) -> Saved:
    """Return the state of the mean over a step, which GradientAccumulationCB had in version 0.1."""
    state = saved["cbs"].get("GradientAccumulationCB") or {}
    n, total, unit = state.get("_n", 0), state.get("_weight", 0.0), state.get("_size", 0)
    unit = float(unit) if n else 0.0
    was = {"n": n, "has_rest": n > 0, "_is_accumulated": n > 0}
    return {**was, "_total": total, "_unit": unit, "_common": 0.0}


def _put_own(learn: Learner, saved: Saved, loader: Loader) -> list[tuple[str, str]]:
    """Restore what users gave the learner; return what keeps its value, with "learn"."""
    own = learn.own_fields()
    saved, kept = without_places(saved, own)
    vars(learn).update(loader.load(saved, own, "learn"))
    return [("learn", name) for name in kept]


def _put_fields(learn: Learner, saved: Saved, loader: Loader) -> None:
    fields = loader.load(saved, None, "learn")
    vars(learn).update({name: fields[name] for name in _FIELDS})


def _put_cbs(learn: Learner, saved: Saved, device: torch.device, objects: Objects) -> list[tuple[str, str]]:
    """Restore the callbacks' states; if one raises, those before it get their old state back.

    Return each callback's name with the name of a value that it keeps, because a checkpoint sets no path.
    """
    cbs = {key: cb for key, cb in keyed(learn.cbs).items() if key in saved}
    savers = Savers(learn)
    before = {key: deepcopy(savers.of(cb).save(cb.state_dict(), key)) for key, cb in cbs.items()}
    done: list[str] = []
    kept: list[tuple[str, str]] = []
    try:
        for key, cb in cbs.items():
            kept += [(key, name) for name in _put_cb(cb, key, saved[key], device, objects)]
            done.append(key)
    except BaseException:
        objects = Objects(savers.identities.form(), _shared(learn))
        for key in done:
            _put_cb(cbs[key], key, before[key], device, objects)
        raise
    return kept


def _put_cb(cb: Callback, key: str, saved: Saved, device: torch.device, objects: Objects) -> list[str]:
    loader, now, kept = Loader(device, type(cb).__module__, objects), dict(cb.state_dict()), list[str]()
    names = saved.keys()
    if type(cb).load_state_dict is Callback.load_state_dict:  # else the class's own decides
        check_names(cb, [name for name, value in saved.items() if value != LEFT], now, key)
        saved, kept = without_places(saved, now)
    state = loader.load(saved, dict(now), key)
    if type(cb).state_dict is Callback.state_dict:
        for name in now.keys() - names:  # added later
            delattr(cb, name)
        now = {}
    cb.load_state_dict(now | state)  # a beginning may have fewer keys
    return kept


def _put_attributes(learn: Learner, saved: Saved, device: torch.device, objects: Objects) -> list[Before]:
    before: list[Before] = []
    for name, root in _roots(learn).items():
        loader = Loader(device, type(root).__module__, objects)
        before += put_attributes(root, saved.get(name, {}), loader.load, name)
    return before


def _is_of_param(key: Any, values: Any) -> bool:
    """Whether an entry of an optimizer's state is that of a parameter; some keep others beside them."""
    return isinstance(key, int | torch.Tensor) and isinstance(values, dict)


def _put_opt(opt: Any, state: Any) -> None:
    groups = opt.param_groups
    params = [p for group in groups for p in group["params"]]
    saved_state = state.get("state", {})  # a wrapper may keep it elsewhere
    of_params = {i: values for i, values in saved_state.items() if _is_of_param(i, values)}
    for i, values in of_params.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == params[i].shape:
                values[key] = like(value, params[i])
    opt.load_state_dict(state)
    if (loaded := opt.param_groups) is not groups:  # the same dicts as before, because callbacks hold them
        for old, new in zip(groups, loaded, strict=True):
            if old is not new:
                old.clear()
                old.update(new)
        for owner in (opt, *vars(opt).values()):  # a wrapper may show those of the optimizer in it
            if getattr(owner, "__dict__", {}).get("param_groups") is loaded:
                owner.param_groups = groups
    # torch casts state to the dtype of its parameter, which loses bits if the state is wider.
    for i, saved in of_params.items():
        for key, value in saved.items():
            now = opt.state[params[i]].get(key)
            if isinstance(value, torch.Tensor) and now is not None and now.dtype != value.dtype:
                opt.state[params[i]][key] = value.to(now.device)
    keep_order_of_memory(opt)
