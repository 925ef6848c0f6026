"""Keras on torch."""

from __future__ import annotations

import os
from typing import Any, cast

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported, which reads it then

import keras
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from work import FASHION_BS, FASHION_LR, LOOP_LR, Fit, Ready, Trained, numpy_sets

from minilearn import MLP, StridedCNN

SETTINGS = {
    "loop": "`KERAS_BACKEND=torch`; the same torch model, in a TorchModuleWrapper in a subclass of Model, "
    "as in its docs; Keras's own AdamW with torch's weight decay and epsilon; `metrics=['accuracy']`, "
    "`verbose=0`, not compiled, as is its default on torch; a callback sets lr and momentum before each "
    "batch, to the numbers of torch's OneCycleLR; a DataLoader with `batch_size=None` over the batches",
    "fashion": "the same, with `fit(x, y, batch_size=512, validation_data=...)` of numpy arrays",
}


class OneCycle(keras.callbacks.Callback):  # type: ignore[misc]
    """Set lr and momentum of each step."""

    def __init__(self, lr: float, n_steps: int) -> None:
        super().__init__()
        self.values, self.step = cycle(lr, n_steps), 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        opt = self.model.optimizer
        opt.learning_rate, opt.beta_1 = self.values[self.step]
        self.step += 1


def cycle(lr: float, n_steps: int) -> list[tuple[float, float]]:
    """Return the lr and momentum that torch's OneCycleLR gives each step."""
    opt = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr)
    sched = OneCycleLR(opt, lr, total_steps=n_steps)
    values = []
    for _ in range(n_steps):
        group = opt.param_groups[0]
        values.append((group["lr"], group["betas"][0]))
        opt.step()
        sched.step()
    return values


class Wrapped(keras.Model):  # type: ignore[misc]
    """A Keras model of a torch module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.wrapper = keras.layers.TorchModuleWrapper(module, output_shape=(None, 10))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.wrapper(inputs, training=training)


def model_of(module: nn.Module, lr: float) -> Any:
    """Return a compiled Keras model that holds the module."""
    model = Wrapped(module)
    model.compile(
        optimizer=keras.optimizers.AdamW(lr, weight_decay=0.01, epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def loop(ready: Ready, n_epochs: int, device: torch.device) -> Fit:
    model = model_of(MLP(784, 32, 10), LOOP_LR)
    one_cycle = OneCycle(LOOP_LR, n_epochs * len(ready))

    def fit() -> Trained:
        batches = DataLoader(cast(Any, ready), batch_size=None)
        history = model.fit(batches, epochs=n_epochs, verbose=0, shuffle=False, callbacks=[one_cycle]).history
        return Trained(history["accuracy"][-1], history["loss"][-1])

    return fit


def fashion(n_epochs: int, device: torch.device) -> Trained:
    (x, y), valid = numpy_sets()
    model = model_of(StridedCNN(), FASHION_LR)
    history = model.fit(
        x,
        y,
        batch_size=FASHION_BS,
        epochs=n_epochs,
        verbose=0,
        validation_data=valid,
        callbacks=[OneCycle(FASHION_LR, n_epochs * -(-len(x) // FASHION_BS))],
    ).history
    return Trained(history["val_accuracy"][-1], history["val_loss"][-1])
