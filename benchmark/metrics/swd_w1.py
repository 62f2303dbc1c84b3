"""Sliced Wasserstein distance W1 of each generated modality to fresh test rows: `swd` with less weight on outliers."""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.sliced_distance import SlicedWasserstein

CARD = MetricCard(
    version=1,
    label="SWD (W1)",
    units="raw units",
    higher_is_better=False,
    scale="log",
    tasks=("uncond", "one_to_one", "many_to_one", "one_to_many"),
    estimator="n generated against n fresh test rows, 128 fixed directions, per modality, then averaged",
    chance="the floor: expected W1 between two samples of the known world, an integral over its projections",
    ceiling="the same floor: shuffling keeps each modality's marginal",
    min_rows=100,
    needs=("vector",),
)


class SWDW1(SlicedWasserstein):
    order = 1
    least = CARD.min_rows


METRIC = SWDW1
