"""An endless stream of noisy signals, and a small network that cleans them."""

import matplotlib.pyplot as plt
import torch
from torch import nn


def signals(n, rng, noise=0.5, length=64):
    """Draw n sums of three waves; return them noisy, and as they are, both (n, 1, length)."""
    t = torch.linspace(0, 1, length)
    frequency, phase = 1 + 5 * torch.rand(n, 3, 1, generator=rng), 6.3 * torch.rand(n, 3, 1, generator=rng)
    height = torch.rand(n, 3, 1, generator=rng)
    clean = (height * torch.sin(6.3 * frequency * t + phase)).sum(1, keepdim=True)
    return clean + noise * torch.randn(clean.shape, generator=rng), clean


class Signals:
    """Batches without an end, each drawn once: its state is that of its random generator."""

    def __init__(self, bs, seed):
        self.bs, self.rng = bs, torch.Generator().manual_seed(seed)

    def __iter__(self):
        while True:
            yield signals(self.bs, self.rng)

    def state_dict(self):
        """Return where the stream is."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state):
        """Continue from there."""
        self.rng.set_state(state["rng"])


def cleaner(width=32):
    """Return a network of dilated convolutions, each output of which sees 63 points of the signal."""
    layers, n_in = [], 1
    for dilation in (1, 2, 4, 8, 16):
        layers += [nn.Conv1d(n_in, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Conv1d(width, 1, 1))


def draw(learn, n=3):
    """Return a figure: a few signals of each set, and the losses by steps."""
    sets = learn.dls.sets
    figure, axes = plt.subplots(
        len(sets), n + 1, figsize=(3.2 * (n + 1), 2.2 * len(sets)), layout="constrained"
    )
    for row, (name, dl) in zip(axes, sets.items(), strict=True):
        (noisy, clean), found = dl.tensors, learn.predict(dl)
        for i, ax in enumerate(row[:n]):
            ax.plot(noisy[i, 0], ".", color="silver", label="noisy")
            ax.plot(clean[i, 0], color="black", linewidth=1, label="the signal")
            ax.plot(found[i, 0], color="tab:red", linewidth=1, label="the network's")
            ax.set(title=name, xticks=[], yticks=[])
        row[n].plot([r["loss"] for r in learn.history if r["train"] == name], marker=".")
        row[n].set(title=f"{name}: mean squared error", xlabel="epoch of 100 steps", ylim=(0, None))
        row[n].grid(alpha=0.3)
    axes[0, 0].legend(fontsize=6)
    return figure
