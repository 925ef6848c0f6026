"""Checkpoints that are damaged: a fit resumes from an older one, and nothing is lost."""

import io
import struct
import warnings
import zipfile

import pytest
import torch
from toolbox import StopCB, StoppedError, noisy_learner, untimed_rows

from minilearn import CheckpointCB, MetricsCB
from minilearn.checkpoints.codec import first_difference
from minilearn.checkpoints.snapshot import BEST, capture_weights, checkpoints_in, read
from minilearn.files import DamagedError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def make(folder, *cbs, keep=3, keep_best=None, seed=1):
    saver = CheckpointCB(folder, every_steps=1, keep=keep, keep_best=keep_best, monitor="eval/loss")
    return noisy_learner(MetricsCB(), saver, *cbs, seed=seed)


def end_of(learn):
    return {"weights": capture_weights(learn), "rows": untimed_rows(learn), "fits": learn.n_fits}


def straight(tmp_path):
    learn = make(tmp_path / "straight")
    learn.fit(2)
    return end_of(learn)


def crash(folder, **kwargs):
    with pytest.raises(StoppedError):
        make(folder, StopCB(7), **kwargs).fit(2)
    return checkpoints_in(folder)


def flipped(data, share=0.5):
    at = int(len(data) * share)
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def flipped_in_a_tensor(data):
    """Flip a byte of the first tensor's numbers: the file can be read, only its checksum is wrong."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = next(info for info in archive.infolist() if info.filename.endswith("/data/0")).header_offset
    n_name, n_extra = struct.unpack("<HH", data[start + 26 : start + 30])
    at = start + 30 + n_name + n_extra
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-50],
    "only its beginning": lambda data: data[:100],
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data[:-4096] + bytes(4096),
    "zeros in the middle": lambda data: data[:1000] + bytes(300) + data[1300:],
    "a byte": flipped,
    "a byte of the directory": lambda data: flipped(data, 1 - 21 / len(data)),
    "a byte of a tensor": flipped_in_a_tensor,
    "another file": lambda data: b"epoch,loss\n0,1.5\n",
    "a page of HTML": lambda data: b"<html>404</html>" * 100,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_run_resumes_from_the_one_before_the_damaged_one(folder, tmp_path, damage):
    newest = crash(folder)[-1]
    data = DAMAGES[damage](newest.read_bytes())
    newest.write_bytes(data)
    learn = make(folder, seed=9)
    with pytest.warns(UserWarning, match=rf"(?s){newest.name}.*(older|\.damaged)"):
        learn.fit(2, resume=True)
    assert first_difference(straight(tmp_path), end_of(learn)) == ""
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == data


@pytest.mark.slow
@pytest.mark.parametrize("names", [(-1, -2), (-1, BEST), (-1, -2, BEST), (BEST,), (-2,)])
def test_several_may_be_damaged(folder, tmp_path, names):
    found = crash(folder)
    for name in names:
        path = folder / name if name == BEST else found[name]
        path.write_bytes(path.read_bytes()[:-9])
    learn = make(folder, seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(2, resume=True)
    assert first_difference(straight(tmp_path), end_of(learn)) == ""
    assert all(read(path)["run"] == learn.run_id for path in checkpoints_in(folder))


@pytest.mark.slow
def test_best_is_resumed_from_where_all_others_are_damaged(folder, tmp_path):
    for path in crash(folder):
        path.write_bytes(b"")
    learn = make(folder, seed=9)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learn.fit(2, resume=True)
    assert "best.pt" in str(found[0].message)
    assert first_difference(straight(tmp_path), end_of(learn)) == ""


def test_best_that_only_reading_all_of_it_shows_to_be_damaged_is_renamed_too(folder):
    for path in crash(folder, keep_best=1):
        path.write_bytes(b"")
    [best] = folder.glob("best-epoch-*")
    data = flipped_in_a_tensor(best.read_bytes())
    best.unlink()  # the same file as best.pt may be
    best.write_bytes(data)
    learn = make(folder, keep_best=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(2, resume=True)
    assert best.with_name(f"{best.name}.damaged").read_bytes() == data


def test_error_names_each_where_all_are_damaged(folder):
    paths = [*crash(folder), folder / BEST]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DamagedError) as e:
        make(folder).fit(2, resume=True)
    assert all(path.name in str(e.value) for path in paths)
    assert "resume=" not in str(e.value)
    assert all(path.exists() for path in paths)


@pytest.mark.slow
@pytest.mark.parametrize("n", [-1, -2])
def test_advice_for_a_damaged_one_that_was_named_is_right(folder, tmp_path, n):
    path = crash(folder)[n]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=rf"{path.name}.*resume='{folder}' "):
        make(folder).fit(2, resume=path)
    learn = make(folder, seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(2, resume=str(folder))
    assert first_difference(straight(tmp_path), end_of(learn)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "a byte of a tensor"])
def test_older_one_may_be_named_where_the_newest_is_damaged(folder, tmp_path, damage):
    *_, older, newest = crash(folder)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    learn = make(folder, seed=9)
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged"):
        learn.fit(2, resume=older)
    assert first_difference(straight(tmp_path), end_of(learn)) == ""


@pytest.mark.slow
def test_first_of_a_second_fit_may_be_damaged(folder, tmp_path):
    def script(folder, *cbs):
        learn = make(folder, *cbs)
        learn.fit(1, resume=True)
        learn.fit(2, resume=True)
        return end_of(learn)

    class Stop(StopCB):
        def at_rest(self, learn):
            if learn.n_fits == 1:
                super().at_rest(learn)

    with pytest.raises(StoppedError):
        script(folder, Stop(1))
    newest = checkpoints_in(folder)[-1]
    assert read(newest)["fit"]["index"] == 1
    newest.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = script(folder)
    assert first_difference(script(tmp_path / "straight"), again) == ""


@pytest.mark.slow
def test_one_that_was_damaged_before_is_kept_too(folder):
    newest = crash(folder)[-1]
    newest.write_bytes(b"2")
    newest.with_name(f"{newest.name}.damaged").write_bytes(b"1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(folder).fit(2, resume=True)
    kept = sorted(folder.glob("*.damaged*"))
    assert [path.read_bytes() for path in kept] == [b"1", b"2"]


def test_damaged_ones_of_an_unknown_run_are_left_alone(folder):
    folder.mkdir()
    path = folder / "epoch-0001-train-000000.pt"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{path.name}.*damaged.*folder"):
        make(folder).fit(1)
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("error", [PermissionError, MemoryError])
def test_what_is_no_damage_is_raised(folder, monkeypatch, error):
    crash(folder)

    def fail(*args, **kwargs):
        raise error("no")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(error):
        make(folder).fit(2, resume=True)
    assert not list(folder.glob("*.damaged"))
