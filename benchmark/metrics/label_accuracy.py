"""Alignment on labelled pictures (MUNI, Sec. 6.2): is what was given recovered from what was generated?

From labels to a picture: does the verifier read every given label in it? A given picture fixes all its labels, which
are the real row's; a generated label is compared as it is. Two labels given: only a picture that shows both counts.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.label_metric import Recovered

CARD = MetricCard(
    version=1,
    label="label accuracy",
    units="share of rows",
    higher_is_better=True,
    scale="logit",
    tasks=("one_to_one", "many_to_one", "one_to_many"),
    estimator="share of the wanted modalities that show every given label, averaged over rows",
    chance="the product of one over the classes of each given label, exact: labels are uniform",
    ceiling="the same on held-out pictures: what the verifier's own errors leave",
    needs=("image", "label"),
)


class LabelAccuracy(Recovered):
    pass


METRIC = LabelAccuracy
