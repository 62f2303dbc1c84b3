"""Speed as a ratio to a floor measured in the same run: the matrix products and convolutions alone, same shapes,
layouts, dtypes and threads.

Absolute times of a busy machine mean little, so step and floor alternate, and the ratio of their medians
is printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmark import registry
from benchmark.api import Cell
from benchmark.engine.execution import build, guarded, trainer_of
from benchmark.engine.train import LOG_EVERY, Trainer, autocast, training_batch
from benchmark.records.job import job_of
from benchmark.records.run_identity import prepare
from benchmark.runtime import Draws, copied

ROUNDS, STEPS = 9, 8  # medians over rounds of this many steps each

Product = tuple[Any, tuple[Any, ...]]  # an operation of aten, and its arguments with tensors described


def profile_method(
    name: str, dataset: str, preset: str, overrides: Sequence[str], device: str, to_loss: float = 0.0
) -> Iterator[str]:
    """Lines to print: training step and sampling against their floors, and what the rest of a step is.

    With `to_loss`, a training is then timed until the validation reconstruction loss is at most that.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = prepare(job_of(name, dataset, preset, 0, []), Path(folder), overrides)
        with guarded(run, device):
            data = registry.load("dataset", dataset, run.config.own_values)(run.config, device)
            method = build(run, data, device)
            yield (
                f"{registry.stem(name)} at preset {preset} on {device}, {torch.get_num_threads()} threads, "
                f"{run.config.precision}, {run.config.batch_rows} rows per update"
            )
            if run.method_card.stages:
                run.directory.mkdir(parents=True)
                trainer, start = trainer_of(run, data, device), 0
                for stage, end in trainer.schedule:
                    yield from _training(trainer, stage, start, device)
                    start = end
                if to_loss:
                    yield _seconds_to(to_loss, trainer_of(run, data, device), device)
            yield from _sampling(method, data, run.config, device)


def _training(trainer: Trainer, stage: str, start: int, device: str) -> Iterator[str]:
    """A step of the stage, which begins at update `start`, without what its beginning takes."""
    rows = trainer.config.batch_rows
    draws = Draws("profile", rows=rows, block=rows, device=device)
    batch = training_batch(trainer.data, draws, 0, 0)
    trainer.updates = start
    trainer.update()

    def update() -> None:
        trainer.updates = start + 1
        trainer.update()

    def forward(model: Any = trainer.model) -> Any:
        with autocast(trainer.config, device):
            return model.loss(copied(batch), stage, Draws("profile", rows=rows, block=rows, device=device))[0]

    if len(trainer.schedule) > 1:
        yield f"stage {stage}:"
    with Products() as products:  # on the average, whose networks are never compiled
        trainer.average.requires_grad_(True)
        forward(trainer.average).backward()
        trainer.average.requires_grad_(False)
    floor = _floor(products.calls, recycle=False)
    step, alone = _alternate(update, floor, device)
    yield (
        f"training step  {1e3 * step:8.2f} ms   floor {1e3 * alone:8.2f} ms   ratio {step / alone:.2f}   "
        f"({rows / step:.0f} rows/s)"
    )
    both, once = _alternate(lambda: forward().backward(), forward, device)
    yield (
        f"  of which     {1e3 * once:8.2f} ms forward, {1e3 * (both - once):.2f} ms backward, "
        f"{1e3 * max(0.0, step - both):.2f} ms batch, clipping, optimiser and weight average"
    )
    compose, _ = _alternate(lambda: training_batch(trainer.data, draws, 0, 0), lambda: None, device)
    yield f"  composing its batch takes {1e3 * compose:.2f} ms, {compose / step:.1%} of it"


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
            loss = float(average.loss(copied(batch), trainer.schedule[0][0], draws)[1]["reconstruction"])
    reached = "reached" if loss <= target else "NOT reached within the budget"
    return (
        f"validation reconstruction loss {target:g} {reached}: {loss:.4f} after {spent:.1f} s of training, "
        f"{trainer.updates} updates"
    )


def _sampling(method: Any, data: Any, config: Any, device: str) -> Iterator[str]:
    names = tuple(modality.name for modality in data.modalities)
    pictures = sum(modality.kind == "image" for modality in data.modalities)
    cell, rows = Cell("", (), names), 64 if pictures else 1024

    def sample() -> None:
        with torch.no_grad(), autocast(config, device):
            method.sample({}, cell.want, rows, Draws("profile", rows=rows, device=device))

    with Products() as products:
        sample()
    floor = _floor(products.calls, recycle=True)
    spent, alone = _alternate(sample, floor, device, steps=1)
    rate = f", {rows * pictures / spent:.1f} pictures/s" if pictures else ""
    yield (
        f"sampling       {1e3 * spent:8.2f} ms   floor {1e3 * alone:8.2f} ms   ratio {spent / alone:.2f}   "
        f"({rows} rows of all modalities from nothing{rate})"
    )


class Products(TorchDispatchMode):
    """Records every matrix product and convolution that runs, of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Product] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.overloadpacket in PRODUCTS:
            alone, first = PRODUCTS[operator.overloadpacket]
            self.calls.append((alone, tree_map(_described, args[first:])))
        return operator(*args, **(kwargs or {}))


aten = torch.ops.aten
# Operation -> the product alone, and its first factor among the arguments: what a product is added to is left out.
PRODUCTS = {
    aten.mm: (aten.mm.default, 0),
    aten.bmm: (aten.bmm.default, 0),
    aten.addmm: (aten.mm.default, 1),
    aten.baddbmm: (aten.bmm.default, 1),
    aten.convolution: (aten.convolution.default, 0),
    aten.convolution_backward: (aten.convolution_backward.default, 0),
}


@dataclass(frozen=True)
class _Described:
    """A tensor without its content."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def made(self) -> Tensor:
        once = [1 if step == 0 else size for size, step in zip(self.shape, self.stride, strict=True)]
        filled = torch.empty_strided(once, self.stride, dtype=self.dtype, device=self.device).normal_()
        return filled.expand(self.shape)


def _described(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return _Described(argument.shape, argument.stride(), argument.dtype, argument.device)
    return argument


def _floor(products: list[Product], recycle: bool) -> Callable[[], None]:
    """The recorded products alone: same shapes, layouts, dtypes and device. With `recycle`, tensors that look alike
    are one, as in a sampler, whose steps use the same weights and recycled memory; else each product has its own, as
    in a training step, which keeps them for the backward pass."""
    make = cache(_Described.made) if recycle else _Described.made
    made = [
        (product, tree_map(lambda each: make(each) if isinstance(each, _Described) else each, arguments))
        for product, arguments in products
    ]

    def run() -> None:
        with torch.no_grad():
            for product, arguments in made:
                product(*arguments)

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
