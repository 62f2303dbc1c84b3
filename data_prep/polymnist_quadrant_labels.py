"""PolyMNIST-Quadrant-Labels (MUNI, Sec. 6.2): three pictures of one digit in one quadrant, and both as labels.

    bench run --method muni --dataset polymnist_quadrant_labels --preset cpu

A picture is a random crop of its view's photograph; inside the strokes of a handwritten digit, which fills one
quadrant, its colours are inverted. Rows are composed on the device when they are asked for, and are a pure function of
(variant, split, index). docs/polymnist_quadrant_labels.md has the variants, the sources and what differs from the
authors' data.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.api import Batch, DatasetCard, Inapplicable, Modality, UserError
from benchmark.config import Config, nearest
from benchmark.runtime import Draws
from data_prep.digits import backgrounds, mnist_digits
from data_prep.digits.digit_pictures import DigitPictures

CARD = DatasetCard(
    version=1,
    label="PolyMNIST-Quadrant-Labels",
    paper="MUNI (2026), Sec. 6.2, App. E.1, Tables 2 and 6",
    modalities=("image1", "image2", "image3", "digit", "quadrant"),
    kinds=("image", "image", "image", "label", "label"),
    notes=(
        "the authors' photographs are not free; ours are three of scikit-image's, or with -folder your own",
        "a variant is SPLIT-CANVAS[-sklearn][-folder]",
        "clean: no handwriting is in two of the splits train, validation, verifier and test; paper: all splits draw "
        "from all 70,000 digits and the verifier learns on the training and the evaluation rows, as the authors' does",
        "64, 32, 16: pixels of a picture's side; 32 and 16 are the 64's scenes, photograph and strokes area-averaged",
        "-sklearn: the 1,797 digits that scikit-learn ships, in place of MNIST",
        "-folder: the first three pictures of $MUNI_BENCH_DATA/backgrounds; its rows exist on your machine alone",
    ),
    recipe={
        "shared": {
            "weight_decay": (0.0, "paper, Table E.2"),
            "clip_norm": (1.0, "paper, Table E.2"),
            "beta2": (0.95, "assumed: shorter than AdamW's 0.999, under which the loss jumped; docs, Networks"),
            "latent_size": (32, "paper, App. E.1"),
            "private_size": (32, "paper, App. E.1"),
            "encoder_grad_scale": (1e-3, "assumed: the paper's value is lost"),
            "prior_weight": (1.0, "assumed: one prior route per reconstruction route"),
            "image_time_location": (1.0, "assumed: what a picture shows is settled at high noise; docs, Networks"),
            "guidance": (1.0, "assumed: the paper names none here"),
            "condition_dropout": (0.1, "assumed: so that guidance can be asked for"),
            "compile": (False, "assumed"),
            "probe_rows": (1_024, "assumed: no such table in the paper"),
        },
        "paper": {
            "variant": ("paper-64", "the authors' splits, by the follow-up"),
            "train_rows": (220_000, "follow-up"),
            "evaluation_rows": (10_000, "paper, App. E.1"),
            "unconditional_rows": (10_000, "paper, App. E.1"),
            "learning_rate": (1.5e-4, "follow-up: the paper's value is lost"),
            "updates": (257_700, "paper, Table E.2: 300 epochs, of 859 updates each"),
            "batch_rows": (256, "follow-up: the paper's value is lost"),
            "warmup_updates": (4_295, "paper, Table E.2: 5 epochs"),
            "ema_updates": (1_000, "follow-up: decay 0.999"),
            "encoder_width": (64, "paper, Table E.2: 8.8 M parameters"),
            "encoder_depth": (2, "assumed"),
            "decoder_width": (64, "follow-up; paper, Table E.2: 10.7 M parameters"),
            "decoder_depth": (3, "assumed"),
            "label_width": (256, "follow-up"),
            "patch": (1, "assumed"),
            "prior_width": (1_024, "paper, Table E.2: 12.6 M parameters"),
            "prior_depth": (3, "assumed"),
            "prior_steps": (50, "paper, App. E.1"),
            "decoder_steps": (25, "paper, App. E.1"),
            "precision": ("bfloat16", "assumed"),
        },
        "gpu": {
            "variant": ("clean-64", "budget: handwriting in one split alone"),
            "train_rows": (220_000, "follow-up"),
            "evaluation_rows": (10_000, "paper, App. E.1"),
            "unconditional_rows": (10_000, "paper, App. E.1"),
            "learning_rate": (3e-4, "budget"),
            "updates": (20_000, "budget"),
            "batch_rows": (256, "budget"),
            "warmup_updates": (400, "budget"),
            "ema_updates": (1_000, "budget"),
            "encoder_width": (64, "budget"),
            "encoder_depth": (1, "budget"),
            "decoder_width": (64, "budget"),
            "decoder_depth": (2, "budget"),
            "label_width": (256, "budget"),
            "patch": (2, "budget"),
            "prior_width": (512, "budget"),
            "prior_depth": (3, "budget"),
            "prior_steps": (50, "paper, App. E.1"),
            "decoder_steps": (25, "paper, App. E.1"),
            "precision": ("bfloat16", "budget"),
        },
        "cpu": {
            "variant": ("clean-32", "budget: a quarter of the pixels"),
            "train_rows": (220_000, "follow-up"),
            "evaluation_rows": (480, "budget: each pair of labels 12 times"),
            "unconditional_rows": (1_000, "budget"),
            "learning_rate": (3e-3, "budget"),
            "updates": (12_000, "budget"),
            "batch_rows": (64, "budget"),
            "warmup_updates": (200, "budget"),
            "ema_updates": (500, "budget"),
            "encoder_width": (16, "budget"),
            "encoder_depth": (1, "budget"),
            "decoder_width": (32, "budget"),
            "decoder_depth": (1, "budget"),
            "label_width": (128, "budget"),
            "patch": (2, "budget"),
            "prior_width": (256, "budget"),
            "prior_depth": (3, "budget"),
            "prior_steps": (50, "paper, App. E.1"),
            "decoder_steps": (25, "paper, App. E.1"),
            "precision": ("bfloat16", "budget"),
        },
        "smoke": {
            "variant": ("clean-16-sklearn", "budget: needs no download"),
            "train_rows": (2_000, "budget"),
            "evaluation_rows": (40, "budget"),
            "unconditional_rows": (40, "budget"),
            "learning_rate": (1e-3, "budget"),
            "updates": (20, "budget"),
            "batch_rows": (32, "budget"),
            "warmup_updates": (5, "budget"),
            "ema_updates": (10, "budget"),
            "encoder_width": (16, "budget"),
            "encoder_depth": (1, "budget"),
            "decoder_width": (16, "budget"),
            "decoder_depth": (1, "budget"),
            "label_width": (16, "budget"),
            "patch": (2, "budget"),
            "prior_width": (32, "budget"),
            "prior_depth": (1, "budget"),
            "prior_steps": (4, "budget"),
            "decoder_steps": (4, "budget"),
            "precision": ("float32", "budget"),
            "threads": (1, "budget: the products are too small to share between cores"),
        },
    },
)

VIEWS = ("image1", "image2", "image3")
LABELS = {"digit": 10, "quadrant": 4}
PAIRS = LABELS["digit"] * LABELS["quadrant"]
FULL = 64  # pixels of the canvas on which every scene is laid out, whatever the variant shows of it
CENTER, SCALE = 0.5, 0.28


@dataclass(frozen=True)
class Variant:
    """paper: splits as the authors have them; canvas: pixels of a side; digits: whose; folder: the user's pictures."""

    paper: bool
    canvas: int
    digits: str
    folder: bool


VARIANTS = {
    f"{split}-{canvas}" + ("" if source == "mnist" else f"-{source}") + ("-folder" if folder else ""): Variant(
        split == "paper", canvas, source, folder
    )
    for split, canvas, source, folder in itertools.product(
        ("clean", "paper"), (64, 32, 16), ("mnist", "sklearn"), (False, True)
    )
}


class PolymnistQuadrantLabels(DigitPictures):
    """Pictures (3, canvas, canvas) in [0, 1], a digit and a quadrant, which all three pictures share.

    A scene is eight integers: digit, quadrant, and for each view which handwriting it shows and where its photograph is
    cut. Scenes do not depend on the canvas. Quadrants count as in mathematics: 0 top right, 1 top left, 2 bottom left,
    3 bottom right; every 40 rows from a multiple of 40 on hold each (digit, quadrant) once. The first half of the test
    split are the rows that cells give and compare with; the second half are fresh rows for distribution distances.

    backgrounds_digest: a checksum of the photographs; identity: all that rows depend on besides split and index.
    Raises UserError for an unknown variant, and for digits or photographs that are missing or damaged.
    """

    def __init__(self, config: Config, device: str = "cpu") -> None:
        if config.variant not in VARIANTS:
            raise UserError(f"unknown variant {config.variant!r}{nearest(config.variant, VARIANTS)}")
        variant = VARIANTS[config.variant]
        shape = (3, variant.canvas, variant.canvas)
        self.modalities = (
            *(Modality(name, shape, kind="image", center=CENTER, scale=SCALE) for name in VIEWS),
            *(Modality(name, (), kind="label", classes=classes) for name, classes in LABELS.items()),
        )
        super().__init__(config, device)
        if variant.paper:  # the authors' learns on the rows that cells compare with, too
            self._counts["verifier"] += self._counts["test"] // 2

        pictures = backgrounds.own(len(VIEWS), FULL) if variant.folder else backgrounds.photographs(len(VIEWS))
        self.backgrounds_digest = backgrounds.digest(pictures)
        self.identity = f"{config.variant}:{self.backgrounds_digest}"
        self._shrink = FULL // variant.canvas
        photographs = [_photograph(torch.from_numpy(picture.copy()), self._shrink) for picture in pictures]
        self._widths = torch.tensor([photograph.shape[2] for photograph in photographs])
        heights = torch.tensor([photograph.shape[1] for photograph in photographs])
        self._places = torch.stack([heights, self._widths]) * self._shrink - FULL + 1  # of a crop's top left corner
        self._crops = [backgrounds.crops(photograph.to(device), variant.canvas) for photograph in photographs]

        self._digits = mnist_digits.load(variant.digits)
        self._strokes = strokes(self._digits, variant.canvas).to(device)
        corner = torch.tensor([[0, 1], [0, 0], [1, 0], [1, 1]])  # row and column of each quadrant
        one = functional.one_hot(corner, 2).float()
        self._quadrants = (one[:, 0, :, None] * one[:, 1, None, :])[:, :, None, :, None].to(device)
        self._paper = variant.paper
        self._scenes: dict[str, Tensor] = {}

    @classmethod
    def content(cls, config: Config) -> dict[str, str]:
        """Of the user's pictures, see benchmark.api.OfFiles."""
        if not VARIANTS[config.variant].folder:
            return {}
        return {"identity": f"{config.variant}:{backgrounds.digest(backgrounds.own(len(VIEWS), FULL))}"}

    def rows(self, split: str, indices: Tensor) -> Batch:
        """{modality: (rows, *shape)} at `indices`; splits train, validation, test and verifier."""
        return self._compose(self.scenes(split).index_select(1, indices), CARD.modalities)

    def scenes(self, split: str) -> Tensor:
        """(8, rows of the split) int64: digit, quadrant, number of the handwriting in each view among the digits'
        pictures, and number of the crop of each view's photograph."""
        if split not in self._scenes:
            if split == "verifier" and self._paper:
                shown = self.scenes("test")[:, : self.count("test") // 2]
                self._scenes[split] = torch.cat([self.scenes("train"), shown], 1)
            else:
                rows, name = self._counts[split], "polymnist_quadrant_labels"
                pair = mnist_digits.balanced(name, split, classes=PAIRS, rows=rows)
                draws = Draws(name, split, rows=rows, block=4096)
                self._scenes[split] = self._scene(draws, split, pair % 10, pair // 10).to(self.device)
        return self._scenes[split]

    def conditional(self, given: Batch, want: Sequence[str], draws: Draws) -> Batch:
        """Fresh rows of the exact law of `want` given labels: a label that is not given is drawn uniformly.

        Raises Inapplicable where a picture is given: what else it could show is not known.
        """
        if pictures := [name for name in VIEWS if name in given]:
            raise Inapplicable(f"what {' and '.join(pictures)} leave open is not known: only labels have an exact law")
        digit, quadrant = (
            given[name] if name in given else draws.integers(name, classes) for name, classes in LABELS.items()
        )
        return self._compose(self._scene(draws, "test", digit, quadrant), want)

    def _scene(self, draws: Draws, split: str, digit: Tensor, quadrant: Tensor) -> Tensor:
        """Scenes of the given labels, (8, rows), with handwriting of a split and crops from `draws`."""
        handwriting = mnist_digits.picked(draws, "handwriting", self._classes(split), digit, len(VIEWS))
        place = draws.integers("crop", 1 << 40, 2, len(VIEWS)) % self._places.to(draws.device)
        top, left = (place // self._shrink).unbind(1)
        crop = top * self._widths.to(draws.device) + left
        return torch.cat([digit[None], quadrant[None], handwriting.T, crop.T])

    def _classes(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """See digits.by_class: of the pictures that a split may show."""
        whole = range(len(self._digits.labels))
        return mnist_digits.by_class(self._digits.labels, whole if self._paper else self._digits.parts[split])

    def _compose(self, scenes: Tensor, want: Sequence[str]) -> Batch:
        digit, quadrant, *views = scenes
        rows: Batch = {"digit": digit, "quadrant": quadrant}
        cell = self._quadrants.index_select(0, quadrant)
        for name, crops, handwriting, crop in zip(VIEWS, self._crops, views[:3], views[3:], strict=True):
            if name in want:
                background = crops.index_select(0, crop).float().div_(255)
                drawn = self._strokes.index_select(0, handwriting).float().div_(self._shrink**2)
                alpha = (cell * drawn[:, None, :, None, :]).reshape(len(background), 1, *background.shape[2:])
                # (1 - alpha) background + alpha (1 - background), with one large tensor instead of three
                rows[name] = background.mul_(1 - 2 * alpha).add_(alpha)
        return {name: rows[name] for name in want}


@functools.cache
def strokes(source: mnist_digits.Digits, canvas: int) -> Tensor:
    """(pictures, canvas / 2, canvas / 2) uint8: how many of the pixels of the 64 canvas under each pixel are ink."""
    cell, shrink = canvas // 2, FULL // canvas
    parts = []
    for pictures in torch.from_numpy(source.images).split(4096):
        grown = functional.interpolate(pictures[:, None].float(), size=FULL // 2, mode="bilinear", align_corners=False)
        parts.append((grown > source.ink).reshape(-1, cell, shrink, cell, shrink).sum((2, 4), dtype=torch.uint8))
    return torch.cat(parts)


def _photograph(pixels: Tensor, shrink: int) -> Tensor:
    """(3, height, width) uint8 of (height, width, 3), cut to multiples of four and area-averaged."""
    height, width = (side // 4 * 4 for side in pixels.shape[:2])
    planes = pixels[:height, :width].permute(2, 0, 1).float()
    planes = planes.reshape(3, height // shrink, shrink, width // shrink, shrink).mean((2, 4))
    return planes.round().to(torch.uint8)


DATASET = PolymnistQuadrantLabels
