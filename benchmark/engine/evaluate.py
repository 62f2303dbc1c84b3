"""Sample a method once per cell and feed every metric; the noise depends on cell, seed and row alone.

Where modalities are features, what is scored is the pictures, sounds and sentences that they are rendered to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark import registry
from benchmark.api import Batch, Cell, Inapplicable, Modality, Raw, Score, Unanswered, one_line
from benchmark.config import Config
from benchmark.engine.samples import Samples
from benchmark.engine.train import autocast
from benchmark.runtime import Draws, copied

BATCH_ROWS = 1024  # rows per call of `sample`; no number depends on it
KEPT_ROWS = 256  # where what is generated is kept on disk, and so is not lost when a run is stopped


@dataclass(frozen=True)
class Result:
    """One metric of one cell: a score, or the reason why there is none; seconds of sampling per 1,000 rows.

    protocol: what the score depends on besides the configuration, where the metric states it.
    """

    cell: Cell
    metric: str
    score: Score | None
    reason: str | None
    sample_seconds: float | None
    protocol: Any = None


def metrics_of(cell: Cell, names: list[str], data: Any, config: Config) -> tuple[dict[str, Any], list[Result]]:
    """The metrics that apply to a cell, ready for rows, and an n/a result for each that does not."""
    ready, refused = {}, []
    for name in names:
        try:
            ready[name] = registry.load("metric", name, config.own_values)(cell, data)
        except Inapplicable as reason:
            refused.append(Result(cell, name, None, str(reason), None))
    return ready, refused


def evaluate_cell(
    method: Any,
    data: Any,
    cell: Cell,
    names: list[str],
    config: Config,
    seed: int,
    device: str,
    batch_rows: int = BATCH_ROWS,
    kept: Samples | None = None,
) -> Iterator[Result]:
    """Scores of one cell, n/a where the method says so. Row r is row r of the cell's split where it gives modalities.

    kept: where generated things are kept, for a dataset that has them: its rows are scored as they are there.
    Raises ValueError for generated rows that are missing, misshapen or not finite.
    """
    metrics, refused = metrics_of(cell, names, data, config)
    yield from refused
    rows, spent = data.rows_of(cell), 0.0
    if hasattr(method, "known"):
        for name, metric in list(metrics.items()):
            if (value := method.known(metric, cell)) is not None:
                protocol = _protocol(metrics.pop(name), data)
                yield Result(cell, name, Score(value, 0.0, rows), None, None, protocol)
    if not metrics:
        return
    repeats = max(getattr(metric, "draws_per_row", 1) for metric in metrics.values())
    batch_rows = min(batch_rows, BATCH_ROWS if kept is None else KEPT_ROWS)
    for start in range(0, rows, batch_rows):
        count = min(batch_rows, rows - start)
        asked = split_of(data, cell), torch.arange(start, start + count, device=device)
        real: Any = (data.rows if kept is None else data.raw)(*asked)
        try:
            if kept is None:
                timed = [_sample(method, data, cell, real, config, seed, start, repeat) for repeat in range(repeats)]
                samples: list[Any] = [batch for batch, _ in timed]
                spent += sum(seconds for _, seconds in timed)
            else:
                keep(method, data, cell, config, seed, device, start + count, kept)
                samples = [kept.read(start, count, cell.want, device)]
        except (Inapplicable, Unanswered) as reason:
            failed = "error: " if isinstance(reason, Unanswered) else ""
            yield from (Result(cell, name, None, f"{failed}{one_line(reason)}", None) for name in metrics)
            return
        for metric in metrics.values():
            metric.update(copied(real), copied(_stack(samples[: getattr(metric, "draws_per_row", 1)])))
    per_thousand = 1000 * (spent if kept is None else kept.seconds) / (rows * repeats)
    for name, metric in metrics.items():
        try:
            yield Result(cell, name, metric.compute(), None, per_thousand, _protocol(metric, data))
        except Inapplicable as reason:
            yield Result(cell, name, None, str(reason), per_thousand)
        except RuntimeError as error:  # something that one metric needs is not here; the others go on
            yield Result(cell, name, None, f"error: {one_line(error)}", per_thousand)


def _protocol(metric: Any, data: Any) -> Any:
    return metric.protocol(data) if hasattr(metric, "protocol") else None


def keep(method: Any, data: Any, cell: Cell, config: Config, seed: int, device: str, rows: int, kept: Samples) -> None:
    """Generate what `kept` lacks of the first rows of a cell: whole blocks, and at most the rows that the cell has.

    Raises Inapplicable where the method says so.
    """
    while len(kept) < rows:
        start = len(kept)
        count = min(KEPT_ROWS, data.rows_of(cell) - start)
        kept.append(*_things(method, data, cell, config, seed, torch.arange(start, start + count, device=device)))


def split_of(data: Any, cell: Cell) -> str:
    """The split whose rows a cell gives and compares with."""
    return data.split_of(cell) if hasattr(data, "split_of") else "test"


def given_of(method: Any, cell: Cell, real: Batch) -> Batch:
    """What a method is given of held-out rows: the cell's modalities, and the labels that a sanity row is told."""
    if not cell.given:
        return {}
    return copied({name: real[name] for name in (*cell.given, *getattr(method, "told_labels", ()))})


def _sample(
    method: Any, data: Any, cell: Cell, real: Batch, config: Config, seed: int, start: int, repeat: int = 0
) -> tuple[Batch, float]:
    """What is generated for a block of real rows from `start` on, checked, and the seconds that it took."""
    first = next(iter(real.values()))
    count, device = len(first), str(first.device)
    given = given_of(method, cell, real)
    draws = Draws("evaluate", cell, seed, repeat, rows=count, first_row=start, device=device)
    before = time.perf_counter()
    with torch.no_grad(), autocast(config, device):
        generated = method.sample(given, cell.want, count, draws)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - before
    check_rows(generated, cell, data.modalities, count)
    return copied({name: generated[name] for name in cell.want}), seconds


def _things(method: Any, data: Any, cell: Cell, config: Config, seed: int, indices: Tensor) -> tuple[Raw, int, float]:
    """Generated pictures, sounds and sentences of a block, the sounds' rate, and the seconds of sampling.

    A method that makes things itself has `things(cell, split, indices, draws)`; features of others are rendered.
    """
    split, start = split_of(data, cell), int(indices[0])
    draws = Draws("render", cell, seed, rows=len(indices), first_row=start, device=indices.device)
    if hasattr(method, "things"):
        before = time.perf_counter()
        raw = method.things(cell, split, indices, draws)
        return raw, data.sample_rate, time.perf_counter() - before
    generated, seconds = _sample(method, data, cell, data.rows(split, indices), config, seed, start)
    with torch.no_grad():
        return data.render(generated, draws), data.sample_rate, seconds


def check_rows(generated: Batch, cell: Cell, modalities: Sequence[Modality], rows: int) -> None:
    """Raises ValueError, naming the fault, unless `generated` holds `rows` rows of every wanted modality."""
    for modality in (each for each in modalities if each.name in cell.want):
        name, shape = modality.name, (rows, *modality.generated_shape)
        if name not in generated:
            raise ValueError(f"sample() returned no {name!r} for {cell}")
        x = generated[name]
        if tuple(x.shape) != shape:
            raise ValueError(f"sample() returned {name!r} of shape {tuple(x.shape)}, not {shape}")
        if not torch.isfinite(x).all():
            raise ValueError(f"sample() returned {name!r} that is not finite for {cell}")
        if modality.classes and (x.is_floating_point() or bool(((x < 0) | (x >= modality.classes)).any())):
            raise ValueError(f"sample() returned {name!r} that is no label from 0 to {modality.classes - 1} for {cell}")


def _stack(samples: list[Any]) -> Any:
    """One draw as it is; several along a new second dimension, (rows, draws, *shape)."""
    if len(samples) == 1:
        return samples[0]
    return {name: torch.stack([sample[name] for sample in samples], 1) for name in samples[0]}
