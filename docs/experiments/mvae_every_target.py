"""MVAE, except that every modality is decoded from each subset: what the row would be if the paper's MVAE did so.

bench tune long --method docs/experiments/mvae_every_target.py --preset cpu
"""

from dataclasses import replace

from torch import Tensor

from baselines.mvae import MVAE
from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.routes import Route

CARD = MethodCard(
    version=1,
    label="MVAE, every target",
    paper="an experiment, of no paper: see docs/findings.md",
    needs_full_rows=True,
)


class MVAEEveryTarget(MVAE):
    """MVAE's subsets, with targets that are not in the subset."""

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        return replace(super().routes(observed, draws), targets=observed)


METHOD = MVAEEveryTarget
