"""A folder of checkpoints has one writer at a time, and the lock ends with its process."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from toolbox import make_learner, names_in, noisy_learner, untimed_rows

from minilearn import Callback, CheckpointCB, MetricsCB
from minilearn.checkpoints import lock as locks
from minilearn.checkpoints.lock import NAME, Lock
from minilearn.checkpoints.snapshot import checkpoints_in


class AtCB(Callback):
    """Call a function in the middle of a fit."""

    def __init__(self, call, at=2):
        self.call, self.at = call, at

    def state_dict(self):
        return {}

    def after_step(self, learn):
        if learn.n_steps == self.at:
            self.call(learn)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


HOLD = """
import sys
from minilearn.checkpoints.lock import Lock
from pathlib import Path
lock = Lock(Path(sys.argv[1]))
print(lock.take() or "taken", flush=True)
"""


def hold(folder, more="sys.stdin.read()"):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + textwrap.dedent(more), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


@pytest.mark.slow
def test_folder_of_another_process_is_refused_and_untouched(tmp_path):
    folder = tmp_path / "run"
    make_learner(cbs=[CheckpointCB(folder)]).fit(1)
    (folder / ".epoch-0001-train-000000.pt.9.part").write_bytes(b"being written")
    process, said = hold(folder)
    assert said == "taken"
    before = files_of(folder)
    learn = make_learner(cbs=[CheckpointCB(folder)])
    with pytest.raises(RuntimeError, match=rf"process {process.pid} on .* since .* twice"):
        learn.fit(1, resume=True)
    assert (learn.n_steps, files_of(folder)) == (0, before)
    process.kill()  # the lock file stays, the lock does not
    process.communicate()
    assert (folder / NAME).exists()
    learn.fit(1, resume=True)
    assert [Path(name).suffix for name in names_in(folder)] == [".pt"]


@pytest.mark.slow
def test_lock_ends_with_its_process_though_its_children_live(tmp_path):
    """A killed training leaves workers, which notice only after seconds."""
    more = """
    import os, time
    if pid := os.fork():
        print(pid, flush=True)
        sys.stdin.read()
    time.sleep(60)
    """
    process, _ = hold(tmp_path, more)
    child = int(process.stdout.readline())
    try:
        assert Lock(tmp_path).take() != ""
        process.kill()
        process.wait()
        os.kill(child, 0)
        lock = Lock(tmp_path)
        assert lock.take() == ""
        lock.free()
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("spelling", ["run", "./run", "other/../run", "link"])
def test_second_fit_of_the_same_process_is_refused(tmp_path, spelling):
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    errors = []

    def start_again(learn):
        with pytest.raises(RuntimeError, match="training there") as e:
            make_learner(cbs=[CheckpointCB(f"{tmp_path}/{spelling}")]).fit(1, resume=True)
        errors.append(e)

    make_learner(cbs=[CheckpointCB(tmp_path / "run"), AtCB(start_again)]).fit(2)
    assert len(errors) == 1
    assert len(checkpoints_in(tmp_path / "run")) == 2


def fail(learn):
    raise ZeroDivisionError


def interrupt(learn):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("call", [None, fail, interrupt, lambda learn: learn.pause()])
def test_lock_is_free_after_a_fit_however_it_ended(tmp_path, call):
    learn = noisy_learner(MetricsCB(), CheckpointCB(tmp_path), *([AtCB(call)] if call else []))
    with suppress(ZeroDivisionError, KeyboardInterrupt):
        learn.fit(2)
    assert not (tmp_path / NAME).exists()
    again = noisy_learner(MetricsCB(), CheckpointCB(tmp_path))
    again.fit(2, resume=True)
    straight = noisy_learner(MetricsCB())
    straight.fit(2)
    assert untimed_rows(again) == untimed_rows(straight)


def test_fit_that_is_refused_leaves_the_lock_free(tmp_path):
    make_learner(cbs=[CheckpointCB(tmp_path)]).fit(1)
    with pytest.raises(ValueError, match="another run"):
        make_learner(cbs=[CheckpointCB(tmp_path)]).fit(1)
    make_learner(cbs=[CheckpointCB(tmp_path)]).fit(1, resume=True)


def test_two_runs_in_two_folders_go_on_together(tmp_path):
    def other(learn):
        make_learner(cbs=[CheckpointCB(tmp_path / "b")]).fit(1)

    make_learner(cbs=[CheckpointCB(tmp_path / "a"), AtCB(other)]).fit(1)
    assert checkpoints_in(tmp_path / "a")
    assert checkpoints_in(tmp_path / "b")


def test_lr_find_takes_no_lock(tmp_path):
    tmp_path.joinpath("run").mkdir()
    learn = make_learner(cbs=[MetricsCB(), CheckpointCB(tmp_path / "run")])
    learn.lr_find(n_steps=10)
    learn.fit(1)
    assert not (tmp_path / "run" / NAME).exists()


def test_unfinished_files_stay_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def none(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    side = tmp_path / ".epoch-0001-train-000000.pt.9.part"
    side.write_bytes(b"perhaps of a living process")
    make_learner(cbs=[CheckpointCB(tmp_path)]).fit(1)
    assert side.exists()


def test_file_that_its_holder_removed_just_now_is_not_locked(tmp_path, monkeypatch):
    path, real = tmp_path / NAME, locks.fcntl.lockf

    def removed(file, how):
        monkeypatch.setattr(locks.fcntl, "lockf", real)
        path.unlink()
        real(file, how)

    monkeypatch.setattr(locks.fcntl, "lockf", removed)
    lock = Lock(tmp_path)
    assert lock.take() == ""
    assert path.exists()
    lock.free()
    assert not path.exists()
