"""The pretraining and the gradual unfreezing of train.py as loops in plain torch.

Weights, batches and augmentation are the same, and so are the accuracies, to rounding.
"""

import time

import torch
from model import five_classes, network
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import set_seed


def run(seed=42, small=False):
    """Pretrain a network, and fine-tune it by gradual unfreezing."""
    start_s = time.perf_counter()
    set_seed(seed)
    dls = five_classes(0, n=8, n_valid=4, bs=8) if small else five_classes(0, n=5_000, n_valid=500, bs=128)
    model = network()
    n_steps = len(dls.train)
    pretraining = fit(model, dls, [{"params": model.parameters(), "lr": 4e-3}], 2, n_steps, n_frozen=0)
    weights = model.state_dict()
    set_seed(seed)
    dls = five_classes(5, n=8, n_valid=4, bs=8) if small else five_classes(5, n=50, n_valid=500, bs=32)
    model = network()
    model.load_state_dict(weights)
    model.reset_classifier(5)
    children = [child for child in model.children() if list(child.parameters())]
    lrs = [5e-3 / 1.3**i for i in reversed(range(len(children)))]
    groups = [{"params": child.parameters(), "lr": lr} for child, lr in zip(children, lrs, strict=True)]
    n_epochs, n_steps, n_frozen = (2, len(dls.train), 1) if small else (6, 40, 2)
    unfreezing = fit(model, dls, groups, n_epochs, n_steps, n_frozen)
    return {"pretraining": pretraining, "unfreezing": unfreezing, "seconds": time.perf_counter() - start_s}


def fit(model, dls, groups, n_epochs, epoch_steps, n_frozen):
    """Train for epochs of some steps, of which the first n_frozen train only the last layer."""
    opt = torch.optim.AdamW(groups, fused=True)
    schedule = OneCycleLR(opt, [group["lr"] for group in groups], total_steps=n_epochs * epoch_steps)
    accuracy = 0.0
    batches = endless(dls.train)
    for epoch in range(n_epochs):
        model.train()
        model.requires_grad_(True)
        if epoch < n_frozen:
            freeze_all_but_last(model)
        for _ in range(epoch_steps):
            xb, yb = next(batches)
            F.cross_entropy(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
            schedule.step()
        accuracy = accuracy_of(model, dls.valid)
    return accuracy


def endless(loader):
    """Give the batches of one pass after another."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def freeze_all_but_last(model):
    """Leave only the last layer to be trained, and the statistics of BatchNorms as they are."""
    *others, _ = [child for child in model.children() if list(child.parameters())]
    for child in others:
        child.requires_grad_(False)
        for module in child.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@torch.no_grad()
def accuracy_of(model, loader):
    """Return the share of images whose class is predicted."""
    model.eval()
    n_right = sum((model(xb).argmax(1) == yb).sum().item() for xb, yb in loader)
    return n_right / len(loader.targets)
