"""learn.pause(): a fit that a script stops, and resumes later."""

import signal
import threading

import pytest
import torch
from toolbox import CountCB, make_learner, mentions, noisy_learner, same, state_of, tensors_of

from minilearn import (
    EMACB,
    SWACB,
    Callback,
    CheckpointCB,
    EarlyStoppingCB,
    GradientAccumulationCB,
    MetricsCB,
    ProgressCB,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import read
from minilearn.plan import Position

pytestmark = pytest.mark.slow

N_EPOCHS = 3
EVENTS = (
    *(
        "before_fit",
        "before_epoch",
        "before_train",
        "before_batch",
        "after_loss",
        "before_step",
        "after_step",
    ),
    *("after_batch", "after_train", "before_validate", "after_validate", "after_epoch", "cleanup_epoch"),
)


class PauseCB(Callback):
    """Pause in epoch 1, at an event; `pausing_at` gives it the hook."""

    def __init__(self):
        self.n, self.ends = 1, []

    def state_dict(self):
        return {}

    def _pause(self, learn):
        if self.n and (learn.epoch == 1 or learn.scopes == ["fit"]):
            self.n -= 1
            learn.pause()

    def after_fit(self, learn):
        self.ends.append("after_fit")

    def cleanup_fit(self, learn):
        self.ends.append("cleanup_fit")


def pausing_at(event):
    return type("PauseCB", (PauseCB,), {event: lambda self, learn: self._pause(learn)})()


def new(folder, *cbs, seed=1):
    return noisy_learner(MetricsCB(), CountCB(), CheckpointCB(folder, keep=99), *cbs, seed=seed)


@pytest.mark.parametrize("event", EVENTS)
def test_paused_fit_is_continued_as_if_it_had_not_been(tmp_path, event):
    straight = new(tmp_path / "straight")
    straight.fit(N_EPOCHS)
    learn = new(tmp_path / "run", cb := pausing_at(event))
    learn.fit(N_EPOCHS)
    assert (learn.is_paused, learn.n_fits, cb.ends) == (True, 0, ["cleanup_fit"])
    assert not Position(**read(learn.saved_to)["position"]).is_over
    others = [new(tmp_path / "run", seed=50), learn]
    path = learn.saved_to
    for other in others:
        other.fit(N_EPOCHS, resume=path)
        assert (other.is_paused, other.n_fits) == (False, 1)
        assert first_difference(state_of(straight), state_of(other, "PauseCB")) == ""
        for later in (tmp_path / "run").iterdir():
            if later != path:
                later.unlink()


def test_batch_is_finished_and_saved(tmp_path):
    learn = new(tmp_path, pausing_at("after_loss"))
    learn.fit(N_EPOCHS)
    position = {"epoch": 1, "phase": "train", "batch": 1}
    assert (read(learn.saved_to)["position"], learn.n_steps) == (position, 4)


def test_pause_in_the_last_validation_is_before_the_end(tmp_path):
    class LastCB(PauseCB):
        def after_validate(self, learn):
            if learn.epoch == N_EPOCHS - 1 and self.n:
                self.n -= 1
                learn.pause()

    learn = new(tmp_path, cb := LastCB())
    learn.fit(N_EPOCHS)
    assert (learn.is_paused, cb.ends) == (True, ["cleanup_fit"])
    learn.fit(N_EPOCHS, resume=True)
    assert (learn.is_paused, cb.ends, learn.n_fits) == (False, ["cleanup_fit", "after_fit", "cleanup_fit"], 1)


def test_pause_after_the_last_epoch_comes_too_late(tmp_path):
    class LateCB(PauseCB):
        def after_fit(self, learn):
            learn.pause()

    learn = new(tmp_path, LateCB())
    learn.fit(N_EPOCHS)
    assert (learn.is_paused, learn.n_fits) == (False, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SWACB(0),
        lambda: EMACB(0.5),
        lambda: EarlyStoppingCB(patience=9, min_delta=100.0),
    ],
    ids=["SWACB", "EMACB", "EarlyStoppingCB"],
)
def test_paused_fit_leaves_the_weights_that_are_trained(tmp_path, make):
    learn = new(tmp_path, make(), pausing_at("after_epoch"))
    learn.fit(N_EPOCHS)
    assert learn.is_paused
    saved = read(learn.saved_to)["model"]
    assert same({name: saved[name] for name in tensors_of(learn.model)}, tensors_of(learn.model))


def test_pause_may_be_asked_twice_and_in_a_nested_validation(tmp_path):
    class NestedCB(PauseCB):
        def after_batch(self, learn):
            if learn.is_nested or learn.training:
                self._pause(learn)

        def after_step(self, learn):
            learn.validate()

    cb = NestedCB()
    cb.n = 3
    learn = new(tmp_path, cb)
    learn.fit(N_EPOCHS)
    assert (learn.is_paused, learn.n_steps) == (True, 4)


def test_second_fit_of_a_run_can_be_paused(tmp_path):
    def run(learn):
        learn.fit(1, resume=True)
        learn.fit(N_EPOCHS, resume=True)

    straight = new(tmp_path / "straight")
    run(straight)
    learn = new(tmp_path / "run")
    learn.fit(1, resume=True)
    learn.fit(N_EPOCHS, cbs=[pausing_at("after_batch")], resume=True)
    assert (learn.is_paused, learn.n_fits) == (True, 1)
    other = new(tmp_path / "run", seed=50)
    run(other)
    assert first_difference(state_of(straight), state_of(other)) == ""


def test_request_of_another_thread_is_heard(tmp_path):
    class ThreadCB(PauseCB):
        def after_loss(self, learn):
            thread = threading.Thread(target=self._pause, args=[learn])
            thread.start()
            thread.join()

    learn = new(tmp_path, ThreadCB())
    learn.fit(N_EPOCHS)
    assert (learn.is_paused, learn.n_steps) == (True, 4)


# Where there is nothing to pause ------------------------------------------------------------------------


def test_pause_outside_of_a_fit_is_refused(tmp_path):
    learn = new(tmp_path)
    with pytest.raises(RuntimeError, match=mentions("pause() ... hook")):
        learn.pause()
    learn.fit(1)
    with pytest.raises(RuntimeError, match=mentions("pause() ... hook")):
        learn.pause()


@pytest.mark.parametrize(
    "call", [lambda learn: learn.validate(), lambda learn: learn.predict(learn.dls.valid)]
)
def test_pause_in_a_pass_that_is_no_fit_is_refused(tmp_path, call):
    class AlwaysCB(PauseCB):
        def after_predict(self, learn):
            learn.pause()

    learn = new(tmp_path, AlwaysCB())
    with pytest.raises(RuntimeError, match=mentions("pause() ... hook")):
        call(learn)


@pytest.mark.parametrize("call", [lambda learn: learn.fit(2), lambda learn: learn.fit(2, train=False)])
def test_pause_without_checkpoints_is_refused(call):
    class AlwaysCB(Callback):
        def after_batch(self, learn):
            learn.pause()

    learn = make_learner(cbs=[AlwaysCB()])
    with pytest.raises(RuntimeError, match=mentions("CheckpointCB ... CancelFitException")):
        call(learn)
    assert not learn.is_paused


def test_pause_in_lr_find_is_refused(tmp_path):
    class AlwaysCB(Callback):
        def after_batch(self, learn):
            learn.pause()

    learn = make_learner(cbs=[AlwaysCB(), CheckpointCB(tmp_path)])
    with pytest.raises(RuntimeError, match=mentions("CheckpointCB ... lr_find")):
        learn.lr_find(n_steps=10)


# A fit that was cut short ---------------------------------------------------------------------------


def test_resumed_fit_that_was_cut_short_says_by_whom(tmp_path, capsys):
    def make():
        stopper = EarlyStoppingCB(patience=1, min_delta=100.0)
        return noisy_learner(MetricsCB(), stopper, CheckpointCB(tmp_path))

    make().fit(5)
    capsys.readouterr()
    make().fit(5, resume=True)
    assert "cut short by EarlyStoppingCB.after_epoch after 6 of 15 steps" in capsys.readouterr().out


def test_resumed_fit_that_came_to_its_end_says_nothing_of_it(tmp_path, capsys):
    noisy_learner(CheckpointCB(tmp_path)).fit(2)
    learn = noisy_learner(CheckpointCB(tmp_path), ProgressCB())
    learn.fit(2, resume=True)
    learn.fit(2, resume=True)
    assert "cut short" not in capsys.readouterr().out


def test_what_cut_a_fit_short_is_still_known_after_it_was_resumed(tmp_path):
    def make():
        return noisy_learner(
            MetricsCB(), EarlyStoppingCB(patience=1, min_delta=100.0), CheckpointCB(tmp_path)
        )

    make().fit(5)
    learn = make()
    learn.fit(5, resume=True)
    assert learn.cancelled_by["fit"] == "EarlyStoppingCB.after_epoch"
    assert torch.isfinite(learn.loss)


# In a run that is resumed -------------------------------------------------------------------------------


def test_run_may_be_paused_again_and_again(tmp_path):
    class EachStepCB(PauseCB):
        def after_step(self, learn):
            learn.pause()

        def after_validate(self, learn):
            learn.pause()

    straight = new(tmp_path / "straight")
    straight.fit(N_EPOCHS)
    n = 0
    for seed in range(1, 50):
        learn = new(tmp_path / "run", EachStepCB(), seed=seed)
        learn.fit(N_EPOCHS, resume=True)
        if not learn.is_paused:
            break
        n += 1
    assert n == N_EPOCHS * (3 + 1)
    assert first_difference(state_of(straight), state_of(learn, "EachStepCB")) == ""
    assert learn.n_fits == 1


def test_pause_in_the_middle_of_an_accumulated_step_keeps_its_gradients(tmp_path):
    def make(name, *cbs, seed=1):
        return new(tmp_path / name, GradientAccumulationCB(3), *cbs, seed=seed)

    straight = make("straight")
    straight.fit(N_EPOCHS)
    learn = make("run", pausing_at("after_backward"))
    learn.fit(N_EPOCHS)
    saved = read(learn.saved_to)
    assert (learn.is_paused, saved["position"]["batch"], saved["mean"]["n"]) == (True, 1, 1)
    assert saved["grads"]
    other = make("run", seed=50)
    other.fit(N_EPOCHS, resume=True)
    assert first_difference(state_of(straight), state_of(other)) == ""


@pytest.mark.parametrize("inside", ["before_epoch", "before_train", "before_batch", "before_validate"])
def test_pause_that_is_asked_for_when_a_run_is_resumed_keeps_its_place(tmp_path, inside):
    straight = new(tmp_path / "straight")
    straight.fit(N_EPOCHS)
    learn = new(tmp_path / "run", pausing_at("after_step"))
    learn.fit(N_EPOCHS)
    learn = new(tmp_path / "run", pausing_at(inside), seed=50)
    learn.fit(N_EPOCHS, resume=True)
    assert learn.is_paused
    learn = new(tmp_path / "run", seed=51)
    learn.fit(N_EPOCHS, resume=True)
    assert first_difference(state_of(straight), state_of(learn)) == ""


# While the model holds an average -----------------------------------------------------------------------


@pytest.mark.parametrize("asks", ["pause", "signal"])
@pytest.mark.parametrize(
    "make", [lambda: EMACB(0.5), lambda: SWACB(0, every_steps=1)], ids=["EMACB", "SWACB"]
)
def test_request_in_an_averaged_validation_waits_for_the_weights_that_are_trained(tmp_path, make, asks):
    trace = []

    class AsksCB(Callback):
        n = 1

        def state_dict(self):
            return {}

        def after_predict(self, learn):
            trace.append(learn.rests)
            if learn.epoch == 1 and not learn.training and not learn.is_nested and self.n:
                AsksCB.n = 0
                learn.pause() if asks == "pause" else learn.stop.hear(signal.SIGINT, 1)

        def at_rest(self, learn):
            trace.append("rest")
            assert not any(cb._is_swapped for cb in learn.cbs if isinstance(cb, EMACB | SWACB))
            assert learn.scopes[-1:] != ["validate"]

    straight = new(tmp_path / "straight", make())
    straight.fit(N_EPOCHS)
    learn = new(tmp_path / "run", make(), AsksCB())
    if asks == "pause":
        learn.fit(N_EPOCHS)
        assert learn.is_paused
    else:
        with pytest.raises(KeyboardInterrupt):
            learn.fit(N_EPOCHS)
    assert read(learn.saved_to)["position"] == {"epoch": 2, "phase": "", "batch": 0}
    in_validation = [True] * 3 + [False] * 4  # 3 batches of training, each at rest; iterate and average
    assert [x for x in trace if x != "rest"] == in_validation * 2
    other = new(tmp_path / "run", make(), seed=50)
    other.fit(N_EPOCHS, resume=True)
    assert first_difference(state_of(straight), state_of(other)) == ""
