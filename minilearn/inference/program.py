"""Program: the graph of a model on plain weights, read from a .pt2 file without running code of the file."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .operators import operator_of

_MEMBER = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|models/model\.json|extra/minilearn\.json|data/sample_inputs/model\.pt"  # the last one is not read
    r"|data/(weights/weight|constants/tensor)_\d+|data/(weights|constants)/model_(weights|constants)_config\.json)"
)
FORMAT = 1  # of extra/minilearn.json
_MOST_TEXT = 2**28  # bytes of JSON
_DTYPES = {  # by torch's numbers for them
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16},
    **{7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16},
}
_FORMATS = {
    **{1: torch.contiguous_format, 2: torch.channels_last},
    **{3: torch.channels_last_3d, 4: torch.preserve_format},
}
_UNREADABLE = (  # what reading a damaged or changed file may raise
    *(ValueError, KeyError, TypeError, IndexError, RecursionError),
    *(zipfile.BadZipFile, NotImplementedError, zlib.error, EOFError),
)


@dataclass(frozen=True)
class Node:
    """An operator, what it is applied to, and the names of what it gives."""

    operator: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    outputs: list[Any]


@dataclass(frozen=True)
class Name:
    """The name of a value that another node gives."""

    name: str


class Program:
    """Compute what a model computed, from its graph and its weights.

    Each operator comes from a list of pure functions, and each weight from plain bytes: nothing in the file
    is unpickled, evaluated or imported.

    Args:
        graph: torch.export's, as JSON has it.
        signature: of the same: which input is which weight.
        weights: name in the model -> tensor.

    Raises: ValueError for a graph that is not a pure function of its inputs, or has another operator.
    """

    def __init__(self, graph: dict[str, Any], signature: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.nodes = [node for given in graph["nodes"] if (node := _node(given)) is not None]
        self.outputs = [_value(output) for output in graph["outputs"]]
        self.is_single = len(self.outputs) == 1
        self.weights: dict[str, Tensor] = {}
        self.inputs: list[str] = []
        for given, spec in zip(graph["inputs"], signature["input_specs"], strict=True):
            kind, found = _only(spec)
            name = _value(given)
            if kind == "user_input":
                self.inputs.append(name.name if isinstance(name, Name) else "")
            elif kind in ("parameter", "buffer", "tensor_constant") and isinstance(name, Name):
                self.weights[name.name] = weights[found[f"{kind}_name"]]
            else:
                raise ValueError(f"an input of the kind {kind}: expected a tensor, a parameter or a buffer")
        for spec in signature["output_specs"]:
            if _only(spec)[0] != "user_output":
                raise ValueError(f"an output of the kind {_only(spec)[0]}: expected what the model returns")

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the model's output, or a tuple of its outputs."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{len(inputs)} inputs: expected {len(self.inputs)}")
        values: dict[str, Any] = {**self.weights, **dict(zip(self.inputs, inputs, strict=True))}
        with torch.inference_mode():
            for node in self.nodes:
                args = [_put(arg, values) for arg in node.args]
                made = node.operator(*args, **{key: _put(arg, values) for key, arg in node.kwargs.items()})
                _store(values, node.outputs, made)
            found = tuple(_put(output, values) for output in self.outputs)
        return found[0] if self.is_single else found


def read(path: str | Path | IO[bytes]) -> tuple[Program, dict[str, Any]]:
    """Read a file that `Learner.export` wrote; return its program and what minilearn wrote beside it.

    Raises: FileNotFoundError; within `readable`, ValueError for another or a damaged file.
    """
    if isinstance(path, str | Path) and not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with zipfile.ZipFile(path) as archive:
        return _read(archive)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn what reading another or a damaged file raises into a ValueError with the path."""
    try:
        yield
    except _UNREADABLE as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else error
        expected = "expected a file that learn.export wrote, and that nobody changed"
        raise ValueError(f"{path} cannot be read ({said}): {expected}") from error


def _read(archive: zipfile.ZipFile) -> tuple[Program, dict[str, Any]]:
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ValueError("a name is in it twice")
    if odd := [name for name in names if not _MEMBER.fullmatch(name)]:
        raise ValueError(f"it has {odd[0]}")
    if len(roots := {name.split("/")[0] for name in names}) != 1:
        raise ValueError(f"it has {len(roots)} folders")
    root = roots.pop()

    def text(name: str) -> Any:
        info = archive.getinfo(f"{root}/{name}")
        if info.file_size > _MOST_TEXT:
            raise ValueError(f"{name} has {info.file_size} bytes")
        return json.loads(archive.read(info))

    if archive.read(f"{root}/byteorder") != b"little":
        raise ValueError("its numbers are not in the order of this machine")
    module = text("models/model.json")["graph_module"]
    weights = {
        name: tensor
        for kind in ("weights", "constants")
        for name, tensor in _tensors(
            archive, f"{root}/data/{kind}", text(f"data/{kind}/model_{kind}_config.json")
        )
    }
    return Program(module["graph"], module["signature"], weights), text("extra/minilearn.json")


def _tensors(archive: zipfile.ZipFile, folder: str, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors of a folder by their names in the model."""
    kept: dict[str, bytearray] = {}
    for name, about in config["config"].items():
        file, meta = str(about["path_name"]), about["tensor_meta"]
        if about["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", file) or meta is None:
            raise ValueError(f"{name} is not stored as plain bytes")
        if file not in kept:
            kept[file] = bytearray(archive.read(f"{folder}/{file}"))
        yield name, _tensor(name, kept[file], meta)


def _tensor(name: str, data: bytearray, meta: dict[str, Any]) -> Tensor:
    dtype = _DTYPES[meta["dtype"]]
    shape, strides = ([_whole(size) for size in meta[key]] for key in ("sizes", "strides"))
    offset = _whole(meta["storage_offset"])
    if not data:
        return torch.empty(shape, dtype=dtype)
    values = torch.frombuffer(data, dtype=dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and not 0 <= offset <= last < len(values):
        raise ValueError(f"{name} is longer than its bytes")
    return values.as_strided(shape, strides, offset)


def _whole(given: dict[str, Any]) -> int:
    value = given["as_int"]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a size of {value!r}")
    return value


def _node(given: dict[str, Any]) -> Node | None:
    operator = operator_of(str(given["target"]))
    if operator is None:
        return None
    args, kwargs = [], {}
    for one in given["inputs"]:
        if one.get("kind") == 2:
            kwargs[str(one["name"])] = _value(one["arg"])
        else:
            args.append(_value(one["arg"]))
    return Node(operator, args, kwargs, [_value(output) for output in given["outputs"]])


def _only(union: dict[str, Any]) -> tuple[str, Any]:
    """Return kind and value of a union as JSON has it, a dict of one entry."""
    (found,) = union.items()
    return found


def _value(union: Any) -> Any:
    """Return the value of an argument, with a Name in place of what another node gives."""
    kind, value = _only(union)
    plain = kind.removeprefix("as_")
    if plain == "none":
        return None
    if plain in ("tensor", "optional_tensor") and isinstance(value, dict):
        return _value(value) if plain == "optional_tensor" else Name(str(value["name"]))
    if plain in ("tensors", "optional_tensors"):
        return [Name(str(one["name"])) if "name" in one else _value(one) for one in value]
    if plain in ("sym_int", "sym_float", "sym_bool"):
        return _symbol(value)
    if plain in ("sym_ints", "sym_floats", "sym_bools"):
        return [_symbol(one) for one in value]
    if plain in ("int", "float", "bool", "string"):
        return _number(value, plain)
    if plain in ("ints", "floats", "bools"):
        return [_number(one, plain[:-1]) for one in value]
    if plain == "scalar_type":
        return _DTYPES[value]
    if plain == "memory_format":
        return _FORMATS[value]
    if plain == "layout":
        return torch.strided
    if plain == "device":
        return torch.device("cpu")
    raise ValueError(f"an argument of the kind {kind}")


def _symbol(union: dict[str, Any]) -> Any:
    kind, value = _only(union)
    return Name(str(value)) if kind == "as_name" else _number(value, kind.removeprefix("as_"))


def _number(value: Any, kind: str) -> Any:
    expected = {"int": int, "float": (int, float, str), "bool": bool, "string": str}[kind]
    if not isinstance(value, expected):  # type: ignore[arg-type]
        raise ValueError(f"{value!r} where {kind} is expected")
    return float(value) if kind == "float" else value


def _put(value: Any, values: dict[str, Any]) -> Any:
    """Return an argument with the values of its names."""
    if isinstance(value, Name):
        return values[value.name]
    return [_put(one, values) for one in value] if isinstance(value, list) else value


def _store(values: dict[str, Any], names: list[Any], made: Any) -> None:
    """Keep what a node gave under its names."""
    if len(names) == 1 and not isinstance(names[0], list):
        names, made = names, [made]
    elif len(names) == 1:  # a list of tensors
        names, made = names[0], list(made)
    for name, value in zip(names, made, strict=True):
        if isinstance(name, Name):
            values[name.name] = value
