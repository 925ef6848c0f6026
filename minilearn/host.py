"""CallbackHost: keeps callbacks in order, finds the hooks of each kind of pass and the owners of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ClassVar

from fastcore.basics import listify

from .arguments import is_whole
from .callback import Callback, Hook, check_attributes, meant_by
from .events import _LOOP, STEPS, CancelException, cancel_exception, events

_SETTERS = {"unpack": "xb and learn.yb", "predict": "preds", "get_loss": "loss"}  # what a step sets


def with_cbs(scope: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a method of a CallbackHost a scope, with events before_, after_ and cleanup_ `scope`.

    The method keeps its name and its return value (None if it was cancelled before it returned).
    `cleanup_` runs however the method ended, and an error in it never hides the first one.

    Source: document 003, whose `with_cbs` drops the return value.
    """
    cancel = cancel_exception(scope)
    before, after, cleanup = f"before_{scope}", f"after_{scope}", f"cleanup_{scope}"

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = None
            self.scopes.append(scope)
            try:
                if before in self._hooks:
                    self.callback(before)
                # Without arguments to unpack, a call takes 0.07 us instead of 0.12.
                result = method(self, *args, **kwargs) if args or kwargs else method(self)
                if after in self._hooks:
                    self.callback(after)
            except cancel as error:
                self.left(scope, error)
            except BaseException as error:
                if isinstance(error, CancelException):
                    self.left(scope, error)
                is_called = scope == "validate" and self.purpose in _NAMED  # by the user, by this name
                name = self.purpose if is_called else method.__name__
                self.add_note(error, f"{type(self).__name__}.{name}")
                outer, self.is_failing = self.is_failing, not isinstance(error, CancelException)
                try:
                    self.callback(cleanup)
                except BaseException as second:
                    if isinstance(error, CancelException) and not self.is_inside(second, error):
                        raise  # a cancel of an outer scope is not an error: this one is the first
                    error.add_note(f"minilearn: then {cleanup} failed too: {second!r}")
                finally:
                    self.scopes.pop()
                    self.is_failing = outer
                raise
            try:
                if cleanup in self._hooks:
                    self.callback(cleanup)
            except cancel:
                pass  # the scope is being left already
            finally:
                self.scopes.pop()
            return result

        return run

    return decorate


def stray(error: StopIteration, name: str) -> RuntimeError:
    """Return the error to raise in place of a StopIteration that escaped, which would silently end a loop."""
    stopped = RuntimeError(f"{name} raised StopIteration: did a next(...) in it find nothing left?")
    stopped.__cause__ = error
    return stopped


def default_step(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a host's default way to do a step, which a subclass or one callback may replace."""
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
    """Raise ValueError if there are two callbacks of a class that allows only one."""
    found: dict[Any, Callback] = {}
    for cb in cbs:
        if not cb.only_one:
            continue
        kind: Any = next(cls for cls in type(cb).__mro__ if "only_one" in vars(cls))
        if kind in found:
            raise ValueError(f"{found[kind]!r} and {cb!r}: expected one of them, because {kind.only_one}")
        found[kind] = cb


# The events of passes other than fits; a fit has all of them. `minilearn.events` shows the loop.
_BATCH = ("before_batch", "unpack", "before_forward", "predict", "cleanup_forward", "cleanup_batch")
_EVENTS = {
    "validate": (
        *(*_BATCH, "after_predict", "get_loss", "after_loss", "after_forward", "after_batch"),
        *("before_validate", "after_validate", "cleanup_validate"),
    ),
    "predict": (*_BATCH, "after_predict"),
    "measure": _BATCH,
}
Hooks = dict[str, Sequence[tuple[str, Hook, Callback | None]]]  # event -> name, hook, its callback
_NAMED = ("validate", "predict")  # purposes of passes that are called as the host's methods are
_NESTED = ("after_batch", "before_validate", "after_validate", "cleanup_validate")


@dataclass(frozen=True)
class Pass:
    """What kind of pass over the data is running; it says which hooks run.

    Args:
        purpose: "fit", "lr_find", "validate", "predict", or "measure" (BatchNorm statistics of averaged
            weights); None outside a pass.
        trains: whether it is a fit that trains, which includes its own validation.
        is_nested: whether a callback started it during another pass.
        is_whole: whether the state is complete after each batch; not so while the model holds an average.
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
        """Whether a callback's hook for an event runs."""
        if not self.takes(cb) or not self.fires(event):
            return False
        return cb.in_nested or not self.is_nested or event not in _NESTED

    def fires(self, event: str) -> bool:
        """Whether this pass has such an event or step; those of user-defined scopes are in every pass."""
        if event == "at_rest" and not self.is_whole:
            return False
        return self.purpose not in _EVENTS or event in _EVENTS[self.purpose] or event not in _LOOP


class CallbackHost:
    """Something with callbacks: keeps them in order and runs their hooks. The Learner is one.

    Hooks are looked up when callbacks are added or removed and when a pass starts, not at each event.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name in STEPS or not (name in events() or (callable(value) and meant_by(name))):
                continue
            hint = f", under the name {meant}" if (meant := meant_by(name)) not in ("", name) else ""
            raise TypeError(
                f"{cls.__name__}.{name} would never run: hooks belong to a Callback, in cbs{hint}"
            )

    _private: ClassVar[tuple[Callback, ...]] = ()  # the host's own, stateless: last, and not in cbs

    def __init__(self, cbs: Any = None, defaults: Iterable[Callback] = ()) -> None:
        self.scopes: list[str] = []  # the scopes that are running, outermost first
        self.is_failing = False  # in cleanup_ hooks: whether an error, not a cancel, leaves the scope
        self.cancelled_by: dict[str, str] = {}  # scope -> the hook that cancelled it last in this pass
        self._defaults = list(defaults)
        self._given: list[Callback] = []
        self.running_cb: Callback | None = None  # whose hook is running
        self._left_out: tuple[Callback, ...] = ()  # those whose hooks do not run now
        self._hooks: Hooks = {}
        self._found: dict[tuple[int, ...], Hooks] = {}  # by which callbacks are left out
        self._cbs: tuple[Callback, ...] = ()
        self._pass = Pass()
        self._set_cbs(listify(cbs))

    @property
    def cbs(self) -> tuple[Callback, ...]:
        """The callbacks, including the default ones, in the order in which they run."""
        return self._cbs

    @property
    def purpose(self) -> str | None:
        """What the running pass is for, see `Pass`; None outside a pass."""
        return self._pass.purpose

    @property
    def is_nested(self) -> bool:
        """Whether a callback started the running pass during another one."""
        return self._pass.is_nested

    @property
    def is_again(self) -> bool:
        """Whether `learn.again` is running the batch's forward once more."""
        return bool(self._left_out)

    @property
    def shows_progress(self) -> bool:
        """Whether some callback shows the progress of a fit."""
        return any(cb.shows_progress for cb in self._cbs)

    @contextmanager
    def no_rest(self) -> Iterator[None]:
        """Fire no at_rest inside a `with`, because the state is not complete there: nothing is saved."""
        with self.extra_cbs(None, replace(self._pass, is_whole=False)):
            yield

    def takes_part(self, cb: Callback) -> bool:
        """Whether a callback takes part in the running pass."""
        return self._pass.takes(cb)

    # The set of callbacks -------------------------------------------------------------------------

    def add_cb(self, cb: Callback) -> None:
        """Add a callback permanently. During a fit, it takes part from the next event on."""
        self._set_cbs([*self._given, cb])

    def remove_cb(self, cb: Callback) -> None:
        """Remove a callback that was added."""
        if not any(c is cb for c in self._given):
            raise ValueError(f"{cb!r} is not among the callbacks that were added: {self._given}")
        self._set_cbs([c for c in self._given if c is not cb])

    def drop_cbs(self, is_unwanted: Callable[[Callback], bool]) -> None:
        """Remove callbacks, default ones too."""
        self._defaults = [cb for cb in self._defaults if not is_unwanted(cb)]
        self._set_cbs([cb for cb in self._given if not is_unwanted(cb)])

    @contextmanager
    def extra_cbs(self, cbs: Any, kind: Pass | None = None) -> Iterator[None]:
        """Add callbacks, or none, for a `with` block, however it ends; all hooks are looked up again.

        Args:
            kind: the pass that is about to run. None: no change.
        """
        extra, outer, left_out = listify(cbs), self._pass, self._left_out
        if kind is not None:
            self._pass, self._left_out = kind, ()
        try:
            self._set_cbs([*self._given, *extra])
        except BaseException:
            self._pass, self._left_out = outer, left_out
            raise
        try:
            yield
        finally:
            ids = {id(cb) for cb in extra}
            self._pass, self._left_out = outer, left_out
            self._keep([cb for cb in self._given if id(cb) not in ids])

    def _set_cbs(self, given: list[Callback]) -> None:
        for i, cb in enumerate(given):
            _check_callback(cb)
            check_attributes(cb)
            if any(cb is other for other in given[:i]):
                raise ValueError(
                    f"{cb!r} is in cbs twice: expected each instance once, because its hooks would run twice"
                )
        self._keep(given)

    def _keep(self, given: list[Callback]) -> None:
        # A given callback of the same kind replaces a default.
        defaults = [d for d in self._defaults if not any(isinstance(cb, type(d)) for cb in given)]
        cbs = tuple(sorted([*defaults, *given], key=lambda cb: cb.order))
        _check_only_one(cbs)
        hooks = self._find_hooks(cbs)
        self._given, self._cbs, self._found = given, cbs, {}
        self._use(hooks)
        self.rests = self._pass.rests  # whether at_rest fires after each batch of the running pass

    def _use(self, hooks: Hooks) -> None:
        owners = {step: hooks[step][0][1] for step in STEPS if step in hooks}
        own = {step for step, owner in owners.items() if not hasattr(owner, "_is_default_step")}
        self._hooks, self._default_steps = hooks, frozenset(STEPS) - own

    def _find_hooks(self, cbs: tuple[Callback, ...]) -> Hooks:
        hooks: Hooks = {}
        cbs = tuple(cb for cb in cbs if not any(cb is other for other in self._left_out))
        for event in events():
            found: list[tuple[str, Hook, Callback | None]] = [
                (f"{type(cb).__name__}.{event}", getattr(cb, event), cb)
                for cb in cbs
                if self._pass.has(cb, event) and callable(getattr(cb, event, None))
            ]
            if event in STEPS and self._pass.fires(event):
                found = self._owner(event, found)
            for cb in cbs:
                if self._pass.takes(cb):
                    found = [(name, cb.wrap_hook(name, hook), owner) for name, hook, owner in found]
            found += [
                (f"{type(cb).__name__}.{event}", getattr(cb, event), cb)
                for cb in self._private
                if self._pass.has(cb, event) and hasattr(cb, event)
            ]
            if found:
                hooks[event] = tuple(found)
        return hooks

    def has_default(self, step: str) -> bool:
        """Whether a step has this host's default owner, neither a callback nor a subclass."""
        return step in self._default_steps

    def _owner(self, step: str, found: list[Any]) -> list[Any]:
        """Return the one owner of a step; this host's own method counts if it is not a default."""
        own = getattr(type(self), step, None)
        if own is not None and (not found or not hasattr(own, "_is_default_step")):
            found = [(f"{type(self).__name__}.{step}", own, None), *found]
        if len(found) > 1:
            names = " and ".join(name for name, *_ in found)
            raise ValueError(
                f"{step} has {len(found)} owners, {names}: expected exactly one; remove all but one"
            )
        return found

    @contextmanager
    def without(self, cb: Callback) -> Iterator[None]:
        """Run no hooks of one callback inside a `with`, except in a pass that begins there."""
        outer = self._left_out
        self._leave_out((*outer, cb))
        try:
            yield
        finally:
            self._leave_out(outer)

    def _leave_out(self, cbs: tuple[Callback, ...]) -> None:
        self._left_out, ids = cbs, tuple(map(id, cbs))
        if ids not in self._found:
            self._found[ids] = self._find_hooks(self._cbs)
        self._use(self._found[ids])

    @contextmanager
    def entered(self, scope: str) -> Iterator[None]:
        """Be in a scope inside a `with`, without its events; a hook may cancel it."""
        self.scopes.append(scope)
        try:
            with suppress(cancel_exception(scope)):
                yield
        finally:
            self.scopes.pop()

    def left(self, scope: str, cancel: CancelException) -> None:
        """React to a Cancel exception that leaves a scope, its own or that of an outer scope."""

    # Running --------------------------------------------------------------------------------------

    def callback(self, event: str) -> None:
        """Run the hooks of an event, or the owner of a step.

        All hooks run before a cancel takes effect (if there are several, that of the outermost scope). An
        error ends the event at once, except in a cleanup_ event, where the other hooks still run.
        """
        if event not in self._hooks:  # most events of a step
            return
        cancel: CancelException | None = None
        error: BaseException | None = None
        outer = self.running_cb
        try:
            for name, hook, self.running_cb in self._hooks[event]:
                try:
                    if hook(self) is not None and event in _SETTERS:
                        raise TypeError(
                            f"{name} returned a value, which nobody reads: set learn.{_SETTERS[event]}"
                        )
                except CancelException as e:
                    if cancel is None or not self.is_inside(e, cancel):
                        cancel = e
                        self.cancelled_by[e.scope] = name
                except BaseException as caught:
                    found = stray(caught, name) if isinstance(caught, StopIteration) else caught
                    self.add_note(found, name)
                    if not event.startswith("cleanup_"):
                        if found is not caught:
                            raise found from caught
                        raise
                    if error is None:
                        error = found
                    else:
                        error.add_note(f"minilearn: then {name} failed too: {found!r}")
        finally:
            self.running_cb = outer
        if error is not None:
            raise error
        if cancel is not None:
            if cancel.scope not in self.scopes:
                running = ", ".join(self.scopes) or "none"
                cancel.add_note(
                    f"minilearn: no {cancel.scope} is running at {event} to cancel; running: {running}"
                )
            raise cancel

    def planned_steps(self, n_epochs: int, n_batches: int | list[int | None] | None) -> list[int | None]:
        """Return the number of optimizer steps in each of n_epochs epochs, as the callbacks plan them.

        Args:
            n_batches: in an epoch, or a list with the number for each epoch.
        """
        host: Any = self
        steps = [*n_batches] if isinstance(n_batches, list) else [n_batches] * n_epochs
        for cb in self.cbs:
            steps = cb.plan_steps(host, steps)
            if not isinstance(steps, list) or len(steps) != n_epochs:
                raise ValueError(
                    f"{cb!r}.plan_steps gave {steps!r}: expected a list of {n_epochs}, one for each epoch"
                )
            if any(n is not None and not is_whole(n, 0) for n in steps):
                raise ValueError(f"{cb!r}.plan_steps gave {steps!r}: expected whole numbers >= 0, or None")
        return steps

    def scheduled_epochs(self, n_epochs: int) -> int:
        """Return how many of n_epochs epochs the lr schedules cover, as the callbacks plan them."""
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
        """Say where in the loop the host is, for the notes on errors."""
        return f"inside {' > '.join(self.scopes)}"

    def add_note(self, error: BaseException, name: str) -> None:
        """Add to an error, once, which callback or step raised it, and where in the loop."""
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
                f"minilearn: before_fit does not run in a pass of {self.purpose!r}; make what every pass "
                "needs in __init__ or prepare(self, learn)"
            )

    def explain(self) -> None:
        """Print the events in the order of the loop, each with its hooks in the order in which they run."""
        shown = {
            event: [name for name, _, cb in hooks if cb not in self._private]
            for event, hooks in self._hooks.items()
        }
        width = max((len(event) for event, names in shown.items() if names), default=0)
        for event in events():
            if shown.get(event):
                names = [name.removesuffix(f".{event}") for name in shown[event]]
                print(f"{event:{width}}  {' -> '.join(names)}{'  (the owner)' if event in STEPS else ''}")
