"""Held-out R^2 of a small network from the latent of a subset to one factor of the world.

For shared factors more is better (sufficiency); for private factors less is (minimality): read the factor first.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.explained_variance import ExplainedVariance

CARD = MetricCard(
    version=1,
    label="R² (MLP)",
    units="fraction of variance",
    higher_is_better=True,
    scale="linear",
    tasks=("criteria",),
    estimator="ridge plus one hidden layer on its residuals, fitted on validation rows, scored on test rows",
    chance="0: the factor's mean",
    ceiling="1 where a given modality holds the factor, 0 elsewhere",
    needs=("vector",),
)


class ProbeMLP(ExplainedVariance):
    pass


METRIC = ProbeMLP
