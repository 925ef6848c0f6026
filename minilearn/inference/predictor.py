"""Predictor: what a file of `Learner.export` says of images and tensors, without the model's source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..arguments import instances, shown, unless_none, whole_number
from .program import FORMAT, Program, read, readable
from .transform import PixelTransform


class Prediction(NamedTuple):
    """The class of one sample.

    label: its name, or its number where the classes have no names.
    probability: of this class.
    probabilities: of each class, (n_classes,), in the order of `Predictor.classes`.
    """

    label: str
    probability: float
    probabilities: Tensor

    def __repr__(self) -> str:
        return f"{self.label} ({self.probability:.1%})"


def load_predictor(path: str | Path) -> Predictor:
    """Read a file that `learn.export` wrote; the model's source is not needed.

        predictor = minilearn.load_predictor("pets.pt2")
        predictor("cat.jpg")  # cat (98.2%)
        predictor(["cat.jpg", "dog.jpg"])

    The file is read as numbers and text: its operators come from a fixed list, and nothing in it is run,
    unpickled or imported. So a file from elsewhere can give wrong answers, but cannot run code.

    Raises: FileNotFoundError; ValueError, with the path, for another, a damaged or a changed file.
    """
    with readable(path):
        return Predictor(*read(path), str(path))


class Predictor:
    """Predict with an exported model, on the CPU.

    Attributes:
        classes: the names of the classes; None for a model that has none.
        transform: how an image becomes an input; None if that was not known.
        about: what the file says of itself: versions, the model's class, the shapes of its inputs.
    """

    def __init__(self, program: Program, about: dict[str, Any], name: str = "") -> None:
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this version of minilearn reads {FORMAT}")
        self._program, self.about, self._name = program, about, name
        given = about["transform"]
        self.classes: list[str] | None = unless_none(instances, "classes", about["classes"], str, "names")
        self.transform = None if given is None else PixelTransform.from_plain(given)

    def __repr__(self) -> str:
        shapes = ", ".join(f"(N, {', '.join(map(str, one['shape']))})" for one in self.about["inputs"])
        of = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"Predictor({self.about['model']}: {shapes}{of})"

    def __call__(self, data: Any, bs: int = 64) -> Any:
        """Predict for one or several samples.

        Args:
            data: an image, a list of images, or a batch of the model's own inputs. An image is a path, a PIL
                image, or bytes: an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W), of uint8; with
                one dimension more it is several. Floats are the model's inputs as it was trained on them: a
                tensor or array (N, ...), or for several inputs a tuple of them, or a dict by their names.
            bs: samples at once.

        Returns: for a model with classes, a Prediction for one image, and a list of them for several; for
            others the model's output, a tensor (N, ...) or a tuple of them.
        Raises: FileNotFoundError and ValueError for images that cannot be read; ValueError for other shapes.
        """
        bs = whole_number("bs", bs)
        inputs, is_one = self._inputs_of(data)
        batches = [self._program(*(x[i : i + bs] for x in inputs)) for i in range(0, len(inputs[0]), bs)]
        if isinstance(batches[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
        found = torch.cat(batches)
        if self.classes is None:
            return found
        predictions = self._named(found)
        return predictions[0] if is_one else predictions

    def _named(self, scores: Tensor) -> list[Prediction]:
        classes = self.classes or []
        if scores.shape[1:] != (len(classes),):
            raise ValueError(
                f"{self._name}: the model gives {tuple(scores.shape)}, for {len(classes)} classes"
            )
        probabilities = scores.softmax(1)
        best = probabilities.max(1)
        rows = zip(best.indices.tolist(), best.values.tolist(), probabilities, strict=True)
        return [Prediction(classes[i], value, row) for i, value, row in rows]

    def _inputs_of(self, data: Any) -> tuple[tuple[Tensor, ...], bool]:
        """Return the inputs of the model, and whether they are of one image."""
        if isinstance(data, Mapping):
            names = [one.get("name", str(i)) for i, one in enumerate(self.about["inputs"])]
            if set(data) != set(names):
                raise ValueError(f"inputs named {list(data)}: expected {names}")
            data = tuple(data[name] for name in names)
        if isinstance(data, tuple):
            return self._checked(tuple(torch.as_tensor(one) for one in data)), False
        if isinstance(data, Tensor | np.ndarray) and not _are_bytes(data):
            return self._checked((torch.as_tensor(data),)), False
        if self.transform is None:
            raise ValueError(
                f"{self!r} was exported without a transform, so it takes only its inputs, a tensor of floats "
                f"(N, ...): got {shown(data)}. learn.export(..., transform=Normalize(mean, std)) takes images"
            )
        images, is_one = _images_of(data)
        if not images:
            raise ValueError("no image was given: expected one or more")
        return self._checked((self.transform(images),)), is_one

    def _checked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        expected = self.about["inputs"]
        if len(inputs) != len(expected):
            raise ValueError(f"{len(inputs)} inputs: expected {len(expected)}")
        for x, one in zip(inputs, expected, strict=True):
            wanted, dtype = tuple(one["shape"]), one["dtype"]
            if tuple(x.shape[1:]) != wanted or str(x.dtype) != f"torch.{dtype}" or not len(x):
                raise ValueError(
                    f"an input of {str(x.dtype).removeprefix('torch.')} and shape {tuple(x.shape)}: expected "
                    f"{dtype} (N, {', '.join(map(str, wanted))})"
                )
        return tuple(x.detach().cpu() for x in inputs)


def _are_bytes(data: Any) -> bool:
    return str(data.dtype).endswith("uint8")


def _images_of(data: Any) -> tuple[list[Any], bool]:
    """Return images as a list, and whether it was one."""
    if isinstance(data, Tensor | np.ndarray):
        return ([data], True) if data.ndim < 4 else (list(data), False)
    if isinstance(data, str | Path) or not isinstance(data, Iterable) or hasattr(data, "getbands"):
        return [data], True
    return list(data), False
