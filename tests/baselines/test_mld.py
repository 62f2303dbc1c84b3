"""MLD's paths, schedule, loss and conditional sampler against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate
from torch import Tensor

from baselines.mld import JUMP, MLD, JointNetwork, schedule
from benchmark.runtime import Draws
from models.components.diffusion import FLOW, VARIANCE_PRESERVING, Path
from models.components.flow import preconditioned
from models.components.networks import TimeWaves
from tests.models.latent_models import tiny

PATHS = pytest.mark.parametrize("path", [FLOW, VARIANCE_PRESERVING], ids=["flow", "variance preserving"])
TIMES = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)


# The paths.


def test_the_variance_preserving_path_is_that_of_its_rate():
    for t in (0.1, 0.5, 1.0):
        integral, _ = integrate.quad(lambda s: 0.1 + s * (20 - 0.1), 0, t)
        assert VARIANCE_PRESERVING.signal(torch.tensor(t, dtype=torch.float64)).item() == pytest.approx(
            math.exp(-integral / 2), rel=1e-12
        )
    total = VARIANCE_PRESERVING.signal(TIMES) ** 2 + VARIANCE_PRESERVING.noise(TIMES) ** 2
    assert torch.allclose(total, torch.ones_like(total))


def test_on_the_linear_path_the_target_is_the_velocity_and_the_step_is_eulers():
    draws = Draws("paths", rows=5)
    z, eps, velocity = (draws.normal(name, 3).double() for name in ("z", "eps", "velocity"))
    start, end = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    assert torch.equal(FLOW.target(z, eps), eps - z)
    assert torch.allclose(FLOW.step(z, velocity, start, end), z + (end - start) * velocity, atol=1e-14)


def test_the_suites_velocity_networks_have_the_linear_paths_form():
    draws = Draws("velocity", rows=6)
    x, raw, t = draws.normal("x", 4).double(), draws.normal("raw", 4).double(), draws.uniform("t")[:, None].double()
    linear, scale = FLOW.best_linear(t)
    assert torch.allclose(preconditioned(x, raw, t), linear * x + scale * raw, rtol=1e-12)


# The joint network.

LATENTS, SIZE, ROWS = 3, 4, 6


def joint_network() -> tuple[JointNetwork, Tensor, Tensor]:
    """An untrained network, latents, and a time of its own for each of them in each row."""
    torch.manual_seed(0)
    draws = Draws("joint network", rows=ROWS)
    times = torch.sigmoid(draws.normal("times", LATENTS)).double()
    return JointNetwork(LATENTS, SIZE, 8, 1).double(), draws.normal("x", LATENTS * SIZE).double(), times


def faults_of_the_untrained(network: JointNetwork, x: Tensor, times: Tensor, path: Path) -> list[str]:
    """Where an untrained network's answer is not the best linear one at each latent's own time, by a loop."""
    found = network(x, times, path)
    return [
        f"row {r}, dimension {d}"
        for r in range(ROWS)
        for d in range(LATENTS * SIZE)
        if not torch.isclose(found[r, d], path.best_linear(times[r, d // SIZE])[0] * x[r, d], rtol=1e-9)
    ]


@PATHS
def test_untrained_every_latent_has_the_best_linear_prediction_at_its_own_time(path: Path):
    assert faults_of_the_untrained(*joint_network(), path) == []


def test_times_that_reach_other_dimensions_would_be_found(monkeypatch: pytest.MonkeyPatch):
    everything = joint_network()
    monkeypatch.setattr(Tensor, "repeat_interleave", lambda self, repeats, dim: self.repeat(1, repeats))
    assert len(faults_of_the_untrained(*everything, FLOW)) > ROWS * SIZE


def times_heard(network: JointNetwork, x: Tensor, times: Tensor) -> list[list[bool]]:
    """Whether the learned share of latent j's prediction, j across, hears the time of latent m, m down."""
    torch.nn.init.normal_(network.leave.weight)

    def share(at: Tensor) -> Tensor:
        linear, scale = (part.repeat_interleave(SIZE, 1) for part in FLOW.best_linear(at))
        return (network(x, at, FLOW) - linear * x) / scale

    before, heard = share(times), []
    for m in range(LATENTS):
        moved = times.clone()
        moved[:, m] = 1 - moved[:, m]
        gap = (share(moved) - before).abs().unflatten(1, (LATENTS, SIZE)).amax((0, 2))
        heard.append((gap > 1e-9).tolist())
    return heard


def test_the_network_hears_the_time_of_every_latent():
    assert times_heard(*joint_network()) == [[True] * LATENTS] * LATENTS


def test_a_network_that_is_deaf_to_time_would_be_found(monkeypatch: pytest.MonkeyPatch):
    heard = TimeWaves.forward
    monkeypatch.setattr(TimeWaves, "forward", lambda self, times: heard(self, 0 * times))
    assert times_heard(*joint_network()) == [[False] * LATENTS] * LATENTS


@PATHS
def test_the_best_linear_prediction_and_what_it_leaves(path: Path):
    """By the moments of z and eps, which are independent and of unit variance."""
    signal, noise = path.signal(TIMES), path.noise(TIMES)
    covariance, power = noise - path.share * signal, 1 + path.share**2  # of the target with z_t, and of itself
    variance = signal**2 + noise**2
    linear, scale = path.best_linear(TIMES)
    assert torch.allclose(linear, covariance / variance)
    assert torch.allclose(scale**2, power - covariance**2 / variance)


@PATHS
def test_noising_again_has_the_paths_variance(path: Path):
    start, end = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    at_start = path.signal(start) ** 2 * 4 + path.noise(start) ** 2  # for z of variance 4
    ratio = path.noised(torch.ones((), dtype=torch.float64), start, end, torch.zeros((), dtype=torch.float64))
    added = path.noised(torch.zeros((), dtype=torch.float64), start, end, torch.ones((), dtype=torch.float64))
    at_end = path.signal(end) ** 2 * 4 + path.noise(end) ** 2
    assert (ratio**2 * at_start + added**2).item() == pytest.approx(at_end.item(), rel=1e-12)


@PATHS
def test_steps_from_noise_reach_the_datas_variance(path: Path):
    """With the exact prediction for N(0, 0.5^2), which is linear."""
    x, steps = torch.ones((), dtype=torch.float64), 400
    for k in range(steps, 0, -1):
        start, end = (torch.tensor(each / steps, dtype=torch.float64) for each in (k, k - 1))
        signal, noise = path.signal(start), path.noise(start)
        exact = (noise - path.share * signal * 0.25) / (signal**2 * 0.25 + noise**2)
        x = path.step(x, exact * x, start, end)
    assert x.item() == pytest.approx(0.5, rel=0.01)


# RePaint's schedule.


def test_the_authors_schedule_asks_the_network_2410_times():
    moves = list(schedule(250, round(JUMP * 250), 10))
    assert sum(to < at for at, to in moves) == 2410
    assert sum(to - at for at, to in moves if to > at) == 2160
    assert moves[-1][1] == 0
    assert all(to == at for (_, to), (at, _) in pairwise(moves))


def test_without_resampling_the_schedule_is_a_plain_solver():
    assert list(schedule(30, 1, 1)) == [(k, k - 1) for k in range(30, 0, -1)]


# The model.


class Correlated:
    """Stands in for the joint network: the exact prediction for two latents of unit variance, correlated by `rho`."""

    def __init__(self, rho: float) -> None:
        self.covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)

    def __call__(self, x: Tensor, times: Tensor, path: Path) -> Tensor:
        """E[eps - share z | x]; a clean latent has no noise, and its own prediction is not used."""
        signal, noise = path.signal(times), path.noise(times)
        cross = self.covariance * signal[:, None, :]  # of z with x
        own = signal[:, :, None] * cross + torch.diag_embed(noise**2)
        z = (cross @ torch.linalg.solve(own, x[..., None]))[..., 0]
        return (x - signal * z) / noise.clamp(min=1e-9) - path.share * z


def two_latents(switches: dict[str, object], steps: int, rho: float) -> MLD:
    model = tiny(type("Two", (MLD,), switches), "12", latent_size=1, prior_steps=steps)
    del model.prior
    model.prior = Correlated(rho)
    return model


@pytest.mark.parametrize(
    "switches", [{}, {"diffusion": "variance preserving"}, {"resamples": 3}], ids=["mld", "mld:vp", "mld:repaint"]
)
def test_the_other_latent_follows_its_conditional_law(switches: dict[str, object]):
    rho, rows = 0.8, 8192
    model = two_latents(switches, 500 if "diffusion" in switches else 60, rho)
    draws = Draws("conditional", rows=rows)
    z = draws.normal("given", 2).double()
    known = torch.tensor([True, False]).expand(rows, -1)
    found = model.solve(z, known, Doubled(draws))
    assert torch.equal(found[:, 0], z[:, 0])
    left = found[:, 1] - rho * z[:, 0]
    assert left.mean().abs().item() < 4 * 0.6 / math.sqrt(rows)
    assert left.std().item() == pytest.approx(math.sqrt(1 - rho**2), rel=0.04)


@pytest.mark.parametrize("switches", [{}, {"diffusion": "variance preserving"}], ids=["mld", "mld:vp"])
def test_both_latents_follow_their_joint_law(switches: dict[str, object]):
    rho, rows = 0.8, 8192
    model = two_latents(switches, 500 if "diffusion" in switches else 60, rho)
    none = torch.zeros(rows, 2, dtype=torch.bool)
    found = model.solve(torch.zeros(rows, 2).double(), none, Doubled(Draws("joint", rows=rows)))
    assert torch.allclose(torch.cov(found.T), model.prior.covariance, atol=0.06)


def test_a_given_latent_that_is_noised_like_the_others_would_be_found():
    """The conditional test can fail: deaf to what is given, the other latent is independent of it."""
    model, rows = two_latents({}, 60, 0.0), 8192
    draws = Draws("conditional", rows=rows)
    z = draws.normal("given", 2).double()
    found = model.solve(z, torch.tensor([True, False]).expand(rows, -1), Doubled(draws))
    assert (found[:, 1] - 0.8 * z[:, 0]).std().item() > 1.2


class Doubled:
    """Draws in float64."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def normal(self, name: str, *shape: int) -> Tensor:
        return self._draws.normal(name, *shape).double()


@pytest.mark.parametrize("switches", [{}, {"diffusion": "variance preserving"}], ids=["mld", "mld:vp"])
def test_the_loss_is_on_the_noised_latents_alone_each_at_its_time(switches: dict[str, object]):
    """Against loops over rows and modalities."""
    model, rows = tiny(type("Loss", (MLD,), switches)), 4
    z = Draws("z", rows=rows).normal("z", 12).double()
    clean = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0]], dtype=torch.bool)
    found = model.diffusion_loss(z, clean, Doubled(Draws("loss", rows=rows)))
    draws = Draws("loss", rows=rows)
    logit, noise = draws.normal("prior time").double(), draws.normal("prior noise", 12).double()
    t = torch.special.ndtr(logit) if switches else torch.sigmoid(logit)
    for r in range(rows):
        x, times = z[r].clone(), torch.zeros(3, dtype=torch.float64)
        for m in (m for m in range(3) if not clean[r, m]):
            own, times[m] = slice(4 * m, 4 * m + 4), t[r]
            x[own] = model.path.signal(t[r]) * z[r, own] + model.path.noise(t[r]) * noise[r, own]
        predicted = model.prior(x[None], times[None], model.path)[0]
        errors = [
            (predicted[d] - (noise[r, d] - (0 if switches else 1) * z[r, d])) ** 2
            for d in range(12)
            if not clean[r, d // 4]
        ]
        assert found[r].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-10)


class Rows:
    """A dataset of 500 rows."""

    def count(self, split: str) -> int:
        assert split == "train"
        return 500

    def rows(self, split: str, indices: Tensor) -> dict[str, Tensor]:
        return {name: Draws("rows", rows=500).normal(name, 6).double()[indices] for name in "123"}


def test_the_second_stage_begins_with_latents_of_mean_zero_and_variance_one():
    model, data = tiny(MLD), Rows()
    model.begin("autoencoders", data)
    assert torch.equal(model.spread, torch.ones(3, 4).double())
    model.begin("diffusion", data)
    whole = data.rows("train", torch.arange(500))
    z = model.standardised(model.observe(whole)[0])
    assert torch.allclose(z.mean(0), torch.zeros(12).double(), atol=1e-12)
    assert torch.allclose(z.std(0), torch.ones(12).double(), atol=1e-12)
    own = model.encode(model.observe(whole)[0])[0]
    for k, name in enumerate("123"):  # and decoders hear the latents as they were
        told = model.decoder_input(z, [name], Draws("decode", rows=500), False)[0]
        assert torch.allclose(told, own[:, k])
