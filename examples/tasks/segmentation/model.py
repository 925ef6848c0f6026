"""Drawn scenes with their classes and depths, and a small U-Net with two heads."""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

CLASSES = ["background", "disk", "square", "triangle"]
VOID = 255  # the outlines, which belong to no class, as in the masks of PASCAL VOC


def scenes(n, size, seed):
    """Draw n scenes of up to three shapes, the near ones larger, in front, and less hazy.

    Returns: images (n, 3, size, size); classes (n, size, size), with VOID; depths (n, size, size), from 0,
        near, to 1, the background.
    """
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *(shape or (1, 1)), generator=rng)

    haze = uniform(0.4, 0.8, 3, 1, 1)
    images = haze + uniform(-0.15, 0.15, 1, 1, 1) * x + uniform(-0.15, 0.15, 1, 1, 1) * y
    classes = torch.zeros(n, size, size, dtype=torch.int64)
    depths = torch.ones(n, size, size)
    for i in range(3):  # from far to near
        near = (i + uniform(0, 1)) / 3
        radius, angle = 0.25 + 0.25 * near, uniform(0, 6.3)
        dx, dy = (x - uniform(-0.8, 0.8)) / radius, (y - uniform(-0.8, 0.8)) / radius
        u, v = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        disk, square = u.hypot(v) - 1, torch.maximum(u.abs(), v.abs()) - 0.85
        triangle = torch.stack([v, 0.87 * u - 0.5 * v, -0.87 * u - 0.5 * v]).amax(0) - 0.6
        kind = torch.randint(3, (n, 1, 1), generator=rng)
        distance = torch.where(kind == 0, disk, torch.where(kind == 1, square, triangle)) * radius
        is_there = uniform(0, 1) < 0.7
        inside, outline = is_there & (distance < 0), is_there & (distance.abs() < 1.2 / size)
        colour = haze + (uniform(0, 1, 3, 1, 1) - haze) * (0.5 + 0.5 * near[:, None])
        images = torch.where(inside[:, None], colour, images)
        depths = torch.where(inside, 1 - near, depths)
        classes = torch.where(inside, kind + 1, classes).masked_fill(outline, VOID)
    return images + 0.05 * torch.randn(n, 3, size, size, generator=rng) - 0.5, classes, depths


def block(n_in, n_out):
    """Return two convolutions with BatchNorm."""
    layers = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of three levels whose features go into a head for the classes and one for the depth.

    Shapes: (n, 3, h, w) -> (n, classes, h, w) and (n, h, w).
    """

    def __init__(self, width=16):
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.classes, self.depth = nn.Conv2d(width, len(CLASSES), 1), nn.Conv2d(width, 1, 1)

    def forward(self, x):
        features = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            features.append(x)
        for up, skip in zip(self.up, features[-2::-1], strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        return self.classes(x), self.depth(x).sigmoid().squeeze(1)


def draw(*columns, n=5):
    """Return a figure with a row for each of the first scenes."""
    figure, axes = plt.subplots(n, len(columns), figsize=(7, 1.4 * n), layout="constrained")
    titles = ["image", "class, void in white", "predicted", "depth", "predicted"]
    for i, (column, title) in enumerate(zip(columns, titles, strict=True)):
        axes[0, i].set_title(title, fontsize=9)
        for j, part in enumerate(column[:n]):
            if i == 0:
                part = (part + 0.5).clamp(0, 1).permute(1, 2, 0)
            elif i < 3:
                part = part.float().masked_fill(part == VOID, torch.nan)
            axes[j, i].imshow(part.numpy(), cmap="viridis", vmin=0, vmax=3 if 0 < i < 3 else 1)
            axes[j, i].axis("off")
    return figure
