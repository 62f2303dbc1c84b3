"""What other packages answer for the same arrays: cross-checks of the suite's own numbers, and no part of any score.

Each is asked in a process of its own, since importing them changes or breaks the process that does:

| package | trap | here |
|---|---|---|
| laion-clap | fetches three tokenizers when imported: minutes without a network | offline |
| frechet-audio-distance | imports laion-clap; answers -1 where something failed | its distance alone |
| open_clip | imports torchvision, whose build may not load beside this torch | its operators are declared before |

Arrays go in and out as files that cannot hold code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmark.api import UserError

SECONDS = 300  # that a package may take to be imported and answer
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
}

# torchvision registers operators of a library that did not load; torchaudio takes one that is not there as optional.
BEFORE = """
import importlib.util, pathlib, sys, types
import numpy as np
import torch
if torch.version.cuda is None and importlib.util.find_spec("torchvision"):
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        declared.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
if torch.version.cuda is None and importlib.util.find_spec("torchaudio"):
    listed = pathlib.Path.glob
    def glob(self, *rest, **options):
        return iter(()) if self.parts[-2:] == ("torchaudio", "lib") else listed(self, *rest, **options)
    pathlib.Path.glob = glob
    import torchaudio
    pathlib.Path.glob = listed
given = dict(np.load("given.npz", allow_pickle=False))
"""
AFTER = """
np.savez("found.npz", found=np.asarray(found))
"""

DISTANCE = """
from frechet_audio_distance import FrechetAudioDistance
peer = FrechetAudioDistance.__new__(FrechetAudioDistance)  # its constructor fetches a model
fits = [peer.calculate_embd_statistics(given[name]) for name in ("first", "second")]
found = peer.calculate_frechet_distance(*fits[0], *fits[1])
"""
SPECTROGRAM = """
from laion_clap.clap_module import htsat
config = types.SimpleNamespace(
    model_name="tiny", mel_bins=64, sample_rate=48000, window_size=1024, hop_size=480, fmin=50, fmax=14000,
    class_num=527, model_type="HTSAT",
)
network = htsat.create_htsat_model(config, enable_fusion=False).eval()
with torch.no_grad():
    found = network.logmel_extractor(network.spectrogram_extractor(torch.from_numpy(given["sounds"])))
"""
PIXELS = """
import open_clip
from PIL import Image
side, mean, std = int(given.pop("side")), tuple(given.pop("mean")), tuple(given.pop("std"))
prepare = open_clip.image_transform(side, is_train=False, mean=mean, std=std)
found = torch.stack([prepare(Image.fromarray(given[name])) for name in sorted(given)])
"""


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """frechet-audio-distance's, of two sets of embeddings (rows, size)."""
    return float(_ask("frechet-audio-distance", DISTANCE, first=first, second=second))


def clap_spectrogram(sounds: np.ndarray) -> np.ndarray:
    """What laion-clap's network without fusion makes of sounds (n, samples) at 48 kHz: (n, 1, frames, 64) in dB."""
    return _ask("laion-clap", SPECTROGRAM, sounds=sounds)


def clip_pixels(pictures: list[np.ndarray], side: int, mean: list[float], deviation: list[float]) -> np.ndarray:
    """What open_clip makes of pictures (height, width, 3) uint8: (n, 3, side, side)."""
    named = {f"picture {number:06d}": picture for number, picture in enumerate(pictures)}
    return _ask("open_clip_torch", PIXELS, side=np.array(side), mean=np.array(mean), std=np.array(deviation), **named)


def _ask(package: str, program: str, **given: np.ndarray) -> np.ndarray:
    """What a program makes of arrays. Raises UserError, in one line, where it fails or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "given.npz", **given)
        try:
            answer = subprocess.run(
                [sys.executable, "-c", BEFORE + program + AFTER],
                cwd=folder,
                env={**os.environ, **OFFLINE},
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{package} did not answer within {SECONDS} s") from None
        if answer.returncode:
            last = answer.stderr.strip().splitlines()[-1:]
            raise UserError(f"{package} cannot be asked ({' '.join(last)}): pip install 'muni-bench[image-text-audio]'")
        return np.load(Path(folder) / "found.npz", allow_pickle=False)["found"]
