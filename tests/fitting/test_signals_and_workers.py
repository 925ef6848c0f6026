"""Signals that reach the workers of a loader too, as those of a terminal and of a batch system do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import pytest
import torch
from toolbox import norm_net, untimed_rows
from torch.utils.data import DataLoader

from minilearn import (
    EMACB,
    Callback,
    CheckpointCB,
    DataLoaders,
    DatasetLoader,
    Learner,
    MetricsCB,
    RecorderCB,
    set_seed,
)
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import capture_weights, checkpoints_in
from minilearn.data.workers import begin

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
MORE = (signal.SIGUSR1,)


class Samples:
    """24 samples with noise."""

    def __init__(self):
        self.x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.randn(3), int(self.x[i].sum() > 0)


def workers():
    return multiprocessing.active_children()


class SignalCB(Callback):
    """Send a signal to the workers, give them time to die of it, and then to this process."""

    def __init__(self, number, is_there, first=False):
        self.number, self.is_there, self.first = number, is_there, first

    def state_dict(self):
        return {}

    def _send(self, learn):
        if self.number is not None and self.is_there(learn):
            number, self.number = self.number, None
            if self.first:
                os.kill(os.getpid(), number)
            assert workers()
            for worker in workers():
                os.kill(worker.pid, number)
            time.sleep(0.05)
            if not self.first:
                os.kill(os.getpid(), number)

    def after_predict(self, learn):
        self._send(learn)

    def cleanup_forward(self, learn):  # where BatchNorm is measured
        if learn.purpose == "measure":
            self._send(learn)


class LookCB(Callback):
    """Validate on the training data after each epoch."""

    def after_epoch(self, learn):
        learn.validate(learn.dls.train)


def make(folder, *cbs, train=None, valid=None, looks=False, averages=False):
    set_seed(3)
    dls = DataLoaders(
        (train or partial(DatasetLoader, num_workers=2))(Samples(), 4, True),
        (valid or DatasetLoader)(Samples(), 4),
    )
    more = [LookCB()] * looks + [EMACB(0.5)] * averages
    cbs = [MetricsCB(), RecorderCB(), *more, CheckpointCB(folder, signals=MORE), *cbs]
    return Learner(norm_net(0.2), dls, lr=0.1, cbs=cbs, default_cbs=False)


def end_of(learn):
    recorder = next(cb for cb in learn.cbs if isinstance(cb, RecorderCB))
    return {"weights": capture_weights(learn), "rows": untimed_rows(learn), "recs": recorder.recs}


def in_train(epoch, batch):
    return lambda learn: learn.training and (learn.epoch, learn.batch_idx) == (epoch, batch)


def in_valid(learn):
    return not learn.training and not learn.is_nested and learn.batch_idx == 1


def in_nested(learn):
    return learn.is_nested and learn.batch_idx == 1


TWO = {"num_workers": 2}
PLACES = {
    "training, before the first checkpoint": (in_train(0, 1), {}),
    "the first batch of all": (in_train(0, 0), {}),
    "training": (in_train(1, 2), {}),
    "persistent workers": (in_train(1, 2), {"train": partial(DatasetLoader, persistent_workers=True, **TWO)}),
    "a prefetch of one": (in_train(1, 2), {"train": partial(DatasetLoader, prefetch_factor=1, **TWO)}),
    "validation": (in_valid, {"valid": partial(DatasetLoader, **TWO)}),
    "validation with torch's own": (in_valid, {"valid": partial(DataLoader, **TWO)}),
    "a callback's validation": (in_nested, {"looks": True}),
    "BatchNorm is measured": (lambda learn: learn.purpose == "measure", {"averages": True}),
}
OFTEN = ("training", "validation")
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *MORE)


def all_but_one_full(numbers, one):
    """Return signals for a test whose code is the same for each; only .ci/full sends all of them."""
    return [pytest.param(n, id=n.name, marks=() if n == one else pytest.mark.full) for n in numbers]


@pytest.mark.slow
@pytest.mark.parametrize("number", all_but_one_full(NUMBERS, signal.SIGHUP))
@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=() if place in OFTEN else pytest.mark.full) for place in PLACES]
)
def test_run_is_saved_and_resumes_after_a_signal_to_all_processes(tmp_path, place, number):
    is_there, kwargs = PLACES[place]
    learn = make(tmp_path / "run", SignalCB(number, is_there), **kwargs)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as e:
        learn.fit(2, resume=True)
    if number != signal.SIGINT:
        assert e.value.code == 128 + number
    assert checkpoints_in(tmp_path / "run")
    del learn
    again = make(tmp_path / "run", **kwargs)
    again.fit(2, resume=True)
    straight = make(tmp_path / "straight", **kwargs)
    straight.fit(2)
    if "torch's own" not in place:  # its workers' seeds are drawn again
        assert first_difference(end_of(straight), end_of(again)) == ""
    assert again.n_steps == 12


@pytest.mark.slow
def test_signal_to_this_process_first_is_the_same(tmp_path):
    learn = make(tmp_path, SignalCB(signal.SIGTERM, in_nested, first=True), looks=True)
    with pytest.raises(SystemExit):
        learn.fit(2)
    assert learn.batch_idx == 5
    assert learn.saved_to is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, *MORE], ids=lambda number: number.name)
def test_signal_that_comes_twice_at_once_is_one(tmp_path, number):
    learn = make(tmp_path, SignalCB(number, in_train(0, 1)), SignalCB(number, in_train(0, 1), first=True))
    with pytest.raises(SystemExit):
        learn.fit(1)
    assert learn.saved_to is not None
    assert learn.n_steps == 2


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_workers_take_no_signal_but_end_with_their_loader(context):
    loader = DataLoader(Samples(), 4, num_workers=2, multiprocessing_context=context)
    batches = begin(loader)
    next(batches), next(batches)  # both workers have begun
    assert loader.worker_init_fn is None
    for number in NUMBERS:
        for worker in workers():
            os.kill(worker.pid, number)
    time.sleep(0.1)
    assert [len(x) for x, _ in batches] == [4] * 4
    del batches
    assert workers() == []


class Stuck(Samples):
    def __getitem__(self, i):
        return time.sleep(60) or super().__getitem__(i)


def test_stuck_worker_is_ended_as_before():
    batches = begin(DataLoader(Stuck(), 4, num_workers=1))
    (worker,) = workers()
    with suppress(RuntimeError):  # torch has not been told
        worker.terminate()
        worker.join(5)
    assert worker.exitcode == -signal.SIGKILL
    del batches


def started(worker_id):
    torch.utils.data.get_worker_info().dataset.x += worker_id + 1


@pytest.mark.slow
def test_worker_init_fn_of_the_user_s_own_is_called_and_stays():
    loader = DataLoader(Samples(), 4, num_workers=1, worker_init_fn=started)
    x, _ = next(begin(loader))
    assert loader.worker_init_fn is started
    assert (x - Samples().x[:4]).mean() > 0.5


AT_EXIT = """
import sys, time, torch
from minilearn import DatasetLoader

class Data:
    def __len__(self):
        return 64
    def __getitem__(self, i):
        if i == 20:
            time.sleep(60)
        return i

batches = DatasetLoader(Data(), bs=4, num_workers=2, persistent_workers=True).batches()
next(batches)
sys.exit(7)
"""


@pytest.mark.full
def test_script_that_ends_in_the_middle_of_a_pass_does_not_wait_for_its_workers():
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stderr) == (7, "")
