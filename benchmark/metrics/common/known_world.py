"""Expected scores where the world is known: factors that are independent mixtures of unit normals, equally weighted.

The derivations are in docs/gaussian_mixture.md. All arithmetic is float64 on the CPU.
A world offers `means: {factor: (components, size)}` and `layout: {modality: {factor: slice}}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def variance(data: Any, modality: str) -> Tensor:
    """Variance of each coordinate of a modality, raw units squared."""
    parts = {at.start: _means(data, factor).var(0, correction=0) + 1 for factor, at in data.layout[modality].items()}
    return torch.cat([parts[start] for start in sorted(parts)])


def independent_mse(data: Any, source: str, target: str) -> float:
    """Expected squared difference of shared coordinates between independent rows: twice their variance."""
    return 2 * variance(data, target)[data.shared(source, target)[1].cpu()].mean().item()


def average_independent_mse(data: Any, pairs: Iterable[tuple[str, str]]) -> float | None:
    """`independent_mse` averaged over (source, target) pairs; None where the world is not known."""
    if not hasattr(data, "means"):
        return None
    values = [independent_mse(data, i, j) for i, j in pairs]
    return sum(values) / len(values)


def unknown_mse(data: Any, given: Iterable[str], source: str, target: str) -> float:
    """Expected squared difference of the coordinates that source and target share, when the target is a perfect
    sample given the `given` modalities: what those determine agrees, and the rest is independent."""
    known = determined(data, given)
    squares = variance(data, target) * 2
    for factor, at in data.layout[target].items():
        if factor in known:
            squares[at] = 0
    return squares[data.shared(source, target)[1].cpu()].mean().item()


def determined(data: Any, given: Iterable[str]) -> set[str]:
    """The factors that the given modalities hold."""
    return {factor for name in given for factor in data.layout[name]}


def mean_distance(data: Any, factors: Iterable[str]) -> float:
    """E|x - x'| for independent rows x, x' made of these factors.

    With S = |x - x'|^2, E sqrt(S) = (4 pi)^(-1/2) * integral of (1 - E exp(-s S)) s^(-3/2) ds, and the Laplace
    transform of S is a product over factors of an average over pairs of components.
    """
    step = 0.05
    log_s = torch.arange(-36, 36, step, dtype=torch.float64)  # the ends hold under 1e-7 of the integral
    s = log_s.exp()
    transform = torch.ones_like(s)
    for factor in factors:
        means = _means(data, factor)
        squares = torch.cdist(means, means).square().flatten()
        exponent = -squares * (s / (1 + 4 * s)).unsqueeze(1)
        transform = transform * exponent.exp().mean(1) * (1 + 4 * s).pow(-means.shape[1] / 2)
    return ((1 - transform) * (-log_s / 2).exp()).sum().item() * step / math.sqrt(4 * math.pi)


def sliced_floor(
    data: Any, modality: str, columns: slice, rows: int, order: int, directions: Callable[[int], Tensor]
) -> float:
    """Expected SW_order between two independent samples of `rows` real rows each."""
    floors = _w1_floor if order == 1 else _w2_squared_floor
    return floors(*_projected(data, modality, columns, directions), rows).mean().item() ** (1 / order)


def _projected(data: Any, modality: str, columns: slice, directions: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
    """A grid (points,) and on it the distribution functions (directions, points) of the projected modality.

    The characteristic function of a projection is a product over factors; its Fourier series on [-bound, bound]
    is exact to rounding, since it falls as exp(-t^2 / 2).
    """
    first, last, _ = columns.indices(sum(_means(data, factor).shape[1] for factor in data.layout[modality]))
    along = directions(last - first)
    centres = [
        _means(data, factor) @ along[at.start - first : at.stop - first]
        for factor, at in data.layout[modality].items()
        if first <= at.start and at.stop <= last
    ]
    bound = sum(centre.abs().max().item() for centre in centres) + 9
    k = torch.arange(1, math.ceil(9 * bound / math.pi) + 1, dtype=torch.float64)
    omega = k * math.pi / bound
    transform = (-omega.square() / 2).exp().unsqueeze(1).to(torch.complex128)
    for centre in centres:
        transform = transform * torch.exp(1j * omega.view(-1, 1, 1) * centre).mean(1)
    cosine, sine = transform.real / (k * math.pi).unsqueeze(1), transform.imag / (k * math.pi).unsqueeze(1)
    grid = torch.linspace(-bound, bound, 2001, dtype=torch.float64)
    phase = omega.unsqueeze(1) * grid
    end = torch.cos(math.pi * k).unsqueeze(1)
    below = 0.5 + grid / (2 * bound) + cosine.T @ phase.sin() - sine.T @ (phase.cos() - end)
    return grid, below.clamp(0, 1)


def _w1_floor(grid: Tensor, below: Tensor, rows: int) -> Tensor:
    """E W1 per direction: the integral of E|F_n - G_n|.

    n F_n and n G_n are binomial; the mean absolute difference of two Poisson counts with their variance
    L = n F (1 - F) is 2 L exp(-2 L) (I0(2 L) + I1(2 L)), which is right in the tails, where L is small, and tends
    to the normal value sqrt(4 L / pi) in the bulk.
    """
    spread = 2 * rows * below * (1 - below)
    gap = spread * (torch.special.i0e(spread) + torch.special.i1e(spread)) / rows
    return torch.trapezoid(gap, grid)


def _w2_squared_floor(grid: Tensor, below: Tensor, rows: int) -> Tensor:
    """E W2^2 per direction: (2 / n) times the sum of the variances of the n order statistics.

    The i-th is the quantile function at a Beta(i, n + 1 - i) variable. Its moments are taken by Gauss-Hermite
    quadrature after a change of variable to a standard normal, and the sum over i by interpolation between ranks
    that lie densely at both ends.
    """
    import numpy as np
    from scipy.special import betaincinv, ndtr

    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    tail = np.geomspace(1, (rows + 1) / 2, 120).round()
    ranks = np.unique(np.concatenate([tail, rows + 1 - tail]))
    levels = betaincinv(ranks[:, None], rows + 1 - ranks[:, None], ndtr(nodes))
    sums = []
    for curve in below.numpy():
        rising, first = np.unique(np.maximum.accumulate(curve), return_index=True)
        quantiles = np.interp(levels, rising, grid.numpy()[first])
        centred = quantiles - (quantiles @ weights)[:, None]
        sums.append(np.interp(np.arange(1, rows + 1), ranks, centred**2 @ weights).sum())
    return torch.tensor(sums, dtype=torch.float64) * 2 / rows


def _means(data: Any, factor: str) -> Tensor:
    return data.means[factor].double().cpu()
