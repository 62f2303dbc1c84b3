"""The codecs of spoken_digits: pictures, sound and captions as 64 numbers each, and back, trained by the suite.

A codec learns from one modality at a time, on the split "codec" of a `SpokenWorld`, where rows are unpaired.

- image: an autoencoder of the 28 x 28 pixels: linear maps, which begin as principal components, and beside them
  convolutions that add what is not linear.
- audio: the principal components of a log-mel spectrogram of 64 bands by 80 frames of 12.5 ms, over the 50 dB below its
  own loudest point, and of that point's level. The clips are few: convolutions beside them, as for pictures, lost more
  on others. A spectrogram becomes sound by fast Griffin-Lim (Perraudin, Balazs and Sondergaard, 2013).
- text: a transformer whose outputs are averaged over the words, and a causal transformer that writes the caption after
  prefix embeddings of the feature: a language model, which methods fine-tune.

Each feature has mean 0 and variance 1 over the training rows, and decoders learn from features with noise, so that
features beside real ones mean what those mean.

All are trained once for a machine: a function of the world's identity, of the size, and of the code of both. They are
kept as `codecs/<hash>.safetensors` below $MUNI_BENCH_CACHE or ~/.cache/muni-bench, with what they reach on the split
"validation".
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.api import Raw
from benchmark.config import digest
from benchmark.fitting import network_store
from benchmark.fitting.frozen_network import fit, in_chunks
from benchmark.fitting.network_store import Say
from benchmark.runtime import Draws, seeded
from data_prep.spoken import spoken_captions

FEATURES = 64  # numbers that each modality becomes
LENGTH = spoken_captions.MOST_WORDS + 1  # tokens of a caption, with its end
SIDE = 28  # pixels
SAMPLES = 8_000  # of a clip, one second
CHUNK = 64  # rows per call of a frozen network: always as many, so that no number depends on the batch
DECAY, WARM = 0.01, 0.1  # AdamW; the rate rises for a share of the updates and falls to zero
NOISE = {"image": 0.1, "text": 0.4}  # on features in training, whose own deviation is 1
HELD_OUT = 1_024  # rows of "validation" on which the stated numbers are measured, at most

_known: dict[tuple[str, str], Codecs] = {}


@dataclass(frozen=True)
class Training:
    """updates, of so many rows each, at AdamW's rate; width: channels of the first convolution, or of a transformer;
    known: rows of the split "codec" that are learnt from, at most."""

    updates: int
    rows: int
    rate: float
    width: int
    known: int


@dataclass(frozen=True)
class Size:
    """image, text: how these are learnt; clips: rows of the split "codec" whose components are taken, at most."""

    image: Training
    text: Training
    clips: int


FULL = Size(  # two minutes on one core
    image=Training(updates=1_000, rows=128, rate=3e-3, width=32, known=12_000),
    text=Training(updates=600, rows=128, rate=1.5e-3, width=96, known=32_768),
    clips=1_200,
)
TINY = Size(  # seconds: where it does not matter what they reach
    image=Training(updates=10, rows=32, rate=3e-3, width=4, known=256),
    text=Training(updates=20, rows=32, rate=1e-2, width=32, known=256),
    clips=256,
)


class Codecs(network_store.Trained):
    """The three codecs, frozen and in eval mode.

    facts: with `held out`, what they reach on rows of "validation".
    version: a function of what they depend on and of every weight, so what is made with them can be kept under it.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.image = Pictures(size.image.width)
        self.audio = Components(FRAMES * BANDS + 1)
        self.text = Reader(size.text.width)
        self.writer = Writer(size.text.width)
        self.version = ""

    @torch.no_grad()
    def encode(self, raw: Mapping[str, Tensor | Sequence[str]]) -> dict[str, Tensor]:
        """{modality: (rows, FEATURES) float32} of the modalities in `raw`; not scaled.

        raw: image (rows, 1, SIDE, SIDE) in [0, 1], audio (rows, SAMPLES) in [-1, 1], text as a list of str.
        Raises ValueError for other shapes and for numbers that are not finite.
        """
        found = {}
        for name, rows in raw.items():
            x = self.input(name, rows)
            if not torch.isfinite(x).all():
                raise ValueError(f"{name} holds NaN or infinite values")
            encode: dict[str, Callable[[Tensor], Tensor]] = {
                "image": self.image.encode,
                "audio": lambda clips: self.audio.encode(spectrogram(clips)),
                "text": self.text,
            }
            found[name] = in_chunks(encode[name], x, CHUNK)
        return found

    def words(self, texts: Sequence[str]) -> Tensor:
        """(rows, LENGTH) int64 on the CPU: the tokens of each text, then the end's to the last place."""
        return spoken_captions.encode(texts, LENGTH)

    @torch.no_grad()
    def decode(self, features: Mapping[str, Tensor]) -> Raw:
        """Raw rows of features (rows, FEATURES), not scaled, and of the tokens of texts, (rows, any length) int64.

        Features of texts become the captions that the frozen language model writes.
        Raises ValueError where a feature is not finite.
        """
        found: Raw = {}
        for name, rows in features.items():
            if not torch.isfinite(rows).all():
                raise ValueError(f"features of {name} hold NaN or infinite values")
            if name == "image":
                found[name] = in_chunks(self.image.decode, rows.float(), CHUNK).reshape(-1, 1, SIDE, SIDE)
            elif name == "audio":
                found[name] = in_chunks(lambda x: sound(self.audio.decode(x)), rows.float(), CHUNK)
            elif rows.is_floating_point():
                still = torch.zeros(FEATURES, device=rows.device), torch.ones(FEATURES, device=rows.device)
                model = CaptionModel(self.writer, *still)
                found[name] = spoken_captions.decode(model.greedy(model.project(rows), LENGTH))
            else:
                found[name] = spoken_captions.decode(rows)
        return found

    def language_model(self, mean: Tensor, scale: Tensor) -> CaptionModel:
        """A copy of the model that writes captions, for features (feature - mean) / scale; both (FEATURES,)."""
        return CaptionModel(copy.deepcopy(self.writer).eval().requires_grad_(False), mean, scale)

    def input(self, name: str, rows: Tensor | Sequence[str]) -> Tensor:
        """Raw rows as the networks take them: pixels and samples (rows, size) float32, tokens (rows, LENGTH)."""
        device = self.writer.places.device
        if not isinstance(rows, Tensor):
            return self.words(rows).to(device)
        shape = {"image": (1, SIDE, SIDE), "audio": (SAMPLES,)}[name]
        if rows.shape[1:] != shape:
            raise ValueError(f"{name} has the shape {tuple(rows.shape)}, not (rows, {', '.join(map(str, shape))})")
        return rows.to(device).float().flatten(1)


def of(world: Any, device: str = "cpu", say: Say = network_store.to_stderr, size: Size = FULL) -> Codecs:
    """The world's codecs: those of this process, else the cached ones, else trained now.

    world: offers `identity`, `count(split)` and `raw(split, indices)` for the splits "codec" and "validation".
    say: gets a line now and then.
    """
    facts: dict[str, Any] = {"identity": world.identity, "size": asdict(size), "rows": world.count("codec")}
    facts["code"] = network_store.code_of(__file__, world)
    key = digest(facts)
    if (key, device) not in _known:
        with seeded("codecs", world.identity):
            codecs = Codecs(size)
        codecs.to(device)
        network_store.ready(codecs, "codecs", key, facts, lambda: _train(codecs, world, facts, size, say), say)
        codecs.version = f"{key}-{codecs.facts['weights']}"
        _known[key, device] = codecs.to(device).eval().requires_grad_(False)
    return _known[key, device]


# ---------------------------------------------------------------------------------------------- sound as a picture

RATE = 8_000  # Hz
WINDOW, HOP = 400, 100  # samples: 50 ms, which tells the harmonics of a deep voice apart, every 12.5 ms
FRAMES, BANDS = 80, 64  # of a spectrogram
LOWEST = 50.0  # Hz: where the first band begins
RANGE = 50.0  # dB below the loudest point that a spectrogram shows
QUIETEST = 1e-5  # of full scale: a loudest point below it counts as this
LEVEL = 8.0  # what a factor of ten in level counts beside the points: 0.4 a decibel
ITERATIONS, MOMENTUM = 32, 0.99  # of Griffin-Lim
FITTED = 20  # steps that fit magnitudes to bands


def short_time(x: Tensor) -> Tensor:
    """Short-time Fourier transform of (rows, SAMPLES): (rows, WINDOW / 2 + 1, FRAMES + 1) complex; a full-scale sine
    has magnitude 1. Frame k is centred on sample k HOP, under a Hann window; beyond the clip is silence."""
    hann = torch.hann_window(WINDOW, device=x.device)
    return torch.stft(x, WINDOW, HOP, window=hann, pad_mode="constant", return_complex=True) * (4 / WINDOW)


def inverse(x: Tensor) -> Tensor:
    """The sound (rows, SAMPLES) whose short-time transform is nearest to x in squares."""
    hann = torch.hann_window(WINDOW, device=x.device)
    return torch.istft(x * (WINDOW / 4), WINDOW, HOP, window=hann, length=SAMPLES)


def bands() -> Tensor:
    """(BANDS, WINDOW / 2 + 1): triangular filters, evenly spaced in mel from LOWEST to RATE / 2; neighbours add up to
    1 between their peaks."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = 700 * (10 ** (torch.linspace(mel(LOWEST), mel(RATE / 2), BANDS + 2, dtype=torch.float64) / 2595) - 1)
    hertz = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rising = (hertz - edges[:-2, None]) / edges.diff()[:-1, None]
    falling = (edges[2:, None] - hertz) / edges.diff()[1:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()


def spectrogram(x: Tensor) -> Tensor:
    """(rows, FRAMES * BANDS + 1) of clips (rows, SAMPLES): log-mel points, and the level of the loudest, weighted.

    A point is 1 at the clip's loudest and 0 in silence; in between it is 1 per RANGE decibels.
    """
    mel = (bands().to(x.device) @ short_time(x).abs())[..., :FRAMES].mT.flatten(1)
    loudest = mel.amax(1, keepdim=True).clamp(min=QUIETEST)
    floor = 10 ** (-RANGE / 20)
    points = 1 + 20 / RANGE * torch.log10((mel / loudest + floor).clamp(max=1))
    return torch.cat([points, LEVEL * torch.log10(loudest)], 1)


def mel_of(x: Tensor) -> Tensor:
    """Magnitudes (rows, BANDS, FRAMES) that have the spectrogram x, (rows, FRAMES * BANDS + 1)."""
    floor = 10 ** (-RANGE / 20)
    loudest = 10 ** (x[:, -1:] / LEVEL).clamp(max=1)
    mel = loudest * (10 ** ((x[:, :-1].clamp(0, 1) - 1) * RANGE / 20) - floor)
    return mel.unflatten(1, (FRAMES, BANDS)).mT


def sound(x: Tensor) -> Tensor:
    """Clips (rows, SAMPLES) in [-1, 1] of spectrograms (rows, FRAMES * BANDS + 1)."""
    mel = functional.pad(mel_of(x), (0, 1))  # the last frame, half of it beyond the clip, is silent
    return griffin_lim(_magnitudes(mel)).clamp(-1, 1)


def griffin_lim(magnitudes: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Sound (rows, SAMPLES) whose short-time transform has about these magnitudes (rows, WINDOW / 2 + 1, FRAMES + 1).

    Begins with the same random phases in every row. Fast Griffin-Lim: each step goes MOMENTUM beyond its projection.
    """
    draws = Draws("codecs", "phases", rows=1, block=1)
    angle = 2 * math.pi * draws.uniform("phase", *magnitudes.shape[1:]).to(magnitudes.device)
    phase, before = torch.polar(torch.ones_like(angle), angle), None
    for _ in range(iterations):
        projected = short_time(inverse(magnitudes * phase))
        ahead = projected if before is None else projected - MOMENTUM / (1 + MOMENTUM) * before
        phase, before = torch.sgn(ahead), projected
    return inverse(magnitudes * phase)


def _magnitudes(mel: Tensor) -> Tensor:
    """Magnitudes (rows, WINDOW / 2 + 1, frames) none of which is negative, fitted to bands (rows, BANDS, frames) in
    least squares by multiplicative steps (Lee and Seung, 2001)."""
    filters = bands().to(mel.device)
    target, both = filters.T @ mel, filters.T @ filters
    found = target
    for _ in range(FITTED):
        found = found * target / (both @ found).clamp(min=1e-12)
    return found


# ---------------------------------------------------------------------------------------------- pictures

CONTRAST = 6.0  # of a pixel's logit, so that what is about 0 or 1 becomes 0 or 1


class Components(nn.Module):
    """(rows, size) to FEATURES and back: the principal components, each with variance 1, of what it was fitted to."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.to_feature, self.from_feature = nn.Linear(size, FEATURES), nn.Linear(FEATURES, size)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """To (rows, size). Where they have fewer components than FEATURES, the other features are 0."""
        mean = x.mean(0)
        _, length, axes = torch.svd_lowrank(x - mean, q=min(FEATURES + 16, *x.shape), niter=4)
        length, axes = length[:FEATURES], axes[:, : len(length[:FEATURES])]
        kept = length > 1e-4 * length[0]
        deviation, axes = length[kept] / len(x) ** 0.5, axes[:, kept]
        for layer in (self.to_feature, self.from_feature):
            layer.weight.zero_()
        self.to_feature.weight[: len(deviation)] = (axes / deviation).T
        self.to_feature.bias.copy_(-self.to_feature.weight @ mean)
        self.from_feature.weight[:, : len(deviation)] = axes * deviation
        self.from_feature.bias.copy_(mean)

    def encode(self, x: Tensor) -> Tensor:
        return self.to_feature(x)

    def decode(self, feature: Tensor) -> Tensor:
        return self.from_feature(feature)


class Pictures(nn.Module):
    """Pixels (rows, SIDE * SIDE) in [0, 1] to features and back: components, and convolutions that begin as nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        small = SIDE // 4
        self.linear = Components(SIDE * SIDE)
        self.down = nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)),
            nn.Conv2d(1, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * small * small, FEATURES),
        )
        self.up = nn.Sequential(
            nn.Linear(FEATURES, 2 * width * small * small),
            nn.Unflatten(1, (2 * width, small, small)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
            nn.Flatten(),
        )
        self.scale = nn.BatchNorm1d(FEATURES, affine=False)
        for weight in (*self.down[-1].parameters(), *self.up[-2].parameters()):
            nn.init.zeros_(weight)

    def encode(self, x: Tensor) -> Tensor:
        return self.scale(self.linear.encode(x) + self.down(x))

    def decode(self, feature: Tensor) -> Tensor:
        return torch.sigmoid(CONTRAST * (self.linear.decode(feature) + self.up(feature) - 0.5))


# ---------------------------------------------------------------------------------------------- texts

PREFIX = 4  # embeddings that stand for a feature before a caption
HEADS = 4
LAYERS = 2


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None = None, past: list[Tensor] | None = None) -> Tensor:
        """x: (rows, places, width). seen: (rows, 1, 1, places), where to look from everywhere; None: at what is not
        later. past: keys and values of earlier places, which x comes after; those of x are added to it."""
        query, key, value = (
            project(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        first = not past
        if past is not None:
            past[:] = [torch.cat(both, 2) for both in zip(past, (key, value), strict=True)] if past else [key, value]
            key, value = past
        causal = seen is None and first
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
        return self.o_proj(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend, self.before = Attention(width), nn.LayerNorm(width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, seen: Tensor | None = None, past: list[Tensor] | None = None) -> Tensor:
        x = x + self.attend(self.before(x), seen, past)
        return x + self.think(x)


def _until_end(tokens: Tensor) -> Tensor:
    """(rows, length) bool: a caption's words and its first end."""
    return (tokens == spoken_captions.END).cumsum(1) - (tokens == spoken_captions.END).long() == 0


class Reader(nn.Module):
    """Tokens (rows, LENGTH) to features (rows, FEATURES): the mean over words of a transformer's outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = _embedding(width), nn.Parameter(torch.randn(LENGTH, width) * width**-0.5)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.to_feature, self.scale = nn.Linear(width, FEATURES), nn.BatchNorm1d(FEATURES, affine=False)

    def forward(self, tokens: Tensor) -> Tensor:
        counted = _until_end(tokens)
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, counted[:, None, None])
        weight = counted / counted.sum(1, keepdim=True)
        return self.scale(self.to_feature((x * weight[..., None]).sum(1)))


class Writer(nn.Module):
    """A causal transformer over prefix embeddings and words; its output layer is its table of embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = _embedding(width)
        self.places = nn.Parameter(torch.randn(PREFIX + LENGTH, width) * width**-0.5)
        self.prefix = nn.Sequential(nn.Linear(FEATURES, PREFIX * width), nn.Unflatten(1, (PREFIX, width)))
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, past: list[list[Tensor]] | None = None, first: int = 0) -> Tensor:
        """(rows, places, vocabulary) of embeddings (rows, places, width), the first of which stands at place `first`;
        past: of each block, see `Attention`."""
        if first + x.shape[1] > len(self.places):
            raise ValueError(f"{first + x.shape[1]} places are asked for, and there are {len(self.places)}")
        x = x + self.places[first : first + x.shape[1]]
        for number, block in enumerate(self.blocks):
            x = block(x, None, None if past is None else past[number])
        return functional.linear(self.norm(x), self.words.weight)


class CaptionModel:
    """Writes captions from scaled features, (feature - mean) / scale: the LanguageModel of models/components/texts.py.

    A caption's logits stand at the places from PREFIX on of embeddings [project(feature), embed([start, words])].
    Gradients pass through `project`, `embed` and `logits` to what is given; the network itself is frozen.
    `projector` is a trainable copy of `project`.
    """

    start, end, prefix = spoken_captions.START, spoken_captions.END, PREFIX

    def __init__(self, network: Writer, mean: Tensor, scale: Tensor) -> None:
        self.network, self.width = network, network.places.shape[1]
        self._mean, self._scale = mean.to(network.places), scale.to(network.places)

    def project(self, feature: Tensor) -> Tensor:
        """(rows, FEATURES), scaled -> (rows, PREFIX, width)."""
        return self.network.prefix(feature * self._scale + self._mean)

    def embed(self, tokens: Tensor) -> Tensor:
        """(rows, length) -> (rows, length, width)."""
        return self.network.words(tokens)

    def logits(self, embeddings: Tensor) -> Tensor:
        """(rows, length, width) -> (rows, length, vocabulary): of each place's next token, from those up to it.

        Raises ValueError beyond PREFIX + LENGTH places.
        """
        return self.network(embeddings)

    def projector(self) -> nn.Module:
        """A new trainable map of scaled features to prefix embeddings; at the start it is `project`."""
        made: Any = copy.deepcopy(self.network.prefix)
        with torch.no_grad():  # W (scale x + mean) + b
            made[0].bias.add_(made[0].weight @ self._mean)
            made[0].weight.mul_(self._scale)
        return made.requires_grad_(True)

    @torch.no_grad()
    def greedy(self, prefix: Tensor, most: int) -> Tensor:
        """(rows, PREFIX, width) -> (rows, most) int64: always the likeliest token, and the end after an end.

        Raises ValueError for more than LENGTH tokens.
        """
        if most > LENGTH:
            raise ValueError(f"{most} tokens are asked for, and captions have at most {LENGTH}")
        return in_chunks(lambda x: self._greedy(x, most), prefix, CHUNK)

    def _greedy(self, prefix: Tensor, most: int) -> Tensor:
        past: list[list[Tensor]] = [[] for _ in self.network.blocks]
        tokens = torch.full((len(prefix), most), self.end, device=prefix.device)
        ended = torch.zeros(len(prefix), dtype=torch.bool, device=prefix.device)
        start = torch.full((len(prefix), 1), self.start, device=prefix.device)
        x, place = torch.cat([prefix, self.embed(start)], 1), 0
        for number in range(most):
            likeliest = self.network(x, past, place)[:, -1].argmax(1)
            tokens[:, number] = torch.where(ended, self.end, likeliest)
            ended |= likeliest == self.end
            if ended.all():
                break
            place += x.shape[1]
            x = self.embed(tokens[:, number : number + 1])
        return tokens


def _embedding(width: int) -> nn.Embedding:
    table = nn.Embedding(len(spoken_captions.VOCABULARY), width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table


# ---------------------------------------------------------------------------------------------- training

Loss = Callable[[Tensor, Draws], Tensor]  # of rows (rows, ...) of what is known, with noise from the draws
Lesson = tuple[nn.Module, Loss]  # what learns, and from what


def _train(codecs: Codecs, world: Any, facts: Mapping[str, Any], size: Size, say: Say) -> None:
    """Train each codec on the split "codec", measure it on "validation", and write down both in `codecs.facts`."""
    identity, codecs.facts = world.identity, dict(facts)
    say(f"codecs of {identity}: training, once for this machine")
    codecs.train()
    started = time.monotonic()
    with seeded("codecs", "audio", identity):
        clips = _known_rows(codecs, world, "audio", size.clips)
        codecs.audio.fit(torch.cat([spectrogram(part) for part in clips.split(CHUNK)]))
    for name, training, lesson in (("image", size.image, _image), ("text", size.text, _text)):
        known = _known_rows(codecs, world, name, training.known)
        with seeded("codecs", name, identity):
            network, loss = lesson(codecs, known)
            _fit(f"{name} of {identity}", network, loss, known, training, say)
    seconds = round(time.monotonic() - started, 1)
    codecs.eval().requires_grad_(False)
    codecs.facts |= {"seconds": seconds, "torch": torch.__version__, "held out": held_out(codecs, world)}
    reached = codecs.facts["held out"]
    say(
        f"codecs of {identity}: pixels to {reached['image']['error']:.3f}, sound to "
        f"{reached['audio']['decibels']:.1f} dB, {reached['text']['captions']:.3f} of the captions word by word, on "
        f"{reached['rows']} held-out rows"
    )


def _known_rows(codecs: Codecs, world: Any, name: str, most: int) -> Tensor:
    """Rows of one modality of the split "codec", as the networks take them."""
    rows = torch.arange(min(world.count("codec"), most))
    return torch.cat([codecs.input(name, world.raw("codec", part)[name]) for part in rows.split(1024)])


def _image(codecs: Codecs, known: Tensor) -> Lesson:
    """The squared error of what is decoded from noisy features, summed over a picture."""
    codecs.image.linear.fit(known)

    def loss(pixels: Tensor, draws: Draws) -> Tensor:
        feature = codecs.image.encode(pixels)
        made = codecs.image.decode(feature + NOISE["image"] * draws.normal("noise", FEATURES))
        return (made - pixels).square().sum(1).mean()

    return codecs.image, loss


def _text(codecs: Codecs, known: Tensor) -> Lesson:
    """The cross-entropy of each word and of the end, given those before and noisy features of all."""

    def loss(tokens: Tensor, draws: Draws) -> Tensor:
        feature = codecs.text(tokens)
        feature = feature + NOISE["text"] * draws.normal("noise", FEATURES)
        told = functional.pad(tokens[:, :-1], (1, 0), value=spoken_captions.START)
        logits = codecs.writer(torch.cat([codecs.writer.prefix(feature), codecs.writer.words(told)], 1))
        counted = _until_end(tokens)
        return functional.cross_entropy(logits[:, PREFIX:][counted], tokens[counted])

    return nn.ModuleList([codecs.text, codecs.writer]), loss


def _fit(what: str, network: nn.Module, loss: Loss, known: Tensor, training: Training, say: Say) -> None:
    """Minimise `loss(rows of known, draws)`."""

    def of_batch(update: int) -> Tensor:
        draws = Draws("codecs", what, update, rows=training.rows, block=training.rows, device=known.device)
        return loss(known[draws.integers("rows", len(known))], draws)

    updates, rate = training.updates, training.rate
    fit(f"codec of {what}", network, of_batch, updates=updates, rate=rate, warm=WARM, decay=DECAY, say=say)


@torch.no_grad()
def held_out(codecs: Codecs, world: Any) -> dict[str, Any]:
    """What becomes of rows of "validation" on their way through features and back.

    error: root mean square of pixels; decibels: of the spectrogram's points, and heard: of those of the sound that
    Griffin-Lim makes of it; left: share of the variance that is lost. captions, words: share that is the same, and
    digits: share of the captions that name the same digit.
    """
    rows = min(world.count("validation"), HELD_OUT)
    raw = world.raw("validation", torch.arange(rows))
    features = codecs.encode(raw)
    made = codecs.decode(features)
    (pixels, clips, tokens), (drawn, spoken, written) = (
        [codecs.input(name, rows[name]) for name in ("image", "audio", "text")] for rows in (raw, made)
    )
    points, heard = (in_chunks(spectrogram, each, CHUNK)[:, :-1] for each in (clips, spoken))
    shown = in_chunks(codecs.audio.decode, features["audio"], CHUNK)[:, :-1].clamp(0, 1)
    same = tokens == written
    named = [[spoken_captions.digit_of(text) for text in texts] for texts in (raw["text"], made["text"])]
    found = {
        "image": {"error": _error(drawn, pixels), "left": _left(drawn, pixels)},
        "audio": {
            "decibels": RANGE * _error(shown, points),
            "heard": RANGE * _error(heard, points),
            "left": _left(shown, points),
        },
        "text": {
            "captions": same.all(1).double().mean().item(),
            "words": same[_until_end(tokens)].double().mean().item(),
            "digits": sum(one == other for one, other in zip(*named, strict=True)) / rows,
        },
    }
    return {"rows": rows} | {
        name: {key: round(value, 5) for key, value in each.items()} for name, each in found.items()
    }


def _error(made: Tensor, real: Tensor) -> float:
    return (made - real).square().mean().sqrt().item()


def _left(made: Tensor, real: Tensor) -> float:
    """The mean square error, of the variance around the mean row."""
    return ((made - real).square().mean() / (real - real.mean(0)).square().mean()).item()
