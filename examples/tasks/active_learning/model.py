"""Images of MNIST without labels, how some are chosen to be labelled, and the picture."""

from functools import cache

import matplotlib.pyplot as plt
import torch

from minilearn import TensorLoader, mnist


@cache
def data(small=False):
    """Return 20,000 images of MNIST and their labels, and a loader of its test set; small: 600 and 200."""
    dls = mnist()
    n_pool, n_test = (600, 200) if small else (20_000, 10_000)
    x, y = dls.train.tensors
    return x[:n_pool], y[:n_pool], TensorLoader(*(t[:n_test] for t in dls.valid.tensors), bs=1000)


def random_order(seed, small=False):
    """Return the numbers of all images in a random order; the first ones are labelled to begin with."""
    return torch.randperm(len(data(small)[0]), generator=torch.Generator().manual_seed(seed))


def least_certain(logits, labelled, n):
    """Return the numbers of n images whose likeliest class is the least probable, without labelled ones."""
    certainty = logits.softmax(1).amax(1)
    certainty[labelled] = torch.inf
    return certainty.argsort()[:n]


def draw(n_added, accuracies, images, classes):
    """Draw the accuracy over the number of labels, and some of the images that were chosen."""
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)
    ax = left.subplots()
    for name, values in accuracies.items():
        n_labels = [n_added * (i + 1) for i in range(len(values))]
        ax.plot(n_labels, values, "o-", label=f"{name}: {values[-1]:.4f}")
    ax.set(xlabel="labels", title="accuracy on the test set")
    ax.grid(alpha=0.3)
    ax.legend()
    right.suptitle("least certain after the last round, with their labels")
    for ax, image, label in zip(right.subplots(4, 8).flat, images, classes, strict=False):
        ax.imshow(image[0].numpy(), cmap="gray_r")
        ax.set_title(label.item(), fontsize=8)
        ax.axis("off")
    return figure
