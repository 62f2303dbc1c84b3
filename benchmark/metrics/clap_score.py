"""CLAPScore: how well a text and a sound go together, 100 times the cosine of their embeddings.

At preset `paper` the embeddings are LAION's larger CLAP's, another one than the codec's; elsewhere the suite's own
towers', so that numbers of two datasets do not compare.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.embedding_pairs import Cosine

CARD = MetricCard(
    version=1,
    label="CLAPScore",
    units="100 cos",
    higher_is_better=True,
    scale="linear",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="mean over rows of 100 times the cosine of text and sound; what is given is real, the rest generated",
    chance="the mean over all pairs of real rows, measured",
    ceiling="the same of real pairs, measured",
    needs=("text", "image", "audio"),
)


class ClapScore(Cosine):
    name, pair = "clap_score", ("text", "audio")


METRIC = ClapScore
