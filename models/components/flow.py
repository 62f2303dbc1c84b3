"""Flow matching on the linear path: the loss, the encoder's gradient scale, and the Euler sampler.

t = 0 is data and t = 1 is noise: x_t = (1 - t) x + t noise, with target velocity noise - x
(MUNI, Eqs. 44-45, 54-55). A velocity is a function `(x_t, t) -> velocity`; the leading dimensions
of x are those of t.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def matching_loss(velocity: Velocity, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Squared velocity error, averaged over the dimensions of x behind those of t; the shape of t."""
    at = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
    error = velocity(torch.lerp(x, noise, at), t) - (noise - x)
    return error.square().flatten(t.ndim).mean(-1)


def preconditioned(x: Tensor, raw: Tensor, t: Tensor) -> Tensor:
    """The velocity at x_t that a network's output `raw` stands for, for data of unit variance: the best linear
    prediction from x_t, and `raw` at the scale of what that leaves (the form of Karras et al. 2022 for this path)."""
    variance = (1 - t).square() + t.square()
    return torch.addcmul((2 * t - 1) / variance * x, raw, variance.rsqrt())


@torch.no_grad()
def euler(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise at t = 1 to data at t = 0 in equal Euler steps; t has shape (1, 1)."""
    x = noise.clone()
    for step in range(steps):
        t = torch.full((1, 1), 1 - step / steps, device=x.device)
        x.sub_(velocity(x, t), alpha=1 / steps)
    return x


def logit_normal(normal: Tensor, location: float = 0.0) -> Tensor:
    """Times in (0, 1) whose logits are the standard normal numbers given (paper, App. D), moved by `location`."""
    return torch.sigmoid(normal + location)


def elbo_weight(t: Tensor, ceiling: float = 100.0) -> Tensor:
    """(1 - t) / (t r(t)) for logit-normal(0, 1) times of density r (MUNI, Eqs. 47-50), clipped.

    -log p(z) = const + integral of (1 - t) / t E|v - (noise - z)|^2 dt, so this factor turns the
    velocity loss under r into the likelihood. The factor's own mean is infinite. Clipping at 100 keeps 99.8 % of
    the gradient towards a prior of unit variance, and less towards a narrower one: 95 % at variance 0.05, 81 %
    at 0.01, 33 % at 0.001 (docs/findings.md says what that costs).
    """
    logit = torch.logit(t, eps=1e-6)
    density_of_logit = torch.exp(-0.5 * logit.square()) / (2 * torch.pi) ** 0.5
    return ((1 - t).square() / density_of_logit).clamp(max=ceiling)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """x unchanged; its gradient is multiplied by `factor`, which broadcasts against x (MUNI, Eq. 51)."""
    return _ScaleGradient.apply(x, factor)
