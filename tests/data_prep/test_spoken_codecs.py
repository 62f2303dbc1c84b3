"""Codecs: sound as a picture and back, what each network must be able to, and that training is kept and told apart."""

import dataclasses
import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.optimize import nnls
from torch.nn import functional

from benchmark.fitting import frozen_network
from benchmark.runtime import Draws
from data_prep.spoken import recordings, spoken_captions, spoken_codecs
from data_prep.spoken.spoken_codecs import (
    BANDS,
    FEATURES,
    FRAMES,
    HOP,
    LENGTH,
    LEVEL,
    PREFIX,
    RANGE,
    RATE,
    SAMPLES,
    TINY,
    WINDOW,
    bands,
    griffin_lim,
    inverse,
    mel_of,
    short_time,
    sound,
    spectrogram,
)
from tests.fitting.stored_network_faults import check_kept, weight_files

TIME = torch.arange(SAMPLES) / RATE
LEARNING = dataclasses.replace(  # as long as it takes until it is seen that each learns
    TINY,
    image=dataclasses.replace(TINY.image, updates=60),
    text=dataclasses.replace(TINY.text, updates=250, rows=48, width=32, rate=6e-3, known=1000),
)


def tone(hertz, level=0.5):
    return level * torch.sin(2 * math.pi * hertz * TIME)[None]


def voices(rows, *purpose):
    """Gliding harmonic tones of various pitch, timbre, length and level."""
    draws = Draws("voices", *purpose, rows=rows)
    pitch, glide, bright, lasts, level = draws.uniform("voice", 5, 1).unbind(1)
    phase = 2 * math.pi * (110 + 140 * pitch) * (TIME + (glide - 0.5) * TIME**2)
    harmonics = sum((0.3 + 0.6 * bright) ** k * torch.sin((k + 1) * phase) for k in range(8))
    shape = (TIME / (0.2 + 0.6 * lasts)).clamp(max=1)
    return (0.05 + 0.3 * level) * harmonics * torch.sin(math.pi * shape)


class Small:
    """Blurred lines, harmonic tones and captions of the grammar, as a world."""

    def __init__(self, identity="small", rows=400):
        self.identity, self.size = identity, rows

    def count(self, split):
        return self.size if split == "codec" else 100

    def raw(self, split, indices):
        raw = rows_of(split, self.count(split))
        texts = [raw["text"][index] for index in indices.tolist()]
        return {"image": raw["image"][indices], "audio": raw["audio"][indices], "text": texts}


@cache
def rows_of(split, rows):
    draws = Draws("small", split, rows=rows, block=64)
    x, y = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    turn, off, bend = (2 * draws.uniform("line", 3, 1, 1) - 1).unbind(1)
    across = torch.cos(3 * turn) * x + torch.sin(3 * turn) * y - 0.4 * off + 0.5 * bend * x * y
    attributes = {name: draws.integers(name, classes) for name, classes in spoken_captions.CLASSES.items()}
    written = draws.integers("caption", spoken_captions.DRAWN, spoken_captions.DRAWS)
    return {
        "image": torch.exp(-12 * across**2)[:, None],
        "audio": voices(rows, split),
        "text": spoken_captions.write("both", attributes, written),
    }


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache, and no codecs in memory."""
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(spoken_codecs, "_known", {})
    return tmp_path / "codecs"


@pytest.fixture
def short(monkeypatch):
    """Two updates and no sound: where it does not matter what is learnt."""
    monkeypatch.setattr(spoken_codecs, "HELD_OUT", 8)
    monkeypatch.setattr(spoken_codecs, "CHUNK", 8)
    monkeypatch.setattr(spoken_codecs, "sound", lambda x: torch.zeros(len(x), SAMPLES))
    quick = [dataclasses.replace(each, updates=2, known=80) for each in (TINY.image, TINY.text)]
    return spoken_codecs.Size(*quick, clips=80)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """Trained long enough to be of use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUNI_BENCH_CACHE", str(tmp_path_factory.mktemp("codecs")))
        yield spoken_codecs.of(Small(), say=str, size=LEARNING)


def forget():
    spoken_codecs._known.clear()


def weights(codecs):
    return torch.cat([x.flatten().double() for x in codecs.state_dict().values()])


# ------------------------------------------------------------------------------------------ sound as a picture


@pytest.mark.parametrize("hertz", [120.0, 440.0, 1000.0, 3100.0])
def test_a_tone_lands_in_its_band_with_its_height(hertz):
    """The peak of band k is k + 1 steps of mel above the lowest edge: worked out here by the formula alone."""
    low, high = (2595 * math.log10(1 + edge / 700) for edge in (50.0, 4000.0))
    place = (2595 * math.log10(1 + hertz / 700) - low) / (high - low) * (BANDS + 1) - 1
    spectrum = short_time(tone(hertz))[0, :, 30].abs()
    assert spectrum.argmax() == round(hertz / RATE * WINDOW)
    assert spectrum.max() == pytest.approx(0.5, rel=1e-3)  # these are whole numbers of bins
    mel = bands() @ spectrum
    assert abs(mel.argmax().item() - place) < 1.01
    assert mel[round(place) + 5 :].max() < 1e-3 * mel.max()


def test_bands_share_what_lies_between_their_peaks():
    filters = bands()
    peaks = filters.argmax(1)
    inside = filters[:, peaks[0] + 2 : peaks[-1] - 1]
    assert torch.allclose(inside.sum(0), torch.ones(inside.shape[1]), atol=1e-5)
    assert (filters.sum(1) > 0).all()  # none is empty


def test_the_short_time_transform_keeps_the_energy():
    """Parseval: each frame's spectrum has its windowed samples' energy, and a Hann window's squares add up to
    3/8 WINDOW / HOP at every sample."""
    clip = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))
    clip[:, :WINDOW], clip[:, -WINDOW:] = 0, 0
    spectrum = short_time(clip).abs().double() * WINDOW / 4
    twice = torch.full((WINDOW // 2 + 1,), 2.0, dtype=torch.float64)
    twice[0] = twice[-1] = 1
    energy = (twice[:, None] * spectrum**2).sum((1, 2)) / WINDOW
    assert torch.allclose(energy, 3 / 8 * WINDOW / HOP * clip.double().square().sum(1), rtol=1e-5)


def test_the_inverse_undoes_the_short_time_transform():
    clips = voices(3, "inverse")
    assert torch.allclose(inverse(short_time(clips)), clips, atol=1e-6)


def test_a_spectrogram_tells_the_level_apart_from_the_rest():
    clips = voices(4, "levels")
    once, twice = spectrogram(clips), spectrogram(2 * clips)
    assert once.shape == (4, FRAMES * BANDS + 1)
    assert torch.allclose(once[:, :-1], twice[:, :-1], atol=1e-5)
    assert torch.allclose(twice[:, -1] - once[:, -1], torch.full((4,), LEVEL * math.log10(2)), atol=1e-5)
    assert torch.equal(once[:, :-1].amax(1), torch.ones(4))
    assert once[:, :-1].min() >= 0


def test_magnitudes_come_back_from_a_spectrogram():
    clips = voices(4, "mel")
    mel = (bands() @ short_time(clips).abs())[..., :FRAMES]
    assert torch.allclose(mel_of(spectrogram(clips)), mel, rtol=1e-3, atol=4e-3 * float(mel.max()))


def test_silence_is_a_spectrogram_of_zeros_and_back():
    silent = torch.zeros(2, SAMPLES)
    x = spectrogram(silent)
    assert torch.equal(x[:, :-1], torch.zeros(2, FRAMES * BANDS))
    assert torch.equal(x[:, -1], torch.full((2,), -5 * LEVEL))
    assert sound(x).abs().max() < 1e-4


def test_magnitudes_fit_their_bands_as_scipys_do():
    mel = (bands() @ short_time(voices(1, "nnls")).abs())[..., 20:24]
    found = spoken_codecs._magnitudes(mel)
    assert (found >= 0).all()
    off = (bands() @ found - mel).norm(dim=1) / mel.norm(dim=1)
    best = [nnls(bands().numpy(), frame.numpy())[1] for frame in mel[0].T] / mel[0].norm(dim=0).numpy()
    assert (off[0].numpy() < best + 0.03).all()


def convergence(clips, magnitudes):
    """Spectral convergence: the relative error of the magnitudes, by clip."""
    off = (short_time(clips).abs() - magnitudes).flatten(1).norm(dim=1)
    return off / magnitudes.flatten(1).norm(dim=1)


def test_griffin_lim_finds_phases_for_a_harmonic_sound(monkeypatch):
    magnitudes = short_time(voices(4, "griffin-lim")).abs()
    found = convergence(griffin_lim(magnitudes), magnitudes)
    assert found.max() < 0.12
    assert found.mean() < 0.25 * convergence(griffin_lim(magnitudes, 0), magnitudes).mean()
    monkeypatch.setattr(spoken_codecs, "MOMENTUM", 0.0)
    assert found.mean() < 0.8 * convergence(griffin_lim(magnitudes), magnitudes).mean()


def test_a_clip_survives_its_spectrogram():
    clips = voices(4, "round trip")
    heard = spectrogram(sound(spectrogram(clips)))
    off = RANGE * (heard - spectrogram(clips))[:, :-1].square().mean(1).sqrt()
    assert off.max() < 2.5  # decibels
    assert (heard[:, -1] - spectrogram(clips)[:, -1]).abs().max() < LEVEL * 2 / 20


# ------------------------------------------------------------------------------------------ pictures and sound


def fitted(rows):
    components = spoken_codecs.Components(rows.shape[1])
    with spoken_codecs.seeded("test"):
        components.fit(rows)
    return components


def test_components_are_the_principal_ones():
    draws = Draws("components", rows=300, block=300)
    rows = draws.normal("x", 90) * torch.linspace(3, 0.1, 90) + draws.normal("mean", 90)[:1]
    components = fitted(rows)
    singular = np.linalg.svd((rows - rows.mean(0)).double().numpy(), compute_uv=False)
    with torch.no_grad():
        feature = components.encode(rows)
        left = (components.decode(feature) - rows).double().square().sum().item()
    best = np.square(singular[FEATURES:]).sum()
    assert best * (1 - 1e-4) <= left < 1.05 * best
    assert torch.allclose(feature.T @ feature / 300, torch.eye(FEATURES), atol=0.02)
    assert torch.allclose(feature.mean(0), torch.zeros(FEATURES), atol=1e-4)


def test_fewer_components_than_features_lose_nothing_and_leave_zeros():
    draws = Draws("few components", rows=50, block=50)
    rows = draws.normal("x", 5) @ draws.normal("axes", 90)[:5] + 1
    components = fitted(rows)
    with torch.no_grad():
        feature = components.encode(rows)
        assert torch.allclose(components.decode(feature), rows, atol=1e-4)
    assert torch.allclose(feature.std(0, correction=0), torch.tensor([1.0] * 5 + [0.0] * (FEATURES - 5)), atol=1e-4)


def test_what_is_learnt_leaves_little_of_the_variance(codecs):
    """`left` is 1 for whoever always answers with the mean."""
    reached = codecs.facts["held out"]
    assert reached["rows"] == 100
    assert reached["image"]["left"] < 0.1
    assert reached["audio"]["left"] < 0.15
    assert reached["audio"]["decibels"] < reached["audio"]["heard"] < reached["audio"]["decibels"] + 4
    assert reached["text"]["captions"] > 0.03
    assert reached["text"]["words"] > 0.55
    assert reached["text"]["digits"] > 0.18  # 0.1 by chance


def test_held_out_numbers_are_of_the_rows_as_they_come_back(codecs):
    raw = Small().raw("validation", torch.arange(100))
    made = codecs.decode(codecs.encode(raw))
    reached = codecs.facts["held out"]
    error = (made["image"] - raw["image"]).double().square().mean().sqrt().item()
    assert reached["image"]["error"] == pytest.approx(error, abs=1e-5)
    assert error**2 / raw["image"].var(0, correction=0).mean() == pytest.approx(reached["image"]["left"], rel=1e-3)
    off = (spectrogram(made["audio"]) - spectrogram(raw["audio"]))[:, :-1].double()
    assert reached["audio"]["heard"] == pytest.approx(RANGE * off.square().mean().sqrt().item(), abs=1e-3)
    pairs = list(zip(raw["text"], made["text"], strict=True))
    assert reached["text"]["captions"] == pytest.approx(sum(one == other for one, other in pairs) / 100)


def test_features_have_mean_zero_and_variance_one(codecs):
    features = codecs.encode(Small().raw("codec", torch.arange(400)))
    for x in features.values():
        assert x.dtype == torch.float32 and x.shape == (400, FEATURES)
        assert x.mean(0).abs().mean() < 0.3
        assert (x.std(0) - 1).abs().mean() < 0.4


def test_nothing_depends_on_the_batch(codecs, monkeypatch):
    monkeypatch.setattr(spoken_codecs, "CHUNK", 16)
    raw = Small().raw("validation", torch.arange(40))
    features = codecs.encode(raw)
    made = codecs.decode(features)
    for rows in (slice(0, 1), slice(3, 20), slice(15, 40)):
        part = codecs.encode({name: values[rows] for name, values in raw.items()})
        assert all(torch.equal(part[name], features[name][rows]) for name in features)
        decoded = codecs.decode(part)
        assert decoded["text"] == made["text"][rows]
        assert all(torch.equal(decoded[name], made[name][rows]) for name in ("image", "audio"))


def test_raw_rows_stay_in_their_range(codecs):
    """Whatever the features: real ones, far ones, and ones that no method should make."""
    features = torch.randn(12, FEATURES) * torch.tensor([1.0, 5.0, 1e6]).repeat_interleave(4)[:, None]
    made = codecs.decode({name: features for name in ("image", "audio")})
    assert made["image"].shape == (12, 1, 28, 28) and made["audio"].shape == (12, SAMPLES)
    assert made["image"].min() >= 0 and made["image"].max() <= 1
    assert made["audio"].abs().max() <= 1
    assert torch.isfinite(made["audio"]).all()


def test_what_cannot_be_a_row_is_refused(codecs):
    with pytest.raises(ValueError, match=r"audio has the shape \(2, 16000\), not \(rows, 8000\)"):
        codecs.encode({"audio": torch.zeros(2, 16_000)})
    with pytest.raises(ValueError, match=r"image has the shape \(2, 3, 28, 28\)"):
        codecs.encode({"image": torch.zeros(2, 3, 28, 28)})
    for name, shape in (("image", (2, 1, 28, 28)), ("audio", (2, SAMPLES))):
        with pytest.raises(ValueError, match=f"{name} holds NaN"):
            codecs.encode({name: torch.full(shape, math.nan)})
    for name in ("image", "audio", "text"):
        with pytest.raises(ValueError, match=f"features of {name} hold NaN"):
            codecs.decode({name: torch.full((2, FEATURES), math.inf)})


# ------------------------------------------------------------------------------------------ texts


@pytest.fixture
def model(codecs):
    return codecs.language_model(torch.zeros(FEATURES), torch.ones(FEATURES))


def captions(rows):
    return Small().raw("validation", torch.arange(rows))["text"]


def test_words_come_back_as_the_caption(codecs):
    texts = captions(20)
    tokens = codecs.words(texts)
    assert tokens.shape == (20, LENGTH) and tokens.dtype == torch.int64
    assert codecs.decode({"text": tokens})["text"] == texts


def test_cached_greedy_is_the_argmax_of_all_that_came_before(codecs, model):
    feature = codecs.encode({"text": captions(30)})["text"]
    found = model.greedy(model.project(feature), LENGTH)
    tokens = torch.full((30, 1), model.start)
    ended = torch.zeros(30, dtype=torch.bool)
    for place in range(LENGTH):
        logits = model.logits(torch.cat([model.project(feature), model.embed(tokens)], 1))
        assert logits.shape == (30, PREFIX + place + 1, len(spoken_captions.VOCABULARY))
        likeliest = torch.where(ended, model.end, logits[:, -1].argmax(1))
        assert torch.equal(found[:, place], likeliest)
        ended |= likeliest == model.end
        tokens = torch.cat([tokens, likeliest[:, None]], 1)
    assert ended.all()


def test_a_later_token_never_changes_an_earlier_logit(model):
    feature = torch.randn(4, FEATURES)
    tokens = torch.randint(3, 60, (4, LENGTH))
    before = model.logits(torch.cat([model.project(feature), model.embed(tokens)], 1))
    for place in (0, 5, LENGTH - 1):
        other = tokens.clone()
        other[:, place] = 70
        after = model.logits(torch.cat([model.project(feature), model.embed(other)], 1))
        here = PREFIX + place
        assert torch.equal(before[:, :here], after[:, :here])
        assert (before[:, here:] != after[:, here:]).any(2).all()


def test_the_end_stands_to_the_last_place_and_fewer_tokens_are_a_beginning(codecs, model):
    prefix = model.project(codecs.encode({"text": captions(60)})["text"])
    whole = model.greedy(prefix, LENGTH)
    ended = (whole == model.end).cumsum(1) > 0
    assert (whole[ended] == model.end).all()
    assert 60 * LENGTH / 4 < ended.sum() < 60 * LENGTH
    assert torch.equal(model.greedy(prefix, 4), whole[:, :4])
    with pytest.raises(ValueError, match=f"at most {LENGTH}"):
        model.greedy(prefix, LENGTH + 1)
    with pytest.raises(ValueError, match=f"there are {PREFIX + LENGTH}"):
        model.logits(torch.zeros(1, PREFIX + LENGTH + 1, model.width))


class Scripted(spoken_codecs.Writer):
    """Of every two rows the first ends after two words and would go on after the end, and the other never ends."""

    def forward(self, x, past=None, first=0):
        script = torch.full((2, PREFIX + LENGTH), 9)
        script[0, PREFIX : PREFIX + 4] = torch.tensor([5, 6, spoken_captions.END, 7])
        said = script[:, first : first + x.shape[1]].repeat(len(x) // 2, 1)
        return functional.one_hot(said, len(spoken_captions.VOCABULARY)).float()


def test_nothing_follows_an_end():
    model = spoken_codecs.CaptionModel(Scripted(8), torch.zeros(FEATURES), torch.ones(FEATURES))
    found = model.greedy(torch.zeros(3, PREFIX, 8), 6)
    end = spoken_captions.END
    assert found.tolist() == [[5, 6, end, end, end, end], [9] * 6, [5, 6, end, end, end, end]]


def test_greedy_does_not_depend_on_the_batch(codecs, model):
    prefix = model.project(codecs.encode({"text": captions(100)})["text"])
    whole = model.greedy(prefix, LENGTH)
    for rows in (slice(0, 1), slice(10, 43), slice(60, 100)):
        assert torch.equal(model.greedy(prefix[rows], LENGTH), whole[rows])


def test_a_reader_does_not_see_what_stands_behind_the_end(codecs):
    tokens = codecs.words(captions(8))
    other = tokens.clone()
    other[:, -1] = 50  # every one of these ended before
    assert (tokens[:, -2] == spoken_captions.END).all()
    with torch.no_grad():
        assert torch.allclose(codecs.text(tokens), codecs.text(other), atol=1e-5)


def test_scaled_features_mean_what_they_did(codecs):
    feature = codecs.encode({"text": captions(40)})["text"]
    mean, scale = torch.randn(FEATURES), 0.5 + torch.rand(FEATURES)
    plain = codecs.language_model(torch.zeros(FEATURES), torch.ones(FEATURES))
    scaled = codecs.language_model(mean, scale)
    wanted = plain.project(feature)
    assert torch.allclose(scaled.project((feature - mean) / scale), wanted, atol=1e-4)
    projector = scaled.projector()
    assert torch.allclose(projector((feature - mean) / scale), wanted, atol=1e-4)
    assert all(weight.requires_grad for weight in projector.parameters())
    with torch.no_grad():
        projector[0].weight.zero_()
    assert torch.allclose(scaled.project((feature - mean) / scale), wanted, atol=1e-4)  # it was a copy


def test_gradients_pass_through_a_frozen_network_whose_projections_can_be_hooked(codecs, model):
    found = {name: module for name, module in model.network.named_modules() if name.endswith("_proj")}
    assert {name.rpartition(".")[2] for name in found} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(isinstance(module, torch.nn.Linear) for module in found.values())
    feature = torch.randn(70, FEATURES, requires_grad=True)
    adapter = torch.zeros(model.width, model.width, requires_grad=True)
    before = codecs.decode({"text": feature.detach()})
    for module in found.values():
        module.register_forward_hook(lambda module, given, made: made + given[0] @ adapter)
    tokens = codecs.words(captions(70))
    logits = model.logits(torch.cat([model.project(feature), model.embed(tokens)], 1))[:, PREFIX:]
    functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert (feature.grad.abs().sum(1) > 0).all() and adapter.grad.abs().sum() > 0
    assert all(not weight.requires_grad and weight.grad is None for weight in model.network.parameters())
    with torch.no_grad():
        adapter.normal_()
    assert spoken_captions.decode(model.greedy(model.project(feature.detach()), LENGTH)) != before["text"]
    assert codecs.decode({"text": feature.detach()}) == before  # the hooks are of one copy


# ------------------------------------------------------------------------------------------ the cache


def test_they_are_frozen_and_told_by_a_version(short, folder):
    before = torch.random.get_rng_state()
    trained = spoken_codecs.of(Small(), say=str, size=short)
    assert torch.equal(torch.random.get_rng_state(), before)
    forget()
    read = spoken_codecs.of(Small(), say=pytest.fail, size=short)
    (name,) = weight_files(folder)
    for each in (trained, read):
        assert not any(module.training for module in each.modules())
        assert not any(weight.requires_grad for weight in each.parameters())
        assert each.version == f"{name.removesuffix('.safetensors')}-{each.facts['weights']}"
    with safe_open(folder / name, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts == trained.facts
    assert {"identity", "code", "size", "rows", "seconds", "held out", "weights", "torch"} <= facts.keys()


def test_they_are_kept_for_what_they_depend_on(short, folder, monkeypatch):
    other = dataclasses.replace(short, text=dataclasses.replace(short.text, updates=3))
    worlds = ((Small(), short), (Small("other"), short), (Small(rows=90), short), (Small(), other))

    def make(world, say):
        return spoken_codecs.of(world[0], say=say, size=world[1])

    check_kept(make, worlds, spoken_codecs, folder, monkeypatch)


def test_training_is_a_function_of_the_identity_alone(short, folder):
    first = weights(spoken_codecs.of(Small(), say=str, size=short))
    torch.manual_seed(99)
    for file in folder.glob("*"):
        file.unlink()
    forget()
    assert torch.equal(weights(spoken_codecs.of(Small(), say=str, size=short)), first)
    assert not torch.equal(weights(spoken_codecs.of(Small("other"), say=str, size=short)), first)


def test_it_says_what_it_does_on_stderr(short, capsys, monkeypatch):
    monkeypatch.setattr(frozen_network, "SAY_EVERY", -1.0)
    spoken_codecs.of(Small(), size=short)
    out, err = capsys.readouterr()
    assert not out
    first, *between, last = err.splitlines()
    assert first == "codecs of small: training, once for this machine"
    assert between[:2] == ["codec of image of small: 50 %, 0 s left", "codec of image of small: 100 %, 0 s left"]
    assert len(between) == 4
    assert last.startswith("codecs of small: pixels to ") and last.endswith("on 8 held-out rows")


# ------------------------------------------------------------------------------------------ real sound


@pytest.mark.slow
def test_spoken_digits_survive_64_numbers(real_data, monkeypatch):
    """Of recordings that the codec never met it keeps most, and Griffin-Lim keeps what the codec does."""
    if not (real_data / recordings.FOLDER).is_dir():
        pytest.skip(f"no recordings in {real_data}")
    monkeypatch.setenv("MUNI_BENCH_DATA", str(real_data))
    clips = torch.from_numpy(recordings.load("fsdd").sound)
    known, met = spectrogram(clips[10::5]), spectrogram(clips[3::25])
    components = fitted(known)
    with torch.no_grad():
        shown = components.decode(components.encode(met))
    points = met[:, :-1]
    left = (shown[:, :-1] - points).square().mean() / (points - points.mean(0)).square().mean()
    assert left < 0.15
    heard = spectrogram(sound(shown))[:, :-1]
    assert RANGE * (heard - points).square().mean().sqrt() < 4.5
    assert RANGE * (spectrogram(sound(met))[:, :-1] - points).square().mean().sqrt() < 2.5
