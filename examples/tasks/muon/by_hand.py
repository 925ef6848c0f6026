"""The training with Muon as a loop in plain torch, from the same weights, with the same batches.

Its bits per character are those of train.py, to the last bit.
"""

import math
import time

import torch
from model import GPT, data, is_hidden, loss_func

N_STEPS, EPOCH_STEPS = 400, 25


def share_at(step, n_steps):
    """Return the part of the lr that a step has: a tenth of them to rise, then a cosine."""
    up = max(n_steps // 10, 1)
    return step / up if step < up else (1 + math.cos(math.pi * ((step - up) / (n_steps - up)))) / 2


@torch.no_grad()
def bits_of(model, loader):
    """Return the bits per character of the targets that are not -100."""
    total, n = 0.0, 0
    for x, y in loader:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_func(model(x).float(), y)
        count = (y != -100).sum().item()
        total, n = total + loss.item() * count, n + count
    return total / n / math.log(2)


def run(seed=42, small=False):
    """Train, and return the measures."""
    torch.manual_seed(seed)
    dls, chars = data(seed, small)
    model = GPT(len(chars))
    named = dict(model.named_parameters())
    hidden = [p for name, p in named.items() if is_hidden(name, p)]
    matrices = [p for name, p in named.items() if p.ndim == 2 and not is_hidden(name, p)]
    vectors = [p for p in named.values() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    opts = [
        torch.optim.Muon(hidden, lr=0.04, weight_decay=0.1),
        torch.optim.AdamW(groups, lr=6e-3, betas=(0.9, 0.99), fused=True),
    ]
    lrs = [0.04, 6e-3]
    n_steps, epoch_steps = (6, 3) if small else (N_STEPS, EPOCH_STEPS)
    begin = time.perf_counter()
    for step, (x, y) in zip(range(n_steps), dls.train, strict=False):  # less than one pass over the text
        for opt, lr in zip(opts, lrs, strict=True):
            for group in opt.param_groups:
                group["lr"] = lr * share_at(step, n_steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_func(model(x).float(), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*hidden, *matrices, *vectors], 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if (step + 1) % epoch_steps == 0:
            bits = bits_of(model, dls.valid)
    return {"muon_bits": bits, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    print(run())
