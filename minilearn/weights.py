"""A model's weights under the names of the plain model, in safetensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .arguments import path as checked_path
from .files import read_torch, written_whole
from .processes import like, whole

SUFFIX = ".pt"  # of a checkpoint
_ZIP = b"PK\x03\x04"  # with which torch's files begin; safetensors begin with the length of their header
_CHECKSUM = "sha256"  # in the metadata of a file that `save` wrote

# The names under which wrappers keep their module: torch.compile, FSDP, activation checkpointing.
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)  # these call it `module`


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's module inside torch.compile, DataParallel and the like."""
    while (inner := next((part for part in _parts(model) if _is_inner(model, part)), None)) is not None:
        model = getattr(model, inner)
    return model


def _parts(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


def _is_inner(module: Any, part: str) -> bool:
    return part in _INNER or (part == "module" and isinstance(module, _WRAPPERS))


def plain_name(model: nn.Module, name: str) -> str:
    """Return the name of a parameter, buffer or module without the parts that wrappers add."""
    kept, module = [], model
    for part in name.split("."):
        if not _is_inner(module, part):
            kept.append(part)
        module = getattr(module, part, None)  # type: ignore[assignment]
    return ".".join(kept)


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, including those that state_dict() lacks, by their plain names."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {plain_name(model, name): t for name, t in named}


def check_alike(
    found: dict[str, Tensor], model: dict[str, Tensor], path: Path, what: str = "the model"
) -> None:
    """Raise ValueError, with the first differences, unless a file's tensors are those of the model."""
    said = []
    for name, t in model.items():
        if name not in found:
            said.append(f"{name} {tuple(t.shape)} is only in {what}")
        elif t.shape != found[name].shape:
            said.append(f"{name} is {tuple(found[name].shape)} in the file and {tuple(t.shape)} in {what}")
    said += [f"{name} {tuple(t.shape)} is only in the file" for name, t in found.items() if name not in model]
    if said:
        more = f"; {len(said) - 3} more" if len(said) > 3 else ""
        raise ValueError(f"{path} is of {what.replace('the', 'another')}: {'; '.join(said[:3])}{more}")


def save(model: nn.Module, path: str | Path, is_first: bool = True) -> None:
    """Write a model's weights, its state_dict, in safetensors; see `Learner.save`.

    Args:
        is_first: whether this is the first of the processes; the others only give their shards.
    """
    from safetensors.torch import save as to_bytes

    inner = unwrapped(model)
    tensors = {}
    for name, value in inner.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}: safetensors holds only tensors; a checkpoint, by "
                "CheckpointCB, holds all of a model"
            )
        # A copy of each, because safetensors refuses names that share memory, as tied weights do.
        value = whole(value.detach()).cpu()
        tensors[plain_name(inner, name)] = value.clone(memory_format=torch.contiguous_format)
    if not is_first:
        return
    path = checked_path("path", path)
    if _is_torchs(path):
        raise ValueError(
            f"save({str(path)!r}): a checkpoint, or another file of torch, is there and would be lost: "
            "choose another name, such as model.safetensors, or delete it first"
        )
    with written_whole(path) as file:
        contents = to_bytes(tensors, metadata={"format": "pt", _CHECKSUM: _checksum(tensors)})
        file.writelines(_in_order(contents))


def _in_order(contents: bytes) -> tuple[bytes, memoryview]:
    """Return the header of safetensors with its keys in order, which else is that of a hash, and the rest."""
    start = 8 + int.from_bytes(contents[:8], "little")
    header = json.dumps(json.loads(contents[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # as the format asks, the tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header, memoryview(contents)[start:]


def load(model: nn.Module, path: str | Path) -> None:
    """Read weights into a model, from safetensors or from a checkpoint; see `Learner.load`."""
    path = checked_path("path", path)
    inner, (found, is_whole) = unwrapped(model), _read(path)
    kept = {plain_name(inner, name): t for name, t in inner.state_dict().items() if isinstance(t, Tensor)}
    own = tensors_by_name(inner)
    needed = own if is_whole else kept  # a weights file has only state_dict()
    own = kept | own
    check_alike(found, {name: t for name, t in own.items() if name in needed or name in found}, path)
    extra = {name: found.pop(name) for name in list(found) if name.endswith("_extra_state")}
    if extra:
        names = {plain_name(inner, name): name for name in inner.state_dict()}
        inner.load_state_dict({names[name]: t for name, t in extra.items()}, strict=False)
    with torch.no_grad():
        for name, t in found.items():
            own[name].copy_(like(t, own[name]))


def _read(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors of a file, whatever its name is, and whether it is a checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not _is_torchs(path):
        return _read_safetensors(path), False
    saved = read_torch(path)
    if not isinstance(saved, dict) or "minilearn" not in saved:
        raise ValueError(f"{path} is not a checkpoint of minilearn")
    return saved["best"] if "best" in saved else saved["model"], True  # perhaps the best average


def _is_torchs(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    contents = path.read_bytes()
    try:
        tensors = from_bytes(contents)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short, or is neither safetensors nor a checkpoint ({error})"
        ) from error
    metadata = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")]).get("__metadata__") or {}
    if metadata.get(_CHECKSUM) not in (None, _checksum(tensors)):
        raise ValueError(f"{path} is damaged, or was changed: its checksum is not that of its tensors")
    return tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of contiguous tensors on the CPU."""
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {list(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
