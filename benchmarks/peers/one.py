"""One measurement of one framework, in this process."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import work

from minilearn import StridedCNN, set_seed
from minilearn.provenance import device_name

WARM_UP = 50  # batches
N_EPOCHS = 5  # of loop


def measure(
    name: str, workload: str, device: torch.device, n: int, seed: int, n_workers: int
) -> dict[str, Any]:
    """Measure a file of this folder once; return the time, and the accuracy that it reports.

    Args:
        n: steps in an epoch of loop, epochs of fashion.
    """
    module: Any = importlib.import_module(name)
    # One folder less for frameworks that look for packages at each step: a user's script would not have it.
    sys.path.remove(str(Path(__file__).parent))
    warm_up = module.loop if hasattr(module, "loop") else module.by_hand.loop
    set_seed(seed)
    warm_up(work.Ready.make(WARM_UP, device), 1, device)()
    if workload == "loop":
        taken, trained = measure_loop(module, device, n, seed)
    else:
        work.n_workers = n_workers
        taken, trained = measure_fashion(module, device, n, seed)
    return {
        "time": taken,
        "accuracy": float(trained.accuracy),
        "loss": float(trained.loss),
        "settings": module.SETTINGS[workload],
        "device": device_name(device.type),
        "threads": torch.get_num_threads(),
    }


def measure_loop(module: Any, device: torch.device, n_steps: int, seed: int) -> tuple[float, work.Trained]:
    """Return the microseconds of a step."""
    set_seed(seed)
    ready = work.Ready.make(n_steps, device)
    trained = module.loop(ready, N_EPOCHS, device)()
    starts_s = ready.starts_s[1 - N_EPOCHS :]  # from the second epoch on; some look at the data first
    return statistics.median(b - a for a, b in pairwise(starts_s)) / n_steps * 1e6, trained


def measure_fashion(
    module: Any, device: torch.device, n_epochs: int, seed: int
) -> tuple[float, work.Trained]:
    """Return the seconds from files on disk to a model that is trained and validated."""
    set_seed(seed)
    StridedCNN().to(device)(torch.zeros(2, 1, 28, 28, device=device)).sum().backward()  # loads its kernels
    set_seed(seed)
    work.sync(device)
    start_s = time.perf_counter()
    trained = module.fashion(n_epochs, device)
    work.sync(device)
    return time.perf_counter() - start_s, trained
