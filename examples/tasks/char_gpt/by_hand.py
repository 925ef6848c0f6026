"""The training of train.py as a loop in plain torch, from the same weights, with the same batches.

Its bits per character are those of train.py, to the last bit.
"""

import math
import time

import torch
from model import GPT, data, decay_matrices, loss_func

N_STEPS, EPOCH_STEPS = 1200, 200


def lr_at(step, n_steps, lr=6e-3):
    """Return the lr of a step: a tenth of them to rise, then a cosine."""
    up = max(n_steps // 10, 1)
    if step < up:
        return lr * step / up
    return lr * (1 + math.cos(math.pi * ((step - up) / (n_steps - up)))) / 2


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
    opt = torch.optim.AdamW(decay_matrices(model), lr=6e-3, betas=(0.9, 0.99), fused=True)
    params = [p for group in opt.param_groups for p in group["params"]]
    n_steps, epoch_steps = (6, 3) if small else (N_STEPS, EPOCH_STEPS)
    begin = time.perf_counter()
    for step, (x, y) in zip(range(n_steps), dls.train, strict=False):  # less than one pass over the text
        for group in opt.param_groups:
            group["lr"] = lr_at(step, n_steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_func(model(x).float(), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
        if (step + 1) % epoch_steps == 0:
            bits = bits_of(model, dls.valid)
    return {"bits": bits, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    print(run())
