import gc
import importlib
import multiprocessing
import os
import signal
import struct
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import toolbox
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from minilearn import events
from minilearn.data.sets import imagenet_subsets
from minilearn.data.sets.cifar import CLASSES
from minilearn.data.sets.decoding import cache_folder

torch.set_num_threads(1)  # on tensors this small, threads wait for each other 100 times as long as they work

# What nohup ignores, and a script's job in the background: tests send these signals, and so do their scripts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_addoption(parser, pluginmanager):
    """Accept the options of pytest-xdist that pyproject.toml gives where -p no:xdist leaves it out."""
    if not pluginmanager.hasplugin("xdist"):
        parser.addoption("--numprocesses", "--dist", help="without pytest-xdist: nothing")


# Files of long tests that share nothing.
DIVIDED = (
    "test_nbs",
    "test_benchmarks",
    "test_cifar_example",
    "test_optimizer_state_example",
    "test_swats_example",
)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """Keep a quarter of the cases of a test that is marked `dealt`, or all with MINILEARN_EVERY_PLACE.

    What is marked `full` is slow too.
    """
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker("slow")
    if os.environ.get("MINILEARN_EVERY_PLACE"):
        return
    cases = {}
    for item in items:
        if item.get_closest_marker("dealt"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    left_out = []
    for own in cases.values():
        mixed = sorted(own, key=lambda item: crc32(item.nodeid.encode()))
        left_out += mixed[-(-len(own) // 4) :]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each process whole files, whose fixtures it makes once, and at last the long tests one by one."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.split("::")[0]
            return nodeid if Path(path).stem in DIVIDED else path

    return FileScheduling(config, log)


def _write_idx(root, name="FashionMNIST", n_train=20, n_valid=10):
    """Images of one value each, 0 and 255 in turn; targets 0, 1, ... 9, 0, ..."""
    raw = Path(root) / name / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", n_train), ("t10k", n_valid)):
        pixels = b"".join(bytes([255 * (i % 2)]) * 784 for i in range(n))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + pixels)
        targets = bytes(i % 10 for i in range(n))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + targets)
    return Path(root)


@pytest.fixture(scope="session")
def write_idx():
    """Write a tiny (Fashion-)MNIST in torchvision's layout: write_idx(root, name, n_train, n_valid)."""
    return _write_idx


def _write_cifar(root, n_train=20, n_valid=10):
    """An image folder in fast.ai's layout: noise around a grey of its own for each class, as PNG."""
    rng = np.random.default_rng(0)
    for part, n in (("train", n_train), ("test", n_valid)):
        for i in range(n):
            label = i % 10
            folder = Path(root) / "cifar10" / part / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(20 * label, 20 * label + 50, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    return Path(root)


def _write_imagenet(root, name, n_train=4, n_valid=1):
    """Write Imagenette or Imagewoof in fast.ai's layout: so many images of each class, of one color each."""
    for part, n in (("train", n_train), ("val", n_valid)):
        for i, kind in enumerate(imagenet_subsets._NAMES[name]):
            for j in range(n):
                path = root / f"{name}2-160" / part / kind / f"{j}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 36), (25 * i, 255 - 25 * i, 5 * j)).save(path)
    return root


@pytest.fixture(scope="session")
def write_imagenet():
    """Write a tiny Imagenette or Imagewoof: write_imagenet(root, name, n_train, n_valid)."""
    return _write_imagenet


@pytest.fixture(scope="session")
def write_cifar():
    """Write a tiny CIFAR-10 as an image folder: write_cifar(root, n_train, n_valid)."""
    return _write_cifar


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Have a cache folder of this test's own, which is not made yet, and no data in the environment."""
    monkeypatch.delenv("MINILEARN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def no_data(cache, monkeypatch):
    """Have an empty cache folder, which is given, and refuse all downloads."""
    from torchvision import datasets

    def refuse(self):
        raise AssertionError("this test must not download")

    for name, method in (("MNIST", "download"), ("CIFAR10", "download"), ("Imagenette", "_download")):
        monkeypatch.setattr(getattr(datasets, name), method, refuse)
    return cache


@pytest.fixture(autouse=True, scope="session")
def quick_files(tmp_path_factory):
    """Leave files in the system's memory, and wandb's in a folder of their own: no test needs them later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setenv("WANDB_DIR", str(tmp_path_factory.mktemp("wandb")))
        yield


@pytest.fixture(scope="session")
def example():
    """Import a script of examples/ as a module: example("fashion_mnist")."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # as `python examples/...` has it
    return importlib.import_module


@pytest.fixture
def call_main(example, monkeypatch, tmp_path):
    """Call a script of examples/, whose results go to tmp_path / "out": call_main(name, *arguments)."""

    def call(name, *args):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(tmp_path / "out"), *map(str, args)])
        example(name).main()

    return call


@pytest.fixture(scope="session")
def document():
    """Return the text of a document by its number, or skip: document("003")."""

    def read(number):
        found = sorted((Path(__file__).parents[2] / "shared" / "seeds").glob(f"{number}*.txt"))
        if not found:
            pytest.skip(f"needs document {number}, ../shared/seeds/{number}*.txt")
        return found[0].read_text()

    return read


@pytest.fixture
def real_data():
    """Return the folder with the real FashionMNIST/raw, or skip."""
    repo = Path(__file__).parents[1]
    for folder in (os.environ.get("MINILEARN_DATA"), repo.parent / "shared" / "data"):
        if folder and (Path(folder) / "FashionMNIST" / "raw").is_dir():
            return Path(folder)
    pytest.skip("needs the real Fashion-MNIST: set MINILEARN_DATA to a folder with FashionMNIST/raw")


@pytest.fixture
def make_learner():
    """Return the toolbox's make_learner."""
    return toolbox.make_learner


@pytest.fixture
def at():
    """Return the toolbox's at."""
    return toolbox.at


@pytest.fixture
def bare_sgd():
    """Return an optimizer class as document 003 writes one: only step and zero_grad."""

    class BareSGD:
        def __init__(self, params, lr, wd=0):
            self.params, self.lr, self.wd = list(params), lr, wd

        def step(self):
            with torch.no_grad():
                for p in self.params:
                    p -= p.grad * self.lr

        def zero_grad(self):
            for p in self.params:
                p.grad.zero_()

    return BareSGD


@pytest.fixture(autouse=True)
def no_workers_left_by_other_tests():
    """End the workers that a loader keeps: when garbage is collected, torch waits 5 s for each of them."""
    yield
    if multiprocessing.active_children():
        for found in gc.get_objects():
            if type(found) is _MultiProcessingDataLoaderIter:
                found._shutdown_workers()


@pytest.fixture(autouse=True)
def no_scopes_left_by_other_tests(monkeypatch):
    monkeypatch.setattr(events, "_cancels", dict(events._cancels))


@pytest.fixture
def unimported(monkeypatch):
    """Return a function that has a package imported again when it is next needed."""

    def forget(package):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)

    return forget
