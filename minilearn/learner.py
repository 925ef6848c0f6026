"""The Learner: fit > epoch > train | validate > batch. The order of events is in `minilearn.events`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import torch
from torch import Tensor, nn

from . import weights
from .batches import CurrentBatch, inputs_and_target, is_pair, is_several, packed
from .callbacks.closure import ClosureCB
from .callbacks.device import DeviceCB
from .callbacks.logged import no_metrics, takes_value
from .callbacks.metrics import MetricsCB
from .callbacks.predictions import PredictionsCB
from .callbacks.progress import ProgressCB
from .callbacks.trained import CheckTrainedCB
from .events import CancelBatchException, CancelException
from .fields import Fields
from .fitting.checks import check_again, check_fit, check_learner, check_targets, infer_loss, no_loss
from .fitting.made import Made
from .fitting.mean import StepMean
from .fitting.modes import Modes
from .fitting.passes import fit_of, opt_for, pass_of, phase_of, plan, reading, started
from .fitting.predicting import (
    Numbered,
    check_pairs,
    given,
    in_order,
    joined,
    ordered,
    unpacked_by,
    with_targets_of,
)
from .fitting.request import StopRequest, pause, stopped
from .fitting.run import Run
from .fitting.steps import check_steps, in_steps
from .fitting.watching import watched
from .host import Hooks, Pass, default_step, with_cbs
from .notebook import learner_html, learner_text
from .optim.layouts import note_layouts
from .optim.summary import summary
from .parameters import named_params
from .plan import Plan
from .processes import Processes, whole
from .rows import History, Row
from .seeding import kept_rng

if TYPE_CHECKING:
    from .callback import Cbs
    from .callbacks.lr_finder import LRFinderCB, Sweep
    from .data.loaders import DataLoaders, HasLoaders
    from .summary import Summary


def _part(i: int, doc: str) -> property:
    """Return the property for one part of the batch: 0, its inputs, or 1, its target."""

    def read(self: Learner) -> Any:
        parts = self._current.parts
        # A hook may have changed the length of a list.
        return (parts if parts is not None and len(parts) == 2 else self._unpacked())[i]

    def write(self: Learner, value: Any) -> None:
        current = self._current
        if not current.is_unpacking:  # the batch itself may be the parts
            current.parts = [*(current.parts if self.is_unpacked else self._unpacked())]
        current.parts[i] = value
        if self.unpacks_by_form and not current.is_unpacking and is_pair(current.batch):
            self.batch = packed(current.batch, *current.parts)  # which then holds them

    return property(read, write, doc=doc)


class Learner(Fields):
    """Train a model on data with callbacks.

    Args:
        model: any nn.Module; it gets a batch's inputs (a tuple as arguments, a dict as keywords).
        dls: DataLoaders, or a dict with "train" and optionally "eval" and "test". None: a learner that can
            load, predict and validate what it is given.
        loss_func: (preds, target) -> scalar mean over the batch. None: cross-entropy for integer targets,
            mean squared error for floating ones. A loss that is a module is treated like the model: moved to
            the device, put into training or evaluation mode, trained, and saved in checkpoints.
        lr: learning rate of the optimizer, one number or one per parameter group of the model. Parameters of
            the loss, and those that callbacks add with `extra_params`, are separate groups at the end. They
            use this lr, or the last one of a list.
        cbs: callbacks, in addition to the default ones.
        opt_func: anything that takes (params, lr); a torch optimizer is fused where possible. One that is
            schedule-free, with train() and eval(), is switched with the phases.
        param_groups: model -> list of parameter groups. None: one group.
        default_cbs: whether to add DeviceCB, MetricsCB and ProgressCB. A callback of the same kind in `cbs`
            replaces the default.
        unpack: batch -> (inputs, target), for batches that do not say which is which; see
            `minilearn.batches.inputs_and_target`. With (inputs, None), a loss_func of your own gets
            (preds, None).

    Fields for callbacks to read, each with exactly one writer:
        batch (the loader, then DeviceCB), xb and yb (its inputs and target, by unpack), preds and loss (the
        owners of predict and get_loss), loss_count (what the loss is a mean over, by `counting.Count` unless
        the owner of get_loss or a hook at after_loss sets it; None until then, and known from after_forward
        on), loss_by (the loss_func that computed the loss; None
        if something else did), opt, dl, training, phase ("train" or "eval"), phases (those of this fit),
        epoch (0, 1, ... in this fit), n_epochs, batch_idx, n_steps (optimizer steps taken in this fit),
        epoch_steps (planned, a list) and total_steps (their sum; None if a loader has no
        length), schedule_epochs (how many epochs the lr schedules cover), n_epochs_trained (epochs begun in
        the learner's life), history (a dict per epoch and phase, by MetricsCB), is_accumulating (whether more
        batches will add their gradients before the step, by GradientAccumulationCB), loss_weight (the factor
        for the loss in backward; None means 1). From CheckpointCB: run_id, saved_to (the newest checkpoint of
        this fit) and n_fits (finished fits of its run). From DistributedCB: rank and n_processes (0 and 1
        without it). Related fields are grouped in objects: plan (of the fit), mean (of the step), modes (of
        the modules), processes, run (on disk), stop (a request). `purpose` and `is_nested` say which kind of
        pass is running.

    Source: documents 000 to 003 use it; it descends from miniai's Learner.
    Differs: the optimizer is kept from fit to fit; document 003 makes a new one for each.
    """

    _private = (CheckTrainedCB(),)

    def __init__(
        self,
        model: nn.Module,
        dls: DataLoaders | Mapping[str, Any] | HasLoaders | None = None,
        loss_func: Callable[[Any, Any], Tensor] | None = None,
        lr: float | Sequence[float] = 1e-3,
        cbs: Cbs = None,
        opt_func: Callable[..., Any] = torch.optim.AdamW,
        param_groups: Callable[[nn.Module], Sequence[Any]] | None = None,
        default_cbs: bool = True,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    ) -> None:
        check_learner(model, loss_func, opt_func, lr, default_cbs, param_groups=param_groups, unpack=unpack)
        given = set(vars(self))  # set by a subclass before this call
        self.model, self.loss_func, self.dls = model, loss_func, dls
        self.opt_func, self.param_groups = opt_func, param_groups
        self.opt = None  # type: ignore[assignment]  # until the first fit makes it
        self._made = Made(lr)
        self.history = History()
        self.n_epochs_trained = 0
        self.plan, self.modes, self.run = Plan(), Modes(self), Run()
        self.processes, self.stop = Processes(), StopRequest()
        self.mean = StepMean()
        self.unpack_func, self._current = unpack, CurrentBatch()
        self.preds: Any = None
        self.loss: Any = None
        self.loss_count: Any = None
        self.loss_by: Any = None
        self._set_phase(None, training=False)
        self._begin()
        super().__init__(cbs, [DeviceCB(), MetricsCB(), ProgressCB()] if default_cbs else [])
        self._base_fields = frozenset({*vars(self), "_base_fields"} - given)

    def __repr__(self) -> str:
        return learner_text(self)

    def _repr_html_(self) -> str:
        return learner_html(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("predict")
        if own is not None and len(inspect.signature(own).parameters) == 1:
            # A subclass that owns the step defines predict(self); users can still call predict(dl).
            @wraps(own)
            def predict(self: Any, dl: Any = None, with_targets: bool = False, bs: int | None = None) -> Any:
                return own(self) if dl is None else Learner.predict(self, dl, with_targets, bs)

            cls.predict = predict  # type: ignore[method-assign]

    # The algorithm --------------------------------------------------------------------------------

    @with_cbs("fit")
    def _fit(self) -> None:
        for self.epoch in self.plan.epochs:
            self._epoch()
            self._rest()

    @with_cbs("epoch")
    def _epoch(self) -> None:
        if self.plan.has("train", self.epoch):
            self.n_epochs_trained += 1
            with phase_of(self, self.dls.train, training=True):
                self._train()
        if self.plan.has("eval", self.epoch):
            for plan, dl in self.plan.left(self.epoch, self.dls.sets.values()):
                self._set_plan(plan)
                with phase_of(self, dl, training=False):
                    self._validate()

    @with_cbs("train")
    def _train(self) -> None:
        self._batches()
        if self.mean.has_rest:  # accumulated batches are left, because the last ones were cancelled
            self.is_accumulating = False
            with suppress(CancelBatchException):  # no batch is left, only this step
                self._update()

    @with_cbs("validate")
    def _validate(self) -> None:
        self._batches()

    def _batches(self) -> None:
        first = 0 if self.is_nested else self.plan.first_batch(self.phase, self.epoch)
        self.batch_idx = first - 1  # the batch before, for a stop while the first one is read
        with reading(self, first) as batches:
            for self.batch_idx, self.batch in batches:
                self._batch()
                self._rest()

    @with_cbs("batch")
    def _batch(self) -> None:
        if not self.unpacks_by_form and not self.is_unpacked:
            self._unpacked()
        self._forward_from_nothing()
        if self.training:
            if self.loss is None:
                raise no_loss(self)
            self.callback("backward")
            self.mean.add(self)
            self.callback("after_backward")
            if not self.is_accumulating:
                self._update()

    def _forward_from_nothing(self) -> None:
        self.preds = self.loss = self.loss_count = self.loss_by = None
        if not self._forward():  # it was cancelled, perhaps after a loss was set
            self.mean.take(self)

    @with_cbs("forward")
    def _forward(self) -> bool:
        self.callback("predict")
        self.callback("after_predict")
        if self.batch_idx == 0 and self.epoch == 0:
            with watched(self):
                self.callback("get_loss")
        else:
            self.callback("get_loss")
        self.callback("after_loss")
        self.mean.take(self)
        return True

    def _update(self) -> None:
        is_done = None
        try:
            is_done = self.mean.close(self) and self._step()  # not done if a callback cancelled it
            if is_done:
                self.callback("zero_grad")
        finally:
            self.mean.end(self, bool(is_done))

    @with_cbs("step")
    def _step(self) -> bool:
        try:
            self.callback("step")
        except Exception as error:
            note_layouts(error, self.opt, named_params(self))
            raise
        self.n_steps += 1
        return True

    def _rest(self) -> None:
        """Fire at_rest, when all hooks have run and the state is complete; leave the fit if asked to."""
        if self.rests:
            is_stopping = self.stop.asked is not None  # a request during at_rest waits for the next one
            self.callback("at_rest")
            if is_stopping:
                raise stopped(self)

    def _owner(self, step: str, found: list[Any]) -> list[Any]:
        """Return the one owner of a step; a function passed as unpack= counts as one."""
        if step == "unpack" and self.unpack_func is not None:
            found = [(f"{type(self).__name__}(unpack=...).unpack", Learner.unpack, None), *found]
        return super()._owner(step, found)

    def left(self, scope: str, cancel: CancelException) -> None:
        """Drop the gradients of a step or batch left with keep=False; otherwise keep finite ones."""
        if self.training and scope in ("step", "batch"):
            self.mean.cancelled(self, scope, cancel.keep)

    # The steps, unless a subclass or a callback owns them -----------------------------------------

    @default_step
    def unpack(self) -> None:
        """Set xb and yb, with `unpack=` or `minilearn.batches.inputs_and_target`."""
        if self.unpack_func is None:
            is_strict = self.purpose not in ("predict", "measure")
            self.xb, self.yb = inputs_and_target(self.batch, is_strict)
            return
        parts = self.unpack_func(self.batch)
        if not isinstance(parts, tuple | list) or len(parts) != 2:
            raise ValueError(
                f"unpack={self.unpack_func!r} gave a {type(parts).__name__}: expected (inputs, target); the "
                "target may be None"
            )
        self.xb, self.yb = parts

    @overload
    def predict(self) -> None: ...

    @overload
    def predict(self, dl: Any, with_targets: Literal[False] = False, bs: int | None = None) -> Tensor: ...

    @overload
    def predict(
        self, dl: Any, with_targets: Literal[True], bs: int | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def predict(self, dl: Any, with_targets: bool = False, bs: int | None = None) -> Any: ...

    @default_step
    def predict(self, dl: Any = None, with_targets: bool = False, bs: int | None = None) -> Any:
        """Set preds = model(inputs), as a step of a batch; with data, return its predictions.

        Args:
            dl: a loader; a data set or a list of samples, collated as those of dls.valid; a tensor or an
                array of inputs, (N, ...); a list of batches. Batches may have a target, but need none. A
                batch of two inputs is ((a, b), None): a pair (a, b) would be the input a and its target.
            with_targets: return (predictions, targets).
            bs: samples in a batch of what is no loader. None: as in dls.valid, or else dls.train, or 64.

        Shapes: predict(dl) gives (N, ...) on the CPU, in the order of the data, in evaluation mode and
            without gradients. A model that gives several tensors gives them joined, in the same containers;
            type checkers have to be told, `preds: Any = learn.predict(dl)`.
        Raises: ValueError for a DataLoader that shuffles, and for with_targets where there are none.
        """
        if dl is not None:
            check_pairs(self, dl)
            loader, unpack = given(self, dl, bs)
            loader, order = in_order(self, loader)
            collect = PredictionsCB(with_targets, order)
            with unpacked_by(self, unpack):
                self._evaluate(loader, [collect], "predict")
            return (collect.preds(), collect.targets()) if with_targets else collect.preds()
        xb = self.xb
        if isinstance(xb, Tensor):
            self.preds = self.model(xb)
        elif isinstance(xb, Mapping):
            self.preds = self.model(**xb)
        else:
            self.preds = self.model(*xb) if is_several(xb) else self.model(xb)

    @default_step
    def get_loss(self) -> None:
        """Set loss = loss_func(preds, target)."""
        target = self.yb
        loss_func = self.loss_func
        if loss_func is None:  # a callback owns this step and calls it
            loss_func = self._infer_loss(target)
        if self.batch_idx == 0 and self.epoch == 0:
            check_targets(loss_func, self.preds, target, self.dl)
        self.loss, self.loss_by = loss_func(self.preds, target), loss_func

    @default_step
    def backward(self) -> None:
        """Add the gradients of the loss to each parameter's grad."""
        self.loss.backward(self.mean.weight)

    @default_step
    def step(self) -> None:
        """Take one step of the optimizer."""
        self.opt.step()

    @default_step
    def zero_grad(self) -> None:
        """Clear the gradients."""
        if getattr(self.opt.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
            self.opt.zero_grad()
            return
        for group in self.opt.param_groups:  # as torch does, without its profiler entry, 8 us a step
            for p in group["params"]:
                p.grad = None

    # What users call ------------------------------------------------------------------------------

    def fit(
        self,
        n_epochs: int = 1,
        train: bool = True,
        valid: bool = True,
        cbs: Cbs = None,
        lr: float | Sequence[float] | None = None,
        reset_opt: bool = False,
        resume: str | Path | bool | None = None,
        n_steps: int | None = None,
        epoch_steps: int | None = None,
    ) -> None:
        """Train for `n_epochs`: in each, a pass over dls.train, then one over each validation set.

        Args:
            train, valid: switch off either part.
            n_steps: train for so many optimizer steps in place of n_epochs, of which the last may be shorter.
            epoch_steps: end an epoch after so many steps; the next one continues the pass over the data.
                None: an epoch is one pass.
            cbs: callbacks for this fit only.
            lr: set every group's lr to exactly this (one number or one per group of the model), and undo
                what earlier schedules left; a scheduler callback starts from it. None: the optimizer
                continues with the lr it has.
            reset_opt: make a new optimizer; otherwise the existing one keeps its state.
            resume: resume the fit whose checkpoints CheckpointCB wrote: a folder (its newest checkpoint), a
                checkpoint, or True for the folder of the CheckpointCB. The next batch is the one that
                would have come next, and everything is bit for bit as in a fit that was never stopped; all
                other arguments must be the same as then. Settings come from the checkpoint where
                `state_dict` names them, and else from the script, paths and functions always; each that
                differs is warned of. If the CheckpointCB's folder is still empty, the fit starts from the
                beginning. A finished fit of the same run is skipped, so a script that
                passes resume to each of its fits can be started any number of times. The learner then has
                the weights and rows of the newest checkpoint, perhaps of a later fit: a script that measures
                or chooses something between its fits needs a folder for each.

        Raises: before the first step, for input that cannot work. Errors from callbacks and the model pass
            through unchanged, with a note that says where in the loop they were raised.
        """
        self._fit_for("fit", n_epochs, train, valid, cbs, lr, reset_opt, resume, n_steps, epoch_steps)

    def _fit_for(
        self,
        purpose: str,
        n_epochs: int,
        train: bool = True,
        valid: bool = True,
        cbs: Cbs = None,
        lr: Any = None,
        reset_opt: bool = False,
        resume: Any = None,
        n_steps: Any = None,
        epoch_steps: Any = None,
    ) -> None:
        n_epochs = check_fit(self, n_epochs, train, valid, resume, lr, reset_opt)
        check_steps(n_epochs, n_steps, epoch_steps, train)
        valid = valid and self.dls.valid is not None
        steps = in_steps(self, n_epochs, n_steps, epoch_steps, valid)
        with fit_of(self, cbs, purpose, train), steps as n_epochs:
            plan(self, n_epochs, train, valid)
            if train:
                self.opt = opt_for(self, lr, reset_opt)
            with started(self, resume, ClosureCB) as is_left:
                if is_left:
                    self._fit()

    def again(self, backward: bool = False) -> tuple[Any, Any]:
        """Run the forward once more on the same batch, from a hook; return (preds, loss).

        All hooks run except those of the callback that calls it, so it works with mixed precision, mixing
        and the like. Inputs that a hook put into `xb` are kept, and so are the batch's own preds, loss and
        count. `learn.is_again` tells the other hooks.

        Args:
            backward: also add the gradients of this loss to the existing ones.

        Raises: RuntimeError outside a hook in a batch, while several batches are being accumulated, and
            for a backward in a pass that does not train.
        """
        caller = check_again(self, backward)
        own = self.preds, self.loss, self.loss_count, self.loss_by
        try:
            with self.without(caller), self.mean.aside():
                self._forward_from_nothing()
                if backward:
                    if self.loss is None:
                        raise no_loss(self)
                    self.callback("backward")
            return self.preds, self.loss
        finally:
            self.preds, self.loss, self.loss_count, self.loss_by = own

    def log(self, name: str, value: Any, count: Any = None) -> None:
        """Add a named value of the batch, from a hook or a step; its mean over the phase is in the row.

            class VAELossCB(Callback):
                logs = ("kl",)  # so that a monitor may name it before training

                def get_loss(self, learn):
                    out, mean, log_var = learn.preds
                    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
                    learn.log("kl", kl)
                    learn.loss = F.mse_loss(out, learn.xb) + kl

        Like the loss it is weighted by `learn.loss_count`, and dropped with it if the batch is cancelled. If
        the loss is a sum over the batch, so is the value. In a batch without a loss, samples count.

        Args:
            name: of its column in rows, logs and plots.
            value: a number, or a tensor of one on any device, which is not waited for.
            count: what the value is a mean over, if that is not what the loss is a mean over: a number >= 0,
                or a tensor of one. With 0 the value, which may then be nan, is left out.

        It does nothing in passes without rows (predict), in the second forward of `learn.again`, and in a
        process that has no sample of the batch.

        Raises: RuntimeError outside a batch, and without MetricsCB; TypeError for what is no number;
            ValueError for a name that the row has already, and for a count that is negative or not finite.
        """
        if isinstance(value, Tensor):
            value = whole(value)  # of all processes, idle ones too
        if takes_value(self, name):
            cb = next((cb for cb in self.cbs if isinstance(cb, MetricsCB)), None)
            if cb is None:
                raise no_metrics(name)
            cb.log(self, name, value, count)

    def pause(self) -> None:
        """Stop the fit, from a hook, so that a later fit(resume=...) continues it bit for bit.

        The batch is finished, a checkpoint is saved, cleanup hooks fire, and `fit` returns with `is_paused`
        True. after_fit does not run, no average or best weights are put into the model, and the fit does not
        count as finished. With several processes, any one may ask, and all stop after the same step. To end
        a fit for good, raise CancelFitException.

        Raises: RuntimeError outside a fit, without a CheckpointCB, and in lr_find.
        """
        pause(self)

    def validate(self, dl: Any = None, cbs: Cbs = None) -> Row:
        """Return the row of metrics over a loader (default dls.valid), e.g. {"loss": 0.27, ...}.

        Of several validation sets, {"clean": a, "shifted": b}, each column has its set's name before it, such
        as "clean/loss". Nothing is trained and `history` does not change. Only the hooks of validate and of
        its batches run. A callback may call this during a fit, whose random numbers stay as they were; see
        `Callback.in_nested`.

        Args:
            dl: what to validate on: a loader, or a data set. None: all validation sets of the learner.
            cbs: callbacks for this validation only.
        """
        if dl is None and self.dls.valid is None:
            raise ValueError("validate(): dls has no valid loader; give one, validate(dl)")
        if dl is None and len(self.dls.sets) > 1:
            sets = self.dls.sets.items()
            return joined({name: self._row(one, cbs, name) for name, one in sets})
        return self._row(self.dls.valid if dl is None else with_targets_of(self, dl), cbs)

    @overload
    def predict_batches(
        self, dl: Any, with_targets: Literal[False] = False, bs: int | None = None
    ) -> Iterator[tuple[Tensor | None, Tensor]]: ...

    @overload
    def predict_batches(
        self, dl: Any, with_targets: Literal[True], bs: int | None = None
    ) -> Iterator[tuple[Tensor | None, Tensor, Tensor]]: ...

    @overload
    def predict_batches(
        self, dl: Any, with_targets: bool = False, bs: int | None = None
    ) -> Iterator[tuple[Any, ...]]: ...

    def predict_batches(
        self, dl: Any, with_targets: bool = False, bs: int | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Return an iterator over (index, predictions) of each batch, which holds only one in memory.

        Args:
            dl, with_targets, bs: as in `predict`; with_targets gives (index, predictions, targets).

        The index has the numbers of the samples in the data, (n,); None where a batch does not tell how many
        it has. A loader with a plan or a sampler may give them in any order. Over several processes, each
        gets its own samples, each sample once; all have to run the loop. Between two batches the learner is
        as it was, so the loop may do anything with it, and may end early.
        """
        check_pairs(self, dl)
        collect, (loader, unpack) = PredictionsCB(with_targets), given(self, dl, bs)
        return self._predicting(ordered(self, loader), collect, unpack)

    def _predicting(self, dl: Any, collect: PredictionsCB, unpack: Any) -> Iterator[tuple[Any, ...]]:
        numbered = None
        for i in count():  # the learner is as it was between two batches
            evaluating, is_left = self._evaluating(dl, [collect], "predict"), True
            with unpacked_by(self, unpack), evaluating, self.entered("validate"):
                numbered = numbered or Numbered(self, dl)
                if not numbered.has_next():
                    return
                self.dl, self.batch_idx, self.batch = numbered.loader, i, numbered.batch
                self._batch()
                found = collect.take()
                index = numbered.of_batch(i, found and found[-1])
                is_left = False
            if is_left:  # a hook cancelled the pass
                return
            if found is not None and (index is None or len(index)):
                yield (index, *found[: 1 + collect.with_targets])

    def averaged(self) -> AbstractContextManager[None]:
        """Put the averaged weights of SWACB or EMACB into the model for a `with` block, then restore its own.

        The BatchNorm statistics are those of the averaged weights, measured on training data. It also works
        during a fit; a fit that has finished leaves the averaged weights in the model anyway.

        Raises: RuntimeError if there is no average: no such callback, or one that has not begun.
        """
        for found in (cb.averaged(self) for cb in self.cbs):
            if found is not None:
                return found
        raise RuntimeError("averaged(): there is no average; expected SWACB or EMACB among the callbacks")

    def save(self, path: str | Path) -> None:
        """Write the model's weights, its state_dict, to a file in safetensors.

        Names are those of the plain model, without the prefixes of torch.compile, DataParallel and the like,
        so that `plain.load_state_dict(safetensors.torch.load_file(path))` works. The file is written under a
        temporary name and renamed, so an error leaves an existing file intact. Its metadata has a checksum,
        which `load` compares. For the rest of a run, use CheckpointCB.

        Raises: TypeError for a state_dict with anything but tensors; ValueError where a checkpoint would be
            lost; OSError, with the path.
        """
        with self.modes.evaluating():
            weights.save(self.model, path, is_first=self.rank == 0)

    def load(self, path: str | Path) -> None:
        """Read weights into the model, from safetensors, such as `save` writes, or from a checkpoint.

        What a file holds decides how it is read, not its name.

        Raises: ValueError, with the first names and shapes that differ, for the weights of another model,
            and for a file that is cut short or was changed; the model is then unchanged.
        """
        weights.load(self.model, path)

    def export(self, path: str | Path, example: Any = None, **kwargs: Any) -> None:
        """Write the model as one file that `minilearn.load_predictor` reads without the model's source.

        The file has the model as a torch.export program, the weights, the names of the classes, how the bytes
        of an image become an input, and minilearn's version; `torch.export.load` reads it too. It is tried
        before it is written: the program has to compute what the model does, for one sample and for several.

        Args:
            path: ends in ".pt2".
            example: inputs of a batch as the model gets them, a tensor, or a tuple or a dict of tensors.
                None: of the data.
            **kwargs: `transform` and `classes`.

        Keys:
            transform: `minilearn.data.Normalize(mean, std)`, for pixels of 0 to 255. Left out: that of the
                learner's data, if they have one. None: the predictor takes only the model's inputs.
            classes: the names of the classes. Left out: those of the data. None: the predictor returns the
                model's output.

        Raises: TypeError or ValueError, with the part of the model, for what cannot be exported; nothing is
            written then.
        """
        from .inference.exporting import export_learner

        export_learner(self, path, example, **kwargs)

    def freeze(self, *which: str | type[nn.Module]) -> None:
        """Stop training the chosen modules: no gradients, and their BatchNorms keep their statistics.

        Args:
            which: names of modules in the model, such as "layer1" or "0", or classes. None given: all but
                the last child of the model that has parameters.

        The optimizer keeps its groups and state, so `unfreeze` needs nothing else. A callback may call this
        during a fit.
        """
        self.modes.freeze(which)

    def unfreeze(self, *which: str | type[nn.Module]) -> None:
        """Train the chosen modules again, or all; BatchNorms that you set to eval() yourself stay there."""
        self.modes.unfreeze(which)

    def verify_resume(self, at: int | None = None, n_epochs: int | None = None, **kwargs: Any) -> str:
        """Prove that this learner can be stopped and resumed: train copies, stop some, and compare.

        Two runs go straight through. Another is stopped after `at` steps, and one resumes from its
        checkpoint, with all random generators in another state; by default a second pair does the same for a
        stop inside validation. The batch, loss and weights of each step and the whole state at the end are
        compared bit for bit: model, optimizer, callbacks, history, random numbers, and everything that is
        trained or counts, whether a checkpoint holds it or not. The learner itself stays as it is.

        Args:
            at: a step of the fit, >= 1. Default: the middle of the second epoch, and of its validation.
            n_epochs: of the fit. Default: as many as it takes to get beyond the stop.
            **kwargs: more arguments of `fit`.

        Returns: what was found equal, and what could not be compared because it differs between the straight
            runs too, such as a callback's clock.
        Raises: RuntimeError that names the first difference; TypeError for what cannot be copied or saved.
        """
        from .verify import verify_resume

        return verify_resume(self, at, n_epochs, **kwargs)

    def lr_find(self, **kwargs: Unpack[Sweep]) -> LRFinderCB:
        """Find a learning rate: raise it from step to step, record the loss, and restore everything.

        Weights, buffers, what is frozen, a loss that is a module, the optimizer and its state, random
        numbers, the order of the data, callbacks with their parameters, and history are as before, even if
        the sweep fails: everything that a checkpoint could hold, in the same objects. What has no saved form,
        such as an open file, is the same object. Callbacks with `in_lr_find = False` sit it out.

        Args:
            **kwargs: those of LRFinderCB: `start_lr`, `end_lr`, `n_steps`, `diverge` and `smooth`.

        Returns: the callback, with .lrs, .losses, .suggestion and .plot().
        """
        from .callbacks.lr_finder import lr_find

        return lr_find(self, **kwargs)

    def summary(self, example: Any = None) -> Summary:
        """Return the model's layers, the shapes of their outputs, parameters and memory.

        A batch of two samples, if the loader can give so few, goes through the model in evaluation mode,
        without gradients and on the model's device: through `unpack` and `predict`, or the callbacks that own
        them, and no other hook. Afterwards the learner, its model and optimizer, random numbers and the order
        of the data are as they were. Lazy layers are made in a copy of the model.

        Args:
            example: inputs of a batch as the model gets them: a tensor, or a tuple or a dict of tensors.
                None: of the training data, or else the validation data. Without any, no shape of an output is
                known.

        Raises: RuntimeError in a batch of a fit; what the model raises passes through, with a note.
        """
        from .summary import summarize

        return summarize(self, example)

    def opt_summary(self) -> None:
        """Print what the optimizer holds: groups, hyperparameters, state and memory."""
        if self.opt is None:
            print("no optimizer yet: the first fit makes it")
        else:
            print(summary(self.opt))

    def _row(self, dl: Any, cbs: Cbs, name: str = "eval") -> Row:
        rows = self._evaluate(dl, cbs, name=name)
        return rows[-1] if rows else Row()

    def _evaluate(self, dl: Any, cbs: Cbs = None, purpose: str = "validate", name: str = "eval") -> History:
        """Run a pass that trains nothing, perhaps nested in another one; return its rows, with that name."""
        with self._evaluating(dl, cbs, purpose, name) as rows:
            self._validate()
        return rows

    @contextmanager
    def _evaluating(self, dl: Any, cbs: Cbs, purpose: str, name: str = "eval") -> Iterator[History]:
        """Surround the batches of a pass that trains nothing; give its rows."""
        self.dls.adapter_of(dl, f"{purpose}(dl").check_not_empty("given")
        history, dls, rows = self.history, self.dls, History()
        self.history, self.dls = rows, dls.with_valid(dl, name)
        try:
            if self.purpose is not None:
                kind = Pass(purpose, trains=False, is_nested=True)
                unseen = kept_rng(*self.dls.adapter_of(dl).generators())  # by the outer training
                with unseen, self.extra_cbs(cbs, kind), phase_of(self, dl, training=False):
                    yield rows
            else:
                with pass_of(self, cbs, purpose, trains=False):
                    plan(self, n_epochs=1, train=False, valid=True)
                    with phase_of(self, dl, training=False):
                        yield rows
        finally:
            self.history, self.dls = history, dls

    # The batch ------------------------------------------------------------------------------------

    @property
    def batch(self) -> Any:
        """The batch, as the loader gave it and hooks changed it. Setting it unpacks it again."""
        return self._current.batch

    @batch.setter
    def batch(self, batch: Any) -> None:
        self._current.batch = batch
        if not self._current.is_unpacking:  # the owner of unpack may replace it
            self._current.parts = batch if self.unpacks_by_form and type(batch) in (tuple, list) else None

    xb = _part(0, "The batch's inputs. What a hook sets stays until the batch is set; a pair is updated too.")
    yb = _part(1, "The batch's target; None if it has none. What a hook sets stays, as for `xb`.")

    def _unpacked(self) -> list[Any]:
        current, parts = self._current, [None, None]
        current.parts, current.is_unpacking = parts, True
        try:
            self.callback("unpack")
        except BaseException:
            current.parts = None
            raise
        finally:
            current.is_unpacking = False
        return parts

    @property
    def is_unpacked(self) -> bool:
        """Whether the batch's inputs and target are known."""
        return self._current.parts is not None and len(self._current.parts) == 2

    def _use(self, hooks: Hooks) -> None:
        """Take hooks; see whether a batch's form says what is what, and no function, callback or subclass."""
        super()._use(hooks)
        self.unpacks_by_form = self.unpack_func is None and self.has_default("unpack")
        if not self.unpacks_by_form and self._current.parts is self._current.batch:
            self._current.parts = None

    # What a pass sets -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a pass that is not nested."""
        self.epoch = self.n_steps = self.batch_idx = 0
        self.is_accumulating = False

    def _set_phase(self, dl: Any, training: bool) -> None:
        self.dl, self.training = dl, training

    @contextmanager
    def _batch_aside(self) -> Iterator[None]:
        """Use other batches inside a `with`, those of a nested phase."""
        of_batch = ("batch_idx", "_current", "preds", "loss", "loss_count", "loss_by", "is_accumulating")
        with self.kept(*of_batch), self.mean.aside():
            self._current = CurrentBatch()
            yield

    def _set_plan(self, plan: Plan) -> None:
        self.plan = plan

    def _infer_loss(self, target: Any) -> Callable[[Any, Any], Tensor]:
        self.loss_func = loss_func = self._made.infer(infer_loss(target))
        return loss_func
