"""Unconditional coherence of pairs: how often two modalities that are generated together agree on all they both show.

`label_coherence` falls with the number of modalities; this does not, and it tells one stray modality from none that
agree.
"""

from __future__ import annotations

from typing import Any

from benchmark.api import Cell, Inapplicable, MetricCard
from benchmark.metrics.common.label_metric import PairAgreement, pairs_that_share

CARD = MetricCard(
    version=1,
    label="pairwise coherence",
    units="share of pairs",
    higher_is_better=True,
    scale="logit",
    tasks=("uncond",),
    estimator="share of the pairs of modalities that agree on all labels they both show at once, averaged over rows",
    chance="the mean over pairs of one over the classes of the labels they share: exact",
    ceiling="the same on held-out rows: what the verifier's own errors leave",
    needs=("image", "label"),
)


class PairwiseCoherence(PairAgreement):
    @staticmethod
    def pairs(cell: Cell, data: Any) -> dict[tuple[str, str], tuple[str, ...]]:
        if cell.given:
            raise Inapplicable("coherence is asked of rows that are generated from nothing")
        found = pairs_that_share(data, cell.want, without=set())
        if not found:
            raise Inapplicable("no two of the wanted modalities show one label")
        return found


METRIC = PairwiseCoherence
