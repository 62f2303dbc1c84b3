"""Speed as a ratio to a floor measured in the same run: the matrix products alone, same shapes, dtype and threads.

Absolute times of a busy machine mean little, so step and floor alternate, and the ratio of their medians
is printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmark import registry
from benchmark.api import Cell
from benchmark.runner import build, prepare, trainer_of
from benchmark.runtime import Draws
from benchmark.tables import job_of
from benchmark.train import LOG_EVERY, Trainer, autocast

ROUNDS, STEPS = 9, 8  # medians over rounds of this many steps each

Product = tuple[tuple[int, ...], tuple[int, ...], bool]  # shapes of both factors; whether a gradient flows to the first


def profile_method(
    name: str, dataset: str, preset: str, overrides: Sequence[str], device: str, to_loss: float = 0.0
) -> Iterator[str]:
    """Lines to print: training step and sampling against their floors, and what the rest of a step is.

    With `to_loss`, a training is then timed until the validation reconstruction loss is at most that.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = prepare(job_of(name, dataset, preset, 0, []), Path(folder), overrides)
        data = registry.load("dataset", dataset)(run.config, device)
        method = build(run, data, device)
        yield (
            f"{registry.stem(name)} at preset {preset} on {device}, {torch.get_num_threads()} threads, "
            f"{run.config.precision}, {run.config.batch_rows} rows per update"
        )
        if run.method_card.stages:
            run.directory.mkdir(parents=True)
            yield from _training(trainer_of(run, data, device), device)
            if to_loss:
                yield _seconds_to(to_loss, trainer_of(run, data, device), device)
        yield from _sampling(method, data, run.config, device)


def _training(trainer: Trainer, device: str) -> Iterator[str]:
    with _record_products(trainer.model) as products:
        trainer.update()
    floor = _floor(products, trainer.config, device, backward=True)
    step, alone = _alternate(lambda: trainer.update(), floor, device)
    yield f"training step  {1e3 * step:8.2f} ms   floor {1e3 * alone:8.2f} ms   ratio {step / alone:.2f}"
    rows = trainer.config.batch_rows
    draws = Draws("profile", rows=rows, block=rows, device=device)
    batch = trainer.data.rows("train", draws.integers("rows", trainer.data.count("train")))
    stage = trainer.schedule[0][0]

    def forward() -> Any:
        with autocast(trainer.config, device):
            return trainer.model.loss(batch, stage, Draws("profile", rows=rows, block=rows, device=device))[0]

    both, once = _alternate(lambda: forward().backward(), forward, device)
    yield (
        f"  of which     {1e3 * once:8.2f} ms forward, {1e3 * (both - once):.2f} ms backward, "
        f"{1e3 * max(0.0, step - both):.2f} ms batch, clipping, optimiser and weight average"
    )


def _seconds_to(target: float, trainer: Trainer, device: str) -> str:
    """Training seconds until the weight average's reconstruction loss on fixed validation rows reaches `target`."""
    batch = trainer.data.rows("validation", torch.arange(min(4096, trainer.data.count("validation")), device=device))
    rows = len(next(iter(batch.values())))
    average: Any = trainer.average
    loss, spent = float("inf"), 0.0
    while loss > target and not trainer.progress.done:
        started = time.perf_counter()
        trainer.advance(min(LOG_EVERY, trainer.config.updates - trainer.updates))
        spent += time.perf_counter() - started
        with torch.no_grad(), autocast(trainer.config, device):
            draws = Draws("validation loss", rows=rows, block=rows, device=device)
            loss = float(average.loss(batch, trainer.schedule[0][0], draws)[1]["reconstruction"])
    reached = "reached" if loss <= target else "NOT reached within the budget"
    return (
        f"validation reconstruction loss {target:g} {reached}: {loss:.4f} after {spent:.1f} s of training, "
        f"{trainer.updates} updates"
    )


def _sampling(method: Any, data: Any, config: Any, device: str) -> Iterator[str]:
    names = tuple(modality.name for modality in data.modalities)
    cell, rows = Cell("", (), names), 1024

    def sample() -> None:
        with torch.no_grad(), autocast(config, device):
            method.sample({}, cell.want, rows, Draws("profile", rows=rows, device=device))

    with _record_products(method) as products:
        sample()
    floor = _floor(products, config, device, backward=False)
    spent, alone = _alternate(sample, floor, device, steps=1)
    yield (
        f"sampling       {1e3 * spent:8.2f} ms   floor {1e3 * alone:8.2f} ms   ratio {spent / alone:.2f}   "
        f"({rows} rows of all modalities from nothing)"
    )


class _record_products:
    """Collects the shapes of every stacked product that a model's linear layers do."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.products: list[Product] = []

    def __enter__(self) -> list[Product]:
        self._original = torch.baddbmm

        def recorded(start: Any, x: Any, weight: Any, **options: Any) -> Any:
            self.products.append((tuple(x.shape), tuple(weight.shape), x.requires_grad))
            return self._original(start, x, weight, **options)

        torch.baddbmm = recorded  # type: ignore[assignment]
        return self.products

    def __exit__(self, *error: object) -> None:
        torch.baddbmm = self._original


def _floor(products: list[Product], config: Any, device: str, backward: bool) -> Callable[[], None]:
    """The recorded products alone, and with `backward` the two products of each one's gradients."""
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    made = [
        (torch.randn(x, device=device, dtype=dtype), torch.randn(w, device=device, dtype=dtype), deep)
        for x, w, deep in products
    ]

    def run() -> None:
        with torch.no_grad():
            for x, weight, deep in made:
                out = torch.bmm(x, weight)
                if backward:
                    torch.bmm(x.transpose(1, 2), out)
                    if deep:
                        torch.bmm(out, weight.transpose(1, 2))

    return run


def _alternate(
    first: Callable[[], object], second: Callable[[], object], device: str, steps: int = STEPS
) -> tuple[float, float]:
    """Median seconds of each, measured in turns after a warm-up of both."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for spent, work in zip(times, (first, second), strict=True):
            _wait(device)
            before = time.perf_counter()
            for _ in range(steps):
                work()
            _wait(device)
            if turn:
                spent.append((time.perf_counter() - before) / steps)
    return statistics.median(times[0]), statistics.median(times[1])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
