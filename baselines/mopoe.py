"""MoPoE: mixture of products of experts (Sutter et al., ICLR 2021).

The direct multimodal objective (MUNI, Eq. 6) with this suite's prior and decoders is this method.

    bench run --method mopoe --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.experts import product
from models.components.latent import LatentModel
from models.components.routes import Route, all_subsets, draw_subsets

CARD = MethodCard(
    version=1,
    label="MoPoE",
    paper="Generalized Multimodal ELBO (2021)",
    deviations=(
        "learned flow prior and flow decoders; no N(0, I) expert in the full set, since the prior is learned",
        "a subset drawn per row, instead of cutting the batch in order",
    ),
)


class MoPoE(LatentModel):
    """Product over S, S uniform over the non-empty subsets; every modality decoded; prior on the same latents."""

    aggregate = staticmethod(product)

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        given = draw_subsets(all_subsets(observed.shape[1]), observed, draws, "reconstruction subset")
        return Route(given=given, targets=observed, prior=given)


METHOD = MoPoE
