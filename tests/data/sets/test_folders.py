import pytest
import torch
from toolbox import png

from minilearn import image_folder
from minilearn.data import Normalize
from minilearn.data.sets import decoding

pytestmark = pytest.mark.usefixtures("cache")

PLAIN = {"normalize": Normalize((0.0,) * 3, (1 / 255,) * 3), "augment": ()}  # the bytes, as floats


def write(folder, train=("a", "b"), val=("a", "b"), n=2, size=(6, 6)):
    """Write images of one value each: 0, 1, ... for train, 100, 101, ... for val."""
    for part, names, first in (("train", train, 0), ("val", val, 100)):
        (folder / part).mkdir(parents=True)
        for i, name in enumerate(names):
            (folder / part / name).mkdir()
            for j in range(n):
                (folder / part / name / f"{j}.png").write_bytes(png(first + i * n + j, size))
    return folder


def test_targets_are_the_folders_in_the_order_of_their_names(tmp_path):
    dls = image_folder(write(tmp_path / "set", train=("b", "a", "c"), val=("c", "a", "b")), bs=10, **PLAIN)
    assert dls.classes == ("a", "b", "c")
    assert dls.source == "set"
    values = {}
    for xb, yb in (*dls.train, *dls.valid):
        assert (xb.shape[1:], xb.dtype, yb.dtype) == ((3, 6, 6), torch.float32, torch.int64)
        values.update(zip(xb[:, 0, 0, 0].round().int().tolist(), yb.tolist(), strict=True))
    assert values == {0: 1, 1: 1, 2: 0, 3: 0, 4: 2, 5: 2, 100: 2, 101: 2, 102: 0, 103: 0, 104: 1, 105: 1}


def test_validation_may_lack_a_class_and_targets_stay_those_of_training(tmp_path):
    dls = image_folder(write(tmp_path / "set", train=("a", "b", "c"), val=("c",)), **PLAIN)
    assert [yb.tolist() for _, yb in dls.valid] == [[2, 2]]


def test_images_are_brought_to_the_size_and_kept_for_each(tmp_path, cache):
    write(tmp_path / "set", size=(12, 9))
    for size in (4, 5, None):
        xb, _ = next(iter(image_folder(tmp_path / "set", size, **PLAIN).train))
        assert xb.shape[2:] == ((size, size) if size else (9, 12))
    assert len(list(cache.iterdir())) == 6


def test_only_training_is_augmented_and_shuffled(tmp_path):
    dls = image_folder(write(tmp_path / "set"), seed=3)
    assert (len(dls.train.augment), len(dls.valid.augment)) == (3, 1)
    assert (dls.train.shuffle, dls.valid.shuffle, dls.train.seed) == (True, False, 3)


def test_second_time_nothing_is_decoded(tmp_path, monkeypatch):
    image_folder(write(tmp_path / "set"), 4)
    monkeypatch.setattr(decoding, "rgb_pixels", None)
    assert image_folder(tmp_path / "set", 4).classes == ("a", "b")


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"train": ("a",), "val": ("a",)}, r"set: train.*class.*two"),
        ({"val": ("a", "cow")}, r"set: val.*cow.*a, b"),
        ({"val": ()}, r"set.*val/<class>/.*.jpg"),
    ],
)
def test_classes_that_cannot_be_meant_are_refused(tmp_path, kwargs, said):
    with pytest.raises(ValueError, match=said):
        image_folder(write(tmp_path / "set", **kwargs))


def test_parts_of_two_sizes_are_refused(tmp_path):
    write(tmp_path / "set")
    for path in (tmp_path / "set" / "val").glob("*/*"):
        path.write_bytes(png(1, (7, 6)))
    with pytest.raises(ValueError, match=r"set.*train.*6x6.*val.*7x6.*size="):
        image_folder(tmp_path / "set")
    assert image_folder(tmp_path / "set", size=6).classes == ("a", "b")


@pytest.mark.parametrize("size", [0, 2.5])
def test_size_is_checked(tmp_path, size):
    with pytest.raises(ValueError, match=rf"size={size}.*whole number.*>= 1"):
        image_folder(write(tmp_path / "set"), size)


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        image_folder(tmp_path / "nowhere")
