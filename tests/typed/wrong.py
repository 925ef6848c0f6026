"""A user's script with ten mistakes, each with the error that mypy --strict is to report in its line."""

from __future__ import annotations

import torch
from torch import nn

from minilearn import DataLoaders, EarlyStoppingCB, Learner, TensorLoader


def main() -> None:
    x, y = torch.randn(64, 3), torch.randint(0, 2, (64,))
    valid = TensorLoader(x, y, bs=16)
    dls = DataLoaders(TensorLoader(x, y, bs=16, shuffle=True), valid)
    learn = Learner(nn.Linear(3, 2), dls)

    Learner(nn.Linear(3, 2), valid)  # error: arg-type
    learn.fit(2, cbs=EarlyStoppingCB)  # error: arg-type
    learn.fit(2, lr="0.1")  # error: arg-type
    finder = learn.lr_find(num_steps=20)  # error: call-arg
    print(finder.suggested_lr)  # error: attr-defined
    print(learn.predict(valid, with_targets=True).argmax(1))  # error: attr-defined
    print(learn.predict(x).classes)  # error: attr-defined
    print(learn.opt.groups[0]["lr"])  # error: attr-defined
    print(learn.history[-1]["epoch"].upper())  # error: attr-defined
    print("loss " + learn.validate()["loss"])  # error: operator


if __name__ == "__main__":
    main()
