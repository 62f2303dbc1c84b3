"""The Gaussian mixture: a world of known factors, and rows that depend on their split and index alone."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmark import registry
from benchmark.api import Cell, cells
from benchmark.config import Config, resolve
from benchmark.runtime import Draws
from data_prep import gaussian_mixture
from data_prep.gaussian_mixture import COMPONENTS, FACTORS, MEAN_SCALE, PARTS, GaussianMixture

NAMES = tuple(PARTS)
SPLITS = ("train", "validation", "test")


def config(**counts: int) -> Config:
    small = {"train_rows": 5000, "evaluation_rows": 300, "unconditional_rows": 700, "probe_rows": 500}
    return resolve(
        registry.card("dataset", "gaussian_mixture"),
        None,
        "smoke",
        [f"{field}={value}" for field, value in (small | counts).items()],
    ).config


@cache
def world() -> GaussianMixture:
    return GaussianMixture(config())


@cache
def large_world() -> GaussianMixture:
    return GaussianMixture(config(train_rows=100_000))


def everything(data: GaussianMixture, split: str) -> Tensor:
    rows = data.rows(split, torch.arange(data.count(split)))
    return torch.cat([rows[name] for name in NAMES], 1)


# Rows.


def overlaps(data: GaussianMixture) -> list[tuple[str, str]]:
    """Splits that share a row, or any value of a factor, or repeat one of their own."""
    factors = {split: data.factors(split, torch.arange(data.count(split))) for split in SPLITS}
    values = {
        split: {(factor, float(value)) for factor, x in factors[split].items() for value in x[:, 0]} for split in SPLITS
    }
    shared = [
        (one, other)
        for one, other in itertools.combinations(SPLITS, 2)
        if len(values[one] & values[other]) > 0.01 * len(values[other])
    ]  # float32 repeats a value now and then
    return shared + [(split, split) for split in SPLITS if len(values[split]) < 0.99 * len(FACTORS) * data.count(split)]


def test_splits_are_disjoint_and_no_row_repeats():
    assert overlaps(world()) == []


def test_splits_that_overlap_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        gaussian_mixture,
        "Draws",
        lambda *purpose, **where: Draws(*("train" if word == "test" else word for word in purpose), **where),
    )
    assert overlaps(GaussianMixture(config())) == [("train", "test")]


@pytest.mark.parametrize(
    "counts",
    [
        {"train_rows": 9000},
        {"train_rows": 201},
        {"evaluation_rows": 2000},
        {"unconditional_rows": 4500, "probe_rows": 9},
    ],
    ids=str,
)
def test_a_row_does_not_depend_on_how_many_there_are(counts: dict[str, int]):
    other = GaussianMixture(config(**counts))
    for split in SPLITS:
        common = torch.arange(min(world().count(split), other.count(split)))
        assert len(common) >= 200
        for name in NAMES:
            assert torch.equal(other.rows(split, common)[name], world().rows(split, common)[name])


def test_rows_are_the_same_in_any_order_of_asking():
    fresh = GaussianMixture(config())
    for split in reversed(SPLITS):
        shuffled = torch.randperm(fresh.count(split), generator=torch.Generator().manual_seed(0))
        for name, rows in fresh.rows(split, shuffled).items():
            assert torch.equal(rows, world().rows(split, torch.arange(fresh.count(split)))[name][shuffled])


def test_no_seed_moves_the_world_and_no_global_generator_is_touched():
    before = everything(world(), "test")
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    again = GaussianMixture(config())
    assert torch.equal(everything(again, "test"), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_neither_method_nor_other_settings_move_the_world():
    other = GaussianMixture(config(updates=7, batch_rows=3, latent_size=5))
    assert all(torch.equal(other.means[factor], world().means[factor]) for factor in FACTORS)
    assert torch.equal(everything(other, "validation"), everything(world(), "validation"))


def test_version_one_is_this_world():
    """Numbers of another world never meet these: change the card's version when this changes."""
    assert registry.card("dataset", "gaussian_mixture").version == 1
    first, last = world().rows("train", torch.tensor([4999])), world().rows("test", torch.tensor([1399]))
    found = [world().means["all"][0, 0], world().means["private3"][63, 23], first["x1"][0, 0], last["x3"][0, 63]]
    assert [float(value) for value in found] == pytest.approx([-2.0299, 2.5915, 3.4945, -8.5897], abs=1e-4)


# Factors.


def test_shared_coordinates_are_equal_between_modalities():
    rows = world().rows("test", torch.arange(world().count("test")))
    for first, second in itertools.permutations(NAMES, 2):
        one, other = world().shared(first, second)
        assert len(one) == len(other) == FACTORS["all"] + FACTORS["pair12"] == 32
        assert torch.equal(rows[first][:, one], rows[second][:, other])
        rest = sorted(set(range(64)) - set(one.tolist()))  # nothing else is equal anywhere
        assert not (rows[first][:, rest, None] == rows[second][:, None, :]).all(0).any()


def test_layout_and_factors_agree_with_the_rows():
    indices = torch.tensor([5, 0, 1399])
    factors, rows = world().factors("test", indices), world().rows("test", indices)
    assert {name: x.shape for name, x in factors.items()} == {name: (3, size) for name, size in FACTORS.items()}
    for name, parts in world().layout.items():
        assert tuple(parts) == PARTS[name]
        assert sorted(k for at in parts.values() for k in range(64)[at]) == list(range(64))
        for factor, at in parts.items():
            assert torch.equal(rows[name][:, at], factors[factor])
        private = [factor for factor in parts if not any(factor in PARTS[other] for other in NAMES if other != name)]
        assert torch.equal(rows[name][:, world().private(name)], factors[private[0]]) and len(private) == 1


def moment_gaps(data: GaussianMixture, factor: str, x: Tensor) -> tuple[float, float]:
    """Largest gap of mean and of covariance from the mixture's closed form, in standard errors."""
    means, x = data.means[factor].double(), x.double()
    centre = means.mean(0)
    covariance = torch.cov(means.T, correction=0) + torch.eye(means.shape[1])
    products = (x - centre)[:, :, None] * (x - centre)[:, None, :]
    mean_gap = (x.mean(0) - centre) / (covariance.diagonal() / len(x)).sqrt()
    covariance_gap = (products.mean(0) - covariance) / (products.var(0) / len(x)).sqrt()
    return mean_gap.abs().max().item(), covariance_gap.abs().max().item()


@pytest.mark.parametrize("factor", FACTORS)
def test_moments_are_those_of_the_mixture(factor: str):
    """20,000 rows: 24 means and 300 covariances stay within 5 standard errors."""
    x = large_world().factors("train", torch.arange(20_000))[factor]
    mean_gap, covariance_gap = moment_gaps(large_world(), factor, x)
    assert mean_gap < 5 and covariance_gap < 5
    assert moment_gaps(large_world(), factor, x + 0.2)[0] > 5  # a shift, and a scale, of a few percent are found
    assert moment_gaps(large_world(), factor, x * 1.05)[1] > 5


def test_every_component_is_drawn_equally_often_with_unit_variance():
    """The nearest mean is the component: means lie 30 standard deviations apart in 24 dimensions."""
    x, means = large_world().factors("train", torch.arange(100_000))["all"], large_world().means["all"]
    distance, component = torch.cdist(x, means).min(1)
    found = torch.bincount(component, minlength=COMPONENTS).double()
    expected = 100_000 / COMPONENTS
    assert ((found - expected).square() / expected).sum() < 130  # chi-square, 63 degrees: 1e-6
    assert distance.square().double().mean().item() / FACTORS["all"] == pytest.approx(1, abs=0.005)


def test_factors_are_independent():
    factors = large_world().factors("train", torch.arange(100_000))
    for one, other in itertools.combinations(FACTORS, 2):
        left, right = ((factors[name] - factors[name].mean(0)) / factors[name].std(0) for name in (one, other))
        assert (left.T @ right / 100_000).abs().max() * 100_000**0.5 < 5.5


def test_the_means_have_the_stated_scale_and_modalities_are_standardised():
    means = torch.cat([x.flatten() for x in world().means.values()])
    assert means.std().item() == pytest.approx(MEAN_SCALE, rel=0.03)
    for modality in world().modalities:
        x = large_world().rows("train", torch.arange(20_000))[modality.name]
        assert modality.shape == (64,)
        assert ((x - modality.center) / modality.scale).std(0).mean().item() == pytest.approx(1, abs=0.1)


def test_fresh_factors_follow_the_world_and_are_in_no_split():
    fresh = world().sample_factor("pair12", Draws("fresh", rows=20_000))
    assert max(moment_gaps(world(), "pair12", fresh)) < 5
    for split in SPLITS:
        rows = world().factors(split, torch.arange(world().count(split)))["pair12"]
        assert not (torch.cdist(fresh[:2000], rows) < 1e-4).any()
    assert torch.equal(fresh, world().sample_factor("pair12", Draws("fresh", rows=20_000)))


# Counts.


@pytest.mark.parametrize(("evaluation", "unconditional"), [(300, 700), (900, 700)])
def test_the_first_half_of_the_test_split_holds_every_cells_rows(evaluation: int, unconditional: int):
    data = GaussianMixture(config(evaluation_rows=evaluation, unconditional_rows=unconditional))
    most = max(evaluation, unconditional)
    assert data.count("test") == 2 * most and data.count("train") == 5000 and data.count("validation") == max(500, most)
    for task in ("one_to_one", "many_to_one", "one_to_many", "uncond"):
        for cell in cells("gaussian_mixture", NAMES, task):
            assert data.rows_of(cell) == (evaluation if cell.given else unconditional) <= data.count("test") // 2
    assert data.rows_of(Cell("gaussian_mixture", (), NAMES)) == unconditional
    first, second = everything(data, "test").split(most)
    assert not (first[:, None, :8] == second[None, :, :8]).all(-1).any()
