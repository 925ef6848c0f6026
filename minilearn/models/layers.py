"""Layers: the base of models that are layers in a row."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

LARGEST = 10**8  # channels or features of a layer, and classes: beyond it nothing could be allocated
DEEPEST = 10_000  # blocks


class Layers(nn.Sequential):
    """Be a Sequential with its own constructor: a slice of it, such as model[:6], is a plain Sequential."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # torch would call the subclass's constructor with the layers
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)
