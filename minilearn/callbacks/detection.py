"""DetectionCB: models that return their losses in training, and predictions in evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..batches import Samples, inputs_and_target
from ..callback import Callback
from .columns import OWN
from .metrics import MetricsCB

if TYPE_CHECKING:
    from ..learner import Learner


class DetectionCB(Callback):
    """Train a model that returns its losses in training and predictions in evaluation, as torchvision's do::

        model = torchvision.models.detection.fasterrcnn_resnet50_fpn(num_classes=3)
        train = DatasetLoader(dataset, bs=4, shuffle=True, collate_fn=lambda samples: tuple(zip(*samples)))
        learn = Learner(model, {"train": train, "eval": valid}, lr=1e-4, cbs=DetectionCB())
        learn.fit(10)
        boxes = learn.predict(valid)  # a list with a dict for each image

    A batch is (images, targets): a list or tuple of images, or one tensor of them, and a list or tuple of
    dicts. To predict, images without targets will do. In training the model gets both, `model(images,
    targets)`, and `learn.loss` is the sum of its losses; there are no predictions (learn.preds is None), and
    so no metrics. In evaluation it gets the images, `model(images)`, and computes no loss: the row has none,
    so a monitor names a metric, or "train/loss". `learn.loss_count` is the number of images.

    With a MetricsCB, each loss of a dict has a column in the rows of training, under its name, such as
    "loss_classifier": its mean over the images. One with the name of a column that each row has, such as
    "loss", is "model_loss" there, and one that is the only loss has no column. A monitor may name them.

    Runs at: cleanup_forward. Owns: unpack, predict, get_loss. Reads: batch. Writes: xb, yb (lists, as
        Samples), preds, loss, loss_count.
    State: none.
    Raises: ValueError for a batch that is not (images, targets), in training; TypeError for a model that
        returns no dict of losses there.
    """

    logs = None  # the model says which

    def __init__(self) -> None:
        self._losses: Any = None  # of the forward that is running

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it has no state between batches."""
        return {}

    def unpack(self, learn: Learner) -> None:
        images, targets = _images_and_targets(learn.batch)
        learn.xb, learn.yb = _samples(images), _samples(targets)

    def predict(self, learn: Learner) -> None:
        if not learn.training:
            preds = learn.model(learn.xb)
            learn.preds = Samples(preds) if isinstance(preds, list) else preds  # an item for each image
            return
        if learn.yb is None:
            raise ValueError(
                f"{self!r}: a batch is a {type(learn.batch).__name__} without targets: expected (images, "
                "targets), a list of images and a list of dicts; for a loader of samples (image, target), "
                "collate_fn=lambda samples: tuple(zip(*samples))"
            )
        self._losses = learn.model(learn.xb, learn.yb)

    def get_loss(self, learn: Learner) -> None:
        if not learn.training:
            return
        losses = self._losses
        if isinstance(losses, Tensor):
            losses = {"loss": losses}
        if not isinstance(losses, Mapping) or not all(isinstance(t, Tensor) for t in losses.values()):
            raise TypeError(
                f"{self!r}: in training the model gave a {type(losses).__name__}: expected a dict of losses, "
                "as the detection models of torchvision give; is the model in evaluation mode?"
            )
        learn.loss = sum(losses.values())
        if learn.loss_count is None:  # 0 in a process that has no sample
            learn.loss_count = len(learn.xb)
        if len(losses) > 1 and any(isinstance(cb, MetricsCB) for cb in learn.cbs):
            for name, value in losses.items():
                learn.log(f"model_{name}" if name in OWN else name, value)

    def cleanup_forward(self, learn: Learner) -> None:
        self._losses = None


def _images_and_targets(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and all(isinstance(t, Tensor) and t.ndim == 3 for t in batch):
        return batch, None  # images alone, of which two are no pair
    return inputs_and_target(batch)


def _samples(part: Any) -> Any:
    return Samples(part) if isinstance(part, tuple | list) else part
