"""Every metric against closed forms, independent implementations, its own chance and ceiling, and planted faults."""

import math
import re
from functools import cache
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import wasserstein_distance

from benchmark import registry
from benchmark.api import Cell, Inapplicable, Modality, UserError, cells
from benchmark.config import resolve
from benchmark.metrics.common import known_world
from benchmark.metrics.common.explained_variance import ExplainedVariance, unexplained
from benchmark.metrics.common.sliced_distance import directions, sliced_wasserstein
from benchmark.runtime import Draws
from data_prep.gaussian_mixture import CARD, GaussianMixture
from tests import ROOT

PAGE = ROOT / "docs" / "gaussian_mixture.md"
NAMES = ("x1", "x2", "x3")
ROWS = 2048
MIXTURE_METRICS = ("shared_mse", "uniform_expert", "swd", "swd_w1", "private_swd", "energy_score")
SLICED = ("swd", "swd_w1", "private_swd")
APPLICABLE = [(metric, task) for metric in MIXTURE_METRICS for task in registry.card("metric", metric).tasks]


@cache
def mixture() -> GaussianMixture:
    return GaussianMixture(config())


@cache
def config(preset="smoke", rows=ROWS):
    """`rows` per cell, or the preset's own where it is 0."""
    return resolve(CARD, None, preset, [f"evaluation_rows={rows}", f"unconditional_rows={rows}"] if rows else []).config


def first(task: str) -> Cell:
    return next(iter(cells("gaussian_mixture", NAMES, task)))


def generate(method: str, cell: Cell, draws_per_row: int = 1, rows: int = ROWS):
    """Real rows, and those of a sanity method that answer them."""
    data = mixture()
    sampler = registry.load("method", method)(data.modalities, config())
    sampler.bind(data)
    real = data.rows("test", torch.arange(rows))
    draws = Draws("test", str(cell), rows=rows)
    samples = [
        sampler.sample({name: real[name] for name in cell.given}, cell.want, rows, draws) for _ in range(draws_per_row)
    ]
    if draws_per_row == 1:
        return real, samples[0]
    return real, {name: torch.stack([sample[name] for sample in samples], 1) for name in cell.want}


def score(metric: str, cell: Cell, real, generated, block: int | None = None, data=None):
    made = registry.load("metric", metric)(cell, data or mixture())
    size = len(next(iter(generated.values())))
    for at in range(0, size, block or size):
        part = slice(at, at + (block or size))
        made.update({name: x[part] for name, x in real.items()}, {name: x[part] for name, x in generated.items()})
    return made.compute()


def sanity(method: str, metric: str, task: str):
    draws_per_row = getattr(registry.load("metric", metric), "draws_per_row", 1)
    return generate(method, first(task), draws_per_row)


# ------------------------------------------------------------------------------------------ chance and ceiling


@pytest.mark.parametrize(("metric", "task"), APPLICABLE)
@pytest.mark.parametrize(("method", "formula"), [("chance", "chance"), ("real", "ceiling")])
def test_sanity_rows_score_what_the_formulas_say(metric, task, method, formula):
    cell = first(task)
    expected = getattr(registry.load("metric", metric), formula)(cell, mixture())
    found = score(metric, cell, *sanity(method, metric, task))
    # One sliced distance at the floor varies by 5 % (64 coordinates) to 10 % (24).
    tolerance = 0.25 * expected if metric in SLICED else 4 * found.stderr
    assert found.value == pytest.approx(expected, abs=tolerance + 1e-12)
    assert found.n == ROWS


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("columns", [slice(None), slice(40, 64)])
def test_the_sliced_floor_is_the_mean_of_simulations(order, columns):
    data, rows, repeats = mixture(), 256, 100

    def sample(repeat):
        draws = Draws("floor", repeat, rows=rows)
        x = torch.cat([data.sample_factor(factor, draws) for factor in data.layout["x1"]], 1)
        return x[:, columns].double()

    simulated = [sliced_wasserstein(sample((k, 0)), sample((k, 1)), order) for k in range(repeats)]
    expected = known_world.sliced_floor(data, "x1", columns, rows, order, directions)
    assert sum(simulated) / repeats == pytest.approx(expected, rel=0.03)


def gaussian_world(size: int) -> SimpleNamespace:
    """Two modalities with nothing but a standard normal private factor each."""
    return SimpleNamespace(
        modalities=(Modality("a", (size,)), Modality("b", (size,))),
        means={"left": torch.zeros(1, size), "right": torch.zeros(1, size)},
        layout={"a": {"left": slice(0, size)}, "b": {"right": slice(0, size)}},
    )


def chi_mean(size: int) -> float:
    """E|y| for y ~ N(0, I)."""
    return math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))


def test_mean_distance_of_normals_is_the_closed_form():
    for size in (1, 3, 24):
        world = gaussian_world(size)
        assert known_world.mean_distance(world, ["left"]) == pytest.approx(math.sqrt(2) * chi_mean(size), rel=1e-6)
        assert known_world.mean_distance(world, ["left", "right"]) == pytest.approx(
            math.sqrt(2) * chi_mean(2 * size), rel=1e-6
        )


def test_mean_distance_of_a_mixture_agrees_with_simulation():
    data, draws = mixture(), Draws("distance", rows=20_000)
    x, other = (torch.cat([data.sample_factor(f, draws) for f in ("pair12", "private1")], 1) for _ in range(2))
    distances = (x - other).norm(dim=1)
    found = known_world.mean_distance(data, ["pair12", "private1"])
    assert found == pytest.approx(distances.mean().item(), abs=4 * distances.std().item() / math.sqrt(20_000))


# ------------------------------------------------------------------------------------------ values that are known


def test_energy_score_of_a_perfect_and_of_a_collapsed_sampler_are_the_closed_forms():
    size, rows, cell = 5, 20_000, Cell("world", ("a",), ("b",))
    world, generator = gaussian_world(size), torch.Generator().manual_seed(0)
    truth = torch.randn(rows, size, generator=generator)
    perfect = score(
        "energy_score", cell, {"b": truth}, {"b": torch.randn(rows, 2, size, generator=generator)}, data=world
    )
    collapsed = score("energy_score", cell, {"b": truth}, {"b": torch.zeros(rows, 2, size)}, data=world)
    assert perfect.value == pytest.approx(chi_mean(size) / math.sqrt(2), abs=4 * perfect.stderr)
    assert collapsed.value == pytest.approx(chi_mean(size), abs=4 * collapsed.stderr)
    assert registry.load("metric", "energy_score").ceiling(cell, world) == pytest.approx(chi_mean(size) / math.sqrt(2))


def test_collapse_to_the_mean_cannot_look_good_beside_a_perfect_sampler():
    """It is invisible to shared_mse, which is why the other two stand beside it."""
    data, cell = mixture(), first("one_to_one")
    real, perfect = generate("real", cell, draws_per_row=2)
    known = known_world.determined(data, cell.given)
    collapsed = perfect["x2"].clone()
    for factor, at in data.layout["x2"].items():
        if factor not in known:
            collapsed[..., at] = data.means[factor].mean(0)
    single = {"x2": collapsed[:, 0]}
    assert score("shared_mse", cell, real, single).value == 0
    spread = known_world.variance(data, "x2")[data.private("x2")].mean().sqrt().item()
    assert score("private_swd", cell, real, single).value == pytest.approx(spread, rel=0.1)
    gap = score("energy_score", cell, real, {"x2": collapsed}).value / score("energy_score", cell, real, perfect).value
    assert gap == pytest.approx(math.sqrt(2), rel=0.02)


def test_shared_mse_sees_the_shared_coordinates_and_only_them():
    data, cell = mixture(), first("uncond")
    real, _ = generate("real", cell)
    private_changed = {name: x.clone() for name, x in real.items()}
    for name in NAMES:
        private_changed[name][:, data.private(name)] += 100
    assert score("shared_mse", cell, real, private_changed).value == 0
    shifted = {**real, "x3": real["x3"].clone()}
    shifted["x3"][:, data.layout["x3"]["pair23"]] += 3.0  # 8 of 32 coordinates, in one of three pairs
    assert score("shared_mse", cell, real, shifted).value == pytest.approx(9 * 8 / 32 / 3, rel=1e-5)


def test_conditional_shared_mse_compares_with_the_real_source():
    data, cell = mixture(), Cell("gaussian_mixture", ("x1", "x3"), ("x2",))
    real, _ = generate("real", cell)
    answer = {"x2": real["x2"].clone()}
    answer["x2"][:, data.layout["x2"]["all"]] += 2.0
    assert score("shared_mse", cell, real, answer).value == pytest.approx(4 * 24 / 32, rel=1e-5)
    rolled = {name: x.roll(1, 0) for name, x in real.items()}
    assert score("shared_mse", cell, rolled, {"x2": real["x2"]}).value > 30


def test_uniform_expert_predicts_what_a_uniformly_drawn_expert_scores():
    """From its one_to_one samples, to the row: the many_to_one answer takes each row from one of the two."""
    many = Cell("gaussian_mixture", ("x1", "x3"), ("x2",))
    singles = [Cell("gaussian_mixture", (source,), ("x2",)) for source in many.given]
    answers = [generate("real", cell) for cell in singles]
    real = answers[0][0]
    chosen = Draws("expert", rows=ROWS).uniform("which").unsqueeze(1) < 0.5
    drawn = torch.where(chosen, answers[0][1]["x2"], answers[1][1]["x2"])
    predictions = [score("uniform_expert", cell, *answer) for cell, answer in zip(singles, answers, strict=True)]
    found = score("shared_mse", many, real, {"x2": drawn})
    assert sum(p.value for p in predictions) / 2 == pytest.approx(found.value, abs=4 * found.stderr)
    assert found.value > 4  # two perfect experts, and yet


@pytest.mark.parametrize("order", [1, 2])
def test_sliced_distance_of_a_shift_is_the_shift_along_each_direction(order):
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([3.0, 0, 0, -4.0, 0, 0], dtype=torch.float64)
    along = (shift @ directions(6)).abs()
    expected = along.pow(order).mean() ** (1 / order)
    assert sliced_wasserstein(x, (x + shift)[torch.randperm(500)], order) == pytest.approx(expected.item())


def test_sliced_w1_agrees_with_scipy():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    y = torch.rand(300, 4, generator=generator, dtype=torch.float64)
    each = [wasserstein_distance((x @ d).numpy(), (y @ d).numpy()) for d in directions(4).T]
    assert sliced_wasserstein(x, y, 1) == pytest.approx(sum(each) / len(each))


def test_directions_are_unit_and_uniform():
    along = directions(64)
    assert torch.allclose(along.norm(dim=0), torch.ones(128, dtype=torch.float64))
    assert torch.equal(along, directions(64))
    assert (along @ along.T - 2 * torch.eye(64)).abs().max() < 1  # 128 / 64 = 2 in every direction on average


def test_swd_grows_with_the_size_of_an_error():
    cell = first("uncond")
    real, perfect = generate("real", cell)
    values = [
        score("swd", cell, real, {name: x * factor for name, x in perfect.items()}).value
        for factor in (1.0, 0.95, 0.9, 0.8)
    ]
    assert values == sorted(values)
    assert values[-1] > 3 * values[0]


# ------------------------------------------------------------------------------------------ explained variance


def test_r_squared_of_known_predictions_and_its_standard_error():
    cell = Cell("world", ("a",), ("factor:left",))
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(200):
        truth = torch.randn(400, 3, generator=generator)
        noise = torch.randn(400, 3, generator=generator)
        metric = ExplainedVariance(cell, None)
        metric.update({"factor:left": truth}, {"factor:left": truth + 0.5 * noise})
        values.append(metric.compute())
    found = torch.tensor([value.value for value in values])
    assert found.mean().item() == pytest.approx(0.75, abs=0.005)
    assert values[0].stderr == pytest.approx(found.std().item(), rel=0.25)


def test_r_squared_is_one_for_the_truth_zero_for_the_mean_and_negative_beyond():
    truth = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    for prediction, expected in ((truth, 1.0), (truth.mean(0).expand_as(truth), 0.0), (-truth, -3.0)):
        metric = registry.load("metric", "probe_mlp")(Cell("w", ("a",), ("factor:f",)), None)
        metric.update({"factor:f": truth}, {"factor:f": prediction})
        assert metric.compute().value == pytest.approx(expected, abs=0.1 if expected < 0 else 1e-6)


def test_probe_ceilings_follow_what_is_given():
    ceiling = registry.load("metric", "probe_linear").ceiling
    expected = {
        (("x1",), "all"): 1,
        (("x1",), "pair12"): 1,
        (("x1",), "pair23"): 0,
        (("x1", "x2"), "private3"): 0,
        (("x3",), "private3"): 1,
        (("x1", "x2"), "pair13"): 1,
    }
    for (given, factor), value in expected.items():
        assert ceiling(Cell("gaussian_mixture", given, (f"factor:{factor}",)), mixture()) == value


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 0.0), (0.5, 0.2), (1.0, 0.5)])
def test_residual_dependence_is_the_share_of_the_decoders_own_noise(noise, expected):
    """noise^2 / (1 + noise^2) for decodings z + noise * e of the shared coordinates, whatever private ones do."""
    cell, generator = first("uncond"), torch.Generator().manual_seed(0)
    data, latent = mixture(), torch.randn(ROWS, 1, 64, generator=generator)
    decoded = {name: latent + noise * torch.randn(ROWS, 2, 64, generator=generator) for name in NAMES}
    for name in NAMES:
        decoded[name][..., data.private(name)] = 50 * torch.randn(ROWS, 2, 24, generator=generator)
    found = score("residual_dependence", cell, {}, decoded)
    assert found.value == pytest.approx(expected, abs=0.01)


def test_unexplained_of_equal_parts_is_one():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0)).double()
    found = unexplained(values, values)
    assert found.value == 1
    assert found.stderr < 1e-12


# ------------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize(("metric", "task"), APPLICABLE)
def test_the_block_size_does_not_matter(metric, task):
    real, generated = sanity("chance", metric, task)
    whole = score(metric, first(task), real, generated)
    for block in (256, 700):
        parts = score(metric, first(task), real, generated, block)
        assert parts.value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize(("metric", "task"), APPLICABLE)
def test_the_order_of_rows_does_not_matter(metric, task):
    real, generated = sanity("chance", metric, task)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    moved = [{name: x[order] for name, x in batch.items()} for batch in (real, generated)]
    expected = score(metric, first(task), real, generated)
    assert score(metric, first(task), *moved).value == pytest.approx(expected.value, rel=1e-12)


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(("metric", "task"), APPLICABLE)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_nan_or_infinity_is_an_error_and_not_a_number(metric, task, value):
    real, generated = sanity("real", metric, task)
    name = first(task).want[-1]
    generated = {**generated, name: generated[name].clone()}
    generated[name].view(-1)[5] = value
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite"):
        score(metric, first(task), real, generated)


@pytest.mark.parametrize(("metric", "task"), APPLICABLE)
def test_too_few_rows_are_refused(metric, task):
    real, generated = sanity("real", metric, task)
    least = registry.card("metric", metric).min_rows
    few = least - 1
    with pytest.raises(Inapplicable, match=f"at least {least} rows and got {few}"):
        score(metric, first(task), {n: x[:few] for n, x in real.items()}, {n: x[:few] for n, x in generated.items()})
    with pytest.raises(Inapplicable, match="got 0"):
        registry.load("metric", metric)(first(task), mixture()).compute()


def test_more_generated_than_fresh_rows_are_refused():
    generated = {name: torch.zeros(ROWS + 1, 64) for name in NAMES}
    with pytest.raises(UserError, match=f"half of the test split of gaussian_mixture is {ROWS}"):
        score("swd", first("uncond"), {}, generated)


def test_sources_among_the_fresh_rows_are_found():
    cell = first("one_to_one")
    real, generated = generate("real", cell)
    overlapping = mixture().rows("test", torch.arange(1, ROWS + 1))  # one row too far
    with pytest.raises(ValueError, match="among the fresh rows"):
        score("swd", cell, overlapping, generated)
    score("swd", cell, real, generated)


@pytest.mark.parametrize("metric", ["shared_mse", "energy_score"])
def test_rows_that_do_not_answer_their_sources_are_refused(metric):
    cell = first("one_to_one")
    real, generated = sanity("real", metric, "one_to_one")
    with pytest.raises(ValueError, match="generated rows of x2 for"):
        score(metric, cell, {name: x[:-1] for name, x in real.items()}, generated)


def test_cells_without_such_a_number_say_why():
    with pytest.raises(Inapplicable, match="source row"):
        registry.load("metric", "energy_score")(first("uncond"), mixture())
    with pytest.raises(Inapplicable, match="no shared coordinates"):
        registry.load("metric", "shared_mse")(first("uncond"), gaussian_world(2))
    with pytest.raises(Inapplicable, match="no private coordinates"):
        registry.load("metric", "private_swd")(first("uncond"), gaussian_world(2))
    with pytest.raises(Inapplicable, match="give one modality"):
        registry.load("metric", "uniform_expert")(first("uncond"), mixture())
    with pytest.raises(Inapplicable, match="prior"):
        registry.load("metric", "residual_dependence")(first("one_to_one"), mixture())
    pictures = SimpleNamespace(modalities=(Modality("x1", (3, 8, 8), "image"),))
    with pytest.raises(Inapplicable, match="vectors"):
        registry.load("metric", "swd")(first("uncond"), pictures)


# ------------------------------------------------------------------------------------------ sanity methods


@pytest.mark.parametrize("method", ["real", "chance"])
def test_sanity_methods_draw_by_row_and_not_by_batch(method):
    cell = first("uncond")
    _, whole = generate(method, cell, rows=512)
    _, part = generate(method, cell, rows=300)
    assert all(torch.equal(whole[name][:300], part[name]) for name in NAMES)


def test_real_conditionals_keep_what_is_given_and_draw_the_rest():
    data, cell = mixture(), first("one_to_one")
    real, generated = generate("real", cell)
    at_source, at_target = data.shared("x1", "x2")
    assert torch.equal(real["x1"][:, at_source], generated["x2"][:, at_target])
    for factor in ("pair23", "private2"):
        at = data.layout["x2"][factor]
        fresh, true = generated["x2"][:, at].flatten(), real["x2"][:, at].flatten()
        assert abs(torch.corrcoef(torch.stack([fresh, true]))[0, 1]) < 0.05


@pytest.mark.parametrize("method", ["real", "chance"])
def test_sanity_methods_need_a_known_world(method):
    with pytest.raises(Inapplicable, match="not known"):
        registry.load("method", method)((), config()).bind(SimpleNamespace())


# ------------------------------------------------------------------------------------------ the page


def numbers_of_the_page() -> dict[str, str]:
    """`<!-- number NAME -->VALUE` marks in the page; a name may stand twice, with one value."""
    found = re.findall(r"<!-- number ([^>]+) -->(\d+\.\d+)", PAGE.read_text())
    assert len(set(found)) == len(dict(found))
    return dict(found)


@cache
def numbers_computed() -> dict[str, float]:
    data = GaussianMixture(config("cpu", 0))
    found = {}
    for metric in MIXTURE_METRICS:
        for task in registry.card("metric", metric).tasks:
            if task in ("one_to_one", "many_to_one") or (task == "uncond" and metric != "uniform_expert"):
                for formula in ("chance", "ceiling"):
                    if metric in SLICED and (task == "many_to_one" or formula == "chance"):
                        continue  # equal to those of one_to_one and to the ceiling
                    function = getattr(registry.load("metric", metric), formula)
                    asked = list(cells("gaussian_mixture", NAMES, task))
                    if metric in SLICED and task == "one_to_one":
                        asked = list(
                            {cell.want: cell for cell in asked}.values()
                        )  # a floor depends on the target alone
                    values = [function(cell, data) for cell in asked]
                    found[f"{metric} {task} {formula}"] = sum(values) / len(values)
    pairs = [(expert, *pair) for expert in NAMES for pair in combinations(NAMES, 2)]
    found["mixture prior"] = sum(known_world.unknown_mse(data, (expert,), i, j) for expert, i, j in pairs) / len(pairs)
    found["uniform expert over worlds"] = (1 + 4.4**2 * 63 / 64) / 4
    return found


def test_every_number_of_the_page_is_the_formula():
    printed, computed = numbers_of_the_page(), numbers_computed()
    assert len(printed) >= 10
    for name, text in printed.items():
        digits = len(text.partition(".")[2])
        assert text == f"{computed[name]:.{digits}f}", name


def test_a_floor_depends_on_the_target_and_the_rows_alone():
    """What the page says in words, so that it prints each floor once: here all cells have equally many rows."""
    metric = registry.load("metric", "swd_w1")
    each = [metric.ceiling(cell, mixture()) for cell in cells("gaussian_mixture", NAMES, "many_to_one")]
    assert metric.chance(first("uncond"), mixture()) == pytest.approx(sum(each) / len(each))
