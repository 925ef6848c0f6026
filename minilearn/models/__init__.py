"""Small models: the documents' strided CNN and a multilayer perceptron."""

from .cnn import GeneralReLU, StridedCNN, init_leaky
from .mlp import MLP

__all__ = ["MLP", "GeneralReLU", "StridedCNN", "init_leaky"]
