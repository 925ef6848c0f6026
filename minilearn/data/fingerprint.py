"""A fingerprint of a data set: how many samples, and a digest of some of them, their names and targets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adapters import Adapter
from .resumable import ResumableLoader, TensorLoader

_N_SAMPLED = 64  # elements of each tensor or list, evenly spaced, the first and the last among them
_INNER = ("dataset", "datasets")
# Where data sets keep what a sample is: torchvision's, those of Hugging Face, Subset.
_OF_SAMPLES = (
    *("tensors", "samples", "imgs", "data", "targets", "labels", "classes", "files", "paths", "indices"),
    *("images", "_fingerprint"),
)
_OF_PLACES = ("root", "dir", "folder", "path")  # how the names of attributes end that say where data are
_MOST_INNER = 16  # data sets in one whose settings are told


def fingerprint(adapter: Adapter) -> dict[str, Any]:
    """Return what tells a loader's data set from another one, the same in each process, as values for JSON.

    Nothing is read through the data set itself: only tensors, arrays and lists that it keeps in memory count.

    Keys:
        dataset: its class.
        n_samples: None if it does not say.
        digest: of evenly spaced elements.
    """
    loader = adapter.loader
    dataset = getattr(loader, "dataset", loader)
    try:
        n_samples = getattr(loader, "n_samples", None) or len(dataset)
    except TypeError:
        n_samples = None
    parts = [adapter.data(), _parts_of(loader), _parts_of(dataset)]
    return {"dataset": type(dataset).__name__, "n_samples": n_samples, "digest": short_digest(parts)}


def data_settings(loader: Any) -> dict[str, Any]:
    """Return the numbers, text and ranges among the attributes of a loader's data set, and of those in it."""
    return dict(_settings_of(getattr(loader, "dataset", loader), "", 4))


def _settings_of(dataset: Any, where: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(dataset, ResumableLoader | Adapter) or hasattr(dataset, "load_state_dict"):
        return  # which says itself what a resumed run has
    for name, value in getattr(dataset, "__dict__", {}).items():
        is_told = name not in _OF_SAMPLES and not name.lower().endswith(_OF_PLACES)
        if is_told and is_setting(value):
            yield where + name, value
    for name in _INNER if depth else ():
        inner = getattr(dataset, name, None)
        if isinstance(inner, list | tuple):
            for i, part in enumerate(inner[:_MOST_INNER]):
                yield from _settings_of(part, f"{where}{name}[{i}].", depth - 1)
        else:
            yield from _settings_of(inner, f"{where}{name}.", depth - 1)


def is_setting(value: Any, depth: int = 2) -> bool:
    """Whether a value is a number, text, a range or a short list of them. Text of a place is none."""
    if isinstance(value, str):
        return "/" not in value and "\\" not in value
    if isinstance(value, tuple | list):
        return depth > 0 and len(value) <= _N_SAMPLED and all(is_setting(part, depth - 1) for part in value)
    return value is None or isinstance(value, bool | int | float | range)


def short_digest(value: Any) -> str:
    """Return a short digest of a value: of all its numbers and text, but of long sequences only some."""
    digest = hashlib.blake2b(digest_size=8)
    _add(digest, value, 8)
    return digest.hexdigest()


def _parts_of(dataset: Any, depth: int = 4) -> list[Any]:
    """Return what a data set says of its samples, and the data sets inside it."""
    if isinstance(dataset, list | tuple):
        return [dataset]
    # The tensors of a TensorLoader are its samples; the files that they came from may be moved or renamed.
    left_out = ("files",) if isinstance(dataset, TensorLoader) else ()
    found = [None if name in left_out else getattr(dataset, name, None) for name in _OF_SAMPLES]
    for name in _INNER if depth else ():
        inner = getattr(dataset, name, None)
        for part in inner if isinstance(inner, list | tuple) else [inner]:
            if part is not None:
                found.append(_parts_of(part, depth - 1))
    return found


def _add(digest: Any, value: Any, depth: int) -> None:
    """Add a value to a digest. Of other objects, only the class counts."""
    if isinstance(value, Tensor | np.ndarray):
        _add_numbers(digest, value)
    elif isinstance(value, PurePath) or (isinstance(value, str) and "/" in value):
        digest.update("/".join(Path(value).parts[-2:]).encode(errors="surrogatepass"))  # folders can be moved
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        digest.update(f"{type(value).__name__} {value!r};".encode(errors="surrogatepass"))
    elif depth and isinstance(value, Mapping):
        _add(digest, list(value.items()), depth - 1)
    elif depth and isinstance(value, set | frozenset):
        _add(digest, sorted(value, key=repr), depth - 1)
    elif depth and isinstance(value, Sequence):
        digest.update(f"{type(value).__name__} of {len(value)}:".encode())
        for i in _places(len(value)):
            _add(digest, value[i], depth - 1)
    else:
        digest.update(f"<{type(value).__name__}>".encode())


def _places(n: int) -> Iterable[int]:
    if n <= _N_SAMPLED:
        return range(n)
    return (i * (n - 1) // (_N_SAMPLED - 1) for i in range(_N_SAMPLED))


def _add_numbers(digest: Any, value: Tensor | np.ndarray) -> None:
    digest.update(f"{tuple(value.shape)} {value.dtype};".encode())
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or type(value) not in (Tensor, torch.nn.Parameter):
            return
        rows = value.detach() if value.ndim == 0 else value.detach()[list(_places(len(value)))]
        rows = rows.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(rows.view(torch.uint8).numpy().data)
    elif value.dtype.kind in "biufcUS":
        some = value if value.ndim == 0 else value[list(_places(len(value)))]
        digest.update(np.ascontiguousarray(some).tobytes())
