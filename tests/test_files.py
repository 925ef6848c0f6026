import datetime
import errno
import io
import os
import pickle
import resource
import traceback
import zipfile
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from toolbox import names_in

from minilearn import files
from minilearn.checkpoints.codec import first_difference
from minilearn.files import read_plain, read_torch, write_torch, written_whole

VALUE = {"a": torch.arange(4.0), "b": [1, "x", ("tuple", [None])]}
RAN = []


def run_code():
    RAN.append(1)


class RunsCode:
    def __reduce__(self):
        return run_code, ()


class Custom:
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def written(path):
    """Return the path of a file with VALUE."""
    write_torch(path, VALUE)
    return path


@pytest.fixture
def small_disk():
    """Have no file of this process grow beyond 100,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Writing ----------------------------------------------------------------------------------------------


def test_what_was_written_is_read(written):
    assert first_difference(read_torch(written), VALUE) == ""
    assert first_difference(read_torch(written, check=False), VALUE) == ""
    assert names_in(written.parent) == ["run.pt"]


def test_new_file_takes_the_place_of_the_old_one(written):
    write_torch(written, {"new": 1})
    assert read_torch(written) == {"new": 1}
    assert names_in(written.parent) == ["run.pt"]


def test_file_is_not_there_before_it_is_whole(path):
    with written_whole(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        assert names_in(path.parent) == [f".run.pt.{os.getpid()}{files.SIDE}"]
    assert path.read_bytes() == b"half"


def test_old_file_is_there_until_the_new_one_is_whole(path):
    path.write_bytes(b"old")
    with written_whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_each_process_has_a_file_of_its_own_to_the_side(path, monkeypatch):
    with written_whole(path) as file:
        file.write(b"first")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with written_whole(path) as other:
            other.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [b"old", None])
def test_error_while_writing_leaves_the_old_file_and_nothing_else(path, error, old):
    if old:
        path.write_bytes(old)

    def write():
        with written_whole(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write()
    assert names_in(path.parent) == (["run.pt"] if old else [])
    assert not old or path.read_bytes() == old


@pytest.mark.parametrize("old", [b"old", None])
def test_value_that_cannot_be_written_leaves_the_old_file(path, old):
    if old:
        path.write_bytes(old)
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        write_torch(path, {"a": torch.ones(3), "b": lambda: 0})
    assert names_in(path.parent) == (["run.pt"] if old else [])


def test_contents_are_synced_before_the_name_and_the_name_after(path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def sync(handle):
        target = os.readlink(f"/proc/self/fd/{handle}")
        n = os.fstat(handle).st_size if os.path.isfile(target) else None
        done.append(("sync", os.path.basename(target), n))
        fsync(handle)

    def rename(source, target):
        done.append(("rename", os.path.basename(target), None))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    with written_whole(path) as file:
        file.write(b"12345")
    side = f".run.pt.{os.getpid()}{files.SIDE}"
    assert done == [("sync", side, 5), ("rename", "run.pt", None), ("sync", path.parent.name, None)]


@pytest.mark.parametrize(
    ("number", "is_raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_folder_that_cannot_be_synced_is_no_error(path, monkeypatch, number, is_raised):
    def sync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", sync)
    if is_raised:
        with pytest.raises(OSError, match=r"Input/output error.*run\.pt"):
            write_torch(path, VALUE)
    else:
        write_torch(path, VALUE)
        assert first_difference(read_torch(path), VALUE) == ""


def test_handles_are_closed(path, monkeypatch):
    write_torch(path, VALUE)
    before = len(os.listdir("/proc/self/fd"))
    write_torch(path, VALUE)
    with pytest.raises(ZeroDivisionError), written_whole(path):
        raise ZeroDivisionError
    assert len(os.listdir("/proc/self/fd")) == before


# No room ----------------------------------------------------------------------------------------------

NO_ROOM = r".*'.*run\.pt'$"


@pytest.mark.parametrize("old", [True, False])
def test_full_disk_is_an_os_error_with_the_path(path, small_disk, old):
    if old:
        write_torch(path, VALUE)
    with pytest.raises(OSError, match=f"File too large{NO_ROOM}") as info:
        write_torch(path, {"a": torch.zeros(100_000)})
    assert (info.value.errno, info.value.filename) == (errno.EFBIG, str(path))
    assert names_in(path.parent) == (["run.pt"] if old else [])
    assert not old or first_difference(read_torch(path), VALUE) == ""


def test_full_disk_under_a_plain_write_is_one_too(path, small_disk):
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=f"File too large{NO_ROOM}"), written_whole(path) as file:
        file.write(bytes(200_000))
    assert path.read_bytes() == b"old"
    assert names_in(path.parent) == ["run.pt"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_disk_that_is_full_at_the_end_is_one_too(written, monkeypatch, name):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match=f"No space left on device{NO_ROOM}") as info:
        write_torch(written, {"new": 1})
    assert (info.value.errno, info.value.filename) == (errno.ENOSPC, str(written))
    monkeypatch.undo()
    assert first_difference(read_torch(written), VALUE) == ""
    assert names_in(written.parent) == ["run.pt"]


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory.*none/run\.pt"):
        write_torch(tmp_path / "none" / "run.pt", VALUE)


@pytest.mark.parametrize("name", ["file/run.pt", "x" * 250 + ".pt"], ids=["file as folder", "long name"])
def test_place_where_no_file_can_be_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="place") as info:
        write_torch(tmp_path / name, VALUE)
    assert info.value.filename == str(tmp_path / name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_error_while_another_is_handled_stays_what_it_is(path, error):
    def write():
        with written_whole(path):
            raise error

    try:
        raise OSError(errno.ENOENT, "something else")
    except OSError:
        with pytest.raises(error):
            write()


# Reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.pt", "folder"])
def test_file_that_is_not_there_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name}"):
        read_torch(tmp_path / name)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
def test_file_that_is_cut_short_is_named(written, share, check):
    contents = written.read_bytes()
    written.write_bytes(contents[: int(share * len(contents))])
    with pytest.raises(ValueError, match=r"run\.pt.*cut short"):
        read_torch(written, check)


@pytest.mark.parametrize("n", range(1, 30))
def test_file_that_lacks_its_last_bytes_is_named(written, n):
    written.write_bytes(written.read_bytes()[:-n])
    with pytest.raises(ValueError, match=r"run\.pt.*cut short"):
        read_torch(written)


@pytest.mark.parametrize("error", [EOFError, OSError(errno.EIO, "Input/output error")])
def test_file_that_cannot_be_read_to_its_end_is_named(written, monkeypatch, error):
    def fail(parts):
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "testzip", fail)
    with pytest.raises(ValueError, match=r"run\.pt.*cut short"):
        read_torch(written)


def at_contents_of(path, part):
    """Return where the contents of a part of a zip file begin."""
    with zipfile.ZipFile(path) as parts:
        start = parts.getinfo(part).header_offset
    contents = path.read_bytes()
    return start + 30 + sum(int.from_bytes(contents[start + i : start + i + 2], "little") for i in (26, 28))


def flip(path, place, bits=1):
    contents = bytearray(path.read_bytes())
    contents[place] ^= bits
    path.write_bytes(contents)


@pytest.mark.parametrize("byte", range(16))
def test_tensor_with_a_flipped_bit_is_damaged(written, byte):
    flip(written, at_contents_of(written, "archive/data/0") + byte)
    with pytest.raises(ValueError, match=r"run\.pt.*damaged.*'archive/data/0'"):
        read_torch(written)


@pytest.mark.parametrize("part", ["data.pkl", "version", "byteorder"])
def test_other_part_with_a_flipped_bit_is_damaged(written, part):
    flip(written, at_contents_of(written, f"archive/{part}"))
    with pytest.raises(ValueError, match=rf"run\.pt.*damaged.*'archive/{part}'"):
        read_torch(written)


def test_tensors_are_not_looked_at_without_a_check(written):
    flip(written, at_contents_of(written, "archive/data/0"))
    assert read_torch(written, check=False)["b"] == VALUE["b"]


# Where a part of the list of parts that ends the file says how the part is to be read.
PLACES = {"version": 6, "flags": 8, "method": 10, "checksum": 16, "size": 20, "name": 46}


@pytest.mark.parametrize("place", PLACES)
def test_list_of_parts_with_a_flipped_byte_is_damaged(written, place):
    flip(written, written.read_bytes().index(b"PK\x01\x02") + PLACES[place], 0xFF)
    with pytest.raises(ValueError, match=r"run\.pt "):
        read_torch(written)


def test_tensor_that_is_called_a_folder_is_damaged(written):
    contents = written.read_bytes()
    flip(written, contents.rindex(b"archive/data/0") - 8, 0x10)
    with pytest.raises(ValueError, match=r"run\.pt "):
        read_torch(written)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("contents", [b"", b"x", bytes(1000), b"PK\x03\x04", pickle.dumps({"a": 1})])
def test_file_of_another_kind_is_named(path, contents, check):
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"run\.pt.*cut short"):
        read_torch(path, check)


def test_old_format_of_torch_is_named(path):
    torch.save(VALUE, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"run\.pt.*cut short.*\(File is not a zip"):
        read_torch(path)


NOTHING_ELSE = r"run\.pt.*plain data and tensors"


@pytest.mark.parametrize("check", [True, False])
def test_zip_that_is_no_torch_file_is_named(path, check):
    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("a.txt", "text")
    with pytest.raises(ValueError, match=NOTHING_ELSE):
        read_torch(path, check)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("value", [RunsCode(), Custom(), {"a": [Custom()]}, print, torch.nn.Linear(1, 1)])
def test_file_with_more_than_data_is_refused_and_runs_nothing(path, value, check):
    torch.save(value, path)
    with pytest.raises(ValueError, match=NOTHING_ELSE):
        read_torch(path, check)
    assert RAN == []


class Evaluates:
    def __reduce__(self):
        return eval, ("run_code()",)


# What torch refuses to load with weights_only, and advises to load without it.
OBJECTS = {
    "code": RunsCode(),
    "builtin": Evaluates(),
    "class": int,
    "function": torch.sin,
    "partial": partial(print),
    "array": np.zeros(2),
    "number": np.float64(1),
    "path": Path("x"),
    "date": datetime.date(2020, 1, 1),
    "deque": deque([1]),
    "module": torch.nn.Linear(1, 1),
    "object": Custom(),
    "nested": {"minilearn": 1, "cbs": [{"x": Custom()}]},
}


@pytest.mark.parametrize("read_it", [read_torch, lambda path: read_torch(path, check=False), read_plain])
@pytest.mark.parametrize("name", OBJECTS)
def test_no_error_advises_to_load_the_file_unsafely(path, name, read_it):
    torch.save(OBJECTS[name], path)
    with pytest.raises(ValueError, match="object") as info:
        read_it(path)
    printed = "".join(traceback.format_exception(info.value))
    assert [word for word in ("weights_only", "safe_globals", "torch.load") if word in printed] == []
    assert RAN == []


def test_code_in_a_plain_pickle_does_not_run(path):
    path.write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(ValueError, match=r"run\.pt.*cut short"):
        read_torch(path)
    assert RAN == []


def test_code_put_in_place_of_the_data_does_not_run(written, path):
    file = io.BytesIO()
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(RunsCode()) if name.endswith("data.pkl") else old.read(name))
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=NOTHING_ELSE):
        read_torch(path)
    assert RAN == []
