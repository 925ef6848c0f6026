"""The two networks of a small DCGAN of 28 x 28 pixels, and the digits of MNIST, with pixels from -1 to 1."""

import sys
from pathlib import Path

from torch import nn

from minilearn import DataLoaders, TensorLoader

sys.path.append(str(Path(__file__).parents[1]))  # for the judge
from judge.judge import images_of, verdict  # noqa: F401

N_LATENT = 64


def data(small=False):
    """Return batches of digits without their classes; there is nothing to validate."""
    (images, _), _ = images_of("mnist")
    n, bs = (256, 32) if small else (60_000, 64)
    return DataLoaders(TensorLoader(2 * images[:n] - 1, bs=bs, shuffle=True, drop_last=True))


def generator(width=32):
    """Make the generator: (N, 64) -> images (N, 1, 28, 28), with pixels from -1 to 1."""
    return nn.Sequential(
        *(nn.Linear(N_LATENT, 2 * width * 49, bias=False), nn.Unflatten(1, (2 * width, 7, 7))),
        *(nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh()),
    ).apply(_init)


def discriminator(width=32):
    """Make the discriminator: images (N, 1, 28, 28) -> logits (N, 1) of being real."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(2 * width * 49, 1)),
    ).apply(_init)


def _init(module):
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
