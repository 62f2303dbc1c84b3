"""MUNI: Multimodal Unified Latent Diffusion (2026).

    bench run --method muni --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.experts import product
from models.latent import LatentModel
from models.routes import Route, all_subsets, draw_subsets, full_and_leave_one_out

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
        modalities = observed.shape[1]
        return Route(
            given=draw_subsets(all_subsets(modalities), observed, draws, "reconstruction subset"),
            targets=observed,
            prior=draw_subsets(full_and_leave_one_out(modalities), observed, draws, "prior subset"),
        )


METHOD = MUNI
