"""The raw rows of spoken_digits: pictures, recordings and captions of one digit, in splits that share none of them.

| split | holds | takes of the recordings | MNIST | scikit-learn |
|---|---|---|---|---|
| text+image | pairs | none | training set 0-17,999 | 0-429 |
| text+audio | pairs | 9 of 10-49 | none | none |
| image+audio | pairs | 9 of 10-49 | 18,000-35,999 | 430-859 |
| codec | each modality apart | 10 of 10-49 | 36,000-47,999 | 860-1,139 |
| judge | triplets | 10 of 10-49 | 48,000-57,999 | 1,140-1,419 |
| validation | triplets | 2 of 10-49 | 58,000-59,999 | 1,420-1,496 |
| test | triplets | 0-4 | test set, even numbers | 1,497-1,796, even |
| fresh | triplets | 5-9 | test set, odd numbers | 1,497-1,796, odd |

Takes 0-4 are the recordings' own test set, 300 clips. Since nothing of it can be spared, `fresh`, the half that the row
`real` answers with, has the next five takes, which were recorded in the same sittings; speakers drift over their 50
takes (one says his first ten a third more slowly), so the other splits take turns in what is left. MNIST's test set has
other writers than its training set, and easier ones first: `test` and `fresh` take turns in it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.api import UserError
from benchmark.config import Config, nearest
from benchmark.runtime import Draws
from data_prep.digits import mnist_digits
from data_prep.spoken import recordings, spoken_captions

# Variant -> whose pictures, whose recordings.
VARIANTS = {"mnist": ("mnist", "fsdd"), "sklearn": ("sklearn", "fsdd"), "synthetic-sound": ("sklearn", "synthetic")}
CORPORA = ("text+image", "text+audio", "image+audio")
HOLDS = {name: tuple(name.split("+")) for name in CORPORA} | {
    name: ("image", "text", "audio") for name in ("codec", "judge", "validation", "test", "fresh")
}
ABOUT = {"text+image": "picture", "text+audio": "sound"}  # what a split's captions tell of, where not of both

PICTURES = {
    "mnist": {
        "text+image": range(18_000),
        "image+audio": range(18_000, 36_000),
        "codec": range(36_000, 48_000),
        "judge": range(48_000, 58_000),
        "validation": range(58_000, 60_000),
        "test": range(60_000, 70_000, 2),
        "fresh": range(60_001, 70_000, 2),
    },
    "sklearn": {
        "text+image": range(430),
        "image+audio": range(430, 860),
        "codec": range(860, 1_140),
        "judge": range(1_140, 1_420),
        "validation": range(1_420, 1_497),
        "test": range(1_498, 1_797, 2),
        "fresh": range(1_497, 1_797, 2),
    },
}
VALIDATION = (22, 43)  # its takes: one that would be each pair corpus's
TAKES = {
    "test": tuple(range(5)),
    "fresh": tuple(range(5, 10)),
    "validation": VALIDATION,
    **{
        name: tuple(take for take in range(first, recordings.TAKES, 4) if take not in VALIDATION)
        for first, name in enumerate(("text+audio", "image+audio", "codec", "judge"), 10)
    },
}
SIDE = 28


@dataclass(frozen=True, eq=False)
class Material:
    """What rows are composed of.

    images: (pictures, SIDE, SIDE) uint8, grey; sound: (clips, samples) float32.
    picture, clip: of each of them, (count,) int64, its digit and whatever captions may tell of it, as classes.
    pools: numbers of the pictures and the clips of each split that has any. levels: what divides a detail into classes.
    """

    images: Tensor
    sound: Tensor
    picture: Mapping[str, Tensor]
    clip: Mapping[str, Tensor]
    pools: Mapping[str, Mapping[str, Tensor]]
    levels: Mapping[str, tuple[float, float]]
    digest: str


class SpokenWorld:
    """Rows are a pure function of (variant, split, index). Pictures (1, 28, 28), clips of one second at 8 kHz.

    In every split, rows 10 k to 10 k + 9 name each digit once. The pictures and clips of rows of the corpora and of
    "judge" are drawn from the split's own, with repetition. Those of "codec" are unpaired: each picture once and then
    all again, each clip likewise, and captions of no item. Row r of "validation" and "test" has clip r modulo their
    number (60 for each take) in one fixed order, and a picture that no other row has as long as there are any of its
    digit. Row r of "fresh" has digit, speaker, stroke weight and slant of row r of "test", and loudness and pace as far
    as five takes allow: another item, of which the caption of row r of "test" holds, too, where there is one.

    identity: all that rows depend on besides split and index; sample_rate: in Hz; levels, pools: of `Material`.
    Raises UserError for an unknown variant, and for pictures or recordings that are missing or damaged.
    """

    sample_rate = recordings.RATE

    def __init__(self, config: Config) -> None:
        variant = config.variant or "mnist"
        if variant not in VARIANTS:
            raise UserError(f"unknown variant {variant!r}{nearest(variant, VARIANTS)}")
        self._material = material(variant)
        self.levels, self.pools = self._material.levels, self._material.pools
        self.identity = f"{variant}:{self._material.digest}"
        most = max(config.evaluation_rows, config.unconditional_rows)
        held_out = dict.fromkeys(("validation", "test", "fresh"), most)
        self._counts = dict.fromkeys(HOLDS, config.train_rows) | held_out
        self._rows: dict[str, dict[str, Tensor]] = {}

    def count(self, split: str) -> int:
        """Rows: `train_rows` of each corpus, of "codec" and of "judge"; else as many as the largest cell has."""
        return self._counts[split]

    def raw(self, split: str, indices: Tensor) -> dict[str, Tensor | list[str]]:
        """{"image": (rows, 1, 28, 28) float32 in [0, 1], "text": list of str, "audio": (rows, 8,000) float32 in
        [-1, 1]} at `indices`, (rows,) int64; of a pair corpus, what it holds."""
        rows = self._at(split, indices)
        found: dict[str, Tensor | list[str]] = {}
        if "picture" in rows:
            found["image"] = self._material.images.index_select(0, rows["picture"])[:, None].float().div_(255)
        if "caption" in rows:
            found["text"] = self._captions(split, indices, rows["caption"])
        if "clip" in rows:
            found["audio"] = self._material.sound.index_select(0, rows["clip"])
        return found

    def other_captions(self, split: str, indices: Tensor) -> list[str]:
        """Captions of the same items, drawn anew from the same law; now and then one is the same."""
        rows = self._at(split, indices)
        if "other" not in rows:
            raise ValueError(f"the split {split} holds no text")
        return self._captions(split, indices, rows["other"])

    def attributes(self, split: str, indices: Tensor) -> dict[str, Tensor]:
        """(rows,) int64 of each: the digit; of a split with pictures the number of the picture among its source's, and
        the classes of stroke weight (thin, medium, thick) and slant (left, upright, right); of a split with sound the
        number of the clip, the speaker's in `recordings.SPEAKERS`, loudness (quiet, normal, loud) and pace (quick,
        steady, slow).

        In "codec" all but the numbers of picture and clip are what the caption tells of, which describes neither.
        """
        rows = self._at(split, indices)
        return {name: values for name, values in rows.items() if name not in ("caption", "other")}

    def clusters(self, split: str, indices: Tensor) -> Tensor:
        """(rows,) int64: rows of one number share a clip, or in "text+image" a picture."""
        rows = self._at(split, indices)
        return rows["clip" if "clip" in rows else "picture"]

    def _captions(self, split: str, indices: Tensor, draws: Tensor) -> list[str]:
        return spoken_captions.write(ABOUT.get(split, "both"), self.attributes(split, indices), draws)

    def _at(self, split: str, indices: Tensor) -> dict[str, Tensor]:
        if split not in self._rows:
            self._rows[split] = self._compose(split)
        return {name: values.index_select(0, indices) for name, values in self._rows[split].items()}

    def _compose(self, split: str) -> dict[str, Tensor]:
        """All rows of a split: attributes, and the integers that a caption and another one are drawn with."""
        rows = self._counts[split]
        if split == "codec":
            found = self._unpaired(rows)
        elif split == "fresh":
            found = self._fresh(rows)
        elif split in ("validation", "test"):
            found = self._held_out(split, rows)
        else:
            found = self._paired(split, rows)
        if "text" in HOLDS[split]:
            draws = _draws(split, rows)
            for name in ("caption", "other"):
                found[name] = draws.integers(name, spoken_captions.DRAWN, spoken_captions.DRAWS)
        return found

    def _paired(self, split: str, rows: int) -> dict[str, Tensor]:
        digit, draws = _balanced(split, rows), _draws(split, rows)
        return self._described(
            digit,
            {
                name: pick(pool, self._digit(name), digit, draws.integers(name, spoken_captions.DRAWN))
                for name, pool in self.pools[split].items()
            },
        )

    def _unpaired(self, rows: int) -> dict[str, Tensor]:
        draws = _draws("codec", rows)
        found = {name: draws.integers(name, classes) for name, classes in spoken_captions.CLASSES.items()}
        found["digit"] = _balanced("codec", rows)
        for name, pool in self.pools["codec"].items():
            found[name] = _shuffled("codec", name, pool)[torch.arange(rows) % len(pool)]
        return found

    def _held_out(self, split: str, rows: int) -> dict[str, Tensor]:
        pools, turn = self.pools[split], torch.arange(rows)
        digit = _balanced(split, len(pools["clip"]))[turn % len(pools["clip"])]
        return self._described(
            digit,
            {
                name: pick(_shuffled(split, name, pool), self._digit(name), digit, turn // 10)
                for name, pool in pools.items()
            },
        )

    def _fresh(self, rows: int) -> dict[str, Tensor]:
        like, pool = self._held_out("test", rows), _shuffled("fresh", "picture", self.pools["fresh"]["picture"])
        kind, kinds = _kind(like), _kind(self._material.picture)
        same_kind = pick(pool, kinds, kind, occurrence(kind))
        same_digit = pick(pool, self._digit("picture"), like["digit"], occurrence(like["digit"]))
        picture = torch.where(torch.isin(kind, kinds[pool]), same_kind, same_digit)
        return self._described(like["digit"], {"picture": picture, "clip": self._partners()[like["clip"]]})

    def _partners(self) -> Tensor:
        """(clips,) int64: for each clip of "test" one of "fresh" with its digit and speaker, so that in as many as may
        be loudness and pace are of its classes; -1 elsewhere."""
        clip, partners = self._material.clip, torch.full((len(self._material.sound),), -1)
        takes = len(TAKES["test"])
        # A pool is in the order of the clips' numbers: the takes of one speaker's digit stand together.
        test, fresh = (self.pools[split]["clip"].reshape(-1, takes) for split in ("test", "fresh"))
        apart = torch.stack(
            [clip[name][test][:, :, None] != clip[name][fresh][:, None] for name in ("loudness", "pace")]
        ).sum(0)
        orders = torch.tensor(list(itertools.permutations(range(takes))))
        best = orders[apart[:, torch.arange(takes), orders].sum(2).argmin(1)]
        partners[test] = fresh.gather(1, best)
        return partners

    def _digit(self, name: str) -> Tensor:
        return (self._material.picture if name == "picture" else self._material.clip)["digit"]

    def _described(self, digit: Tensor, items: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows' attributes: the digit, the items' numbers, and what captions may tell of them."""
        found = {"digit": digit, **items}
        for name, numbers in items.items():
            facts = self._material.picture if name == "picture" else self._material.clip
            found |= {key: values[numbers] for key, values in facts.items() if key != "digit"}
        return found


def _draws(split: str, rows: int) -> Draws:
    return Draws("spoken_digits", split, rows=rows, block=4096)


def _balanced(split: str, rows: int) -> Tensor:
    """(rows,) digits: each ten rows hold all of them, in a random order."""
    order = Draws("spoken_digits", split, "digits", rows=-(-rows // 10), block=4096).uniform("order", 10)
    return order.argsort(stable=True, dim=1).flatten()[:rows]


def _shuffled(split: str, name: str, pool: Tensor) -> Tensor:
    return pool[Draws("spoken_digits", split, "pool", rows=len(pool), block=4096).uniform(name).argsort(stable=True)]


def _kind(facts: Mapping[str, Tensor]) -> Tensor:
    """One number for digit, stroke weight and slant."""
    return (facts["digit"] * 3 + facts["weight"]) * 3 + facts["slant"]


def pick(pool: Tensor, labels: Tensor, wanted: Tensor, turn: Tensor) -> Tensor:
    """(rows,) numbers from the pool: of those whose label is the wanted one, the turn-th, modulo how many there are.

    labels: of all numbers, whether of the pool or not. Where the pool has no such label, the number is any.
    """
    size = labels[pool].bincount(minlength=int(labels.max()) + 1)
    first = size.cumsum(0) - size
    place = first[wanted] + turn % size[wanted].clamp(min=1)
    return pool[labels[pool].argsort(stable=True)][place.clamp(max=len(pool) - 1)]


def occurrence(labels: Tensor) -> Tensor:
    """(rows,) int64: how many earlier rows have the row's label."""
    size = labels.bincount()
    order = labels.argsort(stable=True)
    found = torch.empty_like(labels)
    found[order] = torch.arange(len(labels)) - (size.cumsum(0) - size)[labels[order]]
    return found


@functools.cache
def material(variant: str) -> Material:
    """Made once per process; see `VARIANTS`. Raises UserError where pictures or recordings are missing or damaged."""
    source, sounds = VARIANTS[variant]
    found, clips = mnist_digits.load(source), recordings.load(sounds)
    images = canvas(found.images)
    pools: dict[str, dict[str, Tensor]] = {split: {} for split in HOLDS}
    for split, numbers in PICTURES[source].items():
        pools[split]["picture"] = torch.tensor(list(numbers))
    for split, takes in TAKES.items():
        pools[split]["clip"] = torch.from_numpy(np.flatnonzero(np.isin(clips.take, takes)))
    picture = {"digit": torch.from_numpy(found.labels)}
    clip = {"digit": torch.from_numpy(clips.digit), "speaker": torch.from_numpy(clips.speaker)}
    own = pools["codec"]
    measured = {"weight": stroke_weight(images), "slant": slant(images)}
    levels = {name: _tertiles(values[own["picture"]]) for name, values in measured.items()}
    picture |= {name: _classes(values, levels[name]) for name, values in measured.items()}
    loudness, seconds = torch.from_numpy(clips.loudness), torch.from_numpy(clips.seconds)
    measured = {
        "loudness": loudness - _medians(loudness, clip["speaker"], own["clip"]),
        "pace": seconds / _medians(seconds, clip["digit"], own["clip"]),
    }
    levels |= {name: _tertiles(values[own["clip"]]) for name, values in measured.items()}
    clip |= {name: _classes(values, levels[name]) for name, values in measured.items()}
    digest = hashlib.blake2b(digest_size=5)
    for part in (images.numpy(), clips.sound, *picture.values(), *clip.values()):
        digest.update(np.asarray(part).tobytes())
    digest.update(repr((PICTURES[source], TAKES, spoken_captions.TEMPLATES, spoken_captions.PHRASES)).encode())
    return Material(images, torch.from_numpy(clips.sound), picture, clip, pools, levels, digest.hexdigest())


def canvas(images: np.ndarray) -> Tensor:
    """(pictures, 28, 28) uint8 of MNIST's, or of scikit-learn's 8 x 8 with 16 levels of grey.

    The latter are resized to 20 x 20, bilinearly and in integers, and get a margin of 4, as MNIST's digits have.
    """
    pictures = torch.from_numpy(images.copy())
    if pictures.shape[1] == SIDE:
        return pictures
    place = 4 * np.arange(20) - 3  # of a pixel's centre, in tenths of a coarse pixel
    weights = np.zeros((20, 8), np.int64)
    for row, (coarse, tenths) in enumerate(zip(place // 10, place % 10, strict=True)):
        weights[row, max(coarse, 0)] += 10 - tenths
        weights[row, min(coarse + 1, 7)] += tenths
    grown = weights @ images.astype(np.int64) @ weights.T  # at most 16 * 100
    shades = torch.from_numpy((grown * 255 + 800) // 1_600).to(torch.uint8)
    return functional.pad(shades, (4, 4, 4, 4))


def stroke_weight(images: Tensor) -> Tensor:
    """(pictures,) float64: how many pixels wide the strokes of (pictures, side, side) uint8 are, about.

    Twice the ink over the length of its edge: a stroke of width w and length l has ink w l and an edge of about 2 l.
    The edge's length is the total variation, which blur does not change.
    """
    found = []
    for part in images.split(2048):
        framed = functional.pad(part.float(), (1, 1, 1, 1))
        down = framed[:, 1:, :-1] - framed[:, :-1, :-1]
        right = framed[:, :-1, 1:] - framed[:, :-1, :-1]
        # In sixteenths of a level and whole numbers, so that the sum is the same in any order.
        edge = down.square_().add_(right.square_()).sqrt_().mul_(16).round_().sum((1, 2)).double()
        found.append(32 * part.sum((1, 2)).double() / edge)
    return torch.cat(found)


def slant(images: Tensor) -> Tensor:
    """(pictures,) float64: by how many pixels the ink of (pictures, side, side) uint8 moves right for each pixel up.

    The slope of the regression of ink's columns on its rows: by which tilted digits are commonly put upright.
    """
    side = images.shape[1]
    down, right = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    powers = torch.stack([torch.ones_like(down), down, right, down * down, down * right]).flatten(1).double().T
    ink, y, x, yy, xy = torch.cat([part.flatten(1).double() @ powers for part in images.split(4096)]).T
    return -(ink * xy - x * y) / (ink * yy - y * y)


def _medians(values: Tensor, groups: Tensor, among: Tensor) -> Tensor:
    """(count,) of each value's group the median, over the numbers `among`."""
    found = [values[among][groups[among] == each].median() for each in range(int(groups.max()) + 1)]
    return torch.stack(found)[groups]


def _tertiles(values: Tensor) -> tuple[float, float]:
    """The values at a third and two thirds of the sorted ones."""
    ordered = values.sort().values
    return float(ordered[len(values) // 3]), float(ordered[2 * len(values) // 3])


def _classes(values: Tensor, levels: tuple[float, float]) -> Tensor:
    """0 below the lower level, 2 from the upper one on, else 1."""
    return (values >= levels[0]).long() + (values >= levels[1]).long()
