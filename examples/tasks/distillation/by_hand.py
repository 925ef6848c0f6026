"""The three trainings of train.py as loops in plain torch.

Weights and batches are the same, and so are the accuracies, to rounding.
"""

import time

import torch
from model import first_images, large, little
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import set_seed


def run(seed=42, small=False):
    """Train the teacher, the student that it teaches, and the same student alone."""
    start_s = time.perf_counter()
    set_seed(seed)
    dls = first_images(64, 32, bs=16) if small else first_images(60_000, 10_000, bs=256)
    teacher = large()
    measures = {"teacher": fit(teacher, dls, cross_entropy, n_epochs=2, epoch_steps=len(dls.train))}
    teacher.requires_grad_(False)

    def distilled(model, xb, yb, temperature=4.0, share=0.9):
        preds = model(xb)
        wanted = F.softmax(teacher(xb) / temperature, dim=1)
        log_found = F.log_softmax(preds / temperature, dim=1)
        soft = temperature**2 * F.kl_div(log_found, wanted, reduction="batchmean")
        return preds, share * soft + (1 - share) * F.cross_entropy(preds, yb)

    for name, loss_func in {"taught": distilled, "alone": cross_entropy}.items():
        set_seed(seed)
        dls = first_images(64, 32, bs=16) if small else first_images(2_000, 10_000, bs=64)
        n_epochs, epoch_steps = (2, len(dls.train)) if small else (8, 80)
        measures[name] = fit(little(), dls, loss_func, n_epochs, epoch_steps)
    return measures | {"seconds": time.perf_counter() - start_s}


def cross_entropy(model, xb, yb):
    """Return predictions and their cross-entropy."""
    preds = model(xb)
    return preds, F.cross_entropy(preds, yb)


def fit(model, dls, loss_func, n_epochs, epoch_steps):
    """Train for epochs of some steps; return the accuracy at the end."""
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    schedule = OneCycleLR(opt, 1e-2, total_steps=n_epochs * epoch_steps)
    batches, accuracy = endless(dls.train), 0.0
    for _ in range(n_epochs):
        model.train()
        for _ in range(epoch_steps):
            loss_func(model, *next(batches))[1].backward()
            opt.step()
            opt.zero_grad()
            schedule.step()
        accuracy = evaluate(model, dls.valid, loss_func)
    return accuracy


def endless(loader):
    """Give the batches of one pass after another."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


@torch.no_grad()
def evaluate(model, loader, loss_func):
    """Return the accuracy; the loss is computed too, as train.py does."""
    model.eval()
    n_right = total = 0.0
    for xb, yb in loader:
        preds, loss = loss_func(model, xb, yb)
        n_right += (preds.argmax(1) == yb).sum().item()
        total += loss.item() * len(yb)
    return n_right / len(loader.targets)
