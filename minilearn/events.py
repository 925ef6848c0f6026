"""The events of a fit: their order, the steps, the scopes and how each is cancelled.

This is the loop. Upper case marks the steps, which have exactly one owner each; every other word
is an event, for which any number of callbacks may define a hook of that name::

    fit:                                    before_fit
        for each epoch:                     before_epoch
            train:                          before_train
                for each batch:             before_batch
                    UNPACK                  (when the inputs or the target are first read)
                    forward:                before_forward
                        PREDICT             after_predict
                        GET_LOSS            after_loss
                                            after_forward, cleanup_forward
                    BACKWARD                after_backward
                    step:                   before_step      (not while learn.is_accumulating: more batches
                                                             are to add their gradients first)
                        STEP                after_step
                                            cleanup_step
                    ZERO_GRAD               (not when the step was cancelled: gradients are kept)
                                            after_batch, cleanup_batch
                                            at_rest
                                            after_train, cleanup_train
            validate:                       before_validate
                for each batch:             before_batch
                    UNPACK
                    forward:                before_forward
                        PREDICT             after_predict
                        GET_LOSS            after_loss
                                            after_forward, cleanup_forward
                                            after_batch, cleanup_batch
                                            at_rest
                                            after_validate, cleanup_validate
                                            after_epoch, cleanup_epoch
                                            at_rest
                                            after_fit, cleanup_fit
                                            at_rest

That is a fit (`learn.purpose` is "fit" or "lr_find"), including its own validation. Other passes, nested in a
fit or not, fire only some of these events::

    "validate"  validate > batch, without at_rest: `learn.validate()`
    "predict"   before_batch, UNPACK, before_forward, PREDICT, after_predict, cleanup_forward, cleanup_batch:
                `learn.predict(dl)`
    "measure"   the same without after_predict: measures BatchNorm statistics of averaged weights

Each pass that is not nested begins with `prepare` of each callback and ends with `release`.

A scope (fit, epoch, train, validate, batch, forward, step) fires `before_`, runs its body and fires `after_`.
Raising its Cancel exception leaves the scope at once, without `after_`; `cleanup_` always runs. A step or
batch that is cancelled keeps its gradients, and the next backward adds to them; with keep=False,
CancelStepException and CancelBatchException drop them. Kept gradients that are not finite become 0.
`learn.again()` runs the forward scope once more.
`at_rest` fires after each batch, epoch and fit that did not fail. All hooks have run by then and the state is
complete: this is where it may be saved, and where a signal ends the fit.
"""

from __future__ import annotations

from typing import Any

STEPS = ("unpack", "predict", "get_loss", "backward", "step", "zero_grad")

_LOOP = (
    *("before_fit", "before_epoch", "before_train", "before_validate", "before_batch"),
    *("unpack", "before_forward", "predict", "after_predict", "get_loss", "after_loss"),
    *("after_forward", "cleanup_forward", "backward", "after_backward"),
    *("before_step", "step", "after_step", "cleanup_step", "zero_grad", "after_batch", "cleanup_batch"),
    "at_rest",
    *("after_train", "cleanup_train", "after_validate", "cleanup_validate"),
    *("after_epoch", "cleanup_epoch", "after_fit", "cleanup_fit"),
)


class CancelException(Exception):  # noqa: N818  the documents' name; it is not an error
    """Leave a scope. Raise the subclass for the scope you mean, such as CancelEpochException.

    Args:
        *args: as for any exception, such as a reason.
        keep: for a step or a batch, whether its gradients stay for the next step.
    """

    scope: str
    keep: bool = True  # for a subclass whose own constructor does not set it

    def __init__(self, *args: Any, keep: bool = True) -> None:
        if not isinstance(keep, bool):
            raise TypeError(f"keep={keep!r}: expected True or False")
        super().__init__(*args)
        self.keep = keep


_cancels: dict[str, type[CancelException]] = {}


def cancel_exception(scope: str) -> type[CancelException]:
    """Return the exception that cancels `scope`, e.g. CancelFitException for "fit".

    The first call with a name registers the scope, so that its three events are hook names.
    """
    if not isinstance(scope, str) or not scope.isidentifier():
        raise ValueError(f"scope={scope!r}: expected a name such as 'fit', to make before_fit of")
    if scope not in _cancels:
        doc = f"Leave the running {scope} without its after_{scope}; cleanup_{scope} still runs."
        name = f"Cancel{scope.title().replace('_', '')}Exception"
        _cancels[scope] = type(name, (CancelException,), {"scope": scope, "__doc__": doc})
    return _cancels[scope]


CancelFitException = cancel_exception("fit")
CancelEpochException = cancel_exception("epoch")
CancelTrainException = cancel_exception("train")
CancelValidateException = cancel_exception("validate")
CancelBatchException = cancel_exception("batch")
CancelForwardException = cancel_exception("forward")
CancelStepException = cancel_exception("step")


def events() -> list[str]:
    """Return every event and step in the order of the loop, then those of scopes added later."""
    own = [f"{when}_{scope}" for scope in _cancels for when in ("before", "after", "cleanup")]
    return list(dict.fromkeys([*_LOOP, *own]))
