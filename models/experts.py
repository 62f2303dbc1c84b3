"""Aggregation of Gaussian experts N(mean_m, diag exp(log_variance_m)) into one diagonal Gaussian.

Every rule maps `(mean, log_variance, given)` of shapes `(..., M, D)`, `(..., M, D)`, `(..., M)`
to the `(mean, log_variance)` of the pooled Gaussian, both `(..., D)`. `given` is boolean and must
have at least one True per row. No rule adds an N(0, I) expert: the prior is learned.
"""

import torch
from torch import Tensor


def product(mean: Tensor, log_variance: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Product of experts: precisions add (MVAE, Wu and Goodman 2018), in the log domain."""
    log_precision = (-log_variance).masked_fill(~given[..., None], -torch.inf)
    log_total = torch.logsumexp(log_precision, dim=-2)
    weight = torch.exp(log_precision - log_total[..., None, :])
    return (weight * mean).sum(-2), -log_total


def hellinger(mean: Tensor, log_variance: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the Hoelder pool p(z) ~ (sum_m sqrt q_m(z))^2 (HELVAE, Vo and Valera 2026).

    The square expands into a mixture over ordered pairs (i, j) of Gaussians sqrt(q_i q_j), each
    weighted by its Bhattacharyya coefficient: one scalar per pair, a product over dimensions. The
    mixture's mean and diagonal variance are matched.
    """
    mean_i, mean_j = mean[..., :, None, :], mean[..., None, :, :]
    log_i, log_j = log_variance[..., :, None, :], log_variance[..., None, :, :]
    log_sum = torch.logaddexp(log_i, log_j)
    gap = (mean_i - mean_j).square()
    # log of sqrt(2 sd_i sd_j / (var_i + var_j)) exp(-gap / 4 (var_i + var_j)), summed over dimensions
    log_coefficient = 0.5 * (_LOG2 + 0.5 * (log_i + log_j) - log_sum) - 0.25 * gap * torch.exp(-log_sum)
    log_weight = log_coefficient.sum(-1).masked_fill(~(given[..., :, None] & given[..., None, :]), -torch.inf)
    weight = torch.softmax(log_weight.flatten(-2), dim=-1).unflatten(-1, log_weight.shape[-2:])[..., None]
    share_i = torch.exp(log_j - log_sum)  # weight of mean_i in the pair's mean: var_j / (var_i + var_j)
    pair_mean = mean_j + share_i * (mean_i - mean_j)
    pair_variance = torch.exp(_LOG2 + log_i + log_j - log_sum)
    pooled = (weight * pair_mean).sum((-3, -2))
    spread = (pair_mean - pooled[..., None, None, :]).square()
    return pooled, (weight * (pair_variance + spread)).sum((-3, -2)).log()


_LOG2 = 0.6931471805599453
