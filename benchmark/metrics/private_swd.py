"""Sliced W2 of the private coordinates of generated targets: a model that answers with means cannot look good here.

No source says anything about a target's private factor, so in every cell its marginal must be the world's.
"""

from __future__ import annotations

from typing import Any

from benchmark.api import Cell, Inapplicable, MetricCard
from benchmark.metrics.common.sliced_distance import SlicedWasserstein

CARD = MetricCard(
    version=1,
    label="private SWD (W2)",
    units="raw units",
    higher_is_better=False,
    scale="log",
    tasks=("uncond", "one_to_one", "many_to_one", "one_to_many"),
    estimator="n generated against n fresh test rows, private coordinates only, 128 fixed directions, then averaged",
    chance="the floor: expected W2 between two samples of the known world, from the variances of order statistics",
    ceiling="the same floor: shuffling keeps the marginal",
    min_rows=100,
    needs=("vector",),
)


class PrivateSWD(SlicedWasserstein):
    order = 2
    least = CARD.min_rows

    def __init__(self, cell: Cell, data: Any) -> None:
        if not hasattr(data, "private"):
            raise Inapplicable(f"{cell.dataset} names no private coordinates")
        super().__init__(cell, data)

    @staticmethod
    def columns(data: Any, modality: str) -> slice:
        return data.private(modality)


METRIC = PrivateSWD
