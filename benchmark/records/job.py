"""A job: one training and the scores that are asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmark.api import Cell
from benchmark.toml_files import checked_seed


@dataclass(frozen=True)
class Job:
    """One training and what it is scored on: every metric on every cell, but for the pairs in `skip`."""

    method: str
    dataset: str
    preset: str
    seed: int
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    skip: frozenset[tuple[Cell, str]] = frozenset()

    def __post_init__(self) -> None:
        checked_seed(self.seed, self.method)

    @property
    def scores(self) -> tuple[tuple[Cell, str], ...]:
        """The (cell, metric) pairs that are asked for, in order."""
        pairs = ((cell, metric) for cell in self.cells for metric in self.metrics)
        return tuple(pair for pair in pairs if pair not in self.skip)


def job_of(method: str, dataset: str, preset: str, seed: int, pairs: Iterable[tuple[Cell, str]]) -> Job:
    """The job that asks exactly these (cell, metric) pairs, once each, in order of cells, then metrics."""
    wanted = dict.fromkeys(pairs)
    asked = tuple(dict.fromkeys(cell for cell, _ in wanted))
    metrics = tuple(dict.fromkeys(metric for _, metric in wanted))
    skip = frozenset((cell, metric) for cell in asked for metric in metrics) - wanted.keys()
    return Job(method, dataset, preset, seed, asked, metrics, skip)
