"""Random numbers: one seed for all generators, and how their state is saved and restored."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from .arguments import flag, is_whole, shown


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed the generators of python, numpy and torch (every device).

    With the same seed, machine and versions, training on the CPU gives the same weights bit for bit.

    Args:
        seed: a whole number, 0 <= seed < 2**32 (numpy's range).
        deterministic: let torch use only deterministic kernels, and raise where it has none. CUDA needs this
            for the same weights bit for bit, and is slower with it.
    """
    if not is_whole(seed, 0, 2**32 - 1):
        raise ValueError(f"seed={shown(seed)}: expected a whole number, 0 <= seed < 2**32")
    flag("deterministic", deterministic)
    seed = int(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: one workspace per stream


def seed_of(*key: int) -> int:
    """Return a seed, 0 <= seed < 2**32, that is a pure function of whole numbers, such as (seed, epoch)."""
    # Hashed, because torch's generator uses 32 bits of its seed, and seed + epoch would make runs overlap.
    digest = hashlib.blake2b(repr(tuple(map(int, key))).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def generator_of(*key: int) -> torch.Generator:
    """Return a generator on the CPU that is a pure function of whole numbers, such as (seed, epoch)."""
    return torch.Generator().manual_seed(seed_of(*key))


def seed_cpu(seed: int) -> None:
    """Seed python's, numpy's and torch's CPU generators: a faster `set_seed`, to be used for each sample."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def rng_state(devices: bool = True) -> dict[str, Any]:
    """Return the state of python's, numpy's and torch's generators, with those of CUDA and MPS on demand."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if devices and torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if devices and torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def packed_rng(devices: bool = True) -> dict[str, Any]:
    """Return rng_state with python's 625 numbers as one array, which is saved quickly."""
    state = rng_state(devices)
    version, words, gauss = state["python"]
    return state | {"python": (version, np.array(words, dtype=np.uint32), gauss)}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the generators to a state from `rng_state`; devices that this machine lacks are skipped."""
    version, words, gauss = state["python"]
    random.setstate((version, words if isinstance(words, tuple) else tuple(words.tolist()), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda, device)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def is_same_state(a: Any, b: Any) -> bool:
    """Whether two states of generators, as from `rng_state`, perhaps in lists, are the same."""
    if isinstance(a, torch.Tensor | np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same_state(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(is_same_state, a, b))
    return bool(a == b)


@contextmanager
def kept_rng(*generators: torch.Generator, devices: bool = True) -> Iterator[None]:
    """Restore python's, numpy's, torch's and the given generators at the end of a `with`."""
    state, states = rng_state(devices), [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        set_rng_state(state)
        for generator, own in zip(generators, states, strict=True):
            generator.set_state(own)


# Generators that objects and functions keep -------------------------------------------------------


def _used_by(function: FunctionType) -> list[Any]:
    """Return what a function has in its closure and defaults, and the generators among its globals."""
    near: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            near.append(cell.cell_contents)
    names = map(function.__globals__.get, function.__code__.co_names)
    return near + [value for value in names if isinstance(value, _GENERATORS)]


_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_MOST = 64  # entries of a container to search: transforms are few, samples are many
_DEEPEST = 8


def generators_in(value: Any, seen: set[int], depth: int = 0) -> Iterator[Any]:
    """Find the generators that an object keeps, in its attributes and theirs, and that functions use.

    Args:
        seen: the ids of what is not searched; those of what was searched are added.
    """
    if id(value) in seen or depth > _DEEPEST or isinstance(value, type | torch.Tensor | ModuleType):
        return
    seen.add(id(value))
    inner: Iterable[Any] = ()
    if isinstance(value, _GENERATORS):
        yield value
    elif isinstance(value, partial):
        inner = (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        inner = (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        inner = _used_by(value)
    elif isinstance(value, list | tuple | Mapping):
        if len(value) <= _MOST:
            inner = value.values() if isinstance(value, Mapping) else value
    elif hasattr(value, "__dict__"):
        inner = list(vars(value).values())
    for item in inner:
        yield from generators_in(item, seen, depth + 1)


def state_of_generator(generator: Any) -> Any:
    """Return the state of a generator of python, numpy or torch."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def set_generator(generator: Any, state: Any) -> None:
    """Put a generator in a state from `state_of_generator`."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
