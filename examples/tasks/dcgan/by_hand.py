"""The training of train.py as a loop in plain torch, on the same batches.

Its losses are those of train.py bit for bit.
"""

import time

import torch
from model import N_LATENT, data, discriminator, generator
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR

from minilearn import set_seed


def run(seed=42, small=False):
    """Train; return the last epoch's mean loss of the discriminator."""
    set_seed(seed)
    model, critic, dls, n_epochs = generator(), discriminator(), data(small), 2
    start_s = time.perf_counter()
    opt = Adam(model.parameters(), 1e-3, betas=(0.5, 0.999), fused=True)
    critic_opt = Adam(critic.parameters(), 2e-4, betas=(0.5, 0.999))
    n_steps = n_epochs * len(dls.train)
    sched, critic_sched = (LinearLR(o, 1, 0.1, n_steps) for o in (opt, critic_opt))
    model.train()
    for epoch in range(n_epochs):
        dls.train.set_epoch(epoch)
        total = 0.0
        for (images,) in dls.train:
            made = model(torch.randn(len(images), N_LATENT))
            real, fake = critic(images), critic(made.detach())
            critic_opt.zero_grad()
            loss = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
            loss.backward()
            critic_opt.step()
            critic_sched.step()
            total += loss.item()
            fake = critic(made)
            opt.zero_grad()
            bce(fake, torch.ones_like(fake)).backward()
            opt.step()
            sched.step()
    seconds = time.perf_counter() - start_s
    return {"discriminator_loss": total / len(dls.train), "seconds": seconds}
