"""Figures of images: a batch, results, and the largest losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import instances, whole_number
from ..batches import inputs_and_target, n_samples, tensors_in
from ..data.adapters.adapter import short
from ..data.loaders import DataLoaders
from ..learner import Learner
from ..plot import draw_images, in_own_range
from ..seeding import kept_rng
from .looking import Sample, index_of, look_at, sample_of
from .losses import top_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_top_losses(
    learn: Learner,
    dl: Any = None,
    n: int = 9,
    classes: Sequence[str] | None = None,
    loss_func: Callable[[Any, Any], Tensor] | None = None,
    n_cols: int = 3,
    size: float = 2.0,
) -> Figure:
    """Draw the images with the largest losses: the prediction, the target, the loss and the sample's number.

    Args:
        dl, n, loss_func: see `top_losses`, which returns the samples, for data of any kind.
        classes: names. None: those of the learner's data, or else numbers.
        n_cols: images in a row.
        size: of an image, in inches.

    Raises: ValueError, with their shape, for inputs that are not images (N, 1 or 3, H, W).
    """
    samples = top_losses(learn, dl, n, loss_func)
    names = _names(classes, learn.dls)
    titles = []
    for one in samples:
        number = "" if one.index is None else f"  #{one.index}"
        titles.append(f"{_two_labels(one, names)}\nloss {one.loss:.3g}{number}")
    norm = _norm_of(learn.dls, learn.dls.valid if dl is None else dl)
    images = _images(_stacked([one.inputs for one in samples]), "plot_top_losses", norm)
    return draw_images(images, titles, n_cols, size)


def show_results(
    learn: Learner,
    dl: Any = None,
    n: int = 9,
    classes: Sequence[str] | None = None,
    n_cols: int = 3,
    size: float = 2.0,
) -> Figure:
    """Draw the first images of data with their predictions and targets.

    Args: as of `plot_top_losses`.
    Raises: ValueError, with their shape, for inputs that are not images (N, 1 or 3, H, W).
    """
    n, samples = whole_number("n", n), list[Sample]()

    def look(learn: Learner, n_before: int) -> bool:
        n_here = n_samples(learn.xb) or 0
        index = index_of(learn, n_here, n_before)
        samples.extend(sample_of(learn, j, index, None) for j in range(min(n_here, n - len(samples))))
        return len(samples) < n

    loader = look_at(learn, dl, "show_results", look)
    names = _names(classes, learn.dls)
    images = _images(_stacked([one.inputs for one in samples]), "show_results", _norm_of(learn.dls, loader))
    return draw_images(images, [_two_labels(one, names) for one in samples], n_cols, size)


def show_batch(
    learn_or_dls: Any, n: int = 9, classes: Sequence[str] | None = None, n_cols: int = 3, size: float = 2.0
) -> Figure:
    """Draw the first images of a batch as the model gets them, with their targets.

    Args:
        learn_or_dls: a learner or DataLoaders, of which the training data are shown, or a loader.
        n: how many, or as many as the batch has.
        classes, n_cols, size: as of `plot_top_losses`.

    A Normalize is undone where the data have one: DataLoaders(transform=...), an ImageLoader's, or one of
    torchvision in the data set's transform. Images of which none is known are scaled, each to its own range,
    unless their values are from 0 to 1. The order of the data and random numbers stay as they are.

    Raises: ValueError for no data, and, with their shape, for inputs that are not images (N, 1 or 3, H, W).
    """
    n = whole_number("n", n)
    learn = learn_or_dls if isinstance(learn_or_dls, Learner) else None
    given = learn_or_dls if learn is None else learn.dls
    is_loader = not isinstance(given, DataLoaders | Mapping)
    dls = DataLoaders.of(None if is_loader else given)
    loader = given if is_loader else dls.train
    if loader is None:
        raise ValueError("show_batch: there is no train loader: expected one, or show_batch(loader)")
    adapter = dls.adapter_of(loader, "show_batch(learn_or_dls")
    with kept_rng(*adapter.generators()):
        batch = adapter.peek() if adapter.opens_to_peek else next(iter(adapter.head(1)), None)
    if batch is None:
        raise ValueError(f"show_batch: {short(loader)} gave no batch: expected at least one")
    inputs, target = _unpacked(learn, batch)
    images = _images(inputs, "show_batch", _norm_of(dls, loader))[:n]
    names = _names(classes, dls)
    of_each = target if isinstance(target, Tensor) and target.ndim and len(target) >= len(images) else None
    titles = [] if of_each is None else [_label(t.detach().cpu(), names) for t in of_each[: len(images)]]
    return draw_images(images, titles if any(titles) else [], n_cols, size)


def _unpacked(learn: Learner | None, batch: Any) -> tuple[Any, Any]:
    if learn is None:
        return inputs_and_target(batch, is_strict=False)
    with learn._batch_aside():
        learn.batch = batch
        return learn.xb, learn.yb


def _stacked(inputs: list[Any]) -> Any:
    """Return the inputs of samples as those of a batch, if they are alike."""
    found = [next(_images_in(one, 3), one) for one in inputs]
    is_alike = all(isinstance(t, Tensor) for t in found) and len({tuple(t.shape) for t in found}) == 1
    return torch.stack(found) if is_alike else inputs


def _images_in(inputs: Any, n_dims: int) -> Iterator[Tensor]:
    """Give the tensors in inputs that are images, or batches of them."""
    return (t for t in tensors_in(inputs) if t.ndim == n_dims and t.shape[-3] in (1, 3))


def _images(inputs: Any, name: str, norm: Any) -> Tensor:
    """Return the images among the inputs of a batch as pixels from 0 to 1, (N, 1 or 3, H, W) on the CPU."""
    found = [*_images_in(inputs, 4)]
    if len(found) != 1:
        shapes = [str(tuple(t.shape)) for t in tensors_in(inputs)][:5] or [f"a {type(inputs).__name__}"]
        raise ValueError(
            f"{name}: the inputs are {', '.join(shapes)}: expected images, one tensor (N, 1 or 3, H, W), all "
            "of one size"
        )
    images = found[0].detach().cpu()
    if images.dtype == torch.uint8:
        return images / 255
    images = images.float()
    if norm is not None and len(norm[0]) == images.shape[1]:
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in norm)
        return (images * std + mean).clamp(0, 1)
    scaled: Tensor = images if images.min() >= 0 and images.max() <= 1 else in_own_range(images)
    return scaled


def _norm_of(dls: DataLoaders, loader: Any) -> tuple[list[float], list[float]] | None:
    """Return mean and std of the Normalize that made the inputs of a loader, for pixels from 0 to 1."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and not hasattr(dataset, "transform") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # of a Subset
    transform = getattr(dataset, "transform", None)
    parts = [*(getattr(loader, "augment", None) or ())]
    parts += getattr(transform, "transforms", None) or [transform]
    norm = next((part for part in parts if type(part).__name__ == "Normalize"), dls.transform)
    if norm is None:
        return None
    return [float(x) for x in norm.mean], [float(x) for x in norm.std]


# Titles -------------------------------------------------------------------------------------------


def _names(classes: Sequence[str] | None, dls: DataLoaders) -> Sequence[str] | None:
    return dls.classes if classes is None else instances("classes", classes, str, "names of classes")


def _two_labels(sample: Sample, names: Sequence[str] | None) -> str:
    pred, target = sample.pred, sample.target
    if target is None:
        is_class = names is not None
    else:
        is_class = isinstance(target, Tensor) and not target.ndim and not target.is_floating_point()
    if is_class and isinstance(pred, Tensor) and pred.ndim == 1 and len(pred) > 1:
        pred = pred.argmax()
    found, wanted = _label(pred, names), _label(target, names)
    return f"{found}, is {wanted}" if wanted and found != wanted else found


def _label(value: Any, names: Sequence[str] | None) -> str:
    """Return the target or prediction of a sample as text; "" for a map, or anything else that is long."""
    if not isinstance(value, Tensor) or value.numel() > 4:
        return ""
    if value.ndim:
        return ", ".join(f"{x:.3g}" for x in value.flatten().tolist())
    if value.is_floating_point():
        return f"{float(value):.3g}"
    i = int(value)
    return names[i] if names is not None and 0 <= i < len(names) else str(i)
