"""Ctrl-C and SIGTERM: in this process, in scripts, in a notebook."""

import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from importlib.util import find_spec

import pytest
import torch
from toolbox import mentions, names_in, untimed_rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minilearn import (
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
from minilearn.checkpoints.snapshot import capture_weights, checkpoints_in, read
from minilearn.fitting.passes import _numbered, reading

ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}
EACH = pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
AT_ONCE = "SIGINT.*at once.*step"


@pytest.fixture(autouse=True)
def usual_handlers(monkeypatch):
    """Have Python's own handlers, and check that they are there in the end."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    before = [signal.getsignal(number) for number in HANDLED]
    yield
    after = [signal.getsignal(number) for number in HANDLED]
    for number, handler in zip(HANDLED, before, strict=True):
        signal.signal(number, handler)
    assert after == before


def send(number):
    os.kill(os.getpid(), number)


class SendCB(Callback):
    """Send signals to this process, at the first time that `is_there(learn)`; a subclass has the event."""

    def state_dict(self):
        return {}

    def _run(self, learn):
        if self.numbers and self.is_there(learn):
            numbers, self.numbers = self.numbers, ()
            for number in numbers:
                send(number)


def send_at(event, *numbers, is_there=lambda learn: True, order=0):
    cb = type("AtCB", (SendCB,), {event: lambda self, learn: self._run(learn), "order": order})()
    cb.numbers, cb.is_there = numbers, is_there
    return cb


class TraceCB(Callback):
    """Count the hooks of a batch."""

    order = 1500

    def __init__(self):
        self.counts = {}

    def _count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    def before_batch(self, learn):
        self._count("before_batch")

    def after_step(self, learn):
        self._count("after_step")

    def after_batch(self, learn):
        self._count("after_batch")

    def cleanup_batch(self, learn):
        self._count("cleanup_batch")

    def at_rest(self, learn):
        self._count("at_rest")


class Samples:
    """16 samples, noisy ones; a function is called while the n-th is read."""

    def __init__(self, n=None, call=None):
        self.x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        self.call, self.n_read = lambda n_read: call() if n_read == n else None, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.n_read += 1
        self.call(self.n_read)
        return self.x[i] + 0.1 * torch.randn(3), int(self.x[i].sum() > 0)


EACH_ONCE = {"before_batch": 6, "after_step": 4, "after_batch": 6, "cleanup_batch": 6, "at_rest": 8}
N_PEEKED = 2  # samples that are read before a fit


@pytest.fixture
def make(tmp_path):
    """Make a learner; its checkpoints go to tmp_path / "run"."""

    def made(*cbs, train=None, valid=None, saves=True, folder="run"):
        set_seed(1)
        dls = DataLoaders(
            DatasetLoader(train or Samples(), bs=4, shuffle=True),
            valid if hasattr(valid, "__iter__") else DatasetLoader(valid or Samples(), bs=8),
        )
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 2))
        own = [MetricsCB(), RecorderCB(), TraceCB()]
        saver = [CheckpointCB(tmp_path / folder)] if saves else []
        return Learner(model, dls, lr=0.1, cbs=[*own, *saver, *cbs], default_cbs=False)

    return made


def end_of(learn):
    rows = untimed_rows(learn)
    recorder, trace = (next(cb for cb in learn.cbs if isinstance(cb, kind)) for kind in (RecorderCB, TraceCB))
    return {
        "weights": capture_weights(learn),
        "rows": rows,
        "recs": recorder.recs,
        "counts": trace.counts,
        "fits": learn.n_fits,
    }


@pytest.fixture
def check_resumed(make):
    """Check that a new learner, and the one that was stopped, resume and end like a straight run."""

    def check(stopped, *cbs, **kwargs):
        straight = make(*cbs, folder="straight", **kwargs)
        straight.fit(2)
        folder = stopped.saved_to.parent
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for learn in (make(*cbs, **kwargs), stopped):
            for path in folder.iterdir():
                path.unlink()
            for path, data in before.items():
                path.write_bytes(data)
            learn.fit(2, resume=True)
            assert first_difference(end_of(straight), end_of(learn)) == ""

    return check


def stopped(learn, number, n_epochs=2, **kwargs):
    """Fit, which is to be stopped by a signal; return what is said."""
    with pytest.raises(ENDS[number]) as e:
        learn.fit(n_epochs, **kwargs)
    assert (learn.scopes, learn.stop.is_fetching, learn.purpose) == ([], False, None)
    assert "During handling" not in "".join(traceback.format_exception(e.value))
    if number == signal.SIGTERM:
        assert e.value.code == 143
        return None
    return str(e.value)


def in_epoch_1(phase):
    return lambda learn: learn.epoch == 1 and learn.phase == phase


# In this process ----------------------------------------------------------------------------------------

IN_TRAINING = [
    *("before_batch", "after_predict", "after_loss", "after_backward", "before_step", "after_step"),
    *("cleanup_step", "after_batch", "cleanup_batch"),
]


@pytest.mark.slow
@pytest.mark.dealt
@EACH
@pytest.mark.parametrize("event", IN_TRAINING)
def test_step_is_finished_and_saved(make, check_resumed, capfd, event, number):
    learn = make(send_at(event, number, is_there=in_epoch_1("train")))
    said = stopped(learn, number)
    path = learn.saved_to
    expected = mentions(
        f"{number.name} ... epoch 1 of 2 ... train batch 0 ... step 5 ... resume={str(path.parent)!r}"
    )
    err = capfd.readouterr().err
    assert "same signal again" in err
    assert re.search(expected, said or err.splitlines()[-1])
    assert path.name == "epoch-0001-train-000001.pt"
    saved = read(path)
    assert (saved["position"], saved["fields"]["n_steps"]) == ({"epoch": 1, "phase": "train", "batch": 1}, 5)
    counts = {"before_batch": 7, "after_step": 5, "after_batch": 7, "cleanup_batch": 7, "at_rest": 8}
    assert saved["cbs"]["TraceCB"]["counts"] == counts
    check_resumed(learn, send_at(event))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "position"),
    [
        ("before_fit", {"epoch": 0, "phase": "train", "batch": 0}),
        ("after_train", {"epoch": 0, "phase": "eval", "batch": 0}),
        ("before_validate", {"epoch": 0, "phase": "eval", "batch": 0}),
        ("after_validate", {"epoch": 1, "phase": "", "batch": 0}),
        ("cleanup_epoch", {"epoch": 1, "phase": "", "batch": 0}),
        ("after_fit", {"epoch": 2, "phase": "over", "batch": 0}),
        ("cleanup_fit", {"epoch": 2, "phase": "over", "batch": 0}),
    ],
)
def test_fit_is_left_at_the_next_rest(make, check_resumed, event, position):
    learn = make(send_at(event, signal.SIGINT))
    stopped(learn, signal.SIGINT)
    assert read(learn.saved_to)["position"] == position
    assert learn.n_fits == 0
    check_resumed(learn, send_at(event))


def test_signal_at_the_last_rest_ends_a_fit_that_is_over(make, tmp_path):
    learn = make(send_at("at_rest", signal.SIGINT, is_there=lambda learn: not learn.scopes))
    said = stopped(learn, signal.SIGINT)
    assert re.search(mentions("SIGINT ... epoch 1 of 2 ... resume="), said)
    assert read(learn.saved_to)["position"]["phase"] == "over"


@EACH
def test_without_checkpoints_the_learner_is_usable_and_says_so(make, number, capfd):
    learn = make(send_at("after_loss", number), saves=False)
    said = stopped(learn, number) or capfd.readouterr().err.splitlines()[-1]
    assert re.search(mentions(f"{number.name} ... epoch 0 of 2 ... train batch 0 ... step 1"), said)
    assert "resume=" not in said
    learn.fit(1)
    assert learn.n_steps == 4
    assert learn.stop_signal is None


@pytest.mark.slow
@pytest.mark.parametrize(("n", "batch"), [(1, 1), (2, 2)])
def test_checkpoint_is_inside_of_a_validation_that_can_go_on(make, check_resumed, n, batch):
    learn = make(send_at("after_loss", signal.SIGINT, is_there=lambda learn: learn.batch_idx == n - 1
                         and in_epoch_1("eval")(learn)))  # fmt: skip
    said = stopped(learn, signal.SIGINT)
    assert f"after eval batch {n - 1}, step 8" in said
    assert read(learn.saved_to)["position"] == {"epoch": 1, "phase": "eval", "batch": batch}
    check_resumed(learn, send_at("after_loss"))


@pytest.mark.slow
def test_checkpoint_is_at_the_beginning_of_a_validation_that_cannot_go_on(make, check_resumed):
    data = Samples()
    valid = DataLoader(TensorDataset(data.x, (data.x.sum(1) > 0).long()), batch_size=4)
    learn = make(
        send_at(
            "after_loss", signal.SIGINT, is_there=lambda learn: learn.phase == "eval" and learn.batch_idx == 2
        ),
        valid=valid,
    )
    stopped(learn, signal.SIGINT)
    assert read(learn.saved_to)["position"] == {"epoch": 0, "phase": "eval", "batch": 0}
    assert learn.saved_to.name == "epoch-0000-valid-000000.pt"
    check_resumed(learn, send_at("after_loss"), valid=valid)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize(
    ("part", "n", "position"),
    [
        ("train", 6, {"epoch": 0, "phase": "train", "batch": 1}),
        ("train", 16 + 14, {"epoch": 1, "phase": "train", "batch": 3}),
        ("valid", 10, {"epoch": 0, "phase": "eval", "batch": 1}),
        ("train", 1, {"epoch": 0, "phase": "train", "batch": 0}),
        ("train", 16 + 1, {"epoch": 1, "phase": "train", "batch": 0}),
        ("valid", 2, {"epoch": 0, "phase": "eval", "batch": 0}),
    ],
)
def test_loader_that_reads_is_left_at_once(make, check_resumed, part, n, position, number):
    samples = Samples(N_PEEKED + n, lambda: send(number))
    learn = make(**{part: samples})
    stopped(learn, number)
    assert samples.n_read == N_PEEKED + n
    assert read(learn.saved_to)["position"] == position
    check_resumed(learn)


@pytest.mark.slow
@EACH
def test_loader_that_reads_is_left_with_the_weights_of_the_batch_before(make, number):
    learn = make(train=Samples(N_PEEKED + 16 + 6, lambda: send(number)))
    stopped(learn, number)
    assert (learn.n_steps, read(learn.saved_to)["position"]["batch"]) == (5, 1)
    straight, other = make(folder="straight"), make()
    straight.fit(2)
    other.fit(2, resume=True)
    assert first_difference(capture_weights(straight), capture_weights(other)) == ""


@pytest.mark.full
def test_fetch_may_be_left_at_any_line(make):
    def trace(frame, event, arg):
        if frame.f_code not in (_numbered.__code__, reading.__wrapped__.__code__):
            return None
        lines[0] -= event == "line"
        if lines[0] == 0 and event == "line":
            send(signal.SIGINT)
        return trace

    n = 0
    while True:
        n, lines = n + 1, [n + 1]
        learn = make(folder=f"run {n}")
        try:
            sys.settrace(trace)
            learn.fit(1)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(None)
        assert not learn.stop.is_fetching
        assert learn.saved_to is not None
        again = make(folder=f"run {n}")
        again.fit(1, resume=True)
        assert end_of(again)["counts"] == EACH_ONCE
    assert n > 30


def test_loader_that_cannot_go_on_in_its_middle_is_left_too(make):
    samples = Samples(N_PEEKED + 10, lambda: send(signal.SIGINT))
    learn = make(valid=DataLoader(samples, batch_size=8))
    stopped(learn, signal.SIGINT)
    assert samples.n_read == N_PEEKED + 10
    assert read(learn.saved_to)["position"] == {"epoch": 0, "phase": "eval", "batch": 0}


class Stateful:
    """Batches with a state, that moves on while a batch is read; a signal comes then."""

    def __init__(self, batches, n=None):
        self.batches_, self.n, self.start, self.i = batches, n, 0, 0

    def __len__(self):
        return len(self.batches_)

    def state_dict(self):
        return {"i": self.i}

    def load_state_dict(self, state):
        self.start = self.i = state["i"]

    def __iter__(self):
        start, self.start = self.start, 0
        for self.i in range(start + 1, len(self.batches_) + 1):
            if self.i == self.n:
                self.n = None
                send(signal.SIGINT)
            yield self.batches_[self.i - 1]


@pytest.mark.slow
def test_loader_with_a_state_is_not_left_while_it_reads(make, check_resumed):
    batches = list(DatasetLoader(Samples(), bs=4))
    learn = make(valid=Stateful(batches, n=2))
    stopped(learn, signal.SIGINT)
    assert read(learn.saved_to)["position"] == {"epoch": 0, "phase": "eval", "batch": 2}
    learn.dls.valid.n = None
    check_resumed(learn, valid=Stateful(batches))


def test_signal_while_a_checkpoint_is_written_does_not_wait_for_the_loader(make):
    samples = Samples()
    learn = make(send_at("at_rest", signal.SIGINT), train=samples)
    stopped(learn, signal.SIGINT)
    assert samples.n_read == N_PEEKED + 4


@pytest.mark.slow
def test_signal_just_after_a_place_of_rest_was_left_out_is_saved_there(make, check_resumed):
    cb = send_at("at_rest", signal.SIGINT, is_there=in_epoch_1("train"), order=CheckpointCB.order)
    learn = make(cb)
    stopped(learn, signal.SIGINT)
    assert read(learn.saved_to)["position"] == {"epoch": 1, "phase": "train", "batch": 1}
    check_resumed(learn, send_at("at_rest", order=CheckpointCB.order))


def test_checkpoint_of_an_earlier_fit_is_not_named(make, tmp_path):
    cb = send_at("after_loss", signal.SIGINT, is_there=in_epoch_1("train"))
    learn = make(cb, saves=False)
    learn.fit(1, cbs=CheckpointCB(tmp_path))
    assert learn.saved_to is not None
    assert "resume=" not in stopped(learn, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("second", ENDS)
@pytest.mark.parametrize("event", ["after_loss", "after_step", "at_rest"])
def test_second_signal_stops_at_once(make, event, second):
    n_before = len(threading.enumerate())
    learn = make(send_at(event, signal.SIGINT, second, is_there=in_epoch_1("train")))
    with pytest.raises(ENDS[second]) as e:
        learn.fit(2)
    if second == signal.SIGINT:
        assert re.search(AT_ONCE, str(e.value))
    assert e.value.__notes__[0].startswith(f"minilearn: in AtCB.{event}, epoch 1 of 2, ")
    assert learn.scopes == []
    assert len(threading.enumerate()) == n_before
    assert [path.name for path in checkpoints_in(learn.saved_to.parent)] == ["epoch-0001-train-000000.pt"]
    learn.fit(1, valid=False)


def test_second_signal_while_a_checkpoint_is_written_leaves_whole_files(make, monkeypatch):
    def save(value, file):
        file.write(b"a half")
        send(signal.SIGTERM)

    learn = make(send_at("after_step", signal.SIGINT))
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(SystemExit) as e:
        learn.fit(2)
    assert e.value.code == 143
    assert names_in(next(cb.folder for cb in learn.cbs if isinstance(cb, CheckpointCB))) == []


def test_second_signal_in_a_loader_stops_at_once(make):
    def twice():
        learn.stop.agree(signal.SIGINT)  # as if one came in the step before
        send(signal.SIGINT)

    learn = make(train=Samples(N_PEEKED + 6, twice))
    assert re.search(AT_ONCE, stopped(learn, signal.SIGINT))


def test_signal_in_a_validation_that_a_callback_calls_waits_for_the_step(make, at):
    learn = make(
        at("after_step", lambda learn: learn.validate() and None),
        send_at("after_predict", signal.SIGINT, is_there=lambda learn: learn.is_nested),
    )
    stopped(learn, signal.SIGINT)
    assert read(learn.saved_to)["position"] == {"epoch": 0, "phase": "train", "batch": 1}


@EACH
@pytest.mark.parametrize("handler", [lambda number, frame: seen.append(number), signal.SIG_IGN])
def test_handler_of_the_user_s_own_is_left_alone(make, number, handler):
    seen.clear()
    signal.signal(number, handler)
    try:
        learn = make(send_at("after_loss", number))
        learn.fit(1)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    assert learn.stop_signal is None
    assert seen == ([] if handler is signal.SIG_IGN else [number])


seen = []


def test_no_handler_is_set_outside_of_the_main_thread(make, at):
    learn, found = make(at("after_loss", lambda learn: found.append(signal.getsignal(signal.SIGINT)))), []
    thread = threading.Thread(target=learn.fit)
    thread.start()
    thread.join()
    assert set(found) == {signal.default_int_handler}
    assert learn.n_steps == 4


@EACH
def test_handlers_are_put_back_after_an_error(make, at, number):
    learn = make(at("after_loss", lambda learn: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        learn.fit(1)
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


@EACH
def test_handler_of_sigchld_is_off_after_sigterm_and_put_back(make, at, number):
    def handler(number, frame):
        pass

    found = []
    look = at("after_step", lambda learn: found.append(signal.getsignal(signal.SIGCHLD)))
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        stopped(make(send_at("after_loss", number), look), number)
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert found == [signal.SIG_DFL if number == signal.SIGTERM else handler]


@pytest.mark.slow
@EACH
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_takes_signals_as_usual(make, at, number):
    def fork(learn):
        if learn.n_steps:
            return
        if pid := os.fork():
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return
        with suppress(KeyboardInterrupt):
            send(number)
            os._exit(1)
        os._exit(2 if number == signal.SIGINT else 3)

    statuses = []
    make(at("before_step", fork)).fit(1)
    assert statuses == [2 if number == signal.SIGINT else -signal.SIGTERM]


@pytest.mark.parametrize("call", ["validate", "predict"])
def test_validate_and_predict_are_interrupted_as_python_does_it(make, call):
    learn = make(send_at("after_predict", signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as e:
        getattr(learn, call)(learn.dls.valid)
    assert str(e.value) == ""
    assert (learn.scopes, learn.purpose, learn.stop_signal) == ([], None, None)


def test_lr_find_is_interrupted_and_leaves_all_as_it_was(make):
    learn = make(send_at("after_loss", signal.SIGINT, is_there=lambda learn: learn.n_steps == 5))
    before = [t.clone() for t in learn.model.state_dict().values()]
    with pytest.raises(KeyboardInterrupt) as e:
        learn.lr_find(n_steps=20)
    assert "minilearn: in lr_find" in e.value.__notes__[-1]
    assert all(map(torch.equal, before, learn.model.state_dict().values()))
    assert (learn.scopes, learn.stop_signal, learn.opt, learn.history) == ([], None, None, [])


# Scripts ------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path

import torch
from torch import nn

from minilearn import Callback, CheckpointCB, DatasetLoader, Learner, MetricsCB, set_seed


class Samples:
    def __len__(self):
        return 24

    def __getitem__(self, i):
        return torch.randn(3), torch.tensor([i % 2.0])


class WaitCB(Callback):
    free_on_resume = ("waits",)

    def __init__(self, waits):
        self.waits = waits

    def state_dict(self):
        return {}

    def after_loss(self, learn):
        if self.waits and learn.n_steps == 8 and learn.training:
            print("ready", flush=True)
            until_s = time.monotonic() + 60
            while learn.stop_signal is None and time.monotonic() < until_s:
                time.sleep(0.01)


def make(folder, n_workers, waits=False):
    set_seed(1)
    dls = {"train": DatasetLoader(Samples(), bs=4, shuffle=True, num_workers=n_workers)}
    dls["eval"] = DatasetLoader(Samples(), bs=8)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    # A loss without an accuracy, whose import would take longer than all else.
    cbs = [MetricsCB(), WaitCB(waits), CheckpointCB(folder)]
    return Learner(model, dls, loss_func=nn.MSELoss(), lr=0.1, cbs=cbs, default_cbs=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    make(folder, n_workers=2, waits=not folder.is_dir()).fit(3, resume=True)
"""
STARTS = {
    "SIGINT": (signal.SIGINT, os.kill),
    "SIGINT of the group": (signal.SIGINT, os.killpg),
    "SIGTERM": (signal.SIGTERM, os.kill),
    "SIGTERM of the group": (signal.SIGTERM, os.killpg),
    "SIGHUP": (signal.SIGHUP, os.kill),
    "SIGHUP of the group": (signal.SIGHUP, os.killpg),  # as of a closed terminal
}
STARTED_AGAIN = "SIGHUP of the group"
OFTEN = (STARTED_AGAIN,)


def start(script, folder):
    return subprocess.Popen(
        [sys.executable, script, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ends_of(cases, folder):
    """Start a script for each case at once, send the signal in a step, start one of them again.

    Return {case: (exit status, standard error, names of files then)}, the folder of all.
    """
    script = folder / "script.py"
    script.write_text(SCRIPT)
    processes = {case: start(script, folder / case) for case in cases}
    ends = {}
    for case, process in processes.items():
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        number, send_to = STARTS[case]
        send_to(process.pid, number)
    for case, process in processes.items():
        _, err = process.communicate(timeout=60)
        ends[case] = (process.returncode, err, sorted(path.name for path in (folder / case).iterdir()))
    if STARTED_AGAIN in cases:
        again = start(script, folder / STARTED_AGAIN)
        _, err = again.communicate(timeout=60)
        assert (again.returncode, err) == (0, "")
    return ends, folder


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return ends_of(OFTEN, tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="module")
def other_scripts(tmp_path_factory):
    return ends_of([case for case in STARTS if case not in OFTEN], tmp_path_factory.mktemp("others"))


# What an interrupted script ends with: torch._dynamo with optree, which keras brings, makes it 1.
INTERRUPTED = 1 if find_spec("optree") else -signal.SIGINT
WHERE = "SIGINT ... epoch 1 of 3 ... train batch 2 ... step 9 ... resume='"


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in OFTEN else pytest.mark.full) for case in STARTS]
)
def test_script_that_is_stopped_ends_as_others_expect_of_it(request, case):
    ends, folder = request.getfixturevalue("scripts" if case in OFTEN else "other_scripts")
    code, err, names = ends[case]
    number = STARTS[case][0]
    assert code == (INTERRUPTED if number == signal.SIGINT else 128 + number)
    said = re.compile(mentions(f"{WHERE.replace('SIGINT', number.name)}{folder / case}'"))
    lines = err.splitlines()
    assert lines[0] == ""  # what the terminal shows as ^C stands alone
    assert "same signal again" in lines[1]
    if number != signal.SIGINT:
        assert [bool(said.search(line)) for line in lines[2:]] == [True]
    else:
        assert any(line.startswith("KeyboardInterrupt: ") and said.search(line) for line in lines)
        assert err.count("Traceback") == 1
        assert "During handling" not in err
    assert "DataLoader" not in err
    assert names == ["epoch-0001-train-000000.pt", "epoch-0001-train-000003.pt", "run.json"]


@pytest.mark.slow
def test_script_started_again_ends_with_the_weights_of_an_unbroken_run(scripts, tmp_path):
    _, folder = scripts
    script = {"__name__": "script"}
    exec(SCRIPT, script)
    straight = script["make"](tmp_path / "straight", n_workers=0)
    straight.fit(3)
    end = read(checkpoints_in(folder / STARTED_AGAIN)[-1])
    assert end["position"]["phase"] == "over"
    assert first_difference(read(straight.saved_to)["model"], end["model"]) == ""
    assert len(end["history"]) == 6


# A notebook ---------------------------------------------------------------------------------------------


def run_cell(client, code, manager=None):
    """Run a cell, and interrupt it when it says so; return the reply and what was printed."""
    number, printed = client.execute(code), ""
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != number:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            printed += content["text"]
            if manager is not None and "ready" in printed:
                manager.interrupt_kernel()
                manager = None
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            break
    while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != number:
        pass
    return reply["content"], printed


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Jupyter's own
def test_interrupted_cell_leaves_a_learner_that_goes_on(tmp_path, monkeypatch):
    from jupyter_client.manager import start_new_kernel

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "script.py").write_text(SCRIPT)
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        code = "import script; learn = script.make('run', 2, waits=True); learn.fit(3)"
        reply, printed = run_cell(client, code, manager)
        assert reply["status"] == "error"
        assert reply["ename"] == "KeyboardInterrupt"
        assert re.search(mentions(f"{WHERE} ... run'"), reply["evalue"])
        reply, printed = run_cell(client, "print(learn.n_steps, learn.scopes, len(learn.history))")
        assert printed == "9 [] 2\n"
        code = "learn.cbs[1].waits = False; learn.fit(3, resume='run'); print(learn.n_steps, learn.n_fits)"
        reply, printed = run_cell(client, code)
        assert (reply["status"], printed) == ("ok", "18 1\n")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
