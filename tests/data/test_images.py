import hashlib
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from toolbox import StopCB, StoppedError, mentions, same
from torch import nn

from minilearn import CheckpointCB, DataLoaders, Learner
from minilearn.data import (
    Augment,
    Cutout,
    HorizontalFlip,
    ImageLoader,
    Normalize,
    RandomCrop,
    RandomResizedCrop,
    adapter_of,
    peek,
)

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


@pytest.mark.parametrize("bs", [1, 3, 10, 99])
@pytest.mark.parametrize("epoch", [0, 3])
def test_image_becomes_the_same_with_any_batch_size(bs, epoch):
    assert same(by_index(loader(bs=bs), epoch), by_index(loader(), epoch))
    assert same(by_index(adapter_of(loader()).resized(bs), epoch), by_index(loader(), epoch))


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


def test_augmentation_draws_nothing_from_the_order():
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
    one = adapter_of(loader()).in_order()
    assert torch.cat([yb for _, yb in one]).tolist() == list(range(10))


def test_state_is_what_order_and_augmentation_depend_on():
    a, b = loader(seed=1), loader(seed=2)
    assert a.state_dict()["seed"] == 1
    b.load_state_dict(a.state_dict())
    assert same(by_index(a, 1), by_index(b, 1))


@pytest.mark.parametrize("other", [(NORMALIZE, RandomCrop(3)), (RandomCrop(2), NORMALIZE), (NORMALIZE,)])
def test_other_augmentation_is_refused_when_a_run_resumes(other):
    with pytest.raises(ValueError, match=r"augment='\(.*RandomCrop\(padding=2\)"):
        loader(NORMALIZE, RandomCrop(2)).load_state_dict(loader(*other).state_dict())


def test_augment_has_instances_of_augment():
    with pytest.raises(TypeError, match=r"augment.*<class .*RandomCrop'>.*Augment"):
        ImageLoader(PIXELS, TARGETS, [RandomCrop])


WIDE = [torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.bool]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*WIDE, *FLOATS], ids=str)
@pytest.mark.parametrize("augment", [[NORMALIZE], [HorizontalFlip(), NORMALIZE]], ids=len)
def test_pixels_that_normalize_would_scale_wrongly_are_refused(dtype, augment):
    with pytest.raises(TypeError, match=rf"Normalize.*255.*{dtype}.*torch.uint8.*leave Normalize out"):
        ImageLoader(PIXELS.to(dtype), TARGETS, augment)


MOVING = [RandomCrop(1), RandomResizedCrop(4), HorizontalFlip()]


@pytest.mark.parametrize("shape", [(8, 6), (3, 8, 6)])
@pytest.mark.parametrize("augment", MOVING, ids=repr)
def test_moving_the_pixels_of_images_and_not_of_their_maps_is_refused(augment, shape):
    images = torch.zeros(4, 3, 8, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match=mentions(f"{augment!r} ... {(4, *shape)} ... DatasetLoader")):
        ImageLoader(images, torch.zeros(4, *shape), [augment])
    ImageLoader(images, torch.zeros(4, *shape), [Normalize([0.5] * 3, [0.5] * 3), Cutout(2)])
    ImageLoader(images, torch.zeros(4, 6), [augment])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_that_are_scaled_already_stay_as_they_are(dtype):
    images = (PIXELS / 255).to(dtype)
    one = ImageLoader(images, TARGETS, [HorizontalFlip(0)], bs=10)
    assert torch.equal(next(iter(one))[0], images)


def augmented_learner(*cbs, augment=()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    dls = DataLoaders(loader(*augment), ImageLoader(PIXELS, TARGETS, [NORMALIZE]))
    return Learner(model, dls, cbs=cbs, default_cbs=False, lr=0.01)


def test_augmented_run_is_resumed_bit_for_bit():
    assert "bit for bit" in augmented_learner().verify_resume(2)


def test_run_is_not_resumed_with_another_augmentation(tmp_path):
    with pytest.raises(StoppedError):
        augmented_learner(CheckpointCB(tmp_path / "run", every_steps=1), StopCB(1)).fit()
    with pytest.raises(ValueError, match="augment="):
        augmented_learner(CheckpointCB(tmp_path / "run"), augment=(NORMALIZE,)).fit(resume=True)


def test_memory_mapped_bytes_are_read_as_they_are(tmp_path):
    torch.save({"images": PIXELS, "targets": TARGETS}, tmp_path / "x.pt")
    saved = torch.load(tmp_path / "x.pt", mmap=True, weights_only=True)
    mapped = ImageLoader(saved["images"], saved["targets"], loader().augment, bs=4, shuffle=True, seed=1)
    assert same(by_index(mapped), by_index(loader()))


@pytest.mark.parametrize("files", [[], ["a.png"], ["a.png"] * 11])
def test_files_are_as_many_as_the_images(files):
    with pytest.raises(ValueError, match=rf"files=.*expected 10 paths.*not {len(files)}"):
        loader(files=files)


def test_files_are_kept_as_they_are_by_every_loader_that_is_made_of_it():
    names = [f"{i}.png" for i in range(10)]
    one = loader(files=names)
    assert one.files == tuple(names)
    assert adapter_of(one).resized(3).files == adapter_of(one).in_order().files == tuple(names)
    assert loader().files is None
