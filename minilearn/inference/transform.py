"""PixelTransform: how the file or the bytes of an image become an input of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import peek
from ..data.augment import Normalize
from ..data.sets.pixels import fitted, rgb_pixels


class PixelTransform:
    """Make inputs of images: the centre square, resized; grey or RGB; then `Normalize`.

    Args:
        normalize: for pixels of 0 to 255.
        size: height and width of the inputs, in pixels.

    Shapes: an input is (channels, height, width) float32, a channel for each mean of `normalize`, 1 or 3.
    """

    def __init__(self, normalize: Normalize, size: tuple[int, int]) -> None:
        self.normalize, self.size = normalize, size
        self.n_channels = len(normalize.mean)
        if self.n_channels not in (1, 3):
            raise ValueError(f"{normalize!r}: expected 1 channel (grey) or 3 (RGB)")

    def __repr__(self) -> str:
        height, width = self.size
        return f"PixelTransform({self.normalize!r}, {height}x{width})"

    @classmethod
    def of(cls, normalize: Normalize, dls: Any) -> PixelTransform:
        """Return the transform of loaders whose inputs are images that `normalize` made."""
        inputs = peek(dls.train)[0]
        return cls(normalize, (int(inputs.shape[-2]), int(inputs.shape[-1])))

    def as_plain(self) -> dict[str, Any]:
        """Return numbers and text, of which `from_plain` makes the transform again."""
        mean, std = ([float(x) for x in values] for values in (self.normalize.mean, self.normalize.std))
        return {"kind": "pixels", "mean": mean, "std": std, "size": list(self.size)}

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> PixelTransform:
        """Return the transform that `as_plain` described."""
        if given["kind"] != "pixels":
            raise ValueError(f"a transform of the kind {given['kind']!r}: expected 'pixels'")
        height, width = (int(size) for size in given["size"])
        return cls(Normalize(given["mean"], given["std"]), (height, width))

    def __call__(self, images: list[Any]) -> Tensor:
        """Return the inputs of some images: paths, PIL images, arrays or tensors of bytes.

        Shapes: arrays (H, W) or (H, W, C), tensors (H, W) or (C, H, W), uint8 -> (N, C, height, width).
        """
        pixels = torch.stack([self._pixels(image) for image in images])
        return self.normalize(pixels, pixels.new_zeros(len(pixels), 0))

    def _pixels(self, image: Any) -> Tensor:
        """Return an image as (C, height, width) uint8."""
        from PIL import Image

        if isinstance(image, str | Path):
            path = Path(image)
            if not path.is_file():
                raise FileNotFoundError(f"{path}: there is no such image")
            return self._resized(_opened(str(path), path.read_bytes()))
        if isinstance(image, Image.Image):
            return self._resized(image)
        found = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
        if isinstance(image, np.ndarray) and found.ndim == 3:
            found = found.permute(2, 0, 1)
        if found.ndim == 2:
            found = found[None]
        if found.dtype != torch.uint8 or found.ndim != 3 or len(found) not in (1, 3):
            raise ValueError(
                f"an image of {found.dtype} and shape {tuple(found.shape)}: expected bytes, uint8, of shape "
                "(H, W), (H, W, 3) in an array or (3, H, W) in a tensor; floats are taken as inputs of the "
                "model, in a batch"
            )
        if len(found) == self.n_channels and tuple(found.shape[1:]) == self.size:
            return found.contiguous()
        return self._resized(Image.fromarray(found.permute(1, 2, 0).squeeze(2).numpy()))

    def _resized(self, image: Any) -> Tensor:
        image = image.convert("L" if self.n_channels == 1 else "RGB")
        if (image.height, image.width) != self.size:
            image = fitted(image, *self.size)
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if self.n_channels == 1 else pixels.permute(2, 0, 1)


def _opened(name: str, data: bytes) -> Any:
    """Return an image of a file, turned as its EXIF says, by the rules of `image_folder`."""
    from PIL import Image

    return Image.fromarray(rgb_pixels(name, data, None))
