"""MUNI with Hellinger aggregation (2026; "MUNI-dagger" of Tables 3 and 4).

bench run --method muni_hellinger --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.experts import hellinger
from models.components.latent import LatentModel
from models.components.routes import Route, routed_objective

CARD = MethodCard(
    version=1,
    label="MUNI (Hellinger)",
    paper="MUNI: Multimodal Unified Latent Diffusion for Coherent Any-to-Any Generation (2026), Eqs. 12-13",
    deviations=("the paper reports no Gaussian-mixture row for this variant",),
)


class MUNIHellinger(LatentModel):
    """MUNI's routes; experts pooled by the moment-matched Hoelder pool instead of the product."""

    aggregate = staticmethod(hellinger)
    detach_own = True

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        return routed_objective(observed, draws)


METHOD = MUNIHellinger
