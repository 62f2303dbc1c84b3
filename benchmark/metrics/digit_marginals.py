"""How far the digits that are generated are from uniform: a model that always says one digit is coherent and useless.

Total variation between uniform and the histogram of the digits that a modality shows, averaged over the wanted
modalities. Rows in which no digit can be read are a class of their own, of which uniform has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.api import Cell, MetricCard, Raw, Score
from benchmark.metrics.common.embedding_pairs import OfThings, clustered_error, digits_are_read, shown, shown_by_real

CARD = MetricCard(
    version=1,
    label="digit marginals (TV)",
    units="total variation",
    higher_is_better=False,
    scale="log",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="half the sum over the ten digits, and none, of |share - uniform|, per wanted modality, then averaged",
    chance="the ceiling: shuffling keeps digits",
    ceiling="the same of real rows, measured. Where those are balanced it is near 0; independent uniform digits "
    "have 1.2 over the root of the number of rows",
    min_rows=20,
    needs=("text", "image", "audio"),
)
UNIFORM = torch.tensor([0.1] * 10 + [0.0], dtype=torch.float64)


class DigitMarginals(OfThings):
    name, least = "digit_marginals", CARD.min_rows

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        digits_are_read(data)
        self._digits: list[Tensor] = []

    def update(self, real: Raw, generated: Raw) -> None:
        """`real` is counted and not read."""
        self.checked(real, generated)
        found = [shown(self._data, name, generated[name]) for name in self._cell.want]
        self._digits.append(torch.stack(found, 1))

    def compute(self) -> Score:
        self.whole()
        columns = torch.cat(self._digits).unbind(1)
        gaps = [_shares(digits) - UNIFORM for digits in columns]
        value = sum(gap.abs().sum().item() / 2 for gap in gaps) / len(gaps)
        # The delta method: right far from uniform, and at the floor, where signs are noise, up to twice too much.
        pull = torch.stack([gap.sign()[digits] / 2 for gap, digits in zip(gaps, columns, strict=True)]).mean(0)
        error = clustered_error(pull - pull.mean(), self.clusters())
        return Score(value, None if error is None else max(error, 1 / self._rows), self._rows)

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        found = shown_by_real(cell, data, cell.want)
        return sum((_shares(digits) - UNIFORM).abs().sum().item() / 2 for digits in found.values()) / len(found)

    chance = ceiling

    @classmethod
    def how(cls) -> dict[str, Any]:
        return {"version": 1, "unread": "a class of its own"}


def _shares(digits: Tensor) -> Tensor:
    """How often each digit, and none, is shown: (11,) float64."""
    return torch.where(digits < 0, 10, digits).bincount(minlength=11).double() / len(digits)


METRIC = DigitMarginals
