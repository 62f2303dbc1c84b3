"""Street View House Numbers, cropped digits (Netzer et al., 2011), from the official MATLAB files or Hugging Face."""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.api import UserError, one_line
from data_prep.media.data_folder import INSTALL, SETTING, data_folder, offline

# File -> its md5 and its pictures. The files are MATLAB 5: X (32, 32, 3, n) uint8, y (n, 1) in 1-10, where 10 is a 0.
OFFICIAL = {
    "train_32x32.mat": ("e26dedcc434d2e4c54c9b2d4a06d8373", 73_257),
    "test_32x32.mat": ("eb5a983be6a315427106f1b164d9cef3", 26_032),
}
MAGIC = b"MATLAB 5.0 MAT-file"
FROM = "http://ufldl.stanford.edu/housenumbers"
ON_THE_HUB = "ufldl-stanford/svhn"
SIDE = 32

Labelled = tuple[np.ndarray, np.ndarray]  # pictures (n, 3, 32, 32) uint8, labels (n,) int64 in 0-9


@dataclass(frozen=True, eq=False)
class HouseNumbers:
    """Pictures of the training set, then of the test set.

    images: (n, 3, 32, 32) uint8; labels: (n,) int64 in 0-9.
    parts: disjoint ranges for the splits train, validation, verifier and test; the first three are 18, 1 and 5 parts in
    24 of the training set, in its order, in which the digits of one house stand together.
    digest: ten hex digits of pictures and labels.
    """

    images: np.ndarray
    labels: np.ndarray
    parts: dict[str, range]
    digest: str


def load(official: bool) -> HouseNumbers:
    """Read once per process. Raises UserError where files are missing, damaged or malformed.

    official: whether other files of that format are refused; where the folder has none, Hugging Face is asked.
    """
    return _load(data_folder("svhn"), official)


@functools.cache
def _load(folder: Path | None, official: bool) -> HouseNumbers:
    files = [folder / name for name in OFFICIAL] if folder else []
    lacking = [path for path in files if not path.is_file()]
    nowhere = f"no {' or '.join(OFFICIAL)} in {folder}" if folder else f"{SETTING} is not set"
    if files and not lacking:
        (train, train_labels), (test, test_labels) = (_file(path, official) for path in files)
    elif 0 < len(lacking) < len(files):
        raise UserError(f"{folder} lacks {lacking[0].name}: put it there, from {FROM}/{lacking[0].name}")
    elif official:
        (train, train_labels), (test, test_labels) = _hub(nowhere)
    else:
        raise UserError(f"no SVHN: {nowhere}: set {SETTING} to the folder that holds svhn/, with the files of {FROM}")
    labels, content = np.concatenate([train_labels, test_labels]), hashlib.blake2b(digest_size=5)
    for values in (train, test, labels):
        content.update(np.ascontiguousarray(values).data)
    count = len(train)
    ends = (0, count * 18 // 24, count * 19 // 24, count, len(labels))
    names = ("train", "validation", "verifier", "test")
    parts = {name: range(*ends[place : place + 2]) for place, name in enumerate(names)}
    for name, part in parts.items():
        if absent := sorted(set(range(10)) - set(labels[part.start : part.stop].tolist())):
            raise UserError(f"SVHN in {folder}: its pictures for the split {name} show no {absent[0]}: put more there")
    return HouseNumbers(np.concatenate([train, test]), labels, parts, content.hexdigest())


def _file(path: Path, official: bool) -> Labelled:
    """What a MATLAB 5 file holds, which is data alone; other formats are refused unread."""
    from scipy.io import loadmat

    anew = f"get it anew from {FROM}/{path.name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {anew}") from None
    if not content.startswith(MAGIC):
        start = content[: len(MAGIC)].decode("latin-1")
        raise UserError(f"{path} begins with {start!r}, not with {MAGIC.decode()!r}: {anew}")
    found, (known, _) = hashlib.md5(content, usedforsecurity=False).hexdigest(), OFFICIAL[path.name]
    if official and found != known:
        raise UserError(
            f"{path} is not the official one: it has md5 {found}, not {known}; {anew}, or choose a variant with "
            "-folder in its name"
        )
    try:
        variables = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    except Exception as error:  # scipy raises a dozen kinds on a file that is cut short or damaged
        raise UserError(f"{path} is damaged ({one_line(f'{type(error).__name__}: {error}')}): {anew}") from None
    for name in ("X", "y"):
        if not isinstance(variables.get(name), np.ndarray):
            raise UserError(f"{path} holds no array {name}: {anew}")
    images, labels = variables["X"], variables["y"]
    if images.ndim != 4 or images.shape[:3] != (SIDE, SIDE, 3) or images.dtype != np.uint8:
        raise UserError(f"{path}: X is {images.shape} {images.dtype}, not (32, 32, 3, n) uint8: {anew}")
    if labels.shape != (images.shape[3], 1):
        raise UserError(f"{path}: y is {labels.shape}, not ({images.shape[3]}, 1), a label for each picture: {anew}")
    if labels.dtype.kind not in "iu" or ((labels < 1) | (labels > 10)).any():
        raise UserError(f"{path}: y holds what is no whole number from 1 to 10: {anew}")
    return images.transpose(3, 2, 0, 1), labels[:, 0].astype(np.int64) % 10


def _hub(nowhere: str) -> tuple[Labelled, Labelled]:
    """Both sets from Hugging Face's cache or network. Raises UserError that names every place that was tried."""
    offline()
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"no SVHN: {nowhere}, and the package datasets, which could fetch it, is not installed: set {SETTING} to "
            f"the folder that holds svhn/, with the files of {FROM}, or run {INSTALL}"
        ) from None
    try:
        splits = load_dataset(ON_THE_HUB, "cropped_digits")
        sizes = [count for _, count in OFFICIAL.values()]
        train, test = (_columns(splits[name], count) for name, count in zip(("train", "test"), sizes, strict=True))
    except Exception as error:  # of the network, the cache or the parser: all mean the same to the user
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"no SVHN: {nowhere}, and {ON_THE_HUB} cannot be fetched from Hugging Face ({reason}): set {SETTING} to "
            f"the folder that holds svhn/, with the files of {FROM}"
        ) from None
    return train, test


def _columns(split: Any, count: int) -> Labelled:
    images = np.stack([np.asarray(image, np.uint8) for image in split["image"]])
    labels = np.array(split["label"], np.int64)
    if images.shape != (count, SIDE, SIDE, 3) or labels.shape != (count,) or not set(labels.tolist()) <= set(range(10)):
        raise ValueError(f"pictures of shape {images.shape} with {len(labels)} labels, where SVHN has {count}")
    return images.transpose(0, 3, 1, 2), labels
