"""Pictures of files, of any mode and depth, as 256 levels of red, green and blue."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")


class UnknownRange(ValueError):
    """A picture whose numbers have no known black and white."""


def read(file: Path | bytes) -> np.ndarray:
    """(height, width, 3) uint8 of a picture's file. Raises ValueError, with the reason, where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return rgb(image)
    except UnknownRange:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def rgb(image: Any) -> np.ndarray:
    """(height, width, 3) uint8 of an open picture of Pillow's, as it is meant to be seen.

    It is turned as its EXIF orientation says, what is transparent shows white, 16 bits are scaled to 8, and an
    animation is its first picture. Colour profiles and gamma are not applied, as nowhere in the data sets' own readers.
    Raises UnknownRange for floating point and 32-bit integers.
    """
    from PIL import Image

    image.load()
    image = upright(image)
    # Before Pillow 11.3 a grey PNG of 16 bits is of mode I.
    if image.mode in GREY_16 or (image.mode == "I" and image.format in ("PNG", "PPM")):
        levels = np.asarray(image).astype(np.int64)
        see_through = image.info.get("transparency")
        if isinstance(see_through, int):
            levels = np.where(levels == see_through, 65_535, levels)
        grey = ((levels + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnknownRange(f"its mode {image.mode} has no known black and white")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def upright(image: Any) -> Any:
    """The picture turned as its EXIF orientation says; as it is where its EXIF cannot be read."""
    from PIL import ImageOps

    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises a dozen kinds on EXIF that is damaged, which no viewer minds
        return image
    turned.format, turned.info = image.format, image.info
    return turned
