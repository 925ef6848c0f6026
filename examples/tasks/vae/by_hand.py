"""The training and validation of train.py as a loop in plain torch, on the same batches.

The bound is that of train.py to rounding.
"""

import time

import torch
from model import VAE, data
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import set_seed


def parts(model, images):
    """Return the log likelihood and the KL divergence, in nats per image."""
    logits, log_posterior, log_prior = model(images)
    likelihood = -F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
    return likelihood, (log_posterior - log_prior).mean()


def run(seed=42, small=False):
    """Train; return the bound on the test images."""
    set_seed(seed)
    model, dls, n_epochs = VAE(), data(small), 2 if small else 4
    start_s = time.perf_counter()
    opt = AdamW(model.parameters(), lr=4e-3, fused=True)
    sched = OneCycleLR(opt, 4e-3, n_epochs * len(dls.train))
    for epoch in range(n_epochs):
        dls.train.set_epoch(epoch)
        model.train()
        for (images,) in dls.train:
            likelihood, kl = parts(model, images)
            (kl - likelihood).backward()
            opt.step()
            opt.zero_grad()
            if sched.last_epoch + 1 < sched.total_steps:
                sched.step()
        model.eval()
        sums, n = torch.zeros(2), 0
        with torch.no_grad():
            for (images,) in dls.valid:
                sums += torch.stack(parts(model, images)) * len(images)
                n += len(images)
    likelihood, kl = (sums / n).tolist()
    seconds = time.perf_counter() - start_s
    return {"bound": likelihood - kl, "likelihood": likelihood, "kl": kl, "seconds": seconds}
