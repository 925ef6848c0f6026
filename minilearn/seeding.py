"""Random numbers: one seed for all generators, and their state taken and put back."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed the generators of python, numpy and torch (every device).

    With the same seed, machine and versions, training on the CPU gives bitwise the same weights.

    Args:
        seed: a whole number, 0 <= seed < 2**32 (numpy's range).
        deterministic: have torch use deterministic kernels only, and raise where it has none. CUDA
            needs it for the same weights bit for bit; it is slower there.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: expected a whole number, 0 <= seed < 2**32")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: one workspace for each stream


def generator_of(*key: int) -> torch.Generator:
    """Return a generator on the CPU that is a pure function of whole numbers, such as (seed, epoch)."""
    # Hashed, for torch's generator uses 32 bits of its seed, and seed + epoch would make runs overlap.
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@contextmanager
def kept_rng(*generators: torch.Generator) -> Iterator[None]:
    """Put python's, numpy's and torch's generators, and those given, back to where they were before."""
    states = [generator.get_state() for generator in generators]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
