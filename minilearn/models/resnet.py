"""Residual networks for small images: ResNet-18 with a 3x3 stem, ResNet-20, and others of their kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import choice, is_whole, shown, whole_number
from .layers import DEEPEST, LARGEST


class StandardizedConv2d(nn.Conv2d):
    """Convolve with weights of mean 0 and standard deviation 1 in each output channel.

    Source: Qiao et al. 2019, "Weight Standardization"; document 001 uses it beside GroupNorm.
    """

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) * torch.rsqrt(var + 1e-10), self.bias)


class _Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); (N, C, H, W) -> (N, n_out, H / stride, ...)."""

    def __init__(self, n_in: int, n_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(n_in, n_out, 3, stride, norm), _norm(n_out, norm)
        self.conv2, self.norm2 = _conv(n_out, n_out, 3, 1, norm), _norm(n_out, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(_conv(n_in, n_out, 1, stride, norm), _norm(n_out, norm))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Make a residual network of basic blocks for small images, with a 3x3 convolution as its stem.

    Args:
        depths: blocks in each stage; each stage but the first halves height and width.
        widths: channels of each stage.
        norm: "batch" for BatchNorm, or "group" for GroupNorm with weight standardization, which does not
            depend on the other images of the batch.
        stem_stride: 2 halves height and width at once, for images of 64 pixels.

    Shapes: (N, n_channels, H, W) -> (N, n_classes); for H and W of 32, but any from 2 ** stages on work.

    Source: He et al. 2016, whose ResNet-18 has a stem for large images (7x7 and pooling); document 001.
    Differs: where a block changes the number of channels, its shortcut is a 1x1 convolution and a norm (the
        paper's option B) in ResNet-20 too, where the paper pads with zeros.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        n_classes: int = 10,
        n_channels: int = 3,
        norm: str = "batch",
        stem_stride: int = 1,
    ) -> None:
        choice("norm", norm, ("batch", "group"))
        for name, values, most in (("depths", depths, DEEPEST), ("widths", widths, LARGEST)):
            is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
            if not is_list or not all(is_whole(value, 1, most) for value in values):
                raise ValueError(
                    f"{name}={shown(values)}: expected one for each stage, a whole number >= 1, at most "
                    f"{most:,}"
                )
        if len(depths) != len(widths):
            raise ValueError(f"depths={depths!r}, widths={widths!r}: expected one of each for each stage")
        n_classes = whole_number("n_classes", n_classes, 1, LARGEST)
        n_channels = whole_number("n_channels", n_channels, 1, LARGEST)
        stem_stride = whole_number("stem_stride", stem_stride, 1, LARGEST)
        super().__init__()
        stem = _conv(n_channels, widths[0], 3, stem_stride, norm)
        self.stem = nn.Sequential(stem, _norm(widths[0], norm), nn.ReLU())
        blocks, n_in = [], widths[0]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for j in range(depth):
                blocks.append(_Block(n_in, width, 2 if i > 0 and j == 0 else 1, norm))
                n_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def resnet18(n_classes: int = 10, n_channels: int = 3, norm: str = "batch") -> ResNet:
    """Return ResNet-18 with a 3x3 stem: 11.2 million parameters; see ResNet."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), n_classes, n_channels, norm)


def resnet20(n_classes: int = 10, n_channels: int = 3, norm: str = "batch") -> ResNet:
    """Return ResNet-20, the smallest of the paper's for CIFAR: 0.27 million parameters; see ResNet."""
    return ResNet((3, 3, 3), (16, 32, 64), n_classes, n_channels, norm)


def _conv(n_in: int, n_out: int, size: int, stride: int, norm: str) -> nn.Conv2d:
    kind = StandardizedConv2d if norm == "group" else nn.Conv2d
    return kind(n_in, n_out, size, stride, padding=size // 2, bias=False)


def _norm(n: int, norm: str) -> nn.Module:
    # 32 groups, as Wu & He 2018 have it, but never of a single channel.
    return nn.GroupNorm(math.gcd(32, max(n // 2, 1)), n) if norm == "group" else nn.BatchNorm2d(n)
