"""What the datasets of composed pictures of digits share: how many rows their splits have, and each modality alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable
from benchmark.config import Config
from benchmark.runtime import Draws


class DigitPictures:
    """Splits train, validation, test and verifier. The first half of the test split are the rows that cells give and
    compare with; the second half are fresh rows for distribution distances. A subclass answers `conditional`."""

    def __init__(self, config: Config, device: str) -> None:
        self.device, self.verifier = device, config.verifier
        self._evaluation_rows = {True: config.evaluation_rows, False: config.unconditional_rows}
        most = max(self._evaluation_rows.values())
        self._counts = {"train": config.train_rows, "validation": max(config.probe_rows, most), "test": 2 * most}
        self._counts["verifier"] = config.train_rows

    def count(self, split: str) -> int:
        return self._counts[split]

    def rows_of(self, cell: Cell) -> int:
        """Rows that a method generates for a cell."""
        return self._evaluation_rows[bool(cell.given)]

    def conditional(self, given: Batch, want: Sequence[str], draws: Draws) -> Batch:
        """Fresh rows of the exact law of `want` given `given`. Raises Inapplicable where that is not known."""
        raise NotImplementedError

    def independent(self, want: Sequence[str], draws: Draws) -> Batch:
        """Fresh rows of each modality alone, with labels of its own."""
        rows: Batch = {}
        for name in want:
            rows |= self.conditional({}, (name,), draws)
        return rows


def told_digit(given: Batch, draws: Draws) -> Tensor:
    """The digit that rows hold besides the given pictures, or where nothing is given a uniform one; (rows,) int64.

    Raises Inapplicable where pictures are given without their digit.
    """
    if given and "digit" not in given:
        raise Inapplicable(f"which digit {' and '.join(given)} show is not told")
    return given["digit"] if given else draws.integers("digit", 10)
