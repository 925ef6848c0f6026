import hashlib
import io
import os
import random
import tarfile
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import StopCB, StoppedError
from PIL import Image
from torch import nn

from minilearn import CheckpointCB, DataLoaders, Learner
from minilearn.data import Augment, Cutout, HorizontalFlip, ImageLoader, Normalize, RandomCrop, peek
from minilearn.data import images as module
from minilearn.data.images import cached, read_images
from minilearn.data.loaders import in_order, with_batch_size


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minilearn"


# ImageLoader ------------------------------------------------------------------------------------------

PIXELS = torch.randint(256, (10, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
TARGETS = torch.arange(10)
NORMALIZE = Normalize((0.5,) * 3, (0.25,) * 3)


class Numbers(Augment):
    """Give the random numbers themselves."""

    n_random = 2

    def __call__(self, images, random):
        return random[:, :, None, None]


def loader(*augment, **kwargs):
    augment = augment or (NORMALIZE, RandomCrop(2), HorizontalFlip(), Cutout(3))
    return ImageLoader(PIXELS, TARGETS, augment, **{"bs": 4, "shuffle": True, "seed": 1} | kwargs)


def by_index(loader, epoch=0, start=0):
    """Return what each image became, by its index."""
    loader.set_epoch(epoch)
    return {int(y): x for xb, yb in loader.batches(start) for x, y in zip(xb, yb, strict=True)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("bs", [1, 3, 10, 99])
@pytest.mark.parametrize("epoch", [0, 3])
def test_image_becomes_the_same_with_any_batch_size(bs, epoch):
    assert same(by_index(loader(bs=bs), epoch), by_index(loader(), epoch))
    assert same(by_index(with_batch_size(loader(), bs), epoch), by_index(loader(), epoch))


def test_image_becomes_the_same_in_any_order():
    assert same(by_index(loader(shuffle=False)), by_index(loader()))


@pytest.mark.parametrize("start", [0, 1, 2])
def test_image_becomes_the_same_from_any_batch_on(start):
    whole, late = list(loader().batches()), list(loader().batches(start))
    assert len(late) == 3 - start
    for a, b in zip(whole[start:], late, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_numbers_are_those_of_a_generator_of_seed_and_epoch():
    # No state of this process is in them.
    seed = int.from_bytes(hashlib.blake2b(b"(1, 2, 1)", digest_size=4).digest(), "little")
    expected = torch.rand(10, 2, generator=torch.Generator().manual_seed(seed))
    found = by_index(loader(Numbers()), epoch=2)
    assert torch.equal(torch.stack([found[i][:, 0, 0] for i in range(10)]), expected)


def test_numbers_differ_between_epochs_seeds_images_and_augmentations():
    draw = [by_index(loader(Numbers(), seed=seed), epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    found = torch.stack([x.flatten() for part in draw for x in part.values()])
    assert len(found.flatten().unique()) == 3 * 10 * 2


def test_numbers_are_no_part_of_the_order():
    # Else images early in the epoch would be flipped more often, say.
    one = ImageLoader(PIXELS, TARGETS, [Numbers()], bs=10, shuffle=True, seed=1)
    _, order = next(iter(one))
    numbers = by_index(one)
    ranks = torch.stack([numbers[i][0, 0, 0] for i in range(10)]).argsort()
    assert ranks.tolist() != order.tolist()
    assert not same(by_index(one), by_index(ImageLoader(PIXELS, TARGETS, [Numbers()], bs=10, seed=5)))


def test_augmentations_run_in_the_order_given_each_with_its_numbers():
    seen = []

    class Keep(Augment):
        def __init__(self, n_random):
            self.n_random = n_random

        def __call__(self, images, random):
            seen.append((self.n_random, random))
            return images

    one = ImageLoader(PIXELS, TARGETS, [Keep(2), Keep(0), Keep(1)], seed=1)
    list(one)
    assert [(n, part.shape) for n, part in seen] == [(2, (10, 2)), (0, (10, 0)), (1, (10, 1))]
    assert ((seen[0][1] >= 0) & (seen[0][1] < 1)).all()
    assert len(torch.cat([part for _, part in seen], dim=1).unique()) == 30


def test_without_augmentation_batches_are_the_bytes():
    one = ImageLoader(PIXELS, TARGETS, bs=4)
    assert torch.equal(torch.cat([xb for xb, _ in one]), PIXELS)
    assert torch.equal(one.peek()[0], PIXELS[:2])
    assert next(iter(one))[0].dtype == torch.uint8


def test_last_batch_is_smaller_or_dropped():
    assert [len(yb) for _, yb in loader()] == [4, 4, 2]
    assert [len(yb) for _, yb in loader(drop_last=True)] == [4, 4]
    assert len(loader(drop_last=True)) == 2


def test_images_keep_their_targets():
    ys = torch.cat([yb for _, yb in loader()])
    assert sorted(ys.tolist()) == list(range(10))
    assert ys.tolist() != list(range(10))
    plain = by_index(ImageLoader(PIXELS, TARGETS, bs=3, shuffle=True))
    assert all(torch.equal(image, PIXELS[i]) for i, image in plain.items())


def test_peek_leaves_everything_as_it_is():
    one = loader()
    before, state = torch.get_rng_state(), deepcopy(one.state_dict())
    expected = by_index(loader())
    xb, yb = peek(one)
    assert (xb.shape, xb.dtype, yb.tolist()) == ((2, 3, 8, 8), torch.float32, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    assert one.state_dict() == state
    assert same(by_index(one), expected)


def test_no_global_random_number_is_drawn():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(loader())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_bytes_stay_as_they_are():
    before = PIXELS.clone()
    list(loader())
    assert torch.equal(PIXELS, before)


def test_predict_has_the_order_of_the_data():
    one = in_order(loader())
    assert torch.cat([yb for _, yb in one]).tolist() == list(range(10))


def test_state_is_what_order_and_augmentation_depend_on():
    a, b = loader(seed=1), loader(seed=2)
    assert a.state_dict()["seed"] == 1
    b.load_state_dict(a.state_dict())
    assert same(by_index(a, 1), by_index(b, 1))


@pytest.mark.parametrize("other", [(NORMALIZE, RandomCrop(3)), (RandomCrop(2), NORMALIZE), (NORMALIZE,)])
def test_other_augmentation_is_refused_when_a_run_goes_on(other):
    with pytest.raises(ValueError, match=r"the loader has augment='\(.*RandomCrop\(padding=2\)"):
        loader(NORMALIZE, RandomCrop(2)).load_state_dict(loader(*other).state_dict())


def test_augment_has_instances_of_augment():
    with pytest.raises(TypeError, match=r"augment has <class .*RandomCrop'>: expected instances of Augment"):
        ImageLoader(PIXELS, TARGETS, [RandomCrop])


def learner(*cbs, augment=()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    dls = DataLoaders(loader(*augment), ImageLoader(PIXELS, TARGETS, [NORMALIZE]))
    return Learner(model, dls, cbs=cbs, default_cbs=False, lr=0.01)


def test_augmented_run_is_resumed_bit_for_bit():
    assert "bit for bit" in learner().verify_resume(2)


def test_run_is_not_resumed_with_another_augmentation(tmp_path):
    with pytest.raises(StoppedError):
        learner(CheckpointCB(tmp_path / "run", every_steps=1), StopCB(1)).fit()
    with pytest.raises(ValueError, match="is of a run with other data: the loader has augment="):
        learner(CheckpointCB(tmp_path / "run"), augment=(NORMALIZE,)).fit(resume=True)


def test_memory_mapped_bytes_are_read_as_they_are(tmp_path):
    torch.save({"images": PIXELS, "targets": TARGETS}, tmp_path / "x.pt")
    saved = torch.load(tmp_path / "x.pt", mmap=True, weights_only=True)
    mapped = ImageLoader(saved["images"], saved["targets"], loader().augment, bs=4, shuffle=True, seed=1)
    assert same(by_index(mapped), by_index(loader()))


# Decoding ---------------------------------------------------------------------------------------------

CLASSES = ("cat", "dog")


def png(value, size=(4, 3), mode="RGB"):
    file = io.BytesIO()
    color = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


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
    images, targets, classes = read_images(write(kind, tmp_path, files()), "train")
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
    images, _, _ = read_images(write("folder", tmp_path, {"train/a/1.png": file.getvalue()}), "train")
    assert torch.equal(images[0], torch.from_numpy(pixels).permute(2, 0, 1))


def test_gray_images_get_three_channels_and_other_files_are_left_out(tmp_path):
    content = {"train/a/1.PNG": png(7, mode="L"), "train/a/notes.txt": b"x", "train/readme.png": b"x"}
    images, _, _ = read_images(write("folder", tmp_path, content), "train")
    assert images.unique().tolist() == [7]


@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_part_without_images_is_refused(tmp_path, kind):
    source = write(
        kind, tmp_path, {"train/a/notes.txt": b"x", **{k: v for k, v in files().items() if "test" in k}}
    )
    with pytest.raises(
        ValueError, match=r"set\S* has no image in train/<class>/: expected .jpg, .jpeg or .png"
    ):
        read_images(source, "train")


@pytest.mark.parametrize("kind", ["folder", "tgz"])
@pytest.mark.parametrize("broken", [b"", b"no image", png(5)[:50]], ids=["empty", "text", "cut"])
def test_broken_image_is_refused_with_its_name(tmp_path, kind, broken):
    source = write(kind, tmp_path, files() | {"train/dog/0.png": broken})
    with pytest.raises(ValueError, match=r"set\S*: train/dog/0.png is broken \("):
        read_images(source, "train")


def test_image_of_another_size_is_refused_with_both_sizes(tmp_path):
    source = write("tgz", tmp_path, files() | {"train/dog/1.png": png(5, size=(5, 3))})
    with pytest.raises(
        ValueError, match=r"set.tgz: train/dog/1.png is 5x3, others are 4x3: expected one size"
    ):
        read_images(source, "train")


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95])
def test_archive_that_is_cut_short_is_refused_with_its_name(tmp_path, share):
    source = write("tgz", tmp_path, files())
    source.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    with pytest.raises(ValueError, match=r"set.tgz is cut short, or no archive \("):
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
    names, real = [], module._decoded

    def decode(name, data):
        names.append(name)
        return real(name, data)

    monkeypatch.setattr(module, "_decoded", decode)
    return names


def load(source, part="train"):
    return cached(source, part, lambda: read_images(source, part)[:2])


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
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    load(source, "test")
    assert len(decoded) == 8
    assert len(list(cache.iterdir())) == 2
    assert {path.name.split("-")[1] for path in cache.iterdir()} == {"train", "test"}


@pytest.mark.parametrize("kind", ["folder", "tgz"])
@pytest.mark.parametrize("change", ["content", "time"])
def test_images_are_decoded_anew_when_the_source_changes(tmp_path, decoded, kind, change):
    source = write(kind, tmp_path, files())
    before, _ = load(source)
    if change == "content":
        write(kind, tmp_path, files() | {"train/cat/0.png": png(200)})
        assert load(source)[0][0, 0, 0, 0] == 200
    else:
        path = source / "train/cat/0.png" if kind == "folder" else source
        os.utime(path, (1, 1))
        assert torch.equal(load(source)[0], before)
    assert len(decoded) == 8


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
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\); delete it, and it is made anew"):
        load(source)
