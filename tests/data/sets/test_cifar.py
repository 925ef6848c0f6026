import hashlib
import pickle
import shutil
import socket
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from toolbox import mentions, png
from torchvision import datasets

from minilearn import cifar10
from minilearn.data import HorizontalFlip
from minilearn.data.sets import cifar, decoding
from minilearn.data.sets.cifar import CLASSES
from minilearn.data.sets.download import cache_folder, waiting_at_most

pytestmark = pytest.mark.usefixtures("no_data")

OFFICIAL = "cifar-10-batches-py"


def write_folder(root, n=1, classes=CLASSES, first=0):
    """Write images of one red value each: first, first + 1, ... for train, and 100 more for test."""
    for part, start in (("train", first), ("test", first + 100)):
        for i, name in enumerate(classes):
            for j in range(n):
                path = root / "cifar10" / part / name / f"{j}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(start + n * i + j, (32, 32)))
    return root


def write_archive(root, **kwargs):
    write_folder(root / "side", **kwargs)
    with tarfile.open(root / "cifar10.tgz", "w:gz") as tar:
        tar.add(root / "side" / "cifar10", "cifar10")
    shutil.rmtree(root / "side")
    return root


@pytest.fixture
def write_official(monkeypatch):
    """Write torchvision's pickled files with 2 images each, and have torchvision expect their checksums."""

    def write(root, first=0):
        folder = root / OFFICIAL
        folder.mkdir(parents=True)
        found = {}
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        for i, name in enumerate(names):
            rows = np.zeros((2, 3072), dtype=np.uint8)
            rows[:, :1024] = [[first + 2 * i], [first + 2 * i + 1]]  # red
            rows[:, 1024 + 32] = 77  # green, of the second row's first pixel
            found[name] = {"data": rows, "labels": [i, 9]}
        found["batches.meta"] = {"label_names": list(CLASSES)}
        sums = {}
        for name, entry in found.items():
            data = pickle.dumps(entry)
            (folder / name).write_bytes(data)
            sums[name] = hashlib.md5(data).hexdigest()
        monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
        monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
        monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
        return root

    return write


def reds(loader):
    return loader.tensors[0][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("write", [write_folder, write_archive])
def test_images_of_a_folder_or_archive_are_bytes_in_the_order_of_the_classes(tmp_path, write):
    dls = cifar10(bs=4, root=write(tmp_path / "data", n=2))
    images, targets = dls.train.tensors
    assert (images.shape, images.dtype) == ((20, 3, 32, 32), torch.uint8)
    assert reds(dls.train) == list(range(20))
    assert reds(dls.valid) == list(range(100, 120))
    assert targets.tolist() == [i // 2 for i in range(20)]
    assert dls.classes == CLASSES
    assert dls.source == f"CIFAR-10, JPEG-coded ({'cifar10' if write is write_folder else 'cifar10.tgz'})"
    assert all(f"/{CLASSES[i // 2]}/" in file for i, file in enumerate(dls.valid.files))


def test_torchvisions_files_are_read_pixel_by_pixel(tmp_path, write_official):
    dls = cifar10(root=write_official(tmp_path / "data"))
    images, targets = dls.train.tensors
    assert (images.shape, images.dtype, targets.dtype) == ((10, 3, 32, 32), torch.uint8, torch.int64)
    assert reds(dls.train) == list(range(10))
    assert reds(dls.valid) == [10, 11]
    assert targets.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert dls.valid.tensors[1].tolist() == [5, 9]
    assert (images[:, 1] == 77).nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 0]]
    assert dls.source == "CIFAR-10"
    assert dls.train.files is None


def test_batches_are_normalized_float_images(tmp_path):
    dls = cifar10(bs=4, root=write_folder(tmp_path / "data"))
    xb, yb = next(iter(dls.valid))
    assert (xb.shape, xb.dtype, yb.tolist()) == ((4, 3, 32, 32), torch.float32, [0, 1, 2, 3])
    # (pixel / 255 - mean) / std of red, green and blue
    expected = [(100 / 255 - 0.4914) / 0.2470, -0.4822 / 0.2435, (155 / 255 - 0.4465) / 0.2616]
    assert xb[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-5)


def test_only_training_images_are_shuffled_and_augmented(tmp_path):
    dls = cifar10(root=write_folder(tmp_path / "data"), seed=5)
    assert (dls.train.shuffle, dls.train.seed, dls.valid.shuffle) == (True, 5, False)
    names = [type(one).__name__ for one in dls.train.augment]
    assert names == ["Normalize", "RandomCrop", "HorizontalFlip"]
    assert dls.train.augment[1].padding == 4
    assert [type(one).__name__ for one in dls.valid.augment] == ["Normalize"]


def test_augmentation_can_be_given(tmp_path):
    dls = cifar10(root=write_folder(tmp_path / "data"), augment=[HorizontalFlip(0.1)])
    assert repr(dls.train.augment[1:]) == "(HorizontalFlip(p=0.1),)"


def test_data_are_kept_on_the_device(tmp_path):
    dls = cifar10(root=write_folder(tmp_path / "data"), device="meta")
    assert {t.device.type for t in (*dls.train.tensors, *dls.valid.tensors)} == {"meta"}


def test_images_are_decoded_once(tmp_path, monkeypatch):
    root = write_archive(tmp_path / "data")
    cifar10(root=root)
    monkeypatch.setattr(decoding, "rgb_pixels", None)
    assert reds(cifar10(root=root).train) == list(range(10))


def test_torchvisions_files_are_read_once(tmp_path, monkeypatch, write_official):
    root = write_official(tmp_path / "data")
    cifar10(root=root)
    monkeypatch.setattr(datasets, "CIFAR10", None)
    assert reds(cifar10(root=root).train) == list(range(10))


def test_images_are_read_again_when_the_archive_changes(tmp_path):
    root = write_archive(tmp_path / "data")
    cifar10(root=root)
    write_archive(root, first=50)
    assert reds(cifar10(root=root).train) == list(range(50, 60))


def test_other_classes_are_refused(tmp_path):
    root = write_folder(tmp_path / "data", classes=(*CLASSES[:9], "zebra"))
    with pytest.raises(ValueError, match=r"cifar10: train.*airplane, .*zebra.*CIFAR-10"):
        cifar10(root=root)


def test_missing_class_is_refused(tmp_path, cache):
    root = write_folder(tmp_path / "data")
    shutil.rmtree(root / "cifar10" / "test" / "cat")
    with pytest.raises(ValueError, match=r"cifar10: test.*airplane, automobile, bird, deer"):
        cifar10(root=root)
    assert not any("test" in path.name for path in cache.iterdir())


def test_empty_part_is_refused(tmp_path):
    root = write_folder(tmp_path / "data")
    shutil.rmtree(root / "cifar10" / "test")
    with pytest.raises(ValueError, match="test/<class>/"):
        cifar10(root=root)


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_broken_official_file_is_refused_with_advice(tmp_path, write_official, how, cache):
    root = write_official(tmp_path / "data")
    path = root / OFFICIAL / "data_batch_3"
    path.write_bytes(b"x") if how == "changed" else path.unlink()
    with pytest.raises(ValueError, match=rf"{OFFICIAL}.*broken \(.*delete"):
        cifar10(root=root)
    assert not cache.exists() or list(cache.iterdir()) == []


# Where it is looked -----------------------------------------------------------------------------------


def test_folder_is_looked_for_in_root_then_the_environment_then_the_cache(tmp_path, cache, monkeypatch):
    write_folder(cache, first=1)
    assert reds(cifar10().train)[0] == 1
    monkeypatch.setenv("MINILEARN_DATA", str(write_folder(tmp_path / "named", first=2)))
    assert reds(cifar10().train)[0] == 2
    assert reds(cifar10(root=write_folder(tmp_path / "root", first=3)).train)[0] == 3


def test_cache_is_used_when_the_named_folder_lacks_it(tmp_path, cache, monkeypatch):
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("MINILEARN_DATA", str(tmp_path / "named"))
    write_archive(cache, first=4)
    assert reds(cifar10().train)[0] == 4


def test_official_files_come_before_a_folder_and_that_before_an_archive(tmp_path, write_official):
    root = write_archive(tmp_path / "data", first=30)
    assert reds(cifar10(root=root).train)[0] == 30
    write_folder(root, first=20)
    assert reds(cifar10(root=root).train)[0] == 20
    write_official(root, first=10)
    assert reds(cifar10(root=root).train)[0] == 10


def test_root_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root='.*nowhere'"):
        cifar10(root=tmp_path / "nowhere")


def test_not_found_lists_what_was_tried(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("MINILEARN_DATA", str(tmp_path))
    places = f"{OFFICIAL}, cifar10, cifar10.tgz"
    tried = (f"{folder} ... {places}" for folder in (tmp_path, cache))
    message = " ... ".join(("CIFAR-10", *tried, "download=False", "MINILEARN_DATA", "root=", places))
    with pytest.raises(FileNotFoundError, match=mentions(message)):
        cifar10(download=False)


# Download ---------------------------------------------------------------------------------------------


def test_download_goes_to_the_cache_and_is_found_there_afterwards(
    tmp_path, cache, write_official, monkeypatch
):
    write_official(tmp_path / "server")
    calls = []

    def download(self):
        calls.append(socket.getdefaulttimeout())
        shutil.copytree(tmp_path / "server" / OFFICIAL, f"{self.root}/{OFFICIAL}")

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    assert reds(cifar10().train) == list(range(10))
    assert (cache / OFFICIAL).is_dir()
    assert reds(cifar10(download=False).train) == list(range(10))
    assert calls == [15]
    assert socket.getdefaulttimeout() is None
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["cifar", "cifar", "cifar"]


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("Dataset not found or corrupted."), TimeoutError()]
)
def test_download_that_fails_leaves_nothing_and_is_said(cache, monkeypatch, error):
    def download(self):
        with open(f"{self.root}/half.tar.gz", "w") as file:
            file.write("x")
        raise error

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    said = rf"{cache} \(.*{str(error).strip('<>') or 'TimeoutError'}"
    with pytest.raises(FileNotFoundError, match=said):
        cifar10()
    assert list(cache.iterdir()) == []


def test_folder_that_cannot_be_written_to_is_said_at_a_download(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match=r"file/minilearn \(.*Not a directory"):
        cifar10()


def test_cache_folder_is_that_of_the_system(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "minilearn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "minilearn"


def test_waiting_is_put_back_after_an_error():
    seen = []
    with pytest.raises(ZeroDivisionError), waiting_at_most(3):
        1 / (seen.append(socket.getdefaulttimeout()) or 0)
    assert seen == [3]
    assert socket.getdefaulttimeout() is None


def test_data_folder_is_only_read(tmp_path, cache):
    root = write_folder(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    cifar10(root=root)
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before
    assert cifar._PLACES[0] == OFFICIAL
