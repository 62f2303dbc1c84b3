"""Right marginals and no relation: the floor of every metric that asks for agreement.

Every wanted modality is a fresh row of the world that knows neither the given rows nor the other wanted ones, as if
real rows were shuffled independently per modality.

    bench run --method chance --dataset gaussian_mixture --preset cpu
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
    label="chance",
    paper="sanity row: real rows, shuffled independently per modality",
    stages=(),
)


class Chance:
    """Trains nothing. `bind` hands it the dataset before it samples."""

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        self._world: Any = None

    def bind(self, data: Any) -> None:
        """Raises Inapplicable for a dataset whose world is not known."""
        if not hasattr(data, "sample_factor"):
            raise Inapplicable("the dataset's world is not known, so its rows cannot be drawn afresh")
        self._world = data

    def sample(self, given: Batch, want: Sequence[str], rows: int, draws: Draws) -> Batch:
        # The k-th draw of one factor differs from its first, so modalities that share a factor do not agree on it.
        return {
            name: torch.cat([self._world.sample_factor(factor, draws) for factor in self._world.layout[name]], 1)
            for name in want
        }


METHOD = Chance
