"""MMVAE+: mixture of experts with private latents (Palumbo et al., ICLR 2023).

bench run --method mmvaeplus --dataset gaussian_mixture --preset cpu
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmark.api import Batch, MethodCard, Modality
from benchmark.config import Config
from benchmark.runtime import Draws
from models.components.experts import divergence_from_standard, product, sampled
from models.components.latent import LatentModel, Observed
from models.components.routes import Route, draw_subsets, singles

CARD = MethodCard(
    version=2,
    label="MMVAE+",
    paper="MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without Compromises (2023)",
    deviations=(
        "learned flow prior on the shared latent and flow decoders; Gaussian latents; single-sample bound",
        "one expert drawn per row instead of all M; entropy of the drawn expert, not of the mixture",
        "the private latents' KL has a weight of its own, by default the shared prior term's per dimension",
        "from other modalities: private latents of the auxiliary prior, on which those decoders were trained (the "
        "authors' code draws from N(0, I), which they never met here)",
        "unconditional: each decoder draws a private latent of its own (the authors' code shares one draw)",
    ),
    fields={
        "private_kl_weight": {
            "value": 1e-3,
            "source": "assumed: as encoder_grad_scale",
            "least": 0,
            "scales_with": "encoder_grad_scale",
        },
    },
)


class MMVAEPlus(LatentModel):
    """MMVAE with a private latent per modality: the source's own for itself, an auxiliary prior's for the others.

    At test time a modality generated from others takes its private latent from the auxiliary prior too, and from
    nothing, from the prior N(0, I).
    """

    aggregate = staticmethod(product)  # of a single expert: the expert itself
    private_kl_weight: float  # of the private latents' KL, summed over their dimensions, per shared dimension

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        super().__init__(modalities, config)
        self.auxiliary = nn.Parameter(torch.zeros(len(modalities), 1, config.private_size))

    def auxiliary_scale(self) -> Tensor:
        """Standard deviations of the auxiliary priors, (modalities, 1, private), of mean one, as the authors do."""
        return torch.softmax(self.auxiliary, -1) * self.config.private_size

    def encoder_outputs(self) -> int:
        return self.config.latent_size + self.config.private_size

    def decoder_conditions(self) -> int:
        return self.config.latent_size + self.config.private_size

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        given = draw_subsets(singles(observed.shape[1]), observed, draws, "reconstruction subset")
        return Route(given=given, targets=observed, prior=given)

    def inference(self, given: Tensor, draws: Draws) -> Tensor:
        return draw_subsets(singles(given.shape[1]), given, draws, "inference expert")

    def loss(self, batch: Batch, stage: str, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        x, observed = self.observe(batch)
        (mean, private_mean), (log_variance, private_log_variance) = map(self.split, super().encode(x))
        route = self.routes(observed, draws)
        noise = draws.normal("latent", self.latent_size)
        z = self.latents(mean, log_variance, route.given, noise)
        private_noise = draws.normal("private latent", len(self.names), self.config.private_size).transpose(0, 1)
        posterior = sampled(private_mean, private_log_variance, private_noise.transpose(0, 1))
        auxiliary = self.auxiliary_scale() * private_noise
        private = torch.where(route.given.T[..., None], posterior.transpose(0, 1), auxiliary)
        reconstruction = self.reconstruction(x, torch.cat([z, private], -1), route.targets, draws)
        flow, entropy = self.prior_terms(mean, log_variance, route.prior, noise, draws)
        divergence = divergence_from_standard(private_mean, private_log_variance).sum(-1)
        divergence = (divergence * route.given).sum(-1).mean() / self.latent_size  # per dimension, as the entropy
        prior = flow + self.encoder_scale() * entropy + self.private_kl_weight * divergence
        return reconstruction + self.config.prior_weight * prior, {
            "reconstruction": reconstruction.detach(),
            "prior": flow.detach(),
            "entropy": entropy.detach(),
            "private divergence": divergence.detach(),
        }

    def encode(self, x: Observed) -> tuple[Tensor, Tensor]:
        """The shared experts alone: what inference uses."""
        mean, log_variance = super().encode(x)
        return self.split(mean)[0], self.split(log_variance)[0]

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shared, private = parameters.split([self.config.latent_size, self.config.private_size], dim=-1)
        return shared, private

    def decoder_input(self, z: Tensor, names: Sequence[str], draws: Draws, conditional: bool) -> Tensor:
        private = torch.stack([draws.normal(f"private {name}", self.config.private_size) for name in names])
        if conditional:
            private = private * self.auxiliary_scale()[[self.names.index(name) for name in names]]
        return torch.cat([z.expand(len(names), -1, -1), private], -1)


METHOD = MMVAEPlus
