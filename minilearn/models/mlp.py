"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


class MLP(nn.Sequential):
    """Make linear layers of the given sizes with ReLU between them, over flattened inputs.

    `MLP(784, 32, 10)` has one hidden layer.

    Shapes: (N, ...) with sizes[0] numbers a sample -> (N, sizes[-1]).
    """

    def __init__(self, *sizes: int) -> None:
        if len(sizes) < 2:
            raise ValueError(f"MLP{sizes}: expected at least two sizes, of the inputs and of the outputs")
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        super().__init__(*layers[:-1])
