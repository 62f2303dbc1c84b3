"""Held-out data as if generated: the ceiling of every metric. A perfect sampler of a known world.

Unconditional rows are fresh rows of the world. Conditional rows keep the factors that the given modalities hold and
draw the others afresh, which is the exact conditional law, since the factors are independent.

    bench run --method real --dataset gaussian_mixture --preset cpu
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmark.api import Batch, Inapplicable, MethodCard, Modality
from benchmark.config import Config
from benchmark.runtime import Draws

CARD = MethodCard(
    version=1,
    label="real",
    paper="sanity row: fresh rows of the world in place of generated ones",
    stages=(),
)


class Real:
    """Trains nothing. `bind` hands it the dataset before it samples."""

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        self._world: Any = None

    def bind(self, data: Any) -> None:
        """Raises Inapplicable for a dataset whose world is not known."""
        if not hasattr(data, "sample_factor"):
            raise Inapplicable("the dataset's world is not known, so nothing samples it perfectly")
        self._world = data

    def sample(self, given: Batch, want: Sequence[str], rows: int, draws: Draws) -> Batch:
        layout = self._world.layout
        factors = {factor: x[:, at] for name, x in given.items() for factor, at in layout[name].items()}
        for factor in dict.fromkeys(factor for name in want for factor in layout[name]):
            if factor not in factors:
                factors[factor] = self._world.sample_factor(factor, draws)
        return {name: torch.cat([factors[factor] for factor in layout[name]], 1) for name in want}


METHOD = Real
