import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from terminals import terminal
from toolbox import png

from minilearn.data.sets import decoding as module
from minilearn.data.sets.decoding import cached, read_images

pytestmark = pytest.mark.usefixtures("cache")


CLASSES = ("cat", "dog")


def files(n=2):
    """Return what is in each file of a tiny data set; the values 0, 1, ... in the order of class and name."""
    names = [f"{part}/{name}/{i}.png" for part in ("train", "test") for name in CLASSES for i in range(n)]
    return {name: png(10 * i) for i, name in enumerate(names)}


def write_folder(root, content):
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_archive(path, content, top="set", mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in reversed(content.items()):
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write(kind, tmp_path, content):
    if kind == "folder":
        return write_folder(tmp_path / "set", content)
    return write_archive(tmp_path / f"set.{kind}", content, mode="w:gz" if kind == "tgz" else "w")


@pytest.mark.parametrize("kind", ["folder", "tgz", "tar"])
def test_images_are_sorted_by_class_and_name(tmp_path, kind):
    images, targets, classes, _ = read_images(write(kind, tmp_path, files()), "train")
    assert (classes, targets.tolist(), targets.dtype) == (CLASSES, [0, 0, 1, 1], torch.int64)
    assert (images.shape, images.dtype) == ((4, 3, 3, 4), torch.uint8)
    assert images[:, 0].float().mean((1, 2)).tolist() == [0, 10, 20, 30]
    assert images[:, 2].float().mean((1, 2)).tolist() == [255, 245, 235, 225]
    assert images.is_contiguous()
    assert read_images(tmp_path / ("set" if kind == "folder" else f"set.{kind}"), "test")[0][0, 0, 0, 0] == 40


def test_pixels_are_those_of_pil(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    images, _, _, _ = read_images(write("folder", tmp_path, {"train/a/1.png": file.getvalue()}), "train")
    assert torch.equal(images[0], torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_gray_images_get_three_channels_and_hidden_files_are_left_out(tmp_path, kind):
    content = {"train/a/1.PNG": png(7, mode="L"), "train/a/._1.PNG": b"x", "train/readme.png": b"x"}
    content["train/a/.DS_Store"] = content["notes.txt"] = b"x"
    images, _, classes, _ = read_images(write(kind, tmp_path, content), "train")
    assert images.unique().tolist() == [7]
    assert classes == ("a",)


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_file_that_is_no_image_is_refused_with_its_name(tmp_path, kind):
    source = write(kind, tmp_path, files() | {"train/cat/notes.txt": b"x"})
    with pytest.raises(ValueError, match=r"set\S*: train/cat/notes.txt.*.jpg, .jpeg"):
        read_images(source, "train")


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_empty_class_is_refused_with_its_name(tmp_path, kind):
    source = write(kind, tmp_path, files())
    if kind == "folder":
        (source / "train" / "cow").mkdir()
    else:
        with tarfile.open(source, "w:gz") as tar:
            for name in ("set/train/cow", "set/train/cat"):
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            info = tarfile.TarInfo("set/train/cat/1.png")
            info.size = len(png(1))
            tar.addfile(info, io.BytesIO(png(1)))
    with pytest.raises(ValueError, match=r"set\S*: train/cow"):
        read_images(source, "train")


@pytest.mark.parametrize("size", [3, 8])
def test_images_of_any_size_are_brought_to_their_middle_square(tmp_path, size):
    wide = Image.new("RGB", (30, 10), (255, 0, 0))
    wide.paste((0, 0, 255), (10, 0, 20, 10))  # the middle square
    file = io.BytesIO()
    wide.save(file, "PNG")
    content = {"train/a/1.png": file.getvalue(), "train/a/2.png": png(9, (5, 7))}
    images, _, _, _ = read_images(write("folder", tmp_path, content), "train", size)
    assert images.shape == (2, 3, size, size)
    red, _, blue = images[0].float()
    assert red.max() < 40 < 215 < blue.min()  # PIL's window looks a little over the edge
    assert images[1, 0].unique().tolist() == [9]


def test_more_images_than_are_read_at_once_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    images, targets, _, _ = read_images(write("tgz", tmp_path, files(4)), "train")
    assert images[:, 0, 0, 0].tolist() == [10 * i for i in range(8)]
    assert targets.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_bar_is_shown_in_a_terminal_and_nothing_elsewhere(tmp_path, kind, capsys, monkeypatch):
    source = write(kind, tmp_path, files())
    read_images(source, "train")
    assert capsys.readouterr().out == ""
    with terminal(80, monkeypatch) as screen:
        read_images(source, "train")
    assert "train" in screen.written
    assert not screen.is_cursor_hidden


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_part_without_images_is_refused(tmp_path, kind):
    source = write(kind, tmp_path, {name: data for name, data in files().items() if "test" in name})
    with pytest.raises(ValueError, match=r"set\S*.*train/<class>/.*.jpg, .jpeg"):
        read_images(source, "train")


@pytest.mark.parametrize("kind", ["folder", "tgz"])
@pytest.mark.parametrize("broken", [b"", b"no image", png(5)[:50]], ids=["empty", "text", "cut"])
def test_broken_image_is_refused_with_its_name(tmp_path, kind, broken):
    source = write(kind, tmp_path, files() | {"train/dog/0.png": broken})
    with pytest.raises(ValueError, match=r"set\S*: train/dog/0.png.*broken \("):
        read_images(source, "train")


def test_image_of_another_size_is_refused_with_both_sizes(tmp_path):
    source = write("tgz", tmp_path, files() | {"train/dog/1.png": png(5, size=(5, 3))})
    with pytest.raises(ValueError, match=r"set.tgz: train/dog/1.png.*5x3.*4x3.*size="):
        read_images(source, "train")


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95])
def test_archive_that_is_cut_short_is_refused_with_its_name(tmp_path, share):
    source = write("tgz", tmp_path, files())
    source.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    with pytest.raises(ValueError, match=r"set.tgz.*cut short"):
        read_images(source, "train")


def test_damaged_archive_is_refused_with_its_name(tmp_path):
    noise = np.random.default_rng(0).integers(256, size=20_000, dtype=np.uint8).tobytes()
    source = write("tgz", tmp_path, {"train/a/0.png": noise})
    data = source.read_bytes()
    for at in range(600, 20_000, 1500):  # a few places inside of the image
        source.write_bytes(data[:at] + b"\xff" * 40 + data[at + 40 :])
        with pytest.raises(ValueError, match=r"set.tgz"):
            read_images(source, "train")


def test_damaged_png_is_refused_with_its_name(tmp_path):
    data = png(5, size=(16, 16))
    for at in range(8, len(data) - 12):
        spoilt = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        source = write("folder", tmp_path, {"train/a/0.png": spoilt})
        try:
            read_images(source, "train")  # some bytes do not matter
        except ValueError as error:
            assert "train/a/0.png is broken" in str(error)  # noqa: PT017


# The cache --------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """Count the images that are decoded."""
    names, real = [], module.rgb_pixels

    def decode(name, data, size):
        names.append(name)
        return real(name, data, size)

    monkeypatch.setattr(module, "rgb_pixels", decode)
    return names


def load(source, part="train"):
    return cached(source, part, lambda: read_images(source, part))


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_images_are_decoded_once_and_memory_mapped_afterwards(tmp_path, cache, decoded, kind, monkeypatch):
    source = write(kind, tmp_path, files())
    first = load(source)
    assert len(decoded) == 4
    mapped, real = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kw: mapped.append(kw.get("mmap")) or real(*args, **kw))
    second = load(source)
    assert len(decoded) == 4
    assert mapped == [True]
    assert all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))
    assert second[2] == CLASSES
    load(source, "test")
    assert len(decoded) == 8
    assert len(list(cache.iterdir())) == 2
    assert {path.name.split("-")[1] for path in cache.iterdir()} == {"train", "test"}


@pytest.mark.parametrize("kind", ["folder", "tgz"])
@pytest.mark.parametrize("change", ["content", "time"])
def test_images_are_decoded_again_when_the_source_changes(tmp_path, decoded, kind, change):
    source = write(kind, tmp_path, files())
    before = load(source)[0]
    if change == "content":
        write(kind, tmp_path, files() | {"train/cat/0.png": png(200)})
        assert load(source)[0][0, 0, 0, 0] == 200
    else:
        path = source / "train/cat/0.png" if kind == "folder" else source
        os.utime(path, (1, 1))
        assert torch.equal(load(source)[0], before)
    assert len(decoded) == 8


def in_place(path, data):
    path.write_bytes(data)


def by_renaming(path, data):
    path.with_name(".new").write_bytes(data)
    path.with_name(".new").replace(path)


def same_time(change):
    def changed(path, data):
        found = path.stat()
        change(path, data)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    return changed


CHANGES = {
    "in place": in_place,
    "by renaming": by_renaming,
    "in place, same time": same_time(in_place),
    "by renaming, same time": same_time(by_renaming),
}
PLACES = {  # what is a link, and where it leads
    "file": {"train/cat/0.png": "pool/0.png"},
    "file by two links": {"train/cat/0.png": "pool/1.png", "pool/1.png": "pool/0.png"},
    "class": {"train/cat": "pool"},
    "class by two links": {"train/cat": "pool2", "pool2": "pool"},
    "part": {"train": "pool"},
    "source": {".": "pool"},
    "nothing": {},
}


def moved_behind_links(root, links):
    """Put links in the place of a file or folder; return where cat's 0.png is now."""
    file = root / "train/cat/0.png"
    if links:
        first, last = root / next(iter(links)), root.parent / "pool"
        if "pool/" in (end := list(links.values())[-1]):
            last.mkdir()
            last = root.parent / end
        file = last / file.relative_to(first)
        first.rename(last)
        for name, to in links.items():
            (root.parent / name if name.startswith("pool") else root / name).symlink_to(root.parent / to)
    return file


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("place", PLACES)
def test_cache_sees_a_file_that_is_replaced_by_one_of_the_same_size(place, how, tmp_path, decoded):
    source = write("folder", tmp_path, {name: bmp(data) for name, data in files().items()})
    file = moved_behind_links(source, PLACES[place])
    assert load(source)[0][0, 0, 0, 0] == 0
    CHANGES[how](file, bmp(png(200)))
    assert load(source)[0][0, 0, 0, 0] == 200
    load(source)
    assert len(decoded) == 8


def bmp(data):
    """The image of a PNG in a format whose size says nothing of its content."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "BMP")
    return file.getvalue()


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("link", [False, True])
def test_cache_sees_an_archive_that_is_replaced_by_one_of_the_same_size(link, how, tmp_path):
    source = write("tar", tmp_path, {name: bmp(data) for name, data in files().items()})
    new = source.read_bytes().replace(bmp(png(0)), bmp(png(200)))
    if link:
        source.rename(tmp_path / "pool.tar")
        source.symlink_to("pool.tar")
    assert load(source)[0][0, 0, 0, 0] == 0
    CHANGES[how](source.resolve(), new)
    assert load(source)[0][0, 0, 0, 0] == 200


@pytest.mark.parametrize("what", ["file", "class", "part"])
def test_cache_sees_a_link_that_leads_elsewhere(what, tmp_path):
    source = tmp_path / "set"
    for name, value in (("a", 1), ("b", 2)):
        write_folder(tmp_path / name, {"cat/0.png": png(value), "dog/0.png": png(9)})
    link = source / {"file": "train/cat/0.png", "class": "train/cat", "part": "train"}[what]
    write_folder(source, {"train/cat/0.png": png(0), "train/dog/0.png": png(9)})
    inner = {"file": "cat/0.png", "class": "cat", "part": ""}[what]
    for name, value in (("a", 1), ("b", 2), ("a", 1)):
        shutil.rmtree(link) if link.is_dir() and not link.is_symlink() else link.unlink()
        link.symlink_to(tmp_path / name / inner)
        assert load(source)[0][0, 0, 0, 0] == value


def test_cache_sees_a_class_whose_link_leads_to_another_class(tmp_path):
    source = write("folder", tmp_path, files())
    for name, want in (("cat", [0, 10, 0, 10, 20, 30]), ("dog", [20, 30, 0, 10, 20, 30])):
        (source / "train" / "ant").unlink(missing_ok=True)
        (source / "train" / "ant").symlink_to(name)
        assert load(source)[0][:, 0, 0, 0].tolist() == want


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "train/cat/0.png").unlink(),
        lambda root: (root / "train/cat/0.png").rename(root / "train/cat/9.png"),
        lambda root: (root / "train/cat/0.png").rename(root / "train/dog/9.png"),
        lambda root: (root / "train/cat").rename(root / "train/eel"),
        lambda root: shutil.copytree(root / "train/cat", root / "train/eel"),
        lambda root: (root / "train/cat/9.png").write_bytes(png(9)),
        lambda root: (root / "train/cat/9.png").symlink_to("0.png"),
        lambda root: shutil.copyfile(root / "train/cat/1.png", root / "train/cat/0.png"),
    ],
)
def test_cache_sees_what_comes_goes_and_is_renamed(change, tmp_path):
    source = write("folder", tmp_path, files())
    load(source)
    change(source)
    got, want = load(source), read_images(source, "train")
    assert got[2] == want[2]
    assert all(torch.equal(a, b) for a, b in zip(got[:2], want[:2], strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "train/cat/.DS_Store").write_bytes(b"x"),
        lambda root: (root / "train/.ipynb_checkpoints").mkdir(),
        lambda root: (root / "train/cat/.#0.png").symlink_to("user@host.1234"),
        lambda root: (root / "run.log").write_bytes(b"x"),
        lambda root: (root / "test/cat/0.png").write_bytes(png(200)),
        lambda root: (root / "loop").symlink_to("."),
    ],
)
def test_what_is_not_read_does_not_matter_to_the_cache(change, tmp_path, decoded):
    source = write("folder", tmp_path, files())
    load(source)
    change(source)
    load(source)
    assert len(decoded) == 4


def test_folder_that_leads_to_itself_is_walked_once(tmp_path):
    source = write("folder", tmp_path, files())
    (source / "train" / "cat" / "loop").symlink_to("..")
    with pytest.raises(ValueError, match="train/cat/loop"):
        load(source)


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_source_that_changes_while_it_is_read_is_refused_and_not_kept(kind, tmp_path, cache):
    source = write(kind, tmp_path, files())

    def make():
        images = read_images(source, "train")
        os.utime(source / "train/cat/0.png" if kind == "folder" else source)
        return images

    with pytest.raises(ValueError, match=rf"{source} changed while it was read"):
        cached(source, "train", make)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_part_and_size_are_not_taken_for_another_part(tmp_path):
    source = write("folder", tmp_path, {"a/cat/0.png": png(1), "a-4/cat/0.png": png(2, (6, 6))})
    for part, size, shape in (("a", 4, 4), ("a-4", None, 6), ("a-4", 4, 4), ("a", None, (3, 4))):
        images = cached(source, part, lambda p=part, s=size: read_images(source, p, s), size)[0]
        assert images[0, 0, 0, 0] == (1 if part == "a" else 2)
        assert images.shape[2:] == (shape if isinstance(shape, tuple) else (shape, shape))


def test_part_with_slashes_stays_in_the_cache_folder(tmp_path, cache):
    source = write("folder", tmp_path, {"x/y/cat/0.png": png(1)})
    for part in ("x/y", "x/../x/y", str(source / "x" / "y")):
        assert load(source, part)[0][0, 0, 0, 0] == 1
    assert {path.parent for path in tmp_path.rglob("*.pt")} == {cache}


def test_file_of_an_older_version_is_not_taken(tmp_path, decoded, monkeypatch):
    source = write("tgz", tmp_path, files())
    monkeypatch.setattr(module, "_FORMAT", 1)
    load(source)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load(source)
    assert len(list((tmp_path / "cache" / "minilearn").iterdir())) == 2


def test_sources_of_one_name_in_two_places_are_two(tmp_path, decoded):
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        source = write("tgz", tmp_path / name, {"train/cat/0.png": png(value)})
        os.utime(source, (1, 1))
        assert load(source)[0][0, 0, 0, 0] == value
    assert len(decoded) == 2


def test_failure_leaves_no_file_in_the_cache(tmp_path, cache):
    source = write("tgz", tmp_path, files() | {"train/dog/1.png": b"broken"})
    with pytest.raises(ValueError, match="is broken"):
        load(source)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_write_that_breaks_off_leaves_no_file_in_the_cache(tmp_path, cache, monkeypatch):
    def save(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    source = write("tgz", tmp_path, files())
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left on device"):
        load(source)
    assert list(cache.iterdir()) == []


def test_source_is_only_read(tmp_path):
    source = write("folder", tmp_path, files())
    paths = [source, *source.rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in paths}
    load(source)
    assert {path: path.stat().st_mtime_ns for path in [source, *source.rglob("*")]} == before


def test_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        load(write("tgz", tmp_path, files()))


@pytest.mark.parametrize("share", [0, 0.5])
def test_cache_file_that_is_cut_short_is_named(tmp_path, cache, share):
    source = write("tgz", tmp_path, files())
    load(source)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{path}.*damaged \(.*\); delete"):
        load(source)
