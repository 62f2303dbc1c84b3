"""The paper's image-text-audio benchmark (MUNI, Sec. 6.3, App. E.2): pairs of two of three modalities, no triplet.

    bench tiny-models ~/tiny && MUNI_BENCH_MODELS=~/tiny \\
        bench run --method muni --dataset image_text_audio --preset smoke    # tiny models, 51 pictures, 200 sounds
    bench run --method muni --dataset image_text_audio --preset paper        # the published models and the whole data

A method sees features: of captions (EmbeddingGemma), pictures (CLIP ViT-L/14) and sounds (CLAP, brought to their size
by an autoencoder that the suite trains), all extracted once and standardised over the training corpora. What it
generates is rendered by stable unCLIP, AudioLDM and Gemma 3. data_prep/media/image_text_audio_sources.py has the data
and its folders, data_prep/pretrained/pretrained_models.toml the models, their sizes and licences.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.api import Batch, Cell, DatasetCard, Modality, Raw, UserError, words_of
from benchmark.config import Config, digest, nearest
from benchmark.media.sounds import resampled
from benchmark.runtime import Draws
from data_prep.media import feature_files, image_text_audio_sources
from data_prep.media.image_text_audio_sources import Item, Listing
from data_prep.pretrained.pretrained_codecs import AudioAutoencoder, Models, on_canvas

CARD = DatasetCard(
    version=2,
    label="image-text-audio",
    paper="MUNI (2026), Sec. 6.3, App. E.2, Tables 3, 4, 8 and 9",
    modalities=("text", "image", "audio"),
    kinds=("text", "image", "audio"),
    notes=(
        "a variant is what the rows are made from: paper, the paper's data; mini, 50 pictures and 200 sounds for tests",
        "text<->image cells use MS-COCO, text<->audio AudioCaps' test, image<->audio VGGSound's test, all others the "
        "triplets: AudioCaps' test with pictures of FLUX.1-dev",
        "unconditional cells have as many rows as there are triplets (975 where none is missing; the follow-up: 1,000)",
        "pictures are scored at 256 x 256, the centre square, as is usual with MS-COCO; the paper does not say",
        "VGGSound's picture is the clip's middle frame, and COCO's 30,000 are chosen by a hash: the paper says neither",
    ),
    recipe={
        "shared": {
            "weight_decay": (0.0, "paper, Table E.2"),
            "clip_norm": (1.0, "paper, Table E.2"),
            "latent_size": (768, "assumed: the paper's value is lost"),
            "private_size": (768, "assumed: no method with private latents in the paper's table"),
            "encoder_grad_scale": (1e-3, "assumed: the paper's value is lost"),
            "prior_weight": (0.6666666666666666, "paper, App. E.2: reconstruction to prior 3:2"),
            "word_weight": (0.05, "paper, App. E.2"),
            "adapter_scale": (2.0, "assumed: the paper's value is lost"),
            "guidance": (4.0, "paper, App. E.2: of image features"),
            "condition_dropout": (0.1, "assumed: so that guidance can be asked for"),
            "compile": (False, "assumed"),
            "probe_rows": (1_024, "assumed: no such table in the paper"),
        },
        "paper": {
            "variant": ("paper", "paper"),
            "train_rows": (547_180, "follow-up: all pairs; as many as are there"),
            "evaluation_rows": (30_000, "follow-up: MS-COCO 30,000, VGGSound 15,446, AudioCaps 975"),
            "unconditional_rows": (1_000, "follow-up; at most as many as there are triplets"),
            "learning_rate": (1e-4, "follow-up: FlowBind's; the paper's value is lost"),
            "updates": (200_000, "follow-up: FlowBind's; the paper's value is lost"),
            "batch_rows": (1_024, "paper, App. E.2"),
            "warmup_updates": (2_670, "paper, Table E.2: 5 epochs, of 534 updates each"),
            "ema_updates": (1_000, "assumed: the paper's value is lost"),
            "word_rows": (64, "paper, App. E.2"),
            "adapter_rank": (16, "assumed: the paper's value is lost"),
            "encoder_width": (1_280, "paper, Table E.2: 90 M parameters"),
            "encoder_depth": (4, "assumed"),
            "decoder_width": (1_320, "paper, Table E.2: 140 M parameters"),
            "decoder_depth": (6, "assumed"),
            "prior_width": (1_320, "paper, Table E.2: 30 M parameters"),
            "prior_depth": (4, "assumed"),
            "prior_steps": (25, "follow-up"),
            "decoder_steps": (25, "paper, App. E.2"),
            "precision": ("bfloat16", "assumed"),
        },
        "smoke": {
            "variant": ("mini", "budget: needs no download"),
            "train_rows": (165, "budget"),
            "evaluation_rows": (8, "budget"),
            "unconditional_rows": (8, "budget"),
            "learning_rate": (1e-3, "budget"),
            "updates": (10, "budget"),
            "batch_rows": (16, "budget"),
            "warmup_updates": (2, "budget"),
            "ema_updates": (10, "budget"),
            "word_rows": (8, "budget"),
            "adapter_rank": (2, "budget"),
            "encoder_width": (16, "budget"),
            "encoder_depth": (1, "budget"),
            "decoder_width": (16, "budget"),
            "decoder_depth": (1, "budget"),
            "prior_width": (32, "budget"),
            "prior_depth": (1, "budget"),
            "prior_steps": (2, "budget"),
            "decoder_steps": (2, "budget"),
            "precision": ("float32", "budget"),
            "threads": (1, "budget: the products are too small to share between cores"),
        },
    },
)

CORPORA = ("text+image", "text+audio", "image+audio")
TESTS = {
    frozenset(("text", "image")): "coco",
    frozenset(("text", "audio")): "audiocaps",
    frozenset(("image", "audio")): "vggsound",
}
TRIPLETS = "triplets"
CANVAS = {"paper": 256, "mini": 64}  # pixels of a scored picture's side
ENCODERS = {"text": "text_encoder", "image": "image_encoder", "audio": "audio_encoder"}
DECODERS = ("text_decoder", "image_decoder", "audio_decoder")
JUDGES = ("judge_clip", "judge_clap", "judge_wav2clip", "judge_inception", "judge_vggish")


@dataclass(frozen=True, eq=False)
class Split:
    """items: of the rows, in their order; columns: standardised features (rows, size) of the modalities that it holds,
    and words (rows, most) where it holds text; clip: (rows,) which rows were cut from one clip."""

    items: list[Item]
    columns: Batch
    clip: Tensor


class ImageTextAudio:
    """Standardised features of captions, pictures and sounds, and the things themselves.

    Splits: the training corpora in `corpora`, whose rows are pairs, and the tests coco, audiocaps, vggsound (pairs) and
    triplets. `models`: the pretrained models; `identity`: all that rows depend on besides split and index; `manifest`:
    what each source has, lacks and lost. The first use extracts features, which takes hours at the paper's scale, and
    is resumed where it was stopped.

    Raises UserError for an unknown variant, for data or models that are missing, and where training and test share a
    clip.
    """

    corpora = CORPORA
    judged_by = "pretrained"
    sample_rate = 16_000  # of scored sounds: AudioLDM's

    def __init__(self, config: Config, device: str = "cpu", models: Models | None = None) -> None:
        if config.variant not in CANVAS:
            raise UserError(f"unknown variant {config.variant!r}{nearest(config.variant, CANVAS)}")
        self.device, self.models, self._canvas = device, models or Models(), CANVAS[config.variant]
        self._evaluation_rows = {True: config.evaluation_rows, False: config.unconditional_rows}
        listings = image_text_audio_sources.listings(config.variant)
        self.identity = _identity(config.variant, self.models, listings)  # finds a missing model before hours of work

        found = [(each, self._extracted(each)) for each in listings]
        self.manifest = [_entry(each, kept) for each, kept in found]
        for entry in self.manifest:
            _say(f"{entry['said']}; {entry['rows']} rows with features")
        self._build(found)
        sizes = {name: len(self._center[name]) for name in CARD.modalities}
        writer = self.language_model()
        self.modalities = (
            Modality("text", (sizes["text"],), "text", classes=writer.classes, words=writer.words),
            Modality("image", (sizes["image"],), "image"),
            Modality("audio", (sizes["audio"],), "audio"),
        )

    @classmethod
    def content(cls, config: Config) -> dict[str, str]:
        """See benchmark.api.OfFiles. Judges that are not on this machine yet have judged nothing."""
        models = Models(fetch=False)
        found = {"identity": _identity(config.variant, models, image_text_audio_sources.listings(config.variant))}
        for role in JUDGES:
            with contextlib.suppress(UserError):
                found[role] = models.identity([role])
        return found

    # Rows.

    def count(self, split: str) -> int:
        return len(self._of(split).items)

    def _of(self, split: str) -> Split:
        """The triplets are what other datasets call test. Raises UserError for a split that there is not."""
        found = self._splits.get(TRIPLETS if split == "test" else split)
        if found is None:
            raise UserError(f"{CARD.label} has no split {split!r}: it has {', '.join(self._splits)}")
        return found

    def split_of(self, cell: Cell) -> str:
        """The test whose rows a cell gives and compares with."""
        single = len(cell.given) == len(cell.want) == 1
        return TESTS[frozenset((*cell.given, *cell.want))] if single else TRIPLETS

    def fresh_split(self, cell: Cell) -> str:
        """Whose rows generated ones should look like: the test's own, as in the paper, so that the row `real` has a
        Fréchet distance of zero."""
        return self.split_of(cell)

    def rows_of(self, cell: Cell) -> int:
        """Rows that a method generates for a cell: as many as its test has, and as the recipe allows."""
        return min(self._evaluation_rows[bool(cell.given)], self.count(self.split_of(cell)))

    def rows(self, split: str, indices: Tensor) -> Batch:
        """{modality: (rows, size)}, and the words of the text, (rows, words), where the split holds text."""
        return {name: values[indices] for name, values in self._of(split).columns.items()}

    def clusters(self, split: str, indices: Tensor) -> Tensor:
        """(rows,) int64: rows of one number were cut from one clip."""
        return self._of(split).clip[indices]

    def raw(self, split: str, indices: Tensor) -> Raw:
        """Pictures (rows, 3, canvas, canvas), sounds (rows, samples) of ten seconds, with zeros after shorter ones, and
        captions, read anew from the files."""
        return self._things(split, indices, 0)

    def real(self, split: str, indices: Tensor) -> Raw:
        """As `raw`, with the second caption of each row that has one."""
        return self._things(split, indices, 1)

    def _things(self, split: str, indices: Tensor, caption: int) -> Raw:
        items = [self._of(split).items[number] for number in indices.tolist()]
        try:
            return self._read(items, caption)
        except feature_files.BadItem as bad:
            raise UserError(
                f"{split}: {bad.which} had features and is now among the {bad.reason}: get it anew"
            ) from None

    def _read(self, items: Sequence[Item], caption: int) -> Raw:
        found: Raw = {}
        if items[0].captions:
            found["text"] = [item.captions[min(caption, len(item.captions) - 1)] for item in items]
        if items[0].image is not None:
            pictures = [on_canvas(image_text_audio_sources.picture(item), self._canvas) for item in items]
            found["image"] = torch.stack(pictures).to(self.device)
        if items[0].audio is not None:
            most = round(image_text_audio_sources.SECONDS * self.sample_rate)
            sounds = torch.zeros(len(items), most)
            for row, item in zip(sounds, items, strict=True):
                samples, _ = image_text_audio_sources.sound(item, self.sample_rate)
                row[: len(samples)] = torch.from_numpy(samples[:most])
            found["audio"] = sounds.to(self.device)
        return found

    # Generated rows.

    def language_model(self) -> Any:
        """The frozen writer of captions (models/components/texts.py)."""
        writer = self.models.load("text_decoder", self.device)
        writer.size = len(self._center["text"])
        return writer

    def render(self, generated: Batch, draws: Draws) -> Raw:
        """Pictures, sounds and captions of generated features (rows, size) and words (rows, words)."""
        found: Raw = {}
        if "text" in generated:
            found["text"] = self.language_model().captions(generated["text"])
        if "image" in generated:
            decoder = self.models.load("image_decoder", self.device)
            pictures = decoder.render(self._unscaled("image", generated["image"]), _seeds(draws, "image"))
            levels = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            found["image"] = torch.stack([on_canvas(each, self._canvas) for each in levels]).to(self.device)
        if "audio" in generated:
            vectors = self._autoencoder.decode(self._unscaled("audio", generated["audio"]))
            sounds = self._sound_decoder.render(vectors, _seeds(draws, "audio"))
            rate = self._sound_decoder.rate
            heard = np.stack([resampled(sound, rate, self.sample_rate) for sound in sounds.cpu().numpy()])
            found["audio"] = torch.from_numpy(heard).to(self.device)
        return found

    def _unscaled(self, name: str, x: Tensor) -> Tensor:
        return x.float() * self._scale[name] + self._center[name]

    @cached_property
    def _sound_decoder(self) -> Any:
        """AudioLDM, once it is known whether the sounds' encoder is of the CLAP that it was trained with."""
        decoder = self.models.load("audio_decoder", self.device)
        captions = [item.captions[0] for item in self._splits["text+audio"].items[:64]]
        cosine = decoder.agreement(self.models.load("audio_encoder", self.device), captions)
        _say(
            f"captions as audio_decoder's CLAP and as audio_encoder see them: mean cosine {cosine:.3f}"
            + ("" if cosine > 0.9 else ", so they are not one model: generated sounds will not follow their features")
        )
        return decoder

    # Features.

    def _extracted(self, listing: Listing) -> feature_files.Features:
        """The features of a source's rows, extracted now as far as they are not on disk. A GPU's are of half precision,
        and so apart from a processor's."""
        holds, items = listing.source.holds, listing.items

        def load(number: int) -> dict[str, Any]:
            item = items[number]
            found: dict[str, Any] = {}
            if "text" in holds:
                found["text"] = item.captions[0]
            if "image" in holds:
                found["image"] = self._encoder("image").prepared(image_text_audio_sources.picture(item))
            if "audio" in holds:
                rate = self._encoder("audio").rate
                samples, found["resampled"] = image_text_audio_sources.sound(item, rate)
                found["audio"] = self._encoder("audio").prepared(samples, rate)
            return found

        def encode(loaded: list[dict[str, Any]]) -> Batch:
            found: Batch = {}
            if "text" in holds:
                captions = [each["text"] for each in loaded]
                found["text"] = self._encoder("text").captions(captions)
                found[words_of("text")] = self.models.load("text_decoder", self.device).tokens(captions)
            for name in ("image", "audio"):
                if name in holds:
                    found[name] = self._encoder(name).encode(torch.stack([each[name] for each in loaded]))
            if "audio" in holds:
                found["resampled"] = torch.tensor([int(each["resampled"]) for each in loaded])
            return found

        encoders = self.models.identity([*ENCODERS.values(), "text_decoder"])
        version = f"{CARD.version}:{encoders}:{self.device.partition(':')[0]}"
        name = f"image_text_audio-{listing.source.name}"
        return feature_files.extract(name, version, listing.checksum, len(items), load, encode, _say)

    def _encoder(self, name: str) -> Any:
        return self.models.load(ENCODERS[name], self.device)

    def _build(self, found: Sequence[tuple[Listing, feature_files.Features]]) -> None:
        """Splits of standardised features on the device, from the sources' features."""
        training = [kept for listing, kept in found if listing.source.split in CORPORA]
        parts = {name: [kept for kept in training if name in kept.columns] for name in CARD.modalities}
        vectors = torch.cat([kept.whole(self.device)["audio"] for kept in parts["audio"]])
        key = digest([self.identity, CARD.version, vectors.shape[1], self.device.partition(":")[0]])
        size = parts["image"][0].columns["image"][0].shape[1]
        self._autoencoder = AudioAutoencoder.kept(key, vectors, size, _say)
        coded = self._autoencoder.encode(vectors)
        statistics = {name: feature_files.statistics(parts[name], name) for name in ("text", "image")}
        statistics["audio"] = coded.mean(0), coded.std(0, unbiased=False).clamp(min=1e-6)
        self._center = {name: center.to(self.device) for name, (center, _) in statistics.items()}
        self._scale = {name: scale.to(self.device) for name, (_, scale) in statistics.items()}
        self._splits = {
            split: self._split([(listing, kept) for listing, kept in found if listing.source.split == split])
            for split in dict.fromkeys(listing.source.split for listing, _ in found)
        }

    def _split(self, found: Sequence[tuple[Listing, feature_files.Features]]) -> Split:
        wholes = [kept.whole(self.device) for _, kept in found]
        columns: Batch = {}
        for name in CARD.modalities:
            if name in wholes[0]:
                values = torch.cat([whole[name] for whole in wholes]).float()
                values = self._autoencoder.encode(values) if name == "audio" else values
                columns[name] = (values - self._center[name]) / self._scale[name]
        if words_of("text") in wholes[0]:
            columns[words_of("text")] = torch.cat([whole[words_of("text")] for whole in wholes])
        items = [
            listing.items[number]
            for (listing, _), whole in zip(found, wholes, strict=True)
            for number in whole["index"].tolist()
        ]
        numbers: dict[str, int] = {}
        clip = torch.tensor([numbers.setdefault(item.clip, len(numbers)) for item in items], device=self.device)
        return Split(items, columns, clip)


def _identity(variant: str, models: Models, listings: Sequence[Listing]) -> str:
    codecs = models.identity([*ENCODERS.values(), *DECODERS])
    return f"{variant}:{digest([codecs, *(each.checksum for each in listings)])}"


def _entry(listing: Listing, kept: feature_files.Features) -> dict[str, Any]:
    """What a source has, lacks and lost."""
    resampled_rows = int(sum(view.sum() for view in kept.columns.get("resampled", [])))
    return {
        "source": listing.source.name,
        "split": listing.source.split,
        "place": listing.place,
        "licence": listing.source.licence,
        "the paper's rows": listing.source.rows,
        "listed": len(listing.items),
        "rows": len(kept),
        "counts": dict(listing.counts) | {"sounds that were resampled": resampled_rows},
        "left out": {reason: each["count"] for reason, each in kept.manifest["left out"].items()},
        "checksum": listing.checksum,
        "said": listing.in_words(),
    }


def _seeds(draws: Draws, name: str) -> list[int]:
    """One per row."""
    return draws.integers(name, 2**62).tolist()


def _say(line: str) -> None:
    """Once per process: a dataset is made anew for every method."""
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)


_said: set[str] = set()


DATASET = ImageTextAudio
