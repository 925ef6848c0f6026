"""CheckTrainedCB: find untrained parameters as soon as they appear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..callback import Callback, Order
from ..parameters import check_trained, warn_of_forgotten

if TYPE_CHECKING:
    from ..learner import Learner


class CheckTrainedCB(Callback):
    """Check that all parameters are trained, at the events whose hooks may add new ones to the model.

    It belongs to the learner: it runs last, and is not in `learn.cbs`.

    Runs at: before_fit, _epoch, _train; after_epoch. Reads: the parameters, opt.
    Raises: ValueError for a trainable parameter that no optimizer has.
    """

    order = Order.CHECKPOINT
    in_evaluation = False

    def before_fit(self, learn: Learner) -> None:
        check_trained(learn)

    def before_epoch(self, learn: Learner) -> None:
        check_trained(learn)

    def before_train(self, learn: Learner) -> None:
        check_trained(learn)

    def after_epoch(self, learn: Learner) -> None:
        check_trained(learn)
        warn_of_forgotten(learn)
