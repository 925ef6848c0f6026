"""An image's file as pixels of 8 bits: its range, its transparency and its orientation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_ORIENTATION = 0x0112  # EXIF's


def rgb_pixels(name: str, data: bytes, size: int | None) -> Any:
    """Return an image's pixels, (H, W, 3) uint8; raise ValueError with its name."""
    from PIL import Image, UnidentifiedImageError  # installed with torchvision

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":
                raise ValueError("it is a program of PostScript, which is not run")
            image.load()  # TIFF's orientation is applied by this, and others are known after it
            unknown = _unknown_range(image)
            pixels = None if unknown else _turned(image, _rgb(image))
        if pixels is not None and size is not None:
            pixels = fitted(pixels, size, size)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is broken (PIL finds no image in it)") from error
    except Exception as error:  # PIL raises many kinds
        raise ValueError(f"{name} is broken ({str(error) or type(error).__name__})") from error
    if pixels is None:
        raise ValueError(f"{name} has {unknown}: expected 8 or 16 bits without sign; convert it")
    return np.asarray(pixels)


def fitted(image: Any, height: int, width: int) -> Any:
    """Return the centre of an image, of the proportions of a size, resized to it."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def _unknown_range(image: Any) -> str:
    """Return what the pixels are if nothing says which value is white; an empty text if that is known."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if any(kind not in (1, 4) for kind in tags.get(_SAMPLE_FORMAT, ())):  # without sign, or not said
        return f"pixels that are floats or have a sign (mode {image.mode})"
    if image.mode.startswith(("I", "F")) and _white(image) is None:
        return f"pixels of an unknown range (mode {image.mode} of {image.format})"
    return ""


def _white(image: Any) -> int | None:
    """Return the largest value of a grey image of more than 8 bits, None if it is not known."""
    if image.mode.startswith("I;16") and image.format == "TIFF":
        return int(2 ** image.tag_v2.get(_BITS, (16,))[0] - 1)
    if (image.mode.startswith("I;16") and image.format in ("PNG", "JPEG2000")) or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):
        return 65535  # PIL scales the others to it
    return None


def _rgb(image: Any) -> Any:
    """Return an image in 8-bit RGB, without its transparency."""
    from PIL import Image

    white = _white(image)
    if white is not None:
        grey = np.asarray(image).astype(np.int64)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # white is 0: PIL inverts only 8 bits
            grey = white - grey
        image = Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns of the direct way
    return image.convert("RGB")


def _turned(image: Any, pixels: Any) -> Any:
    """Return the pixels turned and mirrored as the image's EXIF says."""
    from PIL import Image

    turns = Image.Transpose
    turn = {
        **{2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE},
        **{6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90},
    }
    try:
        method = turn.get(image.getexif().get(_ORIENTATION))
    except Exception:  # PIL raises many kinds for a broken EXIF, which viewers leave out too
        method = None
    return pixels if method is None else pixels.transpose(method)
