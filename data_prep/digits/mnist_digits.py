"""Pictures of handwritten digits: MNIST's 70,000, or the 1,797 that scikit-learn ships. Every byte is verified."""

from __future__ import annotations

import functools
import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.api import UserError, one_line
from benchmark.runtime import Draws
from data_prep.media.data_folder import INSTALL, SETTING, data_folder, offline, packaged

# md5 of the unpacked content of the official files, whose .gz have f68b3c2d..., d53e105e..., 9fb629c4..., ec29112d...
MNIST = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MNIST_ON_THE_HUB = "ylecun/mnist"
SKLEARN = "a0339c30a8a5312a1b6f9e5c719dcce5"  # of the unpacked digits.csv.gz
_ELSE = "or choose a variant of scikit-learn's digits, with -sklearn in its name"


@dataclass(frozen=True, eq=False)
class Digits:
    """Pictures in the order of their source, and which of them each split may show.

    images: (n, side, side) uint8; labels: (n,) int64 in 0-9; ink: a bilinearly resized pixel above it is ink.
    parts: disjoint ranges of pictures for the splits train, validation, verifier and test.
    """

    images: np.ndarray
    labels: np.ndarray
    ink: int
    parts: dict[str, range]


def load(name: str) -> Digits:
    """`mnist` or `sklearn`, read once per process. Raises UserError where they are missing or damaged."""
    return _sklearn() if name == "sklearn" else _mnist(data_folder("mnist"))


def balanced(*purpose: object, classes: int, rows: int) -> Tensor:
    """Classes of rows, (rows,) int64: every `classes` rows from a multiple of it on hold each once, in random order."""
    order = Draws(*purpose, "labels", rows=-(-rows // classes)).uniform("order", classes)
    return order.argsort(stable=True, dim=1).flatten()[:rows]


def by_class(labels: np.ndarray, part: range) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures of a part in the order of their labels 0-9, where each class begins in it, and how many it has."""
    own = torch.from_numpy(labels)[part.start : part.stop]
    size = own.bincount(minlength=10)
    return own.argsort(stable=True) + part.start, size.cumsum(0) - size, size


def part_of(source: Any, split: str, paper: bool) -> range:
    """The pictures of `source.parts` that a split may show; `paper`: all but the test set, as published splits do."""
    return range(source.parts["test"].start) if paper and split != "test" else source.parts[split]


def picked(draws: Draws, name: str, classes: tuple[Tensor, Tensor, Tensor], digit: Tensor, *shape: int) -> Tensor:
    """Numbers of pictures of each row's digit, uniformly, (rows, *shape); classes: as `by_class` gives them."""
    members, first, size = (each.to(draws.device) for each in classes)
    digit = digit.reshape(-1, *(1 for _ in shape))
    # The remainder of a number below 2^40 is uniform to one part in 10^8.
    return members[draws.integers(name, 1 << 40, *shape) % size[digit] + first[digit]]


def resized(images: np.ndarray, side: int) -> Tensor:
    """Pictures (n, side, side), float32, on their own scale: bilinear, pixel centres at half-integers."""
    parts = torch.from_numpy(images).split(4096)
    return torch.cat(
        [
            functional.interpolate(part[:, None].float(), size=side, mode="bilinear", align_corners=False)
            for part in parts
        ]
    )[:, 0]


@functools.cache
def _mnist(folder: Path | None) -> Digits:
    """MNIST from the idx files of a folder, or else from Hugging Face: its training set, then its test set."""
    contents = _files(folder) or _hub(folder)
    arrays = {}
    for name, (content, where) in contents.items():
        arrays[name] = parse_idx(content, where, dimensions=3 if "images" in name else 1)
    train, train_labels, test, test_labels = arrays.values()
    wheres = [where for _, where in contents.values()]
    for images, labels, at in ((train, train_labels, 0), (test, test_labels, 2)):
        if len(images) != len(labels):
            raise UserError(f"{wheres[at]} has {len(images)} pictures and {wheres[at + 1]} has {len(labels)} labels")
    for name, (content, where) in contents.items():
        _verify(content, MNIST[name], where)
    return Digits(
        images=np.concatenate([train, test]),
        labels=np.concatenate([train_labels, test_labels]).astype(np.int64),
        ink=16,  # of 255, after resizing, as in the code of PolyMNIST-Quadrant
        parts={
            "train": range(45_000),
            "validation": range(45_000, 47_500),
            "verifier": range(47_500, 60_000),
            "test": range(60_000, 70_000),
        },
    )


@functools.cache
def _sklearn() -> Digits:
    """The 8x8 digits of 13 writers: the test set of UCI's optical recognition of handwritten digits, CC BY 4.0."""
    path = packaged("sklearn", "datasets/data/digits.csv.gz", "scikit-learn")
    content = _unpack(path)
    _verify(content, SKLEARN, str(path))
    table = np.loadtxt(content.decode().splitlines(), delimiter=",").astype(np.int64)
    return Digits(
        images=table[:, :-1].reshape(-1, 8, 8).astype(np.uint8),
        labels=table[:, -1],
        ink=8,  # a level counts the inked ones among 16 pixels: half of them
        parts={
            "train": range(1100),
            "validation": range(1100, 1200),
            "verifier": range(1200, 1497),
            "test": range(1497, 1797),
        },
    )


def _files(folder: Path | None) -> dict[str, tuple[bytes, str]]:
    """{name: (content, path)} of the four files, packed or not; empty where the folder has none of them."""
    found: dict[str, tuple[bytes, str]] = {}
    lacking = []
    for name in MNIST:
        paths = [folder / f"{name}{suffix}" for suffix in ("", ".gz")] if folder else []
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            lacking.append(name)
        else:
            found[name] = (_unpack(path), str(path))
    if found and lacking:
        raise UserError(f"{folder} lacks {', '.join(lacking)}, with or without .gz: put all four files of MNIST there")
    return found


def _hub(folder: Path | None) -> dict[str, tuple[bytes, str]]:
    """As `_files`, from Hugging Face's cache or network. Raises UserError that names every place that was tried."""
    here = f"no idx files in {folder}" if folder else f"{SETTING} is not set"
    offline()
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"no MNIST: {here}, and the package datasets, which could fetch it, is not installed: set {SETTING} to "
            f"the folder that holds mnist/, run {INSTALL}, {_ELSE}"
        ) from None
    try:
        splits = load_dataset(MNIST_ON_THE_HUB)
        return {
            f"{name}-{kind}": (_idx(np.array(values, np.uint8)), f"{split} split of {MNIST_ON_THE_HUB} on Hugging Face")
            for name, split in (("train", "train"), ("t10k", "test"))
            for kind, values in _columns(splits[split]).items()
        }
    except Exception as error:  # of the network, the cache or the parser: all mean the same to the user
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"no MNIST: {here}, and {MNIST_ON_THE_HUB} cannot be fetched from Hugging Face ({reason}): set {SETTING} "
            f"to the folder that holds mnist/, {_ELSE}"
        ) from None


def _columns(split: Any) -> dict[str, Any]:
    return {
        "images-idx3-ubyte": [np.asarray(image) for image in split["image"]],
        "labels-idx1-ubyte": list(split["label"]),
    }


def _idx(values: np.ndarray) -> bytes:
    """The idx file of an array of bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def parse_idx(content: bytes, where: str, dimensions: int) -> np.ndarray:
    """The uint8 array of an unpacked idx file. Raises UserError where it is none of so many dimensions, or not whole.

    where: what the content is called in the error.
    """
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise UserError(
            f"{where} begins with {content[:4].hex() or 'nothing'}, not with {magic.hex()}: no idx file of bytes "
            f"in {dimensions} dimension{'s' if dimensions > 1 else ''}; get it anew"
        )
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header]) if len(content) >= header else (0,)
    size = header + int(np.prod(shape, dtype=object))
    if len(content) != size:
        raise UserError(f"{where} has {len(content)} bytes where its header asks for {size}: get it anew")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _unpack(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): get it anew") from None


def _verify(content: bytes, known: str, where: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != known:
        raise UserError(f"{where} is not the official one: its content has md5 {found}, not {known}; get it anew")
