"""Callback: what a class declares, its place in the order, and the check of its hook names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from difflib import get_close_matches
from enum import IntEnum
from functools import wraps
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from .arguments import brief
from .events import events

if TYPE_CHECKING:
    from .learner import Learner

# Names that look like hooks: ours misspelt, or another library's (on_epoch_end, begin_fit, training_step).
_PREFIXES = ("before_", "after_", "cleanup_", "on_", "begin_")
_SUFFIXES = ("_begin", "_start", "_end", "_step")
Hook = Callable[[Any], Any]  # takes the learner

Cbs: TypeAlias = "Callback | Iterable[Callback] | None"  # what a learner and its passes take


class Order(IntEnum):
    """When callbacks run at each event: from low to high; equal ones in the order of the list.

    Yours, at `Order.DEFAULT`, see batches on the device and finished rows, and the recorder sees the values
    that a step used, whatever the order of the list.
    """

    PROFILE = -1000  # ProfileCB: before everything that it times
    DEVICE = -100  # DeviceCB: all others see the model and the batch on the device
    BATCH_SIZE = -95  # BatchSizeCB: replaces the loader
    SINGLE_BATCH = -90  # SingleBatchCB: takes one batch of the loader, after it may have been replaced
    ACCUMULATION = -70  # GradientAccumulationCB: others read is_accumulating
    METRICS = -50  # MetricsCB: rows are finished for all callbacks that read them
    VIEWS = -40  # TestTimeFlipCB: others see the mean over the views as the predictions
    MIXING = -30  # MixupCB, CutMixCB
    SHARPNESS = -25  # SAMCB: yours see the gradients that it leaves
    COMPILE = -20  # CompileCB: before your hooks copy or keep predictions
    DEFAULT = 0  # yours
    CHANNELS_LAST = 30  # ChannelsLastCB: the memory format of the model's inputs
    PRECISION = 40  # MixedPrecisionCB: unscales gradients for the callbacks after it
    CLIPPING = 45  # GradientClippingCB: clips unscaled gradients. GradualUnfreezeCB: before schedules
    RECORDER = 50  # RecorderCB: before schedules change what the step used
    STEP_LOG = 55  # TensorBoardCB: the same
    SCHEDULER = 60  # BatchSchedulerCB, EpochSchedulerCB, LRFinderCB
    HYPERPARAMETERS = 65  # ScheduleCB
    AVERAGING = 70  # SWACB, EMACB: after everything that changes the weights
    PROGRESS = 80  # ProgressCB
    ROW_LOG = 85  # CSVLoggerCB: history has the "iterate" rows of AVERAGING by then
    STOPPING = 90  # EarlyStoppingCB: after everything that looks at the weights
    SWITCHES = 95  # SwitchPointsCB
    PREDICTIONS = 1000  # PredictionsCB: takes the predictions and leaves the batch
    PROCESSES = 1500  # DistributedCB
    GRAPH = 1600  # CUDAGraphCB
    CHECKPOINT = 2000  # CheckpointCB: all others have their final state
    RESTORE = 3000  # private: restores a checkpoint, after everything that a new fit does


class Callback:
    """Change or watch training, with methods named after the events of `minilearn.events`.

    A hook takes the learner: `def after_step(self, learn)`. It reads and changes the learner's fields
    (`learn.xb`, `learn.preds`, `learn.loss`, `learn.opt`, ...). A method named after a step (unpack, predict,
    get_loss, backward, step, zero_grad) makes this callback the owner of that step.

    What a class declares, instead of testing for it in its hooks (subclasses inherit it):
        order: its place among the callbacks at each event, see `Order`.
        only_one: why a learner may have only one callback of this class; "" if several are allowed.
        in_evaluation: False for a callback that takes no part in a pass that does not train:
            `fit(train=False)`, `validate` (nested in a fit or not) and `predict`. A fit's own validation is
            part of training.
        in_nested: False for a callback that skips after_batch and the hooks of validate in a validation that
            is nested in a fit.
        in_lr_find: whether it takes part in `learn.lr_find`; False for one that only watches.
        in_graph: True for one that CUDAGraphCB may capture: its hooks from after_predict to before_step
            launch kernels on the device and do nothing else.
        in_each_process: False for one that writes or shows something once, even if DistributedCB trains with
            several processes: its hooks then run in the first process only.
        logs: the names that it gives to `learn.log`, so that monitors know them before training. None for one
            whose names come from the model: monitors look for them in the first epoch's rows.
        needs_target: True for one that needs the target of a batch.
        shows_progress: True for one that shows the progress of a fit, so that others may print too.
        may_come_and_go: True for one that a resumed fit may add or leave out, with a warning: a logger, or
            one whose state the run can do without.
        settings_in_state: True for one with a state_dict of its own that brings its settings back. It only
            decides what a warning about a changed setting says.
        free_on_resume: names of arguments that a resumed fit may change without a warning.

    Raises: TypeError when a class is defined with a method that looks like a misspelt hook, or that takes
        arguments other than the learner.
    """

    order: ClassVar[int] = Order.DEFAULT
    only_one: ClassVar[str] = ""
    in_evaluation: ClassVar[bool] = True
    in_nested: ClassVar[bool] = True
    in_lr_find: ClassVar[bool] = True
    in_graph: ClassVar[bool] = False
    in_each_process: ClassVar[bool] = True
    logs: ClassVar[tuple[str, ...] | None] = ()
    needs_target: ClassVar[bool] = False
    shows_progress: ClassVar[bool] = False
    may_come_and_go: ClassVar[bool] = False
    settings_in_state: ClassVar[bool] = False
    free_on_resume: ClassVar[tuple[str, ...]] = ()

    __slots__ = ("__dict__", "__weakref__", "_given")  # _given is not in vars(), which are state
    _given: tuple[tuple[Any, ...], dict[str, Any]]  # the arguments, for the settings of a run

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, whatever the constructor makes of them."""
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__name__}() takes no arguments, {len(args) + len(kwargs)} given")
        self = super().__new__(cls)
        self._given = args, kwargs
        return self

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        del self._given  # a copy was not made from arguments

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" in vars(cls):
            cls.__repr__ = _never_fails(cls.__repr__)  # type: ignore[method-assign]
        known = events()
        for name in dir(cls):
            if not name.startswith("_") and not hasattr(Callback, name):
                _check_hook(cls, name, inspect.getattr_static(cls, name), known)

    def plan_steps(self, learn: Learner, steps: list[int | None]) -> list[int | None]:
        """Return the number of optimizer steps in each epoch of the coming fit, None if not known.

        For a callback that changes it: one that resizes batches, or skips steps to accumulate gradients.
        `steps` is the plan so far, by the loader and the callbacks that run before this one.
        Called before before_fit, and by a scheduler's preview.
        """
        return steps

    def plan_schedules(self, learn: Learner, n_epochs: int) -> int:
        """Return how many epochs of the coming fit, from the first on, the lr schedules cover.

        For a callback that sets the lr itself from some epoch on: it returns that epoch. `n_epochs` is
        what the callbacks before this one returned.
        """
        return n_epochs

    def extra_params(self, learn: Learner) -> Iterable[Any]:
        """Return this callback's own parameters, each an nn.Parameter, for the optimizer to train.

        Called when the optimizer is made, after `prepare`, and again during training: always return the same
        ones. They form a separate group, with `learn.lr`. Checkpoints include them if they are attributes, or
        in a module that is an attribute; a `state_dict` of your own has to include them. DeviceCB moves those
        that exist before `prepare`.
        """
        return ()

    def prepare(self, learn: Learner) -> None:
        """Set up what every pass needs: the device, changes to the model, handles that `release` removes.

        Called before everything else in a fit, and in a validate or predict outside one. In a fit, this is
        before the optimizer is made from the model. Hooks of fit and epoch do not run in validate or predict.
        """

    def release(self, learn: Learner) -> None:
        """Undo what `prepare` did. Always called when the pass ends, in reverse order, however it ended."""

    def wrap_hook(self, name: str, hook: Hook) -> Hook:
        """Return what to call in place of a hook or step, such as "RecorderCB.after_step": here the hook.

        For a callback that watches the others, like ProfileCB. Called when hooks are looked up, not at each
        event.
        """
        return hook

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this callback: all its attributes, unless overridden.

        A checkpoint keeps numbers, text, tensors, arrays, random generators, lists, dicts and the like,
        objects of classes in the callback's own package, and objects with a state_dict, whose plain
        attributes it keeps too. Two names for one object still name one object when the state is loaded.
        Functions, open files, loggers, and the learner and its parts are left as they are then. For anything
        else CheckpointCB raises before training, or after the first batch, and says what to define.
        Parameters that no optimizer trains, such as a teacher's, are stored as digests while they do not
        change: a resumed script has to make the same ones.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned, in a resumed fit; the before_ hooks have run by then.

        Unless it is overridden, names that state_dict does not have are refused, and paths keep their values.
        """
        vars(self).update(state)

    @property
    def saves_to(self) -> Path | None:
        """The folder to which this callback writes checkpoints; None unless a subclass writes some."""
        return None

    def epoch_state(self) -> dict[str, Any]:
        """Return the state that before_epoch, before_train and before_validate read; here all of it.

        A checkpoint inside an epoch has it twice, as it was when the epoch began and as it is now, so that
        these hooks see the same in a resumed run. A subclass leaves out what is large and not read there.
        """
        return self.state_dict()

    def averaged(self, learn: Learner) -> AbstractContextManager[None] | None:
        """Return a context in which the model holds the averaged weights that this callback keeps.

        None unless a subclass keeps an average. Raises: RuntimeError if it is still empty.
        """
        return None

    def __repr__(self) -> str:
        args, kwargs = getattr(self, "_given", ((), {}))  # a copy has none
        named = (
            f"{name}={'...' if _SECRET.search(name) else brief(value)}" for name, value in kwargs.items()
        )
        given = [*map(brief, args), *named]
        return f"{type(self).__name__}({', '.join(given)})"

    def _repr_html_(self) -> str:
        hooks = ", ".join(event for event in events() if callable(getattr(type(self), event, None)))
        about = (type(self).__doc__ or "").strip().partition("\n")[0]
        lines = [f"<code>{escape(repr(self))}</code>", escape(about), hooks and f"Runs at: {escape(hooks)}"]
        return f"<p>{'<br>'.join(filter(None, lines))}</p>"


_SECRET = re.compile("token|secret|password|passwd|api_?key", re.IGNORECASE)  # names of what is not shown


def _never_fails(own: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a `__repr__` for a callback whose attributes may be missing, such as after a failed __init__."""

    @wraps(own)
    def __repr__(self: Any) -> str:  # noqa: N807
        try:
            return own(self)
        except Exception:
            return f"{type(self).__name__}(...)"

    return __repr__


# Other libraries' names for our scopes: Keras, Lightning, fastai, skorch, transformers, Ignite, Composer, ...
# Their on_train_begin is once a fit, and their step is an optimizer step unless it has a part before it.
_WHEN = {
    **dict.fromkeys(("before", "begin", "start", "started", "pre"), "before"),
    **dict.fromkeys(("after", "end", "completed", "finished", "post"), "after"),
}
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("eval", "evaluation", "val", "valid", "validate", "validation", "test"), "validate"),
}
_SCOPES = {
    **dict.fromkeys(("", "fit", "train", "train_run", "run", "experiment"), "fit"),
    **dict.fromkeys(("epoch", "train_epoch", "train_run_epoch"), "epoch"),
    **dict.fromkeys(("validate", "validate_epoch", "validate_run"), "validate"),
    **dict.fromkeys(("batch", "iteration", "iter", "substep", "predict_batch", "prediction_step"), "batch"),
    **dict.fromkeys(("step", "optimizer_step", "opt_step", "update"), "step"),
    "forward": "forward",
}
_ALSO = {
    **dict.fromkeys(("before_backward", "after_criterion"), "after_loss"),
    **dict.fromkeys(("before_loss", "before_criterion", "after_pred"), "after_predict"),
    **dict.fromkeys(("after_dataloader", "before_get_batch", "after_get_batch"), "before_batch"),
    **{"before_pred": "before_forward", "before_zero_grad": "after_step", "after_zero_grad": "after_batch"},
    **dict.fromkeys(("before_predict", "before_predict_epoch"), "prepare"),  # once a pass
    **dict.fromkeys(("after_predict", "after_predict_epoch"), "release"),
}
_ONE_NAME = {
    **dict.fromkeys(("training_step", "validation_step", "train_step", "test_step"), "get_loss"),
    **{"optimizer_step": "step", "on_optimizer_step": "after_step", "on_grad_computed": "after_backward"},
    **{"on_evaluate": "after_validate", "on_log": "after_epoch", "on_prediction_step": "after_batch"},
    **{"on_start_training": "before_train", "on_end_training": "after_train", "on_exception": "cleanup_fit"},
    **{"on_save_checkpoint": "state_dict", "on_load_checkpoint": "load_state_dict"},
}


def _elsewhere(name: str, known: list[str]) -> str:
    """Return what to write for another library's name, a hook that runs as often; "" if it is not known.

    on_train_begin is before_fit; epoch_completed, after_epoch; before_backward, after_loss.
    """
    if name in _ONE_NAME:
        return _ONE_NAME[name]
    words = [_PARTS.get(word, word) for word in name.split("_") if word != "on"]
    when = next((word for word in words if word in _WHEN), "")
    if not when:
        return ""
    words.remove(when)
    if words[:1] == ["cancel"]:  # fastai's after_cancel_batch
        event = f"cleanup_{'_'.join(words[1:])}"
        return event if event in known else ""
    part = words[0] if words and words[0] in _PARTS.values() else ""
    scope, inner = "_".join(words), "_".join(words[1:] if part else words)
    if part and inner == "step":
        inner = "batch"  # a train_step is one
    own = f"{_WHEN[when]}_{inner}"
    event = _ALSO.get(own) or f"{_WHEN[when]}_{_SCOPES.get(scope) or _SCOPES.get(inner, inner)}"
    if event not in (*known, "prepare", "release"):
        return ""
    if part and event.endswith(("_batch", "_forward", "_predict", "_loss")):
        return f"{event} (with `if {'' if part == 'train' else 'not '}learn.training`)"
    return event


def meant_by(name: str) -> str:
    """Return what to write for a name that is another library's hook, such as on_epoch_end; "" for others."""
    return _elsewhere(name, events()) if name.startswith(_PREFIXES) else ""


def _check_hook(cls: type, name: str, value: Any, known: list[str]) -> None:
    """Raise TypeError if `name` seems to be meant as a hook but would not work as one."""
    where = f"{cls.__name__}.{name}"
    if name in known:
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if not callable(function):
            raise TypeError(f"{where} = {value!r}: expected a method, because {name} is an event")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{where}: a hook is called, never awaited or iterated; expected a plain method")
        try:
            args: tuple[None, ...] = (None,) if isinstance(value, staticmethod) else (None, None)
            inspect.signature(function).bind(*args)
        except TypeError:
            raise TypeError(f"{where}{inspect.signature(function)}: expected {name}(self, learn)") from None
        return
    if not callable(value) and not isinstance(value, staticmethod | classmethod):
        return
    meant = _elsewhere(name, known)
    close = next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), "")
    is_other = meant and (name.startswith("eval_") or name.endswith(("_started", "_completed")))
    if close or is_other or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES):
        meant = meant or close
        hint = f"did you mean {meant}?" if meant else "the events are listed in minilearn.events."
        raise TypeError(
            f"{where} is not an event and would never run: {hint} "
            "(If it is a helper of yours, begin its name with an underscore. If its scope is your own, "
            "define the class that uses with_cbs first.)"
        )


def check_attributes(cb: Callback) -> None:
    """Raise TypeError for a hook that was set on the instance and would not work as one."""
    known = events()
    for name, value in vars(cb).items():
        if name in known and not callable(value):
            raise TypeError(f"{cb!r}.{name} = {value!r}: expected a method, because {name} is an event")
        if callable(value) and name.startswith(_PREFIXES) and name not in known:
            _check_hook(type(cb), name, value, known)
