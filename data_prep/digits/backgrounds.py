"""Photographs behind the digits: those that scikit-image ships, or the user's own; and every crop of one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmark.api import UserError
from benchmark.files import files_in
from benchmark.media import pictures
from data_prep.media.data_folder import INSTALL, SETTING, data_folder, packaged

# File -> md5 of its pixels, in the order of the views. All are free of copyright; sources in
# docs/polymnist_quadrant_labels.md and docs/mld.md. PNG alone: what a JPEG's pixels are depends on its decoder.
PHOTOGRAPHS = {
    "astronaut.png": "858df4cb7ccf26eb34f19c3aeb5a99bc",  # (512, 512), NASA, public domain
    "coffee.png": "a39f04b45f56c9b9421d1f695995be92",  # (400, 600), Rachel Michetti, CC0
    "chelsea.png": "4cbc8458da90b6c4b2dcf19e51656619",  # (300, 451), Stefan van der Walt, CC0
    "ihc.png": "575d0ae4732cfe1bf609ba39aa9ccfbd",  # (512, 512), stained tissue, no known restrictions
    "camera.png": "3429729daf111e2383f004008a56f1ca",  # (512, 512), grey, Lav Varshney, CC0
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def photographs(count: int) -> list[np.ndarray]:
    """The first of scikit-image's, (height, width, 3) uint8. Raises UserError where one is missing or another."""
    found = []
    for name, known in list(PHOTOGRAPHS.items())[:count]:
        path = packaged("skimage", f"data/{name}", "scikit-image")
        picture = read(path)
        if hashlib.md5(picture.tobytes(), usedforsecurity=False).hexdigest() != known:
            raise UserError(f"{path} is not the photograph that this data set is made of: reinstall scikit-image")
        found.append(picture)
    return found


def own(count: int, least: int) -> list[np.ndarray]:
    """The first pictures, in the order of their names, of the folder `backgrounds` in the user's data folder.

    least: pixels that each side needs. Raises UserError for a missing folder, and for pictures that are too few, too
    small or unreadable.
    """
    folder = data_folder("backgrounds")
    if folder is None:
        raise UserError(f"{SETTING} is not set: set it to a folder in which backgrounds/ holds {count} pictures")
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: make it and put {count} pictures there, or set {SETTING} to another")
    paths = [path for path in files_in(folder, "") if path.suffix.lower() in SUFFIXES]
    if len(paths) < count:
        raise UserError(f"{folder} holds {len(paths)} of {count} pictures ({', '.join(SUFFIXES)}): put more there")
    found = []
    for path in paths[:count]:
        picture = read(path)
        height, width = picture.shape[:2]
        if min(height, width) < least:
            raise UserError(f"{path} has {width} x {height} pixels, and {least} x {least} are cut from it: take larger")
        found.append(picture)
    return found


def read(path: Path) -> np.ndarray:
    """A picture as (height, width, 3) uint8. Raises UserError where it cannot be read."""
    try:
        return pictures.read(path)
    except ImportError:
        raise UserError(f"pillow is not installed: {INSTALL}") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): replace it") from None


def digest(pictures: list[np.ndarray]) -> str:
    """Ten hex digits of sizes and pixels."""
    content = hashlib.blake2b(digest_size=5)
    for picture in pictures:
        content.update(str(picture.shape).encode() + picture.tobytes())
    return content.hexdigest()


def crops(photograph: Tensor, side: int) -> Tensor:
    """Every crop of (3, height, width), (crops, 3, side, side), in its own memory: y * width + x has its corner there.

    Crops that would begin near the right edge and wrap around have a number, too, and are never asked for.
    """
    _, height, width = photograph.shape
    count = (height - side) * width + width - side + 1
    return photograph.contiguous().as_strided((count, 3, side, side), (1, height * width, width, 1))
