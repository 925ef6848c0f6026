"""Small models: a strided CNN, residual and dense networks for small images, a multilayer perceptron."""

from .cnn import GeneralReLU, StridedCNN, init_leaky
from .densenet import DenseNet, densenet121
from .mlp import MLP
from .resnet import ResNet, resnet18, resnet20

__all__ = [
    "MLP",
    "DenseNet",
    "GeneralReLU",
    "ResNet",
    "StridedCNN",
    "densenet121",
    "init_leaky",
    "resnet18",
    "resnet20",
]
