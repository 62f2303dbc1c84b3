"""Variance that is explained, and what is left of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, Score
from benchmark.metrics.common.row_statistics import enough, finite


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
