"""spoken_digits: pictures, sounds and captions of spoken and written digits, the laptop's image-text-audio.

    bench run --method muni --dataset spoken_digits --preset cpu

MNIST's pictures, the recordings of the Free Spoken Digit Dataset and captions (data_prep/spoken/spoken_world.py)
become 64 numbers each by codecs that the suite trains (data_prep/spoken/spoken_codecs.py); methods see those. Training
rows are pairs of two modalities, in three corpora that share nothing. docs/spoken_digits.md has the splits, the codecs
and the judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, DatasetCard, Modality, Raw, words_of
from benchmark.config import Config
from benchmark.runtime import Draws
from data_prep.media import feature_files
from data_prep.spoken import spoken_captions, spoken_codecs
from data_prep.spoken.spoken_world import CORPORA, HOLDS, SpokenWorld

CARD = DatasetCard(
    version=1,
    label="spoken digits",
    paper="the protocol of MUNI (2026), Sec. 6.3, App. E.2, Tables 3, 4, 8 and 9, on data of our own",
    modalities=("text", "image", "audio"),
    kinds=("text", "image", "audio"),
    notes=(
        "MNIST, the Free Spoken Digit Dataset, and captions of a grammar of ours, in place of the paper's corpora",
        "judges are small networks that the suite trains on a split of their own: their scores have the paper's "
        "formulas and not its units",
        "standard errors are clustered by recording: 300 of them are in the test split",
        "a variant is mnist, sklearn (scikit-learn's digits, real recordings) or synthetic-sound (tones in place of "
        "recordings: for tests alone)",
    ),
    like="image_text_audio",
    recipe={
        "shared": {
            "latent_size": (32, "assumed"),
            "private_size": (32, "assumed"),
        },
        "paper": None,
        "gpu": {
            "variant": ("mnist", "budget"),
            "train_rows": (60_000, "budget"),
            "evaluation_rows": (1_200, "budget: each recording four times"),
            "unconditional_rows": (1_200, "budget"),
            "learning_rate": (5e-4, "budget"),
            "updates": (20_000, "budget"),
            "batch_rows": (1_024, "paper, App. E.2"),
            "warmup_updates": (400, "budget"),
            "ema_updates": (1_000, "budget"),
            "word_rows": (64, "paper, App. E.2"),
            "adapter_rank": (8, "budget"),
            "encoder_width": (768, "budget"),
            "encoder_depth": (3, "budget"),
            "decoder_width": (768, "budget"),
            "decoder_depth": (4, "budget"),
            "prior_width": (768, "budget"),
            "prior_depth": (4, "budget"),
            "prior_steps": (25, "follow-up"),
            "decoder_steps": (25, "paper, App. E.2"),
            "precision": ("bfloat16", "budget"),
        },
        "cpu": {
            "variant": ("mnist", "budget"),
            "train_rows": (12_000, "budget"),
            "evaluation_rows": (600, "budget: each recording twice"),
            "unconditional_rows": (600, "budget"),
            "learning_rate": (2e-3, "budget"),
            "updates": (4_000, "budget"),
            "batch_rows": (256, "budget"),
            "warmup_updates": (200, "budget"),
            "ema_updates": (500, "budget"),
            "word_rows": (32, "budget: the paper has 64 of 1,024"),
            "adapter_rank": (8, "budget"),
            "encoder_width": (192, "budget"),
            "encoder_depth": (2, "budget"),
            "decoder_width": (256, "budget"),
            "decoder_depth": (2, "budget"),
            "prior_width": (192, "budget"),
            "prior_depth": (3, "budget"),
            "prior_steps": (25, "follow-up"),
            "decoder_steps": (25, "paper, App. E.2"),
            "precision": ("bfloat16", "budget"),
            "threads": (1, "budget: the products are too small to share between cores"),
        },
        "smoke": {
            "variant": ("synthetic-sound", "budget: needs no download"),
            "train_rows": (300, "budget"),
            "evaluation_rows": (150, "budget: the least that a Fréchet distance takes, and some"),
            "unconditional_rows": (150, "budget"),
            "updates": (20, "budget"),
            "batch_rows": (32, "budget"),
            "warmup_updates": (5, "budget"),
            "word_rows": (16, "budget"),
            "prior_steps": (4, "budget"),
            "decoder_steps": (4, "budget"),
        },
    },
)


class SpokenDigits:
    """Rows are features (rows, 64) of mean 0 and variance 1 over the training rows, and, with texts, their words.

    `raw` has the pictures (rows, 1, 28, 28), the sounds (rows, 8000) at 8 kHz and the captions behind them.
    Raises UserError as SpokenWorld, and where what features are kept with is not installed.
    """

    corpora = CORPORA
    judged_by = "trained"
    digit_of = staticmethod(spoken_captions.digit_of)

    def __init__(self, config: Config, device: str = "cpu") -> None:
        self.device, self.world = device, SpokenWorld(config)
        size = spoken_codecs.TINY if config.variant == "synthetic-sound" else spoken_codecs.FULL
        self._codecs = spoken_codecs.of(self.world, device, size=size)
        self.identity, self.sample_rate = self.world.identity, self.world.sample_rate
        self._rows_of = {True: config.evaluation_rows, False: config.unconditional_rows}
        vocabulary, sizes = len(spoken_captions.VOCABULARY), (spoken_codecs.FEATURES,)
        self.modalities = (
            Modality("text", sizes, "text", classes=vocabulary, words=spoken_codecs.LENGTH),
            Modality("image", sizes, "image"),
            Modality("audio", sizes, "audio"),
        )
        self._features: dict[str, Batch] = {}
        self._scaling = {name: self._statistics(name) for name in CARD.modalities}

    def count(self, split: str) -> int:
        return self.world.count(split)

    def rows_of(self, cell: Cell) -> int:
        """Rows that a method generates for a cell."""
        return self._rows_of[bool(cell.given)]

    def split_of(self, cell: Cell) -> str:
        return "test"

    def fresh_split(self, cell: Cell) -> str:
        """Where the real things lie that generated ones are compared with: other pictures and recordings."""
        return "fresh"

    def rows(self, split: str, indices: Tensor) -> Batch:
        """Features and words of what the split holds, at `indices`."""
        found = {name: rows.index_select(0, indices) for name, rows in self._extracted(split).items()}
        for name, (mean, scale) in self._scaling.items():
            if name in found:
                found[name] = (found[name] - mean) / scale
        return found

    def raw(self, split: str, indices: Tensor) -> Raw:
        """Pictures, sounds and captions, of what the split holds."""
        found = self.world.raw(split, indices.cpu())
        return {name: rows.to(self.device) if isinstance(rows, Tensor) else rows for name, rows in found.items()}

    def real(self, split: str, indices: Tensor) -> Raw:
        """As `raw`, with another caption of each item."""
        return self.raw(split, indices) | {"text": self.world.other_captions(split, indices.cpu())}

    def clusters(self, split: str, indices: Tensor) -> Tensor:
        """(rows,) int64: rows of one number share a recording."""
        return self.world.clusters(split, indices.cpu())

    def attributes(self, split: str, indices: Tensor) -> dict[str, Tensor]:
        return self.world.attributes(split, indices.cpu())

    def render(self, generated: Batch, draws: Draws) -> Raw:
        """Things from features and words. The decoders draw nothing."""
        plain = dict(generated)
        for name, (mean, scale) in self._scaling.items():
            if name in plain and plain[name].is_floating_point():
                plain[name] = plain[name] * scale + mean
        return self._codecs.decode(plain)

    def language_model(self) -> Any:
        return self._codecs.language_model(*self._scaling["text"])

    def _extracted(self, split: str) -> Batch:
        """Features and words of a whole split, as the codecs give them; made once for a machine."""
        if split not in self._features:
            found = feature_files.extract(
                f"spoken_digits-{split.replace('+', '-')}",
                self._codecs.version,
                self.identity,
                self.count(split),
                lambda number: number,
                lambda numbers: self._encode(split, numbers),
            ).whole(self.device)
            names = {name: name for name in HOLDS[split]} | {"words": words_of("text")}
            self._features[split] = {names[name]: rows for name, rows in found.items() if name in names}
        return self._features[split]

    def _encode(self, split: str, numbers: Sequence[int]) -> Batch:
        raw = self.world.raw(split, torch.tensor(numbers))
        found = self._codecs.encode(raw)
        if "text" in HOLDS[split]:
            found["words"] = self._codecs.words(raw["text"])  # type: ignore[arg-type]
        return found

    def _statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a modality's features over the training rows, (64,) each."""
        rows = torch.cat([self._extracted(split)[name] for split in CORPORA if name in HOLDS[split]]).double()
        return rows.mean(0).float(), rows.std(0).clamp(min=1e-6).float()


DATASET = SpokenDigits
