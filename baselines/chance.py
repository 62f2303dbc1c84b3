"""Right marginals and no relation: the floor of every metric that asks for agreement.

Every wanted modality is a fresh row of the world that knows neither the given rows nor the other wanted ones, as if
real rows were shuffled independently per modality. A rate whose value is known from the marginals is that value.

    bench run --method chance --dataset gaussian_mixture --preset cpu
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, MethodCard, Modality, Raw
from benchmark.config import Config
from benchmark.runtime import Draws

CARD = MethodCard(
    version=1,
    label="chance",
    paper="sanity row: real rows, shuffled independently per modality",
    stages=(),
)


class Chance:
    """Trains nothing. `bind` hands it the dataset before it samples."""

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        self._world: Any = None

    def bind(self, data: Any) -> None:
        """Raises Inapplicable for a dataset that cannot draw its modalities apart."""
        if not hasattr(data, "independent") and not hasattr(data, "render"):
            raise Inapplicable("the dataset's world is not known, so its rows cannot be drawn afresh")
        self._world = data

    def known(self, metric: Any, cell: Cell) -> float | None:
        """The value of a metric that says that its `chance` is exact; None where rows have to be drawn."""
        return metric.chance(cell, self._world) if getattr(metric, "chance_is_exact", False) else None

    def sample(self, given: Batch, want: Sequence[str], rows: int, draws: Draws) -> Batch:
        return self._world.independent(want, draws)

    def things(self, cell: Cell, split: str, indices: Tensor, draws: Draws) -> Raw:
        """Rows of the split, each wanted modality in an order of its own."""
        rows = self._world.rows_of(cell)
        orders = {name: Draws("chance", cell, name, rows=rows).uniform("order").argsort() for name in cell.want}
        return {name: self._world.raw(split, order[indices.cpu() % rows])[name] for name, order in orders.items()}


METHOD = Chance
