"""Train a DCGAN on MNIST: two networks against each other, each with an optimizer and a schedule.

The learner's model is the generator. A callback has the discriminator, its optimizer and its scheduler as
attributes, so checkpoints hold them and a resumed run continues with them. In `after_predict` it trains the
discriminator, and then `get_loss` asks what the trained one thinks of the same images. The schedule of the
generator is a BatchSchedulerCB, that of the discriminator is made in `before_fit` for `learn.total_steps`.
"""

from functools import partial
from pathlib import Path

import torch
from model import N_LATENT, data, discriminator, generator, verdict
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR

from minilearn import BatchSchedulerCB, Callback, CheckpointCB, Learner, plot_images, set_seed

adam = partial(Adam, betas=(0.5, 0.999))


class GANCB(Callback):
    """Train a discriminator beside the generator, which is the learner's model."""

    in_evaluation = False  # so learn.predict takes latents
    logs = ("discriminator_loss",)

    def __init__(self, discriminator, lr):
        self.discriminator, self.opt = discriminator, adam(discriminator.parameters(), lr)

    def before_fit(self, learn):
        self.sched = LinearLR(self.opt, 1, 0.1, learn.total_steps)

    def predict(self, learn):
        learn.preds = learn.model(torch.randn(len(learn.xb), N_LATENT, device=learn.xb.device))

    def after_predict(self, learn):
        real, fake = self.discriminator(learn.xb), self.discriminator(learn.preds.detach())
        loss = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        self.sched.step()
        learn.log("discriminator_loss", loss)

    def get_loss(self, learn):
        fake = self.discriminator(learn.preds)
        learn.loss = bce(fake, torch.ones_like(fake))


def learner(seed=42, small=False):
    """Return the learner of the job."""
    set_seed(seed)
    model, gan = generator(), GANCB(discriminator(), lr=2e-4)
    cbs = [gan, BatchSchedulerCB(LinearLR, start_factor=1.0, end_factor=0.1)]
    return Learner(model, data(small), lr=1e-3, cbs=cbs, opt_func=adam)


def predict(learn):
    """Return new digits."""
    return learn.predict(torch.randn(8, N_LATENT))


def run(seed=42, folder=Path("runs/dcgan"), small=False):
    """Train, and return what the judge says of 1,000 samples."""
    learn = learner(seed, small)
    learn.fit(2, cbs=CheckpointCB(folder / "checkpoints", every_minutes=1), resume=True)
    set_seed(seed)  # the same samples, if it was resumed
    digits = (learn.predict(torch.randn(1000, N_LATENT)) + 1) / 2  # pixels from 0 to 1
    confidence, n_classes = verdict("mnist", digits)
    plot_images(digits[:60], n_cols=12, size=0.7).savefig(folder / "picture.png")
    return {
        "gan_confidence": confidence,
        "gan_classes": n_classes,
        "discriminator_loss": learn.history[-1]["discriminator_loss"],
        "seconds": sum(row["time_s"] for row in learn.history),
    }


if __name__ == "__main__":
    print(run())
