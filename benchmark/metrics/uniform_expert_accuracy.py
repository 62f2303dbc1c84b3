"""What a uniformly drawn expert would score where all labels are given, read from samples that saw one of them.

A mixture of experts that is given several modalities infers the latent from one of them, drawn uniformly. Its accuracy
on all of them is then the mean of this number over the sources: how often a generated picture shows *every* label of
the real row, of which one was given and the others are luck.
"""

from __future__ import annotations

from typing import Any

from benchmark.api import Cell, Inapplicable, MetricCard
from benchmark.metrics.common.label_metric import Asked, Recovered, determined, luck, mean, shown_by

CARD = MetricCard(
    version=1,
    label="uniform-expert prediction",
    units="share of rows",
    higher_is_better=True,
    scale="logit",
    tasks=("one_to_one",),
    estimator="share of the wanted modalities that show every label of the real row, averaged over rows",
    chance="the product of one over the classes of each label, exact: labels are uniform",
    ceiling="label accuracy of held-out pictures on what is given, times chance on what is not",
    needs=("image", "label"),
)


class UniformExpertAccuracy(Recovered):
    @staticmethod
    def asked(cell: Cell, data: Any) -> Asked:
        if len(cell.given) != 1:
            raise Inapplicable("the uniform-expert prediction is read from cells that give one modality")
        asked = shown_by(data, cell.want)
        if not determined(data, cell) or not asked:
            raise Inapplicable("what is given or what is wanted shows no label")
        return asked

    @classmethod
    def ceiling(cls, cell: Cell, data: Any) -> float | None:
        known, values = determined(data, cell), []
        for name, labels in cls.asked(cell, data).items():
            fixed = Recovered.ceiling(Cell(cell.dataset, cell.given, (name,)), data) if known & {*labels} else 1.0
            values.append((fixed or 0.0) * luck(data, {*labels} - known))
        return mean(values)


METRIC = UniformExpertAccuracy
