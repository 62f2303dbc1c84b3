"""Objectives against independent re-implementations, closed forms and numerical integration."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from baselines.mopoe import MoPoE
from benchmark import registry
from benchmark.api import Modality
from benchmark.config import resolve
from benchmark.runtime import Draws
from models.components import latent
from models.components.experts import divergence_from_standard, gaussian, hellinger, product, sampled
from models.components.flow import elbo_weight, euler, logit_normal, matching_loss, scale_gradient
from models.components.latent import LatentModel
from models.muni import MUNI
from tests.models.latent_models import tiny

RULES = pytest.mark.parametrize("rule", [product, hellinger])
EVERY = [s for size in (1, 2, 3) for s in combinations(range(3), size)]


# The direct multimodal objective (Eq. 6), and MUNI's (Eq. 12), written out with loops.

REPEATS = 28  # copies of a row: each of the 7 subsets meets each of the 4 subsets of MUNI's prior once


class Repeated:
    """Draws in which every copy of a row gets the row's own noise, and the copies run through all subsets."""

    def __init__(self, rows: int) -> None:
        self.rows = REPEATS * rows
        self._draws = Draws("objective", rows=rows)
        self._uniforms = iter((torch.arange(self.rows) % 7 / 7, torch.arange(self.rows) // 7 % 4 / 4))

    def normal(self, name: str, *shape: int) -> Tensor:
        return self._draws.normal(name, *shape).double().repeat_interleave(REPEATS, 0)

    def uniform(self, name: str) -> Tensor:
        return next(self._uniforms) + 1 / 64


def written_out(
    model: LatentModel, batch: dict[str, Tensor], prior_subsets: list[tuple[int, ...]], detach_own: bool
) -> tuple[Tensor, Tensor]:
    """The objective's value, and a number whose gradient is the objective's, by loops over rows, subsets, targets."""
    rows, config = len(batch["1"]), model.config
    draws = Draws("objective", rows=rows)
    latent_noise = draws.normal("latent", config.latent_size).double()
    times = 1 / (1 + torch.exp(-draws.normal("reconstruction time", 3).double()))
    decoder_noise = draws.normal("reconstruction noise", 3, 6).double()
    prior_times = 1 / (1 + torch.exp(-draws.normal("prior time").double()))
    prior_noise = draws.normal("prior noise", config.latent_size).double()
    x = [(batch[name] - 0.5) / 2.0 for name in "123"]
    mean, log_variance = model.families[0].encoder(torch.stack(x))
    frozen = {name: weight.detach() for name, weight in model.prior.named_parameters()}

    def posterior(r: int, subset: tuple[int, ...], without_gradient: int | None = None) -> tuple[Tensor, Tensor]:
        means = {m: mean[m, r].detach() if m == without_gradient else mean[m, r] for m in subset}
        logs = {m: log_variance[m, r].detach() if m == without_gradient else log_variance[m, r] for m in subset}
        variance = 1 / sum(1 / torch.exp(logs[m]) for m in subset)
        return variance * sum(means[m] / torch.exp(logs[m]) for m in subset), variance

    value = surrogate = torch.zeros((), dtype=torch.float64)
    for r in range(rows):
        for subset in EVERY:
            for j in range(3):
                centre, variance = posterior(r, subset, j if detach_own else None)
                z = centre + variance.sqrt() * latent_noise[r]
                t, noise = times[r, j], decoder_noise[r, j]
                x_t = (1 - t) * x[j][r] + t * noise
                one = slice(j, j + 1)
                condition = model.families[0].decoder.condition(z[None, None], one)
                velocity = model.families[0].decoder(x_t[None, None], t[None, None], condition, one)
                loss = ((velocity[0, 0] - (noise - x[j][r])) ** 2).mean() / (3 * len(EVERY) * rows)
                value, surrogate = value + loss, surrogate + loss
        for subset in prior_subsets:
            centre, variance = posterior(r, subset)
            z = centre + variance.sqrt() * latent_noise[r]
            t, noise = prior_times[r], prior_noise[r]
            density = torch.exp(-(torch.log(t / (1 - t)) ** 2) / 2) / math.sqrt(2 * math.pi) / (t * (1 - t))
            weight = min((1 - t) / (t * density), torch.tensor(100.0))

            def matching(z: Tensor, network: Callable, t: Tensor = t, noise: Tensor = noise) -> Tensor:
                return ((network((1 - t) * z + t * noise, t) - (noise - z)) ** 2).mean()

            trains_prior = matching(z.detach(), lambda z_t, t: model.prior(z_t[None, None], t[None, None])[0, 0])
            trains_encoder = matching(
                z, lambda z_t, t: functional_call(model.prior, frozen, (z_t[None, None], t[None, None]))[0, 0]
            )
            entropy = (1 + math.log(2 * math.pi) + torch.log(variance)).mean() / 2
            share, scale = config.prior_weight / (len(prior_subsets) * rows), config.encoder_grad_scale
            value = value + share * (trains_prior - scale * entropy)
            surrogate = surrogate + share * (trains_prior + scale * weight * trains_encoder - scale * entropy)
    return value, surrogate


@pytest.mark.parametrize(
    ("method", "prior_subsets", "detach_own"),
    [
        (MoPoE, EVERY, False),
        (MUNI, [(0, 1, 2), (0, 1), (0, 2), (1, 2)], True),
    ],
    ids=["mopoe is the direct objective", "muni"],
)
def test_loss_and_gradients_equal_the_objective_written_out(method, prior_subsets, detach_own):
    model = tiny(method)
    batch = {name: Draws("batch", rows=3).normal(name, 6).double() for name in "123"}
    copies = {name: rows.repeat_interleave(REPEATS, 0) for name, rows in batch.items()}
    loss, _ = model.loss(copies, "joint", Repeated(3))
    value, surrogate = written_out(model, batch, prior_subsets, detach_own)
    assert loss.item() == pytest.approx(value.item(), rel=1e-12)
    parameters = dict(model.named_parameters())
    # A weight that neither uses would raise here: there is none.
    found, expected = (torch.autograd.grad(scalar, list(parameters.values())) for scalar in (loss, surrogate))
    for name, one, other in zip(parameters, found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12), name
        assert other.abs().max() > 1e-6, name


@pytest.mark.parametrize("modalities", [2, 3])
def test_mvtcae_is_its_papers_objective_over_the_weight_of_a_reconstruction(modalities: int):
    """(M - a)/M rec + b ((1 - a) KL(q || p) + a/M sum of KL(q || q_m)), with KL(q || p) as here: flow and entropy."""
    model = tiny(
        registry.load("method", "mvtcae", {"beta": 3.0, "alpha": 0.7}), "123"[:modalities], prior_weight=1.0
    ).float()
    batch = {name: Draws("batch", rows=5).normal(name, 6) for name in model.names}
    loss, parts = model.loss(batch, "joint", Draws("mvtcae", rows=5))
    mean, log_variance = model.encode(model.observe(batch)[0])
    experts = Normal(mean, torch.exp(0.5 * log_variance))
    precision = torch.exp(-log_variance).sum(1)
    joint = Normal((torch.exp(-log_variance) * mean).sum(1) / precision, precision.rsqrt())
    conditional = kl_divergence(joint.expand((modalities, 5, 4)), transposed(experts))
    a, b = 0.7, 3.0 * 4 / 6  # latents have 4 dimensions, and rows 6
    weight = (modalities - a) / modalities
    objective = weight * parts["reconstruction"] + b * (
        (1 - a) * -joint.entropy().mean(-1).mean() + a / modalities * conditional.mean(-1).sum(0).mean()
    )
    # The prior's network learns at its own rate: its loss is not weighed.
    assert loss.item() == pytest.approx((objective / weight + parts["prior"]).item(), rel=1e-6)
    assert parts["bottleneck"] > 1


def transposed(experts: Normal) -> Normal:
    """(rows, M, latent) -> (M, rows, latent)."""
    return Normal(experts.loc.transpose(0, 1), experts.scale.transpose(0, 1))


def test_muni_is_not_the_direct_objective():
    """The equality above can fail: the same comparison, with the wrong method."""
    model = tiny(MUNI)
    batch = {name: Draws("batch", rows=3).normal(name, 6).double() for name in "123"}
    copies = {name: rows.repeat_interleave(REPEATS, 0) for name, rows in batch.items()}
    loss, _ = model.loss(copies, "joint", Repeated(3))
    value, _ = written_out(model, batch, EVERY, False)
    assert abs(loss.item() - value.item()) > 1e-3 * value.item()


# The prior term: the fixed point of design, by the code that trains.


class ExactVelocity(nn.Module):
    """E[noise - z | z_t] for z ~ N(0, variance)."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        t = t[..., None]
        return (t - (1 - t) * self.variance) / ((1 - t) ** 2 * self.variance + t**2) * x


def converged(variance: float, rows: int = 4096, steps: int = 200, size: int = 8) -> tuple[Tensor, Tensor]:
    """Mean and variance, per dimension, of a free posterior under the prior term alone: averages of the later half."""
    model = tiny(MoPoE, "1", latent_size=size).float()
    model.prior = ExactVelocity(variance)
    mean, log_variance = (torch.ones(size, requires_grad=True) for _ in range(2))
    scale = model.config.encoder_grad_scale
    optimizer = torch.optim.SGD([mean, log_variance], lr=0.5 * size / scale)
    only = torch.ones(rows, 1, dtype=torch.bool)
    late = []
    for step in range(steps):
        draws = Draws("fixed point", step, rows=rows, block=rows)
        flow, entropy = model.prior_terms(
            mean.expand(rows, 1, -1), log_variance.expand(rows, 1, -1), only, draws.normal("latent", size), draws
        )
        optimizer.zero_grad()
        (flow + scale * entropy).backward()
        optimizer.step()
        if step >= steps // 2:
            late.append(torch.stack([mean.detach(), log_variance.detach().exp()]).clone())
    mean, variance = torch.stack(late).mean(0)
    return mean, variance


def holds(mean: Tensor, found: Tensor, variance: float) -> bool:
    """Whether every dimension is within 2 % of N(0, variance); the bound of the mean is in standard deviations."""
    return bool((mean.abs() < 0.02 * math.sqrt(variance)).all() and ((found / variance - 1).abs() < 0.02).all())


@pytest.mark.parametrize("variance", [0.49, 1.0, 2.25])
def test_the_posterior_converges_to_an_exact_prior(variance: float):
    """The clip moves the variance by 0.1 to 0.5 %, and the sampling by about 0.4 %: 2 % is decided."""
    assert holds(*converged(variance), variance)


@pytest.mark.parametrize(
    "planted",
    [
        lambda t: torch.ones_like(t),
        lambda t: (1 - t) / t,
        lambda t: 0.5 * elbo_weight(t),
        lambda t: elbo_weight(1 - t),
        lambda t: elbo_weight(t, ceiling=3.0),
    ],
    ids=["no weight", "density of t forgotten", "half", "time reversed", "clipped where the gradient is"],
)
def test_a_wrong_weight_moves_the_fixed_point(monkeypatch: pytest.MonkeyPatch, planted: Callable):
    monkeypatch.setattr(latent, "elbo_weight", planted)
    mean, found = converged(1.0, steps=100)
    assert not holds(mean, found, 1.0)
    assert not (found.mean() - 1).abs() < 0.03  # not by its noise


def test_an_entropy_summed_beside_an_averaged_flow_is_found(monkeypatch: pytest.MonkeyPatch):
    """It over-weights the entropy by the number of dimensions, 8."""
    terms = LatentModel.prior_terms

    def summed(self: LatentModel, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        flow, entropy = terms(self, *arguments)
        return flow, 8 * entropy

    monkeypatch.setattr(LatentModel, "prior_terms", summed)
    _, found = converged(1.0, steps=100)
    assert found.min() > 4


def test_rows_with_no_prior_subset_have_no_prior_term():
    """Each row's share is its own, over all rows; a row without a subset gives and gets nothing."""
    model, rows = tiny(MUNI), 6
    mean, log_variance = (part.requires_grad_() for part in experts(rows, 3, 4))
    subset = torch.tensor([[True, True, True], [False, False, False]] * 3)
    noise = Draws("some rows", rows=rows).normal("latent", 4).double()

    def terms(subset: Tensor) -> list[Tensor]:
        draws = Draws("some rows", rows=rows)
        draws.normal = lambda name, *shape: Draws.normal(draws, name, *shape).double()
        return list(model.prior_terms(mean, log_variance, subset, noise, draws))

    one_by_one = [terms(subset & (torch.arange(rows) == r)[:, None]) for r in range(rows)]
    for found, single in zip(terms(subset), zip(*one_by_one, strict=True), strict=True):
        assert found.item() == pytest.approx(sum(part.item() for part in single), rel=1e-12)
        assert [part.item() != 0 for part in single] == [True, False] * 3
        gradients = torch.autograd.grad(
            found, (mean, log_variance), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for gradient in gradients:
            assert torch.equal(gradient[1::2], torch.zeros(3, 3, 4))


# Pooled posteriors.

MEANS = torch.tensor([-1.3, 0.7, 2.1], dtype=torch.float64)
VARIANCES = torch.tensor([0.4, 2.5, 0.09], dtype=torch.float64)


def unnormalised(rule: Callable, densities: list[np.ndarray]) -> np.ndarray:
    """The pool's density up to a constant, from the experts' densities on a grid."""
    return np.prod(densities, axis=0) if rule is product else sum(map(np.sqrt, densities)) ** 2


@RULES
@pytest.mark.parametrize("experts", [[0, 1], [1, 2], [0, 2], [0, 1, 2]], ids=str)
def test_one_dimensional_pool_agrees_with_integration(rule: Callable, experts: list[int]):
    grid = np.linspace(-16, 18, 200_001)
    density = unnormalised(rule, [norm.pdf(grid, MEANS[m], VARIANCES[m].sqrt()) for m in experts])
    density /= density.sum()
    expected_mean = (density * grid).sum()
    expected_variance = (density * (grid - expected_mean) ** 2).sum()
    given = torch.tensor([m in experts for m in range(3)])
    mean, log_variance = rule(MEANS[:, None], VARIANCES.log()[:, None], given)
    assert mean.item() == pytest.approx(expected_mean, abs=1e-6)
    assert log_variance.exp().item() == pytest.approx(expected_variance, abs=1e-6)


@pytest.mark.parametrize("experts", [2, 3])
def test_two_dimensional_hellinger_agrees_with_integration(experts: int):
    """The Bhattacharyya coefficient couples the dimensions: the pool is not the pool of each dimension."""
    means = torch.tensor([[-0.6, 0.4], [0.7, 1.2], [0.1, -1.5]], dtype=torch.float64)[:experts]
    variances = torch.tensor([[0.5, 1.3], [1.1, 0.3], [0.2, 0.8]], dtype=torch.float64)[:experts]
    axis = np.linspace(-11, 11, 1101)
    density = unnormalised(
        hellinger,
        [
            np.outer(norm.pdf(axis, m[0], v[0] ** 0.5), norm.pdf(axis, m[1], v[1] ** 0.5))
            for m, v in zip(means.numpy(), variances.numpy(), strict=True)
        ],
    )
    density /= density.sum()
    given = torch.ones(experts, dtype=torch.bool)
    mean, log_variance = hellinger(means, variances.log(), given)
    apart = hellinger(means.T[:, :, None], variances.log().T[:, :, None], given.expand(2, -1))
    for d in range(2):
        marginal = density.sum(1 - d)
        expected = (marginal * axis).sum()
        assert mean[d].item() == pytest.approx(expected, abs=1e-6)
        assert log_variance[d].exp().item() == pytest.approx((marginal * (axis - expected) ** 2).sum(), abs=1e-6)
        assert abs(apart[0][d, 0].item() - expected) > 1e-3


def experts(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = Draws("experts", seed, rows=shape[0])
    return 2 * draws.normal("mean", *shape[1:]).double(), draws.normal("log variance", *shape[1:]).double()


@RULES
def test_a_single_expert_returns_itself(rule: Callable):
    mean, log_variance = experts(5, 3, 4)
    for m in range(3):
        pooled, log_pooled = rule(mean, log_variance, torch.eye(3, dtype=torch.bool)[m].expand(5, -1))
        assert torch.allclose(pooled, mean[:, m], rtol=1e-12)
        assert torch.allclose(log_pooled, log_variance[:, m], atol=1e-12)


@pytest.mark.parametrize(("rule", "sharpening"), [(product, 3.0), (hellinger, 1.0)])
def test_agreeing_experts(rule: Callable, sharpening: float):
    """The product divides their variance by their number; the Hellinger pool is the expert."""
    mean, log_variance = (part[:, :1].expand(-1, 3, -1) for part in experts(5, 1, 4))
    pooled, log_pooled = rule(mean, log_variance, torch.ones(5, 3, dtype=torch.bool))
    assert torch.allclose(pooled, mean[:, 0])
    assert torch.allclose(log_pooled, log_variance[:, 0] - math.log(sharpening))


def test_far_experts_pool_to_the_moments_of_their_mixture():
    mean, log_variance = experts(5, 3, 4)
    mean = mean + torch.tensor([-100.0, 0.0, 170.0])[:, None]
    pooled, log_pooled = hellinger(mean, log_variance, torch.ones(5, 3, dtype=torch.bool))
    mixture = mean.mean(1)
    assert torch.allclose(pooled, mixture)
    assert torch.allclose(log_pooled.exp(), log_variance.exp().mean(1) + (mean - mixture[:, None]).square().mean(1))


@RULES
def test_the_order_of_experts_does_not_matter(rule: Callable):
    mean, log_variance = experts(5, 3, 4)
    given = torch.ones(5, 3, dtype=torch.bool)
    turned = rule(mean[:, [2, 0, 1]], log_variance[:, [2, 0, 1]], given)
    assert all(torch.allclose(one, other) for one, other in zip(rule(mean, log_variance, given), turned, strict=True))


@RULES
@pytest.mark.parametrize("extreme", [1e15, -1e15, 0.0])
@pytest.mark.parametrize("log_extreme", [-14.0, 6.0])
def test_experts_that_are_not_given_do_not_count(rule: Callable, extreme: float, log_extreme: float):
    """In float32, whatever they say: no value and no gradient."""
    clean = [part.float() for part in experts(5, 3, 4)]
    mean, log_variance = (part.clone() for part in clean)
    mean[:, 1], log_variance[:, 1] = extreme, log_extreme
    mean.requires_grad_(), log_variance.requires_grad_()
    pooled = rule(mean, log_variance, torch.tensor([True, False, True]).expand(5, -1))
    alone = rule(*(part[:, [0, 2]] for part in clean), torch.ones(5, 2, dtype=torch.bool))
    assert all(torch.allclose(one, other, rtol=1e-5) for one, other in zip(pooled, alone, strict=True))
    for gradient in torch.autograd.grad(sum(part.square().sum() for part in pooled), (mean, log_variance)):
        assert torch.equal(gradient[:, 1], torch.zeros(5, 4)) and bool((gradient[:, [0, 2]] != 0).all())


@RULES
def test_no_overflow_between_the_bounds_of_the_log_variance(rule: Callable):
    """float32 against float64 at every mix of log-variances -14, -4 and 6, in the 48 dimensions of the paper."""
    levels = torch.tensor([-14.0, -4.0, 6.0])
    log_variance = torch.cartesian_prod(levels, levels, levels)[:, :, None].expand(-1, -1, 48).clone()
    mean = 10 * Draws("overflow", rows=27).normal("mean", 3, 48)
    given = torch.ones(27, 3, dtype=torch.bool)
    mean.requires_grad_(), log_variance.requires_grad_()
    pooled = rule(mean, log_variance, given)
    exact = rule(mean.double(), log_variance.double(), given)
    for one, other in zip(pooled, exact, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-4)
    for gradient in torch.autograd.grad(sum(part.sum() for part in pooled), (mean, log_variance)):
        assert torch.isfinite(gradient).all()


# Flow matching.


def test_an_experts_output_its_samples_and_its_divergence():
    raw = 4 * Draws("expert", rows=2000).normal("raw", 6).double()
    raw[0, 3:], raw[1, 3:] = 100, -100
    mean, log_variance = gaussian(raw)
    assert torch.equal(mean, raw[:, :3]) and (log_variance.max(), log_variance.min()) == (6, -14)
    law = Normal(mean, torch.exp(log_variance / 2))
    expected = kl_divergence(law, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    assert torch.allclose(divergence_from_standard(mean, log_variance), expected, rtol=1e-9, atol=1e-12)
    noise = Draws("expert", rows=2000).normal("noise", 3).double()
    standard = torch.special.ndtr(noise)  # a sample's place in its law is its noise's in the standard one
    assert torch.allclose(law.cdf(sampled(mean, log_variance, noise)), standard, atol=1e-6)


def test_elbo_weight_is_its_formula():
    t = np.linspace(0.07, 0.99, 500)
    logit = np.log(t / (1 - t))
    density = norm.pdf(logit) / (t * (1 - t))  # of logit-normal(0, 1)
    expected = (1 - t) / (t * density)
    assert expected.max() < 100
    assert np.allclose(elbo_weight(torch.tensor(t)), expected, rtol=1e-10)
    assert elbo_weight(torch.tensor([1e-3, 0.05])).tolist() == [100.0, 100.0]
    assert torch.isfinite(elbo_weight(torch.tensor([0.0, 1.0]))).all()


def weighted_loss(mean: float, variance: float, prior: float, ceiling: float) -> float:
    """Integral over the logit of t of density times weight times the exact velocity's loss on N(mean, variance).

    The loss is quadratic, so two points each for z and the noise carry its expectation.
    """
    logit = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    t = torch.sigmoid(logit)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    corners = [(mean + math.sqrt(variance) * z, noise) for z in sign for noise in sign]
    loss = (
        sum(
            matching_loss(ExactVelocity(prior), z.expand(len(t), 1), noise.expand(len(t), 1), t) for z, noise in corners
        )
        / 4
    )
    return integrate.trapezoid(norm.pdf(logit) * (elbo_weight(t, ceiling) * loss).numpy(), logit.numpy())


@pytest.mark.parametrize(("mean", "variance", "prior"), [(0.8, 0.3, 1.0), (-0.5, 2.0, 0.49), (1.5, 0.1, 2.25)])
def test_the_weighted_loss_is_the_negative_log_likelihood(mean: float, variance: float, prior: float):
    """Up to a constant: differences are those of E[-log p(z)] for p = N(0, prior)."""
    found = weighted_loss(mean, variance, prior, math.inf) - weighted_loss(0.0, prior, prior, math.inf)
    assert found == pytest.approx((mean**2 + variance - prior) / (2 * prior), rel=1e-4)


KEPT = {1e-3: 0.328, 0.01: 0.811, 0.05: 0.954, 0.25: 0.9904, 1.0: 0.9976, 2.25: 0.9989}  # by the prior's variance


@pytest.mark.parametrize("prior", KEPT)
def test_clipping_keeps_the_stated_share_of_the_gradient(prior: float):
    whole, clipped = (
        weighted_loss(1.0, prior, prior, ceiling) - weighted_loss(0.0, prior, prior, ceiling)
        for ceiling in (math.inf, 100.0)
    )
    assert clipped / whole == pytest.approx(KEPT[prior], abs=5e-4)
    if prior <= 0.05 or prior == 1:
        assert (f"{100 * KEPT[prior]:.1f} %" if prior == 1 else f"{100 * KEPT[prior]:.0f} %") in elbo_weight.__doc__


def test_matching_loss_of_a_velocity_that_is_known():
    x, noise = torch.tensor([[[1.0, 2.0]], [[0.0, 4.0]]]), torch.tensor([[[3.0, 2.0]], [[1.0, 0.0]]])
    t = torch.tensor([[0.25], [0.5]])
    seen = {}

    def velocity(x_t: Tensor, time: Tensor) -> Tensor:
        seen.update(x_t=x_t, time=time)
        return torch.zeros_like(x_t)

    loss = matching_loss(velocity, x, noise, t)
    assert torch.equal(loss, torch.tensor([[2.0], [8.5]]))  # mean of (noise - x)^2
    assert torch.equal(seen["x_t"], torch.tensor([[[1.5, 2.0]], [[0.5, 2.0]]]))
    assert torch.equal(seen["time"], t)
    assert matching_loss(lambda x_t, time: noise - x, x, noise, t).abs().max() == 0


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_euler_is_exact_towards_a_point(steps: int):
    point = torch.tensor([3.0, -2.0])
    noise = Draws("euler", rows=16).normal("noise", 2)[None]
    found = euler(lambda x, t: (x - point) / t, noise, steps)
    assert torch.allclose(found, point.expand(1, 16, 2), atol=1e-5)


def test_euler_between_gaussians_converges_at_first_order():
    """The exact flow from N(0, 1) to N(0, s^2) multiplies by s; the error halves when the steps double."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[None, :, None]
    errors = [(euler(ExactVelocity(0.25), noise, steps) - 0.5 * noise).abs().max().item() for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1) and errors[1] / errors[2] == pytest.approx(2, abs=0.05)
    assert errors[2] < 0.02


def test_euler_leaves_the_noise_as_it_was_and_asks_for_no_gradient():
    noise = torch.ones(1, 2, 3)
    weight = torch.ones(3, requires_grad=True)
    assert not euler(lambda x, t: weight * x, noise, 4).requires_grad
    assert torch.equal(noise, torch.ones(1, 2, 3))


def test_times_have_the_logit_normal_density():
    """The share of times below each quantile's image is the integral of r(t) up to there."""
    shares = np.array([0.01, 0.1, 0.3, 0.5, 0.8, 0.99])
    times = logit_normal(torch.tensor(norm.ppf(shares))).numpy()
    for share, time in zip(shares, times, strict=True):
        below, _ = integrate.quad(lambda t: norm.pdf(np.log(t / (1 - t))) / (t * (1 - t)), 0, time)
        assert below == pytest.approx(share, abs=1e-7)


def test_scale_gradient_is_the_identity_forward_and_a_factor_backward():
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    factor = torch.tensor([[10.0], [0.0]], requires_grad=True)
    scaled = scale_gradient(x, factor)
    assert torch.equal(scaled, x)
    (scaled**2).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[20.0, -40.0], [0.0, 0.0]]))
    assert factor.grad is None


def test_private_latents_come_from_the_auxiliary_prior_given_others_and_from_the_prior_given_nothing():
    card = registry.card("dataset", "gaussian_mixture")
    config = resolve(card, None, "smoke", ["latent_size=4", "private_size=3"]).config
    model = registry.load("method", "mmvaeplus")([Modality(name, (6,)) for name in "123"], config)
    with torch.no_grad():
        model.auxiliary.copy_(torch.randn(3, 1, 3))
    scale = model.auxiliary_scale()
    assert torch.allclose(scale.mean(-1), torch.ones(3, 1)) and scale.max() > 2 * scale.min()
    z = torch.zeros(5, 4)
    plain, scaled = (
        model.decoder_input(z, ["3", "1"], Draws("private", rows=5), conditional) for conditional in (False, True)
    )
    drawn = torch.stack([Draws("private", rows=5).normal(f"private {name}", 3) for name in "31"])
    assert torch.equal(plain[..., 4:], drawn)
    assert torch.allclose(scaled[..., 4:], drawn * scale[[2, 0]])
    assert torch.equal(plain[..., :4], scaled[..., :4])
