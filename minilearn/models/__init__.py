"""Small models: the documents' strided CNN, residual networks for small images, a multilayer perceptron."""

from .cnn import GeneralReLU, StridedCNN, init_leaky
from .mlp import MLP
from .resnet import ResNet, resnet18, resnet20

__all__ = ["MLP", "GeneralReLU", "ResNet", "StridedCNN", "init_leaky", "resnet18", "resnet20"]
