import io
import tarfile

import pytest
import torch
from PIL import Image
from toolbox import StopCB, StoppedError, at, png
from torch import nn

from minilearn import CheckpointCB, Learner, image_folder
from minilearn.data import Normalize, adapter_of
from minilearn.data.fingerprint import fingerprint
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


# Which file a sample is -------------------------------------------------------------------------------


def tar_of(folder):
    with tarfile.open(folder.with_name("set.tgz"), "w:gz") as tar:
        tar.add(folder, "home/set")
    return folder.with_name("set.tgz")


def red_of(file, source):
    """Return the red of an image that a loader says a sample is."""
    if source.is_dir():
        return Image.open(file).getpixel((0, 0))[0]
    with tarfile.open(source) as tar:
        return Image.open(io.BytesIO(tar.extractfile(file).read())).getpixel((0, 0))[0]


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("valid", [None, 0.4])
def test_files_have_the_order_of_the_samples(tmp_path, kind, valid):
    folder = write(tmp_path / "set", train=("b", "a"), n=5)
    folder = folder if valid is None else folder / "train"
    source = folder if kind == "folder" else tar_of(folder)
    for _ in ("decoded", "from the cache"):
        dls = image_folder(source, valid=valid, **PLAIN)
        for loader in (dls.train, dls.valid):
            reds = loader.tensors[0][:, 0, 0, 0].tolist()
            assert [red_of(file, source) for file in loader.files] == reds
    if valid is None:
        last = "val/b/4.png"
        assert dls.valid.files[-1] == (str(source / last) if kind == "folder" else f"home/set/{last}")


def test_files_of_a_source_given_relative_to_here_are_too(tmp_path, monkeypatch):
    write(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert image_folder("set").valid.files[0] == "set/val/a/0.png"
    monkeypatch.chdir(tmp_path / "set")
    assert image_folder(".").valid.files[0] == "val/a/0.png"


def learner(source, *cbs):
    torch.manual_seed(0)
    dls = image_folder(source, size=4, bs=4, seed=1, **PLAIN)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    return Learner(model, dls, cbs=cbs, default_cbs=False, lr=1e-6)


def test_files_of_a_shuffled_batch_are_found_by_its_index(tmp_path):
    seen = []

    def look(learn):
        files = [learn.dl.files[i] for i in learn.index]
        seen.append(([red_of(file, tmp_path) for file in files], learn.xb[:, 0, 0, 0].round().int().tolist()))

    learn = learner(write(tmp_path / "set", n=5), at("before_batch", look))
    learn.fit(2)
    assert all(files == batch for files, batch in seen)
    first_epoch = [red for _, batch in seen[:3] for red in batch]
    assert sorted(first_epoch) == list(range(10)) != first_epoch


def test_predictions_have_the_order_of_the_files(tmp_path):
    learn = learner(write(tmp_path / "set", n=5))
    with torch.no_grad():
        learn.model[1].weight.copy_(torch.eye(48)[:2])  # the first pixel is the first score
    for loader in (learn.dls.valid, adapter_of(learn.dls.train).in_order()):
        preds, targets = learn.predict(loader, with_targets=True)
        reds = [red_of(file, tmp_path) for file in loader.files]
        assert (preds[:, 0] - learn.model[1].bias[0]).round().int().tolist() == reds
        assert targets.tolist() == [0] * 5 + [1] * 5


def test_names_of_files_are_no_part_of_the_fingerprint_or_of_a_checkpoint(tmp_path, recwarn):
    folder = write(tmp_path / "set", n=5)
    before = learner(folder, CheckpointCB(tmp_path / "run", every_steps=1), StopCB(2))
    with pytest.raises(StoppedError):
        before.fit(2)
    path = folder / "train" / "b" / "4.png"
    path.rename(path.with_name("5.png"))  # still the last one
    after = learner(folder, CheckpointCB(tmp_path / "run"))
    assert after.dls.train.files != before.dls.train.files
    assert after.dls.train.state_dict() == before.dls.train.state_dict()
    prints = [fingerprint(learn.dls.adapters["train"]) for learn in (before, after)]
    assert prints[0] == prints[1]
    after.fit(2, resume=True)
    assert after.n_epochs_trained == 2
    assert [str(warning.message) for warning in recwarn] == []
    saved = b"".join(file.read_bytes() for file in (tmp_path / "run").glob("*"))
    assert b"0.png" not in saved
