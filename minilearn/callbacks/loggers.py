"""Logs of the rows of history and of the values that steps used: what all have, and TensorBoardCB."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import path as checked_path
from ..arguments import shown, text, unless_none, whole_number
from ..callback import Callback, Order
from ..checkpoints.run_file import run_facts
from ..files import check_folder
from ..optim.groups import Group, groups_of

if TYPE_CHECKING:
    from ..learner import Learner

_LOGGED = ("_run", "_n_steps", "_n_rows", "_rows", "_rows_at")  # the state of a TensorBoardCB
_FLUSH_S = 60.0  # how often new values are written in a long epoch; writing waits for the device


class BaseLoggerCB(Callback):
    """Gather what steps used and the finished rows, and write them now and then, without a wait at each step.

    A subclass says how: `_check`, `_write_step`, `_write_row`, and `_close` at the end of a fit.

    Args:
        every: log every so many steps, >= 1.
    """

    order = Order.STEP_LOG
    may_come_and_go = True
    in_evaluation = False
    in_lr_find = False
    in_each_process = False

    def __init__(self, every: int) -> None:
        self.every = whole_number(f"{type(self).__name__}(every", every, of=" of steps")
        self._n_steps = 0  # in this callback's life
        self._n_rows = 0  # of history, written or from before this fit
        self._config: dict[str, Any] = {}  # what run.json has
        self._readers: list[tuple[str, Callable[[], Any]]] = []
        self._new: list[tuple[int, float, Any, list[Any]]] = []  # step, time, loss, the readers' values
        self._flushed_s = 0.0

    def before_fit(self, learn: Learner) -> None:
        self._check(learn)
        self._n_rows, self._flushed_s = len(learn.history), time.monotonic()
        self._new.clear()
        self._config = run_facts(learn)
        self._readers = list(_readers(groups_of(learn.opt)))

    def after_step(self, learn: Learner) -> None:
        self._n_steps += 1
        if self._n_steps % self.every:
            return
        loss = learn.loss.detach()
        values = [v.clone() if isinstance(v, Tensor) else v for v in (read() for _, read in self._readers)]
        self._new.append((self._n_steps - 1, time.time(), loss, values))
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self._write_steps()

    def cleanup_epoch(self, learn: Learner) -> None:
        if self._readers:
            self._write_steps()
            self._write_rows(learn)

    def cleanup_fit(self, learn: Learner) -> None:
        if not self._readers:
            return  # before_fit failed
        try:
            self._write_steps()
        finally:
            self._readers = []
            self._close(learn)

    def _write_steps(self) -> None:
        self._flushed_s = time.monotonic()
        if not self._new:
            return
        losses = torch.stack([loss.float() for _, _, loss, _ in self._new]).tolist()  # one wait for all
        for (step, now_s, _, values), loss in zip(self._new, losses, strict=True):
            named = zip((tag for tag, _ in self._readers), values, strict=True)
            found = {"step/loss": loss} | {f"step/{tag}": float(value) for tag, value in named}
            self._write_step(step, now_s, found)
        self._new.clear()

    def _write_rows(self, learn: Learner) -> None:
        for number, row in enumerate(learn.history[self._n_rows :], self._n_rows):
            values = {
                "epoch" if name == "epoch" else f"{name}/{row['train']}": value
                for name, value in row.items()
                if isinstance(value, int | float)  # not the phase
            }
            self._write_row(number, values)
        self._n_rows = len(learn.history)

    # What a subclass says -------------------------------------------------------------------------

    def _check(self, learn: Learner) -> None:
        """Raise, before training, for what cannot work."""

    def _write_step(self, step: int, now_s: float, values: dict[str, float]) -> None:
        """Write the values of a step, numbered from 0 in this callback's life."""

    def _write_row(self, number: int, values: dict[str, float]) -> None:
        """Write a row of history, the number-th of the learner's life."""

    def _close(self, learn: Learner) -> None:
        """End the log of this fit, if one was begun."""


class TensorBoardCB(BaseLoggerCB):
    """Log a fit for TensorBoard: `tensorboard --logdir runs` shows it while it runs.

    The rows of history appear under "loss", "MulticlassAccuracy", ..., as "loss/train" and "loss/eval". Under
    "step" are the loss, and lr, momentum and weight decay of each group as the step used them. The horizontal
    axis counts optimizer steps in this callback's life, over all fits. Under "run", as text, is what run.json
    has: versions, commit, command, settings and a fingerprint of the data.

    Args:
        folder: for all runs; created if it is missing.
        name: of the run, a folder inside `folder`. If it exists already, "name-2" is used, and so on, so that
            each fit has its own. Default: date and time.
        every: log every so many steps, >= 1.
        images: how many images of each phase's first batch to log, >= 0.
        hparams: more entries for the table of hyperparameters, numbers or text. It always has the optimizer,
            its lr, and the number of epochs.

    Runs at: before_fit, after_step, after_batch, cleanup_epoch, cleanup_fit; order 55, before the schedulers
        set the next step's values. Reads: history, loss, opt, batch.
    State: the run's name, and how far it is logged: a fit that resumes from a checkpoint continues that run,
        and what was logged after the checkpoint is replaced.
    Raises: before training: ImportError without tensorboard; OSError, with its name, for a folder that cannot
        be written; ValueError for `images` where the inputs are not images.
    Needs: pip install "minilearn[tensorboard]".
    """

    def __init__(
        self,
        folder: str | Path = "runs",
        name: str | None = None,
        every: int = 10,
        images: int = 0,
        hparams: Mapping[str, float | str | bool] | None = None,
    ) -> None:
        super().__init__(every)
        self.images = whole_number("TensorBoardCB(images", images, 0)
        if hparams is not None and not isinstance(hparams, Mapping):
            raise TypeError(f"TensorBoardCB(hparams={shown(hparams)}): expected a dict of numbers and texts")
        for key, value in (hparams or {}).items():
            if not isinstance(key, str) or not isinstance(value, int | float | str):
                raise TypeError(
                    f"TensorBoardCB(hparams={{{shown(key)}: {shown(value)}}}): expected a number or text"
                )
        self.folder = checked_path("TensorBoardCB(folder", folder).absolute()
        self._as_given = str(folder)
        self.name = unless_none(text, "TensorBoardCB(name", name)
        self.hparams = dict(hparams or {})
        self._run: str | None = None  # the name of this fit's run, once something was written
        self._rows: dict[str, float] = {}  # the rows of history written last, and after which step
        self._rows_at = 0
        self._resumed_at: int | None = None  # the step after which a checkpoint was loaded
        self._writer: Any = None
        self._facts: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"TensorBoardCB({self._as_given!r})"

    def _check(self, learn: Learner) -> None:
        if find_spec("tensorboard") is None:
            raise ImportError(f'{self!r} needs tensorboard: pip install "minilearn[tensorboard]"')
        check_folder(self, self.folder)
        if self.images and learn.batch is not None and not _is_images(learn.xb):
            raise ValueError(f"{self!r}: images={self.images}: the inputs are no (N, 1 or 3, H, W) tensor")
        groups = groups_of(learn.opt)
        lr = {"lr": float(groups[0]["lr"])} if "lr" in groups[0] else {}
        self._facts = {"opt": type(learn.opt).__name__, **lr, "n_epochs": learn.n_epochs, **self.hparams}

    def after_batch(self, learn: Learner) -> None:
        if self.images and learn.epoch == 0 and learn.batch_idx == 0:
            self._write_images(learn)

    def state_dict(self) -> dict[str, Any]:
        """Return the run's name and how far it is logged; new values are written first."""
        self._write_steps()
        if self._writer is not None:
            self._writer.flush()
        return {name: getattr(self, name) for name in _LOGGED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them; what an interrupted process wrote later is to be replaced.

        Raises: ValueError for a name that is not that of a folder inside `folder`.
        """
        run = state["_run"]
        if run is not None and (run in (".", "..") or Path(run).name != run or "\\" in run):
            raise ValueError(f"{self!r}: the checkpoint has the run {run!r}: expected the name of a folder")
        vars(self).update({name: state[name] for name in _LOGGED})
        self._resumed_at = self._n_steps

    # Writing --------------------------------------------------------------------------------------

    def _open(self) -> Any:
        """Return the writer of this fit's run; begin or resume the run."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            purge = self._resumed_at if self._run is not None else None
            self._run, self._resumed_at = self._run or self._free_name(), None
            # TensorBoard drops entries of this step and later ones.
            self._writer = SummaryWriter(str(self.folder / self._run), purge_step=purge)
            if purge is None:
                self._write_hparams()
            elif self._rows_at == purge:
                self._add_rows()
        return self._writer

    def _free_name(self) -> str:
        name = self.name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        number = 1
        while (self.folder / (run := name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        return run

    def _write_hparams(self) -> None:
        from torch.utils.tensorboard import summary

        make: Any = summary.hparams  # not add_hparams, which would make a separate run
        for part in make(self._facts, {"loss/eval": 0.0}):
            self._writer.file_writer.add_summary(part)
        self._writer.add_text("run", f"```json\n{json.dumps(self._config, indent=1)}\n```")

    def _write_step(self, step: int, now_s: float, values: dict[str, float]) -> None:
        writer = self._open()
        for tag, value in values.items():
            writer.add_scalar(tag, value, step, now_s)

    def _write_rows(self, learn: Learner) -> None:
        self._open()  # before the rows change
        self._rows, self._rows_at = {}, self._n_steps
        super()._write_rows(learn)
        self._add_rows()

    def _write_row(self, number: int, values: dict[str, float]) -> None:
        self._rows |= values

    def _close(self, learn: Learner) -> None:
        if self._writer is not None:
            self._writer.close()
        self._run, self._writer = None, None

    def _add_rows(self) -> None:
        for tag, value in self._rows.items():
            self._writer.add_scalar(tag, value, self._rows_at)

    def _write_images(self, learn: Learner) -> None:
        images = learn.xb[: self.images].detach().float()
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        scaled = (images - low) / (high - low).clamp(min=1e-12)
        self._open().add_images(f"images/{learn.phase}", scaled.cpu(), max(self._n_steps - 1, 0))


def _is_images(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] in (1, 3)


def _readers(groups: list[Group]) -> Any:
    """Give, for each group, the tag of each hyperparameter and a function that reads it."""
    for i, group in enumerate(groups):
        end = "" if len(groups) == 1 else f" of group {i}"
        for key, tag in (
            ("lr", "lr"),
            *(("momentum", "momentum"), ("mom", "momentum"), ("beta1", "beta1")),
            *(("weight_decay", "weight decay"), ("wd", "weight decay")),
        ):
            if key in group:
                yield f"{tag}{end}", partial(group.__getitem__, key)
        if isinstance(group.get("betas"), tuple):
            yield f"beta1{end}", lambda group=group: group["betas"][0]
