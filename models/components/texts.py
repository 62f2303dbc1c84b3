"""How sentences are written from a latent: a projection onto a sentence's feature, and a frozen language model that
reads the projection as a prefix and is tuned by low-rank adapters (MUNI, App. E.2; Hu et al., 2022)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.components.networks import Regression

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # of attention: what adapters are laid beside


class LanguageModel(Protocol):
    """A frozen causal model of token ids.

    start, end: token ids before the first and after the last word. network: in eval mode, its weights without
    gradients; its attention's projections are linear layers of the names in PROJECTIONS.
    """

    start: int
    end: int
    network: nn.Module

    def projector(self) -> nn.Module:
        """A new trainable map of standardised features (n, size) to prefix embeddings (n, prefix, width)."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """(n, l) int64 -> (n, l, width)"""
        ...

    def logits(self, embeddings: Tensor) -> Tensor:
        """(n, l, width) -> (n, l, vocabulary), each of what follows its place."""
        ...

    def greedy(self, prefix: Tensor, most: int) -> Tensor:
        """The likeliest next token again and again after prefix embeddings and `start`: (n, most) int64, filled up
        with `end`."""
        ...


class Adapters(nn.Module):
    """Low-rank additions to a frozen network's attention, which it does not know of: W x + scale B A x, with B = 0 at
    the start."""

    def __init__(self, network: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        linear = {
            name: part
            for name, part in network.named_modules()
            if isinstance(part, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS
        }
        if not linear:
            raise ValueError(f"no linear layer of the language model is named {', '.join(PROJECTIONS)}")
        self.places = tuple(linear)
        self.down = nn.ParameterList(
            torch.randn(rank, part.in_features) / part.in_features**0.5 for part in linear.values()
        )
        self.up = nn.ParameterList(torch.zeros(part.out_features, rank) for part in linear.values())

    @contextlib.contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """The network with these additions, inside."""
        hooks = [
            network.get_submodule(place).register_forward_hook(partial(self._add, number))
            for number, place in enumerate(self.places)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, number: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        low = functional.linear(inputs[0], self.down[number])
        return output + self.scale * functional.linear(low, self.up[number])


class TextDecoder(nn.Module):
    """Told z (1, rows, conditions): the sentence's feature, its words' cross-entropy, and new words."""

    def __init__(self, conditions: int, size: int, width: int, depth: int) -> None:
        super().__init__()
        self.projection = Regression(1, conditions, width, depth, size)
        self._frozen: tuple[LanguageModel, ...] = ()  # in a tuple, so that its weights are not counted among ours

    def bind(self, language_model: LanguageModel, rank: int, scale: float) -> None:
        """Make the weights that the language model needs."""
        self._frozen = (language_model,)
        self.prefix = language_model.projector()
        self.adapters = Adapters(language_model.network, rank, scale)

    def forward(self, z: Tensor) -> Tensor:
        """The feature, (rows, size)."""
        return self.projection(z)[0]

    def cross_entropy(self, feature: Tensor, words: Tensor) -> Tensor:
        """Nats per word of words (rows, most) after a feature (rows, size), the first end included; (rows,)."""
        (model,) = self._frozen
        prefix = self.prefix(feature)
        before = functional.pad(words[:, :-1], (1, 0), value=model.start)
        with self.adapters.on(model.network):
            logits = model.logits(torch.cat([prefix, model.embed(before).to(prefix.dtype)], 1))
        loss = functional.cross_entropy(logits[:, prefix.shape[1] :].transpose(1, 2).float(), words, reduction="none")
        ends = (words == model.end).long()
        counted = (ends.cumsum(1) - ends) == 0
        return (loss * counted).sum(1) / counted.sum(1)

    def write(self, feature: Tensor, most: int) -> Tensor:
        """The likeliest words after a feature (rows, size), one by one; (rows, most) int64."""
        (model,) = self._frozen
        with self.adapters.on(model.network):
            return model.greedy(self.prefix(feature), most)
