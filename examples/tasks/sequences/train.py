"""Train two recurrent networks: on packed sequences, and by truncated backpropagation.

The first one finds the frequency of noisy sines of 10 to 60 values. Its batches are PackedSequences, made
by a collate_fn of DatasetLoader; nothing else is needed. The second one predicts the characters of Python's
own help. Each batch continues the texts of the batch before, so a callback that owns the step `predict`
carries the hidden state over, detached, as an attribute. A checkpoint holds it like any other attribute, so
a run that is resumed in the middle of the text continues from that state.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from model import TextGRU, WaveGRU, text_data, wave_data
from torch.optim.lr_scheduler import CosineAnnealingLR

from minilearn import (
    BatchSchedulerCB,
    Callback,
    CheckpointCB,
    GradientClippingCB,
    Learner,
    RecorderCB,
    set_seed,
)


class CarriedStateCB(Callback):
    """Give the model the state that it ended the batch before with; a pass begins without one."""

    def __init__(self):
        self.state = None

    def predict(self, learn):
        state = self.state if learn.batch_idx else None
        learn.preds, state = learn.model(learn.xb, state)
        self.state = state.detach()


def learner(seed=42, small=False):
    """Return the learner of the text, with carried state."""
    set_seed(seed)
    cbs = [CarriedStateCB(), GradientClippingCB(1.0), BatchSchedulerCB(CosineAnnealingLR)]
    return Learner(TextGRU(), text_data(small), lr=5e-3, cbs=cbs)


def wave_learner(seed=42, small=False):
    """Return the learner of the packed sequences."""
    set_seed(seed)
    return Learner(WaveGRU(), wave_data(small), lr=5e-3, cbs=BatchSchedulerCB(CosineAnnealingLR))


def run(seed=42, folder=Path("runs/sequences"), small=False):
    """Train both; return their losses on validation data."""
    waves = wave_learner(seed, small)
    waves.fit(2 if small else 4, cbs=CheckpointCB(folder / "waves", every_minutes=1), resume=True)
    text, recorder = learner(seed, small), RecorderCB()
    text.fit(2 if small else 1, cbs=[recorder, CheckpointCB(folder / "text", every_minutes=1)], resume=True)
    preds, targets = waves.predict(waves.dls.valid, with_targets=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.scatter(targets / 10, preds / 10, s=3, alpha=0.5)
    left.plot([0.05, 0.25], [0.05, 0.25], color="black", linewidth=0.7)
    left.set(title="waves of 10 to 60 values", xlabel="frequency", ylabel="predicted")
    right.plot(recorder.recs["loss"], linewidth=0.7, label="train")
    right.axhline(text.history[-1]["loss"], color="black", linewidth=0.7, label="validation, at the end")
    right.set(title="text, with carried state", xlabel="steps", ylabel="nats per character")
    right.legend()
    figure.savefig(folder / "picture.png")
    return {
        "packed_loss": waves.history[-1]["loss"],
        "truncated_loss": text.history[-1]["loss"],
        "seconds": sum(row["time_s"] for row in waves.history + text.history),
    }


if __name__ == "__main__":
    print(run())
