"""Metrics of labelled pictures: closed forms, brute force on small rows, planted faults, blocks of any size.

The stand-in's pictures spell their labels out in two pixels, and its verifier reads just those: all numbers are known.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

from benchmark import registry
from benchmark.api import Cell, Inapplicable, Modality, UserError
from benchmark.judges import verifier
from benchmark.metrics.common import frechet
from benchmark.metrics.label_marginals import expected_distance, read_shares
from benchmark.runtime import Draws

VIEWS = ("image1", "image2", "image3")
NAMES = (*VIEWS, "digit", "quadrant")
CLASSES = {"digit": 10, "quadrant": 4}
RATES = ("label_coherence", "digit_coherence", "quadrant_coherence", "pairwise_coherence")
UNCOND = Cell("spelled", (), NAMES)
DIGIT = Cell("spelled", ("digit",), ("image2",))
BOTH = Cell("spelled", ("digit", "quadrant"), VIEWS)
OPEN = {label: Cell("spelled", (label,), tuple(n for n in NAMES if n != label)) for label in CLASSES}


def spell(digit, quadrant, draws=None, name="noise"):
    """Pictures (rows, 3, 4, 4) whose first pixels are the labels; the others are noise."""
    pictures = draws.uniform(name, 3, 4, 4) if draws else torch.zeros(len(digit), 3, 4, 4)
    pictures[:, 0, 0, 0], pictures[:, 1, 0, 0] = digit / 10, quadrant / 10
    return pictures


class Spelled:
    """The stand-in's world; `rows_of` says how many rows a cell generates."""

    identity, device = "spelled", "cpu"

    def __init__(self, rows=512):
        self.modalities = tuple(Modality(name, (3, 4, 4), kind="image") for name in VIEWS) + tuple(
            Modality(label, (), kind="label", classes=classes) for label, classes in CLASSES.items()
        )
        self.size = rows

    def count(self, split):
        return 2 * self.size

    def rows_of(self, cell):
        return self.size

    def rows(self, split, indices):
        draws = Draws("spelled", split, rows=self.count(split))
        return {name: x[indices] for name, x in self.together(draws).items()}

    def together(self, draws, given=()):
        labels = {label: draws.integers(label, classes) for label, classes in CLASSES.items()} | dict(given)
        return {name: spell(labels["digit"], labels["quadrant"], draws, name) for name in VIEWS} | labels

    def apart(self, draws):
        """Every modality with labels of its own."""
        return {name: self.together(draws)[name] for name in NAMES}


class Reader(verifier.Verifier):
    """Reads what `spell` wrote; the features are a fixed projection of all pixels."""

    def __init__(self):
        super().__init__(nn.Identity(), CLASSES)
        self.calls = 0
        self.along = torch.randn(48, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def _read(self, pictures):
        self.calls += 1
        labels = {label: (10 * pictures[:, k, 0, 0]).round().long() for k, label in enumerate(CLASSES)}
        return verifier.Reading(labels, pictures.flatten(1).double() @ self.along)


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    found = Reader()
    monkeypatch.setattr(verifier, "of", lambda data, device="cpu", say=None, shape=None: found)
    return found


@pytest.fixture(scope="module")
def world():
    return Spelled()


def score(metric, cell, real, generated, data, block=None):
    made = registry.load("metric", metric)(cell, data)
    size = len(next(iter(generated.values())))
    for at in range(0, size, block or size):
        part = slice(at, at + (block or size))
        made.update(*({name: x[part] for name, x in batch.items()} for batch in (real, generated)))
    return made.compute()


def wanted(batch, cell):
    return {name: batch[name] for name in cell.want}


def real_rows(data):
    return data.rows("test", torch.arange(data.size))


def samples(data, cell, kind, seed=0):
    """Generated rows that are perfect, or real in each modality alone, or half of each by lot."""
    draws = Draws(kind, seed, rows=data.size)
    real = real_rows(data)
    if kind == "chance":
        return real, wanted(data.apart(draws), cell)
    perfect = data.together(draws, {name: real[name] for name in cell.given})
    if kind == "mixed":
        lot, shuffled = draws.uniform("lot") < 0.5, data.apart(draws)
        perfect = {n: torch.where(lot.view(-1, *[1] * (x.ndim - 1)), x, shuffled[n]) for n, x in perfect.items()}
    return real, wanted(perfect, cell)


APPLICABLE = [
    ("label_accuracy", DIGIT),
    ("label_accuracy", BOTH),
    ("label_accuracy", OPEN["digit"]),
    ("uniform_expert_accuracy", DIGIT),
    ("one_to_many_agreement", OPEN["digit"]),
    ("one_to_many_agreement", OPEN["quadrant"]),
    ("label_marginals", UNCOND),
    ("label_marginals", OPEN["quadrant"]),
    ("verifier_accuracy", DIGIT),
    *((metric, UNCOND) for metric in RATES),
]


# ------------------------------------------------------------------------------------------ chance and ceiling


@pytest.mark.parametrize(("metric", "cell"), APPLICABLE)
@pytest.mark.parametrize(("kind", "formula"), [("chance", "chance"), ("real", "ceiling")])
def test_sanity_rows_score_what_the_formulas_say(world, metric, cell, kind, formula):
    expected = getattr(registry.load("metric", metric), formula)(cell, world)
    found = score(metric, cell, *samples(world, cell, kind), world)
    assert found.value == pytest.approx(expected, abs=4 * found.stderr)
    assert found.n == world.size


def test_chance_is_exact_from_the_marginals(world):
    def chance(metric, cell):
        return registry.load("metric", metric).chance(cell, world)

    assert chance("label_coherence", UNCOND) == pytest.approx(0.25**3 * 0.1**3)
    assert chance("digit_coherence", UNCOND) == pytest.approx(0.1**3)
    assert chance("quadrant_coherence", UNCOND) == pytest.approx(0.25**3)
    assert chance("label_coherence", Cell("spelled", (), ("image1", "digit"))) == pytest.approx(0.1)
    assert chance("pairwise_coherence", UNCOND) == pytest.approx((3 / 40 + 3 / 10 + 3 / 4) / 9)
    assert chance("label_accuracy", DIGIT) == pytest.approx(0.1)
    assert chance("label_accuracy", BOTH) == pytest.approx(1 / 40)
    assert chance("uniform_expert_accuracy", DIGIT) == pytest.approx(1 / 40)
    assert chance("one_to_many_agreement", OPEN["digit"]) == pytest.approx(0.25)
    assert chance("one_to_many_agreement", OPEN["quadrant"]) == pytest.approx(0.1)
    ceiling = registry.load("metric", "uniform_expert_accuracy").ceiling
    assert ceiling(DIGIT, world) == pytest.approx(1 / 4)
    assert ceiling(Cell("spelled", ("image1",), ("image2",)), world) == 1.0


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.25] * 4, [0.2, 0.3, 0.5], [0.0, 1.0]])
def test_the_floor_of_the_marginals_is_the_sum_over_all_outcomes(shares):
    rows, size, exact = 6, len(shares), 0.0
    for outcome in itertools.product(range(size), repeat=rows):
        distance = np.abs(np.bincount(outcome, minlength=size) / rows - 1 / size).sum() / 2
        exact += distance * math.prod(shares[k] for k in outcome)
    assert expected_distance(torch.tensor(shares, dtype=torch.float64), rows) == pytest.approx(exact)


def test_the_floor_of_the_marginals_counts_what_the_verifier_misreads():
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])  # not uniform, and yet neither is right
    assert read_shares(truth, truth, 3).tolist() == pytest.approx([1 / 3] * 3)
    misread = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert read_shares(truth, misread, 3).tolist() == pytest.approx([0.25, 1.25 / 3, 1 / 3])
    assert read_shares(truth[:4], misread[:4], 3).tolist() == pytest.approx([0.75, 0.25, 0])


# ------------------------------------------------------------------------------------------ brute force


def brute(metric, cell, real, generated):
    """The rate of each row, by loops over rows and modalities."""
    shown = {
        name: (
            {"digit": (10 * x[:, 0, 0, 0]).round(), "quadrant": (10 * x[:, 1, 0, 0]).round()}
            if x.ndim > 1
            else {name: x}
        )
        for name, x in {**real, **generated}.items()
    }
    known = {label for name in cell.given for label in shown[name]}
    rates = []
    for r in range(len(real["digit"])):

        def same(i, j, labels, r=r):
            return all(shown[i][label][r] == shown[j][label][r] for label in labels)

        if metric in ("label_accuracy", "uniform_expert_accuracy"):
            asked = {n: set(shown[n]) & (known if metric == "label_accuracy" else set(CLASSES)) for n in cell.want}
            hits = [all(shown[n][label][r] == real[label][r] for label in asked[n]) for n in asked if asked[n]]
        elif metric.endswith("_coherence") and metric != "pairwise_coherence":
            labels = {metric.split("_")[0]} & set(CLASSES) or set(CLASSES)
            hits = [all(same(i, j, set(shown[i]) & set(shown[j]) & labels) for i in cell.want for j in cell.want)]
        else:
            pairs = [(i, j, set(shown[i]) & set(shown[j]) - known) for i, j in itertools.combinations(cell.want, 2)]
            hits = [same(i, j, labels) for i, j, labels in pairs if labels]
        rates.append(np.mean(hits))
    return np.array(rates, dtype=float)


@pytest.mark.parametrize(
    ("metric", "cell"), [each for each in APPLICABLE if "marg" not in each[0] and "ver" not in each[0]]
)
def test_a_rate_is_the_brute_force_mean_and_its_error_is_over_rows(metric, cell):
    data = Spelled(64)
    real, generated = samples(data, cell, "mixed")
    rates = brute(metric, cell, real, generated)
    found = score(metric, cell, real, generated, data)
    assert found.value == pytest.approx(rates.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(scipy.stats.sem(rates), abs=1e-12)
    assert 0 < found.value < 1


def test_marginals_are_the_brute_force_distance_and_its_error_is_the_spread_of_repetitions():
    data = Spelled(400)
    values, errors = [], []
    for seed in range(40):
        draws = Draws("skewed", seed, rows=data.size)
        lot = draws.uniform("lot") < 0.4  # two fifths of the rows are one digit in one quadrant, in every modality
        drawn = data.together(draws)
        rows = {
            "digit": torch.where(lot, 7, drawn["digit"]),
            "quadrant": torch.where(lot, 2, drawn["quadrant"]),
        }
        generated = {name: spell(rows["digit"], rows["quadrant"]) for name in VIEWS} | rows
        counts = np.zeros((10, 4))
        np.add.at(counts, (rows["digit"].numpy(), rows["quadrant"].numpy()), 1 / data.size)
        found = score("label_marginals", UNCOND, generated, generated, data)
        assert found.value == pytest.approx(np.abs(counts - 1 / 40).sum() / 2)
        values.append(found.value)
        errors.append(found.stderr)
    assert 0.7 < np.mean(errors) / np.std(values, ddof=1) < 1.5


def test_a_modality_that_strays_counts_in_the_mean_over_modalities_alone():
    data = Spelled(40)
    real, generated = samples(data, UNCOND, "real")
    generated["image2"] = spell(torch.full((40,), 3), torch.full((40,), 1))
    found = score("label_marginals", UNCOND, real, generated, data).value
    generated["image2"] = generated["image1"]
    assert found - score("label_marginals", UNCOND, real, generated, data).value == pytest.approx(
        (39 / 40 - score("label_marginals", Cell("spelled", (), ("image1",)), real, generated, data).value) / 4
    )


# ------------------------------------------------------------------------------ pictures whose label no modality says

FIVE = tuple(f"m{k}" for k in range(5))
FROM_NOTHING = Cell("unsaid", (), FIVE)
FROM_TWO = Cell("unsaid", ("m0", "m3"), ("m1", "m4"))


class Unsaid(Spelled):
    """Five pictures of one digit, which rows hold beside them."""

    identity, labels = "unsaid", {"digit": 10}

    def __init__(self, rows=4000):
        super().__init__(rows)
        self.modalities = tuple(Modality(name, (3, 4, 4), kind="image") for name in FIVE)

    def together(self, draws, given=()):
        digit = draws.integers("digit", 10)
        return {name: spell(digit, digit, draws, name) for name in FIVE} | {"digit": digit}


def drawn(digits):
    """A generator's pictures of these digits, {modality: (rows,)}."""
    return {name: spell(digit, digit) for name, digit in digits.items()}


def test_a_coherent_generator_scores_one_and_one_stray_view_zero():
    data = Unsaid()
    real = real_rows(data)
    digit = real["digit"].roll(1)  # what the held-out rows show does not matter
    perfect = drawn(dict.fromkeys(FIVE, digit))
    for metric in ("digit_coherence", "label_coherence", "pairwise_coherence"):
        assert score(metric, FROM_NOTHING, real, perfect, data).value == 1
    stray = perfect | drawn({"m3": (digit + 1) % 10})
    assert score("digit_coherence", FROM_NOTHING, real, stray, data).value == 0
    assert score("pairwise_coherence", FROM_NOTHING, real, stray, data).value == pytest.approx(6 / 10)


def test_independent_pictures_score_chance():
    data, draws = Unsaid(), Draws("independent", rows=4000)
    generated = drawn({name: draws.integers(name, 10) for name in FIVE})
    chance = registry.load("metric", "digit_coherence").chance
    assert chance(FROM_NOTHING, data) == pytest.approx(0.1**4)
    assert chance(Cell("unsaid", (), ("m0", "m1")), data) == pytest.approx(0.1)
    real = real_rows(data)
    assert score("digit_coherence", FROM_NOTHING, real, generated, data).value <= 5 / 4000  # 0.4 rows are expected
    found = score("pairwise_coherence", FROM_NOTHING, real, generated, data)
    assert found.value == pytest.approx(0.1, abs=4 * found.stderr)
    found = score("label_accuracy", FROM_TWO, real, wanted(generated, FROM_TWO), data)
    assert found.value == pytest.approx(0.1, abs=4 * found.stderr)
    assert registry.load("metric", "label_accuracy").chance(FROM_TWO, data) == pytest.approx(0.1)


def test_conditional_coherence_is_the_share_of_targets_that_show_the_digit_of_the_given():
    data = Unsaid()
    real = real_rows(data)
    half = (torch.arange(4000) % 2).bool()
    wrong = torch.where(half, real["digit"], (real["digit"] + 1) % 10)
    for digits, value in (
        ({"m1": real["digit"], "m4": real["digit"]}, 1),
        ({"m1": real["digit"], "m4": wrong}, 0.75),
        ({"m1": wrong, "m4": wrong}, 0.5),
    ):
        assert score("label_accuracy", FROM_TWO, real, drawn(digits), data).value == value


@pytest.mark.parametrize(
    ("metric", "cell"),
    [
        ("digit_coherence", FROM_NOTHING),
        ("pairwise_coherence", FROM_NOTHING),
        ("label_marginals", FROM_NOTHING),
        ("label_accuracy", FROM_TWO),
        ("verifier_accuracy", FROM_TWO),
    ],
)
def test_real_rows_of_unsaid_labels_score_the_ceiling(metric, cell):
    data = Unsaid(512)
    real = real_rows(data)
    found = score(metric, cell, real, wanted(real, cell), data)
    expected = registry.load("metric", metric).ceiling(cell, data)
    assert found.value == pytest.approx(expected, abs=max(4 * found.stderr, 0.02 if metric == "label_marginals" else 0))


def test_what_is_given_fixes_the_only_label_and_other_labels_are_not_asked():
    data = Unsaid(64)
    for metric, cell in (
        ("quadrant_coherence", FROM_NOTHING),
        ("one_to_many_agreement", Cell("unsaid", ("m0",), FIVE[1:])),
        ("label_accuracy", FROM_NOTHING),
    ):
        with pytest.raises(Inapplicable):
            registry.load("metric", metric)(cell, data)


@pytest.mark.parametrize("name", ["polymnist", "mnist_svhn"])
def test_metrics_of_labels_are_asked_of_pictures_whose_label_no_modality_says(name):
    holds = registry.card("dataset", name).holds
    assert holds == {"image", "label"}
    assert {*RATES, "label_accuracy", "frechet_verifier"} <= {
        metric for metric in registry.index("metric") if holds >= set(registry.card("metric", metric).needs)
    }
    assert registry.card("dataset", "gaussian_mixture").holds == {"vector"}


# ------------------------------------------------------------------------------------------ planted faults


def test_a_model_that_always_draws_one_digit_is_coherent_and_found_out(world):
    one = torch.full((world.size,), 7), torch.full((world.size,), 2)
    generated = {name: spell(*one) for name in VIEWS} | dict(zip(CLASSES, one, strict=True))
    real = real_rows(world)
    assert score("label_coherence", UNCOND, real, generated, world).value == 1
    assert score("label_coherence", UNCOND, real, generated, world).stderr == pytest.approx(1 / world.size)
    assert score("label_marginals", UNCOND, real, generated, world).value == pytest.approx(39 / 40)
    floor = registry.load("metric", "frechet_verifier").ceiling(UNCOND, world)
    assert score("frechet_verifier", UNCOND, real, generated, world).value > 20 * floor


def test_shuffled_labels_cost_the_accuracy_and_not_the_agreement_of_pictures(world):
    real, generated = samples(world, UNCOND, "real")
    generated["digit"] = generated["digit"].roll(1)
    assert score("label_coherence", UNCOND, real, generated, world).value == pytest.approx(0.1, abs=0.06)
    assert score("quadrant_coherence", UNCOND, real, generated, world).value == 1
    assert score("pairwise_coherence", UNCOND, real, generated, world).value == pytest.approx(
        (6 + 3 * 0.1) / 9, abs=0.03
    )
    shuffled = {**real, "digit": real["digit"].roll(1)}
    pictures = wanted(real, BOTH)
    assert score("label_accuracy", BOTH, real, pictures, world).value == 1
    assert score("label_accuracy", BOTH, shuffled, pictures, world).value == pytest.approx(0.1, abs=0.06)


def test_one_view_that_disagrees(world):
    real, generated = samples(world, UNCOND, "real")
    generated["image3"] = spell((generated["digit"] + 1) % 10, generated["quadrant"])
    assert score("label_coherence", UNCOND, real, generated, world).value == 0
    assert score("digit_coherence", UNCOND, real, generated, world).value == 0
    assert score("quadrant_coherence", UNCOND, real, generated, world).value == 1
    assert score("pairwise_coherence", UNCOND, real, generated, world).value == pytest.approx(6 / 9)
    truth = real_rows(world)
    third = spell((truth["digit"] + 1) % 10, truth["quadrant"])
    found = score("label_accuracy", BOTH, truth, wanted({**truth, "image3": third}, BOTH), world)
    assert found.value == pytest.approx(2 / 3)
    assert found.stderr == pytest.approx(1 / world.size)  # over rows: every row scores 2/3


def test_a_label_that_is_given_is_compared_and_one_that_is_open_is_not(world):
    real = real_rows(world)
    wrong = {"image2": spell(real["digit"], (real["quadrant"] + 1) % 4)}
    assert score("label_accuracy", DIGIT, real, wrong, world).value == 1
    assert score("label_accuracy", Cell("spelled", ("quadrant",), ("image2",)), real, wrong, world).value == 0
    assert score("label_accuracy", Cell("spelled", ("image1",), ("image2",)), real, wrong, world).value == 0
    assert score("uniform_expert_accuracy", DIGIT, real, wrong, world).value == 0


def test_a_uniformly_drawn_expert_scores_its_prediction():
    data = Spelled(4000)
    real, draws = real_rows(data), Draws("expert", rows=4000)
    fresh = data.together(draws)
    saw_digit, saw_quadrant = spell(real["digit"], fresh["quadrant"]), spell(fresh["digit"], real["quadrant"])
    coin = (draws.uniform("coin") < 0.5).view(-1, 1, 1, 1)
    one = Cell("spelled", ("digit", "quadrant"), ("image1",))
    mixture = score("label_accuracy", one, real, {"image1": torch.where(coin, saw_digit, saw_quadrant)}, data)
    predicted = [
        score("uniform_expert_accuracy", Cell("spelled", (label,), ("image1",)), real, {"image1": x}, data)
        for label, x in (("digit", saw_digit), ("quadrant", saw_quadrant))
    ]
    prediction = sum(each.value for each in predicted) / 2
    assert prediction == pytest.approx((1 / 4 + 1 / 10) / 2, abs=0.02)
    error = math.hypot(mixture.stderr, *(each.stderr / 2 for each in predicted))
    assert mixture.value == pytest.approx(prediction, abs=3 * error)


def test_decoders_that_guess_apart_agree_by_chance_and_a_joint_sampler_always(world):
    real = real_rows(world)
    draws = Draws("guess", rows=world.size)
    apart = {name: spell(real["digit"], world.together(draws)["quadrant"]) for name in VIEWS}
    apart["quadrant"] = world.together(draws)["quadrant"]
    found = score("one_to_many_agreement", OPEN["digit"], real, apart, world)
    assert found.value == pytest.approx(0.25, abs=4 * found.stderr)
    assert score("label_accuracy", OPEN["digit"], real, apart, world).value == 1  # and yet each alone is right
    joint = world.together(draws, {"digit": real["digit"]})
    assert score("one_to_many_agreement", OPEN["digit"], real, wanted(joint, OPEN["digit"]), world).value == 1


# ------------------------------------------------------------------------------------------ every metric


@pytest.mark.parametrize(("metric", "cell"), [*APPLICABLE, ("frechet_verifier", UNCOND)])
def test_blocks_of_rows_do_not_matter(world, metric, cell):
    real, generated = samples(world, cell, "mixed")
    whole = score(metric, cell, real, generated, world)
    for block in (1, 100, 256):
        found = score(metric, cell, real, generated, world, block)
        assert (found.value, found.n) == (pytest.approx(whole.value, rel=1e-9), whole.n)
        assert found.stderr == pytest.approx(whole.stderr, rel=1e-6)


@pytest.mark.parametrize(("metric", "cell"), [*APPLICABLE, ("frechet_verifier", UNCOND)])
def test_rows_that_are_too_few_not_finite_or_of_unequal_number_are_refused(world, metric, cell):
    real, generated = samples(world, cell, "real")
    made = registry.load("metric", metric)(cell, world)
    with pytest.raises(Inapplicable, match="needs at least"):
        made.compute()
    few = slice(0, registry.card("metric", metric).min_rows - 1)
    with pytest.raises(Inapplicable, match="needs at least"):
        score(metric, cell, *({n: x[few] for n, x in batch.items()} for batch in (real, generated)), world)
    broken = {name: x.clone() for name, x in generated.items()}
    broken["image2"][0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(metric, cell, real, broken, world)
    if metric in ("label_accuracy", "uniform_expert_accuracy"):
        with pytest.raises(ValueError, match="differ in number"):
            made.update({name: x[:100] for name, x in real.items()}, generated)


@pytest.mark.parametrize("metric", sorted({metric for metric, _ in APPLICABLE} | {"frechet_verifier"}))
def test_cells_without_such_a_number_say_why(world, metric):
    made = registry.load("metric", metric)
    plain = Spelled()
    plain.modalities = (Modality("x1", (3,)), Modality("x2", (3,)))
    with pytest.raises(Inapplicable, match="no labelled pictures"):
        made(Cell("spelled", ("x1",) if "coherence" not in metric else (), ("x2",)), plain)
    reasons = {
        "label_accuracy": (UNCOND, "fixes no label"),
        "verifier_accuracy": (Cell("spelled", ("image1",), ("digit",)), "no picture is wanted"),
        "uniform_expert_accuracy": (BOTH, "give one modality"),
        "one_to_many_agreement": (Cell("spelled", ("image1",), ("image2", "digit")), "a label that is not given"),
        "frechet_verifier": (Cell("spelled", (), ("digit",)), "no picture is wanted"),
        "pairwise_coherence": (Cell("spelled", (), ("digit", "quadrant")), "no two of the wanted"),
        "label_coherence": (DIGIT, "from nothing"),
        "digit_coherence": (Cell("spelled", (), ("image1", "quadrant")), "no two of the wanted"),
        "quadrant_coherence": (OPEN["digit"], "from nothing"),
    }
    if metric in reasons:
        cell, reason = reasons[metric]
        with pytest.raises(Inapplicable, match=reason):
            made(cell, world)


def test_labels_out_of_range_or_not_whole_are_refused(world):
    real, generated = samples(world, UNCOND, "real")
    with pytest.raises(ValueError, match="not one of 10 classes"):
        score("label_marginals", UNCOND, real, {**generated, "digit": generated["digit"] + 10}, world)
    with pytest.raises(ValueError, match="no whole numbers"):
        score("label_coherence", UNCOND, real, {**generated, "digit": generated["digit"].float()}, world)


def test_metrics_of_one_block_share_what_is_read(world, reader):
    real, generated = samples(world, UNCOND, "real")
    made = [
        registry.load("metric", metric)(UNCOND, world) for metric in (*RATES, "label_marginals", "frechet_verifier")
    ]
    for metric in made:
        metric.update(real, generated)
    assert reader.calls == len(VIEWS)


# ------------------------------------------------------------------------------------------ the Fréchet distance


def gaussian(mean, covariance):
    return frechet.Gaussian(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double())


def random_covariance(size, seed, rank=None):
    half = np.random.default_rng(seed).normal(size=(size, rank or size))
    return half @ half.T


def test_frechet_distance_of_known_gaussians():
    own = gaussian(np.ones(3), np.eye(3))
    assert frechet.distance(own, gaussian(np.zeros(3), np.diag([1, 4, 9]))) == pytest.approx(3 + 0 + 1 + 4)
    assert frechet.distance(own, own) == pytest.approx(0, abs=1e-12)
    for rank in (5, 2):  # singular ones, too
        first, second = random_covariance(5, 1, rank), random_covariance(5, 2, rank)
        root = scipy.linalg.sqrtm(first @ second + 0j).real
        expected = 5 + np.trace(first + second - 2 * root)
        found = frechet.distance(gaussian(np.ones(5), first), gaussian(np.zeros(5), second))
        assert found == pytest.approx(expected, rel=1e-6)
        assert found == pytest.approx(frechet.distance(gaussian(np.zeros(5), second), gaussian(np.ones(5), first)))


def test_frechet_fit_is_mean_and_unbiased_covariance():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    found = frechet.fit(torch.tensor(rows))
    np.testing.assert_allclose(found.mean, rows.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(rows.T))


def test_frechet_influence_is_the_derivative_by_a_rows_weight():
    generator = np.random.default_rng(3)
    rows, other = torch.tensor(generator.normal(size=(30, 3)) * [1, 2, 3]), gaussian([1, 0, 1], random_covariance(3, 4))
    found = frechet.influence(rows, frechet.fit(rows), other)
    step = 1e-5
    for r in (0, 7):
        weights = torch.full((30,), (1 - step) / 30, dtype=torch.float64)
        weights[r] += step
        mean = weights @ rows
        covariance = ((rows - mean).T * weights) @ (rows - mean) * 30 / 29
        moved = frechet.distance(frechet.Gaussian(mean, covariance), other)
        slope = (moved - frechet.distance(frechet.fit(rows), other)) / step
        assert found[r].item() == pytest.approx(slope, rel=0.05, abs=0.2)


def test_the_error_of_the_frechet_metric_is_the_spread_of_repetitions():
    values, errors = [], []
    for seed in range(30):
        data = Spelled(400)
        data.rows = lambda split, at, seed=seed, data=data: {  # other fresh rows for every repetition
            name: x[at] for name, x in data.together(Draws("fresh", seed, rows=800)).items()
        }
        verifier.of(data)._kept.clear()
        generated = data.together(Draws("generated", seed, rows=400))
        generated = {name: generated[name] * 0.7 for name in VIEWS}
        found = score("frechet_verifier", Cell("spelled", (), VIEWS), generated, generated, data)
        values.append(found.value)
        errors.append(found.stderr)
    assert 0.7 < np.mean(errors) / np.std(values, ddof=1) < 1.5


def test_frechet_compares_with_the_second_half_and_asks_for_no_more_rows_than_it_has(world):
    second = world.rows("test", torch.arange(world.size, 2 * world.size))
    found = score("frechet_verifier", UNCOND, second, wanted(second, UNCOND), world)
    assert found.value == pytest.approx(0, abs=1e-9)
    everything = world.rows("test", torch.arange(2 * world.size))
    with pytest.raises(UserError, match="half of the test split of spelled is 512: lower evaluation_rows"):
        score("frechet_verifier", UNCOND, everything, wanted(everything, UNCOND), world)


def test_collapsed_pictures_give_finite_distances(world):
    same = {name: torch.zeros(world.size, 3, 4, 4) for name in VIEWS}
    found = score("frechet_verifier", Cell("spelled", (), VIEWS), same, same, world)
    assert math.isfinite(found.value) and math.isfinite(found.stderr) and found.value > 0


# ------------------------------------------------------------------------------------------ labels of any integer type


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
@pytest.mark.parametrize(("metric", "cell"), APPLICABLE)
def test_labels_of_any_integer_type_score_alike(metric, cell, dtype):
    """Forty classes of two labels are more than an int8 tells apart once they are tabulated."""

    class Narrow(Spelled):
        def rows(self, split, indices):
            return narrow(super().rows(split, indices))

    def narrow(batch):
        return {name: x.to(dtype) if name in CLASSES else x for name, x in batch.items()}

    real, generated = samples(Spelled(64), cell, "chance")
    found = score(metric, cell, narrow(real), narrow(generated), Narrow(64))
    assert found == score(metric, cell, real, generated, Spelled(64))
    formulas = [getattr(registry.load("metric", metric), name) for name in ("chance", "ceiling")]
    assert [each(cell, Narrow(64)) for each in formulas] == [each(cell, Spelled(64)) for each in formulas]
