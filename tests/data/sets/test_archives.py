import errno
import gzip
import io
import os
import random
import shutil
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from toolbox import write_tar_of

from minilearn.data import unpack
from minilearn.data.sets import archives as module

FILES = {"a.txt": b"first", "sub/b.bin": bytes(range(256)) * 8, "sub/deep/c.txt": b""}


def write_tar(path, files=FILES, how="w"):
    with tarfile.open(path, how) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path, files=FILES, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as parts:
        for name, data in files.items():
            parts.writestr(name, data)
    return path


def write_member(path, **attributes):
    """A tar of a good file, then one member with these attributes of TarInfo."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("good.txt"))
        member = tarfile.TarInfo("member")
        for name, value in attributes.items():
            setattr(member, name, value)
        tar.addfile(member)
    return path


def write_tgz(path, files=FILES):
    return write_tar(path, files, "w:gz")


def write_tar_xz(path, files=FILES):
    return write_tar(path, files, "w:xz")


def write_tar_bz2(path, files=FILES):
    return write_tar(path, files, "w:bz2")


KINDS = [write_tar, write_tgz, write_tar_xz, write_tar_bz2, write_zip]


@pytest.fixture
def place(tmp_path):
    """A folder of its own for what is unpacked, so that all that is left there can be seen."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def contents(folder):
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refused(archive, place, message, error=ValueError):
    with pytest.raises(error, match=message):
        unpack(archive, place / "out")
    assert os.listdir(place) == []


@pytest.fixture(scope="module")
def cifar10():
    """Return the archive of CIFAR-10, or skip."""
    repo = Path(__file__).parents[3]
    for folder in (os.environ.get("MINILEARN_DATA"), repo.parent / "shared" / "data"):
        if folder and (Path(folder) / "cifar10.tgz").is_file():
            return Path(folder) / "cifar10.tgz"
    pytest.skip("needs CIFAR-10's archive: set MINILEARN_DATA to a folder with cifar10.tgz")


# What is unpacked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", KINDS)
def test_all_files_are_unpacked_into_the_folder_which_is_returned(write, tmp_path, place):
    folder = unpack(write(tmp_path / "archive"), place / "out")
    assert folder == place / "out"
    assert contents(folder) == FILES
    assert os.listdir(place) == ["out"]


@pytest.mark.parametrize(("write", "name"), [(write_zip, "data.tgz"), (write_tgz, "data.zip")])
def test_the_content_says_what_an_archive_is_not_its_name(write, name, tmp_path, place):
    assert contents(unpack(write(tmp_path / name), place / "out")) == FILES


def test_tar_whose_last_member_is_a_zip_is_a_tar(tmp_path, place):
    inner = write_zip(tmp_path / "inner.zip").read_bytes()
    files = {"a.txt": b"first", "inner.zip": inner}
    assert contents(unpack(write_tar(tmp_path / "data.tar", files), place / "out")) == files


def test_zip_behind_other_bytes_is_a_zip(tmp_path, place):
    archive = write_zip(tmp_path / "data.zip")
    archive.write_bytes(b"#!/bin/sh\n" * 100 + archive.read_bytes())
    assert contents(unpack(archive, place / "out")) == FILES


@pytest.mark.parametrize("as_path", [str, Path])
def test_names_may_be_text_and_begin_with_the_home(as_path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tgz(tmp_path / "data.tgz")
    assert unpack(as_path("~/data.tgz"), as_path("~/out")) == tmp_path / "out"
    assert contents(tmp_path / "out") == FILES


def test_folders_above_are_made(tmp_path, place):
    assert contents(unpack(write_tgz(tmp_path / "data.tgz"), place / "a" / "b")) == FILES
    assert os.listdir(place / "a") == ["b"]


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_archive_without_members_gives_an_empty_folder(write, tmp_path, place):
    assert os.listdir(unpack(write(tmp_path / "archive", {}), place / "out")) == []


def test_zip_with_an_entry_for_its_own_folder_is_unpacked(tmp_path, place):
    archive = write_zip(tmp_path / "data.zip", {"./": b"", "./a.txt": b"first"})
    assert contents(unpack(archive, place / "out")) == {"a.txt": b"first"}


def test_links_that_stay_inside_are_kept(tmp_path, place):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        member = tarfile.TarInfo("sub/a.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "sub/a.txt"
            tar.addfile(link)
    folder = unpack(tmp_path / "data.tar", place / "out")
    assert contents(folder) == {"sub/a.txt": b"abc", "soft": b"abc", "hard": b"abc"}
    assert os.readlink(folder / "soft") == "sub/a.txt"


@pytest.mark.parametrize("mode", [0o000, 0o777, 0o4755, 0o2777, 0o1666])
def test_files_of_a_tar_can_be_read_and_written_only_by_their_owner(mode, tmp_path, place):
    folder = unpack(write_member(tmp_path / "data.tar", mode=mode), place / "out")
    found = stat.S_IMODE((folder / "member").stat().st_mode)
    assert found & 0o600 == 0o600
    assert found & 0o7022 == 0


def test_folders_of_a_tar_can_be_entered_whatever_their_mode(tmp_path, place):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name, kind in (("sub", tarfile.DIRTYPE), ("sub/a.txt", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o000
            tar.addfile(member)
    folder = unpack(tmp_path / "data.tar", place / "out")
    assert stat.S_IMODE((folder / "sub").stat().st_mode) & 0o700 == 0o700


@pytest.mark.parametrize("write", KINDS)
def test_folder_itself_has_the_mode_of_any_new_folder(write, tmp_path, place):
    (place / "other").mkdir()
    folder = unpack(write(tmp_path / "archive"), place / "out")
    assert folder.stat().st_mode == (place / "other").stat().st_mode


def test_files_of_a_zip_have_the_mode_of_any_new_file(tmp_path, place):
    member = zipfile.ZipInfo("a.txt")
    member.external_attr = (stat.S_IFREG | 0o6777) << 16
    (place / "other").touch()
    folder = unpack(write_zip(tmp_path / "data.zip", {member: b"x"}), place / "out")
    assert (folder / "a.txt").stat().st_mode == (place / "other").stat().st_mode


# What would lie outside -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.txt", "sub/../../evil.txt", "../out-2/evil.txt", ".."])
def test_member_of_a_tar_above_the_folder_is_refused(name, tmp_path, place):
    archive = write_member(tmp_path / "data.tar", name=name)
    refused(archive, place, rf"data\.tar.*'{name}'")
    assert not (tmp_path / "evil.txt").exists()


def test_absolute_name_in_a_tar_comes_to_lie_inside(tmp_path, place):
    target = tmp_path / "evil.txt"
    folder = unpack(write_tar(tmp_path / "data.tar", {str(target): b"x"}), place / "out")
    assert not target.exists()
    assert contents(folder) == {str(target).lstrip("/"): b"x"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("to", ["../secret.txt", "sub/../../secret.txt", "/etc/hostname"])
def test_link_out_of_the_folder_is_refused(kind, to, tmp_path, place):
    (tmp_path / "secret.txt").write_text("secret")
    archive = write_member(tmp_path / "data.tar", type=kind, linkname=to)
    refused(archive, place, r"data\.tar.*'member'")


def test_nothing_is_written_through_a_link(tmp_path, place):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        link = tarfile.TarInfo("door")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("door/evil.txt"))
    refused(tmp_path / "data.tar", place, "'door'")
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_device_is_refused(kind, tmp_path, place):
    archive = write_member(tmp_path / "data.tar", type=kind)
    refused(archive, place, r"data\.tar.*'member'.*special file")


@pytest.mark.parametrize(
    "name",
    [
        "/evil.txt",
        "//evil.txt",
        "../evil.txt",
        "sub/../../evil.txt",
        "..",
        r"..\evil.txt",
        r"sub\..\..\evil.txt",
        r"\evil.txt",
        r"\\server\evil.txt",
        r"C:\evil.txt",
        "C:evil.txt",
        "c:/evil.txt",
    ],
)
def test_name_in_a_zip_that_would_lie_outside_on_any_system_is_refused(name, tmp_path, place):
    archive = write_zip(tmp_path / "data.zip", {"good.txt": b"x", name: b"x"})
    with pytest.raises(ValueError, match=r"data\.zip") as caught:
        unpack(archive, place / "out")
    assert str(caught.value).endswith(repr(name))
    assert os.listdir(place) == []


def test_dots_within_a_name_are_no_way_out(tmp_path, place):
    files = {"a..b/..c.txt": b"x", "...": b"y"}
    for i, write in enumerate(KINDS):
        assert contents(unpack(write(tmp_path / "archive", files), place / str(i))) == files


def write_zip_of_kinds(path, *members, system=3):
    """A zip of (name, type of file as in stat, content)."""
    with zipfile.ZipFile(path, "w") as parts, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, kind, data in members:
            part = zipfile.ZipInfo(name)
            part.create_system, part.external_attr = system, (kind | 0o777) << 16
            parts.writestr(part, data)
    return path


@pytest.mark.parametrize("system", [3, 19])
def test_links_in_a_zip_that_stay_inside_are_kept(system, tmp_path, place):
    archive = write_zip_of_kinds(
        *(tmp_path / "data.zip", ("soft", stat.S_IFLNK, b"sub/a.txt"), ("sub/up", stat.S_IFLNK, b"..")),
        *(("sub/a.txt", stat.S_IFREG, b"abc"), ("folder", stat.S_IFLNK, b"sub")),
        system=system,
    )
    folder = unpack(archive, place / "out")
    assert {name: os.readlink(folder / name) for name in ("soft", "folder", "sub/up")} == {
        **{"soft": "sub/a.txt", "folder": "sub", "sub/up": ".."}
    }
    assert (folder / "folder" / "up" / "soft").read_bytes() == b"abc"


def test_type_of_file_is_not_asked_where_a_zip_has_none(tmp_path, place):
    archive = write_zip_of_kinds(tmp_path / "data.zip", ("a", stat.S_IFLNK, b"abc"), system=0)  # of DOS
    assert contents(unpack(archive, place / "out")) == {"a": b"abc"}


REG, LNK, HARD, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([("link", stat.S_IFLNK, b"/etc/hostname")], "link"),
        ([("link", stat.S_IFLNK, b"../secret.txt")], "link"),
        ([("sub/link", stat.S_IFLNK, b"../../secret.txt")], "sub/link"),
        ([("door", stat.S_IFLNK, b"../.."), ("door/evil.txt", stat.S_IFREG, b"x")], "door"),
        ([("door", stat.S_IFLNK, b"/tmp"), ("door/evil", stat.S_IFLNK, b"x")], "door"),
        ([("a", stat.S_IFLNK, b"x/y/../.."), ("x/y", stat.S_IFLNK, b"..")], "a"),  # out by the second
        ([("a", stat.S_IFREG, b"x"), ("a", stat.S_IFLNK, b"b")], "a"),
        ([("a", stat.S_IFLNK, b"b"), ("a", stat.S_IFLNK, b"c")], "a"),
        ([("pipe", stat.S_IFIFO, b"")], "pipe.*special"),
        ([("null", stat.S_IFCHR, b"")], "null.*special"),
        ([("disk", stat.S_IFBLK, b"")], "disk.*special"),
        ([("socket", stat.S_IFSOCK, b"")], "socket.*special"),
    ],
)
def test_links_out_and_special_files_in_a_zip_are_refused_with_their_name(members, named, tmp_path, place):
    (tmp_path / "secret.txt").write_text("secret")
    archive = write_zip_of_kinds(tmp_path / "data.zip", ("good.txt", stat.S_IFREG, b"x"), *members)
    refused(archive, place, rf"data\.zip.*'{named}")
    assert sorted(os.listdir(tmp_path)) == ["data.zip", "place", "secret.txt"]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([("b", HARD, "missing.txt")], "'b' .*'missing.txt'"),
        ([("b", HARD, "later.txt"), ("later.txt", REG, b"x")], "'b' .*'later.txt'"),
        ([("door", LNK, "sub"), ("door/evil.txt", REG, b"x")], "door/evil.txt.*'door'"),
        ([("door", LNK, "sub"), ("door", REG, b"x")], "'door'"),
        ([("door", LNK, "sub"), ("door/", DIR, "")], "'door'"),
        ([("door", LNK, "sub"), ("b", HARD, "door/a.txt")], "'b'.*'door'"),
        ([("a.txt", REG, b"x"), ("b", HARD, "a.txt"), ("b", REG, b"y")], "'b'"),  # it would change a.txt
        ([("/door", LNK, "sub"), ("door/evil.txt", REG, b"x")], "door/evil.txt.*'door'"),
        ([("pipe", tarfile.FIFOTYPE, "")], "'pipe'"),
        ([("", REG, b"x")], "''"),
        ([("./", REG, b"x")], r"'\./'"),
        ([("good.txt/b", REG, b"x")], "folder.*'b'"),
        ([("sub/b", REG, b"x"), ("sub", REG, b"x")], "folder.*'sub'"),
        ([("disk", b"V", "")], "'disk'"),
    ],
)
def test_what_a_tar_cannot_be_unpacked_to_as_it_is_is_refused_with_its_name(members, named, tmp_path, place):
    archive = write_tar_of(tmp_path / "data.tar", ("good.txt", REG, b"x"), *members)
    refused(archive, place, rf"data\.tar.*{named}")


def test_name_that_no_file_can_have_is_refused(tmp_path, place):
    with tarfile.open(tmp_path / "data.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a" * 100 + "\u00e9\0b"))
    refused(tmp_path / "data.tar", place, r"data\.tar.*'a{100}\u00e9\\x00b'")


def test_zip_with_a_file_without_a_name_is_refused(tmp_path, place):
    archive = write_zip(tmp_path / "data.zip", {"a": b"x", "name": b"y"})
    archive.write_bytes(archive.read_bytes().replace(b"name", b"\0ame"))  # a name ends before a 0
    refused(archive, place, r"data\.zip.*name ''")


def test_time_that_no_file_can_have_is_refused(tmp_path, place):
    refused(write_member(tmp_path / "archive", mtime=2**70), place, BROKEN)


def test_zip_with_a_file_and_a_folder_of_one_name_is_refused(tmp_path, place):
    archive = write_zip(tmp_path / "data.zip", {"a": b"x", "a/b": b"x"})
    refused(archive, place, r"data\.zip.*folder.*'b'")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_of_two_files_of_one_name_the_last_counts(kind, tmp_path, place):
    names = ["a", "b", "a"]
    if kind == "tar":
        members = [(name, REG, bytes([i])) for i, name in enumerate(names)]
        archive = write_tar_of(tmp_path / "data", *members)
    else:
        members = [(name, stat.S_IFREG, bytes([i])) for i, name in enumerate(names)]
        archive = write_zip_of_kinds(tmp_path / "data", *members)
    assert contents(unpack(archive, place / "out")) == {"a": b"\x02", "b": b"\x01"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_in_the_archive_s_place_is_refused_and_not_waited_for(tmp_path, place):
    os.mkfifo(tmp_path / "data.tgz")
    refused(tmp_path / "data.tgz", place, "data.tgz", FileNotFoundError)


# What is too large ------------------------------------------------------------------------------------


def bomb(path, kind, n_bytes=3 * 2**20, n_files=1):
    return {"zip": write_zip, "tgz": write_tgz, "xz": write_tar_xz, "bz2": write_tar_bz2}[kind](
        path, {f"{i}.png": bytes(n_bytes) for i in range(n_files)}
    )


@pytest.mark.parametrize("kind", ["zip", "tgz", "xz", "bz2"])
@pytest.mark.parametrize(("n_bytes", "n_files"), [(3 * 2**20, 1), (2**18, 12)])
def test_bomb_is_refused_with_its_size_and_leaves_nothing(
    kind, n_bytes, n_files, tmp_path, place, monkeypatch
):
    monkeypatch.setattr(module, "_ALWAYS", 2**20)
    archive = bomb(tmp_path / "archive", kind, n_bytes, n_files)
    refused(archive, place, r"archive.*bomb.*\d.png.*max_bytes=")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_files_without_content_count_too(kind, tmp_path, place):
    archive = bomb(tmp_path / "archive", kind, 0, 1000)
    with pytest.raises(ValueError, match=r"511,999.*'999.png'"):
        unpack(archive, place / "out", max_bytes=512 * 1000 - 1)
    assert len(contents(unpack(archive, place / "out", max_bytes=512 * 1000))) == 1000


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_max_bytes_takes_what_the_default_refuses_and_no_more(kind, tmp_path, place, monkeypatch):
    monkeypatch.setattr(module, "_ALWAYS", 2**20)
    archive = bomb(tmp_path / "archive", kind)
    refused(archive, place, "max_bytes")
    size = 3 * 2**20 + 512
    with pytest.raises(ValueError, match=rf"archive.*{size - 1:,}"):
        unpack(archive, place / "out", max_bytes=size - 1)
    assert contents(unpack(archive, place / "out", max_bytes=size)) == {"0.png": bytes(3 * 2**20)}


def test_size_in_a_tar_s_header_is_enough_to_refuse_it(tmp_path, place):
    header = tarfile.TarInfo("0.png")
    header.size = 10**15  # a file of holes too says what it is without them
    (tmp_path / "archive").write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    refused(tmp_path / "archive", place, r"'0\.png' has 1,000,000,000,000,000")


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, True, "1 GB", float("nan")])
def test_max_bytes_is_checked(max_bytes, tmp_path, place):
    with pytest.raises(ValueError, match=r"max_bytes=.*>= 1"):
        unpack(write_tgz(tmp_path / "data.tgz"), place / "out", max_bytes)


# What is no whole archive -----------------------------------------------------------------------------


BROKEN = r"archive.*cut short.*\("


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
def test_archive_that_is_cut_short_is_refused(write, part, tmp_path, place):
    files = {f"{i}.bin": random.Random(i).randbytes(1000) for i in range(100)}
    archive = write(tmp_path / "archive", files)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(part * len(data)) // 512 * 512 + 700])
    refused(archive, place, BROKEN)


@pytest.mark.parametrize(
    "n_bytes",
    [
        *(1024, 1024 + 100, 2048),
    ],
)
def test_tar_that_is_cut_between_members_or_in_a_header_is_refused(n_bytes, tmp_path, place):
    # Each of the three takes 512 bytes for the header and 512 for the data; the end is two blocks of zeros.
    archive = write_tar(tmp_path / "archive", {"a": b"a", "b": b"b", "c": b"c"})
    archive.write_bytes(archive.read_bytes()[:n_bytes])
    refused(archive, place, BROKEN)


def test_tar_with_a_damaged_header_is_refused(tmp_path, place):
    archive = write_tar(tmp_path / "archive", {"a": b"a", "b": b"b"})
    data = bytearray(archive.read_bytes())
    data[1024] ^= 1  # the first letter of the second name
    archive.write_bytes(data)
    refused(archive, place, BROKEN)


@pytest.mark.parametrize("write", [write_tgz, write_tar_xz, write_tar_bz2])
def test_compressed_tar_without_its_last_bytes_is_refused(write, tmp_path, place):
    archive = write(tmp_path / "archive")
    archive.write_bytes(archive.read_bytes()[:-4])
    refused(archive, place, BROKEN)


def test_tgz_whose_checksum_is_wrong_is_refused(tmp_path, place):
    plain = write_tar(tmp_path / "plain", {"a": b"a" * 5000}).read_bytes()
    damaged = plain.replace(b"aaaa", b"aaab", 1)
    data = gzip.compress(damaged)[:-8] + gzip.compress(plain)[-8:]
    (tmp_path / "archive").write_bytes(data)
    refused(tmp_path / "archive", place, BROKEN)


def test_zip_whose_checksum_is_wrong_is_refused(tmp_path, place):
    archive = write_zip(tmp_path / "archive", {"a": b"aaaa", "b": b"bbbb"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"bbbb", b"bbbc"))
    refused(archive, place, BROKEN)


def test_zip_with_a_damaged_stream_is_refused(tmp_path, place):
    archive = write_zip(tmp_path / "archive", {"a": b"a" * 1000})
    data = bytearray(archive.read_bytes())
    data[31] = 0xFF  # behind the header of 30 bytes and the name: 3, in its last bits, is no kind of block
    archive.write_bytes(data)
    refused(archive, place, BROKEN)


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x1f\x8b", b"PK\x03\x04", b"\0" * 100, b"x" * 20_000])
def test_what_is_no_archive_is_refused(data, tmp_path, place):
    (tmp_path / "archive").write_bytes(data)
    refused(tmp_path / "archive", place, BROKEN)


@pytest.mark.parametrize("write", [write_tar, write_tgz])
def test_second_archive_behind_the_first_is_refused(write, tmp_path, place):
    both = [write(tmp_path / name, {name: b"x"}).read_bytes() for name in ("a", "b")]
    (tmp_path / "archive").write_bytes(b"".join(both))
    refused(tmp_path / "archive", place, r"archive has a second archive.*--ignore-zeros")


@pytest.mark.parametrize("behind", [b"\0" * 3_000_000, b"x" * 1000, b"\0" * 700 + b"signature"])
def test_other_bytes_behind_a_tar_do_not_matter(behind, tmp_path, place):
    archive = write_tar(tmp_path / "archive")
    archive.write_bytes(archive.read_bytes() + behind)
    assert contents(unpack(archive, place / "out")) == FILES


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_error_of_the_disk_is_not_taken_for_damage(write, number, tmp_path, place, monkeypatch):
    def copy(*args, **kwargs):
        raise OSError(number, "no", "the/file")

    archive = write(tmp_path / "archive")
    monkeypatch.setattr(shutil if write is write_zip else tarfile, "copyfileobj", copy)
    refused(archive, place, "the/file", OSError)


def test_damaged_bz2_is_named(tmp_path, place):
    archive = write_tar_bz2(tmp_path / "archive", {"a": random.Random(0).randbytes(5000)})
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)
    refused(archive, place, BROKEN)


@pytest.mark.parametrize(
    ("flag", "method", "message"),
    [(1, 0, "archive is encrypted.*'a'"), (0, 99, BROKEN)],
    ids=["locked", "new"],
)
def test_zip_that_python_cannot_read_is_named(flag, method, message, tmp_path, place):
    data = bytearray(write_zip(tmp_path / "archive", {"a": b"x"}, zipfile.ZIP_STORED).read_bytes())
    for at in (6, data.rindex(b"PK\x01\x02") + 8):  # in the header of the file, and in the list at the end
        data[at], data[at + 2] = flag, method
    (tmp_path / "archive").write_bytes(data)
    refused(tmp_path / "archive", place, message)


@pytest.mark.parametrize("name", ["missing.tgz", "."])
def test_archive_that_is_not_there_is_named(name, tmp_path, place):
    archive = tmp_path / name
    refused(archive, place, f"unpack: {archive}", FileNotFoundError)


# The folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [{}, {"mine.txt": "kept"}])
def test_folder_that_is_there_is_refused_and_stays_untouched(content, tmp_path, place):
    (place / "out").mkdir()
    for name, text in content.items():
        (place / "out" / name).write_text(text)
    with pytest.raises(FileExistsError, match=r"unpack: .*out.*delete"):
        unpack(write_tgz(tmp_path / "data.tgz"), place / "out")
    assert contents(place) == {f"out/{name}": text.encode() for name, text in content.items()}
    assert os.listdir(place) == ["out"]


def test_link_to_nothing_in_the_folder_s_place_is_refused_and_stays(tmp_path, place):
    (place / "out").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match=r"unpack: .*out.*delete"):
        unpack(write_tgz(tmp_path / "data.tgz"), place / "out")
    assert os.readlink(place / "out") == "nowhere"


def test_folder_that_another_process_makes_meanwhile_stays(tmp_path, place, monkeypatch):
    real = module.check_end

    def check_end(*args):
        (place / "out").mkdir()
        (place / "out" / "mine.txt").write_text("kept")
        real(*args)

    monkeypatch.setattr(module, "check_end", check_end)
    with pytest.raises(OSError, match="out"):
        unpack(write_tgz(tmp_path / "data.tgz"), place / "out")
    assert contents(place) == {"out/mine.txt": b"kept"}


def test_file_in_the_folder_s_place_is_refused_and_stays(tmp_path, place):
    (place / "out").write_text("mine")
    with pytest.raises(FileExistsError, match=r"unpack: .*out.*delete"):
        unpack(write_tgz(tmp_path / "data.tgz"), place / "out")
    assert (place / "out").read_text() == "mine"


def test_after_a_failure_a_good_archive_can_be_unpacked_to_the_same_place(tmp_path, place):
    (tmp_path / "archive").write_bytes(b"no archive")
    refused(tmp_path / "archive", place, BROKEN)
    assert contents(unpack(write_tgz(tmp_path / "data.tgz"), place / "out")) == FILES


def test_archive_stays_as_it_is(tmp_path, place):
    archive = write_tgz(tmp_path / "data.tgz")
    before = archive.read_bytes()
    unpack(archive, place / "out")
    assert archive.read_bytes() == before


@pytest.mark.full
@pytest.mark.slow
def test_cifar10_has_its_60_000_images(cifar10, place):
    folder = unpack(cifar10, place / "out")
    assert os.listdir(folder) == ["cifar10"]
    for part, n in (("train", 50_000), ("test", 10_000)):
        assert len(list((folder / "cifar10" / part).glob("*/*"))) == n
        assert len(os.listdir(folder / "cifar10" / part)) == 10
