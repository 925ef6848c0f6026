"""Callback: what a class declares, its place in the order, and the check of its hooks' names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .events import events

if TYPE_CHECKING:
    from .learner import Learner

# Names that look like hooks: ours misspelt, or another library's (on_epoch_end, begin_fit, training_step).
_PREFIXES = ("before_", "after_", "cleanup_", "on_", "begin_")
_SUFFIXES = ("_begin", "_start", "_end", "_step")
Hook = Callable[[Any], Any]  # takes the learner


class Order(IntEnum):
    """When callbacks run at each event: from low to high, equal ones in the order of the list.

    Yours, at `Order.DEFAULT`, see batches on the device and finished rows, and the recorder sees the values
    that a step used, however the list was written.
    """

    PROFILE = -1000  # ProfileCB: before all that it times
    DEVICE = -100  # DeviceCB: all others see model and batch on the device
    BATCH_SIZE = -95  # BatchSizeCB: puts another loader in place
    SINGLE_BATCH = -90  # SingleBatchCB: takes one batch of the loader that there is by then
    ACCUMULATION = -70  # GradientAccumulationCB: others read is_accumulating
    METRICS = -50  # MetricsCB: rows are finished for all that read them
    VIEWS = -40  # TestTimeFlipCB: the mean of views is what others see as the predictions
    MIXING = -30  # MixupCB
    COMPILE = -20  # CompileCB: before your hooks copy or keep predictions
    DEFAULT = 0  # yours
    CHANNELS_LAST = 30  # ChannelsLastCB: the memory format of what the model gets
    PRECISION = 40  # MixedPrecisionCB: unscales gradients for what is after it
    CLIPPING = 45  # GradientClippingCB: of gathered and unscaled gradients
    RECORDER = 50  # RecorderCB: before schedules change what the step used
    STEP_LOG = 55  # TensorBoardCB: the same
    SCHEDULER = 60  # BatchSchedulerCB, EpochSchedulerCB, LRFinderCB
    HYPERPARAMETERS = 65  # ScheduleCB
    AVERAGING = 70  # SWACB, EMACB: after all that changes the weights
    PROGRESS = 80  # ProgressCB
    ROW_LOG = 85  # CSVLoggerCB: rows of the iterate are written by then
    STOPPING = 90  # EarlyStoppingCB: after all that looks at the weights
    SWITCHES = 95  # SwitchPointsCB
    PREDICTIONS = 1000  # what takes the predictions and leaves the batch
    PROCESSES = 1500  # DistributedCB
    GRAPH = 1600  # CUDAGraphCB
    CHECKPOINT = 2000  # CheckpointCB: the state of all others is what it will be
    RESTORE = 3000  # private: puts a checkpoint back, after all that a new fit does


class Callback:
    """Change or watch training, by methods named for the events of `minilearn.events`.

    A hook takes the learner: `def after_step(self, learn)`. It reads and changes the learner's fields
    (`learn.xb`, `learn.preds`, `learn.loss`, `learn.opt`, ...). A method named for a step (unpack, predict,
    get_loss, backward, step, zero_grad) makes this callback the owner of that step.

    What a class declares, instead of asking in its hooks (subclasses inherit it):
        order: its place among the callbacks at each event, see `Order`.
        only_one: why a learner may have only one callback of this class; "" where several may be.
        in_evaluation: False for what takes no part in a pass that does not train: `fit(train=False)`,
            `validate`, also in the middle of a fit, and `predict`. A fit's own validation is a part of
            training.
        in_nested: False for what sits out after_batch and the hooks of validate in a validation that a
            callback calls in the middle of a fit.
        in_lr_find: whether it takes part in `learn.lr_find`; False for what only watches.
        in_graph: True for what CUDAGraphCB may capture: hooks from after_predict to before_step that launch
            kernels on the device and do nothing else.
        in_each_process: False for what is written or shown once, also where DistributedCB has several
            processes train: its hooks then run in the first only.
        needs_target: True for what cannot do without the target of a batch.
        shows_progress: True for what shows the progress of a fit, so that others may print beside it.

    Raises: TypeError when a class is made whose method looks like a misspelt hook, or takes other
        arguments than the learner.
    """

    order: ClassVar[int] = Order.DEFAULT
    only_one: ClassVar[str] = ""
    in_evaluation: ClassVar[bool] = True
    in_nested: ClassVar[bool] = True
    in_lr_find: ClassVar[bool] = True
    in_graph: ClassVar[bool] = False
    in_each_process: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False
    shows_progress: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = events()
        for name in dir(cls):
            if not name.startswith("_") and not hasattr(Callback, name):
                _check_hook(cls, name, inspect.getattr_static(cls, name), known)

    def plan_steps(self, learn: Learner, steps: list[int | None]) -> list[int | None]:
        """Return the number of optimizer steps in each epoch of the coming fit, None where not known.

        For a callback that changes it: one that resizes batches, or skips steps to gather gradients.
        `steps` is what was planned so far, by the loader and the callbacks that run before this one.
        Called before before_fit, and by a scheduler's preview.
        """
        return steps

    def plan_schedules(self, learn: Learner, n_epochs: int) -> int:
        """Return how many epochs of the coming fit, from its first on, schedules of the lr rule.

        For a callback that sets the lr itself from some epoch on: it returns that epoch. `n_epochs` is
        what the callbacks before this one left.
        """
        return n_epochs

    def extra_params(self, learn: Learner) -> Iterable[Any]:
        """Return parameters of this callback's own, each an nn.Parameter, that the optimizer is to train.

        Called when the optimizer is made, after `prepare`, and again while training: always the same ones.
        They are a group of their own, with `learn.lr`. Kept as attributes, or in a module that is one, they
        are in checkpoints; a `state_dict` of your own has to hold them. DeviceCB moves those that are there
        before `prepare`.
        """
        return ()

    def prepare(self, learn: Learner) -> None:
        """Make ready what every pass needs: the device, surgery on the model, handles that `release` removes.

        Called before all else in a fit, and in a validate or predict outside of one; in a fit that is before
        the optimizer is made from the model. Hooks of fit and epoch do not run in validate and predict.
        """

    def release(self, learn: Learner) -> None:
        """Undo what `prepare` made. Always called when the pass ends, in reverse order, however it ended."""

    def wrap_hook(self, name: str, hook: Hook) -> Hook:
        """Return what is called in place of a hook or step, such as "RecorderCB.after_step": the hook itself.

        For a callback that watches the others, as ProfileCB does. Called when hooks are looked up, not at
        each event.
        """
        return hook

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this callback: unless a subclass does, all its attributes.

        Kept are numbers, text, tensors, arrays, random generators, lists, dicts and the like, objects of
        classes in the callback's own module, and objects with a state_dict. Functions, open files,
        loggers, and the learner with its parts are left as they are when the state is loaded. For
        anything else CheckpointCB raises before training, and says what to define.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what state_dict gave, in a fit that goes on; the before_ hooks have run by then."""
        vars(self).update(state)

    @property
    def saves_to(self) -> Path | None:
        """The folder of the checkpoints that this callback writes; None unless a subclass writes some."""
        return None

    def epoch_state(self) -> dict[str, Any]:
        """Return what hooks before_epoch, before_train and before_validate read of the state: all of it.

        A checkpoint in the middle of an epoch has it twice, as the epoch began and as it is, so that these
        hooks see the same in a run that is resumed. A subclass leaves out what is large and not read there.
        """
        return self.state_dict()

    def averaged(self, learn: Learner) -> AbstractContextManager[None] | None:
        """Return a context in which the model holds the average of weights that this callback keeps.

        None unless a subclass keeps one. Raises: RuntimeError where there is nothing in it yet.
        """
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _elsewhere(name: str, known: list[str]) -> list[str]:
    """Return our event for another library's name: before_fit for on_fit_start, after_epoch for epoch_end."""
    words = name.removeprefix("on_").split("_")
    when = {"begin": "before", "start": "before", "end": "after"}
    said = next((when[word] for word in (words[0], words[-1]) if word in when), None)
    ours = {"training": "train", "validation": "validate", "step": "batch"}  # a step there is a batch
    scopes = [ours.get(word, word) for word in reversed(words)]
    return [event for scope in scopes if (event := f"{said}_{scope}") in known][:1]


def _check_hook(cls: type, name: str, value: Any, known: list[str]) -> None:
    """Raise TypeError if `name` seems to be meant as a hook but would not work as one."""
    where = f"{cls.__name__}.{name}"
    if name in known:
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if not callable(function):
            raise TypeError(f"{where} = {value!r}: expected a method, for {name} is an event")
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
    close = get_close_matches(name, known, n=1, cutoff=0.8)
    if close or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES):
        close = close or _elsewhere(name, known)
        hint = f"did you mean {close[0]}?" if close else "the events are listed in minilearn.events."
        raise TypeError(
            f"{where} is no event and would never run: {hint} "
            "(If it is a helper of yours, begin its name with an underscore. If its scope is your own, "
            "define the class that uses with_cbs first.)"
        )


def check_attributes(cb: Callback) -> None:
    """Raise TypeError for a hook that was set on the instance and would not work as one."""
    known = events()
    for name, value in vars(cb).items():
        if name in known and not callable(value):
            raise TypeError(f"{cb!r}.{name} = {value!r}: expected a method, for {name} is an event")
        if callable(value) and name.startswith(_PREFIXES) and name not in known:
            _check_hook(type(cb), name, value, known)
