"""Train the GPT of ../char_gpt with Muon for the matrices of its blocks and AdamW for the rest.

The text is that of Python's help topics. Combined makes one optimizer of the two, so the schedule, the
clipping, the groups and the checkpoints are as with one. The same GPT is trained with AdamW alone, for as
many steps and with the same batches. What is measured is how many steps Muon takes to the held-out loss with
which AdamW ends.
"""

from functools import partial
from math import log
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from model import GPT, data, decay_matrices, is_hidden, loss_func

from minilearn import CheckpointCB, GradientClippingCB, Learner, MixedPrecisionCB, ScheduleCB, set_seed
from minilearn.optim import Combined
from minilearn.schedules import cosine, sequence, warm_up

STEPS = {"n_steps": 400, "epoch_steps": 25}
SMALL = {"n_steps": 6, "epoch_steps": 3}
ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99))
MUON = Combined((is_hidden, partial(torch.optim.Muon, lr=0.04)), ADAMW)


def warm_cosine(n_steps):
    """Rise for a tenth of the steps, then fall along a cosine."""
    up = max(n_steps // 10, 1)
    return sequence([warm_up(up), cosine(n_steps - up)], milestones=[up])


def learner(seed=42, small=False, opt_func=MUON):
    """Return the learner of the job; with ADAMW, the one that it is compared with."""
    set_seed(seed)
    dls, chars = data(seed, small)
    model, groups = GPT(len(chars)), decay_matrices
    cbs = [ScheduleCB("lr", warm_cosine), GradientClippingCB(1.0), MixedPrecisionCB(torch.bfloat16)]
    return Learner(model, dls, loss_func, lr=6e-3, cbs=cbs, opt_func=opt_func, param_groups=groups)


def run(seed=42, folder=Path("runs/muon"), small=False):
    """Train with each, draw the picture, and return the measures."""
    bits, settings = {}, SMALL if small else STEPS
    for name, opt_func in {"adamw": ADAMW, "muon": MUON}.items():
        learn = learner(seed, small, opt_func)
        learn.fit(**settings, cbs=CheckpointCB(folder / name, every_minutes=1), resume=True)
        bits[name] = [row["loss"] / log(2) for row in learn.history if row["train"] == "eval"]
    steps = [settings["epoch_steps"] * (i + 1) for i in range(len(bits["muon"]))]
    goal = bits["adamw"][-1]
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.plot(steps, bits["adamw"], marker="o", label="AdamW")
    ax.plot(steps, bits["muon"], marker="o", label="Muon for the matrices of the blocks")
    ax.axhline(goal, color="black", linestyle="--", label="where AdamW ends")
    ax.set(xlabel="step", ylabel="bits per character of held-out text")
    ax.legend()
    figure.savefig(folder / "picture.png", dpi=100)
    return {
        "muon_steps": next((n for n, value in zip(steps, bits["muon"], strict=True) if value <= goal), None),
        "adamw_steps": steps[-1],
        "muon_bits": bits["muon"][-1],
        "adamw_bits": goal,
        "seconds": sum(row["time_s"] for row in learn.history),
    }


if __name__ == "__main__":
    print(run())
