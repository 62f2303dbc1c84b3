"""CIDEr-D of generated texts against the real text of their row, times 100: what share of its rarer words they say.

One reference for each row; document frequencies are those of the rows that are scored. pycocoevalcap's code and tokens
of the Penn Treebank (benchmark/metrics/common/caption_tokens.py). Its own scale is 0 to 10, so this one's is 0 to
1,000; a text of fewer than four words never has 1,000, not even its own reference. Source: Vedantam et al., 2015.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmark.api import Cell, Inapplicable, MetricCard, Raw, Score
from benchmark.metrics.common import caption_tokens
from benchmark.metrics.common.embedding_pairs import OfThings, blocks, clustered_mean, keep, rows_of
from benchmark.runtime import Draws

CARD = MetricCard(
    version=1,
    label="CIDEr",
    units="100 CIDEr-D",
    higher_is_better=True,
    scale="linear",
    tasks=("one_to_one", "many_to_one"),
    estimator="mean over rows of 100 CIDEr-D with one reference; the error takes the document frequencies as given",
    chance="the same of real texts, shuffled once, measured",
    ceiling="the same of another real text of each row where the dataset has one, measured",
    needs=("text", "image", "audio"),
)


class Cider(OfThings):
    name = "cider"

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        if "text" not in cell.want:
            raise Inapplicable("no text is wanted")
        if not cell.given:
            raise Inapplicable("what is generated from nothing has no text to be compared with")
        self._references: list[str] = []
        self._texts: list[str] = []

    def update(self, real: Raw, generated: Raw) -> None:
        self.checked(real, generated, ["text"])
        self._references += real["text"]
        self._texts += generated["text"]

    def compute(self) -> Score:
        """Raises RuntimeError, in one line, without Java or without pycocoevalcap."""
        self.whole()
        values = 100 * torch.from_numpy(caption_tokens.cider(self._references, self._texts))
        return clustered_mean(values, self.clusters(), self.least, f"{self.name} of {self._cell}")

    @staticmethod
    def chance(cell: Cell, data: Any) -> float | None:
        texts = _real(cell, data, "raw")
        order = Draws("cider", "chance", rows=len(texts)).uniform("order").argsort()
        return float(100 * caption_tokens.cider(texts, [texts[row] for row in order]).mean())

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        if not hasattr(data, "real"):
            return None
        return float(100 * caption_tokens.cider(_real(cell, data, "raw"), _real(cell, data, "real")).mean())

    @classmethod
    def protocol(cls, data: Any) -> dict[str, Any]:
        how = {"references": 1, "tokens": "PTB, Stanford CoreNLP 3.4.1", "scale": 100, "white space": "normalised"}
        return {"metric": cls.name, "version": 1, "package": f"pycocoevalcap {caption_tokens.version()}", **how}


def _real(cell: Cell, data: Any, kind: str) -> list[str]:
    """The texts of the cell's rows: their own, or with "real" another one of each."""
    split, rows = data.split_of(cell), rows_of(cell, data)

    def work() -> list[str]:
        return [text for raw in blocks(data, split, rows, kind) for text in raw["text"]]

    return keep(data, ("texts", kind, split, rows), work)


METRIC = Cider
