"""Clipped AdamW and the weight average, over weights that lie in one buffer: a few operations for a whole model.

A weight without a gradient stays as it is, momentum included, as with AdamW over single weights: a stage may
train some of the weights, and another stage the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmark.config import Config
from benchmark.engine.process_group import here


class Optimizer:
    """Moves the weights of `model` and of its `average` into one buffer each; both stay usable as they were."""

    def __init__(self, model: nn.Module, average: nn.Module, config: Config) -> None:
        self._config = config
        self._parameters = list(model.parameters())
        check_ties(model)
        self._weights, self._average = gather(self._parameters), gather(average.parameters())
        self._first, self._second = torch.zeros_like(self._weights), torch.zeros_like(self._weights)  # moments
        self._steps = [0] * len(self._parameters)  # of each weight
        self._starts = [0, *accumulate(each.numel() for each in self._parameters)]
        self._gathered: tuple[bool, ...] = ()  # which weights had a gradient when the runs were made
        self._runs: list[tuple[int, int]] = []  # neighbouring weights with a gradient and equally many steps
        self._gradient = self._weights[:0]  # of all runs, one after the other
        self._processes = here()
        self._adam: torch.optim.AdamW | None = None
        self._average_step = get_ema_multi_avg_fn(1 - 1 / config.ema_updates)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update with the gradients that the model's weights hold; they are then forgotten."""
        trained = tuple(each.grad is not None for each in self._parameters)
        if trained != self._gathered:
            self._begin(trained)
        if self._adam is not None:
            runs = self._adam.param_groups[0]["params"]
            for run, (first, last) in zip(runs, self._runs, strict=True):
                gradients = (each.grad for each in self._parameters[first:last])
                torch.cat([_flat(each) for each in gradients if each is not None], out=run.grad)
            self._processes.average(self._gradient)
            torch.nn.utils.clip_grad_norm_(runs, self._config.clip_norm)
            self._adam.param_groups[0]["lr"] = learning_rate
            self._adam.step()
        for number, (each, moved) in enumerate(zip(self._parameters, trained, strict=True)):
            each.grad = None
            self._steps[number] += moved
        self._average_step([self._average], [self._weights], None)

    @torch.no_grad()
    def start_from_average(self) -> None:
        """The weights become their average, which goes on from there; moments and steps go on, too."""
        self._weights.copy_(self._average)

    def finite(self) -> bool:
        return bool(torch.isfinite(self._weights).all())

    def state(self) -> dict[str, Tensor]:
        """Both moments, each (weights,), and the steps of each weight: what a resume needs."""
        return {"first": self._first, "second": self._second, "steps": torch.tensor(self._steps)}

    def load(self, state: dict[str, Tensor]) -> None:
        self._first.copy_(state["first"])
        self._second.copy_(state["second"])
        self._steps = state["steps"].tolist()
        self._gathered = ()

    def _begin(self, trained: tuple[bool, ...]) -> None:
        """Make the runs anew, with the moments and steps that their weights have."""
        self._gathered, self._runs = trained, []
        kinds = groupby(range(len(trained)), key=lambda number: (trained[number], self._steps[number]))
        for (moved, _), members in kinds:
            numbers = list(members)
            if moved:
                self._runs.append((numbers[0], numbers[-1] + 1))
        parts = [slice(self._starts[first], self._starts[last]) for first, last in self._runs]
        runs = [nn.Parameter(self._weights[part]) for part in parts]
        self._adam = None
        self._gradient = self._weights.new_empty(sum(run.numel() for run in runs))
        if runs:
            rate, decay, betas = self._config.learning_rate, self._config.weight_decay, (0.9, self._config.beta2)
            self._adam = torch.optim.AdamW(runs, lr=rate, weight_decay=decay, betas=betas, fused=True)
        gradients = self._gradient.split([run.numel() for run in runs])
        for run, gradient, part, (first, _) in zip(runs, gradients, parts, self._runs, strict=True):
            run.grad = gradient
            assert self._adam is not None
            self._adam.state[run] = {
                "step": torch.tensor(float(self._steps[first]), device=run.device),
                "exp_avg": self._first[part],
                "exp_avg_sq": self._second[part],
            }


def check_ties(model: nn.Module) -> None:
    """Raises ValueError where a weight shares its memory with another tensor, and not as one Parameter: the buffer of
    all weights would part them."""
    held = [(name, each) for name, each in [*model.named_parameters(), *model.named_buffers()] if each.numel()]
    spans = sorted((*_span(each), name) for name, each in held)
    weights = dict(model.named_parameters())
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end and (first in weights or second in weights):
            raise ValueError(f"{first} and {second} share memory and are two tensors: tie weights as one Parameter")


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor, and the one after its last."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def gather(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Move parameters into one buffer (weights,), in order; each becomes a view of its part, laid out as before.

    Raises ValueError for parameters of several dtypes.
    """
    parameters = list(parameters)
    if len({each.dtype for each in parameters}) > 1:
        raise ValueError(f"weights of one dtype are needed, not {sorted({str(each.dtype) for each in parameters})}")
    with torch.no_grad():
        buffer = torch.cat([_flat(each) for each in parameters])
        for each, (start, end) in zip(parameters, pairwise([0, *accumulate(map(_size, parameters))]), strict=True):
            each.data = buffer[start:end].as_strided(each.shape, each.stride(), buffer.storage_offset() + start)
    return buffer


def _size(tensor: Tensor) -> int:
    return tensor.numel()


def _flat(tensor: Tensor) -> Tensor:
    """The elements in the order in which they lie, (elements,): a gradient lies as its weight does."""
    return tensor.as_strided((tensor.numel(),), (1,))
