"""ShaLa-style: an architectural joint encoder and a second-stage conditional flow prior (Cui et al., AAAI 2026).

The authors' formulas are public nowhere; this is a re-interpretation of the abstract and of what MUNI's
appendix says of it, and its rows are labelled so.

    bench run --method shala --dataset gaussian_mixture --preset cpu
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmark.api import Batch, Inapplicable, MethodCard, Modality
from benchmark.config import Config
from benchmark.runtime import Draws
from models.components.experts import divergence_from_standard, gaussian, sampled
from models.components.flow import euler, logit_normal, matching_loss
from models.components.latent import LatentModel, Observed
from models.components.networks import ResidualBlocks, StackedLinear
from models.components.routes import Route, draw_subsets, full_set

CARD = MethodCard(
    version=2,
    label="ShaLa-style",
    paper="ShaLa: Multimodal Shared Latent Space Modelling (2026)",
    tasks=("one_to_one", "one_to_many", "uncond"),
    stages=(("representation", 0.5), ("prior", 0.5)),
    needs_full_rows=True,
    deviations=(
        "a re-interpretation: the method's formulas are public nowhere",
        "flow decoders; both stages share the budget of updates; the second begins with the first one's weight average",
        "the first stage's KL has weight 0.001 (the paper gives ShaLa a value of its own, which is lost)",
        "conditions of the second-stage prior are features of the frozen encoders: none, or those of one modality",
    ),
    fields={
        "kl_weight": {
            "value": 1e-3,
            "source": "assumed: as encoder_grad_scale; the paper's value is lost",
            "least": 0,
            "scales_with": "encoder_grad_scale",
        },
    },
)


class ShaLa(LatentModel):
    """Stage 1: q(z | all) by a fusion network, every modality decoded. Stage 2: p(z | nothing or one modality)."""

    kl_weight: float  # of KL(q(z | all) || N(0, I)), a mean over latent dimensions

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        super().__init__(modalities, config)
        features = 2 * config.latent_size
        self.fuse_enter = StackedLinear(1, len(modalities) * features, 2 * features)
        self.fuse = ResidualBlocks(1, 2 * features, 1)
        self.fuse_leave = StackedLinear(1, 2 * features, features)

    def prior_conditions(self) -> int:
        return len(self.names) * (2 * self.config.latent_size + 1)

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        """`prior` is the modality that the second stage's prior is told: none, or one, uniformly over the M + 1."""
        modalities = observed.shape[1]
        full = draw_subsets(full_set(modalities), observed, draws, "reconstruction subset")
        told = draws.integers("condition", modalities + 1)[:, None] == torch.arange(modalities, device=observed.device)
        return Route(given=full, targets=observed, prior=told & observed)

    def loss(self, batch: Batch, stage: str, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        x, observed = self.observe(batch)
        route = self.routes(observed, draws)
        noise = draws.normal("latent", self.latent_size)
        if stage == "representation":
            mean, log_variance = self.joint_posterior(self.features(x))
            z = sampled(mean, log_variance, noise)
            reconstruction = self.reconstruction(x, z.expand(len(self.names), -1, -1), route.targets, draws)
            divergence = divergence_from_standard(mean, log_variance).mean()
            return reconstruction + self.kl_weight * divergence, {
                "reconstruction": reconstruction.detach(),
                "divergence": divergence.detach(),
            }
        with torch.no_grad():
            features = self.features(x)
            mean, log_variance = self.joint_posterior(features)
            z = sampled(mean, log_variance, noise)
        condition = self.prior.condition(self.told(features, route.prior))
        flow = matching_loss(
            lambda z_t, t: self.prior(z_t[None], t[None], condition)[0],
            z,
            draws.normal("prior noise", self.latent_size),
            logit_normal(draws.normal("prior time")),
        )
        return flow.mean(), {"prior": flow.mean().detach()}

    def features(self, x: Observed) -> Tensor:
        """(rows, modalities, features)"""
        return torch.cat(self.encode(x), -1)

    def joint_posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return gaussian(self.fuse_leave(self.fuse(self.fuse_enter(features.flatten(1)[None])))[0])

    def told(self, features: Tensor, told: Tensor) -> Tensor:
        """The prior's condition: the told modality's features, zeros for the others, and which it is."""
        return torch.cat([(features * told[..., None]).flatten(1), told.to(features.dtype)], -1)[None]

    def infer(self, given: Batch, draws: Draws) -> Tensor:
        """A sample of the conditional prior. Raises Inapplicable for more than one given modality."""
        if len(given) > 1:
            raise Inapplicable("ShaLa conditions on one modality at most")
        x, observed = self.observe(given)
        return self.sample_told(self.features(x), observed, draws)

    def sample_prior(self, rows: int, draws: Draws) -> Tensor:
        features = self.fuse_enter.weight.new_zeros(rows, len(self.names), 2 * self.latent_size)
        return self.sample_told(features, torch.zeros_like(features[..., 0], dtype=torch.bool), draws)

    def sample_told(self, features: Tensor, told: Tensor, draws: Draws) -> Tensor:
        condition = self.prior.condition(self.told(features, told))
        noise = draws.normal("latent", self.latent_size)[None]
        return euler(lambda z_t, t: self.prior(z_t, t, condition), noise, self.config.prior_steps)[0]


METHOD = ShaLa
