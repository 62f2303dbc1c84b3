"""Fréchet distance of generated pictures to fresh test pictures, on the verifier's features.

Coherence asks what pictures agree on and not whether they are pictures; this asks whether they look like the data to a
network that reads their labels. Fresh rows are the second half of the test split; per picture, then averaged. Features
of a small network of our own: no number of another paper or verifier compares.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, MetricCard, Score
from benchmark.judges import verifier
from benchmark.metrics.common import frechet
from benchmark.metrics.common.label_metric import mean, pictures, shown_by
from benchmark.metrics.common.row_statistics import enough, fresh_half

CARD = MetricCard(
    version=1,
    label="Fréchet distance",
    units="squared standard deviations of the verifier's features",
    higher_is_better=False,
    scale="log",
    tasks=("uncond", "one_to_one", "many_to_one", "one_to_many"),
    estimator="Gaussian fits of n generated and n fresh pictures; biased upwards by about 1/n; averaged over pictures",
    chance="the floor at this n, measured: held-out rows of the first half of the test split against the second",
    ceiling="the same floor: shuffling keeps each picture's law",
    min_rows=320,
    needs=("image", "label"),
)
BLOCK = 1024  # fresh rows that are read at a time


class FrechetVerifier:
    def __init__(self, cell: Cell, data: Any) -> None:
        shown_by(data, cell.want)
        if not pictures(data, cell.want):
            raise Inapplicable("no picture is wanted")
        self._cell, self._data = cell, data
        self._features: dict[str, list[Tensor]] = {name: [] for name in pictures(data, cell.want)}

    def update(self, real: Batch, generated: Batch) -> None:
        """`real` is not read."""
        for name, blocks in self._features.items():
            rows = generated[name]
            blocks.append(verifier.reading(self._data, name, str(rows.device)).read(rows).features)

    def compute(self) -> Score:
        generated = {name: torch.cat(blocks) for name, blocks in self._features.items() if blocks}
        rows = min(map(len, generated.values()), default=0)
        enough(rows, CARD.min_rows, f"frechet_verifier of {self._cell}")
        half = fresh_half(self._data, self._cell, rows)
        fresh = features(self._data, list(generated), half, rows, str(generated[next(iter(generated))].device))
        distances, pulls = [], []
        for name, found in generated.items():
            own, other = frechet.fit(found), frechet.fit(fresh[name])
            distances.append(frechet.distance(own, other))
            pulls.append((frechet.influence(found, own, other), frechet.influence(fresh[name], other, own)))
        # Pictures of one row belong together, so their influences are averaged before the spread over rows is taken.
        variance = sum(torch.stack(side).mean(0).var().item() / rows for side in zip(*pulls, strict=True))
        return Score(mean(distances), math.sqrt(variance), rows)

    @staticmethod
    def chance(cell: Cell, data: Any) -> float | None:
        rows, device = data.rows_of(cell), getattr(data, "device", "cpu")
        sides = [
            features(data, pictures(data, cell.want), first, rows, device) for first in (0, data.count("test") // 2)
        ]
        return mean(frechet.distance(*(frechet.fit(side[name]) for side in sides)) for name in sides[0])

    ceiling = chance


def features(data: Any, names: list[str], first: int, rows: int, device: str) -> dict[str, Tensor]:
    """Features of test pictures from row `first` on, {name: (rows, size)}, read once per process."""
    networks = {name: verifier.reading(data, name, device) for name in names}

    def work() -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for start in range(first, first + rows, BLOCK):
            block = data.rows("test", torch.arange(start, min(start + BLOCK, first + rows), device=device))
            for name in names:
                found[name].append(networks[name].read(block[name]).features)
        return {name: torch.cat(blocks) for name, blocks in found.items()}

    return networks[names[0]].keep(("features", *names, first, rows, data.count("test")), work)


METRIC = FrechetVerifier
