"""The networks every method shares: residual MLPs, run for all modalities of one shape as one batched product.

Activations are (modalities, rows, width). A plain network is the case of one modality. `which` picks
some of the stacked modalities, by a slice.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.components.experts import gaussian
from models.components.flow import preconditioned

ALL = slice(None)


class StackedLinear(nn.Module):
    """One affine map per modality: (modalities, rows, inputs) -> (modalities, rows, outputs)."""

    def __init__(self, modalities: int, inputs: int, outputs: int, zero: bool = False, bias: bool = True) -> None:
        super().__init__()
        bound = 0.0 if zero else inputs**-0.5
        self.weight = nn.Parameter(torch.empty(modalities, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(modalities, 1, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, which: slice = ALL, start: Tensor | None = None) -> Tensor:
        """`start` is what the product is added to, where there is no bias."""
        everything = which is ALL  # a slice of everything still costs a node in the graph
        if start is None:
            assert self.bias is not None
            start = self.bias if everything else self.bias[which]
        return torch.baddbmm(start, x, self.weight if everything else self.weight[which])


class ResidualBlocks(nn.Module):
    """`depth` pre-normalised residual blocks that widen two-fold; the identity at initialisation."""

    def __init__(self, modalities: int, width: int, depth: int) -> None:
        super().__init__()
        self.widen = nn.ModuleList(StackedLinear(modalities, width, 2 * width) for _ in range(depth))
        self.narrow = nn.ModuleList(
            StackedLinear(modalities, 2 * width, width, zero=True, bias=False) for _ in range(depth)
        )

    def forward(self, hidden: Tensor, which: slice = ALL) -> Tensor:
        for widen, narrow in zip(self.widen, self.narrow, strict=True):
            normal = functional.layer_norm(hidden, hidden.shape[-1:])
            hidden = narrow(functional.silu(widen(normal, which)), which, start=hidden)
        return hidden


class Encoder(nn.Module):
    """x (modalities, rows, inputs) -> mean and log-variance of its expert, each (modalities, rows, outputs)."""

    def __init__(self, modalities: int, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.enter = StackedLinear(modalities, inputs, width)
        self.blocks = ResidualBlocks(modalities, width, depth)
        self.leave = StackedLinear(modalities, width, 2 * outputs, zero=True, bias=False)
        self.skip = StackedLinear(modalities, inputs, 2 * outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return gaussian(self.leave(self.blocks(self.enter(x)), start=self.skip(x)))


class Regression(nn.Module):
    """The mean of x given z: z (modalities, rows, conditions) -> (modalities, rows, size); zero at the start."""

    def __init__(self, modalities: int, conditions: int, width: int, depth: int, size: int) -> None:
        super().__init__()
        self.enter = StackedLinear(modalities, conditions, width)
        self.blocks = ResidualBlocks(modalities, width, depth)
        self.leave = StackedLinear(modalities, width, size, zero=True)

    def forward(self, z: Tensor, which: slice = ALL) -> Tensor:
        return self.leave(self.blocks(self.enter(z, which), which), which)


class TimeWaves(nn.Module):
    """Times in [0, 1] of any shape -> sines and cosines of them, (..., 2 x 16)."""

    size = 32
    frequency: Tensor

    def __init__(self) -> None:
        super().__init__()
        frequency = torch.exp(torch.linspace(0, math.log(200.0), self.size // 2))
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[..., None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class VelocityNetwork(nn.Module):
    """v(x_t, t | condition) of shape (modalities, rows, size), for t of shape (modalities, rows) or (1, 1).

    The output is preconditioned for data of unit variance.
    """

    def __init__(self, modalities: int, size: int, conditions: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = StackedLinear(modalities, size, width, bias=False)
        self.waves = TimeWaves()
        self.enter_time = StackedLinear(modalities, TimeWaves.size, width)
        self.enter_condition = StackedLinear(modalities, conditions, width) if conditions else None
        self.blocks = ResidualBlocks(modalities, width, depth)
        self.leave = StackedLinear(modalities, width, size, zero=True)

    def condition(self, z: Tensor, which: slice = ALL) -> Tensor:
        """What z (modalities, rows, conditions) adds to the first layer: computed once for all steps of a sampler."""
        assert self.enter_condition is not None
        return self.enter_condition(z, which)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, which: slice = ALL) -> Tensor:
        time = self.enter_time(self.waves(t).expand(x.shape[0], -1, -1), which)
        t = t[..., None]
        hidden = self.enter(x, which, start=time if condition is None else time + condition)
        raw = self.leave(self.blocks(hidden, which), which)
        return preconditioned(x, raw, t)
