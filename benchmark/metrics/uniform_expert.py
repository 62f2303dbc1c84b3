"""What a uniformly drawn expert would score in many_to_one, read from one_to_one samples.

A mixture of experts that is given several modalities infers the latent from one of them, drawn uniformly. Its
many_to_one `shared_mse` on a target is then the mean of this number over the sources: the squared difference of
the generated target to *every* other modality of the real row, given or not, on the coordinates they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmark.api import Cell, Inapplicable, MetricCard
from benchmark.metrics.common import known_world
from benchmark.metrics.common.shared_coordinates import SharedDifference

CARD = MetricCard(
    version=1,
    label="uniform-expert prediction",
    units="raw units squared",
    higher_is_better=False,
    scale="log",
    tasks=("one_to_one",),
    estimator="mean over rows, over all other modalities of the real row and over their shared coordinates",
    chance="twice the variance of the shared coordinates, from the mixture's moments",
    ceiling="the same over the coordinates that the given modality does not determine, 0 over the others",
    needs=("vector",),
)


class UniformExpert(SharedDifference):
    def __init__(self, cell: Cell, data: Any) -> None:
        if len(cell.given) != 1:
            raise Inapplicable("the uniform-expert prediction is read from cells that give one modality")
        super().__init__(cell, data)

    @staticmethod
    def pairs(cell: Cell, data: Any) -> Iterator[tuple[str, str]]:
        yield from ((other.name, name) for name in cell.want for other in data.modalities if other.name != name)

    @classmethod
    def ceiling(cls, cell: Cell, data: Any) -> float | None:
        if not hasattr(data, "means"):
            return None
        values = [known_world.unknown_mse(data, cell.given, *pair) for pair in cls.pairs(cell, data)]
        return sum(values) / len(values)


METRIC = UniformExpert
