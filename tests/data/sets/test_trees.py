"""A folder and an archive of it give the same images, or the same refusal."""

import io
import os
import random
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from toolbox import png, write_tar_of

from minilearn import image_folder
from minilearn.data.sets import archives, trees
from minilearn.data.sets.decoding import read_images

pytestmark = pytest.mark.usefixtures("cache")

PLAIN = {"train/cat/0.png": 1, "train/cat/1.png": 2, "train/dog/0.png": 3}
PLAIN |= {"val/cat/0.png": 4, "val/dog/0.png": 5}
NFC, NFD = "caf\u00e9", "cafe\u0301"
KINDS = pytest.mark.parametrize("kind", ["folder", "tar", "tgz"])


class To(str):
    """What a symbolic link leads to."""


def build(root, content):
    """Make a folder of grey images (int), other files (bytes), links (To) and empty folders (None)."""
    for name, what in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            path.mkdir()
        elif isinstance(what, To):
            path.symlink_to(what)
        else:
            path.write_bytes(png(what) if isinstance(what, int) else what)
    return root


def source_of(kind, tmp_path, content):
    root = build(tmp_path / "set", content)
    if kind == "folder":
        return root
    with tarfile.open(tmp_path / f"set.{kind}", "w:gz" if kind == "tgz" else "w") as tar:
        tar.add(root, root.name)
    return tmp_path / f"set.{kind}"


def read(source, part="train"):
    images, targets, classes, _ = read_images(source, part)
    return classes, targets.tolist(), images[:, 0, 0, 0].tolist()


REG, LNK, HARD, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
CAT = ("set/train/cat/0.png", REG, png(1))
DOG = ("set/train/dog/0.png", REG, png(3))

# What is taken ----------------------------------------------------------------------------------------

AS_PLAIN = {
    "hidden class": {"train/.ipynb_checkpoints/0-checkpoint.png": 9},
    "hidden class that is no folder": {"train/.DS_Store": b"x"},
    "hidden folder in a class": {"train/cat/.ipynb_checkpoints/0-checkpoint.png": 9},
    "hidden file in a class": {"train/cat/._0.png": b"x", "train/dog/.directory": b"x"},
    "hidden part": {".train/cow/0.png": 9, ".git/train/cow/0.png": 9},
    "hidden link to nothing": {"train/cat/.#0.png": To("user@host.1234"), "train/.link": To("nowhere")},
    "traces of a Mac's zip": {"__MACOSX/set/train/cat/._0.png": b"x"},
    "file beside the classes": {"train/labels.csv": b"x", "train/cow.png": 9, "readme.md": b"x"},
    "link to a file beside the classes": {"labels.csv": b"x", "train/labels.csv": To("../labels.csv")},
    "folder of other depth": {"test/0.png": 9, "extra/cow/much/deeper/0.png": 9},
}


@KINDS
@pytest.mark.parametrize("more", AS_PLAIN)
def test_what_is_not_of_the_set_changes_no_class_target_or_image(kind, more, tmp_path):
    source = source_of(kind, tmp_path, PLAIN | AS_PLAIN[more])
    assert read(source) == (("cat", "dog"), [0, 0, 1], [1, 2, 3])
    assert read(source, "val") == (("cat", "dog"), [0, 1], [4, 5])


POOL = {"pool/a.png": 7, "pool/b.png": To("a.png"), "door": To("pool")}
LINKED = {  # and the classes and values that come
    "image": ({"train/dog/1.png": To("../../pool/a.png")}, "cat dog", [1, 2, 3, 7]),
    "image by two links": ({"train/dog/1.png": To("../../pool/b.png")}, "cat dog", [1, 2, 3, 7]),
    "image through a linked folder": ({"train/dog/1.png": To("../../door/a.png")}, "cat dog", [1, 2, 3, 7]),
    "image up and down": ({"train/dog/1.png": To("./../cat/.././../pool//a.png")}, "cat dog", [1, 2, 3, 7]),
    "image of another class": ({"train/dog/1.png": To("../cat/0.png")}, "cat dog", [1, 2, 3, 1]),
    "image of another part": ({"train/dog/1.png": To("../../val/cat/0.png")}, "cat dog", [1, 2, 3, 4]),
    "class": ({"train/eel": To("../pool")}, "cat dog eel", [1, 2, 3, 7, 7]),
    "class by two links": ({"train/eel": To("../door")}, "cat dog eel", [1, 2, 3, 7, 7]),
    "class from another part": ({"train/eel": To("../val/cat")}, "cat dog eel", [1, 2, 3, 4]),
    "first class": ({"train/ant": To("../pool")}, "ant cat dog", [7, 7, 1, 2, 3]),
}


@KINDS
@pytest.mark.parametrize("case", LINKED)
def test_links_are_followed(kind, case, tmp_path):
    more, names, want = LINKED[case]
    classes, targets, values = read(source_of(kind, tmp_path, PLAIN | POOL | more))
    assert (classes, values) == (tuple(names.split()), want)
    assert sorted(targets) == targets
    assert len(set(targets)) == len(classes)


@KINDS
def test_whole_part_may_be_a_link(kind, tmp_path):
    source = source_of(kind, tmp_path, {**PLAIN, "pool/cow/0.png": 8, "test": To("pool")})
    assert read(source, "test") == (("cow",), [0], [8])


def test_hard_links_in_an_archive_are_followed(tmp_path):
    link = ("set/train/dog/1.png", HARD, "set/train/cat/0.png")
    also = ("set/train/eel/1.png", LNK, "../dog/1.png")
    source = write_tar_of(tmp_path / "set.tar", CAT, DOG, link, also)
    assert read(source) == (("cat", "dog", "eel"), [0, 1, 1, 2], [1, 3, 1, 1])


def test_archive_of_a_folder_with_hard_links_gives_what_the_folder_gives(tmp_path):
    root = build(tmp_path / "set", PLAIN)
    os.link(root / "train/cat/0.png", root / "train/dog/9.png")
    want = read(root)
    assert want == (("cat", "dog"), [0, 0, 1, 1], [1, 2, 3, 1])
    assert read(source_of("tgz", tmp_path, {})) == want


def test_of_two_members_of_one_name_the_last_counts(tmp_path):
    source = write_tar_of(tmp_path / "set.tar", CAT, DOG, ("set/train/cat/0.png", REG, png(9)))
    assert read(source) == (("cat", "dog"), [0, 1], [9, 3])
    archives.unpack(source, tmp_path / "out")
    assert read(tmp_path / "out" / "set") == (("cat", "dog"), [0, 1], [9, 3])


@pytest.mark.parametrize(
    "top", ["", "./", "a/b/set/", "/home/me/set/", "home/me/.fastai/set/", "train/", "val/"]
)
def test_set_is_found_at_any_depth_of_an_archive(top, tmp_path):
    members = [(f"{top}{name}", REG, png(value)) for name, value in PLAIN.items()]
    source = write_tar_of(tmp_path / "set.tar", *members)
    assert read(source) == (("cat", "dog"), [0, 0, 1], [1, 2, 3])
    assert read(source, "val") == (("cat", "dog"), [0, 1], [4, 5])


@KINDS
def test_part_may_be_a_path(kind, tmp_path):
    source = source_of(kind, tmp_path, {f"images/{name}": value for name, value in PLAIN.items()})
    assert read(source, "images/val") == (("cat", "dog"), [0, 1], [4, 5])
    dls = image_folder(source, parts=("images/train", "images/val"))
    assert dls.classes == ("cat", "dog")


# What is refused --------------------------------------------------------------------------------------

REFUSED = {
    "link to nothing": ({"train/cat/2.png": To("gone.png")}, "train/cat/2.png.*link to gone.png"),
    "class that links to nothing": ({"train/eel": To("../pool/eel")}, "train/eel.*link to ../pool/eel"),
    "link to itself": ({"train/cat/2.png": To("2.png")}, "train/cat/2.png.*link to 2.png"),
    "links in a circle": ({"train/eel": To("fox"), "train/fox": To("eel")}, "train/eel.*link to fox"),
    "link to a folder": ({"train/cat/2.png": To("../dog")}, "train/cat/2.png.*folder"),
    "folder in a class": ({"train/cat/more/0.png": 9}, "train/cat/more.*folder.*move"),
    "folder named like an image": ({"train/cat/2.png/0.png": 9}, "train/cat/2.png.*folder"),
    "folder above as a class": ({"train/eel": To("..")}, "train/eel/(train|val).*folder"),
    "other file": ({"train/cat/notes.txt": b"x"}, "train/cat/notes.txt.*jpg"),
    "file without suffix": ({"train/cat/jpg": b"x"}, "train/cat/jpg.*jpg"),
    "archive in a class": ({"train/cat/more.zip": b"x"}, "train/cat/more.zip"),
    "empty image": ({"train/cat/2.png": b""}, "train/cat/2.png.*broken"),
    "link to an empty image": (
        {"pool/a": b"", "train/cat/2.png": To("../../pool/a")},
        "train/cat/2.png.*broken",
    ),
    "empty class": ({"train/eel": None}, "train/eel.*no image"),
    "class of hidden files": ({"train/eel/.0.png": 9}, "train/eel.*no image"),
}


@KINDS
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_name(kind, case, tmp_path):
    more, named = REFUSED[case]
    source = source_of(kind, tmp_path, PLAIN | more)
    with pytest.raises(ValueError, match=rf"{source}: {named}"):
        read_images(source, "train")
    with pytest.raises(ValueError, match=rf"{source}: {named}"):
        image_folder(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@KINDS
@pytest.mark.parametrize("name", ["train/cat/2.png", "train/eel", "train/cat/2.png by a link"])
def test_named_pipe_is_refused_and_not_waited_for(kind, name, tmp_path):
    root = build(tmp_path / "set", PLAIN)
    if name.endswith("link"):
        name = name.split()[0]
        (root / "pool").mkdir()
        os.mkfifo(root / "pool" / "pipe")
        (root / name).symlink_to("../../pool/pipe")
    else:
        os.mkfifo(root / name)
    source = source_of(kind, tmp_path, {})
    with pytest.raises(ValueError, match=rf"{source}: {name}.*named pipe"):
        image_folder(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_as_the_source_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "set.tgz")
    with pytest.raises(ValueError, match=r"set.tgz.*named pipe"):
        image_folder(tmp_path / "set.tgz")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_link_to_a_device_is_refused(tmp_path):
    source = source_of("folder", tmp_path, PLAIN | {"train/cat/2.png": To("/dev/zero")})
    with pytest.raises(ValueError, match=r"train/cat/2.png.*device"):
        image_folder(source)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V"])
def test_special_member_is_refused(kind, tmp_path):
    source = write_tar_of(tmp_path / "set.tar", CAT, DOG, ("set/train/cat/2.png", kind, ""))
    with pytest.raises(ValueError, match=r"set.tar: train/cat/2.png"):
        image_folder(source)


OUT = {
    "link out": (("set/train/cat/2.png", LNK, "../../../../secret.png"), "train/cat/2.png.*secret"),
    "absolute link": (("set/train/cat/2.png", LNK, "/etc/hostname"), "train/cat/2.png.*/etc/hostname"),
    "hard link out": (("set/train/cat/2.png", HARD, "../secret.png"), "train/cat/2.png.*secret"),
    "class out": (("set/train/eel", LNK, "../../.."), "train/eel.*link"),
    "name out": (("../secret.png", REG, b"x"), "'../secret.png'"),
    "name out and back": (("set/../set/train/cat/2.png", REG, png(1)), r"'set/\.\./set/train/cat/2.png'"),
    "without a name": (("", REG, b"x"), ".*''"),
    "in a file": (("set/train/cat/0.png/x", REG, b"x"), "'set/train/cat/0.png/x'"),
    "folder over a file": (("set/train/cat/0.png", DIR, ""), "'set/train/cat/0.png'"),
    "file over a folder": (("set/train/cat", REG, b"x"), "'set/train/cat'"),
}


@pytest.mark.parametrize("case", OUT)
def test_member_that_would_lie_elsewhere_is_refused_with_its_name(case, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(9))
    member, named = OUT[case]
    source = write_tar_of(tmp_path / "set.tar", CAT, DOG, member)
    with pytest.raises(ValueError, match=rf"set.tar.* {named}"):
        read_images(source, "train")


def test_member_behind_a_link_is_refused(tmp_path):
    members = [("set/pool", DIR, ""), ("set/train/eel", LNK, "../pool"), ("set/train/eel/0.png", REG, png(1))]
    source = write_tar_of(tmp_path / "set.tar", CAT, DOG, *members)
    with pytest.raises(ValueError, match=r"set.tar: 'set/train/eel/0.png'.*'eel'"):
        read_images(source, "train")


def test_several_sets_in_one_archive_are_refused(tmp_path):
    source = write_tar_of(tmp_path / "set.tar", CAT, DOG, ("old/train/cat/0.png", REG, png(1)))
    with pytest.raises(ValueError, match=r"set.tar.*old/train and set/train"):
        read_images(source, "train")


@pytest.mark.parametrize(
    "other", ["set/more/train/cow/0.png", "more/set/train/cow/0.png", "set/cat/train/cow/0.png"]
)
def test_folder_of_the_same_name_further_down_is_not_the_part(other, tmp_path):
    source = write_tar_of(tmp_path / "set.tar", (other, REG, png(9)), CAT, DOG)
    assert read(source) == (("cat", "dog"), [0, 1], [1, 3])


@KINDS
def test_class_may_have_the_name_of_the_part(kind, tmp_path):
    source = source_of(kind, tmp_path, PLAIN | {"train/train/0.png": 8, "val/train/0.png": 9})
    assert read(source) == (("cat", "dog", "train"), [0, 0, 1, 2], [1, 2, 3, 8])
    assert read(source, "val") == (("cat", "dog", "train"), [0, 1, 2], [4, 5, 9])


@pytest.mark.parametrize("n_bytes", [1536, 2048, 3072, 3072 + 300])
def test_tar_that_is_cut_between_members_is_refused(n_bytes, tmp_path):
    source = write_tar_of(tmp_path / "set.tar", CAT, DOG, ("set/train/eel/0.png", REG, png(1)))
    source.write_bytes(source.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=r"set.tar is cut short"):
        read_images(source, "train")


def test_second_archive_behind_the_first_is_refused(tmp_path):
    first = write_tar_of(tmp_path / "first", CAT).read_bytes()
    (tmp_path / "set.tar").write_bytes(first + write_tar_of(tmp_path / "second", DOG).read_bytes())
    with pytest.raises(ValueError, match=r"set.tar has a second archive"):
        read_images(tmp_path / "set.tar", "train")


def test_zip_is_refused_with_what_to_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as parts:
        parts.writestr("set/train/cat/0.png", png(1))
    with pytest.raises(ValueError, match=r"set.zip.*minilearn.data.unpack"):
        image_folder(tmp_path / "set.zip")


# What is too large ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["set/train/cat/2.png", "set/readme.txt", "set/train/.hidden"])
def test_bomb_is_refused_wherever_it_lies(name, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_ALWAYS", 2**20)
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
        for path, data in ((CAT[0], CAT[2]), (name, bytes(3 * 2**20))):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match=rf"set.tgz.*bomb.*'{name}'"):
        read_images(tmp_path / "set.tgz", "train")


@KINDS
def test_file_that_is_too_large_for_an_image_is_named_and_not_read(kind, tmp_path, monkeypatch):
    source = source_of(kind, tmp_path, PLAIN | {"train/cat/2.png": b"x" * 5000})
    monkeypatch.setattr(trees, "_MOST_BYTES", 4999)
    with pytest.raises(ValueError, match=r"train/cat/2.png has 5,000 bytes.*4,999"):
        read_images(source, "train")


def test_file_of_holes_is_named_and_not_read(tmp_path):
    source = source_of("folder", tmp_path, PLAIN)
    with open(source / "train/cat/2.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"train/cat/2.png has 1,099,511,627,776 bytes"):
        read_images(source, "train")


# What may not be read ---------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the permissions of POSIX")
@pytest.mark.parametrize("name", ["train/cat/0.png", "train/cat", "train"])
def test_what_may_not_be_read_is_named(name, tmp_path, monkeypatch):
    source = source_of("folder", tmp_path, PLAIN)
    if os.geteuid():
        (source / name).chmod(0)
    else:  # who may read all
        real = {"scandir": os.scandir, "open": io.open}

        def refuse(how):
            def call(path, *args, **kwargs):
                if str(path) == str(source / name):
                    raise PermissionError(13, "Permission denied", str(path))
                return real[how](path, *args, **kwargs)

            return call

        monkeypatch.setattr(os, "scandir", refuse("scandir"))
        monkeypatch.setattr(io, "open", refuse("open"))
    try:
        with pytest.raises(PermissionError, match=f"{source / name}'"):
            image_folder(source)
    finally:
        (source / name).chmod(0o700)


# Spellings --------------------------------------------------------------------------------------------

SPELLED = {
    "one in train, another in val": {f"train/{NFC}/0.png": 1, f"val/{NFD}/0.png": 3},
    "the other way round": {f"train/{NFD}/0.png": 1, f"val/{NFC}/0.png": 3},
    "both in train": {f"train/{NFC}/0.png": 1, f"train/{NFD}/0.png": 2, f"val/{NFD}/0.png": 3},
    "both in val": {f"train/{NFC}/0.png": 1, f"val/{NFC}/0.png": 3, f"val/{NFD}/1.png": 4},
}


@KINDS
@pytest.mark.parametrize("case", SPELLED)
def test_two_spellings_of_a_name_are_one_class(kind, case, tmp_path):
    more = {"train/dog/0.png": 50, "val/dog/0.png": 60}
    dls = image_folder(source_of(kind, tmp_path, more | SPELLED[case]), names={NFD: "coffee"})
    assert dls.classes == ("coffee", "dog")
    n = [sum(name.startswith(part) for name in SPELLED[case]) for part in ("train", "val")]
    assert dls.train.targets.tolist() == [0] * n[0] + [1]
    assert dls.valid.targets.tolist() == [0] * n[1] + [1]
    assert dls.train.tensors[0][-1, 0, 0, 0] == 50


@KINDS
@pytest.mark.parametrize("name", [NFC, NFD])
@pytest.mark.parametrize("asked", [NFC, NFD])
def test_part_is_found_in_either_spelling(kind, name, asked, tmp_path):
    source = source_of(kind, tmp_path, PLAIN | {f"{name}/cat/0.png": 8})
    assert read(source, asked) == (("cat",), [0], [8])


@KINDS
def test_part_that_is_found_by_both_spellings_is_read_once(kind, tmp_path):
    source = source_of(kind, tmp_path, PLAIN | {f"{NFC}/cat/0.png": 8, NFD: To(NFC)})
    assert [read(source, name) for name in (NFC, NFD)] == [(("cat",), [0], [8])] * 2


@KINDS
def test_order_does_not_depend_on_the_spelling(kind, tmp_path):
    orders = []
    for i, names in enumerate(((NFC, "cafz"), (NFD, "cafz"))):
        (tmp_path / str(i)).mkdir()
        content = {f"train/{NFC}/{name}.png": 10 * j for j, name in enumerate(names)}
        orders.append(read(source_of(kind, tmp_path / str(i), content | {f"train/{names[0]}s/0.png": 99})))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("name", ["ﬁsh", "fish ", "Cat", "猫", "caf\udce9", "a b"])
def test_other_names_stay_as_they_are(name, tmp_path):
    source = build(tmp_path / "set", PLAIN | {f"train/{name}/0.png": 9, "train/fish/0.png": 8})
    classes = image_folder(source).classes
    assert classes == tuple(sorted(["cat", "dog", "fish", name]))
    assert image_folder(source).classes == classes  # from the cache


def test_first_import_of_rich_draws_no_random_number(tmp_path, unimported):
    unimported("rich")
    before = random.getstate()
    with trees.tree_of(tmp_path, "train"):
        assert "rich.style" in sys.modules
    assert random.getstate() == before
