"""The same training in plain torch, from the same games: the mean return is the same."""

import copy
import time

import torch
from model import Games
from torch.nn import functional as F

from minilearn import MLP, set_seed


def loss_of(policy, batch):
    """Return the loss of a batch of games."""
    states, (actions, advantages) = batch
    return (F.cross_entropy(policy(states), actions, reduction="none") * advantages).mean()


def mean_return(policy, games):
    """Return the mean return of some batches of games; as a validation does, compute their loss too."""
    with torch.no_grad():
        batches = list(games)
        assert all(loss_of(policy, batch).isfinite() for batch in batches)
    return sum(len(states) for states, _ in batches) / (len(batches) * games.n_games)


def run(seed=42, small=False):
    """Train; return the mean return of 100 new games."""
    set_seed(seed)
    policy = MLP(4, 128, 2)
    n_batches, n_games = (3, 2) if small else (10, 8)
    train, valid = Games(policy, n_batches, n_games, seed), Games(policy, 2, n_games, seed + 1000)
    opt = torch.optim.AdamW(policy.parameters(), lr=1e-2, fused=True)
    best, best_epoch, best_weights = -1, 0, None
    start_s = time.perf_counter()
    for epoch in range(2 if small else 10):
        train.set_epoch(epoch)
        for batch in train:
            loss_of(policy, batch).backward()
            opt.step()
            opt.zero_grad()
        value = mean_return(policy, valid)
        if value > best:
            best, best_epoch, best_weights = value, epoch, copy.deepcopy(policy.state_dict())
        elif epoch - best_epoch >= 4:
            break
    policy.load_state_dict(best_weights)
    seconds = time.perf_counter() - start_s
    return {"mean_return": mean_return(policy, Games(policy, 1, 100, seed + 2000)), "seconds": seconds}
