"""Batches: loaders, and data sets that come as loaders."""

from .archives import unpack
from .datasets import DatasetLoader
from .idx import fashion_mnist, mnist
from .loaders import DataLoaders, peek, to_device
from .resumable import ResumableLoader, TensorLoader
from .shapes import shapes

__all__ = [
    "DataLoaders",
    "DatasetLoader",
    "ResumableLoader",
    "TensorLoader",
    "fashion_mnist",
    "mnist",
    "peek",
    "shapes",
    "to_device",
    "unpack",
]
