"""Batches: loaders, and data sets that come as loaders."""

from ..batches import to_device
from .adapters import Adapter, adapter_of, peek
from .augment import Augment, Cutout, HorizontalFlip, Normalize, RandomCrop, RandomResizedCrop
from .dataset_loader import DatasetLoader
from .images import ImageLoader
from .loaders import DataLoaders
from .plans import balanced, by_length, mix
from .resumable import ResumableLoader, TensorLoader
from .sets.archives import unpack
from .sets.cifar import cifar10
from .sets.folders import image_folder
from .sets.idx import fashion_mnist, mnist
from .sets.imagenet_subsets import imagenette, imagewoof
from .sets.shapes import shapes

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
    "balanced",
    "by_length",
    "cifar10",
    "fashion_mnist",
    "image_folder",
    "imagenette",
    "imagewoof",
    "mix",
    "mnist",
    "peek",
    "shapes",
    "to_device",
    "unpack",
]
