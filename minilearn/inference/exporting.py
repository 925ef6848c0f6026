"""Write a model as one file that `minilearn.load_predictor` reads without the model's source."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arguments import path as checked_path
from ..arguments import shown
from ..batches import inputs_and_target
from ..data import peek
from ..data.augment import Normalize, normalize
from ..files import written_whole
from ..weights import unwrapped
from .program import FORMAT, read
from .transform import PixelTransform

if TYPE_CHECKING:
    from ..learner import Learner


def export(
    model: nn.Module,
    path: str | Path,
    example: Any,
    classes: Sequence[str] | None = None,
    transform: PixelTransform | None = None,
    version: str = "",
) -> None:
    """Write a model's program and weights, with what a predictor needs beside them.

    Args:
        example: inputs of a batch, a tensor, a tuple of tensors, or a dict of them by the names of the
            model's arguments; the samples in dimension 0. The file takes batches of any size.
        classes: the names of the classes, for a model that returns a score for each.
        transform: how the bytes of an image become an input.
        version: minilearn's.

    Raises: ValueError, with the part of the model, for what torch.export cannot trace, or the predictor does
        not compute; nothing is written then.
    """
    path = checked_path("path", path)
    if path.suffix != ".pt2":
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .pt2")
    names, inputs = _inputs_of(example)
    kinds = [{"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch.")} for x in inputs]
    if names is not None:
        kinds = [kind | {"name": name} for name, kind in zip(names, kinds, strict=True)]
    model = copy.deepcopy(unwrapped(model)).cpu().eval().requires_grad_(False)
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    model = model if names is None else _ByName(model, names)
    with torch.no_grad():
        found = model(*inputs)
    if not isinstance(found, Tensor) and not _are_tensors(found):
        raise ValueError(
            f"export: {_name_of(model)} returns {type(found).__name__}: expected a tensor or a tuple of "
            "tensors; export a module that returns these"
        )
    if classes is not None and not (isinstance(found, Tensor) and found.shape[1:] == (len(classes),)):
        raise ValueError(
            f"export: there are {len(classes)} classes, but the model returns {_shapes(found)}: expected "
            f"(N, {len(classes)}), a score for each; classes=None leaves them out"
        )
    about = {
        "format": FORMAT,
        "minilearn": version,
        "torch": torch.__version__,
        "model": name,
        "inputs": kinds,
        "classes": None if classes is None else list(classes),
        "transform": None if transform is None else transform.as_plain(),
    }
    made = io.BytesIO()
    torch.export.save(_traced(model, inputs), made, extra_files={"minilearn.json": json.dumps(about)})
    _check(made, found, inputs, model)
    with written_whole(path) as file:
        file.write(made.getvalue())


class _ByName(nn.Module):
    """Call a model by the names of its arguments."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)))


def _inputs_of(example: Any) -> tuple[list[str] | None, tuple[Tensor, ...]]:
    """Return the names of the inputs, if they have some, and the inputs, on the CPU, two samples or more."""
    names = [str(name) for name in example] if isinstance(example, Mapping) else None
    given = list(example.values()) if isinstance(example, Mapping) else example
    given = given if isinstance(given, tuple | list) else (given,)
    if not given or not all(isinstance(x, Tensor) and x.ndim for x in given):
        raise TypeError(
            f"example={shown(example)}: expected the inputs of a batch: a tensor, a tuple or dict of tensors"
        )
    if len({len(x) for x in given}) != 1:
        raise ValueError(f"example: its inputs have {[len(x) for x in given]} samples: expected one number")
    # torch.export takes a size of 0 or 1 for one that never changes
    grown = (x.detach().cpu() if len(x) > 1 else torch.cat([x.detach().cpu()] * 2) for x in given)
    return names, tuple(grown)


def _are_tensors(found: Any) -> bool:
    return type(found) in (tuple, list) and all(isinstance(x, Tensor) for x in found)


def _shapes(found: Any) -> str:
    return str(tuple(found.shape)) if isinstance(found, Tensor) else f"{len(found)} tensors"


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Return torch's program of the model, for any number of samples."""
    sizes: Any = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    if isinstance(model, _ByName):  # whose forward takes *inputs
        sizes = (sizes,)
    try:
        return torch.export.export(model, inputs, dynamic_shapes=sizes, strict=False)
    except Exception as error:  # torch raises many kinds
        said = str(error).strip().splitlines()
        raise ValueError(
            f"export: torch cannot trace {_name_of(model)}{_part_in(error)}: {said[0] if said else ''}. "
            "A step that depends on values of tensors, or on the number of samples, has to be written "
            "another way; python -c 'import torch; help(torch.export.export)' says how"
        ) from error


def _name_of(model: nn.Module) -> str:
    return type(model.model if isinstance(model, _ByName) else model).__name__


def _part_in(error: BaseException) -> str:
    """Return where in the model's own code an error came from: " at net.py, line 12, in forward"."""
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "forward"]
    own = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/")] or frames
    return f" at {Path(own[-1].filename).name}, line {own[-1].lineno}, `{own[-1].line}`" if own else ""


def _check(made: io.BytesIO, expected: Any, inputs: tuple[Tensor, ...], model: nn.Module) -> None:
    """Read the file as a predictor does, and compare it with the model, for two sizes of a batch."""
    try:
        program, _ = read(made)
    except ValueError as error:
        raise ValueError(f"export: {_name_of(model)} has {error}") from error
    with torch.no_grad():
        one = model(*(x[:1] for x in inputs))
    for batch, wanted in ((inputs, expected), (tuple(x[:1] for x in inputs), one)):
        torch.testing.assert_close(program(*batch), wanted, rtol=1e-5, atol=1e-5, msg=_not_alike)


def _not_alike(said: str) -> str:
    return f"export: the program does not compute what the model does, so nothing was written. {said}"


_INFERRED: Any = object()


def export_learner(
    learn: Learner,
    path: str | Path,
    example: Any = None,
    transform: Any = _INFERRED,
    classes: Any = _INFERRED,
) -> None:
    """Write a learner's model, its classes and its transform to a file; see `Learner.export`."""
    from .. import __version__

    if example is None:
        dl = learn.dls.valid if learn.dls.valid is not None else learn.dls.train
        example = (learn.unpack_func or inputs_and_target)(peek(dl))[0]
    if transform is _INFERRED:
        transform = transform_of(learn.dls)
    elif transform is not None:
        transform = PixelTransform.of(normalize("transform", transform), learn.dls)
    if classes is _INFERRED:
        classes = learn.dls.classes
    export(learn.model, path, example, classes, transform, __version__)


def transform_of(dls: Any) -> PixelTransform | None:
    """Return how images of bytes become the inputs of these loaders, None if that is not known."""
    if dls.transform is not None:
        return PixelTransform.of(dls.transform, dls)
    augment = getattr(dls.valid if dls.valid is not None else dls.train, "augment", None)
    if augment and all(isinstance(one, Normalize) for one in augment):
        return PixelTransform.of(augment[0], dls)
    return None
