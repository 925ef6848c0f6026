"""CheckpointCB(signals=): more signals that stop a fit as SIGTERM does."""

import signal
import threading

import pytest
from toolbox import noisy_learner, untimed_rows

from minilearn import Callback, CheckpointCB, MetricsCB
from minilearn.checkpoints.snapshot import checkpoints_in


class SendCB(Callback):
    """Send a signal at the fourth step."""

    def __init__(self, number):
        self.number = number

    def state_dict(self):
        return {}

    def after_step(self, learn):
        if learn.n_steps == 4:
            signal.raise_signal(self.number)


def learner(folder, *cbs, **kwargs):
    return noisy_learner(MetricsCB(), CheckpointCB(folder, **kwargs), *cbs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    ["SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGTSTP", "SIGRTMIN"],
)
def test_fit_stops_for_it_and_resumes(tmp_path, number):
    number = signal.Signals[number]
    before = signal.getsignal(number)
    signals = [number, number, signal.SIGUSR1]
    with pytest.raises(SystemExit) as e:
        learner(tmp_path / "run", SendCB(number), signals=signals).fit(2)
    assert e.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert checkpoints_in(tmp_path / "run")
    again, straight = learner(tmp_path / "run", signals=signals), None
    again.fit(2, resume=True)
    straight = learner(tmp_path / "straight")
    straight.fit(2)
    assert untimed_rows(again) == untimed_rows(straight)


def test_it_may_be_one_that_is_ignored_outside_the_fit(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        learner(tmp_path / "a", SendCB(signal.SIGHUP)).fit(2)
        with pytest.raises(SystemExit):
            learner(tmp_path / "b", SendCB(signal.SIGHUP), signals=[signal.SIGHUP]).fit(2)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("signals", "error", "said"),
    [
        (signal.SIGUSR1, TypeError, "several"),
        ("SIGUSR1", TypeError, "several"),
        (None, TypeError, "None"),
        (["SIGUSR1"], ValueError, "'SIGUSR1'"),
        ([True], ValueError, "True"),
        ([1.0], ValueError, r"1\.0"),
        ([0], ValueError, "0 cannot"),
        ([-1], ValueError, "-1"),
        ([999], ValueError, "999"),
        ([signal.SIGKILL], ValueError, "SIGKILL"),
        ([signal.SIGSTOP], ValueError, "SIGSTOP"),
        ([signal.SIGCHLD], ValueError, "SIGCHLD"),
        ([signal.SIGSEGV], ValueError, "SIGSEGV"),
    ],
)
def test_what_cannot_stop_a_fit_is_refused(tmp_path, signals, error, said):
    with pytest.raises(error, match=rf"(?s)CheckpointCB\(signals=.*{said}"):
        CheckpointCB(tmp_path, signals=signals)


def test_one_with_a_handler_is_refused_before_training(tmp_path):
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    learn = learner(tmp_path / "run", signals=[signal.SIGUSR1])
    try:
        with pytest.raises(ValueError, match=r"SIGUSR1.*handler"):
            learn.fit(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (learn.n_steps, list(tmp_path.iterdir())) == (0, [])
    learn.fit(1)


def test_signals_in_a_thread_are_refused(tmp_path):
    learn, errors = learner(tmp_path, signals=[signal.SIGUSR1]), []

    def fit():
        try:
            learn.fit(1)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]
