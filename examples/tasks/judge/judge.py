"""Judges of generated images: small classifiers of MNIST and of Fashion-MNIST.

`train_judges.py` trained them; `mnist.json` and `fashion_mnist.json` say how accurate each is on the test
images, and how sure it is of them, of noise and the like. A network of ten classes may be sure of anything:
one for MNIST was 100 % sure that noise is a digit. So these have an eleventh class, "none of them", which
they learned from noise and from images in pieces.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import minilearn

FOLDER = Path(__file__).parent
NAMES = ("mnist", "fashion_mnist")


def images_of(name):
    """Return (images, classes) of the training set and of the test set, with pixels from 0 to 1."""
    loaders = getattr(minilearn, name)()
    (x, y), (x_test, y_test) = loaders.train.tensors, loaders.valid.tensors
    low, high = x.min(), x.max()  # the loaders normalize
    return ((x - low) / (high - low), y), (((x_test - low) / (high - low)).clamp(0, 1), y_test)


def network():
    """Make the classifier: (N, 1, 28, 28) with pixels from 0 to 1 -> (N, 11) logits."""
    layers, n_in = [], 1
    for n_out in (16, 32, 64):
        conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]
        n_in = n_out
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 3 * 3, 11))


def judge(name):
    """Return a function: images (N, 1, 28, 28), pixels from 0 to 1 -> probabilities of ten classes (N, 10).

    What is left to 1 is the probability that it is none of them.
    """
    if name not in NAMES:
        raise ValueError(f"judge({name!r}): expected one of {', '.join(NAMES)}")
    model = network().eval()
    model.load_state_dict(load_file(FOLDER / f"{name}.safetensors"))

    @torch.no_grad()
    def probabilities(images):
        if tuple(images.shape[1:]) != (1, 28, 28):
            raise ValueError(f"images of shape {tuple(images.shape)}: expected (N, 1, 28, 28)")
        if not (images.min() >= 0 and images.max() <= 1):
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"pixels from {low:.3g} to {high:.3g}: expected 0 to 1; clamp them, or rescale")
        return torch.cat([model(part).softmax(1)[:, :10] for part in images.split(1000)])

    return probabilities


def verdict(name, images):
    """Return how sure the judge is of its class for each image, on average, and how many classes it sees."""
    probs = judge(name)(images)
    return probs.amax(1).mean().item(), len(probs.argmax(1).unique())
