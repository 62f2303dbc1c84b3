"""Unconditional coherence (MUNI, Sec. 6.2): all that is generated from nothing agrees on every label.

The verifier's readings of the pictures have to agree with one another and with the generated labels. A model that
always draws one digit in one place is coherent: read it beside `label_marginals` and `frechet_verifier`.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.label_metric import Coherence

CARD = MetricCard(
    version=1,
    label="coherence",
    units="share of rows",
    higher_is_better=True,
    scale="logit",
    tasks=("uncond",),
    estimator="share of rows in which every two modalities that show a label agree on it, for all labels at once",
    chance="one over the classes of each label, to the number of modalities that show it less one: exact",
    ceiling="the same on held-out rows: what the verifier's own errors leave",
    needs=("image", "label"),
)


class LabelCoherence(Coherence):
    pass


METRIC = LabelCoherence
