"""Fréchet distance of generated texts to fresh real ones, on the features of the suite's own judges.

A number of ours, with no counterpart in the paper: with FID and FAD it says of all three modalities whether what is
generated from nothing has the right marginal. The features are 64 for each text.
"""

from __future__ import annotations

from typing import Any

from benchmark.api import Cell, Inapplicable, MetricCard
from benchmark.judges import judges
from benchmark.metrics.common.embedding_pairs import Frechet

CARD = MetricCard(
    version=1,
    label="text Fréchet distance (ours)",
    units="squared units of the judges' features",
    higher_is_better=False,
    scale="log",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="Gaussian fits of n generated and n fresh real texts; biased upwards by about 1/n",
    chance="the floor at this n, measured: the cell's own real rows against the fresh ones",
    ceiling="the same floor: shuffling keeps the law",
    min_rows=128,
    needs=("text", "image", "audio"),
)


class FrechetOfTexts(Frechet):
    name, modality, least = "text_frechet", "text", CARD.min_rows

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        if judges.judged_by(data) == "pretrained":
            raise Inapplicable("the paper's judges have no features of texts that are compared by a Fréchet distance")


METRIC = FrechetOfTexts
