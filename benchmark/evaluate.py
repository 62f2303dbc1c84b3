"""Sample a method once per cell and feed every metric; the noise depends on cell, seed and row alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmark import registry
from benchmark.api import Batch, Cell, Dataset, Inapplicable, Modality, Score
from benchmark.config import Config
from benchmark.runtime import Draws
from benchmark.train import autocast

BATCH_ROWS = 1024  # rows per call of `sample`; no number depends on it


@dataclass(frozen=True)
class Result:
    """One metric of one cell: a score, or the reason why there is none; seconds of sampling per 1,000 rows."""

    cell: Cell
    metric: str
    score: Score | None
    reason: str | None
    sample_seconds: float | None


def metrics_of(cell: Cell, names: list[str], data: Dataset) -> tuple[dict[str, Any], list[Result]]:
    """The metrics that apply to a cell, ready for rows, and an n/a result for each that does not."""
    ready, refused = {}, []
    for name in names:
        try:
            ready[name] = registry.load("metric", name)(cell, data)
        except Inapplicable as reason:
            refused.append(Result(cell, name, None, str(reason), None))
    return ready, refused


def evaluate_cell(
    method: Any,
    data: Dataset,
    cell: Cell,
    names: list[str],
    config: Config,
    seed: int,
    device: str,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Result]:
    """Scores of one cell, n/a where the method says so. Row r is test row r where the cell gives modalities.

    Raises ValueError for generated rows that are missing, misshapen or not finite.
    """
    metrics, refused = metrics_of(cell, names, data)
    yield from refused
    rows, spent = data.rows_of(cell), 0.0
    if hasattr(method, "known"):
        for name, value in [(name, method.known(metric, cell)) for name, metric in metrics.items()]:
            if value is not None:
                del metrics[name]
                yield Result(cell, name, Score(value, 0.0, rows), None, None)
    if not metrics:
        return
    repeats = max(getattr(metric, "draws_per_row", 1) for metric in metrics.values())
    for start in range(0, rows, batch_rows):
        count = min(batch_rows, rows - start)
        real = data.rows("test", torch.arange(start, start + count, device=device))
        given = {name: real[name] for name in cell.given}
        before = time.perf_counter()
        samples = []
        for repeat in range(repeats):
            draws = Draws("evaluate", cell, seed, repeat, rows=count, first_row=start, device=device)
            try:
                with torch.no_grad(), autocast(config, device):
                    samples.append(method.sample(given, cell.want, count, draws))
            except Inapplicable as reason:
                yield from (Result(cell, name, None, str(reason), None) for name in metrics)
                return
            check_rows(samples[-1], cell, data.modalities, count)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent += time.perf_counter() - before
        for metric in metrics.values():
            metric.update(real, _stack(samples[: getattr(metric, "draws_per_row", 1)]))
    per_thousand = 1000 * spent / (rows * repeats)
    for name, metric in metrics.items():
        try:
            yield Result(cell, name, metric.compute(), None, per_thousand)
        except Inapplicable as reason:
            yield Result(cell, name, None, str(reason), per_thousand)


def check_rows(generated: Batch, cell: Cell, modalities: Sequence[Modality], rows: int) -> None:
    """Raises ValueError, naming the fault, unless `generated` holds `rows` rows of every wanted modality."""
    for modality in (each for each in modalities if each.name in cell.want):
        name, shape = modality.name, (rows, *modality.shape)
        if name not in generated:
            raise ValueError(f"sample() returned no {name!r} for {cell}")
        x = generated[name]
        if tuple(x.shape) != shape:
            raise ValueError(f"sample() returned {name!r} of shape {tuple(x.shape)}, not {shape}")
        if not torch.isfinite(x).all():
            raise ValueError(f"sample() returned {name!r} that is not finite for {cell}")
        if modality.classes and (x.is_floating_point() or bool(((x < 0) | (x >= modality.classes)).any())):
            raise ValueError(f"sample() returned {name!r} that is no label from 0 to {modality.classes - 1} for {cell}")


def _stack(samples: list[Batch]) -> Batch:
    """One draw as it is; several along a new second dimension, (rows, draws, *shape)."""
    if len(samples) == 1:
        return samples[0]
    return {name: torch.stack([sample[name] for sample in samples], 1) for name in samples[0]}
