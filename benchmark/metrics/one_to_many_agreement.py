"""Do modalities that are generated together from one label agree on the label that it leaves open?

One posterior sample of a digit does not settle a quadrant, so decoders that share nothing but that sample each guess
on their own, and agree by chance. A sampler of the joint law agrees always. The follow-up of MUNI reports the first of
MUNI: 0.2528 on the quadrant (chance 0.25) and 0.1074 on the digit (chance 0.10).
"""

from __future__ import annotations

from typing import Any

from benchmark.api import Cell, Inapplicable, MetricCard
from benchmark.metrics.common.label_metric import PairAgreement, determined, pairs_that_share

CARD = MetricCard(
    version=1,
    label="one-to-many agreement",
    units="share of pairs",
    higher_is_better=True,
    scale="logit",
    tasks=("one_to_many",),
    estimator="share of the pairs of generated modalities that agree on the labels that are not given, over rows",
    chance="the mean over pairs of one over the classes of those labels: exact",
    ceiling="the same on held-out rows: what the verifier's own errors leave",
    needs=("image", "label"),
)


class OneToManyAgreement(PairAgreement):
    @staticmethod
    def pairs(cell: Cell, data: Any) -> dict[tuple[str, str], tuple[str, ...]]:
        if not cell.given:
            raise Inapplicable("from nothing, every label is open: that is pairwise_coherence")
        found = pairs_that_share(data, cell.want, without=determined(data, cell))
        if not found:
            raise Inapplicable("no two of the wanted modalities show a label that is not given")
        return found


METRIC = OneToManyAgreement
