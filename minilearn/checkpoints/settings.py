"""The settings of a run: what the script says, how it is described, and how a resumed fit compares it.

The rule: a resumed fit takes from the checkpoint what `state_dict` names, of the optimizer, of a scheduler
and of each callback (by default all its attributes). Everything else is as the script says, and so is what
belongs to the program wherever it is: paths, functions and classes; the loss, `unpack`, and what the modules
of the model keep besides their tensors, unless training changed it. Each difference is warned of, with the
value that is used.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import platform
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..callback import Callback
from ..data.fingerprint import data_settings, fingerprint, short_digest
from ..optim.groups import SCHEDULE_KEYS
from ..weights import plain_name
from .begun import owner_of, settings_in
from .codec import LEFT
from .snapshot import Saved, keyed
from .trust import has_place

if TYPE_CHECKING:
    from pathlib import Path

    from ..learner import Learner

MODEL, DATA, DATA_NUMBERS = "the model", "the data", "the attributes of the data"
# Of the program, so that the script's count. With where checkpoints have what training changed of them.
LEARNER, LOSS, MODULES = "the learner", "the loss", "the modules of the model"
_OF_PROGRAM = {LEARNER: "", LOSS: "loss_func", MODULES: "model"}
_SHOWN = 3  # differences of one kind
_DEPTH, _MANY, _LONG = 4, 50, 500  # how much of a value is described: levels, elements, characters
# Of an optimizer: how, not what; and what a schedule leaves, which the next one overwrites.
_LEFT_OUT = ("fused", "foreach", "capturable", "differentiable", *SCHEDULE_KEYS)
_MISSING = "<not given>"


# What they are ------------------------------------------------------------------------------------


def settings_of(learn: Learner) -> Saved:
    """Return the settings of a fit that begins, as numbers, text, lists and dicts.

    They are the arguments of each callback, the optimizer's hyperparameters, the loss and `unpack`, numbers
    and text in the modules of the model and of the loss, what is frozen, and the fingerprint of the data.
    """
    found: Saved = {
        key: arguments_of(cb, learn.n_fits == learn.n_epochs_trained == 0)
        for key, cb in keyed(learn.cbs).items()
    }
    for i, group in enumerate(learn.opt.param_groups):
        betas = {f"betas[{j}]": beta for j, beta in enumerate(group.get("betas") or ())}
        found[f"group {i} of the optimizer"] = {
            key: described(value)
            for key, value in (group | betas).items()
            if type(value) in (bool, int, float, str, type(None)) and key not in _LEFT_OUT
        }
    model = learn.model
    found[MODEL] = {
        "frozen": [plain_name(model, name) for name, p in model.named_parameters() if not p.requires_grad],
        "in evaluation mode": [
            plain_name(model, k) for k, m in model.named_modules() if not learn.modes.of(m)
        ],
    }
    for key, values in _of_program(learn).items():
        found[key] = values if learn.run.begun is None else learn.run.begun.unchanged(key, values)
    found[DATA_NUMBERS] = {}
    found[DATA] = {"classes": described(learn.dls.classes)}
    for name, adapter in learn.dls.adapters.items():
        found[DATA] |= {f"{name}.{key}": value for key, value in fingerprint(adapter).items()}
        first = learn.dls.first_settings.get(name, {})
        found[DATA_NUMBERS] |= {
            f"{name}.{key}": described(value)
            for key, value in data_settings(adapter.loader).items()
            if key in first and first[key] == value  # not a counter that reading changes
        }
    return found


def _of_program(learn: Learner) -> dict[str, Saved]:
    loss, parts = learn.loss_func, {MODULES: settings_in(learn.model)}
    if (owner := owner_of(loss)) is not None and owner is not learn.model:
        parts[LOSS] = settings_in(owner)
    is_object = loss is not None and loss is owner
    name = type(loss).__name__ if is_object else described(loss)
    found = {key: {k: described(v) for k, v in values.items()} for key, values in parts.items()}
    return {LEARNER: {"loss_func": name, "unpack": described(learn.unpack_func)}, **found}


def arguments_of(cb: Callback, is_first: bool = True) -> dict[str, Any]:
    """Return the constructor's arguments of a callback by name, described, defaults included.

    Args:
        is_first: whether no training has changed its attributes yet. Then a number or text that the script
            set in place of an argument counts.
    """
    parameters, own = inspect.signature(type(cb).__init__).parameters, vars(cb)
    try:
        args, kwargs = cb._given
        bound = inspect.signature(type(cb).__init__).bind(cb, *args, **kwargs)
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])
    except (AttributeError, TypeError):  # a copy, or a class with a __new__ of its own
        values = {name: own[name] for name in parameters.keys() & own.keys()}
    plain = (bool, int, float, str)
    for name in own.keys() & values.keys() if is_first else ():
        if isinstance(values[name], plain) and isinstance(own[name], plain):
            values[name] = own[name]
    found: dict[str, Any] = {}
    for name, value in values.items():
        if parameters[name].kind is inspect.Parameter.VAR_KEYWORD and isinstance(value, Mapping):
            found |= {str(key): described(part) for key, part in value.items()}
        else:
            found[name] = described(value)
    return found


def described(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value as numbers, text, lists and dicts, the same in each process."""
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int:
        return value if value.bit_length() < _LONG else hex(value)
    if isinstance(value, str):
        is_short = len(value) <= _LONG
        return str(value) if is_short else f"{value[:40]}... ({len(value)} characters, {short_digest(value)})"
    if isinstance(value, PurePath | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Tensor | np.ndarray):
        return f"<{type(value).__name__} {tuple(value.shape)} {value.dtype} {short_digest(value)}>"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, range):
        return repr(value)
    if not depth:
        return "..."
    for form_of in (_described_container, _described_function, _described_object):
        if (form := form_of(value, depth - 1)) is not None:
            return form
    return f"<{type(value).__name__}>"


def _described_container(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        if len(value) <= _MANY:
            return {str(key): described(part, depth) for key, part in value.items()}
    elif isinstance(value, set | frozenset):
        return sorted((described(part, depth) for part in value), key=repr)
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        if len(value) <= _MANY:
            return [described(part, depth) for part in value]
    else:
        return None
    return f"<{type(value).__name__} of {len(value)}, {short_digest(value)}>"


def _described_function(value: Any, depth: int) -> Any:
    if isinstance(value, partial):
        made = {"partial": described(value.func, depth), "args": described(value.args, depth)}
        return made | described(value.keywords, depth + 1)
    if isinstance(value, MethodType):
        return f"<function {type(value.__self__).__name__}.{value.__name__}>"
    if isinstance(value, type):
        return f"<class {value.__qualname__}>"
    if isinstance(value, BuiltinFunctionType):
        return f"<function {value.__qualname__}>"
    if isinstance(value, FunctionType) and str(value.__module__).startswith("torch."):
        return f"<function {value.__qualname__}>"  # whose code depends on the version
    if isinstance(value, FunctionType):
        code = value.__code__
        inside = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        parts = [code.co_code.hex(), code.co_names, [_constant(x) for x in code.co_consts]]
        parts += [described(x, depth) for x in (value.__defaults__, value.__kwdefaults__, inside)]
        return f"<function {value.__qualname__} #{short_digest(repr(parts))}>"
    return None


_EMPTY = CellType()


def _constant(value: Any) -> Any:
    """Return a constant of a function's code, without what differs between processes."""
    if isinstance(value, CodeType):  # of a function inside
        return [value.co_code.hex(), value.co_names, [_constant(x) for x in value.co_consts]]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


def _described_object(value: Any, depth: int) -> Any:
    name = type(value).__name__
    if isinstance(value, nn.Module):
        return f"<{name}, {sum(p.numel() for p in value.parameters())} parameters>"
    if hasattr(value, "_fields"):
        parts = dict(zip(value._fields, value, strict=True))
    elif dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    else:
        parts = getattr(value, "__dict__", {})
        if not all(isinstance(part, int | float | str | tuple | list | None) for part in parts.values()):
            return None
    return {"": name} | {key: described(part, depth) for key, part in parts.items()}


# Comparing them -----------------------------------------------------------------------------------


def check_classes(learn: Learner, saved: Saved, path: Path) -> None:
    """Raise ValueError if the classes are those of the checkpoint's run in another order."""
    there = saved.get("settings", {}).get(DATA, {}).get("classes")
    here = described(learn.dls.classes)
    if isinstance(here, list) and isinstance(there, list) and here != there and set(here) & set(there):
        moved = [name for name in here if name in there and here.index(name) != there.index(name)]
        if moved:
            now, before = here.index(moved[0]), there.index(moved[0])
            raise ValueError(
                f"{path} is of a run with other classes: {moved[0]!r} is class {now} here, and was {before} "
                f"({short(here)} and {short(there)}); was a folder renamed?"
            )


def setting_differences(learn: Learner, saved: Saved, now: Saved) -> Iterator[str]:
    """Give a sentence for each setting that differs between a checkpoint's run and this one."""
    before, cbs, made_by = saved.get("settings", {}), keyed(learn.cbs), saved.get("made_by")
    python = platform.python_version().rpartition(".")[0]
    same_python = made_by is not None and made_by["python"].rpartition(".")[0] == python
    for key, values in before.items():
        if key not in now:
            continue  # a callback that was left out
        here = now[key]
        if key in _OF_PROGRAM:
            yield from _of_program_differences(key, here, values, saved, same_python)
            continue
        if key == DATA_NUMBERS:  # only what both have: others may be what a data set remembers
            values = {name: value for name, value in values.items() if name in here}
            here = {name: here[name] for name in values}
        names = list(values) if made_by is None else [*values, *(name for name in here if name not in values)]
        for name in names:
            if name not in here and made_by is None:
                continue  # the file is older than some settings
            a, b = here.get(name, _MISSING), values.get(name, _MISSING)
            if _is_same(a, b, same_python) or (key in cbs and name in cbs[key].free_on_resume):
                continue
            if key == MODEL:
                yield _of_names(name, a, b)
            elif key in (DATA, DATA_NUMBERS):
                yield f"{DATA} differ from those of the resumed run: {name}={short(a)} here, {short(b)} there"
            else:
                state = saved["cbs"].get(key) or {}
                is_there = key not in cbs or _is_from_the_file(cbs[key], name, a, b, state)
                used = "which is used" if is_there else "and the one here is used"
                yield f"{key} has {name}={short(a)} here, but {short(b)} in the resumed run, {used}"


def _of_program_differences(
    key: str, here: Saved, there: Saved, saved: Saved, same_python: bool
) -> Iterator[str]:
    """Give a sentence for each of the first differences in the loss, `unpack` or a module, one for the rest.

    Only what both have is compared.
    """
    odd = [name for name in there if name in here and not _is_same(here[name], there[name], same_python)]
    owner = MODEL if key == MODULES else key
    changed = saved.get("attributes", {}).get(_OF_PROGRAM[key], {})
    for name in odd[:_SHOWN]:
        module, _, attribute = name.rpartition(".")
        used = "and the one here is used"
        if attribute in changed.get(module, {}):
            used = "which changed it in training, and uses its own"
        a, b = short(here[name]), short(there[name])
        yield f"{owner} has {name}={a} here, but {b} in the resumed run, {used}"
    if len(odd) > _SHOWN:
        yield f"{owner} has {len(odd) - _SHOWN} more differences of this kind, such as in {odd[_SHOWN]}"


def _is_from_the_file(cb: Callback, name: str, here: Any, there: Any, state: Saved) -> bool:
    """Whether a checkpoint brings the value of a setting back."""
    if any(isinstance(x, str) and x.startswith(("<function", "<class")) for x in (here, there)):
        return False
    if name in ("monitor", "mode") and "best_of" in state:
        return False
    if name in state:
        return state[name] != LEFT and not has_place(state[name], vars(cb).get(name))
    if type(cb).state_dict is Callback.state_dict:  # under another name
        return not (isinstance(there, str) and has_place(there, here))
    return cb.settings_in_state


def _of_names(what: str, here: list[str], there: list[str]) -> str:
    """Say which parts of the model are frozen, or in evaluation mode, only here or only there."""
    only_here = [name for name in here if name not in there]
    only_there = [name for name in there if name not in here]
    parts = [
        f"{', '.join(repr(name) for name in names[:3])}{' and others' * (len(names) > 3)} {where}"
        for names, where in ((only_here, "only here"), (only_there, "only in the resumed run"))
        if names
    ]
    return f"{MODEL} has {what}: {'; '.join(parts)}; it is as in the resumed run"


def _is_same(a: Any, b: Any, same_python: bool) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key], same_python) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_is_same(x, y, same_python) for x, y in zip(a, b, strict=True))
    is_text = isinstance(a, str) and isinstance(b, str)
    if is_text and (not same_python or (" #" in a) != (" #" in b)):  # bytecode differs between versions
        a, b = re.sub(r" #\w+>", ">", a), re.sub(r" #\w+>", ">", b)
    return bool(a == b) or (a != a and b != b)


def short(value: Any) -> str:
    """Return a value in at most 80 characters."""
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
