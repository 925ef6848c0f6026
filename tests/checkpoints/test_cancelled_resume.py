"""Hooks that cancel, or write rows, in a run that is resumed: the checkpoint is put back all the same."""

import pytest
from toolbox import dealt, every_rest, make_learner, noisy_learner, same, state_of, tensors_of

from minilearn import (
    Callback,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CancelValidateException,
    CheckpointCB,
    MetricsCB,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import checkpoints_in, read
from minilearn.plan import Position

pytestmark = pytest.mark.slow

N_EPOCHS = 3
CANCELS = [
    ("before_epoch", CancelEpochException),
    ("before_epoch", CancelFitException),
    ("before_train", CancelTrainException),
    ("before_train", CancelEpochException),
    ("before_train", CancelFitException),
    ("before_validate", CancelValidateException),
    ("before_validate", CancelEpochException),
    ("before_validate", CancelFitException),
    ("before_batch", CancelTrainException),
    ("before_batch", CancelEpochException),
    ("after_batch", CancelEpochException),
    ("after_train", CancelEpochException),
    ("after_epoch", CancelFitException),
]


def new(folder, *cbs, seed=1):
    return noisy_learner(MetricsCB(), *cbs, every_rest(folder), seed=seed, n_train=2, n_valid=2)


def cancelling(event, error, epoch=1):
    """Make a callback that cancels in an epoch; before_batch and after_batch at the second batch."""

    def hook(self, learn):
        at_batch = event.endswith("_batch")
        if learn.epoch == epoch and (not at_batch or (learn.training and learn.batch_idx == 1)):
            raise error

    return type("CancelsCB", (Callback,), {event: hook, "state_dict": lambda self: {}})()


@pytest.mark.full
@pytest.mark.parametrize(("event", "error"), CANCELS)
def test_run_with_a_hook_that_cancels_is_resumed_as_the_straight_run(tmp_path, event, error):
    straight = new(tmp_path / "straight", cancelling(event, error))
    straight.fit(N_EPOCHS)
    files = checkpoints_in(tmp_path / "straight")
    assert len(files) >= 5
    for path in dealt(files):
        learn = new(tmp_path / path.stem, cancelling(event, error), seed=50)
        learn.fit(N_EPOCHS, resume=path)
        assert first_difference(state_of(straight, "CheckpointCB"), state_of(learn, "CheckpointCB")) == "", (
            path
        )


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("before_epoch", CancelEpochException),
        ("before_epoch", CancelFitException),
        ("before_fit", CancelFitException),
    ],
)
@pytest.mark.parametrize("name", ["epoch-0001-train-000001.pt", "epoch-0001-valid-000001.pt"])
def test_fit_that_is_cancelled_before_its_first_batch_has_the_checkpoint(tmp_path, error, event, name):
    new(tmp_path / "run").fit(N_EPOCHS)
    path = tmp_path / "run" / name
    saved = read(path)

    class CancelsCB(Callback):
        def _cancel(self, learn):
            if learn.epoch < 2:
                raise error

        def state_dict(self):
            return {}

        def before_train(self, learn):
            if learn.epoch == 2:  # the epoch after it begins with the weights of the checkpoint
                seen.append(tensors_of(learn.model))

    seen = []
    cancels = type("CancelsCB", (CancelsCB,), {event: CancelsCB._cancel})()
    learn = new(tmp_path / "other", cancels, seed=50)
    learn.fit(N_EPOCHS, resume=path)
    if error is CancelFitException:
        seen.append(tensors_of(learn.model))
        assert learn.n_steps == saved["fields"]["n_steps"]
        assert Position(**read(learn.saved_to)["position"]).is_over
    [weights] = seen
    assert same(weights, {name: saved["model"][name] for name in weights})
    assert learn.n_epochs_trained == saved["fields"]["n_epochs_trained"] + (error is CancelEpochException)
    assert [row["epoch"] for row in learn.history][:2] == [0, 0]


def test_error_before_the_first_batch_leaves_the_learner_as_it_was(tmp_path):
    new(tmp_path / "run").fit(N_EPOCHS)

    class FailsCB(Callback):
        def before_epoch(self, learn):
            raise ZeroDivisionError

        def state_dict(self):
            return {}

    learn = new(tmp_path / "other", FailsCB(), seed=50)
    before = tensors_of(learn.model)
    with pytest.raises(ZeroDivisionError):
        learn.fit(N_EPOCHS, resume=tmp_path / "run" / "epoch-0001-train-000001.pt")
    assert same(before, tensors_of(learn.model))
    assert (learn.history, learn.n_epochs_trained) == ([], 0)


@pytest.mark.parametrize("event", ["before_fit", "before_epoch", "before_train", "after_epoch"])
def test_rows_that_a_hook_adds_are_there_once(tmp_path, event):
    class RowCB(Callback):
        def _row(self, learn):
            learn.history.append({"note": learn.n_epochs_trained, "loss": 0.0})

    def make():
        return type("RowCB", (RowCB,), {event: RowCB._row})()

    straight = new(tmp_path / "straight", make())
    straight.fit(N_EPOCHS)
    assert sum("note" in row for row in straight.history) == (1 if event == "before_fit" else N_EPOCHS)
    for path in dealt(checkpoints_in(tmp_path / "straight")):
        learn = new(tmp_path / path.stem, make(), seed=50)
        learn.fit(N_EPOCHS, resume=path)
        assert first_difference(state_of(straight, "CheckpointCB"), state_of(learn, "CheckpointCB")) == "", (
            path
        )


def test_row_of_before_fit_is_gone_where_the_fit_cannot_be_resumed(tmp_path):
    learn = make_learner(cbs=[CheckpointCB(tmp_path / "run", every_steps=1)])
    learn.fit(2)
    other = make_learner(4, cbs=[CheckpointCB(tmp_path / "run", every_steps=1)])
    with pytest.raises(ValueError, match="steps"):
        other.fit(2, resume=True)
    assert other.history == []
