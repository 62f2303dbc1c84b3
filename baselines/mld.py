"""MLD: Multi-modal Latent Diffusion (Bounoua, Franzese, Michiardi, 2023).

bench run --method mld --dataset gaussian_mixture --preset cpu
bench run --method mld:vp ...           the paper's diffusion (variance-preserving, noise predicted)
bench run --method mld:vp+repaint ...   with the paper's sampling schedule, too (RePaint's jumps back in time)
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmark.api import Batch, Dataset, MethodCard
from benchmark.runtime import Draws
from models.components.diffusion import FLOW, VARIANCE_PRESERVING, Path
from models.components.flow import logit_normal
from models.components.latent import LatentModel, Observed
from models.components.networks import ResidualBlocks, StackedLinear, TimeWaves
from models.components.routes import Route, Subsets, all_subsets, draw_subsets, full_set

CARD = MethodCard(
    version=2,
    label="MLD",
    paper="Multi-modal Latent Diffusion (2023), Sec. 3",
    stages=(("autoencoders", 0.5), ("diffusion", 0.5)),
    needs_full_rows=True,
    deviations=(
        "this suite's encoders and flow decoders instead of the authors' autoencoders; each modality's latent has "
        "latent_size dimensions; both stages share the budget of updates; the second begins with the first one's "
        "weight average",
        "flow matching, and its plain solver, in the latent space (mld:vp: the paper's diffusion, solved as an "
        "ordinary differential equation; mld:repaint: the paper's jumps back, of 0.04 in time and ten times each, in "
        "this suite's number of steps)",
        "the clean subset is drawn per row instead of per batch, for half of the rows on every dataset (the authors: "
        "half on MNIST-SVHN, a fifth on PolyMNIST); the standardisation is measured on the first training rows instead "
        "of one batch",
    ),
    variants={"vp": {"diffusion": "variance preserving"}, "repaint": {"resamples": 10}},
)
PATHS = {"flow": FLOW, "variance preserving": VARIANCE_PRESERVING}
MEASURED_ROWS = 4096  # of the training split, by which latents are standardised
JUMP = 0.04  # of the time, that RePaint's schedule goes back: the authors' 10 of 250 steps


class MLD(LatentModel):
    """Stage 1: a deterministic autoencoder per modality. Stage 2: one diffusion over all latents, with a time each."""

    diffusion = "flow"
    resamples = 1  # passes over each jump of RePaint's schedule; 1: no jump
    clean_share = 0.5  # of the rows, in which some modalities stay clean and the loss is on the others
    center: Tensor
    spread: Tensor

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.path: Path = PATHS[self.diffusion]
        for name, value in (("center", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.full((len(self.names), self.latent_size), value))

    def make_prior(self) -> nn.Module:
        config = self.config
        return JointNetwork(len(self.names), self.latent_size, config.prior_width, config.prior_depth)

    def routes(self, observed: Tensor, draws: Draws) -> Route:
        """Each modality is decoded from its own latent. `prior`: the modalities that stay clean in the second stage."""
        full = draw_subsets(full_set(observed.shape[1]), observed, draws, "reconstruction subset")
        clean = draw_subsets(self.clean_subsets(observed.shape[1]), observed, draws, "clean subset")
        return Route(given=full, targets=observed, prior=clean)

    def clean_subsets(self, modalities: int) -> Subsets:
        """None, or a proper subset, uniformly."""
        proper = [subset for subset in all_subsets(modalities) if len(subset) < modalities]
        return {(): 1 - self.clean_share} | dict.fromkeys(proper, self.clean_share / len(proper))

    # Training.

    def loss(self, batch: Batch, stage: str, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        x, observed = self.observe(batch)
        route = self.routes(observed, draws)
        if stage == "autoencoders":
            latents = self.encode(x)[0].transpose(0, 1)
            reconstruction = self.reconstruction(x, latents, route.targets, draws)
            return reconstruction, {"reconstruction": reconstruction.detach()}
        with torch.no_grad():
            z = self.standardised(x)
        diffusion = self.diffusion_loss(z, route.prior, draws).mean()
        return diffusion, {"prior": diffusion.detach()}

    def begin(self, stage: str, data: Dataset) -> None:
        """Before the second stage: measure the latents, so that each of their dimensions has mean 0 and variance 1."""
        if stage != "diffusion":
            return
        rows = min(MEASURED_ROWS, data.count("train"))
        parts = torch.arange(rows, device=self.center.device).split(self.config.batch_rows)
        with torch.no_grad():
            latents = torch.cat([self.encode(self.observe(data.rows("train", part))[0])[0] for part in parts])
        self.center.copy_(latents.mean(0))
        self.spread.copy_(latents.std(0).clamp(min=1e-6))

    def standardised(self, x: Observed) -> Tensor:
        """Latents of the observed modalities, (rows, M x latent); what stands for the others has no meaning."""
        return ((self.encode(x)[0] - self.center) / self.spread).flatten(1)

    def diffusion_loss(self, z: Tensor, clean: Tensor, draws: Draws) -> Tensor:
        """Squared error of the prediction, a mean over the dimensions that are not clean; (rows,)."""
        logit = draws.normal("prior time")
        t = logit_normal(logit) if self.path is FLOW else torch.special.ndtr(logit)
        noise, noised = draws.normal("prior noise", z.shape[1]), (~clean).to(z.dtype)
        times = t[:, None] * noised  # a clean modality is at time 0, where the path is the data
        found = self.prior(self.path.at(z, noise, self.spread_out(times)), times, self.path)
        noised = self.spread_out(noised)
        error = (found - self.path.target(z, noise)).square()
        return (error * noised).sum(-1) / noised.sum(-1)

    def spread_out(self, times: Tensor) -> Tensor:
        """A number per modality for each of its dimensions, (rows, M x latent)."""
        return times.repeat_interleave(self.latent_size, 1)

    # Inference.

    def infer(self, given: Batch, draws: Draws) -> Tensor:
        """Latents of all modalities, (rows, M x latent): those given, and a sample of the others."""
        x, observed = self.observe(given)
        return self.solve(self.standardised(x), observed, draws)

    def sample_prior(self, rows: int, draws: Draws) -> Tensor:
        observed = torch.zeros(rows, len(self.names), dtype=torch.bool, device=self.center.device)
        return self.solve(self.center.new_zeros(rows, self.center.numel()), observed, draws)

    @torch.no_grad()
    def solve(self, z: Tensor, clean: Tensor, draws: Draws) -> Tensor:
        """z where `clean` (rows, M), and elsewhere a sample given that, by steps from noise to data."""
        noised, steps = (~clean).to(z.dtype), self.config.prior_steps
        where = self.spread_out(noised)
        x = torch.lerp(z, draws.normal("latent", z.shape[1]), where)
        for at, to in schedule(steps, max(1, round(JUMP * steps)), self.resamples):
            start, end = (torch.full((), k / steps, device=z.device) for k in (at, to))
            if to > at:
                moved = self.path.noised(x, start, end, draws.normal("latent again", z.shape[1]))
            else:
                moved = self.path.step(x, self.prior(x, start * noised, self.path), start, end)
            x = torch.lerp(z, moved, where)
        return x

    def decoder_input(self, z: Tensor, names: Sequence[str], draws: Draws, conditional: bool) -> Tensor:
        latents = z.unflatten(-1, self.center.shape) * self.spread + self.center
        return torch.stack([latents[:, self.names.index(name)] for name in names])


def schedule(steps: int, jump: int, resamples: int) -> Iterator[tuple[int, int]]:
    """(from, to) in steps of time, from `steps` to 0: down by one, or up by `jump`, as RePaint does (Lugmayr et al.,
    2022): on reaching a multiple of `jump`, back up and down again, until it was passed `resamples` times."""
    for at in range(steps, 0, -1):
        yield at, at - 1
        reached = at - 1
        if reached % jump == 0 and reached + jump < steps:
            for _ in range(resamples - 1):
                yield reached, reached + jump
                yield from ((back, back - 1) for back in range(reached + jump, reached, -1))


class JointNetwork(nn.Module):
    """What a path's network predicts of all latents together, each modality at its own time.

    x (rows, M x latent), times (rows, M) -> (rows, M x latent); the linear part is the best linear prediction for data
    of unit variance, and the network's share has unit scale, as in models.components.networks.VelocityNetwork.
    """

    def __init__(self, modalities: int, latent: int, width: int, depth: int) -> None:
        super().__init__()
        self.latent, size = latent, modalities * latent
        self.waves = TimeWaves()
        self.enter = StackedLinear(1, size, width, bias=False)
        self.enter_time = StackedLinear(1, modalities * TimeWaves.size, width)
        self.blocks = ResidualBlocks(1, width, depth)
        self.leave = StackedLinear(1, width, size, zero=True)

    def forward(self, x: Tensor, times: Tensor, path: Path) -> Tensor:
        hidden = self.enter(x[None], start=self.enter_time(self.waves(times).flatten(1)[None]))
        raw = self.leave(self.blocks(hidden))[0]
        linear, scale = (part.repeat_interleave(self.latent, 1) for part in path.best_linear(times))
        return torch.addcmul(linear * x, raw, scale)


METHOD = MLD
