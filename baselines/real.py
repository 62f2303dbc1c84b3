"""Held-out data as if generated: the ceiling of every metric. A perfect sampler of a known world.

A perfect sampler where the dataset knows its world: fresh rows of it from nothing, and else of the exact law given the
observed modalities. Of pictures, sounds and sentences, whose world is not known, the held-out rows themselves, each
with another sentence that says the same.

    bench run --method real --dataset gaussian_mixture --preset cpu
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, MethodCard, Modality, Raw
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
        self.told_labels: tuple[str, ...] = ()

    def bind(self, data: Any) -> None:
        """Raises Inapplicable for a dataset that cannot sample its own conditional laws."""
        if not hasattr(data, "conditional") and not hasattr(data, "real"):
            raise Inapplicable("the dataset's world is not known, so nothing samples it perfectly")
        self._world = data
        self.told_labels = tuple(getattr(data, "labels", ()))  # what a given picture shows fixes the law of the others

    def sample(self, given: Batch, want: Sequence[str], rows: int, draws: Draws) -> Batch:
        return self._world.conditional(given, want, draws)

    def things(self, cell: Cell, split: str, indices: Tensor, draws: Draws) -> Raw:
        rows = self._world.real(split, indices)
        return {name: rows[name] for name in cell.want}


METHOD = Real
