"""Sliced Wasserstein distances to fresh rows, over fixed directions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, Score
from benchmark.metrics.common import known_world
from benchmark.metrics.common.row_statistics import enough, finite, fresh_half
from benchmark.runtime import seed_of

DIRECTIONS = 128


class SlicedWasserstein:
    """Sliced Wasserstein distance of order `order` of each wanted modality to fresh test rows, averaged over them.

    Fresh rows come from the second half of the test split; sources of conditional cells come from the first.
    SW_p = (mean over directions of W_p^p)^(1/p), in raw units. The directions are a function of the number of
    coordinates alone. There is no standard error: at the floor the limit law is not normal and the delta method
    answers zero, so the spread over seeds is the error bar.
    """

    order: Literal[1, 2] = 2
    least = 100

    def __init__(self, cell: Cell, data: Any) -> None:
        wanted = [modality for modality in data.modalities if modality.name in cell.want]
        if any(modality.kind != "vector" for modality in wanted):
            raise Inapplicable("sliced distances are taken between vectors")
        self._cell, self._data = cell, data
        self._columns = {modality.name: self.columns(data, modality.name) for modality in wanted}
        self._generated: dict[str, list[Tensor]] = {name: [] for name in self._columns}
        self._sources: list[Tensor] = []

    @staticmethod
    def columns(data: Any, modality: str) -> slice:
        """The coordinates that are compared."""
        return slice(None)

    def update(self, real: Batch, generated: Batch) -> None:
        for name, blocks in self._generated.items():
            blocks.append(finite(generated[name], f"generated {name}"))
        if self._cell.given:
            self._sources.append(real[self._cell.given[0]])

    def compute(self) -> Score:
        generated = {name: torch.cat(blocks) for name, blocks in self._generated.items() if blocks}
        rows = min(map(len, generated.values()), default=0)
        enough(rows, self.least, f"a sliced distance of {self._cell}")
        fresh = self._fresh(rows, next(iter(generated.values())).device)
        distances = [
            sliced_wasserstein(
                sample[:, self._columns[name]], fresh[name].to(sample)[:, self._columns[name]], self.order
            )
            for name, sample in generated.items()
        ]
        return Score(sum(distances) / len(distances), None, rows)

    def _fresh(self, rows: int, device: torch.device) -> Batch:
        half = fresh_half(self._data, self._cell, rows)
        fresh = self._data.rows("test", torch.arange(half, half + rows, device=device))
        if self._sources:
            sources = torch.cat(self._sources)
            together = torch.cat([sources, fresh[self._cell.given[0]].to(sources)])
            if len(torch.unique(together[:, :4], dim=0)) < len(together):
                raise ValueError(f"source rows of {self._cell} are among the fresh rows they are compared with")
        return fresh

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        """The floor: a shuffled real row still has the right marginal, so chance equals a perfect sampler."""
        if not hasattr(data, "means"):
            return None
        rows = data.rows_of(cell)
        floors = [
            known_world.sliced_floor(data, name, cls.columns(data, name), rows, cls.order, directions)
            for name in cell.want
        ]
        return sum(floors) / len(floors)

    ceiling = chance


def directions(size: int) -> Tensor:
    """`DIRECTIONS` unit vectors as columns, (size, DIRECTIONS) float64: the same for all cells, methods and seeds."""
    generator = torch.Generator().manual_seed(seed_of("swd directions", size))
    vectors = torch.randn(size, DIRECTIONS, generator=generator, dtype=torch.float64)
    return vectors / vectors.norm(dim=0)


def sliced_wasserstein(x: Tensor, y: Tensor, order: Literal[1, 2]) -> float:
    """SW_order between the rows of x and of y, (rows, size) float64 both, over the fixed directions."""
    if x.shape != y.shape:
        raise ValueError(f"samples of shapes {tuple(x.shape)} and {tuple(y.shape)}")
    along = directions(x.shape[1]).to(x.device)
    gaps = (along.T @ x.T).sort(dim=1).values - (along.T @ y.T).sort(dim=1).values
    return gaps.abs().pow(order).mean().item() ** (1 / order)
