"""Made-up files in SVHN's format: pictures that carry their number, for tests without the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

TRAIN, TEST = 480, 200


def picture(number: int) -> np.ndarray:
    """(32, 32, 3) uint8: noise, in whose first two pixels the picture's number stands."""
    pixels = np.random.default_rng(number).integers(60, 190, (32, 32, 3), dtype=np.uint8)
    pixels[0, 0] = number // 256, number % 256, 7
    return pixels


def label(number: int) -> int:
    """Of picture `number`, as the files have it: 1-10, where 10 is a 0. Classes differ in size."""
    return 1 + number % 10 if number % 3 else 1 + 2 * (number // 3 % 5)


def write(folder: Path) -> Path:
    """Both files, in a new folder `svhn`: pictures 0-479, then 480-679."""
    made = folder / "svhn"
    made.mkdir(parents=True)
    for name, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
        images = np.stack([picture(number) for number in numbers], 3)
        labels = np.array([[label(number)] for number in numbers], np.uint8)
        savemat(made / f"{name}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return made
