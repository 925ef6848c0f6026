"""The training of train.py as a loop in plain torch.

Weights and views are the same, and so is the loss on unseen images, bit for bit.
"""

import time

import torch
from model import TWO_VIEWS, SimCLR, every, nt_xent
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import set_seed


def run(seed=42, small=False):
    """Train the encoder."""
    start_s = time.perf_counter()
    set_seed(seed)
    dls = every(1_000, 8, TWO_VIEWS) if small else every(8, 256, TWO_VIEWS)
    model, n_epochs = SimCLR(), 2
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    schedule = OneCycleLR(opt, 3e-3, total_steps=n_epochs * len(dls.train))
    loss = 0.0
    for epoch in range(n_epochs):
        dls.train.set_epoch(epoch)
        model.train()
        for views, _ in dls.train:
            nt_xent(model(views)).backward()
            opt.step()
            opt.zero_grad()
            schedule.step()
        loss = validated(model, dls.valid)
    return {"loss": loss, "seconds": time.perf_counter() - start_s}


@torch.no_grad()
def validated(model, loader):
    """Return the mean loss over all images."""
    model.eval()
    total = sum(nt_xent(model(views)).item() * len(views) for views, _ in loader)
    return total / len(loader.targets)
