"""HELVAE: Hellinger aggregation (Vo and Valera, AISTATS 2026).

bench run --method helvae --dataset gaussian_mixture --preset cpu
"""

from torch import Tensor

from benchmark.api import MethodCard
from benchmark.runtime import Draws
from models.components.experts import hellinger
from models.components.latent import LatentModel
from models.components.routes import Route, draw_subsets, full_set

CARD = MethodCard(
    version=1,
    label="HELVAE",
    paper="Hellinger Multimodal Variational Autoencoders (2026)",
    needs_full_rows=True,
    deviations=("learned flow prior and flow decoders; no private latents",),
)


class HELVAE(LatentModel):
    """Hellinger pool of the full set only; every modality decoded from it; prior on the same latents."""

    aggregate = staticmethod(hellinger)

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        given = draw_subsets(full_set(observed.shape[1]), observed, draws, "reconstruction subset")
        return Route(given=given, targets=observed, prior=given)


METHOD = HELVAE
