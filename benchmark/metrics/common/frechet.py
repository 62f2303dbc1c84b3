"""The Fréchet distance between Gaussian fits, and its standard error; float64, roots by symmetric eigenvalues.

d = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2)). Source: Dowson and Landau, 1982; as FID: Heusel et al.,
2017. It is biased upwards by about 1 / rows, so that only distances of one number of rows compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """mean: (size,); covariance: (size, size), unbiased; float64."""

    mean: Tensor
    covariance: Tensor


def fit(rows: Tensor) -> Gaussian:
    """The Gaussian of rows (n, size), n > 1."""
    rows = rows.double()
    centred = rows - rows.mean(0)
    return Gaussian(rows.mean(0), centred.T @ centred / (len(rows) - 1))


def distance(first: Gaussian, second: Gaussian) -> float:
    """In squared units of the features; 0 for equal Gaussians, singular ones included."""
    root = _root(first.covariance)
    cross = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * cross
    return ((first.mean - second.mean).square().sum() + spread).clamp(min=0).item()


def influence(rows: Tensor, own: Gaussian, other: Gaussian) -> Tensor:
    """What each of the rows behind `own` adds to the distance from `other`, (n,), with mean 0: the delta method.

    The derivative by the mean is 2 (m1 - m2), and by the covariance I - T, where T carries `own` onto `other`.
    """
    centred = rows.double() - own.mean
    pull = torch.eye(len(own.mean), dtype=torch.float64, device=rows.device) - _transport(own, other)
    found = 2 * centred @ (own.mean - other.mean) + ((centred @ pull) * centred).sum(1)
    return found - found.mean()


def _transport(own: Gaussian, other: Gaussian) -> Tensor:
    """S1^(-1/2) (S1^(1/2) S2 S1^(1/2))^(1/2) S1^(-1/2), where S1 has a spread; 0 elsewhere."""
    root = _root(own.covariance)
    inverse = torch.linalg.pinv(root, hermitian=True, rtol=1e-6)
    return inverse @ _root(root @ other.covariance @ root) @ inverse


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
