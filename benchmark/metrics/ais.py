"""Audio-image similarity: how many counterparts of other rows a generated picture or sound fits less than its own.

For each generated g_i, the percentage of the pool's items r with <g_i, r> strictly below <g_i, c_i>, where c_i is its
counterpart and the pool holds the counterparts of all rows; then the mean (the follow-up of MUNI, eq. 19). It is a rank
and no cosine: 50 is chance. c_i is in the pool itself, so the most is 100 (n - m) / n where m rows share it, and chance
is 50 (1 - sum over distinct counterparts of their m^2 / n^2), which is 50 (1 - 1 / n) where none is shared.

Where both are generated together, g is the picture and the pool the generated sounds: a choice, since the paper does
not say. The items of a shared recording are one item with their number as its weight, so that no rounding of a product
breaks their tie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.api import Cell, MetricCard, Score
from benchmark.judges.judges import Pair
from benchmark.metrics.common.embedding_pairs import Embedded, clustered_error, sides
from benchmark.metrics.common.row_statistics import enough

CARD = MetricCard(
    version=1,
    label="AIS",
    units="percent of the pool",
    higher_is_better=True,
    scale="linear",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="mean over rows of the percentage of counterparts that fit strictly less than the row's own; error by "
    "the delta method, for rows both as questions and as the pool",
    chance="50 (1 - the probability that two rows, drawn with repetition, share their counterpart): exact",
    ceiling="the same of real pairs, measured",
    needs=("text", "image", "audio"),
)
QUESTIONS = 512  # rows that are ranked at a time


class AudioImageSimilarity(Embedded):
    name, pair = "ais", ("image", "audio")

    @classmethod
    def order(cls, cell: Cell) -> Pair:
        """What is ranked for, and the pool."""
        generated = sides(cell, cls.pair)
        return cls.pair if generated["image"] else ("audio", "image")

    @staticmethod
    def of_pairs(first: Tensor, second: Tensor, clusters: Tensor, what: str) -> Score:
        enough(len(first), 2, what)
        beaten, fooled = ranks(first, second)
        value = beaten.mean()
        # A row is a question once and an item of the pool once.
        influence = (beaten - value) + (fooled - value)
        return Score(100 * value.item(), _percent(clustered_error(influence, clusters)), len(first))

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        _, pool = cls.real(cell, data)
        shares = pool.unique(dim=0, return_counts=True)[1].double() / len(pool)
        return 50 * (1 - shares.square().sum().item())

    @classmethod
    def how(cls) -> dict[str, Any]:
        return {"version": 1, "scale": "rank percentile", "pool": "counterparts of all rows", "ties": "strict"}


def ranks(questions: Tensor, counterparts: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) float64 twice: the share of the pool that fits a row's question less than its own counterpart does, and
    the share of the questions whose own counterpart fits better than the row's does. Their means are equal.

    questions, counterparts: (rows, size) float64, row by row.
    """
    rows = len(questions)
    items, own, count = counterparts.unique(dim=0, return_inverse=True, return_counts=True)
    weights = count.double()
    beaten = torch.empty(rows, dtype=torch.float64)
    fooled = torch.zeros(len(items), dtype=torch.float64)
    for start in range(0, rows, QUESTIONS):
        fits = questions[start : start + QUESTIONS] @ items.T
        less = fits < fits.gather(1, own[start : start + QUESTIONS, None])
        beaten[start : start + QUESTIONS] = less.double() @ weights / rows
        fooled += less.double().sum(0) / rows
    return beaten, fooled[own]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


METRIC = AudioImageSimilarity
