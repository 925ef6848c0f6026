"""Train a GPT of characters on the text of Python's help topics, the last tenth held out.

The fit counts steps, `n_steps` and `epoch_steps`, and ScheduleCB gives the lr a warm-up and a cosine.
GradientClippingCB clips, `param_groups` lets only matrices decay, and MixedPrecisionCB computes in bfloat16.
A callback of the job's own prints a sample of text after each epoch and keeps it. The bits per character of
all of the held-out text are compared with those of an interpolated five-gram.
"""

from functools import partial
from math import log
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from model import GPT, data, decay_matrices, five_gram_bits, loss_func, texts

from minilearn import (
    Callback,
    CheckpointCB,
    GradientClippingCB,
    Learner,
    MixedPrecisionCB,
    ScheduleCB,
    set_seed,
)
from minilearn.schedules import cosine, sequence, warm_up

STEPS = {"n_steps": 1200, "epoch_steps": 200}
SMALL = {"n_steps": 6, "epoch_steps": 3}
ROWS = {"train": "GPT, training text", "eval": "GPT, held-out text"}


class SampleCB(Callback):
    """Print a sample of text after each epoch, and keep it."""

    def __init__(self, chars, n=200):
        self.chars, self.n, self.samples = chars, n, []

    def after_epoch(self, learn):
        start = torch.tensor([self.chars.index("\n")])
        self.samples.append("".join(self.chars[i] for i in learn.model.write(start, self.n)))
        print(self.samples[-1])


def warm_cosine(n_steps):
    """Rise for a tenth of the steps, then fall along a cosine."""
    up = max(n_steps // 10, 1)
    return sequence([warm_up(up), cosine(n_steps - up)], milestones=[up])


def learner(seed=42, small=False):
    """Return the learner of the job."""
    set_seed(seed)
    dls, chars = data(seed, small)
    sampler = SampleCB(chars, n=20 if small else 400)
    cbs = [ScheduleCB("lr", warm_cosine), GradientClippingCB(1.0), MixedPrecisionCB(torch.bfloat16), sampler]
    opt_func = partial(torch.optim.AdamW, betas=(0.9, 0.99))
    model, groups = GPT(len(chars)), decay_matrices
    return Learner(model, dls, loss_func, lr=6e-3, cbs=cbs, opt_func=opt_func, param_groups=groups)


def run(seed=42, folder=Path("runs/char_gpt"), small=False):
    """Train, draw the picture, and return the measures."""
    learn = learner(seed, small)
    saver = CheckpointCB(folder / "checkpoints", every_minutes=1)
    learn.fit(**(SMALL if small else STEPS), cbs=saver, resume=True)
    bits = {name: [row["loss"] / log(2) for row in learn.history if row["train"] == name] for name in ROWS}
    five_gram = five_gram_bits(*texts(small))
    sampler = next(cb for cb in learn.cbs if isinstance(cb, SampleCB))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(2, 3), layout="constrained")
    for name, label in ROWS.items():
        left.plot(bits[name], marker="o", label=label)
    left.axhline(five_gram, color="black", linestyle="--", label="five-gram, held-out text")
    left.set(xlabel="epoch of 200 steps", ylabel="bits per character")
    left.legend()
    first, last = ("\n".join(line[:85] for line in sampler.samples[i].splitlines()) for i in (0, -1))
    text = f"AFTER THE FIRST EPOCH\n\n{first}\n\n\nAFTER THE LAST ONE\n\n{last}"
    right.text(0, 1, text, family="monospace", fontsize=8, va="top", parse_math=False)
    right.set_axis_off()
    figure.savefig(folder / "picture.png", dpi=100)
    seconds = sum(row["time_s"] for row in learn.history)
    return {"bits": bits["eval"][-1], "five_gram_bits": five_gram, "seconds": seconds}


if __name__ == "__main__":
    print(run())
