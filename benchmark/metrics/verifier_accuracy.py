"""How often the verifier is right about real test pictures: of the wanted modalities, on the given labels.

It says nothing of the method. It stands among its rows so that a table knows what its numbers were read with, and can
refuse to print them (`least` in results/tables/*.toml). Rows: of the test split's second half, at most TEST_ROWS.
"""

from __future__ import annotations

from typing import Any

from benchmark.api import Batch, Cell, Inapplicable, MetricCard, Score
from benchmark.judges import verifier
from benchmark.metrics.common.label_metric import Asked, Recovered, pictures, score_of
from benchmark.metrics.common.row_statistics import enough, finite

CARD = MetricCard(
    version=1,
    label="verifier accuracy",
    units="share of rows",
    higher_is_better=True,
    scale="logit",
    tasks=("one_to_one", "many_to_one", "one_to_many"),
    estimator="label accuracy of real test pictures; generated ones are not looked at. Where a table refuses it: raise "
    "UPDATES in benchmark/judges/verifier.py, which trains the verifier anew, and run the table again",
    chance="the ceiling: it does not depend on what is generated",
    ceiling="its value",
    needs=("image", "label"),
)


class VerifierAccuracy(Recovered):
    chance_is_exact = False  # it is measured on rows, whatever the method

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        self._rows, self._device = 0, "cpu"

    @staticmethod
    def asked(cell: Cell, data: Any) -> Asked:
        asked = Recovered.asked(cell, data)
        if not pictures(data, asked):
            raise Inapplicable("no picture is wanted, so no verifier is asked")
        return {name: asked[name] for name in pictures(data, asked)}

    def update(self, real: Batch, generated: Batch) -> None:
        for name in self._asked:
            finite(generated[name], f"generated {name}")
        self._rows, self._device = self._rows + len(generated[name]), str(generated[name].device)

    def compute(self) -> Score:
        enough(self._rows, CARD.min_rows, f"verifier_accuracy of {self._cell}")
        return verifier.reading(self._data, next(iter(self._asked)), self._device).keep(
            ("verifier_accuracy", self._cell, self._data.count("test")), self._measure
        )

    def _measure(self) -> Score:
        real = verifier.real_rows(self._data, self._device)
        return score_of([self.rates(real, real)], CARD.min_rows, f"verifier_accuracy of {self._cell}")

    @classmethod
    def ceiling(cls, cell: Cell, data: Any) -> float | None:
        metric = cls(cell, data)
        metric._device = getattr(data, "device", "cpu")
        return metric._measure().value

    chance = ceiling


METRIC = VerifierAccuracy
