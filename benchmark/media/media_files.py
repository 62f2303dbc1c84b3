"""Pictures as PNG files and sounds as WAV files."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from benchmark.api import UserError
from benchmark.media.pictures import rgb
from benchmark.media.sounds import mono

DEPTH = 2**15  # levels of a sound's samples on either side of zero


def write_png(path: Path | BinaryIO, picture: Tensor) -> None:
    """A picture (1 or 3, height, width) in [0, 1], in 256 levels."""
    from PIL import Image

    levels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1))
    image.save(path, format="png", compress_level=1)


def read_png(path: Path) -> Tensor:
    """(1 or 3, height, width) in [0, 1]. Raises UserError where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            levels = np.array(image) if image.mode == "L" else rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a whole picture ({error}): remove {path.parent.parent} to have it anew") from None
    planes = levels[None] if levels.ndim == 2 else np.moveaxis(levels, -1, 0)
    return torch.from_numpy(planes.astype(np.float32) / 255)


def write_wav(path: Path | BinaryIO, sound: Tensor, sample_rate: int) -> None:
    """A sound (samples,) in [-1, 1], one channel of 16 bits."""
    levels = (sound.float().clamp(-1, 1) * (DEPTH - 1)).round().to(torch.int16).numpy()
    with wave.open(str(path) if isinstance(path, Path) else path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(levels.astype("<i2").tobytes())


def read_wav(path: Path) -> tuple[Tensor, int]:
    """A sound (samples,) in [-1, 1], its channels as one (see `mono`), and its rate in Hz. Raises UserError where it
    cannot be read, is cut short, or has no samples."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                raise wave.Error(f"samples of {8 * file.getsampwidth()} bits, not of 16")
            if not file.getnframes():
                raise wave.Error("no samples")
            levels = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
            if len(levels) < file.getnframes():
                raise wave.Error(f"{len(levels):,} of the {file.getnframes():,} samples that its header names")
            rate = file.getframerate()
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise UserError(f"{path}: not a whole sound ({error}): remove {path.parent.parent} to have it anew") from None
    return torch.from_numpy(mono(levels.astype(np.float32)) / (DEPTH - 1)), rate
