"""Judges of pictures, sounds and sentences that the suite trains itself: three small networks, one per modality.

Each reads its modality into FEATURES numbers, standardised over real rows, on which Fréchet distances are taken. Linear
heads on them are the towers of three contrastive pairs (text-image, text-audio, image-audio) and, for pictures and
sounds, a reader of digits. All are trained together on the dataset's split `judge`, whose rows hold all modalities, and
measured on its split `validation`; they are a function of the dataset's identity, of that split's size, and of the code
of both. They are trained once and kept, as `judges/<hash>.safetensors`, and frozen, in eval mode.

The loss of a pair is the symmetric InfoNCE of a batch, whose best critic is the pointwise mutual information of what
the two show (van den Oord et al., 2018): a row of the same digit whose sentence tells other details is a negative that
teaches them, and one whose sentence tells none costs both sides alike. What a picture and a sound share is the digit
alone, so there all rows of a batch that show one digit are each other's positives, equally, and nothing is learned by
heart of which recording stood beside which picture.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.config import digest
from benchmark.fitting import network_store
from benchmark.fitting.frozen_network import OncePerTensor, fit, in_chunks
from benchmark.fitting.network_store import Say
from benchmark.runtime import Draws, seed_of, seeded

VERSION = 1  # raised when the same split may now train other judges: part of every protocol
PAIRS = (("text", "image"), ("text", "audio"), ("image", "audio"))
MODALITIES = ("text", "image", "audio")
DIGITS = 10
FEATURES = EMBEDDING = 64
ROWS, UPDATES, PASSES = 128, 1000, 10  # rows per update; at most so many updates, and passes through the split
RATE, DECAY, WARM = 4e-3, 0.05, 0.2  # AdamW; the rate rises for a share of the updates and falls to zero
SHARPEST = 100.0  # the most that cosines are multiplied by, as in CLIP
CHUNK = 64  # rows per call of a frozen network: always as many, so that no number depends on the batch
HELD_OUT = 1000  # validation rows on which the stated numbers are measured, at most
BLOCK = 1024  # rows that are asked of the dataset at a time
LEXICON = 8192  # rows whose sentences' words are known, at most

WORDS, LENGTH = 1024, 32  # words that are known apart, at most, and words of a sentence that are read
UNKNOWN = 1  # the code of other words; 0 is no word
BANDS = 40  # of a spectrogram, evenly spaced in mels from 0 Hz to half the sample rate
WINDOW, STEP = 0.032, 0.01  # of a spectrogram, in seconds
FAINT = 1e-6  # power below which a band counts as silent

Pair = tuple[str, str]
Things = Tensor | list[str]  # rows of one modality: pictures, sounds (see benchmark.api.Raw) or sentences
_known: dict[tuple[str, str], Towers] = {}


class Towers(network_store.Trained):
    """Raw rows to features, embeddings and digits; see `judges.Judges`. `device`: where its answers lie."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        super().__init__()
        self.bodies: Any = nn.ModuleDict(
            {"text": Sentences(), "image": Pictures(channels), "audio": Sounds(sample_rate)},
        )
        self.scales = nn.ModuleDict({name: nn.BatchNorm1d(FEATURES, affine=False) for name in MODALITIES})
        self.heads = nn.ModuleDict(
            {_head(pair, name): nn.Linear(FEATURES, EMBEDDING) for pair in PAIRS for name in pair}
        )
        self.readers = nn.ModuleDict({name: nn.Linear(FEATURES, DIGITS) for name in ("image", "audio")})
        self.sharpness = nn.Parameter(torch.full((len(PAIRS),), math.log(10.0)))
        self.facts: dict[str, Any] = {}
        self._once = OncePerTensor()

    @property
    def device(self) -> torch.device:
        return self.sharpness.device

    def forward(self, modality: str, prepared: Tensor) -> Tensor:
        """Features (rows, FEATURES) of what the body's `prepare` made of the rows."""
        return self.scales[modality](self.bodies[modality](prepared))

    def tower(self, pair: Pair, modality: str, features: Tensor) -> Tensor:
        """(rows, EMBEDDING) of unit norm."""
        return functional.normalize(self.heads[_head(pair, modality)](functional.relu(features)), dim=1)

    @torch.no_grad()
    def features(self, modality: str, things: Things) -> Tensor:
        """(rows, FEATURES) float32. A tensor that was read before, and has not changed since, costs nothing."""
        if isinstance(things, list):
            return self._read(modality, things)
        return self._once(modality, things, lambda rows: self._read(modality, rows))

    @torch.no_grad()
    def embed(self, pair: Pair, modality: str, things: Things) -> Tensor:
        """(rows, EMBEDDING) float32 of unit norm. Raises ValueError for a pair that has no towers."""
        known = next((each for each in PAIRS if set(each) == set(pair) and modality in each), None)
        if known is None:
            raise ValueError(f"no towers of {modality} among {pair}")
        tower = functools.partial(self.tower, known, modality)
        return in_chunks(tower, self.features(modality, things), CHUNK)

    @torch.no_grad()
    def read_digits(self, modality: str, things: Tensor) -> Tensor:
        """The likeliest digit of each picture or sound, (rows,) int64."""
        reader = self.readers[modality]
        return in_chunks(lambda x: reader(functional.relu(x)), self.features(modality, things), CHUNK).argmax(1)

    def _read(self, modality: str, things: Things) -> Tensor:
        body = self.bodies[modality]
        return in_chunks(lambda chunk: self(modality, body.prepare(chunk, self.device)).float(), things, CHUNK)


class Judging:
    """A dataset's `Towers`, and its own exact reading of the digit that a sentence names."""

    def __init__(self, towers: Towers, data: Any) -> None:
        self._towers, self._data, self.facts = towers, data, towers.facts
        self.embed, self.features = towers.embed, towers.features

    def digits(self, modality: str, things: Things) -> Tensor:
        if isinstance(things, list):
            return digits_of(self._data, things).to(self._towers.device)
        return self._towers.read_digits(modality, things)

    def protocol(self, metric: str) -> dict[str, Any]:
        return protocol(self._data)


def of(data: Any, device: str = "cpu", say: Say = network_store.to_stderr) -> Judging:
    """The dataset's judges: those of this process, else the cached ones, else some that are trained now.

    data: offers `digit_of(text)` (-1 where a sentence names none, or several), and, itself or by its `world`, which
    knows nothing of features, `identity`, `sample_rate`, and the splits "judge" and "validation" of raw rows of all
    modalities. say: gets a line now and then.
    """
    facts = _facts(data)
    key = digest(facts)
    if (key, device) not in _known:
        world = world_of(data)
        channels = len(_raw(data, "judge", torch.arange(1))["image"][0])
        with seeded("judges", world.identity):
            network = Towers(channels, world.sample_rate)
        network_store.ready(network, "judges", key, facts, lambda: _train(network, data, facts, device, say), say)
        _known[key, device] = network.to(device).eval().requires_grad_(False)
    return Judging(_known[key, device], data)


def protocol(data: Any) -> dict[str, Any]:
    """What numbers of every metric depend on, besides the rows."""
    world = world_of(data)
    sizes = {"features": FEATURES, "embedding": EMBEDDING, "sample_rate": world.sample_rate}
    return {"judges": f"trained {VERSION}", "data": world.identity, "judge_rows": world.count("judge"), **sizes}


def world_of(data: Any) -> Any:
    """What judges depend on: where a dataset's rows are features, the world of the things behind them."""
    return getattr(data, "world", data)


def digits_of(data: Any, texts: list[str]) -> Tensor:
    """The digit that each sentence names, (rows,) int64; -1 where it names none."""
    return torch.tensor([data.digit_of(text) for text in texts], dtype=torch.long)


def _facts(data: Any) -> dict[str, Any]:
    world = world_of(data)
    return {"identity": world.identity, "rows": world.count("judge"), "code": network_store.code_of(__file__, world)}


def _raw(data: Any, split: str, indices: Tensor) -> Mapping[str, Any]:
    world = world_of(data)
    return world.raw(split, indices.to(getattr(world, "device", "cpu")))


def _head(pair: Pair, modality: str) -> str:
    return f"{'_'.join(pair)}_{modality}"


# ---------------------------------------------------------------------------------------------- the networks


def _layer(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Pictures(nn.Module):
    """(rows, channels, height, width) in [0, 1] -> (rows, FEATURES): four convolutions, pooled to 3 x 3, so that where
    strokes stand and how they lean is still known."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels, affine=False),  # standardises
            _layer(channels, 24, 1),
            _layer(24, 48, 2),
            _layer(48, 96, 2),
            _layer(96, 96, 1),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(9 * 96, FEATURES),
        )

    def prepare(self, things: Tensor, device: torch.device) -> Tensor:
        return things.to(device, torch.float32)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)

    def varied(self, pictures: Tensor, draws: Draws) -> Tensor:
        """Under a smooth random displacement of about 0.02 of the half side, and moved by as much as 2 pixels in 28:
        other handwriting of as much slant and ink."""
        rows, sides = len(pictures), pictures.shape[2:]
        bend = functional.interpolate(
            0.02 * draws.normal("bend", 2, 5, 5), size=sides, mode="bicubic", align_corners=True
        )
        move = 0.14 * (2 * draws.uniform("move", 2, 1, 1) - 1)
        still = functional.affine_grid(torch.eye(2, 3, device=pictures.device)[None], [1, *pictures.shape[1:]], False)
        field = still + (bend + move).permute(0, 2, 3, 1)
        return functional.grid_sample(pictures, field.expand(rows, *sides, 2), "bilinear", "zeros", False)


class Sounds(nn.Module):
    """(rows, samples) in [-1, 1] -> (rows, FEATURES): convolutions over a log-mel spectrogram, whose level is kept,
    since a sentence may tell how loud a sound is; then mean and maximum over time, apart in five ranges of pitch."""

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.size, self.step = round(WINDOW * sample_rate), round(STEP * sample_rate)
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self.register_buffer("bands", mel_bands(self.size, sample_rate), persistent=False)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(1, affine=False),  # standardises
            _layer(1, 24, 2),
            _layer(24, 48, 2),
            _layer(48, 96, 2),
            _layer(96, 96, 1),
        )
        self.leave = nn.Linear(2 * 96 * (BANDS // 8), FEATURES)

    def prepare(self, things: Tensor, device: torch.device) -> Tensor:
        """Log-mel spectrograms (rows, 1, BANDS, frames). Rows without a sample count as silence."""
        sounds = things.to(device, torch.float32)
        sounds = functional.pad(sounds, (0, max(0, self.size - sounds.shape[1])))
        waves = torch.stft(
            sounds, self.size, self.step, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return (self.bands @ waves.abs().square() + FAINT).log()[:, None]

    def forward(self, spectrograms: Tensor) -> Tensor:
        found = self.layers(spectrograms)
        return self.leave(torch.cat([found.mean(3), found.amax(3)], 1).flatten(1))

    def varied(self, spectrograms: Tensor, draws: Draws) -> Tensor:
        """Moved in time by as much as 0.1 s, with one range of pitch and one of time hidden, and a little noise."""
        rows, _, bands, frames = spectrograms.shape
        move = draws.integers("move", 21, 1) - 10
        at = (torch.arange(frames, device=move.device) + move) % frames
        moved = spectrograms.gather(3, at[:, None, None].expand_as(spectrograms))
        quiet = moved.amin((1, 2, 3), keepdim=True)
        hidden = torch.zeros(rows, 1, bands, frames, dtype=torch.bool, device=moved.device)
        for axis, size in ((2, bands), (3, frames)):
            place = torch.arange(size, device=moved.device)
            start = draws.integers(f"start {axis}", size, 1)
            length = draws.integers(f"length {axis}", max(2, size // 8), 1)
            inside = (place >= start) & (place < start + length)
            hidden |= inside.view(rows, 1, *((size, 1) if axis == 2 else (1, size)))
        return torch.where(hidden, quiet, moved + 0.1 * draws.normal("noise", 1, bands, frames))


def mel_bands(size: int, sample_rate: int) -> Tensor:
    """Triangular bands, (BANDS, size // 2 + 1), evenly spaced on the mel scale 2595 log10(1 + Hz / 700)."""
    highest = 2595 * math.log10(1 + sample_rate / 1400)
    corners = 700 * (10 ** (torch.linspace(0, highest, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    pitch = torch.linspace(0, sample_rate / 2, size // 2 + 1, dtype=torch.float64)
    # At least a bin to each side, or a narrow band between two bins would hear nothing.
    width = (corners[1:] - corners[:-1]).clamp(min=sample_rate / size)
    rise = (pitch - corners[1:-1, None]) / width[:-1, None] + 1
    fall = (corners[1:-1, None] - pitch) / width[1:, None] + 1
    return torch.minimum(rise, fall).clamp(min=0).float()


class Sentences(nn.Module):
    """Sentences -> (rows, FEATURES): words, two convolutions of three words each, mean and maximum over the words.

    The words of the split that it learns from are known, WORDS of them at most; the first LENGTH of a sentence count.
    """

    known: Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("known", torch.full((WORDS,), torch.iinfo(torch.long).max))  # sorted numbers of words
        self.words = nn.Embedding(WORDS + 2, width, padding_idx=0)
        self.layers = nn.ModuleList([nn.Conv1d(width, width, 3, padding=1) for _ in range(2)])
        self.leave = nn.Linear(2 * width, FEATURES)

    def learn(self, texts: list[str]) -> None:
        """Take the commonest words of these sentences as known."""
        counts = Counter(word for text in texts for word in words_of(text))
        common = sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]
        self.known[: len(common)] = torch.tensor(sorted(map(_number, common)), dtype=torch.long)

    def prepare(self, things: list[str], device: torch.device) -> Tensor:
        """Codes of words, (rows, LENGTH) int64."""
        rows = [words_of(text)[:LENGTH] for text in things]
        numbers = torch.tensor([[_number(word) for word in row] + [-1] * (LENGTH - len(row)) for row in rows])
        known = self.known.cpu()
        at = torch.searchsorted(known, numbers).clamp(max=WORDS - 1)
        codes = torch.where(known[at] == numbers, at + 2, UNKNOWN)
        return torch.where(numbers < 0, 0, codes).to(device)

    def forward(self, codes: Tensor) -> Tensor:
        there = (codes > 0)[:, None].float()
        x = self.words(codes).transpose(1, 2)
        for layer in self.layers:
            x = (x + functional.relu(layer(x))) * there
        mean = x.sum(2) / there.sum(2).clamp(min=1)
        return self.leave(torch.cat([mean, x.amax(2)], 1))

    def varied(self, codes: Tensor, draws: Draws) -> Tensor:
        """One word in thirty is not understood."""
        return torch.where((draws.uniform("lost", LENGTH) < 1 / 30) & (codes > 0), UNKNOWN, codes)


def words_of(text: str) -> list[str]:
    """Letters and numbers in lower case; the rest divides them."""
    return re.findall(r"[^\W_]+", text.lower())


@functools.lru_cache(maxsize=65536)
def _number(word: str) -> int:
    return seed_of("word", word)


# ---------------------------------------------------------------------------------------------- training


def _train(network: Towers, data: Any, facts: Mapping[str, Any], device: str, say: Say) -> None:
    """Train on the split `judge`, measure on the split `validation`, and write down both in `network.facts`."""
    count, identity = facts["rows"], facts["identity"]
    name = f"judges of {identity}"
    updates = min(UPDATES, math.ceil(PASSES * count / ROWS))
    started = time.monotonic()
    say(f"{name}: training, once for this machine, {updates} updates")
    network.to(device)
    _learn_words(network, data)
    network.train()

    def loss(update: int) -> Tensor:
        draws = Draws("judges", identity, update, rows=ROWS, block=ROWS, device=device)
        return _loss(network, _raw(data, "judge", draws.integers("rows", count)), data, draws)

    fit(name, network, loss, updates=updates, rate=RATE, warm=WARM, decay=DECAY, say=say)
    network.eval().requires_grad_(False)
    measured = held_out(network, data)
    network.facts = {**facts, **measured, "updates": updates, "torch": torch.__version__}
    network.facts["seconds"] = round(time.monotonic() - started, 1)
    say(f"{name}: {in_words(measured)}")


def _learn_words(network: Towers, data: Any) -> None:
    first = torch.arange(min(world_of(data).count("judge"), LEXICON))
    network.bodies["text"].learn([text for at in first.split(BLOCK) for text in _raw(data, "judge", at)["text"]])


def _loss(network: Towers, raw: Mapping[str, Any], data: Any, draws: Draws) -> Tensor:
    """Of a batch of the split `judge`. Raises ValueError where a sentence names no digit."""
    device = network.device
    digits = digits_of(data, raw["text"]).to(device)
    if bool((digits < 0).any()):
        raise ValueError(f"a sentence of the split judge names no digit: {raw['text'][int(digits.argmin())]!r}")
    half = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    bodies = network.bodies
    rows = {name: bodies[name].varied(bodies[name].prepare(raw[name], device), draws) for name in MODALITIES}
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        features = {name: network(name, rows[name]) for name in MODALITIES}
    features = {name: x.float() for name, x in features.items()}
    losses = [
        functional.cross_entropy(reader(functional.relu(features[name])), digits)
        for name, reader in network.readers.items()
    ]
    alike = (digits[:, None] == digits).float()
    alike /= alike.sum(1, keepdim=True)
    own = torch.eye(len(digits), device=device)
    for pair, sharpness in zip(PAIRS, network.sharpness.exp().clamp(max=SHARPEST), strict=True):
        first, second = (network.tower(pair, name, features[name]) for name in pair)
        target = own if "text" in pair else alike
        scores = sharpness * first @ second.T
        losses += [functional.cross_entropy(scores, target) / 2, functional.cross_entropy(scores.T, target) / 2]
    return torch.stack(losses).sum()


def held_out(network: Towers, data: Any) -> dict[str, Any]:
    """Of validation rows: the accuracy of the digits that are read; and for each pair of towers, over both directions,
    `found`: how often the nearest counterpart of all rows shows the digit; `rank`: the percentage of counterparts that
    a row's own one beats; `detail`: the same among those of its digit. 50 is chance for both."""
    count = min(HELD_OUT, world_of(data).count("validation"))
    raw = _raw(data, "validation", torch.arange(count))
    digits = digits_of(data, raw["text"]).to(network.device)
    accuracy = {
        name: (network.read_digits(name, raw[name]) == digits).double().mean().item() for name in network.readers
    }
    towers = {}
    for pair in PAIRS:
        first, second = (network.embed(pair, name, raw[name]) for name in pair)
        scores = first @ second.T
        sides = [_retrieval(each, digits) for each in (scores, scores.T)]
        towers["-".join(pair)] = {name: (sides[0][name] + sides[1][name]) / 2 for name in sides[0]}
    return {"accuracy": accuracy, "towers": towers, "held_out": count}


def _retrieval(scores: Tensor, digits: Tensor) -> dict[str, float]:
    alike = (digits[:, None] == digits).double()
    own = scores.diagonal()[:, None]
    beaten = (scores < own).double() + (scores == own).double() / 2
    others = 1 - torch.eye(len(digits), dtype=torch.float64, device=digits.device)
    found = (digits[scores.argmax(1)] == digits).double().mean().item()
    shares = [
        (100 * (beaten * among).sum(1) / among.sum(1).clamp(min=1))[among.sum(1) > 0].mean().item()
        for among in (others, others * alike)
    ]
    return {"found": found, "rank": shares[0], "detail": shares[1]}


def in_words(measured: Mapping[str, Any]) -> str:
    """One line of what `held_out` found."""
    digits = ", ".join(f"{name} {share:.4f}" for name, share in measured["accuracy"].items())
    towers = ", ".join(f"{pair} {each['found']:.3f}" for pair, each in measured["towers"].items())
    return (
        f"digits of {digits}; nearest of the other modality shows the digit: {towers}; on {measured['held_out']} rows"
    )
