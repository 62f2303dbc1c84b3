"""Everything a step computes lives where the model and the data live.

No GPU is needed to hold that: on the device "meta", which has shapes and no numbers, an operation between tensors of
two devices fails as it does on a GPU. (Products and gathers do not check there.)
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmark import registry
from benchmark.config import resolve
from benchmark.runtime import Draws

CARD = registry.card("dataset", "gaussian_mixture")
ROWS = 32
SIZES = [
    "train_rows=64",
    "evaluation_rows=64",
    "unconditional_rows=64",
    "probe_rows=64",
    "prior_steps=2",
    "decoder_steps=2",
]
TRAINED = [name for name in registry.index("method") if registry.card("method", name).stages]


class Elsewhere(Draws):
    """Draws whose numbers lie on the device "meta"."""

    def _draw(self, name, sample) -> Tensor:
        return super()._draw(name, sample).to("meta")


def draws(purpose: str) -> Draws:
    return Elsewhere(purpose, rows=ROWS, block=ROWS)


def step(method, batch, stages) -> None:
    """A training step of every stage, and a sample of every task."""
    for stage, _ in stages:
        loss, parts = method.loss(batch, stage, draws(stage))
        loss.backward()
        assert {part.device.type for part in (loss, *parts.values())} == {"meta"}
    names = list(batch)
    for given in ([], names[:1], names[:2]):
        if len(given) == 2 and "many_to_one" not in method.card.tasks:
            continue
        want = [name for name in names if name not in given]
        made = method.sample({name: batch[name] for name in given}, want, ROWS, draws("sample"))
        assert {made[name].device.type for name in want} == {"meta"}


@pytest.fixture
def data():
    return registry.load("dataset", "gaussian_mixture")(resolve(CARD, None, "smoke", SIZES).config, "meta")


def built(name: str, data):
    card = registry.card("method", name)
    method = registry.load("method", name)(data.modalities, resolve(CARD, card, "smoke", SIZES).config).to("meta")
    method.card = card
    return method


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_computes_where_its_inputs_are(name: str, data) -> None:
    batch = data.rows("train", torch.arange(ROWS, device="meta"))
    assert {x.device.type for x in batch.values()} == {"meta"}
    method = built(name, data)
    step(method, batch, method.card.stages)


def test_a_tensor_left_on_the_processor_is_noticed(data, monkeypatch: pytest.MonkeyPatch) -> None:
    method = built("muni", data)
    batch = data.rows("train", torch.arange(ROWS, device="meta"))
    real = method.observe
    monkeypatch.setattr(method, "observe", lambda batch: (real(batch)[0], torch.ones(ROWS, 3, dtype=torch.bool)))
    with pytest.raises(RuntimeError, match="device"):
        step(method, batch, method.card.stages)


@pytest.mark.parametrize("what", ["factors", "sample_factor"])
def test_the_world_answers_where_it_is_asked(what: str, data) -> None:
    if what == "factors":
        made = data.factors("validation", torch.arange(ROWS, device="meta"))
        assert {x.device.type for x in made.values()} == {"meta"}
    else:
        assert data.sample_factor("all", draws("factor")).device.type == "meta"
