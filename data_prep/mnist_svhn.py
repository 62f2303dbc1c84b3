"""MNIST-SVHN (Shi et al., 2019): a handwritten digit and a house number of the same class.

    bench run --method mopoe --dataset mnist_svhn --preset cpu

The two pictures share the digit and nothing else. No modality says it: rows hold it for the metrics alone. Rows are a
pure function of (variant, split, index). docs/mld.md has the variants, where the pictures come from, and how they pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.api import Batch, DatasetCard, Modality, UserError
from benchmark.config import Config, nearest
from benchmark.runtime import Draws
from data_prep.digits import mnist_digits, svhn
from data_prep.digits.digit_pictures import DigitPictures, told_digit

CARD = DatasetCard(
    version=1,
    label="MNIST-SVHN",
    paper="MMVAE (2019); Multi-modal Latent Diffusion (2023)",
    modalities=("mnist", "svhn"),
    kinds=("image", "image"),
    labels=("digit",),
    notes=(
        "a variant is SPLIT[-sklearn][-folder]",
        "clean: no picture is in two of the splits train, validation, verifier and test; paper: train, validation and "
        "verifier draw from both training sets whole, as the authors' do",
        "pairs are made once, by a rule, where the authors' code makes them anew at every run; digits are balanced",
        "-sklearn: the 1,797 digits that scikit-learn ships, in place of MNIST",
        "-folder: what two files of SVHN's format in $MUNI_BENCH_DATA/svhn hold; its rows exist on your machine alone",
    ),
    like="polymnist_quadrant_labels",
    recipe={
        "shared": {
            "label_width": None,
            "latent_size": (20, "MMVAE, MoPoE"),
            "private_size": (20, "assumed: as many"),
            "guidance": (1.0, "MLD: none"),
            "compile": (False, "assumed"),
            "probe_rows": (1_024, "assumed: no such table in the paper"),
        },
        "paper": {
            "variant": ("paper", "the authors' splits"),
            "train_rows": (1_121_360, "MLD, MoPoE: 20 pairings of 56,068; MMVAE: 30"),
            "evaluation_rows": (10_000, "MMVAE"),
            "unconditional_rows": (10_000, "MMVAE"),
            "updates": (657_150, "MLD's autoencoders: 150 epochs, of 4,381 updates each at 256 rows"),
            "batch_rows": (256, "MoPoE"),
            "warmup_updates": (4_381, "assumed: an epoch"),
            "ema_updates": (1_000, "MLD: decay 0.999"),
            "precision": ("bfloat16", "assumed"),
        },
        "gpu": {
            "variant": ("clean", "budget: a picture in one split alone"),
            "train_rows": (1_121_360, "MLD, MoPoE: 20 pairings of 56,068"),
            "evaluation_rows": (10_000, "as at preset paper"),
            "unconditional_rows": (10_000, "as at preset paper"),
            "patch": (1, "budget"),
        },
        "cpu": {
            "variant": ("clean", "budget: a picture in one split alone"),
            "train_rows": (1_121_360, "MLD, MoPoE: 20 pairings of 56,068"),
            "evaluation_rows": (1_000, "budget"),
            "updates": (2_800, "budget: about 8 minutes of one core"),
        },
        "smoke": {
            "variant": ("clean-sklearn-folder", "budget: takes made-up files in SVHN's format"),
            "train_rows": (400, "budget"),
            "patch": (4, "budget"),
        },
    },
)

SIDE = 28  # of a handwritten digit
WHITE = {"mnist": 255, "sklearn": 16}  # the highest level of its pictures


@dataclass(frozen=True)
class Variant:
    """paper: splits as the authors have them; digits: whose; folder: the user's files in SVHN's format."""

    paper: bool
    digits: str
    folder: bool


VARIANTS = {
    split + ("" if source == "mnist" else f"-{source}") + ("-folder" if folder else ""): Variant(
        split == "paper", source, folder
    )
    for split in ("clean", "paper")
    for source in ("mnist", "sklearn")
    for folder in (False, True)
}


class MnistSvhn(DigitPictures):
    """Pictures (1, 28, 28) and (3, 32, 32) in [0, 1] of one digit, which rows hold besides as `digit`, (rows,) int64.

    A pair is three integers: digit, and numbers of the pictures. Of a class with a and b pictures in a split, a pass
    puts min(a, b) of each, both in an order by lot, side by side; passes follow each other, so that a picture has many
    partners. Every 10 rows from a multiple of 10 on hold each digit once, each with its class's next pair. The first
    half of the test split are the rows that cells give and compare with; the second half are fresh rows for
    distribution distances.

    identity: all that rows depend on besides split and index. Raises UserError for an unknown variant, and for pictures
    that are missing or damaged.
    """

    labels = {"digit": 10}  # noqa: RUF012

    def __init__(self, config: Config, device: str = "cpu") -> None:
        if config.variant not in VARIANTS:
            raise UserError(f"unknown variant {config.variant!r}{nearest(config.variant, VARIANTS)}")
        variant = VARIANTS[config.variant]
        self.modalities = (
            Modality("mnist", (1, SIDE, SIDE), kind="image", center=0.15, scale=0.31),
            Modality("svhn", (3, svhn.SIDE, svhn.SIDE), kind="image", center=0.45, scale=0.2),
        )
        super().__init__(config, device)
        written, numbers = mnist_digits.load(variant.digits), svhn.load(official=not variant.folder)
        self._sources: tuple[mnist_digits.Digits | svhn.HouseNumbers, ...] = (written, numbers)
        self._paper = variant.paper
        self.identity = _identity(config.variant, numbers)
        self._pictures = (
            mnist_digits.resized(written.images, SIDE)[:, None].to(device),
            torch.from_numpy(numbers.images).to(device),
        )
        self._whites = WHITE[variant.digits], 255
        self._pairs: dict[str, Tensor] = {}

    @classmethod
    def content(cls, config: Config) -> dict[str, str]:
        """Of the user's pictures, see benchmark.api.OfFiles."""
        own = VARIANTS[config.variant].folder
        return {"identity": _identity(config.variant, svhn.load(official=False))} if own else {}

    def rows(self, split: str, indices: Tensor) -> Batch:
        """{modality: (rows, *shape)} and the digit at `indices`; splits train, validation, test and verifier."""
        digit, *numbers = self.pairs(split).index_select(1, indices)
        return self._compose(numbers, CARD.modalities) | {"digit": digit}

    def pairs(self, split: str) -> Tensor:
        """(3, rows of the split) int64: digit, and numbers of a handwritten digit and of a house number."""
        if split not in self._pairs:
            rows = self._counts[split]
            digit = mnist_digits.balanced("mnist_svhn", split, classes=10, rows=rows)
            pools = [self._classes(source, split) for source in self._sources]
            pairs = torch.empty(3, rows, dtype=torch.int64)
            pairs[0] = digit
            for each in range(10):
                where = (digit == each).nonzero()[:, 0]
                members = [numbers[first[each] : first[each] + size[each]] for numbers, first, size in pools]
                once = min(map(len, members))
                passes = -(-len(where) // once)
                for side, own in enumerate(members):
                    orders = Draws("mnist_svhn", split, each, side, rows=passes, block=1).uniform("order", len(own))
                    pairs[1 + side, where] = own[orders.argsort(stable=True, dim=1)[:, :once].flatten()[: len(where)]]
            self._pairs[split] = pairs.to(self.device)
        return self._pairs[split]

    def conditional(self, given: Batch, want: Sequence[str], draws: Draws) -> Batch:
        """Fresh rows of the exact law of `want` given pictures of the digits in `given`: what a picture shows besides
        its digit says nothing about the other. From nothing, the digit is uniform.

        Raises Inapplicable where pictures are given without their digit.
        """
        digit = told_digit(given, draws)
        numbers = [
            mnist_digits.picked(draws, name, self._classes(source, "test"), digit)
            for name, source in zip(CARD.modalities, self._sources, strict=True)
        ]
        return self._compose(numbers, want)

    def _classes(self, source: mnist_digits.Digits | svhn.HouseNumbers, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """See digits.by_class: of the pictures that a split may show."""
        return mnist_digits.by_class(source.labels, mnist_digits.part_of(source, split, self._paper))

    def _compose(self, numbers: Sequence[Tensor], want: Sequence[str]) -> Batch:
        rows: Batch = {}
        for name in want:
            side = CARD.modalities.index(name)
            rows[name] = self._pictures[side].index_select(0, numbers[side]).float().div_(self._whites[side])
        return rows


def _identity(variant: str, numbers: svhn.HouseNumbers) -> str:
    return f"mnist_svhn {variant}:{numbers.digest}"


DATASET = MnistSvhn
