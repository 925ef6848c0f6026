"""REINFORCE on CartPole: a policy learns to balance a pole from the games that it plays itself.

The data are games of gymnasium's CartPole-v1, played when a batch is read. `Games` has `__len__` and
`__getitem__`, as a list of batches has, and batch i of an epoch begins from a seed made of (seed, epoch, i):
a killed training plays the same games again, so it resumes bit for bit without a state of the environment.
The loss is a function of (preds, target), whose target is (actions, advantages). `ReturnCB` logs the mean
return of the games, which `EarlyStoppingCB` monitors; it leaves the weights of the best epoch.
"""

import time
from pathlib import Path

from model import Games, draw
from torch.nn import functional as F

from minilearn import MLP, Callback, CheckpointCB, DataLoaders, EarlyStoppingCB, Learner, set_seed

N_EPOCHS = 10


class ReturnCB(Callback):
    """Log the mean return of a batch of games: a game's return is the number of its steps."""

    logs = ("mean_return",)

    def after_loss(self, learn):
        n_games = learn.dl.n_games
        learn.log("mean_return", len(learn.xb) / n_games, count=n_games)


def reinforce_loss(logits, target):
    """Return the mean over the steps of -log p(action) times the step's advantage."""
    actions, advantages = target
    return (F.cross_entropy(logits, actions, reduction="none") * advantages).mean()


def learner(seed=42, small=False):
    """Return a learner whose data its own model plays."""
    set_seed(seed)
    policy = MLP(4, 128, 2)
    n_batches, n_games = (3, 2) if small else (10, 8)
    train = Games(policy, n_batches, n_games, seed)
    valid = Games(policy, 2, n_games, seed + 1000)
    cbs = [ReturnCB(), EarlyStoppingCB("eval/mean_return", mode="max", patience=4)]
    return Learner(policy, DataLoaders(train, valid), reinforce_loss, lr=1e-2, cbs=cbs)


def run(seed=42, folder=Path("runs/reinforce"), small=False):
    """Train; return the mean return of 100 new games."""
    learn = learner(seed, small)
    start_s = time.perf_counter()
    saver = CheckpointCB(folder / "checkpoints", every_minutes=1)
    learn.fit(2 if small else N_EPOCHS, cbs=saver, resume=True)
    seconds = time.perf_counter() - start_s
    draw(learn.history, learn.model, MLP(4, 128, 2), seed).savefig(folder / "picture.png")
    unseen = Games(learn.model, 1, 100, seed + 2000)
    returned = learn.validate(unseen)["mean_return"]
    return {"mean_return": returned, "n_epochs": learn.n_epochs_trained, "seconds": seconds}


if __name__ == "__main__":
    print(run())
