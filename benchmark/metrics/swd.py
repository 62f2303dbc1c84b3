"""Fidelity on the mixture (App. D): sliced Wasserstein distance W2 of each generated modality to fresh test rows.

The paper does not say whether it prints W2 or its square. This is W2 in raw units, the root of the mean square over
directions: it is a metric, it is linear in the size of an error, and it is what common libraries call SWD.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.sliced_distance import SlicedWasserstein

CARD = MetricCard(
    version=1,
    label="SWD (W2)",
    units="raw units",
    higher_is_better=False,
    scale="log",
    tasks=("uncond", "one_to_one", "many_to_one", "one_to_many"),
    estimator="n generated against n fresh test rows, 128 fixed directions, per modality, then averaged",
    chance="the floor: expected W2 between two samples of the known world, from the variances of order statistics",
    ceiling="the same floor: shuffling keeps each modality's marginal",
    min_rows=100,
    needs=("vector",),
)


class SWD(SlicedWasserstein):
    order = 2
    least = CARD.min_rows


METRIC = SWD
