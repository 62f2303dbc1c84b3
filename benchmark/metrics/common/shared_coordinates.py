"""Differences on the coordinates that modalities share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, Score
from benchmark.metrics.common import known_world
from benchmark.metrics.common.row_statistics import finite, mean_of


class SharedDifference:
    """Mean squared difference on shared coordinates, raw units squared, averaged over `pairs(cell, data)`."""

    def __init__(self, cell: Cell, data: Any) -> None:
        if not hasattr(data, "shared"):
            raise Inapplicable(f"{cell.dataset} names no shared coordinates")
        self._cell = cell
        self._coordinates = [(i, j, *data.shared(i, j)) for i, j in self.pairs(cell, data)]
        self._per_row: list[Tensor] = []

    @staticmethod
    def pairs(cell: Cell, data: Any) -> Iterator[tuple[str, str]]:
        """(source, target). A target is generated; so is the source of an unconditional cell, else it is real."""
        raise NotImplementedError

    def update(self, real: Batch, generated: Batch) -> None:
        sources = real if self._cell.given else generated
        total = torch.zeros((), dtype=torch.float64)
        for i, j, at_i, at_j in self._coordinates:
            target = finite(generated[j], f"generated {j}")
            source = finite(sources[i], f"source {i}").to(target.device)
            if len(source) != len(target):
                raise ValueError(f"{len(target)} generated rows of {j} for {len(source)} rows of {i}")
            total = total.to(target.device) + (source[:, at_i] - target[:, at_j]).square().mean(1)
        self._per_row.append(total / len(self._coordinates))

    def compute(self) -> Score:
        return mean_of(self._per_row, 2, f"shared_mse of {self._cell}")

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        return known_world.average_independent_mse(data, cls.pairs(cell, data))
