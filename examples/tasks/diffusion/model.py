"""A small U-Net, the noise of diffusion and sampling by DDIM; Fashion-MNIST with pixels from -1 to 1."""

import math
import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from minilearn import DataLoaders, TensorLoader

sys.path.append(str(Path(__file__).parents[1]))  # for the judge
from judge.judge import images_of, judge, verdict  # noqa: F401


def data(small=False):
    """Return batches of images and classes; 1,000 images validate."""
    (images, classes), (test, test_classes) = images_of("fashion_mnist")
    n, n_test, bs = (256, 64, 64) if small else (60_000, 1000, 64)
    train = TensorLoader(2 * images[:n] - 1, classes[:n], bs=bs, shuffle=True)
    return DataLoaders(train, TensorLoader(2 * test[:n_test] - 1, test_classes[:n_test], bs=250))


NO_CLASS = 10


def noised(images, classes):
    """Return what the model sees (noisy images, their angles and classes), and v, its target.

    The cosine schedule, with an angle from 0 to pi / 2 for each image:
    noisy = cos(angle) * image + sin(angle) * noise, v = cos(angle) * noise - sin(angle) * image,
    and so image = cos(angle) * noisy - sin(angle) * v. One class in ten is not told.
    """
    n, device = len(images), images.device
    angles, noise = torch.rand(n, device=device) * math.pi / 2, torch.randn_like(images)
    cos, sin = angles.cos().view(-1, 1, 1, 1), angles.sin().view(-1, 1, 1, 1)
    told = torch.where(torch.rand(n, device=device) < 0.1, NO_CLASS, classes)
    return (cos * images + sin * noise, angles, told), cos * noise - sin * images


class Block(nn.Module):
    """Add two convolutions of (N, C, H, W), the second of which sees the embedding (N, n_embedding)."""

    def __init__(self, n, n_embedding):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, n), nn.Conv2d(n, n, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, n), nn.Conv2d(n, n, 3, padding=1)
        self.embed = nn.Linear(n_embedding, 2 * n)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x, embedding):
        scale, shift = self.embed(embedding)[:, :, None, None].chunk(2, dim=1)
        out = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(out) * (1 + scale) + shift))


class Attention(nn.Module):
    """Add self-attention between the places of (N, C, H, W)."""

    def __init__(self, n):
        super().__init__()
        self.norm, self.attend = nn.GroupNorm(8, n), nn.MultiheadAttention(n, 4, batch_first=True)

    def forward(self, x):
        places = self.norm(x).flatten(2).transpose(1, 2)
        out, _ = self.attend(places, places, places, need_weights=False)
        return x + out.transpose(1, 2).view_as(x)


class UNet(nn.Module):
    """Predict v: noisy images (N, 1, 28, 28), angles (N,) and classes (N,) -> (N, 1, 28, 28).

    The network sees 2 x 2 pixels as channels, so it works on 14 x 14 and 7 x 7.
    """

    def __init__(self, width=32, n_embedding=64):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(16, n_embedding), nn.SiLU(), nn.Linear(n_embedding, n_embedding))
        self.embed_class = nn.Embedding(NO_CLASS + 1, n_embedding)
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.first, self.last = Block(width, n_embedding), Block(width, n_embedding)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.middle, self.attend = Block(2 * width, n_embedding), Attention(2 * width)
        self.middle2 = Block(2 * width, n_embedding)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, noisy, angles, classes):
        turns = angles[:, None] * 2 ** torch.arange(8, device=angles.device)
        embedding = self.embed(torch.cat([turns.sin(), turns.cos()], dim=1)) + self.embed_class(classes)
        fine = self.first(self.enter(F.pixel_unshuffle(noisy, 2)), embedding)
        coarse = self.attend(self.middle(self.down(fine), embedding))
        x = self.last(fine + self.up(self.middle2(coarse, embedding)), embedding)
        return F.pixel_shuffle(self.leave(x), 2)


@torch.no_grad()
def sample(model, classes, n_steps=20, guidance=1.0):
    """Return a new image of each class by DDIM, with pixels from 0 to 1; the model is in evaluation mode.

    guidance: how far to go beyond the prediction for the class, away from that without one.
    """
    model.eval()
    classes = classes.to(next(model.parameters()).device)
    x = torch.randn(len(classes), 1, 28, 28, device=classes.device)
    angles = torch.linspace(math.pi / 2, 0, n_steps + 1, device=classes.device)
    both = torch.cat([classes, torch.full_like(classes, NO_CLASS)])
    for now, following in pairwise(angles):
        told, untold = model(torch.cat([x, x]), now.expand(len(both)), both).chunk(2)
        v = told + guidance * (told - untold)
        image = (now.cos() * x - now.sin() * v).clamp(-1, 1)
        noise = (x - now.cos() * image) / now.sin()
        x = following.cos() * image + following.sin() * noise
    return (x + 1).cpu() / 2
