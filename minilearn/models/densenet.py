"""Densely connected networks for small images: DenseNet-121 with a 3x3 stem, and smaller ones of its kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import is_whole, shown, whole_number
from .layers import DEEPEST, LARGEST


class _Layer(nn.Module):
    """cat(conv3x3(relu(norm(conv1x1(relu(norm(x)))))), x); (N, C, H, W) -> (N, C + growth, H, W)."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([new, x], 1)


class DenseNet(nn.Module):
    """Make a densely connected network, in which a layer gets the outputs of all earlier ones in its block.

    Args:
        depths: layers in each block; between blocks height, width and channels are halved.
        growth: channels that a layer adds; the stem has twice as many.

    Shapes: (N, n_channels, H, W) -> (N, n_classes); it is designed for H and W of 32.

    Source: Huang et al. 2017, whose stem is for large images (7x7 and pooling); document 004.
    """

    def __init__(
        self, depths: Sequence[int], growth: int = 32, n_classes: int = 10, n_channels: int = 3
    ) -> None:
        are_depths = isinstance(depths, Sequence) and len(depths) > 0 and not isinstance(depths, str)
        are_depths = are_depths and all(is_whole(depth, 1, DEEPEST) for depth in depths)
        if not are_depths or not is_whole(growth, 1, LARGEST):
            raise ValueError(
                f"depths={shown(depths)}, growth={shown(growth)}: expected whole numbers >= 1, at most "
                f"{DEEPEST:,} layers"
            )
        growth, n_classes, n_channels = (
            whole_number(name, value, 1, LARGEST)
            for name, value in (("growth", growth), ("n_classes", n_classes), ("n_channels", n_channels))
        )
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(n_channels, width, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for i, depth in enumerate(depths):
            blocks.append(nn.Sequential(*(_Layer(width + j * growth, growth) for j in range(depth))))
            width += depth * growth
            if i + 1 < len(depths):
                blocks.append(_transition(width))
                width //= 2
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.blocks(self.conv1(x)))))


def densenet121(n_classes: int = 10, n_channels: int = 3) -> DenseNet:
    """Return DenseNet-121 with a 3x3 stem: 7.0 million parameters; see DenseNet."""
    return DenseNet((6, 12, 24, 16), 32, n_classes, n_channels)


def _transition(n: int) -> nn.Sequential:
    conv = nn.Conv2d(n, n // 2, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), conv, nn.AvgPool2d(2))
