"""The strided CNN of document 003, with its GeneralReLU and leaky Kaiming initialization."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import function, number, unless_none, whole_number
from .layers import LARGEST, Layers


class GeneralReLU(nn.Module):
    """Apply a leaky, shifted and clipped ReLU: min(leaky_relu(x, leak) - sub, max_value).

    Args:
        leak: slope below 0; None or 0 for none.
        sub: subtracted afterwards, so that the mean can be 0.
        max_value: the largest output.

    Source: document 003 (its `GeneralReLU`).
    """

    def __init__(
        self, leak: float | None = None, sub: float | None = None, max_value: float | None = None
    ) -> None:
        super().__init__()
        self.leak, self.sub = unless_none(number, "leak", leak), unless_none(number, "sub", sub)
        self.max_value = unless_none(number, "max_value", max_value, infinite=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(x, self.leak) if self.leak else F.relu(x)
        if self.sub:
            x = x - self.sub
        return x if self.max_value is None else x.clamp_max(self.max_value)

    def extra_repr(self) -> str:
        return f"leak={self.leak}, sub={self.sub}, max_value={self.max_value}"


def init_leaky(module: nn.Module, leak: float = 0.0) -> None:
    """Initialize a convolution's weights by Kaiming's rule for a leaky ReLU; for `model.apply`.

    Source: He et al. 2015, eq. 15; document 003 (its `init_leaky_weights`).
    """
    leak = number("leak", leak)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=leak)


class StridedCNN(Layers):
    """Make document 003's CNN: convolutions of stride 2, each followed by GeneralReLU and BatchNorm.

    There are four of these (1 -> 8 -> 16 -> 32 -> 64 channels, the first with a 5x5 kernel), then a
    convolution to one value per class; weights are initialized by `init_leaky`.

    Shapes: (N, n_channels, 28, 28) -> (N, n_classes); other images too, if five halvings reduce them
        to 1x1 (17 to 32 pixels).

    Args:
        leak: slope of the ReLU below 0.
        norm: n_channels -> a normalization.

    Source: document 003, `CNNWithGeneralReLUAndBatchNorm`.
    Differs: this BatchNorm is torch's, with gradients through the batch statistics; the document's own
        computes them under no_grad.
    """

    def __init__(
        self,
        n_classes: int = 10,
        n_channels: int = 1,
        leak: float = 0.1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        n_classes, leak = whole_number("n_classes", n_classes, 1, LARGEST), number("leak", leak)
        n_channels = whole_number("n_channels", n_channels, 1, LARGEST)
        function("norm", norm, "a function n_channels -> module")
        widths = (n_channels, 8, 16, 32, 64)
        layers: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            size = 5 if i == 0 else 3
            conv = nn.Conv2d(n_in, n_out, size, stride=2, padding=size // 2)
            layers += [conv, GeneralReLU(leak), norm(n_out)]
        layers += [nn.Conv2d(widths[-1], n_classes, 3, stride=2, padding=1), nn.Flatten()]
        super().__init__(*layers)
        self.n_classes = n_classes
        self.apply(lambda module: init_leaky(module, leak))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        if out.shape[1] != self.n_classes:
            raise ValueError(f"images of {tuple(x.shape[2:])}: expected 17 to 32 pixels a side")
        return out
