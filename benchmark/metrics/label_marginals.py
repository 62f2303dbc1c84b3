"""How far the labels that are generated are from uniform: a model that always draws one digit is coherent and useless.

Total variation between uniform and the joint histogram of all labels that a picture shows, per picture, and of the
generated labels, which count as one more; then the mean. Conditional cells ask the same: what is given is uniform, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, MetricCard, Score
from benchmark.judges import verifier
from benchmark.judges.verifier import labels_of
from benchmark.metrics.common.label_metric import mean, pictures, read, score_of, shown_by
from benchmark.metrics.common.row_statistics import enough

CARD = MetricCard(
    version=1,
    label="label marginals (TV)",
    units="total variation",
    higher_is_better=False,
    scale="log",
    tasks=("uncond", "one_to_one", "many_to_one", "one_to_many"),
    estimator="half the sum over (digit, quadrant) of |share - uniform|, per picture and for the labels, then averaged",
    chance="the floor: its expectation for so many uniform rows as this verifier reads them, from binomials",
    ceiling="the same floor: shuffling keeps each modality's marginal",
    min_rows=20,
    needs=("image", "label"),
)


class LabelMarginals:
    def __init__(self, cell: Cell, data: Any) -> None:
        self._cell, self._data = cell, data
        self._shown = shown_by(data, cell.want)
        self._tables = _tables(cell, data)
        self._codes: list[Tensor] = []

    def update(self, real: Batch, generated: Batch) -> None:
        """`real` is not read."""
        shown, classes = read(self._data, generated, self._shown), labels_of(self._data)
        codes = [_code({label: shown[name][label] for label, name in each.items()}, classes) for each in self._tables]
        self._codes.append(torch.stack(codes, 1))

    def compute(self) -> Score:
        codes = torch.cat(self._codes) if self._codes else torch.empty(0, 0)
        enough(len(codes), CARD.min_rows, f"label_marginals of {self._cell}")
        sizes = _sizes(self._tables, self._data)
        distances, pull = [], torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        for code, size in zip(codes.unbind(1), sizes, strict=True):
            gap = torch.bincount(code, minlength=size).double() / len(codes) - 1 / size
            distances.append(gap.abs().sum().item() / 2)
            pull += gap.sign()[code] / 2 / len(sizes)
        # The delta method: right far from uniform, and at the floor, where signs are noise, up to twice too much.
        return Score(mean(distances), score_of([pull], CARD.min_rows, "label_marginals").stderr, len(codes))

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        metric, real = cls(cell, data), verifier.real_rows(data, getattr(data, "device", "cpu"))
        metric.update(real, real)
        floors = []
        for labels, code in zip(metric._tables, metric._codes[0].unbind(1), strict=True):
            truth, size = _code({label: real[label] for label in labels}, labels_of(data)), _sizes([labels], data)[0]
            floors.append(expected_distance(read_shares(truth, code, size), data.rows_of(cell)))
        return mean(floors)

    ceiling = chance


def _tables(cell: Cell, data: Any) -> list[dict[str, str]]:
    """What is tabulated together: label -> the modality that shows it. Raises Inapplicable where there is nothing."""
    shown = shown_by(data, cell.want)
    tables = [dict.fromkeys(shown[name], name) for name in pictures(data, shown)]
    labels = {name: name for name in shown if name in labels_of(data)}
    if not shown:
        raise Inapplicable("nothing that is wanted shows a label")
    return [*tables, labels] if labels else tables


def _code(labels: Mapping[str, Tensor], classes: Mapping[str, int]) -> Tensor:
    """One number for the labels of a row, (rows,) int64. Raises ValueError for a label that is out of range."""
    code = torch.zeros_like(next(iter(labels.values())), dtype=torch.int64)
    for label, rows in ((label, rows.long()) for label, rows in labels.items()):
        if bool(((rows < 0) | (rows >= classes[label])).any()):
            raise ValueError(f"a {label} that is not one of {classes[label]} classes")
        code = code * classes[label] + rows
    return code


def _sizes(tables: list[dict[str, str]], data: Any) -> list[int]:
    """The cells of each table."""
    return [math.prod(labels_of(data)[label] for label in table) for table in tables]


def read_shares(truth: Tensor, found: Tensor, size: int) -> Tensor:
    """How often each of `size` codes is read where the true ones are uniform, (size,), from rows of both (rows,)."""
    confusion = torch.bincount(truth * size + found, minlength=size * size).view(size, size).double().cpu()
    seen = confusion.sum(1) > 0
    return (confusion[seen] / confusion[seen].sum(1, keepdim=True)).mean(0)


def expected_distance(shares: Tensor, rows: int) -> float:
    """E of the total variation between uniform and a histogram of so many independent rows of these shares (size,)."""
    counts = torch.arange(rows + 1, dtype=torch.float64)
    ways = math.lgamma(rows + 1) - torch.lgamma(counts + 1) - torch.lgamma(rows - counts + 1)
    shares = shares[:, None]
    likely = (ways + torch.xlogy(counts, shares) + torch.xlogy(rows - counts, 1 - shares)).exp()  # binomial
    return (likely * (counts / rows - 1 / len(shares)).abs()).sum().item() / 2


METRIC = LabelMarginals
