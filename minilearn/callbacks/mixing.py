"""Other views of a batch: MixupCB and CutMixCB in training, TestTimeFlipCB in validation."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import number
from ..batches import items_of, map_tensors, rebuilt, tensors_in
from ..callback import Callback, Order
from ..fitting.checks import check_one_number

if TYPE_CHECKING:
    from ..learner import Learner


_LARGEST_ALPHA = 10**6  # above it all shares are 1/2, and python's draws overflow at last


class BaseMixingCB(Callback):
    """Train on mixtures of samples, with mixtures of their losses; a subclass says how inputs are mixed.

        loss = m * loss(preds, y_i) + (1 - m) * loss(preds, y_j)

    with m the share of sample i in the mixture, and j a random permutation of the batch.
    """

    order = Order.MIXING
    only_one = "each would mix what the other has mixed, with targets of its own"
    may_come_and_go = True
    needs_target = True
    in_evaluation = False
    in_lr_find = False

    def __init__(self, alpha: float) -> None:
        self.alpha = number(f"{type(self).__name__}(alpha", alpha, above=0, high=_LARGEST_ALPHA)
        self._share = 1.0
        self._other: Any = None  # targets of the samples mixed in

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.alpha})"

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it has no state between batches."""
        return {}

    def mixed(self, xb: Tensor, order: Tensor, share: float) -> tuple[Tensor, float]:
        """Return inputs mixed with those in another order, and the share of the former in the mixture.

        Args:
            share: drawn from Beta(alpha, alpha).
        """
        raise NotImplementedError

    def check_inputs(self, xb: Any) -> None:
        """Raise TypeError for inputs that cannot be mixed."""
        raise NotImplementedError

    def before_fit(self, learn: Learner) -> None:
        if not learn.has_default("get_loss"):
            raise ValueError(
                f"{self!r} mixes the values of loss_func, but here get_loss has an owner: expected the "
                "learner's own get_loss"
            )
        self.check_inputs(learn.xb)

    def before_batch(self, learn: Learner) -> None:
        if not learn.training:
            return
        xb, yb = learn.xb, learn.yb
        order = torch.randperm(len(xb), device=xb.device)
        share = random.betavariate(self.alpha, self.alpha)
        self._other = map_tensors(lambda t: t[order], yb)
        learn.xb, self._share = self.mixed(xb, order, share)

    def after_loss(self, learn: Learner) -> None:
        if learn.training:
            loss_func: Any = learn.loss_func  # a fit knows it
            check_one_number(loss_func, learn.loss)
            other = loss_func(learn.preds, self._other)
            learn.loss = self._share * learn.loss + (1 - self._share) * other

    def cleanup_batch(self, learn: Learner) -> None:
        if learn.training:
            self._other = None


class MixupCB(BaseMixingCB):
    """Train on mixtures of images, with mixtures of their losses.

        x = m * x_i + (1 - m) * x_j;  loss = m * loss(preds, y_i) + (1 - m) * loss(preds, y_j)

    with m from Beta(alpha, alpha), one for each batch, and j a random permutation of the batch. Both losses
    use the targets unchanged, so any loss that is a mean over samples works: one that takes only class
    numbers, with or without label smoothing, or one of floats. Training metrics compare with y_i.

    Args:
        alpha: > 0, at most 1e6; small values mix little, with 1 all mixtures are equally likely.

    Runs at: before_fit, _batch; after_loss; cleanup_batch; order -30. Reads: loss_func, yb. Writes: xb, loss.
    State: none; m comes from python's random numbers, the permutation from torch's; checkpoints hold both.
    Raises: before training, ValueError if a callback or a subclass owns get_loss, because then there is no
        loss_func to mix; TypeError for inputs that are not a floating tensor.
    Source: Zhang et al. 2018.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__(alpha)

    def mixed(self, xb: Tensor, order: Tensor, share: float) -> tuple[Tensor, float]:
        """Return share * x_i + (1 - share) * x_j, and the share."""
        return torch.lerp(xb[order], xb, share), share

    def check_inputs(self, xb: Any) -> None:
        """Raise TypeError for anything but one tensor of floats."""
        _check_inputs(self, xb)


class CutMixCB(BaseMixingCB):
    """Train on images with a rectangle of another image, with mixtures of their losses.

        x = x_i, with a rectangle of x_j;  loss = m * loss(preds, y_i) + (1 - m) * loss(preds, y_j)

    The rectangle has the proportions of the image and a share of 1 - a of its area, with a from Beta(alpha,
    alpha). Its centre is anywhere in the image, and what lies outside is cut off; m is the share of the
    pixels that are still those of x_i. Each batch has one rectangle, and j is a random permutation of it. As
    for MixupCB, any loss that is a mean over samples works, and training metrics compare with y_i. Only one
    of the two can be used in a fit.

    Args:
        alpha: > 0, at most 1e6; with 1, as in the paper, all areas are equally likely.

    Shapes: inputs (N, C, H, W), or any (N, ..., H, W), of any dtype.

    Runs at: before_fit, _batch; after_loss; cleanup_batch; order -30. Reads: loss_func, yb. Writes: xb, loss.
    State: none; the rectangle comes from python's random numbers, the permutation from torch's; checkpoints
        hold both.
    Raises: before training, ValueError if a callback or a subclass owns get_loss, because then there is no
        loss_func to mix, and for targets that are maps of the images; TypeError for inputs that are not
        images.
    Source: Yun et al. 2019; torchvision's v2.CutMix has the same rectangles.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def before_fit(self, learn: Learner) -> None:
        super().before_fit(learn)
        if maps := [t for t in tensors_in(learn.yb) if _is_map(t, learn.xb)]:
            raise ValueError(
                f"{self!r}: the targets are {_said(maps[0])}, maps of the images, and would be wrong in the "
                "rectangle: expected one target for each image, such as its class; MixupCB takes maps"
            )

    def mixed(self, xb: Tensor, order: Tensor, share: float) -> tuple[Tensor, float]:
        """Return images with a rectangle of others, and the share of the former in the pixels."""
        height, width = xb.shape[-2:]
        top, bottom = _span(height, share)
        left, right = _span(width, share)
        mixed = xb.clone()
        mixed[..., top:bottom, left:right] = xb[order, ..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)

    def check_inputs(self, xb: Any) -> None:
        """Raise TypeError for anything but one tensor of images."""
        if not isinstance(xb, Tensor) or xb.ndim < 4:
            raise TypeError(f"{self!r}: the inputs are {_said(xb)}; expected images (N, C, H, W)")


def _span(size: int, share: float) -> tuple[int, int]:
    """Return where a rectangle begins and ends in one direction, around a random place."""
    centre, half = random.randrange(size), int(0.5 * math.sqrt(1 - share) * size)
    return max(centre - half, 0), min(centre + half, size)


class TestTimeFlipCB(Callback):
    """Validate and predict with the mean of the predictions for each image and its mirror image.

    Those of one or two dimensions, such as scores of classes, are taken to be the same for both. Maps of the
    image, such as those of segmentation, are mirrored back first.

    Runs at: before_fit, after_predict; order -40. Reads: xb. Writes: preds. In training it does nothing.
    Shapes: inputs (N, C, H, W), mirrored along W. Predictions (N,), (N, K), or maps (N, H, W), of the image's
        size, and (N, K, H', W'); also several, in tuples, lists and mappings.
    Raises: TypeError before training, or at the first batch, for inputs that are not images; TypeError for
        other predictions, such as boxes.
    """

    order = Order.VIEWS
    may_come_and_go = True
    in_lr_find = False
    __test__ = False  # to pytest its name looks like a test

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it has no state."""
        return {}

    def before_fit(self, learn: Learner) -> None:
        if learn.batch is not None:
            _check_inputs(self, learn.xb, n_dims=4)  # now, not after an epoch

    def after_predict(self, learn: Learner) -> None:
        if learn.training:
            return
        _check_inputs(self, learn.xb, n_dims=4)
        xb, preds = learn.xb, learn.preds
        learn.xb = xb.flip(-1)
        try:
            learn.callback("predict")  # its owner, whoever that is
        finally:
            learn.xb = xb
        learn.preds = self._mean(preds, learn.preds, xb)

    def _mean(self, preds: Any, mirrored: Any, xb: Tensor) -> Any:
        """Return the mean of predictions for images and for their mirror images, however nested."""
        if items := items_of(preds):
            others = items_of(mirrored) or {}
            return rebuilt(preds, {key: self._mean(part, others.get(key), xb) for key, part in items.items()})
        is_floats = isinstance(preds, Tensor) and preds.is_floating_point()
        if not is_floats or preds.shape != mirrored.shape or (preds.ndim > 2 and not _is_map(preds, xb)):
            raise TypeError(
                f"{self!r}: the predictions are {_said(preds)}: expected floats that do not depend on left "
                "and right, (N,) or (N, K), or maps of the image, (N, H, W) or (N, K, H, W)"
            )
        dtype = torch.promote_types(preds.dtype, torch.float32)
        back = mirrored.flip(-1) if preds.ndim > 2 else mirrored
        return (preds.to(dtype) + back.to(dtype)) / 2


def _is_map(part: Tensor, xb: Tensor) -> bool:
    """Whether predictions or targets are maps of the images: four-dimensional ones may be smaller."""
    return part.ndim == 4 or (part.ndim == 3 and part.shape[1:] == xb.shape[-2:])


def _check_inputs(cb: Callback, xb: Any, n_dims: int | None = None) -> None:
    if isinstance(xb, Tensor) and xb.is_floating_point() and (n_dims is None or xb.ndim == n_dims):
        return
    wanted = "images (N, C, H, W)" if n_dims else "one tensor"
    raise TypeError(f"{cb!r}: the inputs are {_said(xb)}; expected {wanted} of floats")


def _said(xb: Any) -> str:
    return f"{xb.dtype} of shape {tuple(xb.shape)}" if isinstance(xb, Tensor) else f"a {type(xb).__name__}"
