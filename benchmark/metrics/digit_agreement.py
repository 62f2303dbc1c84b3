"""How often what is generated shows the digit of what is given; from nothing, how often all that is generated agrees.

The digit of a row is what its real text names; pictures and sounds are read by the judges, texts exactly. A text that
names no digit, or several, agrees with nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.api import Cell, Inapplicable, MetricCard, Raw, Score
from benchmark.metrics.common.embedding_pairs import OfThings, clustered_rate, digits_are_read, shown, shown_by_real

CARD = MetricCard(
    version=1,
    label="digit agreement",
    units="share of rows",
    higher_is_better=True,
    scale="logit",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="share of the wanted modalities that show the digit of the row, averaged over rows; from nothing, share "
    "of the rows in which all of them show one digit",
    chance="the probability that so many independent rows show one digit, from the real rows' shares of digits",
    ceiling="the same on real rows: what the judges' own errors leave",
    needs=("text", "image", "audio"),
)


class DigitAgreement(OfThings):
    name = "digit_agreement"

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        digits_are_read(data)
        if not cell.given and len(cell.want) < 2:
            raise Inapplicable("one modality from nothing agrees with nothing")
        self._per_row: list[Tensor] = []

    def update(self, real: Raw, generated: Raw) -> None:
        self.checked(real, generated, ["text"])
        found = {name: shown(self._data, name, generated[name]) for name in self._cell.want}
        truth = shown(self._data, "text", real["text"]) if self._cell.given else None
        self._per_row.append(agreement(found, truth))

    def compute(self) -> Score:
        self.whole()
        what = f"{self.name} of {self._cell}"
        return clustered_rate(torch.cat(self._per_row), self.clusters(), self.least, what)

    @staticmethod
    def chance(cell: Cell, data: Any) -> float | None:
        digits = shown_by_real(cell, data, ["text"])["text"]
        shares = digits.bincount().double() / len(digits)
        return shares.pow(2 if cell.given else len(cell.want)).sum().item()

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        found = shown_by_real(cell, data, dict.fromkeys((*cell.want, "text")))
        truth = found["text"] if cell.given else None
        return agreement({name: found[name] for name in cell.want}, truth).mean().item()

    @classmethod
    def how(cls) -> dict[str, Any]:
        return {"version": 1, "digit of a row": "its real text's"}


def agreement(found: dict[str, Tensor], truth: Tensor | None) -> Tensor:
    """(rows,) float64. found: modality -> digits, (rows,), -1 where there is none; truth: the rows' digits, if any are
    given."""
    digits = torch.stack(list(found.values()), 1)
    if truth is not None:
        return (digits == truth[:, None]).double().mean(1)
    return ((digits == digits[:, :1]) & (digits >= 0)).all(1).double()


METRIC = DigitAgreement
