"""Callback, and the host that runs callbacks: their order, the check of their hooks, the owners of steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, ClassVar

from fastcore.basics import listify

from .events import STEPS, CancelException, events

# Names that look like hooks: ours misspelt, or another library's (on_epoch_end, begin_fit, training_step).
_PREFIXES = ("before_", "after_", "cleanup_", "on_", "begin_")
_SUFFIXES = ("_begin", "_start", "_end", "_step")
Hook = Callable[[Any], Any]  # takes the learner
_SETTERS = {"predict": "preds", "get_loss": "loss"}  # the steps that make something, and where it goes


class Callback:
    """Change or watch training, by methods named for the events of `minilearn.events`.

    A hook takes the learner: `def after_step(self, learn)`. It reads and changes the learner's fields
    (`learn.batch`, `learn.preds`, `learn.loss`, `learn.opt`, ...). A method named for a step (predict,
    get_loss, backward, step, zero_grad) makes this callback the owner of that step.

    Class attributes, both inherited:
        order: callbacks run from low to high at each event, equal ones in the order of the list.
            Shipped ones use -100 (device), -50 (metrics), 0 (yours), 50 (recorder), 60 (schedulers),
            70 (averages), 80 (progress), 1500 (processes), 2000 (checkpoints): yours see batches on the
            device and finished rows, and the recorder sees the values that a step used, however the list
            was written.
        in_lr_find: whether it takes part in `learn.lr_find`; False for what only watches.
        in_graph: True for what CUDAGraphCB may capture: hooks from after_predict to before_step that launch
            kernels on the device and do nothing else.
        in_each_process: False for what is written or shown once, also where DistributedCB has several
            processes train: its hooks then run in the first alone.

    Raises: TypeError when a class is made whose method looks like a misspelt hook, or takes other
        arguments than the learner.
    """

    order: ClassVar[int] = 0
    in_lr_find: ClassVar[bool] = True
    in_graph: ClassVar[bool] = False
    in_each_process: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = events()
        for name in dir(cls):
            if not name.startswith("_") and not hasattr(Callback, name):
                _check_hook(cls, name, inspect.getattr_static(cls, name), known)

    def plan_steps(self, learn: Any, steps: list[int | None]) -> list[int | None]:
        """Return the number of optimizer steps in each epoch of the coming fit, None where not known.

        For a callback that changes it: one that resizes batches, or skips steps to gather gradients.
        `steps` is what was planned so far, by the loader and the callbacks that run before this one.
        Called before before_fit, and by a scheduler's preview.
        """
        return steps

    def plan_schedules(self, learn: Any, n_epochs: int) -> int:
        """Return how many epochs of the coming fit, from its first on, schedules of the lr rule.

        For a callback that sets the lr itself from some epoch on: it returns that epoch. `n_epochs` is
        what the callbacks before this one left.
        """
        return n_epochs

    def prepare(self, learn: Any) -> None:
        """Change the model before the optimizer is made from it, as sharding has to.

        Called before all else in a fit, and in a validate or predict of its own.
        """

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


class CallbackHost:
    """Something with callbacks: keeps them in order and runs their hooks. The Learner is one.

    Hooks are looked up when callbacks are added or removed and when a fit starts, not at each event.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls).keys() & set(events()) - set(STEPS):
            raise TypeError(f"{cls.__name__}.{name} would never run: hooks belong to a Callback, in cbs")

    def __init__(self, cbs: Any = None, defaults: Iterable[Callback] = ()) -> None:
        self.scopes: list[str] = []  # the scopes that are running, outermost first
        self.is_failing = False  # in cleanup_ hooks: whether the scope is left by an error, no cancel
        self._defaults = list(defaults)
        self._given: list[Callback] = []
        self._hooks: dict[str, tuple[tuple[str, Callable[[Any], Any]], ...]] = {}
        self._cbs: tuple[Callback, ...] = ()
        self._set_cbs(listify(cbs))

    @property
    def cbs(self) -> tuple[Callback, ...]:
        """The callbacks, default ones too, in the order in which they run."""
        return self._cbs

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
    def extra_cbs(self, cbs: Any) -> Iterator[None]:
        """Have more callbacks, perhaps none, inside a `with`, however it ends; look all hooks up anew."""
        extra = listify(cbs)
        self._set_cbs([*self._given, *extra])
        try:
            yield
        finally:
            ids = {id(cb) for cb in extra}
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
                if callable(getattr(cb, event, None))
            ]
            if event in STEPS:
                found = self._owner(event, found)
            for cb in cbs:
                found = [(name, cb.wrap_hook(name, hook)) for name, hook in found]
            if found:
                hooks[event] = tuple(found)
        return hooks

    def has_default(self, step: str) -> bool:
        """Whether a step is done in this host's default way, by neither a callback nor a subclass."""
        return hasattr(self._hooks[step][0][1], "_is_default_step")

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
        for name, hook in self._hooks[event]:
            try:
                if hook(self) is not None and event in _SETTERS:
                    raise TypeError(
                        f"{name} returned a value, which nobody reads: set learn.{_SETTERS[event]}"
                    )
            except CancelException as e:
                if cancel is None or not self.is_inside(e, cancel):
                    cancel = e
            except BaseException as e:
                self.add_note(e, name)
                if not event.startswith("cleanup_"):
                    raise
                if error is None:
                    error = e
                else:
                    error.add_note(f"minilearn: then {name} failed too: {e!r}")
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
        steps = [n_batches] * n_epochs
        for cb in self.cbs:
            steps = cb.plan_steps(self, steps)
            if not isinstance(steps, list) or len(steps) != n_epochs:
                raise ValueError(
                    f"{cb!r}.plan_steps gave {steps!r}: expected a list of {n_epochs}, one for each epoch"
                )
            if any(n is not None and (not isinstance(n, int) or n < 0) for n in steps):
                raise ValueError(f"{cb!r}.plan_steps gave {steps!r}: expected whole numbers >= 0, or None")
        return steps

    def scheduled_epochs(self, n_epochs: int) -> int:
        """Return how many of n_epochs epochs the schedules of the lr rule, by what the callbacks plan."""
        for cb in self.cbs:
            n_epochs = cb.plan_schedules(self, n_epochs)
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
        if not any(note.startswith("minilearn: in ") for note in getattr(error, "__notes__", ())):
            error.add_note(f"minilearn: in {name}, {self.where()}")

    def explain(self) -> None:
        """Print the events in the order of the loop, each with the hooks that run at it, in order."""
        width = max(map(len, self._hooks), default=0)
        for event in events():
            if event in self._hooks:
                names = [name.removesuffix(f".{event}") for name, _ in self._hooks[event]]
                print(f"{event:{width}}  {' -> '.join(names)}{'  (the owner)' if event in STEPS else ''}")
