"""Train a variational autoencoder on Fashion-MNIST, and show samples to the judge.

The loss needs more than predictions and target: a callback owns the step `get_loss`, and computes the bound
on the log likelihood from the three outputs of the model. `learn.log` puts the bound and its two parts into
the rows of history, in nats per image. The callback declares them in `logs`, so that EarlyStoppingCB or
CheckpointCB could watch "eval/bound". The batches are images without a target. Draws of the latent are
random numbers of torch, which a resumed run continues.
"""

from pathlib import Path

import torch
from model import VAE, data, verdict
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import BatchSchedulerCB, Callback, CheckpointCB, Learner, plot_images, set_seed


class BoundCB(Callback):
    """Train on the evidence lower bound: log likelihood of the pixels minus KL divergence from the prior."""

    logs = ("bound", "likelihood", "kl")

    def get_loss(self, learn):
        logits, log_posterior, log_prior = learn.preds
        likelihood = -F.binary_cross_entropy_with_logits(logits, learn.xb, reduction="sum") / len(learn.xb)
        kl = (log_posterior - log_prior).mean()
        learn.log("bound", likelihood - kl)
        learn.log("likelihood", likelihood)
        learn.log("kl", kl)
        learn.loss = kl - likelihood


def learner(seed=42, small=False):
    """Return the learner of the job."""
    set_seed(seed)
    return Learner(VAE(), data(small), lr=4e-3, cbs=[BoundCB(), BatchSchedulerCB(OneCycleLR)])


def run(seed=42, folder=Path("runs/vae"), small=False):
    """Train, sample, and return the bound and what the judge says."""
    learn = learner(seed, small)
    learn.fit(2 if small else 4, cbs=CheckpointCB(folder / "checkpoints", every_minutes=1), resume=True)
    set_seed(seed)  # the same samples, if it was resumed
    samples = learn.model.sample(1000)
    confidence, n_classes = verdict("fashion_mnist", samples)
    images = next(iter(learn.dls.valid))[0][:10]
    decoded = learn.predict(images)[0].sigmoid()
    titles = ["test image"] * 10 + ["decoded"] * 10 + ["sample"] * 30
    shown = torch.cat([images, decoded, samples[:30]])
    plot_images(shown, titles, n_cols=10, size=0.9).savefig(folder / "picture.png")
    row = learn.history[-1]
    return {
        "vae_confidence": confidence,
        "vae_classes": n_classes,
        "bound": row["bound"],
        "likelihood": row["likelihood"],
        "kl": row["kl"],
        "seconds": sum(row["time_s"] for row in learn.history),
    }


if __name__ == "__main__":
    print(run())
