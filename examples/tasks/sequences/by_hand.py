"""The two trainings of train.py as loops in plain torch, from the same weights and on the same batches.

Both losses are those of train.py bit for bit.
"""

import time

import torch
from model import TextGRU, WaveGRU, text_data, wave_data
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from minilearn import set_seed


def fit_waves(model, dls, n_epochs):
    """Train on packed sequences; return the mean squared error on validation data."""
    opt = AdamW(model.parameters(), lr=5e-3, fused=True)
    n_steps = n_epochs * len(dls.train)
    sched = CosineAnnealingLR(opt, n_steps)
    for epoch in range(n_epochs):
        dls.train.set_epoch(epoch)
        model.train()
        for waves, targets in dls.train:
            F.mse_loss(model(waves), targets).backward()
            opt.step()
            opt.zero_grad()
            if sched.last_epoch + 1 < n_steps:
                sched.step()
        model.eval()
        with torch.no_grad():
            parts = [(F.mse_loss(model(waves), targets), len(targets)) for waves, targets in dls.valid]
        loss = sum(loss.item() * n for loss, n in parts) / sum(n for _, n in parts)
    return loss


def fit_text(model, dls, n_epochs):
    """Train by truncated backpropagation; return the cross-entropy on validation data."""
    opt = AdamW(model.parameters(), lr=5e-3, fused=True)
    n_steps = n_epochs * len(dls.train)
    sched = CosineAnnealingLR(opt, n_steps)
    for _ in range(n_epochs):
        model.train()
        state = None
        for codes, targets in dls.train:
            logits, state = model(codes, state)
            state = state.detach()
            F.cross_entropy(logits, targets).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
            if sched.last_epoch + 1 < n_steps:
                sched.step()
        model.eval()
        state, losses = None, []
        with torch.no_grad():
            for codes, targets in dls.valid:
                logits, state = model(codes, state)
                losses.append(F.cross_entropy(logits, targets).item())
        loss = sum(losses) / len(losses)  # all batches are of one size
    return loss


def run(seed=42, small=False):
    """Train both; return their losses on validation data."""
    set_seed(seed)
    model, dls = WaveGRU(), wave_data(small)
    start_s = time.perf_counter()
    packed_loss = fit_waves(model, dls, 2 if small else 4)
    seconds = time.perf_counter() - start_s
    set_seed(seed)
    model, dls = TextGRU(), text_data(small)
    start_s = time.perf_counter()
    truncated_loss = fit_text(model, dls, 2 if small else 1)
    seconds += time.perf_counter() - start_s
    return {"packed_loss": packed_loss, "truncated_loss": truncated_loss, "seconds": seconds}
