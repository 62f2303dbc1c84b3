"""Kinds of modality under one latent: what is not observed is not seen, and every decoder's loss is the stated one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from benchmark import registry
from benchmark.api import Modality
from benchmark.config import Config, resolve
from benchmark.runtime import Draws, seeded
from models.components.families import LOG_VARIANCE, Images, Labels, families
from models.components.latent import LatentModel

MIXED = (
    Modality("left", (3, 16, 16), "image", center=0.5, scale=0.28),
    Modality("right", (3, 16, 16), "image", center=0.5, scale=0.28),
    Modality("digit", (), "label", classes=10),
    Modality("quadrant", (), "label", classes=4),
    Modality("vector", (6,), center=1.0, scale=2.0),
)
ROWS = 5


def config(**changes: object) -> Config:
    found = resolve(registry.card("dataset", "polymnist_quadrant_labels"), None, "smoke").config
    return replace(found, **changes)  # type: ignore[arg-type]


def batch(rows: int = ROWS) -> dict[str, torch.Tensor]:
    draws = Draws("mixed batch", rows=rows)
    return {
        each.name: draws.integers(each.name, each.classes) if each.classes else draws.uniform(each.name, *each.shape)
        for each in MIXED
    }


def stirred(module: torch.nn.Module) -> None:
    """No weight is zero any more: output layers start at zero, which would hide what reaches them."""
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            weight += 0.1 * Draws("stir", number, rows=1).normal("weight", *weight.shape)[0]


def model(name: str = "muni", **changes: object) -> LatentModel:
    with seeded("families"):
        made = registry.load("method", name)(MIXED, config(**changes))
    stirred(made)
    return made


def test_neighbours_of_one_kind_and_shape_share_networks() -> None:
    found = [(family.__name__, [each.name for each in members]) for family, members in families(MIXED, config())]
    assert found == [
        ("Images", ["left", "right"]),
        ("Labels", ["digit"]),
        ("Labels", ["quadrant"]),
        ("Vectors", ["vector"]),
    ]
    with pytest.raises(ValueError, match="no networks for modalities of kind 'audio'"):
        list(families([Modality("sound", (2, 8), "audio")], config()))


@pytest.mark.parametrize(("decoder", "sound"), [("regression", "Regressed"), ("flow", "Vectors")])
def test_features_have_the_decoders_of_their_kind(decoder: str, sound: str) -> None:
    modalities = [
        Modality("a", (8,), "text", classes=9, words=4),
        Modality("b", (8,), "text", classes=9, words=4),
        Modality("c", (8,), "image"),
        Modality("d", (8,), "audio"),
    ]
    found = [
        (family.__name__, [each.name for each in members])
        for family, members in families(modalities, config(audio_decoder=decoder))
    ]
    assert found == [("Texts", ["a"]), ("Texts", ["b"]), ("Vectors", ["c"]), (sound, ["d"])]


def test_the_posterior_of_a_subset_is_the_product_of_its_experts_alone() -> None:
    made, rows = model(), batch()
    everything, _ = made.observe(rows)
    mean, log_variance = made.encode(everything)
    for given in (["digit"], ["left", "quadrant"], ["vector", "right"]):
        x, observed = made.observe({name: rows[name] for name in given})
        at = [made.names.index(name) for name in given]
        assert observed.sum(1).eq(len(given)).all() and observed[:, at].all()
        seen_mean, seen_log_variance = made.encode(x)
        torch.testing.assert_close(seen_mean[:, at], mean[:, at])
        torch.testing.assert_close(seen_log_variance[:, at], log_variance[:, at])
        precision = (-log_variance[:, at]).exp()
        expected = (precision * mean[:, at]).sum(1) / precision.sum(1)
        pooled, _ = made.aggregate(seen_mean, seen_log_variance, observed)
        torch.testing.assert_close(pooled, expected)


def test_the_loss_is_the_mean_over_all_modalities_and_rows() -> None:
    made = model()
    x, observed = made.observe(batch())
    z = Draws("latent", rows=ROWS).normal("z", made.latent_size).expand(len(MIXED), -1, -1)
    targets = observed.clone()
    targets[0, 2:] = False
    parts = [
        family.reconstruction(seen, z[part], targets.T[part], Draws("loss", rows=ROWS))
        for family, seen, part in zip(made.families, x, made.parts, strict=True)
    ]
    assert parts[1][0, 0] == parts[2][0, 0] == parts[3][0, 0] == 0 and (torch.cat(parts[1:])[:, 1:] > 0).all()
    found = torch.cat([part.sum(0, keepdim=True) for part in parts]).sum() / (len(MIXED) * ROWS)
    # The same draws in the same order, of which the k-th of a name is its own.
    draws, total = Draws("loss", rows=ROWS), torch.zeros(())
    for family, seen, part in zip(made.families, x, made.parts, strict=True):
        total += family.reconstruction(seen, z[part], targets.T[part], draws).sum()
    torch.testing.assert_close(
        made.reconstruction(x, z, targets, Draws("loss", rows=ROWS)), total / (len(MIXED) * ROWS)
    )
    assert found.isfinite()


def test_a_labels_loss_is_its_cross_entropy_and_a_generated_label_the_likeliest() -> None:
    made = model().families[1]
    assert isinstance(made, Labels)
    truth = batch()["digit"]
    z = Draws("labels", rows=ROWS).normal("z", made.config.latent_size)[None]
    logits = made.decoder(z)[0]
    assert logits.std() > 0.01
    loss = made.reconstruction(
        made.observe({"digit": truth}), z, torch.ones(1, ROWS, dtype=torch.bool), Draws("", rows=ROWS)
    )
    torch.testing.assert_close(loss[0], functional.cross_entropy(logits, truth, reduction="none"))
    assert torch.equal(made.generate(z, slice(None), torch.randn)[0], logits.argmax(-1))


class EqualToItsView(torch.nn.Module):
    """Stands in for the decoder: its squared error is the number of the view that it draws, plus one."""

    def condition(self, z, view, told=None):
        return view

    def forward(self, x, t, condition):
        return self.velocity + (condition + 1.0).sqrt().reshape(-1, 1, 1, 1)


def test_one_view_is_drawn_among_the_targets_and_weighted_by_their_number() -> None:
    rows = 3000
    made = model().families[0]
    assert isinstance(made, Images)
    made.decoder = EqualToItsView()
    x = made.observe({name: each for name, each in batch(rows).items() if name in ("left", "right")})
    targets = torch.tensor([[True, False], [False, True], [True, True], [False, False]]).repeat(rows // 4, 1).T
    z = torch.zeros(2, rows, made.config.latent_size)
    noise = Draws("views", rows=rows).normal("reconstruction noise", 3, 16, 16)
    drawn = []

    def velocity_of(view, row):
        drawn.append(view)
        return noise - x[view, row]

    # The target velocity is noise - x of the drawn view; the stand-in must know it, so it is worked out per row.
    class Exact(EqualToItsView):
        def condition(self, z, view, told=None):
            self.velocity = velocity_of(view, torch.arange(rows))
            return view

    made.decoder = Exact()
    loss = made.reconstruction(x, z, targets, Draws("views", rows=rows))
    (view,) = drawn
    one, two, both, none = (slice(k, None, 4) for k in range(4))
    assert (view[one] == 0).all() and (view[two] == 1).all()
    assert abs(view[both].float().mean() - 0.5) < 4 * 0.5 / (rows / 4) ** 0.5
    torch.testing.assert_close(loss[:, one].sum(0), torch.full((rows // 4,), 1.0, dtype=loss.dtype))
    torch.testing.assert_close(loss[:, two].sum(0), torch.full((rows // 4,), 2.0, dtype=loss.dtype))
    assert loss[:, both].sum(0).unique().tolist() == pytest.approx([2.0, 4.0])  # 2 x 1 or 2 x 2: 3 on average
    assert not loss[:, none].any()
    assert not (loss * ~targets).any()


@pytest.mark.parametrize("weight", [1.0, 1.5, 4.0])
def test_guidance_leaves_nothing_by_its_weight(weight: float) -> None:
    made = model(guidance=weight).families[0]
    assert isinstance(made, Images)
    draws = Draws("guidance", rows=4)
    z, x = draws.normal("z", made.config.latent_size), draws.normal("x", 3, 16, 16)
    view, t = torch.tensor([0, 1, 1, 0]), torch.full((1, 1), 0.6)
    told = made.decoder(x, t.flatten(), made.decoder.condition(z, view))
    blind = made.decoder(x, t.flatten(), made.decoder.condition(z, view, torch.zeros(4, dtype=torch.bool)))
    assert (told - blind).abs().max() > 1e-3
    torch.testing.assert_close(made.guided(z, view)(x, t), blind + weight * (told - blind))


def test_rows_that_are_not_told_the_latent_do_not_train_on_it() -> None:
    made = model(condition_dropout=1.0).families[0]
    x = made.observe({name: each for name, each in batch().items() if name in ("left", "right")})
    z = torch.zeros(2, ROWS, made.config.latent_size, requires_grad=True)
    made.reconstruction(x, z, torch.ones(2, ROWS, dtype=torch.bool), Draws("told", rows=ROWS)).sum().backward()
    assert z.grad is None or not z.grad.any()


@pytest.mark.parametrize("given", [(), ("digit",), ("left", "quadrant"), ("vector",)])
@pytest.mark.parametrize("method", ["muni", "muni_hellinger", "mmvaeplus", "shala"])
def test_every_kind_is_generated_from_every_kind(method: str, given: tuple[str, ...]) -> None:
    if method == "shala" and len(given) > 1:
        pytest.skip("ShaLa conditions on one modality")
    made, rows = model(method), batch()
    want = [name for name in made.names if name not in given]
    generated = made.sample({name: rows[name] for name in given}, want, ROWS, Draws("sample", rows=ROWS))
    assert list(generated) == want
    for modality in MIXED:
        if modality.name in want:
            x = generated[modality.name]
            assert x.shape == (ROWS, *modality.shape) and x.isfinite().all()
            assert modality.kind != "image" or (x.min() >= 0 and x.max() <= 1)
            assert not modality.classes or (x.dtype == torch.int64 and x.min() >= 0 and x.max() < modality.classes)
    alone = made.sample({name: rows[name] for name in given}, want[1:2], ROWS, Draws("sample", rows=ROWS))
    torch.testing.assert_close(alone[want[1]], generated[want[1]])


def test_pictures_learn_at_the_times_that_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[torch.Tensor] = []

    def seen(velocity: object, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(torch.logit(t))
        return x.new_zeros(len(x))

    monkeypatch.setattr("models.components.families.matching_loss", seen)
    for location in (0.0, 1.5):
        family = model(image_time_location=location).families[0]
        x, z = family.observe(batch()), torch.zeros(2, ROWS, config().latent_size)
        family.reconstruction(x, z, torch.ones(2, ROWS), Draws("times", rows=ROWS))
    torch.testing.assert_close(times[1] - times[0], torch.full((ROWS,), 1.5), rtol=0, atol=1e-4)


def test_a_labels_expert_starts_as_codes_with_little_noise() -> None:
    with seeded("families"):
        label = registry.load("method", "muni")(MIXED, config()).families[1]
    mean, log_variance = label.encode(label.standardise(torch.arange(10))[None])
    assert 0.8 < mean.var(1).sqrt().mean() < 1.2  # between classes
    assert (log_variance - LOG_VARIANCE).abs().max() < 10**-0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
@pytest.mark.parametrize("name", ["muni", "mmvaeplus", "mld", "mvtcae"])
def test_labels_of_any_integer_type_are_learned_and_given_alike(name: str, dtype: torch.dtype) -> None:
    """As data sets and plug-ins hold them."""
    wide, method = batch(), model(name)
    narrow = {key: x if x.is_floating_point() else x.to(dtype) for key, x in wide.items()}
    stage = registry.card("method", name).stages[0]
    losses = [method.loss(rows, stage, Draws("loss", rows=ROWS)) for rows in (wide, narrow)]
    given = [{key: rows[key] for key in ("digit", "vector")} for rows in (wide, narrow)]
    drawn = [method.sample(rows, ["left", "quadrant"], ROWS, Draws("sample", rows=ROWS)) for rows in given]
    assert repr(losses[0]) == repr(losses[1])
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])
