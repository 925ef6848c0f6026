"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from ..arguments import flag, number, whole_number
from .layers import LARGEST, Layers


class MLP(Layers):
    """Make linear layers of the given sizes with ReLU between them, on flattened inputs.

    `MLP(784, 32, 10)` has one hidden layer.

    Args:
        *sizes: of the inputs, each hidden layer, and the outputs.
        norm: put a BatchNorm between each hidden linear layer and its ReLU.
        dropout: share of hidden activations set to 0 in training, after the ReLU; 0 means no such layer.

    Shapes: (N, ...) with sizes[0] numbers per sample -> (N, sizes[-1]).
    """

    def __init__(self, *sizes: int, norm: bool = False, dropout: float = 0.0) -> None:
        if len(sizes) < 2:
            raise ValueError(f"MLP{sizes}: expected at least two sizes, of the inputs and of the outputs")
        sizes = tuple(whole_number(f"sizes[{i}]", size, 1, LARGEST) for i, size in enumerate(sizes))
        flag("norm", norm)
        number("dropout", dropout, low=0, below=1)
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in pairwise(sizes[:-1]):
            layers += [nn.Linear(n_in, n_out), *([nn.BatchNorm1d(n_out)] if norm else []), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))
