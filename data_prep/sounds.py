"""Sounds before a network hears them, the same for real and generated ones."""

from __future__ import annotations

from math import gcd

import numpy as np


def resampled(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(samples,) float32 at another rate in Hz, by a polyphase filter."""
    if rate == wanted:
        return sound
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    return resample_poly(sound, wanted // common, rate // common).astype(np.float32)


def without_silent_end(sound: np.ndarray) -> np.ndarray:
    """Without the zeros at its end, which sounds of one batch are filled up with; a silent one stays as it is."""
    heard = np.flatnonzero(sound)
    return sound[: heard[-1] + 1] if len(heard) else sound
