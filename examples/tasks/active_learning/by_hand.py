"""The rounds with chosen images in plain torch: the same images are chosen, and the accuracy is the same."""

import time

import torch
from model import data, least_certain, random_order
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import StridedCNN, TensorLoader, set_seed


def predict(model, batches):
    """Return the logits of all images."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(x) for x in batches])


def run(seed=42, small=False):
    """Train in rounds; return the last accuracy."""
    x, y, test = data(small)
    labelled, seconds = random_order(seed, small)[:100], 0.0
    n_epochs, n_rounds = (2, 3) if small else (20, 8)
    for _ in range(n_rounds):
        set_seed(seed)
        loader = TensorLoader(x[labelled], y[labelled], bs=32, shuffle=True)
        model = StridedCNN()
        start_s = time.perf_counter()
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        sched = OneCycleLR(opt, max_lr=1e-2, total_steps=n_epochs * len(loader))
        model.train()
        for epoch in range(n_epochs):
            loader.set_epoch(epoch)
            for xb, yb in loader:
                F.cross_entropy(model(xb), yb).backward()
                opt.step()
                opt.zero_grad()
                sched.step()
        added = least_certain(predict(model, x.split(1000)), labelled, 100)
        seconds += time.perf_counter() - start_s
        preds = predict(model, (xb for xb, _ in test)).argmax(1)
        accuracy = (preds == test.targets).double().mean().item()
        labelled = torch.cat([labelled, added])
    return {"chosen": accuracy, "seconds": seconds}
