"""The image networks every method shares: a residual encoder, and a U-Net that draws by flow matching.

One of each serves all views of a scene and is told which one it works on. Both work on patches: a picture of side
`canvas` is a map of side `canvas / patch`, halved until its side is four, or five to seven (28, 14, 7). The blocks are
those of NCSN++ (Song et al., 2021) with one normalisation instead of two, hard swish instead of SiLU, and skips that
are added instead of concatenated: cheaper on a processor, and in short trials of norm and activation no worse in loss
per second. The latent enters the U-Net, by linear maps, in two ways: it scales and shifts every block alike at all
places, and it draws two maps of 16 x 16 cells, one that scales the way up where its maps have that side, one that
shifts it. In those trials quadrants were learned several times sooner with a map than without, digits sooner with 16 x
16 cells than with 4 x 4, and sooner still where the map scales instead of only shifting: a stroke inverts whatever lies
under it. A library's U-Net has neither patches nor a condition that is worked out once for all steps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.components.experts import gaussian
from models.components.flow import preconditioned
from models.components.networks import TimeWaves

LOWEST = 4  # side of the coarsest map, at least, and less than twice that
GROUP = 16  # channels that are normalised together, at most
DRAWN = 16  # channels, and side at most, of what the latent draws


class ImageEncoder(nn.Module):
    """x (views, rows, channels, side, side) -> mean and log-variance of its expert, each (views, rows, outputs).

    Every view has an input layer and a posterior head of its own. All experts start as N(0, 1).
    """

    def __init__(
        self, views: int, canvas: int, channels: int, width: int, depth: int, patch: int, outputs: int
    ) -> None:
        super().__init__()
        sides = _sides(canvas, patch)
        widths = [width * min(4, 2**level) for level in range(len(sides))]
        self.enter = nn.ModuleList(nn.Conv2d(channels, width, patch + 2, stride=patch, padding=1) for _ in range(views))
        self.blocks = nn.ModuleList(nn.Sequential(*(Block(each) for _ in range(depth))) for each in widths)
        self.widen = nn.ModuleList(_pointwise(*pair) for pair in pairwise(widths))
        self.gather = _pointwise(widths[-1], width)
        self.normal = _normal(width)
        self.head = nn.Parameter(torch.zeros(views, width * sides[-1] ** 2, 2 * outputs))
        self.bias = nn.Parameter(torch.zeros(views, 1, 2 * outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        entered = [enter(view) for enter, view in zip(self.enter, x, strict=True)]
        hidden = torch.cat(entered).contiguous(memory_format=torch.channels_last)
        for level, blocks in enumerate(self.blocks):
            hidden = blocks(hidden if level == 0 else self.widen[level - 1](functional.avg_pool2d(hidden, 2)))
        features = functional.hardswish(self.normal(self.gather(hidden))).flatten(1).unflatten(0, x.shape[:2])
        return gaussian(torch.baddbmm(self.bias, features, self.head))


class ImageVelocity(nn.Module):
    """v(x_t, t | condition) of shape (rows, channels, side, side), for t of shape (rows,) or (1,).

    The output is preconditioned for data of unit variance, as models.components.networks.VelocityNetwork's.
    """

    def __init__(
        self, views: int, canvas: int, channels: int, conditions: int, width: int, depth: int, patch: int
    ) -> None:
        super().__init__()
        self.patch, embedding = patch, 5 * width
        sides = _sides(canvas, patch)
        widths = [int(width * min(2, 1 + level / 2)) for level in range(len(sides))]
        self.told = nn.Linear(conditions, embedding)
        self.nothing = nn.Parameter(torch.zeros(embedding))  # stands for what a row is told that is told nothing
        self.view = nn.Parameter(0.5 * torch.randn(views, embedding))
        self.waves = TimeWaves()
        self.time = nn.Linear(TimeWaves.size, embedding)
        self.side = next(side for side in sides if side <= DRAWN)
        self.drawn_at = sides.index(self.side)
        self.draw = nn.Linear(embedding, DRAWN * self.side**2)
        self.enter_drawn = _pointwise(DRAWN, 2 * widths[self.drawn_at])
        self.enter = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down: Any = _stages(widths, depth)
        self.middle: Any = nn.ModuleList([Block(widths[-1])])
        self.up: Any = _stages(widths, depth)
        self.widen = nn.ModuleList(_pointwise(*pair) for pair in pairwise(widths))
        self.narrow = nn.ModuleList(_pointwise(wide, narrow) for narrow, wide in pairwise(widths))
        self.blocks = [each for stage in (*self.down, self.middle, *self.up[::-1]) for each in stage]
        self.sizes = [2 * block.channels for block in self.blocks]
        self.modulate = nn.Linear(embedding, sum(self.sizes))
        self.normal = _normal(widths[0])
        self.leave = nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)
        with torch.no_grad():
            for each in self.leave.parameters():
                each.zero_()

    def condition(self, z: Tensor, view: Tensor, told: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What z (rows, conditions) and view (rows,) say to all blocks, and the maps that they draw.

        It is the same for all steps of a sampler. told (rows,): where it is False, z says nothing.
        """
        said = self.told(z)
        if told is not None:
            said = torch.where(told[:, None], said, self.nothing.to(said.dtype))
        said = said + self.view[view]
        drawn = self.draw(functional.silu(said)).unflatten(1, (self.side, self.side, DRAWN)).permute(0, 3, 1, 2)
        return said, self.enter_drawn(drawn)

    def forward(self, x: Tensor, t: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        said, drawn = condition
        modulation = self.modulate(functional.silu(self.time(self.waves(t)) + said))[..., None, None]
        of_block = dict(zip(self.blocks, modulation.split(self.sizes, 1), strict=True))
        hidden = functional.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        hidden, skips = self.enter(hidden), []
        for level, stage in enumerate(self.down):
            if level:
                hidden = self.widen[level - 1](functional.avg_pool2d(hidden, 2))
            for block in stage:
                hidden = block(hidden, of_block[block])
                skips.append(hidden)
        for block in self.middle:
            hidden = block(hidden, of_block[block])
        for level in reversed(range(len(self.up))):
            if level == self.drawn_at:
                scale, shift = drawn.chunk(2, 1)
                hidden = torch.addcmul(shift, hidden, 1 + scale)
            for block in self.up[level]:
                hidden = block(hidden + skips.pop(), of_block[block])
            if level:
                hidden = functional.interpolate(self.narrow[level - 1](hidden), scale_factor=2, mode="nearest")
        raw = functional.pixel_shuffle(self.leave(functional.hardswish(self.normal(hidden))), self.patch)
        return preconditioned(x, raw, t[:, None, None, None])


class Block(nn.Module):
    """x plus two 3 x 3 convolutions of it, normalised between them, then scaled and shifted; x at initialisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.first, self.second = _convolution(channels), _convolution(channels)
        self.normal = _normal(channels, affine=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """modulation: (rows, 2 * channels, 1, 1), scales less one, then shifts."""
        hidden = self.normal(self.first(functional.hardswish(x)))
        if modulation is not None:
            scale, shift = modulation.chunk(2, 1)
            hidden = torch.addcmul(shift, hidden, 1 + scale)
        return x + self.second(functional.hardswish(hidden))


def _sides(canvas: int, patch: int) -> list[int]:
    """Sides of the maps, halved down to the coarsest. Raises ValueError where halving does not lead there."""
    sides = [canvas // patch]
    while sides[-1] % 2 == 0 and sides[-1] >= 2 * LOWEST:
        sides.append(sides[-1] // 2)
    if canvas % patch or not LOWEST <= sides[-1] < 2 * LOWEST:
        raise ValueError(
            f"patches of {patch} on a canvas of {canvas}: canvas / patch must be 4, 5, 6 or 7 times 1, 2, 4..."
        )
    return sides


def _stages(widths: Sequence[int], depth: int) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleList(Block(each) for _ in range(depth)) for each in widths)


def _normal(channels: int, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(channels // math.gcd(channels, GROUP), channels, affine=affine)


def _convolution(channels: int) -> nn.Conv2d:
    made = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    made.weight.data = made.weight.data.contiguous(memory_format=torch.channels_last)
    return made


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)
