"""A planted defect that bench check has to find: the prior is fed with latents of all subsets.

bench run --method tests/records/defects/prior_on_all_subsets.py --preset cpu --seed 0-2
"""

from dataclasses import replace

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.routes import Route, all_subsets, draw_subsets
from models.muni import MUNI

CARD = MethodCard(version=1, label="MUNI with its prior on all subsets", paper="none: a planted defect")


class PriorOnAllSubsets(MUNI):
    """MUNI's prior sees the full set and the leave-one-out subsets alone."""

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        law = all_subsets(observed.shape[1])
        return replace(super().routes(observed, draws), prior=draw_subsets(law, observed, draws, "prior subset"))


METHOD = PriorOnAllSubsets
