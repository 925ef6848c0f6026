"""Batches: loaders, and data sets that come as loaders."""

from .idx import fashion_mnist, mnist
from .loaders import DataLoaders, TensorLoader, peek, to_device
from .shapes import shapes

__all__ = ["DataLoaders", "TensorLoader", "fashion_mnist", "mnist", "peek", "shapes", "to_device"]
