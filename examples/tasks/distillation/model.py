"""The two networks, and the images of Fashion-MNIST that each learns from."""

from torch import Tensor, nn

from minilearn import MLP, DataLoaders, ResNet, TensorLoader, fashion_mnist


def large() -> nn.Module:
    """Return a ResNet of 77,754 parameters."""
    return ResNet((1, 1, 1), (16, 32, 64), n_channels=1, stem_stride=2)


def little() -> nn.Module:
    """Return a multilayer perceptron of 25,450 parameters, whose forward costs a hundredth of the other's."""
    return MLP(784, 32, 10)


def first_images(n: int, n_valid: int, bs: int) -> DataLoaders:
    """Return loaders of the first n training images, and of the first n_valid others."""
    dls = fashion_mnist()
    train, valid = ([t[:n] for t in dl.tensors] for dl, n in ((dls.train, n), (dls.valid, n_valid)))
    return DataLoaders(
        TensorLoader(*train, bs=bs, shuffle=True), TensorLoader(*valid, bs=1_000), classes=dls.classes
    )


def accuracy(preds: Tensor, target: Tensor) -> Tensor:
    """Return the share of targets that are predicted."""
    return (preds.argmax(1) == target).float().mean()
