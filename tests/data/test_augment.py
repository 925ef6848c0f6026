import pytest
import torch
from toolbox import mentions
from torchvision.transforms import v2

from minilearn.data import (
    Augment,
    Cutout,
    HorizontalFlip,
    ImageLoader,
    Normalize,
    RandomCrop,
    RandomResizedCrop,
)

IMAGES = torch.randn(5, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def uniform(n, k, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed))


# RandomCrop -------------------------------------------------------------------------------------------


def cropped(image, top, left, padding):
    """Shift one image, pixel by pixel."""
    out = torch.zeros_like(image)
    for row in range(image.shape[1]):
        for col in range(image.shape[2]):
            y, x = row + top - padding, col + left - padding
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                out[:, row, col] = image[:, y, x]
    return out


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_crop_is_a_shift_of_each_image(padding):
    n = 2 * padding + 1
    places = [(0, 0), (n - 1, n - 1), (0, n - 1), (padding, padding), (1, padding)]
    random = torch.tensor([[(top + 0.5) / n, (left + 0.5) / n] for top, left in places])
    out = RandomCrop(padding)(IMAGES, random)
    expected = [cropped(image, *place, padding) for image, place in zip(IMAGES, places, strict=True)]
    assert torch.equal(out, torch.stack(expected))
    assert torch.equal(out[3], IMAGES[3])


def test_crop_reaches_each_place_alike():
    # 9 * 9 places of one bright pixel in the middle; 8100 crops, 100 each.
    images = torch.zeros(8100, 1, 9, 9)
    images[:, :, 4, 4] = 1
    counts = RandomCrop(4)(images, uniform(8100, 2)).sum((0, 1))
    assert counts.sum() == 8100
    assert counts.min() > 60  # 4 standard deviations of 10
    assert counts.max() < 140


@pytest.mark.parametrize("padding", [1, 3, 4, 8, 31])
def test_numbers_next_to_1_stay_inside(padding):
    image = torch.ones(1, 1, 1, 1)
    RandomCrop(padding)(image, torch.full((1, 2), 1 - 2**-24))
    Cutout(1)(image, torch.full((1, 2), 1 - 2**-24))


# RandomResizedCrop ------------------------------------------------------------------------------------

SQUARE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
QUARTER = {"scale": (0.25, 0.25), "ratio": (1, 1)}


def at(*numbers):
    """Return random numbers for each of the four images: area, ratio, x, y."""
    return torch.tensor([numbers] * 4)


@pytest.mark.parametrize(
    ("x", "y", "left", "top"), [(0, 0, 0, 0), (1, 0, 4, 0), (0, 1, 0, 4), (0.5, 0.25, 2, 1)]
)
def test_part_of_whole_pixels_is_cut_out_as_it_is(x, y, left, top):
    out = RandomResizedCrop(4, **QUARTER)(SQUARE, at(0.3, 0.7, x, y))
    torch.testing.assert_close(out, SQUARE[:, :, top : top + 4, left : left + 4], rtol=0, atol=1e-5)


def test_part_is_enlarged_as_torchvision_does():
    out = RandomResizedCrop(**QUARTER)(SQUARE, at(0, 0, 0.5, 0.5))
    expected = v2.functional.resized_crop(SQUARE, 2, 2, 4, 4, [8, 8], antialias=False)
    inside = (..., slice(1, -1), slice(1, -1))  # at its edge torchvision does not look outside of the part
    torch.testing.assert_close(out[inside], expected[inside], rtol=0, atol=1e-5)


def test_whole_image_stays_as_it_is():
    out = RandomResizedCrop(scale=(1, 1), ratio=(1, 1))(SQUARE, uniform(4, 4))
    torch.testing.assert_close(out, SQUARE, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("number", "ratio"), [(0, 0.5), (1, 2), (0.5, 1)])
def test_ratio_is_width_by_height_in_pixels(number, ratio):
    ramp = torch.arange(64.0).expand(4, 1, 32, 64)  # its value is x, and below it y
    down = torch.arange(32.0)[:, None].expand(4, 1, 32, 64)
    crop = RandomResizedCrop(8, scale=(0.1, 0.1), ratio=(0.5, 2))
    width, height = (
        (crop(image, at(0.5, number, 0.5, 0.5))[0, 0].diff(dim=dim).mean() * 8).item()
        for image, dim in ((ramp, 1), (down, 0))
    )
    assert width * height == pytest.approx(0.1 * 32 * 64, rel=1e-4)
    assert width / height == pytest.approx(ratio, rel=1e-4)


def test_part_that_would_be_wider_than_the_image_is_cut_to_it():
    ramp = torch.arange(8.0).expand(4, 1, 8, 8)
    out = RandomResizedCrop(8, scale=(0.9, 0.9), ratio=(2, 2))(ramp, at(0, 0, 0.7, 0.5))
    torch.testing.assert_close(out, ramp, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"size": 0}, r"size=0\).*whole number.*>= 1"),
        ({"scale": (0, 1)}, r"scale=\(0, 1\)\).*0 < from <= to <= 1"),
        ({"scale": (0.5, 0.1)}, r"scale=\(0.5, 0.1\)\).*0 < from <= to <= 1"),
        ({"ratio": (0, 1)}, r"ratio=\(0, 1\)\).*0 < from <= to"),
    ],
)
def test_arguments_of_a_resized_crop_are_checked(kwargs, said):
    with pytest.raises(ValueError, match=r"RandomResizedCrop\(" + said):
        RandomResizedCrop(**kwargs)


# HorizontalFlip ---------------------------------------------------------------------------------------


def test_flip_mirrors_the_images_whose_number_is_below_p():
    random = torch.tensor([[0.1], [0.29], [0.3], [0.31], [0.9]])
    out = HorizontalFlip(0.3)(IMAGES, random)
    for i in range(5):
        expected = v2.functional.horizontal_flip(IMAGES[i]) if i < 2 else IMAGES[i]
        assert torch.equal(out[i], expected)


@pytest.mark.parametrize(("p", "n"), [(0, 0), (1, 2000), (0.5, 1000), (0.25, 500)])
def test_share_of_the_flipped_is_p(p, n):
    images = torch.tensor([[[[0.0, 1.0]]]]).expand(2000, -1, -1, -1)
    flipped = HorizontalFlip(p)(images, uniform(2000, 1))[:, 0, 0, 0].sum()
    assert flipped == pytest.approx(n, abs=90 if 0 < p < 1 else 0)  # 4 standard deviations


# Cutout -----------------------------------------------------------------------------------------------


def cut(image, row, col, size):
    out = image.clone()
    for y in range(row - size // 2, row - size // 2 + size):
        for x in range(col - size // 2, col - size // 2 + size):
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                out[:, y, x] = 0
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_cutout_clears_a_square_around_each_middle(size):
    middles = [(0, 0), (5, 6), (0, 6), (3, 3), (5, 2)]
    random = torch.tensor([[(row + 0.5) / 6, (col + 0.5) / 7] for row, col in middles])
    out = Cutout(size)(IMAGES, random)
    expected = [cut(image, *middle, size) for image, middle in zip(IMAGES, middles, strict=True)]
    assert torch.equal(out, torch.stack(expected))


def test_each_pixel_is_a_middle_alike():
    counts = (Cutout(1)(torch.ones(2000, 1, 4, 5), uniform(2000, 2)) == 0).sum((0, 1))
    assert counts.sum() == 2000
    assert counts.min() > 60  # of 100, 4 standard deviations
    assert counts.max() < 140


# Normalize --------------------------------------------------------------------------------------------


def test_normalize_is_torchvisions():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = torch.arange(768).reshape(1, 3, 16, 16).to(torch.uint8)
    out = Normalize(mean, std)(images, torch.zeros(1, 0))
    expected = v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, scale=True), mean, std)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)  # one product less, in another order


# All --------------------------------------------------------------------------------------------------

CROPS = [RandomCrop(2), RandomCrop(2, "reflect"), RandomResizedCrop()]
FLIPS = [HorizontalFlip(alternates=True), HorizontalFlip()]
ALL = [*CROPS, *FLIPS, Cutout(3), Normalize((0.5,) * 3, (0.2,) * 3)]


@pytest.mark.parametrize("augment", ALL, ids=repr)
def test_what_an_image_becomes_depends_only_on_its_own_numbers(augment):
    random = uniform(5, augment.n_random)
    whole = augment(IMAGES, random)
    each = [augment(IMAGES[i : i + 1], random[i : i + 1]) for i in range(5)]
    assert torch.equal(whole, torch.cat(each))


@pytest.mark.parametrize("augment", ALL, ids=repr)
def test_images_given_stay_as_they_are_and_keep_their_shape(augment):
    images = IMAGES.clone()
    assert augment(images, uniform(5, augment.n_random)).shape == images.shape
    assert torch.equal(images, IMAGES)


def test_reprs_have_the_arguments():
    assert [repr(one) for one in ALL] == [
        *("RandomCrop(padding=2)", "RandomCrop(padding=2, padding_mode='reflect')"),
        "RandomResizedCrop(size=None, scale=(0.35, 1.0), ratio=(0.75, 1.3333333333333333))",
        *("HorizontalFlip(p=0.5, alternates=True)", "HorizontalFlip(p=0.5)", "Cutout(size=3)"),
        "Normalize(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))",
    ]


def test_augment_without_a_call_says_so():
    with pytest.raises(NotImplementedError, match=r"^Blur.*__call__\(images, random\)"):
        type("Blur", (Augment,), {})()(IMAGES, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "RandomCrop(padding=0) ... whole number ... >= 1"),
        (lambda: RandomCrop(1.5), "RandomCrop(padding=1.5) ... whole number"),
        (lambda: Cutout(0), "Cutout(size=0) ... whole number ... >= 1"),
        (lambda: Cutout("8"), "Cutout(size='8') ... whole number"),
        (lambda: HorizontalFlip(1.1), "HorizontalFlip(p=1.1) ... 0 <= p <= 1"),
        (lambda: HorizontalFlip(-0.1), "HorizontalFlip(p=-0.1) ... 0 <= p <= 1"),
        (lambda: Normalize((0.5,), (0.2, 0.2)), "mean ... std > 0 ... channel"),
        (lambda: Normalize((0.5,), (0.0,)), "std[0]=0.0 ... > 0"),
        (lambda: RandomCrop(2, "wrap"), "RandomCrop(padding_mode='wrap') ... 'constant', 'reflect'"),
        (
            lambda: HorizontalFlip(0.3, alternates=True),
            "HorizontalFlip(p=0.3, alternates=True) ... p=0.5",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=mentions(message)):
        make()


def test_reflected_pixels_come_in_where_0_did():
    still = torch.full((1, 2), 0.0)  # moved by the whole padding, to the right and down
    out = RandomCrop(2, "reflect")(IMAGES[:1], still)
    assert torch.equal(out, torch.nn.functional.pad(IMAGES[:1], (2, 2, 2, 2), "reflect")[..., :6, :7])


def test_two_epochs_in_a_row_have_each_image_both_ways():
    images = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 1, 4)
    augment = [Normalize((0.0,), (1 / 255,)), HorizontalFlip(alternates=True), RandomCrop(1)]
    loader = ImageLoader(images, torch.arange(6), augment[:2], bs=6, seed=3)
    moved = ImageLoader(images, torch.arange(6), augment, bs=6, seed=3)
    whole, shifts = [], []
    for epoch in range(4):
        loader.set_epoch(epoch)
        moved.set_epoch(epoch)
        whole.append(next(iter(loader))[0])
        shifts.append(next(iter(moved))[0])
    assert torch.equal(whole[1], whole[0].flip(-1))
    assert torch.equal(whole[2], whole[0])
    assert not torch.equal(whole[0], images.float())  # some are mirrored at first
    assert not torch.equal(whole[1], images.float())
    assert not torch.equal(shifts[2], shifts[0])  # what does not alternate is drawn again
