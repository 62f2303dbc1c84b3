"""MMVAE: mixture of experts (Shi et al., NeurIPS 2019).

bench run --method mmvae --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.experts import product
from models.components.latent import LatentModel
from models.components.routes import Route, draw_subsets, singles

CARD = MethodCard(
    version=1,
    label="MMVAE",
    paper="Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models (2019)",
    deviations=(
        "learned flow prior and flow decoders; single-sample bound (flow decoders give no density for IWAE or DReG)",
        "entropy of the drawn expert, not of the mixture: an upper bound on the cost",
        "one expert drawn per row instead of all M",
    ),
)


class MMVAE(LatentModel):
    """One expert, drawn uniformly, in training and at inference; every modality decoded; prior on the same latents."""

    aggregate = staticmethod(product)  # of a single expert: the expert itself

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        given = draw_subsets(singles(observed.shape[1]), observed, draws, "reconstruction subset")
        return Route(given=given, targets=observed, prior=given)

    def inference(self, given: Tensor, draws: Draws) -> Tensor:
        return draw_subsets(singles(given.shape[1]), given, draws, "inference expert")


METHOD = MMVAE
