"""A variational autoencoder of 28 x 28 pixels, and Fashion-MNIST with pixels from 0 to 1."""

import math
import sys
from pathlib import Path

import torch
from torch import nn

from minilearn import DataLoaders, TensorLoader

sys.path.append(str(Path(__file__).parents[1]))  # for the judge
from judge.judge import images_of, verdict  # noqa: F401


def data(small=False):
    """Return batches of images without their classes."""
    (train, _), (test, _) = images_of("fashion_mnist")
    n, n_test, bs = (256, 64, 64) if small else (60_000, 10_000, 256)
    return DataLoaders(TensorLoader(train[:n], bs=bs, shuffle=True), TensorLoader(test[:n_test], bs=1000))


def log_normal(z, mean, log_sd):
    """Return the log density of a diagonal Gaussian, summed over the last dimension."""
    return (-0.5 * ((z - mean) / log_sd.exp()) ** 2 - log_sd - 0.5 * math.log(2 * math.pi)).sum(-1)


class VAE(nn.Module):
    """Encode an image as a Gaussian in n_latent dimensions, and decode a draw from it.

    The prior is a mixture of Gaussians that is trained too, because a single Gaussian leaves gaps between the
    images, from which samples are blends of two.

    Shapes: (N, 1, 28, 28) -> logits of the pixels (N, 1, 28, 28), and the log density of the draw under the
        encoder's Gaussian and under the prior, both (N,).
    """

    def __init__(self, n_latent=16, width=256, n_parts=100):
        super().__init__()
        self.encode = nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 2 * n_latent),
        )
        self.decode = nn.Sequential(
            *(nn.Linear(n_latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, 784), nn.Unflatten(1, (1, 28, 28))),
        )
        self.means = nn.Parameter(torch.randn(n_parts, n_latent))
        self.log_sds = nn.Parameter(torch.zeros(n_parts, n_latent))
        self.weights = nn.Parameter(torch.zeros(n_parts))  # before the softmax

    def forward(self, images):
        mean, log_sd = self.encode(images).chunk(2, dim=1)
        z = mean + log_sd.exp() * torch.randn_like(mean)
        parts = log_normal(z[:, None], self.means, self.log_sds) + self.weights.log_softmax(0)
        return self.decode(z), log_normal(z, mean, log_sd), parts.logsumexp(1)

    @torch.no_grad()
    def sample(self, n):
        """Return n new images, with pixels from 0 to 1."""
        part = self.weights.softmax(0).multinomial(n, replacement=True)
        z = self.means[part] + self.log_sds[part].exp() * torch.randn_like(self.means[part])
        return self.decode(z).sigmoid().cpu()
