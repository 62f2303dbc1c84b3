"""Features of sentences, pictures and sounds: each decoder's loss is the stated one, and adapters leave no trace."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark import registry
from benchmark.api import Modality, words_of
from benchmark.config import Config, resolve
from benchmark.runtime import Draws, seeded
from models.components.families import Regressed, Texts, Vectors
from models.components.latent import LatentModel
from models.components.texts import Adapters, TextDecoder
from tests.models.latent_models import END, MOST, SIZE, START, VOCABULARY, WIDTH, Recurrent

ROWS = 6
FEATURES = (
    Modality("text", (SIZE,), "text", classes=VOCABULARY, words=MOST),
    Modality("image", (SIZE,), "image"),
    Modality("audio", (SIZE,), "audio"),
)


def config(**changes: object) -> Config:
    found = resolve(registry.card("dataset", "gaussian_mixture"), None, "smoke").config
    sizes = {"word_rows": 4, "word_weight": 0.05, "adapter_rank": 2, "adapter_scale": 0.5, **changes}
    return replace(found, **sizes)  # type: ignore[arg-type]


def stirred(module: nn.Module) -> None:
    """No weight is zero any more: output layers and adapters start at zero, which would hide what reaches them."""
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            weight += 0.3 * Draws("stir", number, rows=1).normal("weight", *weight.shape)[0]


def model(name: str = "muni", **changes: object) -> LatentModel:
    with seeded("texts"):
        made = registry.load("method", name)(FEATURES, config(**changes))
        made.bind(SimpleNamespace(language_model=Recurrent))
    stirred(made)
    return made


def batch(*names: str) -> dict[str, Tensor]:
    draws = Draws("features", rows=ROWS)
    rows = {each.name: draws.normal(each.name, SIZE) for each in FEATURES if each.name in names}
    if "text" in names:
        words = draws.integers("words", START, MOST)
        words[1, 2:] = END
        words[2, :] = END
        rows[words_of("text")] = words
    return rows


def decoder() -> TextDecoder:
    with seeded("decoder"):
        made = TextDecoder(3, SIZE, 16, 1)
        made.bind(Recurrent(), 2, 0.5)
    stirred(made)
    return made


def test_an_adapter_adds_its_low_rank_product_and_leaves_the_network_as_it_was() -> None:
    network = Recurrent().network
    adapters = Adapters(network, 2, 0.5)
    x = Draws("x", rows=3).normal("x", WIDTH)
    plain = network["q_proj"](x)
    with adapters.on(network):
        assert torch.equal(network["q_proj"](x), plain)  # B = 0 at the start
    stirred(adapters)
    with adapters.on(network):
        tuned = network["q_proj"](x)
        assert torch.equal(network["other"](x), functional.linear(x, *network["other"].parameters()))
    weight = network["q_proj"].weight + 0.5 * adapters.up[0] @ adapters.down[0]
    torch.testing.assert_close(tuned, functional.linear(x, weight, network["q_proj"].bias))
    assert torch.equal(network["q_proj"](x), plain)
    with pytest.raises(RuntimeError, match="planted"), adapters.on(network):
        raise RuntimeError("planted")
    assert torch.equal(network["q_proj"](x), plain)


def test_a_language_model_without_attention_by_these_names_is_refused() -> None:
    with pytest.raises(ValueError, match="q_proj"):
        Adapters(nn.ModuleDict({"query": nn.Linear(2, 2)}), 1, 1.0)


def test_words_are_scored_up_to_the_first_end_one_row_at_a_time() -> None:
    made, model_ = decoder(), Recurrent()
    feature, words = Draws("f", rows=ROWS).normal("f", SIZE), batch("text")[words_of("text")]
    found = made.cross_entropy(feature, words)
    for row, told in enumerate(words.tolist()):
        counted = told[: told.index(END) + 1] if END in told else told
        shown, total = torch.cat([made.prefix(feature[row : row + 1]), model_.embed(torch.tensor([[START]]))], 1), 0.0
        for word in counted:
            with made.adapters.on(model_.network):
                total -= torch.log_softmax(model_.logits(shown)[0, -1], -1)[word]
            shown = torch.cat([shown, model_.embed(torch.tensor([[word]]))], 1)
        torch.testing.assert_close(found[row], total / len(counted))


def test_only_adapters_prefix_and_projection_are_trained_and_kept() -> None:
    made = decoder()
    names = {name.partition(".")[0] for name in made.state_dict()}
    assert names == {"projection", "prefix", "adapters"}
    z = Draws("z", rows=ROWS).normal("z", 3)[None]
    made.cross_entropy(made(z), batch("text")[words_of("text")]).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in made.parameters())


def test_a_texts_loss_is_its_distance_and_for_the_first_rows_its_words() -> None:
    family: Texts = model().families[0]  # type: ignore[assignment]
    x = family.observe(batch("text"))
    z = Draws("z", rows=ROWS).normal("z", config().latent_size)[None]
    targets = torch.tensor([[1, 1, 0, 1, 1, 1]]).bool()
    loss = family.reconstruction(x, z, targets, Draws("loss", rows=ROWS))
    projected = family.decoder(z)
    distance = (projected - batch("text")["text"]).square().mean(1)
    words = family.decoder.cross_entropy(projected, batch("text")[words_of("text")])
    words[4:] = 0
    torch.testing.assert_close(loss, ((distance + 0.05 * ROWS / 4 * words) * targets[0])[None])


def test_a_sounds_decoder_gives_the_mean_and_draws_nothing() -> None:
    family: Regressed = model().families[2]  # type: ignore[assignment]
    x = family.observe(batch("audio"))
    z = Draws("z", rows=ROWS).normal("z", config().latent_size)[None]
    made = family.generate(z, slice(0, 1), lambda *shape: pytest.fail("drew noise"))
    targets = torch.tensor([[1, 0, 1, 1, 1, 1]]).bool()
    loss = family.reconstruction(x, z, targets, Draws("loss", rows=ROWS))
    torch.testing.assert_close(loss, (made - x).square().mean(2) * targets)


def test_a_pictures_feature_is_drawn_by_a_guided_flow() -> None:
    family: Vectors = model(guidance=4.0, decoder_steps=1).families[1]  # type: ignore[assignment]
    z, noise = (
        Draws(name, rows=ROWS).normal(name, size)[None] for name, size in (("z", config().latent_size), ("n", SIZE))
    )
    made = family.generate(z, slice(0, 1), lambda *shape: noise)
    t = torch.ones(1, 1)
    told, blind = family.decoder(noise, t, family.decoder.condition(z)), family.decoder(noise, t)
    torch.testing.assert_close(made, noise - (blind + 4.0 * (told - blind)))


def test_a_share_of_the_rows_is_not_told_the_latent_of_a_picture() -> None:
    rows = 1024
    family: Vectors = model(condition_dropout=0.25).families[1]  # type: ignore[assignment]
    z = Draws("z", rows=rows).normal("z", config().latent_size)[None].requires_grad_()
    x = Draws("x", rows=rows).normal("x", SIZE)[None]
    family.reconstruction(x, z, torch.ones(1, rows), Draws("loss", rows=rows)).sum().backward()
    blind = (z.grad == 0).all(-1).float().mean().item()
    assert abs(blind - 0.25) < 4 * (0.25 * 0.75 / rows) ** 0.5


@pytest.mark.parametrize("method", ["muni", "muni_hellinger", "mmvae", "mopoe", "mmvaeplus"])
@pytest.mark.parametrize("pair", [("text", "image"), ("text", "audio"), ("image", "audio")])
def test_pairs_train_what_they_hold_and_nothing_else(method: str, pair: tuple[str, str]) -> None:
    made = model(method, condition_dropout=0.1)
    loss, parts = made.loss(batch(*pair), "joint", Draws("pairs", rows=ROWS))
    loss.backward()
    assert all(part.isfinite() for part in parts.values())
    for family, modality in zip(made.families, FEATURES, strict=True):
        reached = any(weight.grad is not None and weight.grad.any() for weight in family.parameters())
        assert reached == (modality.name in pair)


@pytest.mark.parametrize("given", [(), ("text",), ("image", "audio")])
def test_generated_words_are_the_likeliest_ones_and_rows_do_not_meet(given: tuple[str, ...]) -> None:
    made, rows = model(), batch("text", "image", "audio")
    want = [each.name for each in FEATURES if each.name not in given]
    shown = {name: rows[name] for name in given}
    generated = made.sample(shown, want, ROWS, Draws("sample", rows=ROWS))
    if "text" in want:
        assert generated["text"].dtype == torch.int64 and generated["text"].shape == (ROWS, MOST)
        z = (
            made.infer(shown, Draws("sample", rows=ROWS))
            if given
            else made.sample_prior(ROWS, Draws("sample", rows=ROWS))
        )
        decoder = made.families[0].decoder
        assert torch.equal(generated["text"], decoder.write(decoder(z[None]), MOST))
    alone = made.sample({name: x[:3] for name, x in shown.items()}, want, 3, Draws("sample", rows=3))
    for name in want:
        torch.testing.assert_close(alone[name], generated[name][:3], rtol=1e-4, atol=1e-4)
