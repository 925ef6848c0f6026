import re

import pytest
import torch
from torch import nn

import minilearn.events
from minilearn import (
    Callback,
    CallbackHost,
    CancelBatchException,
    CancelEpochException,
    CancelException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidateException,
    Learner,
    cancel_exception,
    with_cbs,
)
from minilearn.events import STEPS, events

SCOPES = ("fit", "epoch", "train", "validate", "batch", "forward", "step")


def batches(n):
    return [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))] * n


def listed_learner(*cbs, n_train=2, n_valid=1):
    dls = {"train": batches(n_train), "eval": batches(n_valid)}
    return Learner(nn.Linear(3, 2), dls, cbs=cbs, default_cbs=False)


def hook_cb(order=0, **hooks):
    """Make a callback of functions that take the learner."""
    methods = {name: lambda self, learn, f=f: f(learn) for name, f in hooks.items()}
    return type("HookCB", (Callback,), {**methods, "order": order})()


def raiser(error):
    def hook(_):
        raise error

    return hook


def tracer(names=None, order=1000):
    """Make a callback that notes each event, and does each step as the Learner does."""

    def note(name):
        def hook(learn):
            trace.append(name)
            if name in STEPS:
                getattr(Learner, name)(learn)

        return hook

    trace = []
    cb = hook_cb(order, **{name: note(name) for name in names or events()})
    cb.trace = trace
    return cb


def trace_of(learn, **kwargs):
    cb = tracer()
    learn.fit(1, cbs=cb, **kwargs)
    return cb.trace


# fmt: off
FORWARD = [
    "before_batch", "unpack", "before_forward", "predict", "after_predict", "get_loss", "after_loss",
    "after_forward", "cleanup_forward",
]
TRAIN_BATCH = [
    *FORWARD, "backward", "after_backward", "before_step", "step", "after_step", "cleanup_step", "zero_grad",
    "after_batch", "cleanup_batch", "at_rest",
]
VALID_BATCH = [*FORWARD, "after_batch", "cleanup_batch", "at_rest"]
TRAIN = ["before_train", *TRAIN_BATCH, *TRAIN_BATCH, "after_train", "cleanup_train"]
VALIDATE = ["before_validate", *VALID_BATCH, "after_validate", "cleanup_validate"]
BEGIN = ["before_fit", "before_epoch"]
END = ["after_epoch", "cleanup_epoch", "at_rest", "after_fit", "cleanup_fit", "at_rest"]
# fmt: on


# The order of events ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [*BEGIN, *TRAIN, *VALIDATE, *END]),
        ({"valid": False}, [*BEGIN, *TRAIN, *END]),
        ({"train": False}, [*BEGIN, *VALIDATE, *END]),
    ],
    ids=["both", "train only", "valid only"],
)
def test_trace_of_a_fit_is_this_list(kwargs, expected):
    assert trace_of(listed_learner(), **kwargs) == expected


def test_each_epoch_fires_the_same_events():
    cb = tracer()
    listed_learner().fit(2, cbs=cb)
    epoch = ["before_epoch", *TRAIN, *VALIDATE, "after_epoch", "cleanup_epoch", "at_rest"]
    assert cb.trace == ["before_fit", *epoch, *epoch, "after_fit", "cleanup_fit", "at_rest"]


def test_hooks_are_events_each_name_fires():
    assert set(trace_of(listed_learner())) == set(events())


def test_pseudocode_in_the_docstring_is_the_trace():
    pseudocode = minilearn.events.__doc__.split("::")[1].split("A scope (")[0]
    words = re.findall(r"\b(?:before|after|cleanup)_\w+|\bat_rest\b|\b[A-Z_]{4,}\b", pseudocode)
    assert [word.lower() for word in words] == trace_of(listed_learner(n_train=1))
    assert [word.lower() for word in dict.fromkeys(words) if word.isupper()] == list(STEPS)


def test_scopes_are_those_of_the_docstring():
    listed = re.search(r"A scope \((.*?)\)", minilearn.events.__doc__)[1]
    assert tuple(listed.split(", ")) == SCOPES
    assert {f"{when}_{scope}" for scope in SCOPES for when in ("before", "after", "cleanup")} < set(events())


# with_cbs -----------------------------------------------------------------------------------------


def make_host(*cbs, body=lambda host: "the value"):
    class Host(CallbackHost):
        @with_cbs("round")
        def play_round(self):
            """Play."""
            return body(self)

    return Host(cbs)


def trace_round(order=1000):
    return tracer(["before_round", "after_round", "cleanup_round"], order)


def test_with_cbs_keeps_the_name_and_docstring():
    host = make_host()
    assert host.play_round.__name__ == "play_round"
    assert host.play_round.__doc__ == "Play."


def test_with_cbs_keeps_the_return_value():
    assert make_host().play_round() == "the value"


def test_with_cbs_passes_arguments_on():
    class Host(CallbackHost):
        @with_cbs("round")
        def play(self, a, *, b):
            return a, b

    assert Host().play(1, b=2) == (1, 2)


def test_a_scope_of_the_user_s_own_fires_its_three_events():
    host = make_host(body=lambda host: host.cbs[0].trace.append("body"))
    host.add_cb(trace_round())
    host.play_round()
    assert host.cbs[0].trace == ["before_round", "body", "after_round", "cleanup_round"]


def test_a_scope_of_the_user_s_own_has_its_cancel_exception():
    make_host()
    error = cancel_exception("round")
    assert error.__name__ == "CancelRoundException"
    assert issubclass(error, CancelException)
    assert error is cancel_exception("round")
    assert error.scope == "round"


def test_a_cancelled_scope_skips_after_runs_cleanup_and_returns_none():
    host = make_host()
    cb = trace_round(order=-1)
    host.add_cb(cb)
    host.add_cb(hook_cb(before_round=raiser(cancel_exception("round")())))
    assert host.play_round() is None
    assert cb.trace == ["before_round", "cleanup_round"]


def test_a_cancel_in_the_body_skips_after():
    host = make_host(body=lambda host: raiser(cancel_exception("round")())(host))
    host.add_cb(trace_round())
    host.play_round()
    assert host.cbs[0].trace == ["before_round", "cleanup_round"]


def test_a_cancel_in_after_keeps_the_return_value():
    host = make_host()
    host.add_cb(hook_cb(after_round=raiser(cancel_exception("round")())))
    assert host.play_round() == "the value"


def test_a_scope_name_that_makes_no_hook_name_is_refused():
    with pytest.raises(ValueError, match=r"'my scope'.*'fit'"):
        with_cbs("my scope")


def test_all_callbacks_of_an_event_run_before_a_cancel_acts():
    learn = listed_learner(hook_cb(before_epoch=raiser(CancelFitException())))
    cb = tracer(["before_epoch", "before_train"])
    learn.fit(1, cbs=cb)
    assert cb.trace == ["before_epoch"]


@pytest.mark.parametrize("first", [CancelBatchException, CancelFitException])
@pytest.mark.parametrize("event", ["after_loss", "cleanup_batch"])
def test_of_two_cancels_at_an_event_the_outermost_scope_s_wins(first, event):
    second = {CancelBatchException: CancelFitException, CancelFitException: CancelBatchException}[first]
    cb = tracer(["before_batch", "after_train", "after_fit", "cleanup_fit"])
    listed_learner(hook_cb(**{event: raiser(first())}), hook_cb(**{event: raiser(second())})).fit(1, cbs=cb)
    assert cb.trace == ["before_batch", "cleanup_fit"]


@pytest.mark.parametrize("inner", [CancelBatchException, CancelTrainException, CancelEpochException])
def test_a_cancel_in_cleanup_does_not_replace_that_of_an_outer_scope(inner):
    cb = tracer(["before_batch", "after_epoch", "after_fit", "cleanup_fit"])
    listed_learner(
        hook_cb(after_loss=raiser(CancelFitException()), cleanup_batch=raiser(inner())),
    ).fit(2, cbs=cb)
    assert cb.trace == ["before_batch", "cleanup_fit"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt("x"), CancelFitException()])
def test_every_running_scope_is_cleaned_up_however_it_ends(error):
    cb = tracer([f"{when}_{scope}" for scope in SCOPES for when in ("after", "cleanup")])
    learn = listed_learner(hook_cb(before_step=raiser(error)))
    try:
        learn.fit(1, cbs=cb)
    except (ValueError, KeyboardInterrupt):
        assert not isinstance(error, CancelException)
    forward = ["after_forward", "cleanup_forward"]  # which was over
    assert cb.trace == [
        *forward,
        *(f"cleanup_{scope}" for scope in ("step", "batch", "train", "epoch", "fit")),
    ]
    assert learn.scopes == []


def test_a_failing_cleanup_does_not_hide_the_first_error():
    learn = listed_learner(
        hook_cb(after_loss=raiser(ValueError("first")), cleanup_batch=raiser(KeyError("second")))
    )
    with pytest.raises(ValueError, match="first") as e:
        learn.fit()
    assert e.value.__notes__[1] == "minilearn: then cleanup_batch failed too: KeyError('second')"


def test_a_cancel_in_cleanup_does_not_hide_the_first_error():
    learn = listed_learner(
        hook_cb(after_loss=raiser(ValueError("first")), cleanup_batch=raiser(CancelFitException()))
    )
    with pytest.raises(ValueError, match="first"):
        learn.fit()


def test_a_cleanup_error_is_raised_while_the_cancel_of_an_outer_scope_passes():
    learn = listed_learner(
        hook_cb(after_loss=raiser(CancelFitException()), cleanup_batch=raiser(KeyError("x")))
    )
    with pytest.raises(KeyError, match="x") as e:
        learn.fit()
    assert e.value.__notes__ == [
        "minilearn: in HookCB.cleanup_batch, epoch 0 of 1, train batch 0, step 0",
    ]


def test_a_cleanup_error_without_any_other_is_raised():
    cb = tracer(["before_batch", "cleanup_fit"])
    with pytest.raises(KeyError, match="x"):
        listed_learner(hook_cb(cleanup_batch=raiser(KeyError("x")))).fit(cbs=cb)
    assert cb.trace == ["before_batch", "cleanup_fit"]


def test_the_other_cleanup_hooks_run_when_one_fails():
    cb = tracer(["cleanup_batch"])
    learn = listed_learner(hook_cb(cleanup_batch=raiser(KeyError("one"))), cb)
    learn.add_cb(hook_cb(cleanup_batch=raiser(ValueError("two"))))
    with pytest.raises(KeyError, match="one") as e:
        learn.fit()
    assert cb.trace == ["cleanup_batch"]
    assert "minilearn: then HookCB.cleanup_batch failed too: ValueError('two')" in e.value.__notes__


def test_other_hooks_of_an_event_do_not_run_after_an_error():
    cb = tracer(["after_loss"])
    with pytest.raises(KeyError):
        listed_learner(hook_cb(after_loss=raiser(KeyError("x")))).fit(cbs=cb)
    assert cb.trace == []


# Each cancel --------------------------------------------------------------------------------------


def at_first(event, error):
    """Raise at the first time that an event fires."""

    def hook(learn):
        if not seen:
            seen.append(event)
            raise error

    seen = []
    return hook_cb(**{event: hook})


COUNTED = ("after_step", "after_batch", "after_train", "after_validate", "after_epoch", "after_fit")


@pytest.mark.parametrize(
    ("event", "error", "counts"),
    [
        # of two epochs, each with 2 train batches and 1 valid batch
        ("before_step", CancelStepException, (3, 6, 2, 2, 2, 1)),
        ("after_loss", CancelBatchException, (3, 5, 2, 2, 2, 1)),
        ("after_loss", CancelTrainException, (2, 4, 1, 2, 2, 1)),
        ("before_validate", CancelValidateException, (4, 5, 2, 1, 2, 1)),
        ("after_loss", CancelEpochException, (2, 3, 1, 1, 1, 1)),
        ("after_loss", CancelFitException, (0, 0, 0, 0, 0, 0)),
        ("before_fit", CancelFitException, (0, 0, 0, 0, 0, 0)),
    ],
)
def test_a_cancel_leaves_its_scope_and_no_more(event, error, counts):
    cb = tracer(COUNTED)
    listed_learner(at_first(event, error())).fit(2, cbs=cb)
    assert tuple(cb.trace.count(name) for name in COUNTED) == counts


def test_a_cancelled_step_keeps_gradients_and_does_not_count():
    def cancel_first(learn):
        if learn.batch_idx == 0:
            raise CancelStepException

    grads, steps = [], []
    learn = listed_learner(
        hook_cb(
            before_step=cancel_first,
            after_backward=lambda learn: grads.append(learn.model.weight.grad.clone()),
            after_batch=lambda learn: steps.append(learn.n_steps),
        )
    )
    learn.fit(valid=False)
    torch.testing.assert_close(grads[1], 2 * grads[0])  # the same batch and weights twice
    assert steps == [0, 1]


def test_a_cancel_after_the_step_still_clears_gradients_and_counts():
    learn = listed_learner(hook_cb(after_step=raiser(CancelStepException())))
    learn.fit(valid=False)
    assert learn.n_steps == 2
    assert learn.model.weight.grad is None


def test_a_cancel_of_a_scope_that_is_not_running_escapes_with_a_note():
    learn = listed_learner(hook_cb(before_epoch=raiser(CancelBatchException())))
    with pytest.raises(CancelBatchException) as e:
        learn.fit()
    assert e.value.__notes__ == [
        "minilearn: no batch is running at before_epoch to cancel; running: fit, epoch"
    ]
