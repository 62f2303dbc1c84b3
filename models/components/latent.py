"""The model every routed method shares: families of modalities, one flow prior, their loss and their sampler.

A method states five things: how experts are aggregated, which subset infers the latent, which targets are decoded from
it (and whether a target's own expert is detached), which latents train the prior, and how a subset infers at test time.
One that leaves the family in more than these may replace the prior, what decoders are told, or a term of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Modality
from benchmark.config import Config
from benchmark.runtime import Draws
from models.components.experts import product, sampled
from models.components.families import Family, families
from models.components.flow import elbo_weight, euler, logit_normal, matching_loss, scale_gradient
from models.components.networks import ALL, VelocityNetwork
from models.components.routes import Route

Aggregate = Callable[..., tuple[Tensor, Tensor]]  # see models.components.experts


Observed = tuple[Tensor | None, ...]  # per family (its modalities, rows, *shape); None where it has none observed


class LatentModel(nn.Module):
    """Modalities of any kind (models/components/families.py) with a shared latent; subclasses state the routes."""

    aggregate: Aggregate = staticmethod(product)
    families: Sequence[Family]
    detach_own = False  # whether a target's own expert is detached before aggregation (Eq. 11)

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        super().__init__()
        self.modalities, self.config = tuple(modalities), config
        self.names = [modality.name for modality in modalities]
        self.latent_size = config.latent_size
        self.families = nn.ModuleList(  # type: ignore[assignment]
            family(members, config, self.encoder_outputs(), self.decoder_conditions())
            for family, members in families(modalities, config)
        )
        ends = accumulate((len(family.names) for family in self.families), initial=0)
        self.parts = [slice(start, end) for start, end in pairwise(ends)]  # each family's modalities
        self.prior = self.make_prior()

    def bind(self, data: Any) -> None:
        """Make the weights that depend on what the dataset brings: of the language model that writes texts."""
        for family in self.families:
            family.bind(data)

    # What a method states.

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        """The route of each row, given which modalities it observed (rows, modalities)."""
        raise NotImplementedError

    def inference(self, given: Tensor, draws: Draws) -> Tensor:
        """The experts that infer a latent at test time, out of those given; (rows, modalities)."""
        return given

    def encoder_outputs(self) -> int:
        return self.config.latent_size

    def decoder_conditions(self) -> int:
        return self.config.latent_size

    def make_prior(self) -> Any:
        config = self.config
        return VelocityNetwork(1, config.latent_size, self.prior_conditions(), config.prior_width, config.prior_depth)

    def prior_conditions(self) -> int:
        return 0

    def encoder_scale(self) -> float:
        """Weight of the prior term's gradient into the encoder."""
        return self.config.encoder_grad_scale

    # Training.

    def loss(self, batch: Batch, stage: str, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean over rows of the reconstruction of the routed targets plus the prior term (Eq. 12)."""
        x, observed = self.observe(batch)
        mean, log_variance = self.encode(x)
        route = self.routes(observed, draws)
        noise = draws.normal("latent", self.latent_size)
        reconstruction = self.reconstruction(
            x, self.latents(mean, log_variance, route.given, noise), route.targets, draws
        )
        flow, entropy = self.prior_terms(mean, log_variance, route.prior, noise, draws)
        terms = {"prior": flow, "entropy": entropy, **self.divergences(mean, log_variance, route)}
        weights = {"entropy": self.encoder_scale()}
        prior = sum(weights.get(name, 1.0) * term for name, term in terms.items())
        parts = {"reconstruction": reconstruction, **terms}
        return reconstruction + self.config.prior_weight * prior, {name: part.detach() for name, part in parts.items()}

    def divergences(self, mean: Tensor, log_variance: Tensor, route: Route) -> Mapping[str, Tensor]:
        """Further terms beside the prior's, with their weights; means over latent dimensions and rows."""
        return {}

    def latents(self, mean: Tensor, log_variance: Tensor, given: Tensor, noise: Tensor) -> Tensor:
        """A sample of each row's subset posterior for each target, (targets, rows, latent).

        With `detach_own` the samples are equal in value and differ in gradient: target j's does not reach expert j.
        """
        pooled, log_pooled = self.aggregate(mean, log_variance, given, self.detach_own)
        return sampled(pooled, log_pooled, noise).expand(len(self.names), -1, -1)

    def reconstruction(self, x: Observed, z: Tensor, targets: Tensor, draws: Draws) -> Tensor:
        """Loss of each decoder given its latent z (modalities, rows, conditions), averaged over modalities and rows;
        modalities that are no target of a row count as zero."""
        losses = [
            family.reconstruction(seen, z[part], targets.T[part], draws)
            for family, seen, part in zip(self.families, x, self.parts, strict=True)
            if seen is not None
        ]
        return torch.stack([loss.sum() for loss in losses]).sum() / targets.numel()

    def prior_terms(
        self, mean: Tensor, log_variance: Tensor, subset: Tensor, noise: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """The prior's flow-matching loss on latents of `subset`, and their negative entropy (Eqs. 45-53).

        The prior sees the plain loss; the encoder receives its gradient times scale * elbo_weight. Both
        terms are means over latent dimensions and over rows; rows with an empty subset count as zero.
        """
        trained = subset.any(-1)
        pooled, log_pooled = self.aggregate(mean, log_variance, subset | ~trained[:, None])
        z = sampled(pooled, log_pooled, noise)
        t = logit_normal(draws.normal("prior time"))
        scaled = scale_gradient(z, (self.encoder_scale() * elbo_weight(t))[:, None])
        flow = matching_loss(
            lambda z_t, t: self.prior(z_t[None], t[None])[0], scaled, draws.normal("prior noise", self.latent_size), t
        )
        negative_entropy = -0.5 * (1 + math.log(2 * math.pi) + log_pooled).mean(-1)
        return (flow * trained).mean(), (negative_entropy * trained).mean()

    # Inference.

    def infer(self, given: Batch, draws: Draws) -> Tensor:
        """One posterior sample per row from the given modalities, shared by all targets; (rows, latent)."""
        x, observed = self.observe(given)
        mean, log_variance = self.encode(x)
        pooled, log_pooled = self.aggregate(mean, log_variance, self.inference(observed, draws))
        return sampled(pooled, log_pooled, draws.normal("latent", self.latent_size))

    def sample_prior(self, rows: int, draws: Draws) -> Tensor:
        """Latents from the learned prior, (rows, latent)."""
        noise = draws.normal("latent", self.latent_size)[None]
        return euler(self.prior, noise, self.config.prior_steps)[0]

    @torch.no_grad()
    def sample(self, given: Batch, want: Sequence[str], rows: int, draws: Draws) -> Batch:
        """Rows of every wanted modality, raw units: from the prior when nothing is given, else from the posterior."""
        z = self.infer(given, draws) if given else self.sample_prior(rows, draws)
        return self.decode(z, want, draws, conditional=bool(given))

    def decode(self, z: Tensor, want: Sequence[str], draws: Draws, conditional: bool = False) -> Batch:
        """Each wanted modality from z (rows, latent), with decoder noise of its own; raw units.

        conditional: whether z was inferred from other modalities, or else drawn from the prior.
        """
        generated: Batch = {}
        for family in self.families:
            wanted = [name for name in family.names if name in want]
            stacks = [ALL] if wanted == family.names else [slice(k, k + 1) for k in map(family.names.index, wanted)]
            for which in stacks:
                names = family.names[which]
                told = self.decoder_input(z, names, draws, conditional)
                noise = partial(_noise, names, draws)
                generated |= zip(names, family.generate(told, which, noise), strict=True)
        return {name: generated[name] for name in want}

    def decoder_input(self, z: Tensor, names: Sequence[str], draws: Draws, conditional: bool) -> Tensor:
        """What each named decoder is told of z, (names, rows, conditions)."""
        return z.expand(len(names), -1, -1)

    # Shared plumbing.

    def observe(self, batch: Batch) -> tuple[Observed, Tensor]:
        """What each family sees of a batch, and which modalities are observed (rows, M)."""
        present = next(iter(batch.values()))
        observed = _flags(tuple(name in batch for name in self.names), present.device)
        return tuple(family.observe(batch) for family in self.families), observed.expand(len(present), -1)

    def encode(self, x: Observed) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of every expert, each (rows, modalities, latent); zeros of families not observed."""
        pairs = [None if seen is None else family.encode(seen) for family, seen in zip(self.families, x, strict=True)]
        like = next(pair[0] for pair in pairs if pair is not None)
        exact = torch.promote_types(like.dtype, torch.float32)  # experts are pooled in no less than float32
        for number, (family, pair) in enumerate(zip(self.families, pairs, strict=True)):
            if pair is None:
                blank = like.new_zeros(len(family.names), *like.shape[1:])
                pairs[number] = (blank, blank)
        means, log_variances = zip(*filter(None, pairs), strict=True)
        return _joined(means, exact), _joined(log_variances, exact)


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """(modalities of a family, rows, size) each -> (rows, modalities, size)."""
    whole = parts[0] if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])
    return whole.to(dtype).transpose(0, 1)


def _noise(names: Sequence[str], draws: Draws, *shape: int) -> Tensor:
    """Decoder noise of each named modality, (names, rows, *shape)."""
    return torch.stack([draws.normal(f"decode {name}", *shape) for name in names])


@cache
def _flags(values: tuple[bool, ...], device: torch.device) -> Tensor:
    """Booleans on the device, made once: making them anew would wait for it at every update."""
    return torch.tensor(values, device=device)
