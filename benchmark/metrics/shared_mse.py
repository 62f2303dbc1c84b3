"""Alignment and coherence on the mixture (App. D): do generated modalities agree on what they share?

Conditional cells: mean squared difference between each given modality and each generated target, on the
coordinates they share. Unconditional cells: between each two generated modalities. Raw units squared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

from benchmark.api import Cell, MetricCard
from benchmark.metrics.common.shared_coordinates import SharedDifference

CARD = MetricCard(
    version=1,
    label="shared MSE",
    units="raw units squared",
    higher_is_better=False,
    scale="log",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="mean over rows, over (source, target) pairs and over their shared coordinates",
    chance="twice the variance of the shared coordinates, from the mixture's moments",
    ceiling="0: shared coordinates are equal in every row of the world",
    needs=("vector",),
)


class SharedMSE(SharedDifference):
    @staticmethod
    def pairs(cell: Cell, data: Any) -> Iterator[tuple[str, str]]:
        yield from product(cell.given, cell.want) if cell.given else combinations(cell.want, 2)

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        return 0.0


METRIC = SharedMSE
