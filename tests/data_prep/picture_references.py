"""What tests of datasets of pictures compare with: photographs, resizing written out, and how even counts are."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
from torch import Tensor

SKIMAGE = Path(str(importlib.util.find_spec("skimage").submodule_search_locations[0])) / "data"


def bilinear(picture: np.ndarray, side: int) -> np.ndarray:
    """Resized with pixel centres at half-integers, in float64, one output pixel at a time."""
    size = len(picture)
    result = np.zeros((side, side))
    for row, column in itertools.product(range(side), repeat=2):
        parts = []
        for at in (row, column):
            place = max((at + 0.5) * size / side - 0.5, 0)
            low = int(place)
            parts.append(((low, 1 - (place - low)), (min(low + 1, size - 1), place - low)))
        result[row, column] = sum(picture[i, j] * share * other for (i, share), (j, other) in itertools.product(*parts))
    return result


def spread(counts: Tensor) -> float:
    """How many standard deviations chi-square lies above its mean, for equally likely classes."""
    expected, degrees = counts.sum().item() / len(counts), len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum().item() - degrees) / (2 * degrees) ** 0.5
