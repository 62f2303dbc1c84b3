"""Unconditional coherence on the digit alone: the part of `label_coherence` that the other label does not touch."""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.label_metric import Coherence

CARD = MetricCard(
    version=1,
    label="digit coherence",
    units="share of rows",
    higher_is_better=True,
    scale="logit",
    tasks=("uncond",),
    estimator="share of rows in which every two modalities that show the digit agree on it",
    chance="one over its classes, to the number of modalities that show it less one: exact",
    ceiling="the same on held-out rows: what the verifier's own errors leave",
    needs=("image", "label"),
)


class DigitCoherence(Coherence):
    labels = ("digit",)


METRIC = DigitCoherence
