"""What several metrics share: checked rows, differences on shared coordinates, sliced distances, explained variance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, Score, UserError
from benchmark.metrics import known_world
from benchmark.runtime import seed_of

DIRECTIONS = 128


def finite(values: Tensor, name: str) -> Tensor:
    """`values` in float64. Raises ValueError where any is NaN or infinite, so that no score can hide it."""
    values = values.double()
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return values


def enough(rows: int, least: int, what: str) -> None:
    """Raises Inapplicable below `least` rows."""
    if rows < least:
        raise Inapplicable(f"{what} needs at least {least} rows and got {rows}")


def mean_of(per_row: list[Tensor], least: int, what: str) -> Score:
    """The mean over rows and its standard error, from blocks of values (rows,)."""
    rows = torch.cat(per_row) if per_row else torch.empty(0)
    enough(len(rows), least, what)
    return Score(rows.mean().item(), rows.std().item() / math.sqrt(len(rows)), len(rows))


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
        half = self._data.count("test") // 2
        if rows > half:
            raise UserError(
                f"{rows} generated rows need as many fresh test rows, and half of the test split of "
                f"{self._cell.dataset} is {half}: lower evaluation_rows"
            )
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


def unexplained(error: Tensor, spread: Tensor) -> Score:
    """mean(error) / mean(spread) over rows, both (rows,), with the delta method's standard error."""
    ratio = (error.mean() / spread.mean()).item()
    influence = (error - ratio * spread) / spread.mean()
    return Score(ratio, influence.std().item() / math.sqrt(len(error)), len(error))


class ExplainedVariance:
    """R^2 of predictions on held-out rows: 1 - sum of squared errors / sum of squares about the mean.

    `update` gets the factor's true values as `real` and a probe's predictions as `generated`, both under the
    cell's only wanted name, "factor:NAME", with shape (rows, size).
    """

    def __init__(self, cell: Cell, data: Any) -> None:
        if not (len(cell.want) == 1 and cell.want[0].startswith("factor:")):
            raise Inapplicable("a probe predicts one factor")
        self._name = cell.want[0]
        self._truth: list[Tensor] = []
        self._predicted: list[Tensor] = []

    def update(self, real: Batch, generated: Batch) -> None:
        self._truth.append(finite(real[self._name], self._name))
        self._predicted.append(finite(generated[self._name], f"prediction of {self._name}"))

    def compute(self) -> Score:
        enough(sum(map(len, self._truth)), 2, f"R^2 of {self._name}")
        truth, predicted = torch.cat(self._truth), torch.cat(self._predicted)
        left = unexplained((truth - predicted).square().sum(1), (truth - truth.mean(0)).square().sum(1))
        return Score(1 - left.value, left.stderr, left.n)

    @staticmethod
    def chance(cell: Cell, data: Any) -> float | None:
        return 0.0

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        """1 where a given modality holds the factor; 0 elsewhere, since the factors are independent."""
        factor = cell.want[0].removeprefix("factor:")
        return float(any(factor in data.layout[name] for name in cell.given))
