"""The training and validation of train.py as a loop in plain torch, on the same batches."""

import time
from itertools import count, islice

import torch
from model import UNet, data, noised
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel

from minilearn import set_seed


def validate(model, loader):
    """Return the mean loss over a loader."""
    model.eval()
    total, n = 0.0, 0
    with torch.no_grad():
        for images, classes in loader:
            inputs, target = noised(images, classes)
            total += F.mse_loss(model(*inputs), target).item() * len(images)
            n += len(images)
    model.train()
    return total / n


def passes(loader):
    """Give the batches of one pass after the other, each in its own order."""
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader


def ema(averages, weights, n_averaged):
    """Average with a decay that rises to 0.995."""
    decay = min(0.995, n_averaged.item() / (9 + n_averaged.item()))
    torch._foreach_lerp_(averages, weights, 1 - decay)


def run(seed=42, small=False):
    """Train; return the loss of the averaged weights on validation images."""
    set_seed(seed)
    model, dls = UNet(), data(small)
    n_steps, every = (8, 3) if small else (1600, 200)
    start_s = time.perf_counter()
    average = AveragedModel(model, multi_avg_fn=ema)
    average.update_parameters(model)  # the weights before the first step
    opt = AdamW(model.parameters(), lr=3e-3, fused=True)
    sched = OneCycleLR(opt, 3e-3, n_steps)
    for step, (images, classes) in enumerate(islice(passes(dls.train), n_steps), 1):
        inputs, target = noised(images, classes)
        F.mse_loss(model(*inputs), target).backward()
        opt.step()
        opt.zero_grad()
        average.update_parameters(model)
        if step < n_steps:
            sched.step()
        if step % every == 0 or step == n_steps:
            validate(model, dls.valid)
            loss = validate(average, dls.valid)
    return {"loss": loss, "seconds": time.perf_counter() - start_s}
