"""Fréchet distance of generated sounds to fresh real ones, on the judges' features.

At preset `paper` the features are VGGish's 128 for every 0.96 s, and this is the FAD of Kilgour et al. (2019).
Elsewhere they are 64 for each sound, of a small network of the suite's own: no number of another paper or judge
compares. Rows that share a recording count as one for the standard error.
"""

from __future__ import annotations

from benchmark.api import MetricCard
from benchmark.metrics.common.embedding_pairs import Frechet

CARD = MetricCard(
    version=1,
    label="FAD",
    units="squared units of the judges' features",
    higher_is_better=False,
    scale="log",
    tasks=("one_to_one", "many_to_one", "one_to_many", "uncond"),
    estimator="Gaussian fits of n generated and n fresh real sounds; biased upwards by about 1/n",
    chance="the floor at this n, measured: the cell's own real rows against the fresh ones",
    ceiling="the same floor: shuffling keeps the law",
    min_rows=128,
    needs=("text", "image", "audio"),
)


class FrechetOfSounds(Frechet):
    name, modality, least = "fad", "audio", CARD.min_rows


METRIC = FrechetOfSounds
