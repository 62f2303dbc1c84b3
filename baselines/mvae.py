"""MVAE: product of experts with sub-sampled bounds (Wu and Goodman, NeurIPS 2018).

bench run --method mvae --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.experts import product
from models.components.latent import LatentModel
from models.components.routes import Route, draw_subsets, subsampled_elbo_terms

CARD = MethodCard(
    version=1,
    label="MVAE",
    paper="Multimodal Generative Models for Scalable Weakly-Supervised Learning (2018), Eq. 5",
    needs_full_rows=True,
    deviations=(
        "learned flow prior and flow decoders; no N(0, I) expert, since the prior is learned",
        "one of the M + 2 bounds per row, drawn in proportion to its weight in the sum, instead of all of them",
    ),
)


class MVAE(LatentModel):
    """Product of experts; the full set, singles and one random proper subset; only members of S are decoded."""

    aggregate = staticmethod(product)

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        given = draw_subsets(subsampled_elbo_terms(observed.shape[1]), observed, draws, "reconstruction subset")
        return Route(given=given, targets=given, prior=given)


METHOD = MVAE
