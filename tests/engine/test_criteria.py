"""The criteria on latents whose content is known."""

import math
import tomllib
from functools import cache

import pytest
import torch

from benchmark import registry
from benchmark.api import Cell, Inapplicable, UserError
from benchmark.config import resolve
from benchmark.engine.criteria import cells_of_dataset, criteria_cells, evaluate_criteria, fit_probes
from data_prep.gaussian_mixture import CARD, FACTORS, PARTS, GaussianMixture
from tests import ROOT

NAMES = ("x1", "x2", "x3")
PROBE_ROWS = 1024
SIZES = [f"probe_rows={PROBE_ROWS}", "evaluation_rows=512", "unconditional_rows=512"]
CONFIG = resolve(CARD, None, "smoke", SIZES).config


@cache
def mixture() -> GaussianMixture:
    return GaussianMixture(CONFIG)


class Latent:
    """A method without networks: the latent is a noisy copy of one factor where a given modality holds it."""

    def __init__(self, factor: str, noise: float, bend=lambda z: z) -> None:
        self.factor, self.noise, self.bend = factor, noise, bend

    def infer(self, given, draws):
        blank = draws.normal("latent", FACTORS[self.factor])
        for name, x in given.items():
            if self.factor in PARTS[name]:
                return self.bend(x[:, mixture().layout[name][self.factor]]) + self.noise * blank
        return blank

    def sample_prior(self, rows, draws):
        return 3 * draws.normal("latent", 64)

    def decode(self, z, want, draws):
        return {name: z + draws.normal(f"decode {name}", 64) for name in want}


def criteria(method, seed: int = 0):
    return {(cell, metric): value for cell, metric, value in evaluate_criteria(method, mixture(), CONFIG, "cpu", seed)}


@cache
def of_the_noisy_all():
    return criteria(Latent("all", noise=2.0))


def at(given: tuple[str, ...], factor: str) -> Cell:
    return Cell("gaussian_mixture", given, (f"factor:{factor}",))


def best_linear(factor: str, noise: float) -> float:
    """R^2 of the best linear reading of factor + noise * N(0, I), from the world's covariance."""
    covariance = torch.cov(mixture().means[factor].double().T, correction=0) + torch.eye(FACTORS[factor])
    read = covariance @ torch.linalg.inv(covariance + noise**2 * torch.eye(FACTORS[factor])) @ covariance
    return (read.trace() / covariance.trace()).item()


def test_every_cell_is_answered_in_order():
    asked = list(criteria_cells("gaussian_mixture", NAMES, list(FACTORS)))
    assert list(of_the_noisy_all()) == asked
    assert len(asked) == 7 * 7 * 2 + 1
    assert list(cells_of_dataset("gaussian_mixture")) == asked


def test_a_linear_probe_finds_what_the_world_says_a_noisy_copy_holds():
    expected = best_linear("all", noise=2.0)
    assert 0.7 < expected < 0.95
    for given in (("x1",), ("x1", "x2"), NAMES):
        found = of_the_noisy_all()[at(given, "all"), "probe_linear"]
        assert found.value == pytest.approx(expected - 24 / PROBE_ROWS * (1 - expected), abs=4 * found.stderr + 0.003)


def test_what_the_latent_does_not_hold_is_at_the_floor():
    """A least-squares fit of p inputs on N rows to what they do not hold scores -p / N; the network a little less."""
    for factor in ("pair12", "private1", "private3"):
        linear, curved = (of_the_noisy_all()[at(("x1",), factor), probe] for probe in ("probe_linear", "probe_mlp"))
        assert linear.value == pytest.approx(-24 / PROBE_ROWS, abs=0.012)
        assert -0.1 < curved.value < 0.005


def test_pair_factors_follow_their_partners():
    found = criteria(Latent("pair12", noise=1.0))
    for given in (("x1",), ("x2",), ("x1", "x3"), ("x1", "x2"), NAMES):
        assert found[at(given, "pair12"), "probe_linear"].value == pytest.approx(best_linear("pair12", 1.0), abs=0.02)
    assert found[at(("x3",), "pair12"), "probe_linear"].value < 0.01
    assert found[at(("x1",), "all"), "probe_mlp"].value < 0.01


def test_the_network_reads_what_a_linear_probe_cannot():
    found = criteria(
        Latent(
            "pair12",
            noise=0.0,
            bend=lambda z: torch.cat([z.abs(), z.sign()], 1)[:, :8] + 9 * z.sign() if z.shape[1] == 8 else z,
        )
    )
    linear, curved = (found[at(("x1",), "pair12"), probe].value for probe in ("probe_linear", "probe_mlp"))
    assert linear < 0.9
    assert curved > linear + 0.04


def test_probes_cannot_read_test_rows():
    """Latents that hold the factor on test rows alone must score nothing."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(1000, 8, generator=generator)
    held = fit_probes(torch.randn(1, 1000, 8, generator=generator), {"f": truth}, truth[None], seed=0)[0]
    for predicted in (values["f"] for values in held.values()):
        assert abs(torch.corrcoef(torch.stack([predicted.flatten(), truth.double().flatten()]))[0, 1]) < 0.2


def test_unused_latent_dimensions_do_no_harm():
    truth = torch.randn(800, 4, generator=torch.Generator().manual_seed(0))
    latents = torch.cat([truth, torch.zeros(800, 3), truth], 1)[None].double()  # constant and duplicated columns
    predicted = fit_probes(latents, {"f": truth}, latents, seed=0)[0]["probe_linear"]["f"]
    assert torch.allclose(predicted, truth.double(), atol=1e-3)


def test_residual_dependence_is_that_of_the_decoders():
    cell = Cell("gaussian_mixture", (), NAMES)
    found = of_the_noisy_all()[cell, "residual_dependence"]
    assert found.value == pytest.approx(1 / (1 + 9), abs=4 * found.stderr)  # one part noise to nine parts latent


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(monkeypatch):
    monkeypatch.setattr("benchmark.engine.criteria.PASSES", 1)
    runs = [criteria(Latent("all", noise=2.0), seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_method_without_a_latent_says_so_in_every_cell():
    found = criteria(object())
    assert set(found.values()) == {"keeps no latent"}
    assert len(found) == 99


def test_a_subset_that_a_method_cannot_infer_from_says_why_and_the_others_have_numbers():
    class Single(Latent):
        def infer(self, given, draws):
            if len(given) > 1:
                raise Inapplicable("conditions on one modality at most")
            return super().infer(given, draws)

    found = criteria(Single("all", noise=0.0))
    assert found[at(("x1", "x2"), "all"), "probe_mlp"] == "conditions on one modality at most"
    assert found[at(("x3",), "all"), "probe_mlp"].value > 0.99


def test_nan_latents_are_an_error():
    with pytest.raises(ValueError, match="latents of x1 hold NaN"):
        criteria(Latent("all", noise=math.nan))


def test_a_dataset_without_known_factors_is_refused():
    with pytest.raises(UserError, match="need known factors, which pictures does not have"):
        list(evaluate_criteria(object(), object(), CONFIG, "cpu", 0, dataset="pictures"))


def test_the_table_asks_for_cells_that_are_measured_and_for_each_once():
    table = tomllib.loads((ROOT / "results" / "tables" / "criteria.toml").read_text())
    measured = set(criteria_cells("gaussian_mixture", NAMES, list(FACTORS)))
    asked = [
        (Cell("gaussian_mixture", tuple(cell["given"]), tuple(cell["want"])), column["metric"])
        for column in table["column"]
        for cell in column["cells"]
    ]
    assert sorted(asked) == sorted(measured)
    ceiling = registry.load("metric", "probe_mlp").ceiling
    for column in table["column"][1:]:
        ceilings = {ceiling(Cell("", tuple(c["given"]), tuple(c["want"])), mixture()) for c in column["cells"]}
        assert len(ceilings) == 1, column["header"]  # a column never averages cells of different ceilings


def test_draws_do_not_depend_on_the_method():
    class Spy(Latent):
        def infer(self, given, draws):
            seen.append(draws.normal("latent", 1).sum().item())
            if draws.rows == 512:  # test rows come last
                raise Inapplicable("seen enough")
            return draws.normal("latent", 1)

    runs = []
    for factor in ("all", "pair12"):
        seen: list[float] = []
        criteria(Spy(factor, noise=1.0))
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0]) == 14
