"""Two recurrent networks and their data: noisy waves of different lengths, and a long text."""

import math
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from minilearn import DataLoaders, DatasetLoader, TensorLoader

# Waves of different lengths, as packed sequences ------------------------------------------------------


def waves(n, seed):
    """Return n samples: a noisy sine of 10 to 60 values, (length, 1), and ten times its frequency, (1,)."""
    rng, samples = torch.Generator().manual_seed(seed), []
    for _ in range(n):
        length = torch.randint(10, 61, (), generator=rng).item()
        frequency, phase = 0.05 + 0.2 * torch.rand(1, generator=rng), torch.rand(1, generator=rng)
        wave = torch.sin(2 * math.pi * (frequency * torch.arange(length) + phase))
        noise = 0.3 * torch.randn(length, generator=rng)
        samples.append(((wave + noise)[:, None], 10 * frequency))
    return samples


def packed(samples):
    """Collate samples to a batch: a PackedSequence, and the targets."""
    inputs, targets = zip(*samples, strict=True)
    return pack_sequence(inputs, enforce_sorted=False), torch.stack(targets)


def wave_data(small=False):
    """Return loaders of batches of 64 waves: 6,000 to train on, 2,000 to validate."""
    n, n_valid = (256, 64) if small else (6000, 2000)
    train = DatasetLoader(waves(n, seed=0), bs=64, shuffle=True, collate_fn=packed)
    return DataLoaders(train, DatasetLoader(waves(n_valid, seed=1), bs=64, collate_fn=packed))


class WaveGRU(nn.Module):
    """Predict a number from the last state of each sequence: a PackedSequence of N -> (N, 1)."""

    def __init__(self, width=64):
        super().__init__()
        self.gru, self.head = nn.GRU(1, width), nn.Linear(width, 1)

    def forward(self, waves):
        _, state = self.gru(waves)
        return self.head(state[-1])


# A long text, in windows that follow one another ------------------------------------------------------

TEXT = "".join(topics.values())  # Python's own help, 465,000 characters
CHARACTERS = sorted(set(TEXT))


def windows(text, n_streams=32, length=64):
    """Return a loader of windows of n_streams pieces of a text: each batch continues the one before.

    Shapes: inputs and targets (n_streams, length), numbers of characters; the target is the next character.
    """
    numbers = {character: i for i, character in enumerate(CHARACTERS)}
    codes = torch.tensor([numbers[character] for character in text])
    n_windows = (len(codes) - 1) // (n_streams * length)
    used = n_streams * n_windows * length

    def in_order(codes):
        pieces = codes.view(n_streams, n_windows, length)
        return pieces.transpose(0, 1).reshape(-1, length)  # all first windows, all second ones, ...

    return TensorLoader(in_order(codes[:used]), in_order(codes[1 : used + 1]), bs=n_streams)


def text_data(small=False):
    """Return loaders of the text: nine tenths to train on, the rest to validate."""
    text = TEXT[:20_000] if small else TEXT
    n = len(text) * 9 // 10
    return DataLoaders(windows(text[:n], 8 if small else 32), windows(text[n:], 8 if small else 32))


class TextGRU(nn.Module):
    """Predict the next character: (N, T) and a state -> logits (N, characters, T), and the next state."""

    def __init__(self, width=192):
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), 64)
        self.gru = nn.GRU(64, width, batch_first=True)
        self.head = nn.Linear(width, len(CHARACTERS))

    def forward(self, codes, state=None):
        out, state = self.gru(self.embed(codes), state)
        return self.head(out).transpose(1, 2), state
