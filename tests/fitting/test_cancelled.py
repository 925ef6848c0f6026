"""Steps and batches that are cancelled: which gradients are kept, and when the next step comes."""

import math
from functools import partial

import pytest
import torch
from toolbox import dealt, every_rest, make_learner, noisy_learner, state_of, untimed_rows
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import (
    EMACB,
    BatchSchedulerCB,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelException,
    CancelStepException,
    CancelTrainException,
    DataLoaders,
    GradientAccumulationCB,
    Learner,
    MetricsCB,
    RecorderCB,
    TensorLoader,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in

pytestmark = pytest.mark.slow

EVENTS = {CancelStepException: ("before_step",)}
EVENTS[CancelBatchException] = ("after_backward", "before_step")
PLACES = [(error, event) for error, events in EVENTS.items() for event in events]
LAST = ("before_batch", "after_loss", "after_backward")


def cancelling(event, error, *batches, before=None, order=0):
    """Make a callback that cancels in given batches of the training."""

    def hook(self, learn):
        if learn.training and learn.batch_idx in batches:
            if before is not None:
                before(learn)
            raise error

    return type("CancelsCB", (Callback,), {event: hook, "order": order})()


def spoil(learn):
    learn.model.weight.grad[0, 0] = math.nan


class GradsCB(Callback):
    """Keep the gradients of the weights that each step took, with the batch."""

    order = 1000

    def __init__(self):
        self.grads, self.batches = [], []

    def after_step(self, learn):
        self.grads.append(learn.model.weight.grad.clone())
        self.batches.append(learn.batch_idx)


def grad_of(learn, *batches):
    """Return the gradient of the mean over given batches, at the model's weights now."""
    every = list(learn.dls.train)
    x, y = (torch.cat([every[i][j] for i in batches]) for j in (0, 1))
    return torch.autograd.grad(F.cross_entropy(learn.model(x), y), learn.model.weight)[0]


def frozen(n_batches, *cbs, **kwargs):
    """Make a learner whose weights stay, so that gradients are comparable; return it and its GradsCB."""
    grads = GradsCB()
    return make_learner(n_batches, n_valid=0, cbs=[*cbs, grads], lr=0.0, opt_func=SGD, **kwargs), grads


def close(found, *expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# Kept and dropped -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "event"), PLACES)
def test_gradients_are_kept_and_added_to_unless_told(error, event):
    learn, seen = frozen(2, cancelling(event, error, 0))
    learn.fit()
    close(seen.grads, grad_of(learn, 0) + grad_of(learn, 1))
    learn, seen = frozen(2, cancelling(event, error(keep=False), 0))
    learn.fit()
    close(seen.grads, grad_of(learn, 1))


@pytest.mark.parametrize(("error", "event"), PLACES)
@pytest.mark.parametrize("keep", [True, False])
def test_accumulated_gradients_are_kept_as_a_mean_or_dropped_with_it(error, event, keep):
    learn, seen = frozen(5, GradientAccumulationCB(2), cancelling(event, error(keep=keep), 1), n=19)
    learn.fit()
    if keep:  # it joins the next batch
        close(seen.grads, grad_of(learn, 0, 1, 2), grad_of(learn, 3, 4))
        assert seen.batches == [2, 4]
    else:  # the step begins with the next batch
        close(seen.grads, grad_of(learn, 2, 3), grad_of(learn, 4))
        assert seen.batches == [3, 4]


def test_accumulated_step_that_is_cancelled_twice_stays_a_mean():
    learn, seen = frozen(
        4, GradientAccumulationCB(2), cancelling("before_step", CancelStepException, 1, 2), n=15
    )
    learn.fit()
    close(seen.grads, grad_of(learn, 0, 1, 2, 3))


@pytest.mark.parametrize("event", ["before_batch", "after_predict", "after_loss", "after_backward"])
def test_batch_that_is_dropped_takes_the_accumulated_ones_with_it(event):
    learn, seen = frozen(4, GradientAccumulationCB(3), cancelling(event, CancelBatchException(keep=False), 1))
    learn.fit()
    close(seen.grads, grad_of(learn, 2, 3))


@pytest.mark.parametrize("error", [CancelStepException, CancelBatchException])
def test_gradients_of_an_optimizer_without_groups_are_dropped_too(error):
    class Bare:
        def __init__(self, params, lr):
            self.params, self.lr = list(params), lr

        def step(self):
            pass

        def zero_grad(self):
            for p in self.params:
                p.grad = None

    seen = GradsCB()
    cbs = [cancelling("before_step", error(keep=False), 0), seen]
    learn = make_learner(2, n_valid=0, cbs=cbs, opt_func=Bare)
    learn.fit()
    close(seen.grads, grad_of(learn, 1))


# Not finite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "event"), PLACES)
def test_kept_gradients_that_are_not_finite_become_0(error, event):
    learn, seen = frozen(3, cancelling(event, error, 0, before=spoil))
    learn.fit()
    close(seen.grads, grad_of(learn, 1), grad_of(learn, 2))


@pytest.mark.parametrize(("error", "event"), PLACES)
def test_accumulated_ones_that_are_not_finite_count_nothing(error, event):
    learn, seen = frozen(4, GradientAccumulationCB(2), cancelling(event, error, 1, before=spoil), n=15)
    learn.fit()
    close(seen.grads, grad_of(learn, 2), grad_of(learn, 3))


def test_step_of_nothing_that_is_finite_is_left_out():
    cancel = cancelling("after_backward", CancelBatchException, 0, 1, before=spoil)
    learn, seen = frozen(2, GradientAccumulationCB(2), cancel)
    with pytest.warns(UserWarning, match="took no step"):
        learn.fit()
    assert (seen.grads, learn.n_steps) == ([], 0)


@pytest.mark.parametrize("error", [CancelTrainException, CancelEpochException])
@pytest.mark.parametrize("event", ["after_backward", "before_step"])
@pytest.mark.parametrize("n", [1, 2])
def test_bad_batch_that_ends_an_epoch_does_not_end_all_later_training(error, event, n):
    class CancelsCB(Callback):
        def _cancel(self, learn):
            if learn.epoch == 0 and learn.batch_idx == n - 1:
                spoil(learn)
                raise error

    cb = type("CancelsCB", (CancelsCB,), {event: CancelsCB._cancel})()
    learn = make_learner(4, cbs=[GradientAccumulationCB(n), cb])
    learn.fit(2)
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.parametrize("opt_func", [partial(SGD, momentum=0.9), torch.optim.AdamW])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("error", "event"), PLACES)
def test_one_bad_batch_does_not_end_all_later_training(opt_func, n, error, event):
    cancel = cancelling(event, error, 1, before=spoil)
    learn = make_learner(4, cbs=[GradientAccumulationCB(n), cancel, EMACB(0.5)], opt_func=opt_func)
    learn.fit(3)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    for state in learn.opt.state.values():
        assert all(value.isfinite().all() for value in state.values() if isinstance(value, torch.Tensor))


def test_sparse_gradients_are_kept_and_looked_at():
    def run(before=None):
        torch.manual_seed(0)
        x = torch.randint(5, (8, 2))
        model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
        dls = DataLoaders(TensorLoader(x, x[:, 0] % 2, bs=4))
        cbs = [cancelling("before_step", CancelStepException, 0, before=before), keep]
        Learner(model, dls, lr=0.0, cbs=cbs, opt_func=SGD, default_cbs=False).fit()
        one = [
            torch.autograd.grad(F.cross_entropy(model(xb), yb), model[2].weight)[0] for xb, yb in dls.train
        ]
        return keep.grads, one

    class KeepCB(Callback):
        def after_step(self, learn):
            self.grads = [learn.model[0].weight.grad.to_dense(), learn.model[2].weight.grad]

    keep = KeepCB()
    (embedding, linear), one = run()
    torch.testing.assert_close(linear, sum(one))
    assert embedding.any()

    def spoil(learn):
        learn.model[0].weight.grad._values()[0, 0] = math.inf

    (embedding, linear), one = run(spoil)
    torch.testing.assert_close(linear, one[1])
    assert embedding.isfinite().all()


# The exceptions ---------------------------------------------------------------------------------------


def test_exceptions_with_arguments_of_their_own_keep_gradients():
    class TooLargeError(CancelStepException):
        def __init__(self, norm, limit):
            self.norm, self.limit = norm, limit

    class NamedError(CancelBatchException):
        def __init__(self, why, keep=True):
            super().__init__(f"because {why}", keep=keep)

    for event, error in (("before_step", TooLargeError(3.0, limit=1.0)), ("after_backward", NamedError("x"))):
        learn, seen = frozen(2, cancelling(event, error, 0))
        learn.fit()
        close(seen.grads, grad_of(learn, 0) + grad_of(learn, 1))
    learn, seen = frozen(2, cancelling("after_backward", NamedError("x", keep=False), 0))
    learn.fit()
    close(seen.grads, grad_of(learn, 1))
    assert (str(NamedError("x")), CancelStepException("a", 1).args) == ("because x", ("a", 1))
    assert CancelException.keep


# Skipped at the end of an epoch -----------------------------------------------------------------------


@pytest.mark.parametrize("event", LAST)
@pytest.mark.parametrize("n_skipped", [1, 2])
def test_rest_of_an_epoch_whose_last_batches_are_skipped_takes_its_step(event, n_skipped):
    trace = []

    class TraceCB(Callback):
        order = 2000

        def before_step(self, learn):
            trace.append(("step", learn.is_accumulating))

        def after_train(self, learn):
            trace.append("after_train")

    n = 6
    skipped = range(n - n_skipped, n)
    cbs = [GradientAccumulationCB(4), cancelling(event, CancelBatchException, *skipped), TraceCB()]
    learn, seen = frozen(n, *cbs)
    learn.fit(2)
    rest = [i for i in (4, 5) if i not in skipped or event == "after_backward"]
    expected = [grad_of(learn, 0, 1, 2, 3)] + ([grad_of(learn, *rest)] if rest else [])
    close(seen.grads, *expected, *expected)
    steps = [("step", False)] * len(expected) + ["after_train"]
    assert trace == steps * 2


@pytest.mark.parametrize("event", LAST)
def test_steps_and_schedule_of_epochs_whose_last_batch_is_skipped_are_as_planned(event):
    recorder = RecorderCB(lr="pg.lr")
    cbs = [GradientAccumulationCB(3), BatchSchedulerCB(OneCycleLR), recorder]
    straight = make_learner(5, cbs=cbs)
    straight.fit(2)
    lrs = recorder.recs["lr"]
    recorder = RecorderCB(lr="pg.lr")
    cbs = [GradientAccumulationCB(3), BatchSchedulerCB(OneCycleLR), recorder]
    learn = make_learner(5, cbs=[*cbs, cancelling(event, CancelBatchException, 4)])
    learn.fit(2)
    assert (learn.n_steps, learn.total_steps) == (4, 4)
    assert recorder.recs["lr"] == lrs


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [CancelStepException, CancelBatchException])
def test_rest_may_be_cancelled_itself(error, keep):
    class CancelsCB(Callback):
        def before_step(self, learn):
            if learn.epoch == 0 and "batch" not in learn.scopes:
                raise error(keep=keep)

    cbs = [GradientAccumulationCB(2), cancelling("before_batch", CancelBatchException, 3), CancelsCB()]
    learn, seen = frozen(4, *cbs)
    learn.fit(2)
    assert learn.n_steps == 3
    first, rest = grad_of(learn, 0, 1), grad_of(learn, 2)
    if keep:
        close(seen.grads, first, grad_of(learn, 2, 0), grad_of(learn, 1, 2))
    else:
        close(seen.grads, first, first, rest)


def resumed_everywhere(tmp_path, make):
    """Fit `make(folder, seed)`, and check that a new one resumed from any of its checkpoints ends the same.

    Return the first learner and the one that was resumed last.
    """
    straight = make(tmp_path / "straight", 1)
    straight.fit(2)
    for path in dealt(checkpoints_in(tmp_path / "straight")):
        other = make(tmp_path / path.stem, 50)
        other.fit(2, resume=path)
        assert first_difference(state_of(straight, "CheckpointCB"), state_of(other, "CheckpointCB")) == "", (
            path
        )
    return straight, other


@pytest.mark.parametrize("event", LAST)
def test_run_that_is_resumed_before_the_rest_takes_it_too(tmp_path, event):
    def make(folder, seed):
        cbs = [GradientAccumulationCB(3), BatchSchedulerCB(OneCycleLR), MetricsCB(), EMACB(0.9)]
        skips = cancelling(event, CancelBatchException, 4)
        return noisy_learner(*cbs, skips, every_rest(folder), seed=seed, n_train=5)

    straight, _ = resumed_everywhere(tmp_path, make)
    assert straight.n_steps == 4


@pytest.mark.parametrize(("error", "event"), PLACES)
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.full), 2])
def test_gradients_that_are_kept_are_in_checkpoints(tmp_path, error, event, n):
    def make(folder, seed):
        cbs = [GradientAccumulationCB(n), MetricsCB(), cancelling(event, error, 1, 3)]
        return noisy_learner(*cbs, every_rest(folder), seed=seed, n_train=5)

    straight, other = resumed_everywhere(tmp_path, make)
    assert untimed_rows(straight) == untimed_rows(other)


@pytest.mark.parametrize("keep", [True, False])
def test_batch_that_is_left_with_its_epoch_keeps_or_drops_gradients_too(keep):
    class CancelsCB(Callback):
        def before_step(self, learn):
            if learn.epoch == 0:
                raise CancelTrainException(keep=keep)

    learn, seen = frozen(2, CancelsCB())
    learn.fit(2)
    kept = grad_of(learn, 0) if keep else 0
    close(seen.grads, grad_of(learn, 0) + kept, grad_of(learn, 1))
