"""The training of the graph network in train.py as a loop in plain torch: the same weights, bit for bit.

It has the same initial weights and dropout, and the fused AdamW, which minilearn takes where there is one.
"""

import time

import torch
from model import IGNORED, digits
from torch.nn import functional as F
from torch_geometric.nn import GCN


def run(seed=42, small=False):
    """Train and measure."""
    torch.manual_seed(seed)
    n_steps, epoch_steps = (6, 3) if small else (300, 25)
    train, valid = digits(5, seed, n=200 if small else None)
    model = GCN(64, 64, num_layers=2, out_channels=10, dropout=0.5)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    is_labelled, is_valid = train.y != IGNORED, valid.y != IGNORED

    start_s = time.perf_counter()
    for step in range(1, n_steps + 1):
        model.train()
        preds = model(train.x, train.edge_index)
        loss = F.cross_entropy(preds[is_labelled], train.y[is_labelled])
        loss.backward()
        opt.step()
        opt.zero_grad()
        if step % epoch_steps == 0:
            model.eval()
            with torch.no_grad():
                preds = model(valid.x, valid.edge_index)
                accuracy = (preds.argmax(1) == valid.y)[is_valid].float().mean().item()
            print(step, loss.item(), accuracy)
    return {"graph": accuracy, "seconds": time.perf_counter() - start_s}


if __name__ == "__main__":
    print(run())
