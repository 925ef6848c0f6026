"""A variational autoencoder of 28 x 28 pixels, and Fashion-MNIST with pixels from 0 to 1."""

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
    n, n_test, bs = (256, 64, 64) if small else (60_000, 10_000, 128)
    return DataLoaders(TensorLoader(train[:n], bs=bs, shuffle=True), TensorLoader(test[:n_test], bs=1000))


class VAE(nn.Module):
    """Encode an image as a Gaussian in n_latent dimensions, and decode a draw from it.

    Shapes: (N, 1, 28, 28) -> logits of the pixels (N, 1, 28, 28), mean and log variance (N, n_latent).
    """

    def __init__(self, n_latent=16, width=512):
        super().__init__()
        self.n_latent = n_latent
        self.encode = nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 2 * n_latent),
        )
        self.decode = nn.Sequential(
            *(nn.Linear(n_latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, 784), nn.Unflatten(1, (1, 28, 28))),
        )

    def forward(self, images):
        mean, log_var = self.encode(images).chunk(2, dim=1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        return self.decode(z), mean, log_var

    @torch.no_grad()
    def sample(self, n):
        """Return n new images, with pixels from 0 to 1."""
        return self.decode(torch.randn(n, self.n_latent)).sigmoid()
