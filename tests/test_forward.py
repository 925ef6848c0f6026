"""The scope `forward`: its order, and what a batch is left with where it is cancelled."""

import pytest
import torch
from toolbox import make_learner, mentions, same, tensors_of
from torch.nn import functional as F

import minilearn.events
from minilearn import (
    Callback,
    CancelBatchException,
    CancelForwardException,
    GradientAccumulationCB,
    MetricsCB,
)
from minilearn.events import STEPS, events

INSIDE = ["before_forward", "predict", "after_predict", "get_loss", "after_loss", "after_forward"]


def tracing(note):
    """Make a callback that calls `note(event, learn)` at each event that is no step."""

    def hook(event):
        return lambda self, learn: note(event, learn)

    return type("TraceCB", (Callback,), {e: hook(e) for e in events() if e not in STEPS})()


def cancelling(event, function=None, order=0, error=CancelForwardException):
    """Make a callback that calls a function in training, and cancels."""

    def hook(self, learn):
        if learn.training:
            if function is not None:
                function(learn)
            raise error

    return type("StopsCB", (Callback,), {event: hook, "order": order})()


# The order --------------------------------------------------------------------------------------------


def test_forward_is_in_the_documented_order_in_training_and_validation():
    trace = []
    make_learner(1, cbs=[tracing(lambda event, learn: trace.append(event))]).fit()
    for phase in ("train", "validate"):
        part = trace[trace.index(f"before_{phase}") : trace.index(f"after_{phase}")]
        batch = part[part.index("before_batch") : part.index("after_batch") + 1]
        known = [event for event in events() if event in batch]
        assert batch == known
        inside = batch[batch.index("before_forward") : batch.index("cleanup_forward") + 1]
        assert inside == [e for e in INSIDE if e not in STEPS] + ["cleanup_forward"]
    words = minilearn.events.__doc__.split()
    places = [words.index(name) for name in ("before_forward", "PREDICT", "GET_LOSS", "BACKWARD")]
    assert places == sorted(places)


def test_preds_loss_and_count_are_none_before_and_of_this_batch_after():
    seen = []

    def note(event, learn):
        if event in ("before_forward", "after_loss", "after_forward", "cleanup_forward"):
            seen.append((event, learn.preds is None, learn.loss is None, learn.loss_count))

    make_learner(2, n=7, cbs=[tracing(note)]).fit(valid=False)
    one = [("before_forward", True, True, None), ("after_loss", False, False, None)]
    assert seen == [
        *one,
        ("after_forward", False, False, 4),
        ("cleanup_forward", False, False, 4),
        *one,
        ("after_forward", False, False, 3),
        ("cleanup_forward", False, False, 3),
    ]


def test_loss_by_is_none_where_a_hook_set_the_loss():
    class SecondCB(Callback):
        def before_forward(self, learn):
            seen.append(learn.loss_by)
            if learn.batch_idx == 1:
                learn.loss = learn.model(learn.xb).sum()
                raise CancelForwardException

        def after_batch(self, learn):
            seen.append(learn.loss_by)

    seen = []
    learn = make_learner(2, cbs=[SecondCB()])
    learn.fit(valid=False)
    assert seen == [None, learn.loss_func, None, None]


def test_nested_validation_in_the_forward_leaves_its_preds_loss_and_count():
    class NestedCB(Callback):
        def after_loss(self, learn):
            if not learn.is_nested:
                learn.validate()

    straight, learn = make_learner(), make_learner(cbs=[NestedCB(), MetricsCB()])
    straight.fit(2)
    learn.fit(2)
    assert same(tensors_of(straight.model), tensors_of(learn.model))
    assert len(learn.history) == 4


def test_nested_prediction_in_the_forward_leaves_what_computed_the_loss():
    class NestedCB(Callback):
        def after_loss(self, learn):
            learn.predict(learn.dls.valid)
            seen.append(learn.loss_by is learn.loss_func)

    seen = []
    make_learner(1, cbs=[NestedCB()]).fit(valid=False)
    assert seen == [True]


# Cancelled --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "skipped"),
    [("before_forward", INSIDE[1:]), ("after_predict", INSIDE[3:]), ("after_loss", INSIDE[5:])],
)
def test_cancelled_forward_ends_at_once_with_its_cleanup(event, skipped):
    trace = []

    def own(learn):
        learn.preds = learn.model(learn.xb)
        learn.loss = F.cross_entropy(learn.preds, learn.yb)

    cbs = [tracing(lambda event, learn: trace.append(event)), cancelling(event, own)]
    learn = make_learner(1, n_valid=0, cbs=cbs)
    learn.fit()
    expected = [e for e in INSIDE if e not in (*STEPS, *skipped)] + ["cleanup_forward"]
    assert trace[trace.index("before_forward") : trace.index("after_backward")] == expected
    assert (trace.count("after_step"), learn.n_steps) == (1, 1)


@pytest.mark.parametrize("event", ["before_forward", "after_predict", "after_loss"])
@pytest.mark.parametrize("accumulates", [False, True])
def test_backward_uses_the_loss_that_the_cancelling_hook_set(event, accumulates):
    def own(learn):
        learn.preds = learn.model(learn.xb)
        learn.loss = F.cross_entropy(learn.preds, learn.yb)

    def make(*cbs):  # the last batch has 3 samples: their count has to be known
        accumulation = [GradientAccumulationCB(2)] if accumulates else []
        return make_learner(2, n=7, cbs=[MetricsCB(), *accumulation, *cbs])

    straight, learn = make(), make(cancelling(event, own))
    straight.fit(2)
    learn.fit(2)
    assert same(tensors_of(straight.model), tensors_of(learn.model))
    assert [row["loss"] for row in straight.history] == [row["loss"] for row in learn.history]


@pytest.mark.parametrize("event", ["before_forward", "after_predict"])
def test_cancelled_forward_without_a_loss_is_an_error_and_no_step_on_a_stale_one(event):
    class LateCB(Callback):
        def _cancel(self, learn):
            if learn.batch_idx == 1:
                raise CancelForwardException

    cb = type("LateCB", (LateCB,), {event: LateCB._cancel})()
    learn = make_learner(cbs=[cb])
    with pytest.raises(
        RuntimeError, match=mentions(f"learn.loss is None ... LateCB.{event} ... loss to be set")
    ):
        learn.fit()
    assert learn.n_steps == 1


def test_cancelled_forward_without_a_loss_is_an_error_in_a_validation_that_is_measured():
    class EvalCB(Callback):
        def before_forward(self, learn):
            if not learn.training:
                raise CancelForwardException

    with pytest.raises(TypeError, match=mentions("learn.loss is None ... cancels the forward")):
        make_learner(cbs=[EvalCB(), MetricsCB()]).fit()


def test_batch_that_is_cancelled_in_the_forward_takes_no_step():
    learn = make_learner(cbs=[cancelling("after_loss", error=CancelBatchException)])
    weights = tensors_of(learn.model)
    learn.fit()
    assert (learn.n_steps, same(weights, tensors_of(learn.model))) == (0, True)


@pytest.mark.parametrize("error", [ZeroDivisionError, CancelBatchException, CancelForwardException])
def test_cleanup_forward_always_runs(error):
    n = []

    class CleanCB(Callback):
        def cleanup_forward(self, learn):
            n.append(learn.is_failing)

    def own(learn):
        learn.loss = learn.model(learn.xb).sum()

    learn = make_learner(1, n_valid=0, cbs=[CleanCB(), cancelling("before_forward", own, error=error)])
    if error is ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            learn.fit()
    else:
        learn.fit()
    assert n == [error is ZeroDivisionError]


def test_predict_has_a_forward_without_a_loss():
    trace = []
    learn = make_learner(cbs=[tracing(lambda event, learn: trace.append((event, learn.loss)))])
    preds = learn.predict(learn.dls.valid)
    assert trace == [
        (event, None)
        for event in ("before_batch", "before_forward", "after_predict", "cleanup_forward", "cleanup_batch")
    ]
    assert torch.equal(preds, learn.model(learn.dls.valid.tensors[0]).detach())
