"""Train a denoising diffusion model on Fashion-MNIST, and show samples to the judge.

In `before_batch` a callback replaces each batch by noisy images and the target v of a cosine schedule; the
rest is an ordinary training, by steps. EMACB averages the weights; validation, and the samples after the fit,
use the average. Samples are drawn by DDIM in 20 steps. The noise is drawn from torch's generator,
which a resumed run continues.
"""

from pathlib import Path

from model import UNet, data, noised, sample, verdict
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import EMACB, BatchSchedulerCB, Callback, CheckpointCB, Learner, plot_images, set_seed

SMALL = {"n_steps": 8, "epoch_steps": 3}


class NoiseCB(Callback):
    """Replace a batch of images by noisy ones; the target is what tells image and noise apart."""

    def before_batch(self, learn):
        learn.batch = noised(learn.xb)


def learner(seed=42, small=False):
    """Return the learner of the job."""
    set_seed(seed)
    cbs = [NoiseCB(), BatchSchedulerCB(OneCycleLR), EMACB(0.99)]
    return Learner(UNet(), data(small), F.mse_loss, lr=3e-3, cbs=cbs)


def predict(learn):
    """Return new images."""
    return sample(learn.model, 8)


def run(seed=42, folder=Path("runs/diffusion"), small=False):
    """Train, sample, and return what the judge says."""
    learn = learner(seed, small)
    steps = SMALL if small else {"n_steps": 1200, "epoch_steps": 200}
    learn.fit(**steps, cbs=CheckpointCB(folder / "checkpoints", every_minutes=1), resume=True)
    set_seed(seed)  # the same samples, if it was resumed
    samples = sample(learn.model, 20 if small else 1000)
    confidence, n_classes = verdict("fashion_mnist", samples)
    plot_images(samples[:60], n_cols=12, size=0.7).savefig(folder / "picture.png")
    return {
        "diffusion_confidence": confidence,
        "diffusion_classes": n_classes,
        "loss": learn.history[-1]["loss"],
        "seconds": sum(row["time_s"] for row in learn.history),
    }


if __name__ == "__main__":
    print(run())
