"""PolyMNIST (Sutter et al., 2021): five pictures of one digit, each of other handwriting on another photograph.

    bench run --method mopoe --dataset polymnist --preset cpu

A picture is a random crop of its view's photograph; inside the strokes of a handwritten digit its colours are inverted.
No modality says the digit: rows hold it for the metrics alone. Rows are composed on the device when they are asked
for, and are a pure function of (variant, split, index). docs/mld.md has the variants and what differs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmark.api import Batch, DatasetCard, Modality, UserError
from benchmark.config import Config, nearest
from benchmark.runtime import Draws
from data_prep.digits import backgrounds, mnist_digits
from data_prep.digits.digit_pictures import DigitPictures, told_digit

CARD = DatasetCard(
    version=1,
    label="PolyMNIST",
    paper="Generalized Multimodal ELBO (2021); Multi-modal Latent Diffusion (2023)",
    modalities=("m0", "m1", "m2", "m3", "m4"),
    kinds=("image", "image", "image", "image", "image"),
    labels=("digit",),
    notes=(
        "the authors' photographs are not free; ours are five of scikit-image's, or with -folder your own, which may "
        "be the authors'",
        "a variant is SPLIT-28[-sklearn][-folder]",
        "clean: no handwriting is in two of the splits train, validation, verifier and test; paper: train, validation "
        "and verifier draw from all 60,000 digits of MNIST's training set, as the authors' do",
        "digits are balanced, and each view draws its handwriting anew, where the authors permute each class once",
        "-sklearn: the 1,797 digits that scikit-learn ships, in place of MNIST",
        "-folder: the first five pictures of $MUNI_BENCH_DATA/backgrounds; its rows exist on your machine alone",
    ),
    like="polymnist_quadrant_labels",
    recipe={
        "shared": {
            "label_width": None,
            "latent_size": (32, "as PolyMNIST-Quadrant-Labels: flow decoders draw what MoPoE's 512 hold besides"),
            "private_size": (32, "MMVAE+, on PolyMNIST"),
            "guidance": (1.0, "MLD: none"),
            "compile": (False, "assumed"),
            "probe_rows": (1_024, "assumed: no such table in the paper"),
        },
        "paper": {
            "variant": ("paper-28", "the authors' splits"),
            "train_rows": (60_000, "MoPoE, MLD"),
            "evaluation_rows": (10_000, "MoPoE: the whole test set"),
            "unconditional_rows": (10_000, "as many"),
            "updates": (70_500, "MoPoE, MLD's autoencoders: 300 epochs, of 235 updates each"),
            "batch_rows": (256, "MoPoE, MLD"),
            "warmup_updates": (1_175, "assumed: 5 epochs"),
            "ema_updates": (1_000, "MLD: decay 0.999"),
            "precision": ("bfloat16", "assumed"),
        },
        "gpu": {
            "variant": ("clean-28", "budget: handwriting in one split alone"),
            "train_rows": (60_000, "MoPoE, MLD"),
            "evaluation_rows": (2_000, "budget"),
            "unconditional_rows": (10_000, "as at preset paper"),
            "patch": (1, "budget"),
        },
        "cpu": {
            "variant": ("clean-28", "budget: handwriting in one split alone"),
            "train_rows": (60_000, "MoPoE, MLD"),
            "evaluation_rows": (320, "budget: as few as a Fréchet distance needs"),
            "updates": (5_000, "budget: about 8 minutes of one core"),
        },
        "smoke": {
            "variant": ("clean-28-sklearn", "budget: needs no download"),
            "train_rows": (400, "budget"),
            "patch": (4, "budget"),
        },
    },
)

VIEWS = CARD.modalities
CANVAS = 28
# A resized pixel above it is ink: MoPoE's code says 128; and half of 16 levels, which after resizing are multiples of
# 1/196, so that none is so near to it that rounding decides.
INK = {"mnist": 128, "sklearn": 8.0025}
CENTER, SCALE = 0.5, 0.28


@dataclass(frozen=True)
class Variant:
    """paper: splits as the authors have them; digits: whose; folder: the user's pictures."""

    paper: bool
    digits: str
    folder: bool


VARIANTS = {
    f"{split}-{CANVAS}" + ("" if source == "mnist" else f"-{source}") + ("-folder" if folder else ""): Variant(
        split == "paper", source, folder
    )
    for split in ("clean", "paper")
    for source in ("mnist", "sklearn")
    for folder in (False, True)
}


class Polymnist(DigitPictures):
    """Pictures (3, 28, 28) in [0, 1] of one digit, which rows hold besides as `digit`, (rows,) int64.

    A scene is eleven integers: digit, and for each view which handwriting it shows and where its photograph is cut.
    Every 10 rows from a multiple of 10 on hold each digit once. The first half of the test split are the rows that
    cells give and compare with; the second half are fresh rows for distribution distances.

    identity: all that rows depend on besides split and index. Raises UserError for an unknown variant, and for digits
    or photographs that are missing or damaged.
    """

    labels = {"digit": 10}  # noqa: RUF012

    def __init__(self, config: Config, device: str = "cpu") -> None:
        if config.variant not in VARIANTS:
            raise UserError(f"unknown variant {config.variant!r}{nearest(config.variant, VARIANTS)}")
        variant = VARIANTS[config.variant]
        shape = (3, CANVAS, CANVAS)
        self.modalities = tuple(Modality(name, shape, kind="image", center=CENTER, scale=SCALE) for name in VIEWS)
        super().__init__(config, device)

        count = len(VIEWS)
        pictures = backgrounds.own(count, CANVAS) if variant.folder else backgrounds.photographs(count)
        self.identity = _identity(config.variant, pictures)
        self._places = torch.tensor([picture.shape[:2] for picture in pictures]).T - CANVAS + 1  # of top left corners
        self._widths = torch.tensor([picture.shape[1] for picture in pictures])
        photographs = [torch.from_numpy(picture.copy()).permute(2, 0, 1).to(device) for picture in pictures]
        self._crops = [backgrounds.crops(photograph, CANVAS) for photograph in photographs]

        self._digits, self._paper = mnist_digits.load(variant.digits), variant.paper
        self._strokes = strokes(self._digits, INK[variant.digits]).to(device)
        self._scenes: dict[str, Tensor] = {}

    @classmethod
    def content(cls, config: Config) -> dict[str, str]:
        """Of the user's pictures, see benchmark.api.OfFiles."""
        own = VARIANTS[config.variant].folder
        return {"identity": _identity(config.variant, backgrounds.own(len(VIEWS), CANVAS))} if own else {}

    def rows(self, split: str, indices: Tensor) -> Batch:
        """{modality: (rows, 3, 28, 28)} and the digit at `indices`; splits train, validation, test and verifier."""
        scenes = self.scenes(split).index_select(1, indices)
        return self._compose(scenes, VIEWS) | {"digit": scenes[0]}

    def scenes(self, split: str) -> Tensor:
        """(11, rows of the split) int64: digit, number of the handwriting in each view among the digits' pictures, and
        number of the crop of each view's photograph."""
        if split not in self._scenes:
            rows = self._counts[split]
            digit = mnist_digits.balanced("polymnist", split, classes=10, rows=rows)
            draws = Draws("polymnist", split, rows=rows, block=4096)
            self._scenes[split] = self._scene(draws, split, digit).to(self.device)
        return self._scenes[split]

    def conditional(self, given: Batch, want: Sequence[str], draws: Draws) -> Batch:
        """Fresh rows of the exact law of `want` given pictures of the digits in `given`: what a picture shows besides
        its digit says nothing about the others. From nothing, the digit is uniform.

        Raises Inapplicable where pictures are given without their digit.
        """
        digit = told_digit(given, draws)
        return self._compose(self._scene(draws, "test", digit), want)

    def _scene(self, draws: Draws, split: str, digit: Tensor) -> Tensor:
        """Scenes of the given digits, (11, rows), with handwriting of a split and crops from `draws`."""
        classes = mnist_digits.by_class(self._digits.labels, mnist_digits.part_of(self._digits, split, self._paper))
        handwriting = mnist_digits.picked(draws, "handwriting", classes, digit, len(VIEWS))
        place = draws.integers("crop", 1 << 40, 2, len(VIEWS)) % self._places.to(draws.device)
        crop = place[:, 0] * self._widths.to(draws.device) + place[:, 1]
        return torch.cat([digit[None], handwriting.T, crop.T])

    def _compose(self, scenes: Tensor, want: Sequence[str]) -> Batch:
        rows: Batch = {}
        handwriting, crop = scenes[1:].chunk(2)
        for name in want:
            view = VIEWS.index(name)
            background = self._crops[view].index_select(0, crop[view]).float().div_(255)
            ink = self._strokes.index_select(0, handwriting[view])[:, None]
            rows[name] = torch.where(ink, 1 - background, background)
        return rows


def _identity(variant: str, pictures: list[np.ndarray]) -> str:
    return f"polymnist {variant}:{backgrounds.digest(pictures)}"


@functools.cache
def strokes(source: mnist_digits.Digits, above: float) -> Tensor:
    """(pictures, 28, 28) bool: where ink is."""
    return mnist_digits.resized(source.images, CANVAS) > above


DATASET = Polymnist
