from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from toolbox import mentions
from torchvision import datasets

from minilearn import fashion_mnist, mnist

pytestmark = pytest.mark.usefixtures("no_data")

FILES = {f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")}


def n_train(**kwargs):
    return len(fashion_mnist(**kwargs).train.targets)


def test_batches_are_float_images_and_integer_targets(tmp_path, write_idx):
    dls = fashion_mnist(bs=8, root=write_idx(tmp_path, n_train=20, n_valid=10))
    assert [xb.shape for xb, _ in dls["train"]] == [(8, 1, 28, 28), (8, 1, 28, 28), (4, 1, 28, 28)]
    xb, yb = next(iter(dls["eval"]))
    assert (xb.dtype, yb.dtype, yb.tolist()) == (torch.float32, torch.int64, [0, 1, 2, 3, 4, 5, 6, 7])


def test_only_the_training_set_is_shuffled(tmp_path, write_idx):
    dls = fashion_mnist(root=write_idx(tmp_path), seed=5)
    assert (dls.train.shuffle, dls.train.seed, dls.valid.shuffle) == (True, 5, False)


@pytest.mark.parametrize(
    ("load", "name", "black", "white"),
    # (0 - mean) / std and (1 - mean) / std; mean and std are 0.2860 and 0.3530, 0.1307 and 0.3081.
    [(fashion_mnist, "FashionMNIST", -0.810198, 2.022663), (mnist, "MNIST", -0.424213, 2.821487)],
)
def test_pixels_are_normalized_by_the_training_set(load, name, black, white, tmp_path, write_idx):
    xs, _ = load(root=write_idx(tmp_path, name)).valid.tensors
    assert xs[0].unique().tolist() == pytest.approx([black], abs=1e-6)
    assert xs[1].unique().tolist() == pytest.approx([white], abs=1e-6)


def test_fashion_mnist_has_names_of_classes(tmp_path, write_idx):
    assert fashion_mnist(root=write_idx(tmp_path)).classes[:3] == ("T-shirt/top", "Trouser", "Pullover")


def test_mnist_has_names_of_classes(tmp_path, write_idx):
    assert mnist(root=write_idx(tmp_path, "MNIST")).classes[-2:] == ("eight", "nine")


def test_data_are_kept_on_the_device(tmp_path, write_idx):
    dls = fashion_mnist(root=write_idx(tmp_path), device="meta")
    assert {t.device.type for t in (*dls.train.tensors, *dls.valid.tensors)} == {"meta"}


# Where it is looked -----------------------------------------------------------------------------------


def test_folder_is_looked_for_in_root_then_the_environment_then_the_cache(
    tmp_path, cache, write_idx, monkeypatch
):
    write_idx(cache, n_train=11)
    assert n_train() == 11
    monkeypatch.setenv("MINILEARN_DATA", str(write_idx(tmp_path / "named", n_train=12)))
    assert n_train() == 12
    assert n_train(root=write_idx(tmp_path / "root", n_train=13)) == 13


def test_cache_is_used_when_the_named_folder_lacks_the_set(tmp_path, cache, write_idx, monkeypatch):
    monkeypatch.setenv("MINILEARN_DATA", str(write_idx(tmp_path / "named", "MNIST")))
    write_idx(cache, n_train=11)
    assert n_train() == 11


def test_root_without_the_set_does_not_fall_back(tmp_path, cache, write_idx):
    write_idx(cache)
    (tmp_path / "root").mkdir()
    with pytest.raises(FileNotFoundError, match=r"root.FashionMNIST.raw \(.*train-images-idx3-ubyte\)"):
        fashion_mnist(root=tmp_path / "root", download=False)


def test_missing_root_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root='.*nowhere'"):
        fashion_mnist(root=tmp_path / "nowhere")


def test_nothing_found_lists_what_was_tried(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("MINILEARN_DATA", str(tmp_path / "named"))
    raws = (tmp_path / "named" / "MNIST" / "raw", cache / "MNIST" / "raw")
    tried = (f"{raw} ... train-images-idx3-ubyte" for raw in raws)
    message = " ... ".join(("MNIST", *tried, "download=False", "MINILEARN_DATA", "root=", "MNIST/raw"))
    with pytest.raises(FileNotFoundError, match=mentions(message)):
        mnist(download=False)


def test_first_missing_file_is_named(tmp_path, write_idx):
    (write_idx(tmp_path) / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte\)"):
        fashion_mnist(root=tmp_path, download=False)


def test_packed_files_which_torchvision_does_not_read_count_as_missing(tmp_path, write_idx):
    for file in (write_idx(tmp_path) / "FashionMNIST" / "raw").iterdir():
        file.rename(f"{file}.gz")
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\)"):
        fashion_mnist(root=tmp_path, download=False)


# Broken files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "part"), [("train-images-idx3-ubyte", "training"), ("t10k-labels-idx1-ubyte", "validation")]
)
@pytest.mark.parametrize("n_bytes", [0, 3, 30])
def test_truncated_file_is_an_error_with_the_folder(file, part, n_bytes, tmp_path, write_idx):
    raw = write_idx(tmp_path, n_valid=40) / "FashionMNIST" / "raw"
    (raw / file).write_bytes((raw / file).read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=rf"raw.*{part}.*{file}.*broken.*delete.*folder"):
        fashion_mnist(root=tmp_path)


def test_label_without_a_class_is_an_error(tmp_path, write_idx):
    file = write_idx(tmp_path) / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(ValueError, match=r"broken \(targets.*0.*10.*0.*9\)"):
        fashion_mnist(root=tmp_path)


def test_more_images_than_labels_is_an_error(tmp_path, write_idx):
    raw = write_idx(tmp_path, n_train=20, n_valid=10) / "FashionMNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").write_bytes((raw / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ValueError, match=r"broken \(\(10, 28, 28\) images, 20 targets\)"):
        fashion_mnist(root=tmp_path)


# Downloads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError("no network"), "<urlopen error no network>"),
        (RuntimeError("Error downloading:\nTried a mirror, got:\ntimed out\n"), "timed out"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_failed_download_says_why_and_leaves_nothing(error, reason, cache, monkeypatch):
    def download(self):
        raw = Path(self.raw_folder)
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte").write_bytes(b"half")
        raise error

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(FileNotFoundError, match=mentions(f"{cache} ({reason})")):
        fashion_mnist()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("with_root", [False, True])
def test_download_ends_in_the_cache_or_in_root(with_root, tmp_path, cache, write_idx, monkeypatch):
    calls = []

    def download(self):
        calls.append(write_idx(self.root, n_train=14))

    monkeypatch.setattr(datasets.MNIST, "download", download)
    home = tmp_path if with_root else cache
    kwargs = {"root": tmp_path} if with_root else {}
    assert n_train(**kwargs) == n_train(**kwargs) == 14
    assert len(calls) == 1
    assert {path.name for path in (home / "FashionMNIST" / "raw").iterdir()} == FILES
    assert cache.exists() != with_root
    assert [path.name for path in cache.glob("*")] == ([] if with_root else ["FashionMNIST"])


# The real data ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_fashion_mnist_is_balanced_and_normalized(real_data):
    dls = fashion_mnist(root=real_data, download=False)
    xs, ys = dls.train.tensors
    assert xs.shape == (60_000, 1, 28, 28)
    assert ys.bincount().tolist() == [6_000] * 10
    assert dls.valid.targets.bincount().tolist() == [1_000] * 10
    # The constants have four digits: the mean is right to 5e-5 / 0.353, the deviation likewise.
    assert xs.mean().item() == pytest.approx(0, abs=2e-4)
    assert xs.std().item() == pytest.approx(1, abs=2e-4)
