"""The same trainings in plain torch, with the same loaders: the scores are the same, to the last bit."""

import copy
import time

import torch
from model import split
from sklearn.metrics import r2_score, roc_auc_score
from torch.nn import functional as F

from minilearn import MLP, TensorLoader, set_seed


def loss_of(preds, y, weight=None):
    """Return the loss of a batch, weighted where it has weights."""
    return F.mse_loss(preds, y) if weight is None else F.binary_cross_entropy_with_logits(preds, y, weight)


def validate(model, loader, score):
    """Return the mean loss and the score."""
    model.eval()
    with torch.no_grad():
        found = [(model(x), *target) for x, *target in loader]
    loss = sum(loss_of(*batch).double() * len(batch[0]) for batch in found).item() / loader.n_samples
    preds, targets = (torch.cat(parts).squeeze(1) for parts in list(zip(*found, strict=True))[:2])
    return loss, score(targets, preds)


def fit(model, train, valid, score, n_epochs=100, patience=10):
    """Train with early stopping; leave the weights of the best epoch."""
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    best, best_epoch, best_weights = float("inf"), 0, None
    for epoch in range(n_epochs):
        model.train()
        train.set_epoch(epoch)
        for x, *target in train:
            loss_of(model(x), *target).backward()
            opt.step()
            opt.zero_grad()
        loss, _ = validate(model, valid, score)
        if loss < best:
            best, best_epoch, best_weights = loss, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= patience:
            break
    model.load_state_dict(best_weights)


def run(seed=42, small=False):
    """Train on each fold of both tables; return means over the folds."""
    measures, seconds = {}, 0.0
    for table, name, score in (("diabetes", "r2", r2_score), ("cancer", "auroc", roc_auc_score)):
        scores = []
        for fold in range(2 if small else 10):
            set_seed(seed)
            train, valid, test = split(table, fold, seed, small)
            train, valid = TensorLoader(*train, bs=32, shuffle=True), TensorLoader(*valid)
            model = MLP(test[0].shape[1], 32, 1, dropout=0.2)
            start_s = time.perf_counter()
            fit(model, train, valid, score)
            seconds += time.perf_counter() - start_s
            scores.append(validate(model, TensorLoader(*test), score)[1])
        measures[name] = sum(scores) / len(scores)
    return measures | {"seconds": seconds}
