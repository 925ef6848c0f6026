"""run.json: where a run comes from, for people and programs that find its folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import written_whole
from ..provenance import checkout, command, machine
from ..warning import warn
from ..weights import unwrapped
from .settings import DATA, MODEL, settings_of
from .snapshot import Saved

if TYPE_CHECKING:
    from ..learner import Learner

RUN_FILE = "run.json"
_OF_BITS = ("torch", "device", "cpu", "threads")  # with others of these, a training may differ in bits


def made_by(learn: Learner) -> dict[str, Any]:
    """Return the versions and the hardware that a learner trains with; see `minilearn.provenance.machine`."""
    return machine(next(learn.model.parameters()).device)


def run_facts(learn: Learner, settings: Saved | None = None) -> dict[str, Any]:
    """Return what is needed to make a run again, as values for JSON.

    Keys: run, fit (its number, from 0), n_epochs, date, command, processes; those of
    `minilearn.provenance.machine`; commit, uncommitted and is_clean of the script's checkout; settings of
    each callback, the optimizer, the loss and the model's modules; model and data, each with what identifies
    it.
    """
    settings = settings_of(learn) if settings is None else settings
    model = unwrapped(learn.model)
    n_parameters = sum(p.numel() for p in model.parameters())
    facts = {
        "run": learn.run_id,
        "fit": learn.n_fits,
        "n_epochs": learn.n_epochs,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "folder": os.getcwd(),
        "processes": learn.n_processes,
        **made_by(learn),
        **checkout(),
        "model": {"class": type(model).__name__, "n_parameters": n_parameters, **settings[MODEL]},
        "data": settings[DATA],
        "optimizer": type(learn.opt).__name__,
        "settings": {key: value for key, value in settings.items() if key not in (MODEL, DATA)},
    }
    return dict(_for_json(facts))


def write_run_file(folder: Path, facts: dict[str, Any]) -> None:
    """Write run.json; what an earlier start of the run left there is kept, under "earlier".

    A file that is not ours stays, with a warning.
    """
    path, earlier = folder / RUN_FILE, list[Any]()
    if path.exists():
        try:
            before = json.loads(path.read_text())
            earlier = before.pop("earlier")
            is_new = _told(before) != _told(facts)
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            warn(f"{path} is not of minilearn, or is damaged: it is left as it is")
            return
        earlier = [*earlier, before] if is_new else earlier
    with written_whole(path) as file:
        file.write(json.dumps(facts | {"earlier": earlier}, indent=1).encode())


def bit_differences(learn: Learner, saved: Saved) -> Iterator[str]:
    """Give a sentence if a checkpoint was made with other versions or hardware, so that bits may differ."""
    before, now = saved.get("made_by", {}), made_by(learn)
    odd = [
        f"{k}={now[k]!r} here, and {before[k]!r} then" for k in _OF_BITS if before.get(k, now[k]) != now[k]
    ]
    if odd:
        yield f"the resumed run may differ in bits from one that was never stopped: {'; '.join(odd)}"


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "date"}


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _for_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(part) for part in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
