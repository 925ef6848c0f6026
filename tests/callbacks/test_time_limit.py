import re
import time

import pytest
from toolbox import every_rest, noisy_learner, state_of

from minilearn import EMACB, CheckpointCB, MetricsCB, ProgressCB, TimeLimitCB
from minilearn.callbacks import time_limit
from minilearn.checkpoints.codec import first_difference


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_limit, "time", clock)
    return clock


@pytest.fixture
def tick(clock, at):
    """Make a callback that lets each batch take so many seconds."""

    def make(train_s=1.0, eval_s=1.0):
        def go_on(learn):
            clock.now_s += train_s if learn.training else eval_s

        return at("before_batch", go_on)

    return make


def test_fit_pauses_before_the_limit_is_over(make_learner, tmp_path, tick, clock):
    learn = make_learner(
        n_batches=10, n_valid=0, cbs=[CheckpointCB(tmp_path), TimeLimitCB(minutes=0.1), tick()]
    )
    learn.fit(2)
    assert learn.is_paused
    assert learn.n_steps == 5  # the 6th would end at 6 s
    assert clock.now_s == 1005


@pytest.mark.slow
@pytest.mark.parametrize("limit_s", [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 30.0])
def test_fit_that_is_paused_again_and_again_is_the_straight_one(tmp_path, tick, limit_s):
    def make(seed, *cbs):
        return noisy_learner(MetricsCB(), tick(), *cbs, seed=seed)

    straight = make(1)
    straight.fit(2)
    n_starts = 0
    while True:
        n_starts += 1
        learn = make(n_starts, CheckpointCB(tmp_path, every_epochs=9), TimeLimitCB(seconds=limit_s))
        learn.fit(2, resume=True)
        if not learn.is_paused:
            break
    assert n_starts == {2.0: 10, 3.0: 5, 11.0: 1, 30.0: 1}.get(limit_s, n_starts)
    assert first_difference(state_of(straight), state_of(learn, "CheckpointCB", "TimeLimitCB")) == ""


def test_time_for_the_longest_batch_so_far_is_left(make_learner, tmp_path, at, clock):
    seconds = iter([1, 4, 1, 1, 1, 1, 1])
    slow = at("before_batch", lambda learn: setattr(clock, "now_s", clock.now_s + next(seconds)))
    learn = make_learner(n_batches=7, cbs=[CheckpointCB(tmp_path), TimeLimitCB(seconds=11), slow])
    learn.fit()
    assert learn.n_steps == 4  # after 7 s, 4 more would end at 11


def test_slow_checkpoints_count(make_learner, tmp_path, at, tick, clock):
    save = at("at_rest", lambda learn: setattr(clock, "now_s", clock.now_s + 3), 2000)
    cbs = [CheckpointCB(tmp_path), TimeLimitCB(seconds=20), tick(), save]
    learn = make_learner(n_batches=10, cbs=cbs)
    learn.fit()
    assert clock.now_s <= 1020
    assert learn.n_steps == 5  # at 17 s; it is saved at 20


def test_fits_of_a_process_share_the_limit(make_learner, tmp_path, tick, clock):
    limit = TimeLimitCB(seconds=10)
    learn = make_learner(n_batches=4, n_valid=0, cbs=[CheckpointCB(tmp_path), limit, tick()])
    learn.fit()
    clock.now_s += 100  # not in a fit
    learn.fit(3)
    assert learn.is_paused
    assert learn.n_steps == 5
    assert limit.used_s == 9
    learn.fit(3, resume=True)
    assert learn.is_paused
    assert learn.n_steps == 5  # one more would end when the limit does


def test_fit_that_begins_after_the_limit_pauses_before_its_first_batch(make_learner, tmp_path, tick):
    limit = TimeLimitCB(seconds=1)
    limit.used_s = 2.0
    learn = make_learner(cbs=[CheckpointCB(tmp_path), limit, tick()])
    learn.fit()
    assert (learn.is_paused, learn.n_steps) == (True, 0)
    learn = make_learner(cbs=[CheckpointCB(tmp_path), tick()])
    with pytest.warns(UserWarning, match="TimeLimitCB"):
        learn.fit(resume=True)
    assert (learn.is_paused, learn.n_steps) == (False, 3)


def test_fit_that_ends_within_the_limit_is_not_paused(make_learner, tmp_path, tick, capsys):
    cbs = [CheckpointCB(tmp_path), TimeLimitCB(seconds=5), tick(), MetricsCB(), ProgressCB()]
    learn = make_learner(cbs=cbs)
    learn.fit()  # 4 s
    assert not learn.is_paused
    assert "limit" not in capsys.readouterr().out
    assert len(learn.history) == 2


def test_pause_is_said_once_with_how_to_continue(make_learner, tmp_path, tick, capsys):
    cbs = [CheckpointCB(tmp_path), TimeLimitCB(seconds=3), tick(), ProgressCB()]
    make_learner(cbs=cbs).fit(2)
    said = [line for line in capsys.readouterr().out.splitlines() if "limit" in line]
    assert len(said) == 1
    assert re.search(r"limit of 0:00:03 .*after 0:00:02.*resume='" + str(tmp_path), said[0])
    make_learner(
        cbs=[CheckpointCB(tmp_path / "b"), TimeLimitCB(seconds=3), tick(), ProgressCB(quiet=True)]
    ).fit(2)
    assert capsys.readouterr().out == ""


def test_validation_of_an_average_is_finished_first(make_learner, tmp_path, tick):
    cbs = [CheckpointCB(tmp_path), TimeLimitCB(seconds=5), tick(), EMACB(0.9), MetricsCB()]
    learn = make_learner(n_valid=4, cbs=cbs)
    learn.fit(2)
    assert learn.is_paused
    assert learn.epoch == 0
    assert {row["train"] for row in learn.history} == {"train", "iterate", "eval"}


def test_without_checkpoints_it_is_refused_before_training(make_learner):
    learn = make_learner(cbs=TimeLimitCB(hours=1))
    with pytest.raises(ValueError, match=r"TimeLimitCB\(seconds=3600\).*CheckpointCB"):
        learn.fit()
    assert learn.n_steps == 0


def test_no_limit_is_refused():
    with pytest.raises(ValueError, match="more than 0 s"):
        TimeLimitCB()


@pytest.mark.slow
def test_real_clock_is_used(make_learner, tmp_path, at):
    cbs = [
        CheckpointCB(tmp_path),
        TimeLimitCB(seconds=0.2),
        at("before_batch", lambda learn: time.sleep(0.05)),
    ]
    learn = make_learner(n_batches=100, cbs=cbs)
    learn.fit()
    assert learn.is_paused


def test_verify_resume_leaves_it_out(make_learner, tmp_path):
    limit = TimeLimitCB(seconds=1e-9)
    make_learner(cbs=[every_rest(tmp_path / "run"), limit, MetricsCB()]).verify_resume(2)
    assert limit.used_s == 0
