"""Rows of a cell: that they are finite and enough, their mean, and the fresh ones that they are compared with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Cell, Inapplicable, Score, UserError


def finite(values: Tensor, name: str) -> Tensor:
    """`values` in float64. Raises ValueError where any is NaN or infinite, so that no score can hide it."""
    values = values.double()
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return values


def enough(rows: int, least: int, what: str) -> None:
    """Raises Inapplicable below `least` rows."""
    if rows < least:
        raise Inapplicable(f"{what} needs at least {least} rows and got {rows}")


def mean_of(per_row: list[Tensor], least: int, what: str) -> Score:
    """The mean over rows and its standard error, from blocks of values (rows,)."""
    rows = torch.cat(per_row) if per_row else torch.empty(0)
    enough(len(rows), least, what)
    return Score(rows.mean().item(), rows.std().item() / math.sqrt(len(rows)), len(rows))


def fresh_half(data: Any, cell: Cell, rows: int) -> int:
    """The first of the fresh test rows, which no cell gives: those of the test split's second half.

    Raises UserError where there are fewer than `rows` of them.
    """
    half: int = data.count("test") // 2
    if rows > half:
        raise UserError(
            f"{rows} generated rows need as many fresh test rows, and half of the test split of "
            f"{cell.dataset} is {half}: lower evaluation_rows"
        )
    return half
