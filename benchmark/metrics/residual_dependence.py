"""How much of what modalities share is left to the decoders' own noise, on samples of the prior.

A prior sample z is decoded twice with independent noise. Decoders are independent given z, so whatever variance a
shared coordinate keeps given z is variance on which the modalities cannot agree: 0 means that z fixes all that is
shared (coherence-sufficient, Eq. 7), 1 that it fixes nothing. The derivation is in docs/gaussian_mixture.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, MetricCard, Score
from benchmark.metrics.common.explained_variance import unexplained
from benchmark.metrics.common.row_statistics import enough, finite

CARD = MetricCard(
    version=1,
    label="residual dependence",
    units="fraction of variance",
    higher_is_better=False,
    scale="log",
    tasks=("criteria",),
    estimator="variance between two decodings of one latent over total variance, shared coordinates of all pairs",
    chance="1: the latent says nothing about what is shared",
    ceiling="0: the latent determines what is shared",
    needs=("vector",),
)


class ResidualDependence:
    draws_per_row = 2

    def __init__(self, cell: Cell, data: Any) -> None:
        if cell.given or len(cell.want) < 2:
            raise Inapplicable("residual dependence is taken between modalities decoded from the prior")
        # A coordinate that two pairs share counts in both, as it does in shared_mse.
        self._columns = {i: torch.cat([data.shared(i, j)[0] for j in cell.want if j != i]) for i in cell.want}
        self._decoded: list[Tensor] = []

    def update(self, real: Batch, generated: Batch) -> None:
        """`generated`: two decodings of each latent, (rows, 2, size); `real` is not read."""
        self._decoded.append(
            torch.cat(
                [finite(generated[name], f"decoded {name}")[..., columns] for name, columns in self._columns.items()], 2
            )
        )

    def compute(self) -> Score:
        enough(sum(map(len, self._decoded)), CARD.min_rows, "residual_dependence")
        decoded = torch.cat(self._decoded)
        within = (decoded[:, 0] - decoded[:, 1]).square().sum(1) / 2
        total = (decoded - decoded.mean((0, 1))).square().sum(2).mean(1)
        return unexplained(within, total)

    @staticmethod
    def chance(cell: Cell, data: Any) -> float | None:
        return 1.0

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        return 0.0


METRIC = ResidualDependence
