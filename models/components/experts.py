"""Gaussian experts N(mean_m, diag exp(log_variance_m)), and their aggregation into one diagonal Gaussian.

Every rule of aggregation maps `(mean, log_variance, given)` of shapes `(rows, M, D)`, `(rows, M, D)`, `(rows, M)` to
the `(mean, log_variance)` of the pooled Gaussian, both `(rows, D)`. `given` is boolean and must have at
least one True per row. No rule adds an N(0, I) expert: the prior is learned.

With `detach_own` both have the shape `(M, rows, D)`: M times the same values, where the gradient of the
j-th does not reach expert j (MUNI, Eqs. 11 and 14).
"""

from functools import partial

import torch
from torch import Tensor


def gaussian(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the log-variance that stand side by side in a network's output (..., 2 D), each (..., D); standard
    deviations stay between e^-7 and e^3."""
    mean, log_variance = parameters.chunk(2, dim=-1)
    return mean, log_variance.clamp(-14.0, 6.0)


def divergence_from_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) per dimension."""
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance)


def sampled(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A sample of N(mean, diag exp(log_variance)), by standard normal noise; shapes broadcast."""
    return torch.addcmul(mean, torch.exp(0.5 * log_variance), noise)


def product(mean: Tensor, log_variance: Tensor, given: Tensor, detach_own: bool = False) -> tuple[Tensor, Tensor]:
    """Product of experts: precisions add (MVAE, Wu and Goodman 2018)."""
    precision = torch.exp(-log_variance) * given[..., None]
    added = _AddedWithoutOwn.apply if detach_own else partial(torch.sum, dim=-2)
    total, weighted_total = added(precision), added(precision * mean)
    return weighted_total / total, -total.log()


class _AddedWithoutOwn(torch.autograd.Function):
    """The sum over experts once per target, (rows, M, D) -> (M, rows, D); target j's gradient skips expert j."""

    @staticmethod
    def forward(ctx, share: Tensor) -> Tensor:
        return share.sum(-2).expand(share.shape[-2], *share.shape[:-2], share.shape[-1])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return (gradient.sum(0) - gradient).movedim(0, -2)


def hellinger(mean: Tensor, log_variance: Tensor, given: Tensor, detach_own: bool = False) -> tuple[Tensor, Tensor]:
    """Moments of the Hoelder pool p(z) ~ (sum_m sqrt q_m(z))^2 (HELVAE, Vo and Valera 2026).

    The square expands into a mixture over pairs i <= j of Gaussians sqrt(q_i q_j), each weighted by its
    Bhattacharyya coefficient, twice where i < j: one scalar per pair, a product over dimensions. The
    mixture's mean and diagonal variance are matched.
    """
    if detach_own:  # a coefficient ties all dimensions of two experts together: each target needs its own pool
        mean, log_variance = _own_detached(mean), _own_detached(log_variance)
    first, second = torch.triu_indices(mean.shape[-2], mean.shape[-2], device=mean.device)
    mean_i, mean_j = mean.index_select(-2, first), mean.index_select(-2, second)
    log_i, log_j = log_variance.index_select(-2, first), log_variance.index_select(-2, second)
    log_sum = torch.logaddexp(log_i, log_j)
    gap = (mean_i - mean_j).square()
    # log of sqrt(2 sd_i sd_j / (var_i + var_j)) exp(-gap / 4 (var_i + var_j)), summed over dimensions
    log_coefficient = 0.5 * (_LOG2 + 0.5 * (log_i + log_j) - log_sum) - 0.25 * gap * torch.exp(-log_sum)
    log_weight = log_coefficient.sum(-1) + _LOG2 * (first != second)
    log_weight = log_weight.masked_fill(~(given[..., first] & given[..., second]), -torch.inf)
    weight = torch.softmax(log_weight, dim=-1)[..., None]
    share_i = torch.exp(log_j - log_sum)  # weight of mean_i in the pair's mean: var_j / (var_i + var_j)
    pair_mean = mean_j + share_i * (mean_i - mean_j)
    pair_variance = torch.exp(_LOG2 + log_i + log_j - log_sum)
    pooled = (weight * pair_mean).sum(-2)
    spread = (pair_mean - pooled[..., None, :]).square()
    return pooled, (weight * (pair_variance + spread)).sum(-2).log()


def _own_detached(parameters: Tensor) -> Tensor:
    """(rows, M, D) -> (M, rows, M, D), expert j detached in the j-th copy."""
    own = torch.eye(parameters.shape[-2], dtype=torch.bool, device=parameters.device)
    return torch.where(own[:, None, :, None], parameters.detach(), parameters)


_LOG2 = 0.6931471805599453
