"""The training of train.py as a loop in plain torch, from the same weights and drawings, in another order."""

import time

import torch
from model import collate, detector, drawings
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision


def run(seed=42, small=False):
    """Train and measure."""
    torch.manual_seed(seed)
    n, size, n_epochs = (24, 32, 2) if small else (1500, 64, 6)
    train = DataLoader(drawings(n, size, seed), 16, shuffle=True, collate_fn=collate)
    valid = DataLoader(drawings(n // 6, size, seed + 1000), 50, collate_fn=collate)
    model = detector(size)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    sched = OneCycleLR(opt, max_lr=2e-3, total_steps=n_epochs * len(train))
    metric = MeanAveragePrecision()

    start_s = time.perf_counter()
    for epoch in range(n_epochs):
        model.train()
        total = 0.0
        for images, targets in train:
            loss = sum(model(images, targets).values())
            loss.backward()
            opt.step()
            opt.zero_grad()
            sched.step()
            total += loss.item() * len(images)
        model.eval()
        metric.reset()
        with torch.no_grad():
            for images, targets in valid:
                metric.update(model(images), targets)
        found = metric.compute()
        print(epoch, total / n, found["map"].item(), found["map_50"].item())
    return {"map": found["map"].item(), "seconds": time.perf_counter() - start_s}


if __name__ == "__main__":
    print(run())
