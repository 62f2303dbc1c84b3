"""MUNI: Multimodal Unified Latent Diffusion (2026).

    bench run --method muni --dataset gaussian_mixture --preset cpu

Its three choices can be switched off, alone and together (table `ablation`):

    bench run --method muni:mixture+attached --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.experts import product
from models.components.latent import LatentModel
from models.components.routes import (
    Route,
    all_subsets,
    draw_subsets,
    full_and_leave_one_out,
    full_set,
    routed_objective,
    singles,
)

CARD = MethodCard(
    version=1,
    label="MUNI",
    paper="MUNI: Multimodal Unified Latent Diffusion for Coherent Any-to-Any Generation (2026), Eq. 12",
    variants={
        "mixture": {"mixture": True},
        "attached": {"detach_own": False},
        "prior_on_full": {"prior_law": "full"},
        "prior_on_all": {"prior_law": "all"},
    },
)
PRIOR_LAWS = {"full and leave-one-out": full_and_leave_one_out, "full": full_set, "all": all_subsets}


class MUNI(LatentModel):
    """Product of experts; every target from every subset, its own expert detached; prior on full and leave-one-out."""

    aggregate = staticmethod(product)
    mixture = False  # whether one expert of a subset, drawn uniformly, stands for it instead of their product
    detach_own = True
    prior_law = "full and leave-one-out"  # the subsets that train the prior

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        route = routed_objective(observed, draws, PRIOR_LAWS[self.prior_law])
        if not self.mixture:
            return route
        given, prior = (self.inference(subset, draws) for subset in (route.given, route.prior))
        return Route(given, route.targets, prior)

    def inference(self, given: Tensor, draws: Draws) -> Tensor:
        return draw_subsets(singles(given.shape[1]), given, draws, "expert") if self.mixture else given


METHOD = MUNI
