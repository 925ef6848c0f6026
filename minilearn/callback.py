"""Callback, and the host that runs callbacks: their order, the check of their hooks, the owners of steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastcore.basics import listify

from .events import _LOOP, STEPS, CancelException, events

if TYPE_CHECKING:
    from .learner import Learner

# Names that look like hooks: ours misspelt, or another library's (on_epoch_end, begin_fit, training_step).
_PREFIXES = ("before_", "after_", "cleanup_", "on_", "begin_")
_SUFFIXES = ("_begin", "_start", "_end", "_step")
Hook = Callable[[Any], Any]  # takes the learner
_SETTERS = {
    "unpack": "xb and learn.yb",
    "predict": "preds",
    "get_loss": "loss",
}  # the steps that make something, and where it goes


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


def _check_attributes(cb: Callback) -> None:
    """Raise TypeError for a hook that was set on the instance and would not work as one."""
    known = events()
    for name, value in vars(cb).items():
        if name in known and not callable(value):
            raise TypeError(f"{cb!r}.{name} = {value!r}: expected a method, for {name} is an event")
        if callable(value) and name.startswith(_PREFIXES) and name not in known:
            _check_hook(type(cb), name, value, known)


def default_step(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a host's own way to do a step, which a subclass or one callback may replace."""
    method._is_default_step = True  # type: ignore[attr-defined]
    return method


def _check_callback(cb: Any) -> None:
    if isinstance(cb, Callback):
        return
    name = cb.__name__ if isinstance(cb, type) else type(cb).__name__
    if isinstance(cb, type) and issubclass(cb, Callback):
        raise TypeError(f"cbs has the class {name}: expected an instance; write {name}()")
    hint = ""
    if "torch.optim" in getattr(cb, "__module__", ""):
        hint = "; for a torch scheduler write BatchSchedulerCB(OneCycleLR), or EpochSchedulerCB(...)"
    if getattr(cb, "__module__", "") == "minilearn.schedules":
        hint = "; for a schedule write ScheduleCB('lr', ...)"
    raise TypeError(f"cbs has {cb!r}: expected instances of Callback{hint}")


def _check_only_one(cbs: Iterable[Callback]) -> None:
    """Raise ValueError where two callbacks are of a class of which there can be one."""
    found: dict[Any, Callback] = {}
    for cb in cbs:
        if not cb.only_one:
            continue
        kind: Any = next(cls for cls in type(cb).__mro__ if "only_one" in vars(cls))
        if kind in found:
            raise ValueError(f"{found[kind]!r} and {cb!r}: expected one of them, because {kind.only_one}")
        found[kind] = cb


# The events of passes that are no fit; a fit has all. `minilearn.events` has the loop.
_BATCH = ("before_batch", "unpack", "before_forward", "predict", "cleanup_forward", "cleanup_batch")
_EVENTS = {
    "validate": (
        *(*_BATCH, "after_predict", "get_loss", "after_loss", "after_forward", "after_batch"),
        *("before_validate", "after_validate", "cleanup_validate"),
    ),
    "predict": (*_BATCH, "after_predict"),
    "measure": _BATCH,
}
_NESTED = ("after_batch", "before_validate", "after_validate", "cleanup_validate")


@dataclass(frozen=True)
class Pass:
    """What kind of pass over the data is running; it says which hooks run.

    Args:
        purpose: "fit", "lr_find", "validate", "predict", or "measure" (of BatchNorm statistics under an
            average); None outside of a pass.
        trains: whether it is a fit that trains; its own validation is a part of it.
        is_nested: whether a callback called it in the middle of another one.
        is_whole: whether the state is whole after each batch; not so while the model holds an average.
    """

    purpose: str | None = None
    trains: bool = True
    is_nested: bool = False
    is_whole: bool = True

    @property
    def rests(self) -> bool:
        """Whether the learner comes to rest after a batch."""
        return self.is_whole and self.purpose in ("fit", "lr_find")

    def takes(self, cb: Callback) -> bool:
        """Whether a callback takes part."""
        return self.trains or cb.in_evaluation

    def has(self, cb: Callback, event: str) -> bool:
        """Whether a callback's hook of an event runs."""
        if not self.takes(cb) or not self.fires(event):
            return False
        return cb.in_nested or not self.is_nested or event not in _NESTED

    def fires(self, event: str) -> bool:
        """Whether there is such an event or step; those of a scope of the user's own are in every pass."""
        if event == "at_rest" and not self.is_whole:
            return False
        return self.purpose not in _EVENTS or event in _EVENTS[self.purpose] or event not in _LOOP


class CallbackHost:
    """Something with callbacks: keeps them in order and runs their hooks. The Learner is one.

    Hooks are looked up when callbacks are added or removed and when a pass starts, not at each event.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls).keys() & set(events()) - set(STEPS):
            raise TypeError(f"{cls.__name__}.{name} would never run: hooks belong to a Callback, in cbs")

    _private: ClassVar[tuple[Callback, ...]] = ()  # the host's own, without state: last, and not among cbs

    def __init__(self, cbs: Any = None, defaults: Iterable[Callback] = ()) -> None:
        self.scopes: list[str] = []  # the scopes that are running, outermost first
        self.is_failing = False  # in cleanup_ hooks: whether the scope is left by an error, no cancel
        self.cancelled_by: dict[str, str] = {}  # scope -> the hook that cancelled it last in this pass
        self._defaults = list(defaults)
        self._given: list[Callback] = []
        self._running: Hook | None = None  # the hook that runs
        self._hooks: dict[str, tuple[tuple[str, Callable[[Any], Any]], ...]] = {}
        self._cbs: tuple[Callback, ...] = ()
        self._pass = Pass()
        self._set_cbs(listify(cbs))

    @property
    def cbs(self) -> tuple[Callback, ...]:
        """The callbacks, default ones too, in the order in which they run."""
        return self._cbs

    @property
    def purpose(self) -> str | None:
        """What the running pass is for, see `Pass`; None outside of one."""
        return self._pass.purpose

    @property
    def is_nested(self) -> bool:
        """Whether the running pass was called by a callback in the middle of another one."""
        return self._pass.is_nested

    @property
    def shows_progress(self) -> bool:
        """Whether there is a callback that shows the progress of a fit."""
        return any(cb.shows_progress for cb in self._cbs)

    @property
    def rests(self) -> bool:
        """Whether at_rest fires after each batch of the running pass."""
        return self._pass.rests

    @contextmanager
    def no_rest(self) -> Iterator[None]:
        """Have no at_rest fire inside a `with`, for the state is not whole there: nothing is saved."""
        with self.extra_cbs(None, replace(self._pass, is_whole=False)):
            yield

    def takes_part(self, cb: Callback) -> bool:
        """Whether a callback takes part in the running pass."""
        return self._pass.takes(cb)

    # The set of callbacks -------------------------------------------------------------------------

    def add_cb(self, cb: Callback) -> None:
        """Add a callback for good. In the middle of a fit it takes part from the next event on."""
        self._set_cbs([*self._given, cb])

    def remove_cb(self, cb: Callback) -> None:
        """Remove a callback that was added."""
        if not any(c is cb for c in self._given):
            raise ValueError(f"{cb!r} is not among the callbacks that were added: {self._given}")
        self._set_cbs([c for c in self._given if c is not cb])

    @contextmanager
    def extra_cbs(self, cbs: Any, kind: Pass | None = None) -> Iterator[None]:
        """Have more callbacks, perhaps none, inside a `with`, however it ends; all hooks are looked up again.

        Args:
            kind: the pass that is about to run. None: as before.
        """
        extra, outer = listify(cbs), self._pass
        self._pass = outer if kind is None else kind
        try:
            self._set_cbs([*self._given, *extra])
        except BaseException:
            self._pass = outer
            raise
        try:
            yield
        finally:
            ids, self._pass = {id(cb) for cb in extra}, outer
            self._keep([cb for cb in self._given if id(cb) not in ids])

    def _set_cbs(self, given: list[Callback]) -> None:
        for i, cb in enumerate(given):
            _check_callback(cb)
            _check_attributes(cb)
            if any(cb is other for other in given[:i]):
                raise ValueError(
                    f"{cb!r} is in cbs twice: expected each instance once, its hooks would run twice"
                )
        self._keep(given)

    def _keep(self, given: list[Callback]) -> None:
        # One of the same kind takes a default's place.
        defaults = [d for d in self._defaults if not any(isinstance(cb, type(d)) for cb in given)]
        cbs = tuple(sorted([*defaults, *given], key=lambda cb: cb.order))
        _check_only_one(cbs)
        self._hooks = self._find_hooks(cbs)
        self._given, self._cbs = given, cbs

    def _find_hooks(
        self, cbs: tuple[Callback, ...]
    ) -> dict[str, tuple[tuple[str, Callable[[Any], Any]], ...]]:
        hooks: dict[str, Any] = {}
        for event in events():
            found = [
                (f"{type(cb).__name__}.{event}", getattr(cb, event))
                for cb in cbs
                if self._pass.has(cb, event) and callable(getattr(cb, event, None))
            ]
            if event in STEPS and self._pass.fires(event):
                found = self._owner(event, found)
            for cb in cbs:
                if self._pass.takes(cb):
                    found = [(name, cb.wrap_hook(name, hook)) for name, hook in found]
            found += [
                (f"{type(cb).__name__}.{event}", getattr(cb, event))
                for cb in self._private
                if self._pass.has(cb, event) and hasattr(cb, event)
            ]
            if found:
                hooks[event] = tuple(found)
        return hooks

    def has_default(self, step: str) -> bool:
        """Whether a step is done in this host's default way, by neither a callback nor a subclass."""
        return step not in self._hooks or hasattr(self._hooks[step][0][1], "_is_default_step")

    def _owner(self, step: str, found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Return the one owner of a step; this host's own method counts if it is not a default."""
        own = getattr(type(self), step, None)
        if own is not None and (not found or not hasattr(own, "_is_default_step")):
            found = [(f"{type(self).__name__}.{step}", own), *found]
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise ValueError(
                f"{step} has {len(found)} owners, {names}: expected exactly one; remove all but one"
            )
        return found

    @contextmanager
    def without(self, cb: Callback | None) -> Iterator[None]:
        """Have no hooks of one callback run inside a `with`; of None all do."""
        outer = self._hooks
        if cb is not None:
            self._hooks = self._find_hooks(tuple(other for other in self._cbs if other is not cb))
        try:
            yield
        finally:
            self._hooks = outer

    @property
    def running_cb(self) -> Callback | None:
        """The callback whose hook runs, if one does."""
        owner = getattr(inspect.unwrap(self._running), "__self__", None) if self._running else None
        return owner if isinstance(owner, Callback) else None

    def left(self, cancel: CancelException) -> None:
        """Take note that a scope was left by its Cancel exception."""

    # Running --------------------------------------------------------------------------------------

    def callback(self, event: str) -> None:
        """Run the hooks of an event, or the owner of a step.

        All hooks run before a cancel acts (of several, that of the outermost scope). An error ends
        the event at once, except in a cleanup_ event, where the other hooks still run.
        """
        if event not in self._hooks:  # most events of a step
            return
        cancel: CancelException | None = None
        error: BaseException | None = None
        outer = self._running
        try:
            for name, hook in self._hooks[event]:
                self._running = hook
                try:
                    if hook(self) is not None and event in _SETTERS:
                        raise TypeError(
                            f"{name} returned a value, which nobody reads: set learn.{_SETTERS[event]}"
                        )
                except CancelException as e:
                    if cancel is None or not self.is_inside(e, cancel):
                        cancel = e
                        self.cancelled_by[e.scope] = name
                except BaseException as e:
                    self.add_note(e, name)
                    if not event.startswith("cleanup_"):
                        raise
                    if error is None:
                        error = e
                    else:
                        error.add_note(f"minilearn: then {name} failed too: {e!r}")
        finally:
            self._running = outer
        if error is not None:
            raise error
        if cancel is not None:
            if cancel.scope not in self.scopes:
                running = ", ".join(self.scopes) or "none"
                cancel.add_note(
                    f"minilearn: no {cancel.scope} is running at {event} to cancel; running: {running}"
                )
            raise cancel

    def planned_steps(self, n_epochs: int, n_batches: int | None) -> list[int | None]:
        """Return the optimizer steps of each of n_epochs epochs, with what the callbacks make of them."""
        host: Any = self
        steps = [n_batches] * n_epochs
        for cb in self.cbs:
            steps = cb.plan_steps(host, steps)
            if not isinstance(steps, list) or len(steps) != n_epochs:
                raise ValueError(
                    f"{cb!r}.plan_steps gave {steps!r}: expected a list of {n_epochs}, one for each epoch"
                )
            if any(n is not None and (not isinstance(n, int) or n < 0) for n in steps):
                raise ValueError(f"{cb!r}.plan_steps gave {steps!r}: expected whole numbers >= 0, or None")
        return steps

    def scheduled_epochs(self, n_epochs: int) -> int:
        """Return how many of n_epochs epochs the schedules of the lr rule, by what the callbacks plan."""
        host: Any = self
        for cb in self.cbs:
            n_epochs = cb.plan_schedules(host, n_epochs)
        return n_epochs

    def _depth(self, cancel: CancelException) -> int:
        return self.scopes.index(cancel.scope) if cancel.scope in self.scopes else -1

    def is_inside(self, error: BaseException, cancel: CancelException) -> bool:
        """Whether an error is a cancel of the same scope as `cancel`'s, or of one inside it."""
        return isinstance(error, CancelException) and self._depth(error) >= self._depth(cancel)

    def where(self) -> str:
        """Say where in the loop we are, for the notes on errors."""
        return f"inside {' > '.join(self.scopes)}"

    def add_note(self, error: BaseException, name: str) -> None:
        """Add to an error, once, in which callback or step and where in the loop it was raised."""
        if isinstance(error, CancelException):
            return
        if any(note.startswith("minilearn: in ") for note in getattr(error, "__notes__", ())):
            return
        error.add_note(f"minilearn: in {name}, {self.where()}")
        owner = error.obj if isinstance(error, AttributeError) else None
        if (
            isinstance(owner, Callback)
            and hasattr(owner, "before_fit")
            and not self._pass.fires("before_fit")
        ):
            error.add_note(
                f"minilearn: before_fit does not run in a pass of {self.purpose!r}; what every pass needs is "
                "made in __init__ or prepare(self, learn)"
            )

    def explain(self) -> None:
        """Print the events in the order of the loop, each with the hooks that run at it, in order."""
        shown = {
            event: [name for name, hook in hooks if getattr(hook, "__self__", None) not in self._private]
            for event, hooks in self._hooks.items()
        }
        width = max((len(event) for event, names in shown.items() if names), default=0)
        for event in events():
            if shown.get(event):
                names = [name.removesuffix(f".{event}") for name in shown[event]]
                print(f"{event:{width}}  {' -> '.join(names)}{'  (the owner)' if event in STEPS else ''}")
