"""The digits of scikit-learn as one graph, in which each is linked to those that look most like it."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

IGNORED = -100  # the target that torch's cross-entropy leaves out


def digits(n_labels, seed, n=None, n_neighbours=8):
    """Return the graph twice: with n_labels targets of each digit, to train on, and with all the others.

    Args:
        n: how many digits; None: all 1,797.
    """
    pixels, y = (torch.as_tensor(part[:n]) for part in load_digits(return_X_y=True))
    x = (pixels / 16).float()
    nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(n_neighbours, largest=False).indices
    edges = torch.stack([torch.arange(len(x)).repeat_interleave(n_neighbours), nearest.flatten()])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    is_labelled = torch.zeros(len(x), dtype=torch.bool)
    for digit in range(10):
        is_labelled[order[y[order] == digit][:n_labels]] = True
    masks = ~is_labelled, is_labelled
    return [Data(x, to_undirected(edges), y=y.masked_fill(mask, IGNORED)) for mask in masks]


def draw(graph, preds, histories):
    """Return a figure: a map of the digits with the mistakes of each network, and the accuracies by steps."""
    places = TSNE(random_state=0, init="pca").fit_transform(graph.x.numpy())
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    known = graph.y != IGNORED
    for ax, (name, pred) in zip(axes, preds.items(), strict=False):
        wrong = (known & (pred != graph.y)).numpy()
        ax.scatter(*places.T, c=pred.numpy(), cmap="tab10", s=4)
        ax.scatter(*places[wrong].T, s=24, facecolors="none", edgecolors="black", linewidths=0.6)
        ax.scatter(*places[~known.numpy()].T, marker="*", s=40, color="black")
        ax.set(title=f"{name}: circles are mistakes, stars the labels", xticks=[], yticks=[])
    for name, history in histories.items():
        rows = [row for row in history if row["train"] == "eval"]
        axes[2].plot([row["MulticlassAccuracy"] for row in rows], marker=".", label=name)
    axes[2].set(xlabel="epoch of 25 steps", title="accuracy on the digits without a label")
    axes[2].grid(alpha=0.3)
    axes[2].legend()
    return figure
