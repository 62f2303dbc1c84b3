"""CLIPScore: how well a text and a picture go together, 100 times the cosine of their embeddings.

Without the weight 2.5, the prefix "A photo depicts" and the clamp at 0 of Hessel et al. (2021), as the paper's values
around 30 show. At preset `paper` the embeddings are CLIP ViT-B/32's; elsewhere the suite's own towers', so that numbers
of two datasets do not compare.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.embedding_pairs import Cosine

CARD = MetricCard(
    version=1,
    label="CLIPScore",
    units="100 cos",
    higher_is_better=True,
    scale="linear",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="mean over rows of 100 times the cosine of text and picture; what is given is real, the rest generated",
    chance="the mean over all pairs of real rows, measured",
    ceiling="the same of real pairs, measured",
    needs=("text", "image", "audio"),
)


class ClipScore(Cosine):
    name, pair = "clip_score", ("text", "image")


METRIC = ClipScore
