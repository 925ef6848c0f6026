"""WandbCB and MLflowCB: a fit as a run of Weights & Biases, or of MLflow."""

from __future__ import annotations

import importlib
import inspect
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from ..arguments import shown, text, unless_none
from ..checkpoints.trust import check_names
from .loggers import BaseLoggerCB

if TYPE_CHECKING:
    from ..learner import Learner

_OURS = ("id", "resume", "resume_from", "fork_from", "reinit", "name", "project", "group")  # of wandb.init
_DEFAULT = "0"  # the id of MLflow's own experiment
_MOST_PARAMS, _LONGEST = 100, 500  # of MLflow: how many at once, and how many characters each


class _TrackerCB(BaseLoggerCB):
    """A logger whose runs are kept by a service, under an id that a checkpoint has."""

    package: ClassVar[str]

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._run: str | None = None  # the id of this fit's run, once it is begun
        self._client: Any = None  # what writes to the run
        self._is_own = True  # whether this callback began the run, and so ends it

    def state_dict(self) -> dict[str, Any]:
        """Return the run's id and how far it is logged; new values are sent first."""
        self._write_steps()
        return {name: getattr(self, name) for name in self._state}

    _state: ClassVar[tuple[str, ...]] = ("_run", "_n_steps", "_n_rows")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load them; what an interrupted process sent later is not sent again.

        Raises: ValueError for an id that is none.
        """
        check_names(self, state, self._state, type(self).__name__)
        for name in self._state:
            value = state[name]
            if isinstance(value, str) and not re.fullmatch(r"[\w-]{1,128}", value):
                raise ValueError(f"{self!r}: the checkpoint has the run {shown(value)}: expected its id")
            setattr(self, name, value)

    def _check(self, learn: Learner) -> None:
        spec = find_spec(self.package)
        if spec is None or spec.origin is None:  # wandb's own folder of logs is no package
            raise ImportError(f'{self!r} needs {self.package}: pip install "minilearn[{self.package}]"')

    def after_step(self, learn: Learner) -> None:
        if self._client is None:  # here, because a resumed fit knows its run by now
            self._begin(learn)
        super().after_step(learn)

    def _write_rows(self, learn: Learner) -> None:
        if self._client is None and len(learn.history) > self._n_rows:
            self._begin(learn)
        super()._write_rows(learn)

    def _begin(self, learn: Learner) -> None:
        self._config["run"] = learn.run_id  # CheckpointCB names the run after our before_fit
        self._open()

    def _open(self) -> None:
        """Begin the run, or continue it, and set _client and _run."""

    def _close(self, learn: Learner) -> None:
        client, self._client = self._client, None
        try:
            if client is not None and self._is_own:
                self._end(client, _how_it_ends(learn))
        finally:
            self._run = None

    def _end(self, client: Any, how: str) -> None:
        """End the run: "finished", "failed", "stopped" by a signal, or "paused"."""


class WandbCB(_TrackerCB):
    """Log a fit as a run of Weights & Biases::

        learn = Learner(model, dls, cbs=[WandbCB("my-project"), CheckpointCB("runs/1")])
        learn.fit(50, resume=True)

    A step has "step/loss", and lr, momentum and weight decay as it used them, such as "step/lr". The rows of
    history appear as "loss/train", "loss/eval", ... The axis of both is "step", the number of optimizer steps
    taken in this callback's life. The run's config is what run.json has: versions, commit, command, settings
    and a fingerprint of the data.

    Each fit is a run. A fit that resumes continues its run, under the same id, and sends no step again.
    Offline, where W&B cannot continue a run, a resumed fit is a new run of the same group, and steps after
    the checkpoint that were logged before a crash are in both. A run that you began yourself, with
    wandb.init, is used instead, and left open; entries of its config stay as they are.

    The run ends as failed after an error or a signal such as Ctrl-C; after `learn.pause()` as preempted.

    Args:
        project: None: as wandb says, by WANDB_PROJECT or "uncategorized".
        name: of the run. None: wandb makes one.
        every: log every so many steps, >= 1.
        group: of the run. None: the id of the fit's first run where it is offline, and else none.
        **kwargs: more arguments of wandb.init: mode="offline", entity, tags, notes, dir, ... Entries of
            `config` are added to the run's config.

    Runs at: before_fit, after_step, cleanup_epoch, cleanup_fit; order 55, before the schedulers set the next
        step's values. Reads: history, loss, opt.
    State: the run's id, and how far it is logged.
    Raises: before training: ImportError without wandb; TypeError for arguments that wandb.init does not take,
        or that this callback sets. What wandb.init raises comes at the first step.
    Needs: pip install "minilearn[wandb]".
    """

    package = "wandb"
    _state = ("_run", "_n_steps", "_n_rows", "_group")

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        every: int = 10,
        group: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(every)
        self.project = unless_none(text, "WandbCB(project", project)
        self.name = unless_none(text, "WandbCB(name", name)
        self.group = unless_none(text, "WandbCB(group", group)
        for key in kwargs:
            if key in _OURS:
                raise TypeError(
                    f"WandbCB({key}={shown(kwargs[key])}): the callback sets it; for a run of your own, call "
                    "wandb.init before fit"
                )
        if not isinstance(kwargs.get("config") or {}, Mapping):
            raise TypeError(f"WandbCB(config={shown(kwargs['config'])}): expected a dict")
        self.kwargs = kwargs
        self._group: str | None = None  # the id of the fit's first run
        self._sent = 0, -1  # the step and the row that another process sent last
        self._defined: set[str] = set()

    def __repr__(self) -> str:
        return "WandbCB()" if self.project is None else f"WandbCB({self.project!r})"

    def _check(self, learn: Learner) -> None:
        super()._check(learn)
        takes = inspect.signature(importlib.import_module("wandb").init).parameters
        for key, value in self.kwargs.items():
            if key not in takes:
                raise TypeError(
                    f"WandbCB({key}={shown(value)}): expected an argument of wandb.init: {', '.join(takes)}"
                )

    def _open(self) -> None:
        wandb: Any = importlib.import_module("wandb")
        before, given = self._run, wandb.run
        self._is_own = given is None
        self._client = self._new_run(wandb) if given is None else given
        self._run, self._group = self._client.id, self._group or self._client.id
        is_continued, summary = self._run == before, self._client.summary
        self._sent = (summary.get("step", 0), summary.get("row", -1)) if is_continued else (0, -1)
        config = self._config | dict(self.kwargs.get("config") or {})
        if not self._is_own:  # what the user said stays
            config = {key: value for key, value in config.items() if key not in self._client.config.keys()}  # noqa: SIM118  wandb's has no `in`
        self._client.config.update(config, allow_val_change=True)
        self._defined = set()
        self._client.define_metric("row", hidden=True)
        self._client.define_metric("step/*", step_metric="step")

    def _new_run(self, wandb: Any) -> Any:
        kwargs = {key: value for key, value in self.kwargs.items() if key != "config"}
        mode = kwargs.get("mode") or wandb.setup().settings.mode
        is_continued = self._run is not None and mode != "offline"
        run = self._run if is_continued else uuid.uuid4().hex[:16]
        group = self.group or ((self._group or run) if mode == "offline" else None)
        resume = "allow" if is_continued else None
        return wandb.init(project=self.project, name=self.name, id=run, group=group, resume=resume, **kwargs)

    def _write_step(self, step: int, now_s: float, values: dict[str, float]) -> None:
        if step + 1 > self._sent[0]:
            self._client.log({"step": step + 1, **values})

    def _write_row(self, number: int, values: dict[str, float]) -> None:
        if number <= self._sent[1]:
            return
        for name in values.keys() - self._defined:
            self._client.define_metric(name, step_metric="step")
            self._defined.add(name)
        self._client.log({"step": self._n_steps, "row": number, **values})

    def _end(self, client: Any, how: str) -> None:
        if how == "paused":
            client.mark_preempting()
        client.finish(exit_code=0 if how == "finished" else 255 if how == "stopped" else 1)

    def _close(self, learn: Learner) -> None:
        super()._close(learn)
        self._group = None


class MLflowCB(_TrackerCB):
    """Log a fit as a run of MLflow::

        learn = Learner(model, dls, cbs=[MLflowCB("my-experiment"), CheckpointCB("runs/1")])
        learn.fit(50, resume=True)

    A step has "step/loss", and lr, momentum and weight decay as it used them, such as "step/lr". The rows of
    history appear as "loss/train", "loss/eval", ... MLflow's step is the number of optimizer steps taken in
    this callback's life. The parameters are what run.json has, such as "settings.CheckpointCB.keep"; of long
    ones, the first 500 characters. Characters that MLflow does not allow in a name become "_".

    Each fit is a run. A fit that resumes continues its run, and sends no step again. A run that you began
    yourself, with mlflow.start_run, is used instead, and left open; its parameters stay as they are.

    The run ends as FINISHED, as FAILED after an error, as KILLED after a signal such as Ctrl-C, and as
    SCHEDULED, for the next start of the script, after `learn.pause()`.

    Args:
        experiment: its name; it is made if need be. None: the one that is set, by mlflow.set_experiment or
            MLFLOW_EXPERIMENT_NAME; with `uri`, MLflow's "Default".
        name: of the run. None: MLflow makes one.
        every: log every so many steps, >= 1.
        uri: of the tracking server or data base, such as "sqlite:///mlflow.db". None: the one that is set, by
            mlflow.set_tracking_uri or MLFLOW_TRACKING_URI.
        tags: more tags of the run.

    Runs at: before_fit, after_step, cleanup_epoch, cleanup_fit; order 55, before the schedulers set the next
        step's values. Reads: history, loss, opt.
    State: the run's id, and how far it is logged.
    Raises: before training: ImportError without mlflow. What the server answers comes at the first step.
    Needs: pip install "minilearn[mlflow]".
    """

    package = "mlflow"

    def __init__(
        self,
        experiment: str | None = None,
        name: str | None = None,
        every: int = 10,
        uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(every)
        self.experiment = unless_none(text, "MLflowCB(experiment", experiment)
        self.name = unless_none(text, "MLflowCB(name", name)
        self.uri = unless_none(text, "MLflowCB(uri", uri)
        if tags is not None and not isinstance(tags, Mapping):
            raise TypeError(f"MLflowCB(tags={shown(tags)}): expected a dict of texts")
        self.tags = dict(tags or {})
        self._is_continued = False
        self._sent: dict[str, int] = {}  # name -> the step at which another process sent it last

    def __repr__(self) -> str:
        return "MLflowCB()" if self.experiment is None else f"MLflowCB({self.experiment!r})"

    def _open(self) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        given, before = mlflow.active_run(), self._run
        client = mlflow.MlflowClient(self.uri)
        self._is_own = given is None
        if given is not None:
            self._run = given.info.run_id
        elif self._run is None:
            self._run = self._new_run(mlflow, client)
        else:
            client.update_run(self._run, status="RUNNING")
        self._is_continued, self._sent = before == self._run, {}
        if not self._is_continued:
            self._write_params(client)
        self._client = client

    def _new_run(self, mlflow: Any, client: Any) -> str:
        if self.experiment is None:
            experiment = mlflow.tracking.fluent._get_experiment_id() if self.uri is None else _DEFAULT
        else:
            found = client.get_experiment_by_name(self.experiment)
            experiment = client.create_experiment(self.experiment) if found is None else found.experiment_id
        run: str = client.create_run(experiment, tags=self.tags, run_name=self.name).info.run_id
        return run

    def _write_params(self, client: Any) -> None:
        entities: Any = importlib.import_module("mlflow.entities")
        there = {} if self._is_own else client.get_run(self._run).data.params  # which cannot be changed
        found = {_plain(key): str(value)[:_LONGEST] for key, value in _flat(self._config)}
        params = [entities.Param(key, value) for key, value in found.items() if key not in there]
        for i in range(0, len(params), _MOST_PARAMS):
            client.log_batch(self._run, params=params[i : i + _MOST_PARAMS])

    def _send(self, values: dict[str, float], step: int, now_s: float | None = None) -> None:
        entities: Any = importlib.import_module("mlflow.entities")
        at_ms = int(1000 * (time.time() if now_s is None else now_s))
        metrics = [
            entities.Metric(name, value, at_ms, step)
            for key, value in values.items()
            if step > self._sent_until(name := _plain(key))
        ]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def _sent_until(self, name: str) -> int:
        """Return the step at which an earlier process sent this last; -1 if none did."""
        if not self._is_continued:
            return -1
        if name not in self._sent:
            found = self._client.get_metric_history(self._run, name)
            self._sent[name] = max((metric.step for metric in found), default=-1)
        return self._sent[name]

    def _write_step(self, step: int, now_s: float, values: dict[str, float]) -> None:
        self._send(values, step + 1, now_s)

    def _write_row(self, number: int, values: dict[str, float]) -> None:
        self._send(values, self._n_steps)

    def _end(self, client: Any, how: str) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "paused": "SCHEDULED"}
        client.set_terminated(self._run, status[how])


def _how_it_ends(learn: Learner) -> str:
    if learn.is_paused:
        return "paused"
    if learn.stop.signal is not None:
        return "stopped"
    return "failed" if learn.is_failing else "finished"


def _plain(name: str) -> str:
    """Return a name with only what MLflow allows in one."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
