"""How many of the generated texts differ: one caption repeated, however coherent, is one caption.

The rate falls with the number of rows in any closed language, so it is read beside that of as many real texts, its
ceiling; more than that is no gain. White space does not tell texts apart.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from benchmark.api import Cell, Inapplicable, MetricCard, Raw, Score, one_line
from benchmark.metrics.common.embedding_pairs import OfThings, blocks, keep, rows_of

CARD = MetricCard(
    version=1,
    label="distinct captions",
    units="share of rows",
    higher_is_better=True,
    scale="logit",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="distinct texts over rows; error by the jackknife, too large where texts are seldom repeated",
    chance="the ceiling: shuffling keeps texts",
    ceiling="the rate of as many real texts, measured",
    needs=("text", "image", "audio"),
)


class DistinctCaptions(OfThings):
    name = "distinct_captions"

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        if "text" not in cell.want:
            raise Inapplicable("no text is wanted")
        self._texts: list[str] = []

    def update(self, real: Raw, generated: Raw) -> None:
        """`real` is counted and not read."""
        self.checked(real, generated)
        self._texts += map(one_line, generated["text"])

    def compute(self) -> Score:
        self.whole()
        rows, counts = self._rows, Counter(self._texts)
        # Without a row whose text is its own there is one text less, without another one there are as many.
        alone = sum(count == 1 for count in counts.values()) / rows
        error = math.sqrt(alone * (1 - alone) / max(1, rows - 1))
        return Score(len(counts) / rows, max(error, 1 / rows), rows)

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        split, rows = data.split_of(cell), rows_of(cell, data)

        def work() -> float:
            texts = [one_line(text) for raw in blocks(data, split, rows) for text in raw["text"]]
            return len(set(texts)) / rows

        return keep(data, ("distinct", split, rows), work)

    chance = ceiling

    @classmethod
    def protocol(cls, data: Any) -> dict[str, Any]:
        return {"metric": cls.name, "version": 1, "white space": "normalised"}


METRIC = DistinctCaptions
