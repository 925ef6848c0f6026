"""Folders whose classes lie directly in them, which valid= splits into training and validation."""

import os
import random
import shutil
import tarfile
from contextlib import nullcontext

import pytest
import torch
from toolbox import StopCB, StoppedError, png
from torch import nn

from minilearn import CheckpointCB, Learner, image_folder
from minilearn.data import Normalize
from minilearn.data.sets import decoding

pytestmark = pytest.mark.usefixtures("cache")

PLAIN = {"normalize": Normalize((0.0,) * 3, (1 / 255,) * 3), "augment": ()}  # the bytes, as floats
# int.from_bytes(blake2b(b"cat/0.png", digest_size=8).digest(), "big") / 2**64 is 0.203, that of cat/5.png
# 0.114, of dog/3.png 0.229, of dog/5.png 0.087, of dog/9.png 0.058; those of the others are above 0.25.
FOR_VALIDATION = {"cat": {0, 5}, "dog": {3, 5, 9}}


def write(folder, images=(("cat", range(10)), ("dog", range(10))), size=(4, 3)):
    """Write <class>/<number>.png, each image of one value: its number, and 100 more for each class."""
    for i, (name, numbers) in enumerate(images):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in numbers:
            (folder / name / f"{n}.png").write_bytes(png(100 * i + n, size))
    return folder


def values(loader):
    """Return the numbers of each class's images."""
    found = {}
    for value, target in zip(loader.tensors[0][:, 0, 0, 0].tolist(), loader.tensors[1].tolist(), strict=True):
        found.setdefault(target, set()).add(value - 100 * target)
    return found


def tar_of(folder, mode="w:gz", top=None):
    path = folder.with_name(f"{folder.name}.tgz")
    with tarfile.open(path, mode) as tar:
        tar.add(folder, folder.name if top is None else top)
    return path


def test_each_class_is_split_by_the_digest_of_class_and_name(tmp_path):
    dls = image_folder(write(tmp_path / "pictures"), valid=0.25, **PLAIN)
    assert dls.classes == ("cat", "dog")
    assert dls.source == "pictures, valid=0.25"
    assert values(dls.valid) == {0: {0, 5}, 1: {3, 5, 9}}
    assert values(dls.train) == {0: set(range(10)) - {0, 5}, 1: set(range(10)) - {3, 5, 9}}
    assert (dls.train.shuffle, dls.valid.shuffle) == (True, False)


def test_neither_seed_nor_order_on_disk_nor_other_classes_nor_the_place_matter(tmp_path):
    write(tmp_path / "pictures")
    rng = random.Random(0)
    names = [(name, n) for name in ("dog", "cat", "eel", "ant") for n in range(10)]
    rng.shuffle(names)
    for name, n in names:
        write(tmp_path / "elsewhere" / "more", [(name, [n])])
    for seed, source in enumerate((tmp_path / "pictures", tmp_path / "elsewhere" / "more")):
        dls = image_folder(source, valid=0.25, seed=seed, **PLAIN)
        files = zip(*dls.valid.tensors, strict=True)
        found = {(dls.classes[target], int(image[0, 0, 0]) % 100) for image, target in files}
        for name, numbers in FOR_VALIDATION.items():
            assert {n for kind, n in found if kind == name} == numbers


def test_an_image_stays_in_its_half_when_others_are_added(tmp_path):
    folder = write(tmp_path / "pictures")
    before = image_folder(folder, valid=0.25, **PLAIN)
    dls = image_folder(write(folder, [("cat", range(10, 60)), ("cow", range(20))]), valid=0.25, **PLAIN)
    assert dls.classes == ("cat", "cow", "dog")
    cats = {name: values(getattr(dls, name))[0] for name in ("train", "valid")}
    assert len(cats["train"]) + len(cats["valid"]) == 60
    assert {n for n in cats["valid"] if n < 10} == values(before.valid)[0]
    assert {n for n in cats["train"] if n < 10} == values(before.train)[0]


@pytest.mark.parametrize(("valid", "want"), [(0.01, 5), (0.99, 2)])
def test_a_class_has_an_image_in_each_half_whatever_the_share(tmp_path, valid, want):
    dls = image_folder(write(tmp_path / "pictures"), valid=valid, **PLAIN)
    small, large = (dls.valid, dls.train) if valid < 0.5 else (dls.train, dls.valid)
    assert values(small)[0] == {want}  # of the smallest number, or of the largest
    assert len(values(large)[0]) == 9


def test_both_spellings_of_a_name_are_split_alike(tmp_path):
    halves = []
    for spelling in ("caf\u00e9", "cafe\u0301"):  # a Mac's is the second
        images = [(spelling, range(20)), ("tea", range(20))]
        dls = image_folder(write(tmp_path / str(len(halves)) / "x", images), valid=0.3, **PLAIN)
        halves.append((dls.classes, values(dls.valid)))
    assert halves[0] == halves[1]


@pytest.mark.parametrize("top", [None, "", "./", "home/me/pictures"])
def test_an_archive_is_split_like_its_folder(tmp_path, top):
    folder = write(tmp_path / "pictures")
    (folder / "readme.png").write_bytes(png(9))  # beside the classes
    dls = image_folder(tar_of(folder, top=top), valid=0.25, **PLAIN)
    assert dls.classes == ("cat", "dog")
    assert values(dls.valid) == {0: {0, 5}, 1: {3, 5, 9}}


def test_class_may_have_the_name_of_a_part(tmp_path):
    dls = image_folder(write(tmp_path / "x", [("car", range(9)), ("train", range(9))]), valid=0.3)
    assert dls.classes == ("car", "train")
    dls = image_folder(tar_of(tmp_path / "x"), valid=0.3)
    assert dls.classes == ("car", "train")


def test_second_time_nothing_is_decoded_and_each_share_has_files_of_its_own(tmp_path, cache, monkeypatch):
    folder = write(tmp_path / "pictures")
    image_folder(folder, 4, valid=0.25)
    assert sorted(path.name.rpartition("-")[0] for path in cache.iterdir()) == [
        "pictures-train-0_25-4",
        "pictures-val-0_25-4",
    ]
    image_folder(folder, 4, valid=0.5)
    assert len(list(cache.iterdir())) == 4
    monkeypatch.setattr(decoding, "rgb_pixels", None)
    assert len(image_folder(folder, 4, valid=0.25).valid.targets) == 5
    shutil.rmtree(folder / "dog")
    write(folder, [("cow", range(4))])
    with pytest.raises(TypeError):  # it would decode
        image_folder(folder, 4, valid=0.25)


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("valid", [0, 1, 20, -0.1, True, "0.2"])
def test_share_is_inside_0_and_1(tmp_path, valid):
    with pytest.raises(ValueError, match=rf"valid={valid!r}.*0 < valid < 1"):
        image_folder(write(tmp_path / "x"), valid=valid)


def test_names_of_parts_and_a_share_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match=r"parts=\('a', 'b'\).*valid=0.2"):
        image_folder(write(tmp_path / "x"), valid=0.2, parts=("a", "b"))


def write_split(folder, parts=("train", "val")):
    for part in parts:
        write(folder / part)
    return folder


@pytest.mark.parametrize("parts", [("train", "val"), ("val",), ("train",)])
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_folder_that_is_split_already_is_not_split_again(tmp_path, kind, parts):
    source = write_split(tmp_path / "x", parts)
    source = source if kind == "folder" else tar_of(source)
    with pytest.raises(ValueError, match=rf"x.*split already.*{parts[0]}/.*valid=0.2.*leave valid out"):
        image_folder(source, valid=0.2)


REFUSED = {
    "class of one": ([("cat", range(3)), ("cow", [1])], r"x: cow has one image.*two or more"),
    "empty class": ([("cat", range(3)), ("cow", [])], r"x: cow has no image.*two or more"),
    "one class": ([("cat", range(3))], r"x: one class, cat.*two or more"),
    "no class": ([], r"x has no image in <class>/.*\.jpg"),
    "parts": ([("train", range(3)), ("test", range(3))], r"x: .*test/, train/.*a folder for each class"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_split_is_refused(tmp_path, case):
    images, said = REFUSED[case]
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match=said):
        image_folder(write(tmp_path / "x", images), valid=0.2)


def test_other_files_and_folders_among_the_images_are_refused_with_their_names(tmp_path):
    folder = write(tmp_path / "x")
    (folder / "cat" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"x: cat/notes.txt is not an image"):
        image_folder(folder, valid=0.2)
    os.remove(folder / "cat" / "notes.txt")
    (folder / "cat" / "7.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x: cat/7.png is broken"):
        image_folder(folder, valid=0.2)


def test_archive_with_several_folders_of_classes_is_refused(tmp_path):
    write(tmp_path / "x" / "a")
    write(tmp_path / "x" / "b")
    with pytest.raises(ValueError, match=r"several folders.*x/a and x/b"):
        image_folder(tar_of(tmp_path / "x"), valid=0.2)


# What is said without valid= --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_classes_that_lie_directly_in_a_folder_are_named_with_the_way_out(tmp_path, kind):
    write(tmp_path / "pictures", [(name, range(2)) for name in ("cat", "cow", "dog", "eel", "fox")])
    source = tmp_path / "pictures" if kind == "folder" else tar_of(tmp_path / "pictures")
    said = (
        r"pictures\S* has no image in train/<class>/.*cat/, cow/, dog/, eel/ and 1 more.*directly.*valid=0.2"
    )
    with pytest.raises(ValueError, match=said):
        image_folder(source)


def test_other_layouts_are_told_apart_from_it(tmp_path):
    write(tmp_path / "flat", [("train", range(2)), ("val", range(2))])
    with pytest.raises(ValueError, match=r"flat.*lie in train/, val/: expected a folder for each class"):
        image_folder(tmp_path / "flat")
    write_split(tmp_path / "half", ["train"])
    with pytest.raises(
        ValueError, match=r'half.*no image in val/.*image_folder\(".*half/train", valid=0.2\)'
    ):
        image_folder(tmp_path / "half")
    write(tmp_path, [("bare", range(2))])
    with pytest.raises(ValueError, match=r"bare.*Images lie directly in it"):
        image_folder(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare.*no image in <class>/"):
        image_folder(tmp_path / "bare", valid=0.2)


# Runs -------------------------------------------------------------------------------------------------


def learner(source, *cbs, **kwargs):
    torch.manual_seed(0)
    dls = image_folder(source, bs=4, seed=1, size=4, **kwargs)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    return Learner(model, dls, cbs=cbs, default_cbs=False, lr=0.01)


@pytest.mark.slow
def test_run_on_it_is_resumed_bit_for_bit(tmp_path):
    assert "bit for bit" in learner(write(tmp_path / "x"), valid=0.25).verify_resume(2)


@pytest.mark.slow
def test_run_is_resumed_on_a_folder_that_was_moved_and_not_with_other_images(tmp_path, recwarn):
    with pytest.raises(StoppedError):
        learner(
            write(tmp_path / "x"), CheckpointCB(tmp_path / "run", every_steps=1), StopCB(2), valid=0.25
        ).fit(2)
    (tmp_path / "x").rename(tmp_path / "y")
    write(tmp_path / "z", [("cat", range(1, 11)), ("dog", range(10))])
    for source, fails in (("z", True), ("y", False)):
        again = learner(tmp_path / source, CheckpointCB(tmp_path / "run"), valid=0.25)
        with pytest.raises(ValueError, match=r"n_samples=16.*15") if fails else nullcontext():
            again.fit(2, resume=True)
    assert again.n_epochs_trained == 2
    assert [str(warning.message) for warning in recwarn] == []
