"""A user's script that mypy --strict passes: the correct twin of each mistake in wrong.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minilearn import (
    BatchSchedulerCB,
    Callback,
    DataLoaders,
    EarlyStoppingCB,
    Learner,
    RecorderCB,
    TensorLoader,
    plot_history,
    set_seed,
)


class NoteLossCB(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_step(self, learn: Learner) -> None:
        self.losses.append(learn.loss.item())
        for group in learn.opt.param_groups:
            group["weight_decay"] = 0.0


def accuracy(preds: Tensor, targets: Tensor) -> float:
    return (preds.argmax(1) == targets).float().mean().item()


def main() -> None:
    set_seed(0)
    x = torch.randn(64, 3)
    y = (x.sum(1) > 0).long()
    valid = TensorLoader(x, y, bs=16)
    dls = DataLoaders(TensorLoader(x, y, bs=16, shuffle=True), valid, classes=["cat", "dog"])
    recorder, note = RecorderCB(), NoteLossCB()

    learn = Learner(nn.Linear(3, 2), dls, nn.functional.cross_entropy, cbs=[recorder, note])
    finder = learn.lr_find(n_steps=20)
    learn.fit(2, lr=finder.suggestion, cbs=EarlyStoppingCB(patience=3))

    epoch: int = learn.history[-1]["epoch"]
    best = min(row["loss"] for row in learn.history if row["train"] == "eval")
    time_s = sum(row["time_s"] for row in learn.history[:2])
    print(f"epoch {epoch}: loss {best:.3f} in {time_s:.1f} s")

    preds: Tensor = learn.predict(x)
    both, targets = learn.predict(valid, with_targets=True)
    print(preds.softmax(1), accuracy(both, targets), learn.validate()["loss"] + 0.0)
    for index, part, target in learn.predict_batches(valid, with_targets=True):
        print(index, part.shape, target.shape)

    lr: float = learn.opt.param_groups[0]["lr"]
    lrs: list[float] = BatchSchedulerCB(torch.optim.lr_scheduler.OneCycleLR).preview(learn, 2, group=0)
    print(lr, max(lrs), learn.summary().n_params, max(recorder.recs["loss"]))
    rows: list[dict[str, object]] = [dict(row) for row in learn.history]
    print(rows, [row | {"run": 1} for row in learn.history])
    finder.plot().savefig("lr.png")
    plot_history(learn.history).savefig("history.png")


if __name__ == "__main__":
    main()
