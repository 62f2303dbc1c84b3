"""Energy score of conditional samples, E|X - y| - E|X - X'| / 2: a strictly proper score of the whole distribution.

It is least, in expectation, for the true conditional law alone: answering with the mean costs a factor of about
sqrt(2). The class asks for `draws_per_row = 2` independent samples per source row, so `generated` has the shape
(rows, 2, *shape). Source: Gneiting and Raftery, Strictly Proper Scoring Rules, 2007.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, MetricCard, Score
from benchmark.metrics.common import known_world
from benchmark.metrics.common.row_statistics import finite, mean_of

CARD = MetricCard(
    version=1,
    label="energy score",
    units="raw units",
    higher_is_better=False,
    scale="linear",
    tasks=("one_to_one", "many_to_one", "one_to_many"),
    estimator="two samples per row, both against the row's own target; unbiased; averaged over rows and targets",
    chance="half the mean distance between two independent rows of the target, by integration of its transform",
    ceiling="the same over the factors that the given modalities do not determine; no sampler scores less",
    needs=("vector",),
)


class EnergyScore:
    draws_per_row = 2

    def __init__(self, cell: Cell, data: Any) -> None:
        if not cell.given:
            raise Inapplicable("an energy score compares samples with the target of their source row")
        self._cell = cell
        self._per_row: list[Tensor] = []

    def update(self, real: Batch, generated: Batch) -> None:
        scores = []
        for name in self._cell.want:
            first, second = finite(generated[name], f"generated {name}").flatten(2).unbind(1)
            truth = finite(real[name], f"real {name}").to(first.device).flatten(1)
            if len(truth) != len(first):
                raise ValueError(f"{len(first)} generated rows of {name} for {len(truth)} real rows")
            scores.append(
                ((first - truth).norm(dim=1) + (second - truth).norm(dim=1) - (first - second).norm(dim=1)) / 2
            )
        self._per_row.append(torch.stack(scores).mean(0))

    def compute(self) -> Score:
        return mean_of(self._per_row, CARD.min_rows, f"energy_score of {self._cell}")

    @staticmethod
    def chance(cell: Cell, data: Any) -> float | None:
        return _half_distance(cell, data, set())

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        return _half_distance(cell, data, set(cell.given))


def _half_distance(cell: Cell, data: Any, seen: set[str]) -> float | None:
    """The score of exact samples that see the `seen` modalities: there E|X - y| = E|X - X'|."""
    if not hasattr(data, "means"):
        return None
    known = known_world.determined(data, seen)
    distances = [
        known_world.mean_distance(data, [factor for factor in data.layout[name] if factor not in known])
        for name in cell.want
    ]
    return sum(distances) / len(distances) / 2


METRIC = EnergyScore
