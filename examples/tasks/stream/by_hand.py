"""The training of train.py as a loop in plain torch: the same weights, bit for bit.

It reads the same stream from the same initial weights, and takes the fused AdamW, as minilearn does where
there is one.
"""

import time

import torch
from model import Signals, cleaner, signals
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR


def run(seed=42, small=False):
    """Train and measure."""
    torch.manual_seed(seed)
    n, n_steps, epoch_steps = (64, 9, 3) if small else (1000, 800, 100)
    rng = torch.Generator().manual_seed(seed + 1000)
    sets = {name: signals(n, rng, noise) for name, noise in (("clean", 0.5), ("shifted", 1.0))}
    model, stream = cleaner(), iter(Signals(32, seed))
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    sched = OneCycleLR(opt, max_lr=5e-3, total_steps=n_steps)

    start_s = time.perf_counter()
    for step in range(1, n_steps + 1):
        model.train()
        noisy, clean = next(stream)
        loss = F.mse_loss(model(noisy), clean)
        loss.backward()
        opt.step()
        opt.zero_grad()
        sched.step()
        if step % epoch_steps == 0:
            losses = {f"{name}_loss": validate(model, *pair) for name, pair in sets.items()}
            print(step, loss.item(), losses)
    return losses | {"seconds": time.perf_counter() - start_s}


def validate(model, noisy, clean):
    """Return the mean loss of a set."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for x, y in zip(noisy.split(250), clean.split(250), strict=True):
            total += F.mse_loss(model(x), y).item() * len(x)
    return total / len(noisy)


if __name__ == "__main__":
    print(run())
