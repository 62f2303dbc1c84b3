"""Tiny models with a latent for tests of what they compute, in general position: no weight is zero, so that nothing
vanishes by initialisation."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmark import registry
from benchmark.api import Modality
from benchmark.config import Config, resolve
from benchmark.runtime import seeded
from models.components.latent import LatentModel

SIZE, WIDTH, VOCABULARY, MOST = 5, 8, 11, 4  # of a feature, an embedding, the words that there are and a sentence
START, END = 9, 10
VECTORS = tuple(Modality(number, (6,)) for number in "123")
PICTURES = (
    *(Modality(number, (3, 8, 8), kind="image") for number in "12"),
    Modality("3", (), kind="label", classes=5),
)
THINGS = (
    Modality("1", (SIZE,), "text", classes=VOCABULARY, words=MOST),
    Modality("2", (SIZE,), "image"),
    Modality("3", (SIZE,), "audio"),
)
NETWORKS = ("encoder", "decoder", "prior")
KINDS = {"vectors": VECTORS, "pictures": PICTURES, "features of things": THINGS}


class Recurrent:
    """A language model whose next logits depend on all that came before: attention over everything, equally."""

    start, end = START, END

    def __init__(self) -> None:
        with seeded("language model"):
            self.table = nn.Embedding(VOCABULARY, WIDTH)
            self.network = nn.ModuleDict({"q_proj": nn.Linear(WIDTH, WIDTH), "other": nn.Linear(WIDTH, VOCABULARY)})
            self._projector = nn.Linear(SIZE, 2 * WIDTH)
        self.network.requires_grad_(False)

    def projector(self) -> nn.Module:
        made = nn.Sequential(nn.Linear(SIZE, 2 * WIDTH), nn.Unflatten(1, (2, WIDTH)))
        made[0].load_state_dict(self._projector.state_dict())
        return made

    def embed(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).detach()

    def logits(self, embeddings: Tensor) -> Tensor:
        before = embeddings.cumsum(1) / torch.arange(1, embeddings.shape[1] + 1)[:, None]
        return self.network["other"](torch.tanh(self.network["q_proj"](before)))

    def greedy(self, prefix: Tensor, most: int) -> Tensor:
        tokens = torch.full((len(prefix), 1), self.start)
        for _ in range(most):
            following = self.logits(torch.cat([prefix, self.embed(tokens)], 1))[:, -1].argmax(-1)
            ended = (tokens == self.end).any(1)
            tokens = torch.cat([tokens, torch.where(ended, self.end, following)[:, None]], 1)
        return tokens[:, 1:]


def small(**settings: float) -> Config:
    """The mixture's configuration with networks of width 8 and depth 1, and these fields."""
    sizes = {f"{part}_width": 8 for part in NETWORKS} | {f"{part}_depth": 1 for part in NETWORKS}
    overrides = [f"{field}={value}" for field, value in (sizes | settings).items()]
    return resolve(registry.card("dataset", "gaussian_mixture"), None, "smoke", overrides).config


def tiny(method: type, names: str = "123", **settings: float) -> LatentModel:
    """A small float64 model of vectors."""
    settings = {"latent_size": 4, "encoder_grad_scale": 0.3, "prior_weight": 0.7} | settings
    with seeded("objectives"):
        model = method([Modality(name, (6,), center=0.5, scale=2.0) for name in names], small(**settings)).double()
        return stirred(model, 0.4)


@cache
def configuration() -> Config:
    return small(
        latent_size=4,
        private_size=3,
        encoder_grad_scale=0.5,
        prior_steps=2,
        decoder_steps=2,
        label_width=8,
        patch=2,
        word_rows=4,
        word_weight=0.05,
        adapter_rank=2,
    )


def build(method: type, modalities: tuple[Modality, ...] = VECTORS) -> LatentModel:
    """A model of any of the KINDS."""
    with seeded("routing", method.__name__):
        model = method(modalities, configuration())
        model.bind(SimpleNamespace(language_model=Recurrent))
        return stirred(model, 0.1 if modalities is PICTURES else 0.4)  # a picture has many more inputs


def stirred(model: LatentModel, scale: float) -> LatentModel:
    """The model, with every weight drawn anew from N(0, scale^2)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model
