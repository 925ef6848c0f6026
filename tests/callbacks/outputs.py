"""Small models that compute their own loss, as those of transformers do, and batches for them."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from toolbox import drawn, generator
from torch import nn
from torch.nn import functional as F

V, T, PAD = 7, 6, -100


@dataclass
class Output:
    loss: Any = None
    logits: Any = None


Named = namedtuple("Named", "loss logits", defaults=(None, None))
KINDS = {
    "dataclass": Output,
    "namedtuple": Named,
    "namespace": lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
    "dict": dict,
}


class Net(nn.Module):
    """Predict a label for each token, or the next token, or a class of the sequence."""

    def __init__(self, of="token", kind=Output, p=0.0):
        super().__init__()
        self.of, self.kind = of, kind
        self.embed, self.drop, self.head = nn.Embedding(V, 5), nn.Dropout(p), nn.Linear(5, V)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        x = x.mean(1) if self.of == "sequence" else x.cumsum(1)
        logits = self.head(self.drop(x))
        if labels is None:
            return self.kind(loss=None, logits=logits)
        wanted, given = labels, logits
        if self.of == "next":
            wanted, given = labels[:, 1:], logits[:, :-1]
        loss = F.cross_entropy(given.reshape(-1, V), wanted.reshape(-1))
        return self.kind(loss=loss, logits=logits)


def net(of="token", **kwargs):
    return drawn(Net(of, **kwargs))


def tokens(n, of="token", rng=None):
    """Return n sequences of various lengths as one dict: ids, a mask, and labels that are -100 where padded.

    For the next token, the labels are the ids.
    """
    rng = rng or generator(4)
    ids, lengths = torch.randint(V, (n, T), generator=rng), torch.randint(2, T + 1, (n,), generator=rng)
    mask = (torch.arange(T) < lengths[:, None]).long()
    if of == "sequence":
        labels = torch.randint(V, (n,), generator=rng)
    else:
        labels = ids.clone() if of == "next" else torch.randint(V, (n, T), generator=rng)
        labels[mask == 0] = PAD
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def cut(batch, *sizes):
    """Cut a dict batch into several."""
    parts = {name: t.split(sizes) for name, t in batch.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


class Rows:
    """A data set of dicts that can also read several at once, as `datasets.Dataset` does."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i):
        return {name: t[i] for name, t in self.columns.items()}

    def __getitems__(self, indices):
        return [self[i] for i in indices]
