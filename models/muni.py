"""MUNI: Multimodal Unified Latent Diffusion (2026).

bench run --method muni --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.experts import product
from models.latent import LatentModel
from models.routes import Route, routed_objective

CARD = MethodCard(
    version=1,
    label="MUNI",
    paper="MUNI: Multimodal Unified Latent Diffusion for Coherent Any-to-Any Generation (2026), Eq. 12",
)


class MUNI(LatentModel):
    """Product of experts; every target from every subset, its own expert detached; prior on full and leave-one-out."""

    aggregate = staticmethod(product)
    detach_own = True

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        return routed_objective(observed, draws)


METHOD = MUNI
