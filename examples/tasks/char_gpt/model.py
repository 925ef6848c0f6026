"""A GPT of characters, its text, and the five-gram that it is compared with."""

import math
from collections import Counter, defaultdict
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

from minilearn import DataLoaders, TensorLoader

LENGTH = 64  # characters that the model sees


def texts(small=False):
    """Return the text to train on and the last tenth, which is held out."""
    text = "\n".join(topics.values())[: 20_000 if small else None]
    n = len(text) * 9 // 10
    return text[:n], text[n:]


def data(seed, small=False):
    """Return loaders, and the characters in the order of their numbers."""
    train, held_out = texts(small)
    chars = sorted({*train, *held_out})
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in train + held_out])
    windows = ids[: len(train)].unfold(0, LENGTH + 1, 1)  # one begins at each character; a view, not a copy
    return DataLoaders(
        TensorLoader(windows[:, :-1], windows[:, 1:], bs=16, shuffle=True, seed=seed),
        TensorLoader(*held_out_windows(ids, len(train)), bs=64),
        source="pydoc_data.topics",
    ), chars


def held_out_windows(ids, first):
    """Return windows that predict each character from `first` on once, from at least half a window."""
    half, x, y = LENGTH // 2, [], []
    for begin in range(first, len(ids), half):
        end = min(begin + half, len(ids))
        x.append(ids[end - LENGTH - 1 : end - 1])
        y.append(ids[end - LENGTH : end].clone())
        y[-1][: LENGTH - (end - begin)] = -100  # cross-entropy leaves these out
    return torch.stack(x), torch.stack(y)


def turned(x):
    """Return queries or keys, (..., L, dim), each turned by angles that grow with its position."""
    length, dim = x.shape[-2:]
    speeds = 1000 ** -torch.arange(0, 1, 2 / dim, device=x.device)
    angles = torch.arange(length, device=x.device)[:, None] * speeds
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1).type_as(
        x
    )


class Block(nn.Module):
    """Causal attention, then a perceptron, each added to its input; at first both add nothing."""

    def __init__(self, dim, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        """Return the block's output, (N, L, dim) like x."""
        x = x + self.out(self.attend(self.qkv(self.norm1(x))))
        return x + self.down(F.relu(self.up(self.norm2(x))).square())

    def attend(self, qkv):
        """Return each position's mean of the values up to it, weighted by how well keys and query agree.

        In 16 bits on a CPU this is twice as fast as F.scaled_dot_product_attention.
        """
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        scores = turned(q) @ turned(k).mT / q.shape[-1] ** 0.5
        is_later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(is_later, -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class GPT(nn.Module):
    """A GPT of characters: (N, L) of their numbers -> (N, L, n_chars), the logits of the next ones."""

    def __init__(self, n_chars, dim=128, n_blocks=3, n_heads=4):
        super().__init__()
        self.embed = nn.Embedding(n_chars, dim)
        self.blocks = nn.Sequential(*(Block(dim, n_heads) for _ in range(n_blocks)))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, n_chars, bias=False)

    def forward(self, ids):
        """Return the logits; a position sees a part of the character before it from the start."""
        x = self.embed(ids)
        x = x + 0.5 * F.pad(x[:, :-1], (0, 0, 1, 0))
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def write(self, ids, n, seed=0):
        """Return the ids, (L,), and n more, each drawn from what the model expects."""
        generator, device = torch.Generator().manual_seed(seed), next(self.parameters()).device
        for _ in range(n):
            chances = self(ids[None, -LENGTH:].to(device))[0, -1].softmax(-1).cpu()
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)])
        return ids


def loss_func(preds, target):
    """Return the mean cross-entropy of the characters, in nats."""
    return F.cross_entropy(preds.flatten(0, 1), target.flatten())


def decay_matrices(model):
    """Return two groups: matrices, which decay, and vectors, which do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def five_gram_bits(train, held_out):
    """Return the bits per held-out character of a five-gram with Witten-Bell smoothing.

    p(c | last k) = (count(last k, c) + kinds(last k) * p(c | last k - 1)) / (count(last k) + kinds(last k)),
    for k from 0 to 4; below, all characters are equally likely.
    """
    counts = defaultdict(Counter)  # how often each character follows a text of 0 to 4
    for i, char in enumerate(train):
        for k in range(min(i, 4) + 1):
            counts[train[i - k : i]][char] += 1
    totals = {last: (seen.total(), len(seen)) for last, seen in counts.items()}
    n_chars, text, bits = len({*train, *held_out}), train + held_out, 0.0
    for i in range(len(train), len(text)):
        p = 1 / n_chars
        for k in range(5):
            n, kinds = totals.get(last := text[i - k : i], (0, 0))
            if n:
                p = (counts[last][text[i]] + kinds * p) / (n + kinds)
        bits -= math.log2(p)
    return bits / len(held_out)
