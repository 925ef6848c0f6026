"""The training of train.py as a loop in plain torch, from the same weights, with the same batches.

Its accuracy is that of train.py. It does not log to W&B, whose start train.py counts too.
"""

import time

import torch
from model import bert, data
from torch.optim.lr_scheduler import OneCycleLR

N_EPOCHS = 6


@torch.no_grad()
def accuracy_of(model, loader):
    """Return the share of functions whose package the model names."""
    model.eval()
    n_right, n = 0, 0
    for batch in loader:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**batch).logits
        n_right += (logits.argmax(-1) == batch["labels"]).sum().item()
        n += len(logits)
    model.train()
    return n_right / n


def run(seed=42, small=False):
    """Train, and return the measures."""
    torch.manual_seed(seed)
    dls, tokenizer = data(seed, small)
    model = bert(tokenizer)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    n_epochs = 2 if small else N_EPOCHS
    sched = OneCycleLR(opt, max_lr=2e-3, total_steps=n_epochs * len(dls.train))
    begin = time.perf_counter()
    for epoch in range(n_epochs):
        dls.train.set_epoch(epoch)
        for batch in dls.train:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            opt.step()
            sched.step()
            opt.zero_grad()
        accuracy = accuracy_of(model, dls.valid)
    return {"accuracy": accuracy, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    print(run())
