"""Sounds before a network hears them, the same for real and generated ones."""

from __future__ import annotations

from math import gcd

import numpy as np

CANCELLED = 0.01  # of the loudest channel's power, 20 dB below it: so little is left of channels in opposite phase


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


def mono(samples: np.ndarray) -> np.ndarray:
    """(samples,) of (samples, channels): their mean, or the loudest channel where they cancel in it, the first of
    those that are alike.

    A listener hears channels in opposite phase, which one cable turned over makes, and their mean is silence.
    """
    mean = samples.mean(1)
    if samples.shape[1] == 1 or not len(samples):
        return mean
    power = np.square(samples, dtype=np.float64).mean(0)
    if np.square(mean, dtype=np.float64).mean() >= CANCELLED * power.max():
        return mean
    return samples[:, (power >= 0.99 * power.max()).argmax()]


def cut_short(content: bytes) -> bool:
    """Whether a sound's file ends before the sound does, as its container says: WAV, Ogg, and MP3 with a Xing header.

    libsndfile reads what is there of those, without a word; of FLAC it says so itself, where the end is asked for.
    """
    if content[:4] in (b"RIFF", b"RF64") and content[8:12] == b"WAVE":
        return _wav_lacks(content)
    if content[:4] == b"OggS":
        return _ogg_lacks(content)
    return _mp3_lacks(content)


def _wav_lacks(content: bytes) -> bool:
    place = 12
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if name == b"data":  # all ones: it was written to a pipe, or RF64 says it elsewhere
            return size != 2**32 - 1 and place + 8 + size > len(content)
        place += 8 + size + size % 2
    return True


def _ogg_lacks(content: bytes) -> bool:
    """Whether the last page is not whole, or not marked as the last."""
    last = content.rfind(b"OggS")
    page = content[last:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _mp3_lacks(content: bytes) -> bool:
    """Whether it has fewer bytes than the header of its first frame says, where that says it."""
    start = 0
    if content[:3] == b"ID3" and len(content) > 10:
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    head = content[start : start + 64]
    tag = max(head.find(b"Xing"), head.find(b"Info"))
    if tag < 0 or head[:1] != b"\xff" or not head[tag + 7] & 2:
        return False
    place = start + tag + 8 + 4 * (head[tag + 7] & 1)
    return start + int.from_bytes(content[place : place + 4], "big") > len(content)
