"""Batches: loaders, and data sets that come as loaders."""

from ..batches import to_device
from .adapters import Adapter, adapter_of, peek
from .archives import unpack
from .augment import Augment, Cutout, HorizontalFlip, Normalize, RandomCrop, RandomResizedCrop
from .cifar import cifar10
from .datasets import DatasetLoader
from .folders import image_folder
from .idx import fashion_mnist, mnist
from .imagenet_subsets import imagenette, imagewoof
from .images import ImageLoader
from .loaders import DataLoaders
from .resumable import ResumableLoader, TensorLoader
from .shapes import shapes

__all__ = [
    "Adapter",
    "Augment",
    "Cutout",
    "DataLoaders",
    "DatasetLoader",
    "HorizontalFlip",
    "ImageLoader",
    "Normalize",
    "RandomCrop",
    "RandomResizedCrop",
    "ResumableLoader",
    "TensorLoader",
    "adapter_of",
    "cifar10",
    "fashion_mnist",
    "image_folder",
    "imagenette",
    "imagewoof",
    "mnist",
    "peek",
    "shapes",
    "to_device",
    "unpack",
]
