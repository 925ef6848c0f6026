"""Where a result comes from: the command, the code, the machine and the versions that made it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .arguments import counted

UNKNOWN = "unknown"
_GIT_S = 10.0


def provenance() -> dict[str, Any]:
    """Return what is needed to trust a result of this process and to make it again, as values for JSON.

    Keys:
        command: ready to paste into a shell.
        date: now, in UTC.
        commit: of the git checkout that has the script; "unknown" outside of one.
        uncommitted: Python files that differ from that commit; "unknown" outside of a checkout.
        device: name of the GPU if there is one, else of the CPU.
        threads: of torch in this process, on the CPU.
        processes: how many train together under torchrun; else 1.
        torch, python, minilearn: versions.
    """
    from . import __version__

    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_checkout(Path(sys.argv[0]).resolve().parent),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "minilearn": __version__,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the bits of a training on a device depend on, besides the code: versions and the hardware.

    Keys: python, torch, minilearn; device (the name of the GPU, or "cpu"), cpu (its model, and the
    instructions that torch uses), threads.
    """
    from . import __version__

    is_cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # an object
        "minilearn": __version__,
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "cpu": f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


@cache
def checkout() -> dict[str, Any]:
    """Return the commit of the script's checkout, and whether its Python files are those of the commit.

    As they were at the first call in this process, which comes closest to what was imported.
    """
    found = _checkout(Path(sys.argv[0]).resolve().parent)
    changed = found["uncommitted"]
    return found | {"is_clean": UNKNOWN if changed == UNKNOWN else not changed}


def command() -> str:
    """Return the command line of this process, quoted so that it can be pasted into a shell."""
    return shlex.join(["python", *sys.argv])


def device_name(kind: str | None = None) -> str:
    """Return the name of the GPU ("cuda") or of the CPU ("cpu"), such as "AMD EPYC, 2 cores".

    Args:
        kind: None: the GPU if there is one, else the CPU.
    """
    if kind == "cuda" or (kind is None and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return f"{_cpu_name()}, {counted(os.cpu_count() or 1, 'core')}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _checkout(folder: Path) -> dict[str, Any]:
    """Return the commit of the checkout that has a folder, and which Python files differ from it."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--", ":/*.py")
    if commit is None or changed is None:
        return {"commit": UNKNOWN, "uncommitted": UNKNOWN}
    return {"commit": commit.strip(), "uncommitted": [line[3:] for line in changed.splitlines()]}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says about a folder; None if there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=_GIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
