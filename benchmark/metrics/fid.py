"""Fréchet distance of generated pictures to fresh real ones, on the judges' features.

At preset `paper` the features are InceptionV3's 2,048, and this is the FID of Heusel et al. (2017). Elsewhere they are
64 of a small network of the suite's own: no number of another paper or judge compares. It sees the marginal alone, so
it is also what keeps one picture, repeated, from winning among coherent triples.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.embedding_pairs import Frechet

CARD = MetricCard(
    version=1,
    label="FID",
    units="squared units of the judges' features",
    higher_is_better=False,
    scale="log",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="Gaussian fits of n generated and n fresh real pictures; biased upwards by about 1/n",
    chance="the floor at this n, measured: the cell's own real rows against the fresh ones",
    ceiling="the same floor: shuffling keeps the law",
    min_rows=128,
    needs=("text", "image", "audio"),
)


class FrechetOfPictures(Frechet):
    name, modality, least = "fid", "image", CARD.min_rows


METRIC = FrechetOfPictures
