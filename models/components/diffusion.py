"""Paths from data at t = 0 to noise at t = 1: z_t = signal(t) z + noise(t) eps, and what a network predicts on them.

A network predicts eps - share z. With share 1 on the linear path that is the velocity of flow matching; with share 0
it is the noise, as in score-based diffusion.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Path:
    """`signal` and `noise` map times of any shape to coefficients of that shape, which broadcast against z."""

    signal: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]
    share: float

    def at(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.signal(t) * z + self.noise(t) * eps

    def target(self, z: Tensor, eps: Tensor) -> Tensor:
        return eps - self.share * z

    def best_linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """For z of unit variance: the factor of z_t in the best linear prediction of the target, and the standard
        deviation of what is left."""
        signal, noise = self.signal(t), self.noise(t)
        variance = signal.square() + noise.square()
        return (noise - self.share * signal) / variance, (signal + self.share * noise) * variance.rsqrt()

    def step(self, x: Tensor, predicted: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """From time `start` to `end` with z and eps as the prediction at `start` has them.

        On the linear path this is Euler's step; on the variance-preserving one it is that of DDIM (Song et al., 2021).
        """
        signal, noise = self.signal(start), self.noise(start)
        z = (x - noise * predicted) / (signal + self.share * noise)
        return self.signal(end) * z + self.noise(end) * (predicted + self.share * z)

    def noised(self, x: Tensor, start: Tensor, end: Tensor, eps: Tensor) -> Tensor:
        """A sample of z at the later time `end`, given z at `start`."""
        ratio = self.signal(end) / self.signal(start)
        left = self.noise(end).square() - (ratio * self.noise(start)).square()
        return ratio * x + left.clamp(min=0).sqrt() * eps


def _signal(t: Tensor) -> Tensor:
    """exp(-1/2 of the integral of beta), beta from 0.1 to 20 (Song et al., 2021)."""
    return torch.exp(-0.25 * t.square() * (20 - 0.1) - 0.5 * t * 0.1)


FLOW = Path(lambda t: 1 - t, lambda t: t, 1.0)
VARIANCE_PRESERVING = Path(_signal, lambda t: torch.sqrt(1 - _signal(t).square()), 0.0)
