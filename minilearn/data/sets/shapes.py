"""A built-in set of images, drawn by code: for tests, and for a first run without data or network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...arguments import whole_number
from ...seeding import generator_of
from ..loaders import DataLoaders
from ..resumable import TensorLoader


def _polygon(n: int) -> Callable[[Tensor, Tensor], Tensor]:
    def distance(x: Tensor, y: Tensor) -> Tensor:
        sector = 2 * math.pi / n
        angle = torch.remainder(torch.atan2(y, x) + sector / 2, sector) - sector / 2
        return torch.hypot(x, y) * angle.cos() - 0.75

    return distance


def _star(x: Tensor, y: Tensor) -> Tensor:
    angle = torch.atan2(y, x)
    return torch.hypot(x, y) - (0.62 + 0.3 * torch.cos(5 * angle))


def _ring(shape: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: (shape(x, y) + 0.2).abs() - 0.17


def _disk(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.8


def _bar(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs() - 0.95, y.abs() - 0.2)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_bar(x, y), _bar(y, x))


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_disk(x, y), 0.62 - torch.hypot(x - 0.42, y))


# Signed distance (below 0 inside) of each shape, about as large as the circle of radius 1.
_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disk": _disk,
    "ring": _ring(_disk),
    "triangle": _polygon(3),
    "hollow triangle": _ring(_polygon(3)),
    "square": _polygon(4),
    "hollow square": _ring(_polygon(4)),
    "star": _star,
    "bar": _bar,
    "cross": _cross,
    "moon": _moon,
}


_MOST = 200_000  # images


def shapes(
    bs: int = 128,
    n_train: int = 12_000,
    n_valid: int = 2_000,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> DataLoaders:
    """Draw ten shapes at random places, sizes, angles and contrasts, under noise and a bar across.

    Not trivially separable: a linear model fails where the strided CNN learns, and a test holds this.

    Args:
        bs: batch size.
        n_train, n_valid: images in each set, 1 to 200,000.
        seed: of the images and of the order of the training set.
        device: keep the data there.

    Shapes: batches of (bs, 1, 28, 28) float32, of mean about 0 and standard deviation 1, and (bs,)
        int64 from 0 to 9.
    """
    n_train, n_valid = (
        whole_number(name, n, 1, _MOST) for name, n in (("n_train", n_train), ("n_valid", n_valid))
    )
    whole_number("bs", bs)
    whole_number("seed", seed, None)
    xs, ys = _draw(n_train + n_valid, generator_of(seed))
    return DataLoaders(
        TensorLoader(xs[:n_train], ys[:n_train], bs=bs, shuffle=True, seed=seed, device=device),
        TensorLoader(xs[n_train:], ys[n_train:], bs=bs, device=device),
        classes=list(_SHAPES),
    )


def _draw(n: int, generator: torch.Generator, size: int = 28) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float) -> Tensor:  # (n, 1, 1)
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    targets = torch.randint(len(_SHAPES), (n,), generator=generator)
    axis = torch.linspace(-1, 1, size)
    y0, x0 = torch.meshgrid(axis, axis, indexing="ij")  # (size, size)
    scale, angle = uniform(0.4, 0.7), uniform(-math.pi, math.pi)
    x1, y1 = (x0 - uniform(-0.3, 0.3)) / scale, (y0 - uniform(-0.3, 0.3)) / scale
    x, y = x1 * angle.cos() - y1 * angle.sin(), x1 * angle.sin() + y1 * angle.cos()

    images = torch.empty(n, size, size)
    for k, shape in enumerate(_SHAPES.values()):
        of_k = targets == k
        images[of_k] = torch.sigmoid(-shape(x[of_k], y[of_k]) * 12)  # a soft edge of about a pixel
    images *= uniform(0.5, 1.0)
    # A bar across the image, in front of the shape half of the time, as bright as a shape may be.
    tilt = uniform(0, math.pi)
    across = ((x0 * tilt.cos() + y0 * tilt.sin() - uniform(-0.6, 0.6)).abs() < 0.06).float()
    images = torch.maximum(images, across * uniform(-0.9, 0.9).clamp_min(0))
    images += 0.1 * torch.randn(n, size, size, generator=generator)
    return images.sub_(images.mean()).div_(images.std()).unsqueeze(1), targets
