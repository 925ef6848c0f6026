"""Batches: loaders, and data sets that come as loaders."""

from .archives import unpack
from .augment import Augment, Cutout, HorizontalFlip, Normalize, RandomCrop
from .cifar import cifar10
from .datasets import DatasetLoader
from .idx import fashion_mnist, mnist
from .images import ImageLoader
from .loaders import DataLoaders, peek, to_device
from .resumable import ResumableLoader, TensorLoader
from .shapes import shapes

__all__ = [
    "Augment",
    "Cutout",
    "DataLoaders",
    "DatasetLoader",
    "HorizontalFlip",
    "ImageLoader",
    "Normalize",
    "RandomCrop",
    "ResumableLoader",
    "TensorLoader",
    "cifar10",
    "fashion_mnist",
    "mnist",
    "peek",
    "shapes",
    "to_device",
    "unpack",
]
