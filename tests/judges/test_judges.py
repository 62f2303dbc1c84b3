"""Judges that the suite trains: they learn what goes together, are trained once, and read alike whatever the batch."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from benchmark import registry
from benchmark.api import Inapplicable
from benchmark.fitting import network_store
from benchmark.judges import judges, towers
from benchmark.runtime import Draws
from tests.fitting.stored_network_faults import check_kept

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Easy:
    """A digit is one of ten cells of a picture and one of ten tones. Sentences name it, and half of them the picture's
    shade or the sound's loudness."""

    judged_by, device, sample_rate = "trained", "cpu", 2000

    def __init__(self, identity="easy", rows=800):
        self.identity, self.size = identity, rows

    def count(self, split):
        return self.size

    @staticmethod
    def digit_of(text):
        return next((NAMES.index(word) for word in text.split() if word in NAMES), -1)

    def raw(self, split, indices):
        draws = Draws("easy", split, rows=self.size)
        digit = draws.integers("digit", 10)
        shade, loud, told, which = (draws.integers(name, 2) for name in ("shade", "loud", "told", "which"))
        images = 0.2 * draws.uniform("noise", 1, 20, 8)
        cells = images.reshape(-1, 1, 5, 4, 2, 4)
        cells[torch.arange(self.size), 0, digit // 2, :, digit % 2] += (0.4 + 0.4 * shade)[:, None, None]
        time = torch.arange(600) / self.sample_rate
        tone = torch.sin(2 * math.pi * (80 + 90 * digit)[:, None] * (time + draws.uniform("phase", 1)))
        sounds = (0.05 + 0.75 * loud)[:, None] * tone + 0.001 * draws.normal("hiss", 600)
        shades, louds = (" in grey", " in white"), (" said softly", " said loudly")
        details = [
            (shades[s] if w else louds[v]) if t else ""
            for s, v, t, w in zip(*(each.tolist() for each in (shade, loud, told, which)), strict=True)
        ]
        texts = [f"the digit {NAMES[d]}{detail}" for d, detail in zip(digit.tolist(), details, strict=True)]
        return {"image": images[indices], "audio": sounds[indices], "text": [texts[i] for i in indices.tolist()]}


@pytest.fixture(autouse=True)
def folder(empty_cache):
    return empty_cache / "judges"


@pytest.fixture
def short(monkeypatch):
    """Two updates: where it does not matter what is learnt."""
    monkeypatch.setattr(towers, "UPDATES", 2)
    monkeypatch.setattr(towers, "ROWS", 16)
    monkeypatch.setattr(towers, "HELD_OUT", 50)


def forget():
    towers._known.clear()


def network_of(data):
    return towers.of(data, say=str)._towers


def weights(network):
    return torch.cat([x.flatten().double() for x in network.state_dict().values()])


def some(count=9, split="test"):
    return Easy().raw(split, torch.arange(count))


# ------------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Judges that were trained for a few updates, and what they said."""
    patch, lines = pytest.MonkeyPatch(), []
    patch.setenv("MUNI_BENCH_CACHE", str(tmp_path_factory.mktemp("learned")))
    patch.setattr(towers, "ROWS", 64)
    patch.setattr(towers, "UPDATES", 80)
    patch.setattr(towers, "PASSES", 1000)
    before = torch.random.get_rng_state()
    found = judges.of(Easy(), say=lines.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    (file,) = network_store.folder("judges").glob("*.safetensors")
    patch.undo()
    return found, lines, file


def test_they_learn_digits_pairs_and_details(learned):
    found, _, _ = learned
    assert min(found.facts["accuracy"].values()) > 0.98
    pairs = found.facts["towers"]
    assert min(each["found"] for each in pairs.values()) > 0.97
    assert min(each["rank"] for each in pairs.values()) > 94  # 95 is the most, where the digit alone is known
    # A quarter of the sentences tell a picture's shade, and as many a sound's loudness: 50 + 25 / 4 is the most.
    assert min(pairs[pair]["detail"] for pair in ("text-image", "text-audio")) > 53
    assert pairs["image-audio"]["detail"] == pytest.approx(50, abs=1.5)


def test_the_right_counterpart_is_nearer(learned):
    found, data = learned[0], Easy()
    raw = data.raw("test", torch.arange(200))
    for pair in towers.PAIRS:
        first, second = (found.embed(pair, name, raw[name]) for name in pair)
        torch.testing.assert_close(first.norm(dim=1), torch.ones(200))
        assert torch.equal(found.embed(pair[::-1], pair[0], raw[pair[0]]), first)
        assert (first * second).sum(1).mean() > (first * second.roll(1, 0)).sum(1).mean() + 0.3
    told = found.embed(("text", "audio"), "text", ["the digit six said softly", "the digit six said loudly"])
    heard = found.embed(("text", "audio"), "audio", raw["audio"])
    six = [k for k, text in enumerate(raw["text"]) if "six" in text]
    louder = raw["audio"][six].abs().amax(1) > 0.4
    prefers = heard[six] @ (told[1] - told[0])
    assert (prefers[louder][:, None] > prefers[~louder]).double().mean() > 0.9


def test_they_read_digits_of_every_modality(learned):
    found, data = learned[0], Easy()
    raw = data.raw("test", torch.arange(200))
    truth = torch.tensor([data.digit_of(text) for text in raw["text"]])
    for name in towers.MODALITIES:
        digits = found.digits(name, raw[name])
        assert digits.dtype == torch.int64
        assert (digits == truth).double().mean() > 0.97
    assert found.digits("text", ["no number", "seven"]).tolist() == [-1, 7]


def test_features_of_real_rows_are_standardised(learned):
    found, raw = learned[0], some(800)
    for name in towers.MODALITIES:
        features = found.features(name, raw[name])
        assert features.shape == (800, towers.FEATURES) and towers.FEATURES <= 64
        spread = features.std(0)
        assert 0.4 < spread.median() < 1.8


def test_they_say_how_well_they_do(learned):
    found, lines, file = learned
    assert lines[0] == "judges of easy: training, once for this machine, 80 updates"
    assert lines[-1].startswith("judges of easy: digits of image ")
    assert lines[-1].endswith("on 800 rows")
    with safe_open(file, "pt") as stored:
        assert json.loads(stored.metadata()["facts"]) == found.facts
    assert {"identity", "rows", "code", "accuracy", "towers", "held_out", "updates", "seconds", "torch"} <= {
        *found.facts
    }


def test_they_are_frozen_and_in_eval_mode(short):
    for _ in range(2):  # trained, and from the file
        network = network_of(Easy())
        assert not any(module.training for module in network.modules())
        assert not any(weight.requires_grad for weight in network.parameters())
        forget()


def test_training_is_a_function_of_the_identity_alone(short, folder):
    first = weights(network_of(Easy()))
    torch.manual_seed(99)
    for file in folder.glob("*"):
        file.unlink()
    forget()
    assert torch.equal(weights(network_of(Easy())), first)
    assert not torch.equal(weights(network_of(Easy("other"))), first)


def test_few_rows_are_passed_over_a_few_times(short, monkeypatch):
    monkeypatch.setattr(towers, "UPDATES", 1000)
    found = towers.of(Easy(rows=20), say=str)
    assert found.facts["updates"] == math.ceil(towers.PASSES * 20 / 16)


def test_a_world_behind_features_is_what_they_learn_from(short):
    world = Easy()
    data = SimpleNamespace(world=world, judged_by="trained", digit_of=world.digit_of, identity="with a codec")
    assert judges.of(data, say=str).facts == judges.of(world, say=pytest.fail).facts


def test_a_sentence_to_learn_from_that_names_no_digit_is_said(short):
    data = Easy()
    data.digit_of = lambda text: -1 if "three" in text else 5
    with pytest.raises(ValueError, match="names no digit: 'the digit three"):
        towers.of(data, say=str)


# ------------------------------------------------------------------------------------------ the cache


def test_they_are_kept_for_what_they_depend_on(short, folder, monkeypatch):
    worlds = (Easy(), Easy("other"), Easy(rows=50))
    check_kept(lambda data, say: towers.of(data, say=say)._towers, worlds, towers, folder, monkeypatch)


def test_judges_of_other_kinds_are_no_part_of_their_code():
    """A change to the published judges must not train these anew."""
    names = {
        path.name
        for path in registry._imports(registry.ast.parse((registry.ROOT / "benchmark/judges/towers.py").read_text()))
    }
    assert names == {"frozen_network.py"}


def test_they_speak_on_stderr(short, capsys):
    towers.of(Easy())
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("judges of easy: training, once for this machine, 2 updates\n")


# ------------------------------------------------------------------------------------------ whose they are


def test_a_dataset_that_names_no_judges_has_none():
    with pytest.raises(Inapplicable, match="names no judges"):
        judges.of(SimpleNamespace())
    with pytest.raises(ValueError, match="judged_by = 'guessed'"):
        judges.of(SimpleNamespace(judged_by="guessed"))


def test_pretrained_judges_are_asked_for_only_where_they_are_named(monkeypatch):
    theirs = SimpleNamespace(protocol=lambda metric: {"judges": "theirs", "of": metric})
    asked = []
    module = SimpleNamespace(of=lambda data, device: asked.append(device) or theirs)
    monkeypatch.setitem(sys.modules, "benchmark.judges.pretrained_judges", module)
    monkeypatch.setattr("benchmark.judges.pretrained_judges", module, raising=False)
    assert judges.protocol(Easy(), "ais")["judges"] == f"trained {towers.VERSION}"
    assert asked == []
    data = SimpleNamespace(judged_by="pretrained", device="cpu")
    assert judges.of(data, "cpu") is theirs
    assert judges.protocol(data, "ais") == {"judges": "theirs", "of": "ais"}
    assert asked == ["cpu", "cpu"]


# ------------------------------------------------------------------------------------------ reading


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = towers.Towers(1, 2000)
    raw = some(800)
    made.bodies["text"].learn(raw["text"])
    with torch.no_grad():  # statistics of the layers
        for name in towers.MODALITIES:
            made(name, made.bodies[name].prepare(raw[name], made.device))
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("name", towers.MODALITIES)
def test_a_row_is_read_alike_whatever_stands_beside_it(network, name):
    rows, pair = some(150)[name], next(pair for pair in towers.PAIRS if name in pair)

    def read(things):
        found = [network.features(name, things), network.embed(pair, name, things)]
        return found + ([network.read_digits(name, things)] if name in network.readers else [])

    whole = read(rows)
    for size in (37, 64, 149):
        parts = [read(rows[at : at + size]) for at in range(0, 150, size)]
        for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(found), expected)


def test_no_rows_have_no_features(network):
    assert network.features("text", []).shape == (0, towers.FEATURES)
    assert network.embed(("text", "image"), "image", torch.zeros(0, 1, 20, 8)).shape == (0, towers.EMBEDDING)


def test_one_tensor_is_read_once_unless_it_changes(network):
    calls = []
    hook = network.bodies["audio"].register_forward_hook(lambda *_: calls.append(1))
    sounds = some(5)["audio"]
    first = network.features("audio", sounds)
    network.embed(("image", "audio"), "audio", sounds)
    network.embed(("text", "audio"), "audio", sounds)
    network.read_digits("audio", sounds)
    assert network.features("audio", sounds) is first and len(calls) == 1
    sounds[0] = 0
    assert not torch.equal(network.features("audio", sounds), first)
    assert len(calls) == 2
    hook.remove()


@pytest.mark.parametrize("name", ["image", "audio"])
def test_things_that_are_not_finite_are_refused(network, name):
    for bad in (math.nan, math.inf):
        things = some(3)[name].clone()
        things.view(-1)[7] = bad
        with pytest.raises(ValueError, match=f"{name} holds NaN or infinite"):
            network.features(name, things)


def test_a_pair_without_towers_is_refused(network):
    with pytest.raises(ValueError, match="no towers of text among"):
        network.embed(("image", "audio"), "text", ["one"])


def test_silence_and_sounds_shorter_than_a_window_are_read(network):
    for sounds in (torch.zeros(2, 600), torch.zeros(2, 0), torch.ones(2, 3)):
        assert torch.isfinite(network.features("audio", sounds)).all()


def test_sentences_of_any_kind_are_read(network):
    odd = ["", "?!", "the DIGIT three,", "word " * 99, "ünknöwn wörds"]
    found = network.features("text", odd)
    assert torch.isfinite(found).all()
    assert torch.equal(network.features("text", ["the digit three"])[0], found[2])
    codes = network.bodies["text"].prepare(["the digit three of spades", ""], torch.device("cpu"))
    assert (codes[0] > towers.UNKNOWN).sum() == 3 and (codes[0] == towers.UNKNOWN).sum() == 2
    assert codes[1].tolist() == [0] * towers.LENGTH


def test_the_order_of_words_is_read(network):
    found = network.features("text", ["one in white said three", "three in white said one"])
    assert not torch.allclose(found[0], found[1])


def test_mel_bands_hear_every_pitch():
    for rate in (2000, 8000, 16000):
        size = round(towers.WINDOW * rate)
        bands = towers.mel_bands(size, rate)
        assert bands.shape == (towers.BANDS, size // 2 + 1)
        assert (bands.sum(1) > 0).all() and (bands[:, 1:-1].sum(0) > 0).all()
        assert bands.max() <= 1 and bands.min() >= 0
    # A tone is loudest in the band around its pitch.
    sounds = towers.Sounds(8000)
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(4000) / 8000)
    loudest = sounds.prepare(tone[None], torch.device("cpu"))[0, 0].mean(1).argmax()
    mels = torch.linspace(0, 2595 * math.log10(1 + 4000 / 700), towers.BANDS + 2)[1:-1]
    pitch = 700 * (10 ** (mels[loudest] / 2595) - 1)
    assert abs(pitch - 1000) < 60
    # How loud it is, is kept.
    quiet, loud = sounds.prepare(torch.stack([0.1 * tone, tone]), torch.device("cpu")).amax((1, 2, 3))
    assert (loud - quiet).item() == pytest.approx(math.log(100), abs=0.01)


def test_what_is_learned_from_keeps_what_sentences_tell():
    """Variation may not take away slant, ink or level."""
    draws = Draws("varied", rows=64)
    pictures, sounds = towers.Pictures(1), towers.Sounds(8000)
    bar = torch.zeros(64, 1, 28, 28)
    bar[:, :, 6:22, 12:16] = 1
    varied = pictures.varied(bar, draws)
    ink = varied.sum((1, 2, 3)) / bar[0].sum()
    assert ink.min() > 0.85 and ink.max() < 1.15
    spectrograms = sounds.prepare(torch.sin(torch.arange(8000) / 3)[None].expand(64, -1), torch.device("cpu"))
    level = sounds.varied(spectrograms, draws).amax((1, 2, 3)) - spectrograms.amax((1, 2, 3))
    assert level.abs().median() < 0.5
    texts = towers.Sentences()
    texts.learn(["one two three"])
    codes = texts.prepare(["one two three"] * 64, torch.device("cpu"))
    changed = texts.varied(codes, draws)
    assert 0 < (changed != codes).double().mean() < 0.02
    assert ((changed == codes) | (changed == towers.UNKNOWN)).all()


# ------------------------------------------------------------------------------------------ the real thing


@pytest.mark.slow
def test_they_learn_handwriting_and_voices_in_a_minute(real_data, monkeypatch):
    """A short training on the real pictures, sounds and captions of spoken_digits."""
    from benchmark.config import resolve
    from data_prep.spoken import spoken_captions, spoken_world

    monkeypatch.setenv("MUNI_BENCH_DATA", str(real_data))
    monkeypatch.setattr(towers, "UPDATES", 250)
    card = registry.card("dataset", "polymnist_quadrant_labels")
    rows = [f"{name}_rows=600" for name in ("evaluation", "unconditional")]
    config = resolve(card, None, "smoke", ["variant=mnist", "train_rows=10000", *rows]).config
    world = spoken_world.SpokenWorld(config)
    data = SimpleNamespace(world=world, judged_by="trained", digit_of=spoken_captions.digit_of)
    facts = judges.of(data, say=str).facts
    assert min(facts["accuracy"].values()) > 0.95
    assert min(each["found"] for each in facts["towers"].values()) > 0.95
    assert facts["towers"]["text-audio"]["detail"] > 52
