"""The image networks: told which view, row by row, of the paper's size, and preconditioned as those of vectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmark import registry
from benchmark.api import Modality
from benchmark.config import resolve
from benchmark.runtime import Draws, seeded
from models.components.images import ImageEncoder, ImageVelocity

VIEWS, SIDE, CONDITIONS, OUTPUTS, ROWS = 3, 16, 5, 4, 6
CARD = registry.card("dataset", "polymnist_quadrant_labels")
TABLE_E2 = {"encoder": 8.8e6, "prior": 12.6e6, "decoder": 10.7e6}


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """Double precision, and no weight zero."""
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            weight += 0.1 * Draws("stir", number, rows=1).normal("weight", *weight.shape)[0]
    return module.double()


def encoder(patch: int = 2) -> ImageEncoder:
    with seeded("encoder"):
        return ImageEncoder(VIEWS, SIDE, 3, 16, 1, patch, OUTPUTS)


def velocity(patch: int = 2) -> ImageVelocity:
    with seeded("velocity"):
        return ImageVelocity(VIEWS, SIDE, 3, CONDITIONS, 16, 1, patch)


def drawn(*shape: int, name: str = "x") -> torch.Tensor:
    return Draws("images", rows=shape[0]).normal(name, *shape[1:]).double()


def test_experts_start_as_standard_normal() -> None:
    mean, log_variance = encoder()(drawn(VIEWS, ROWS, 3, SIDE, SIDE).float())
    assert mean.shape == log_variance.shape == (VIEWS, ROWS, OUTPUTS)
    assert not mean.any() and not log_variance.any()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_every_view_has_its_own_input_layer_and_head(patch: int) -> None:
    made, x = stirred(encoder(patch)), drawn(VIEWS, ROWS, 3, SIDE, SIDE)
    mean, log_variance = made(x)
    assert (made(x[:1].expand(VIEWS, -1, -1, -1, -1))[0].std(0) > 1e-6).all()
    order = [2, 0, 1]
    made.enter = torch.nn.ModuleList(made.enter[k] for k in order)
    made.head.data, made.bias.data = made.head.data[order], made.bias.data[order]
    for found, expected in zip(made(x[order]), (mean, log_variance), strict=True):
        torch.testing.assert_close(found, expected[order])


def test_log_variances_stay_in_bounds() -> None:
    made = stirred(encoder())
    made.bias.data[:, :, OUTPUTS:] = torch.tensor([-99.0, 99.0, 0.0, 0.0])
    _, log_variance = made(drawn(VIEWS, ROWS, 3, SIDE, SIDE))
    assert (log_variance[..., 0] == -14).all() and (log_variance[..., 1] == 6).all()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_at_the_start_the_velocity_is_the_best_linear_predictors(patch: int) -> None:
    """Of noise - x from x_t = (1 - t) x + t noise, both of unit variance: (2t - 1) / ((1 - t)^2 + t^2) x_t."""
    made, x, t = velocity(patch).double(), drawn(ROWS, 3, SIDE, SIDE), torch.linspace(0.05, 0.95, ROWS).double()
    condition = made.condition(drawn(ROWS, CONDITIONS), torch.arange(ROWS) % VIEWS)
    expected = ((2 * t - 1) / ((1 - t) ** 2 + t**2))[:, None, None, None] * x
    torch.testing.assert_close(made(x, t, condition), expected)


def test_the_velocity_depends_on_all_that_it_is_told() -> None:
    made, x, t = stirred(velocity()), drawn(ROWS, 3, SIDE, SIDE), torch.full((ROWS,), 0.4).double()
    z, view = drawn(ROWS, CONDITIONS, name="z"), torch.arange(ROWS) % VIEWS
    base = made(x, t, made.condition(z, view))
    for other in (
        made(x, t, made.condition(z + 1, view)),
        made(x, t, made.condition(z, (view + 1) % VIEWS)),
        made(x, t + 0.3, made.condition(z, view)) * 1.0,
    ):
        assert ((other - base).abs().amax((1, 2, 3)) > 1e-3).all()


def test_a_row_that_is_not_told_knows_its_view_alone() -> None:
    made, x, t = stirred(velocity()), drawn(ROWS, 3, SIDE, SIDE), torch.full((ROWS,), 0.4).double()
    z, view = drawn(ROWS, CONDITIONS, name="z"), torch.arange(ROWS) % VIEWS
    told = torch.tensor([True, False, True, False, False, True])
    first, second = (made(x, t, made.condition(each, view, told)) for each in (z, z + 1))
    torch.testing.assert_close(first[~told], second[~told], rtol=0, atol=0)
    assert ((first - second)[told].abs().amax((1, 2, 3)) > 1e-3).all()
    torch.testing.assert_close(first[told], made(x, t, made.condition(z, view))[told])
    other = made(x, t, made.condition(z, (view + 1) % VIEWS, told))
    assert ((other - first).abs().amax((1, 2, 3)) > 1e-3).all()


def test_rows_do_not_know_each_other() -> None:
    made, x, t = stirred(velocity()), drawn(ROWS, 3, SIDE, SIDE), torch.linspace(0.1, 0.9, ROWS).double()
    z, view = drawn(ROWS, CONDITIONS, name="z"), torch.arange(ROWS) % VIEWS
    whole = made(x, t, made.condition(z, view))
    pictures = drawn(VIEWS, ROWS, 3, SIDE, SIDE, name="pictures")
    means = stirred(encoder())(pictures)[0]
    for row in range(ROWS):
        at = slice(row, row + 1)
        torch.testing.assert_close(made(x[at], t[at], made.condition(z[at], view[at])), whole[at])
        torch.testing.assert_close(stirred(encoder())(pictures[:, at])[0], means[:, at])


def test_one_time_serves_all_rows() -> None:
    made, x = stirred(velocity()), drawn(ROWS, 3, SIDE, SIDE)
    condition = made.condition(drawn(ROWS, CONDITIONS, name="z"), torch.arange(ROWS) % VIEWS)
    once, each = (made(x, torch.full((rows,), 0.3).double(), condition) for rows in (1, ROWS))
    torch.testing.assert_close(once, each)


def test_the_gradient_reaches_every_weight() -> None:
    decoder, expert = stirred(velocity()), stirred(encoder())
    told = torch.tensor([True, False] * (ROWS // 2))
    condition = decoder.condition(drawn(ROWS, CONDITIONS, name="z"), torch.arange(ROWS) % VIEWS, told)
    decoder(drawn(ROWS, 3, SIDE, SIDE), torch.full((ROWS,), 0.3).double(), condition).square().sum().backward()
    sum(part.square().sum() for part in expert(drawn(VIEWS, ROWS, 3, SIDE, SIDE))).backward()
    for module in (decoder, expert):
        assert [
            name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.any()
        ] == []


def test_bfloat16_is_close() -> None:
    made, x, t = stirred(velocity()).float(), drawn(ROWS, 3, SIDE, SIDE).float(), torch.full((ROWS,), 0.4)
    z, view = drawn(ROWS, CONDITIONS, name="z").float(), torch.arange(ROWS) % VIEWS
    exact = made(x, t, made.condition(z, view))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close = made(x, t, made.condition(z, view))
    assert 0 < (close - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


@pytest.mark.parametrize(
    ("canvas", "patch", "sides"),
    [
        (28, 1, [28, 14, 7]),
        (28, 2, [14, 7]),
        (28, 4, [7]),
        (32, 2, [16, 8, 4]),
        (64, 1, [64, 32, 16, 8, 4]),
        (16, 4, [4]),
    ],
)
def test_maps_are_halved_down_to_a_side_of_four_to_seven(canvas: int, patch: int, sides: list[int]) -> None:
    """What the latent draws has the largest of these sides that is at most 16."""
    seen: list[int] = []
    made = ImageVelocity(VIEWS, canvas, 3, CONDITIONS, 16, 1, patch)
    for stage in (*made.down, made.middle):
        stage[0].register_forward_hook(lambda block, inputs, hidden: seen.append(hidden.shape[-1]))
    x, t = drawn(2, 3, canvas, canvas).float(), torch.full((2,), 0.4)
    condition = made.condition(drawn(2, CONDITIONS, name="z").float(), torch.tensor([0, 2]))
    assert made(x, t, condition).shape == x.shape
    assert seen == [*sides, sides[-1]]
    assert condition[1].shape[-2:] == (next(side for side in sides if side <= 16),) * 2
    expert = ImageEncoder(VIEWS, canvas, 3, 16, 1, patch, OUTPUTS)
    assert expert.head.shape == (VIEWS, 16 * sides[-1] ** 2, 2 * OUTPUTS)
    assert expert(x.expand(VIEWS, -1, -1, -1, -1))[0].shape == (VIEWS, 2, OUTPUTS)


@pytest.mark.parametrize(("canvas", "patch"), [(36, 1), (16, 8), (32, 3), (30, 2)])
def test_a_canvas_that_halving_does_not_bring_near_four_is_refused(canvas: int, patch: int) -> None:
    with pytest.raises(ValueError, match="canvas / patch must be 4, 5, 6 or 7 times"):
        ImageVelocity(VIEWS, canvas, 3, CONDITIONS, 16, 1, patch)


@pytest.mark.parametrize("method", ["mvae", "mmvae", "mopoe", "helvae", "mmvaeplus", "shala", "muni", "muni_hellinger"])
def test_paper_networks_have_the_sizes_of_table_e2(method: str) -> None:
    """Within 2 %; a method's own parts come on top: ShaLa's condition, MMVAE+'s private latents."""
    config = resolve(CARD, registry.card("method", method), "paper").config
    modalities = [Modality(name, (3, 64, 64), "image", 0.5, 0.28) for name in CARD.modalities[:3]]
    modalities += [Modality("digit", (), "label", classes=10), Modality("quadrant", (), "label", classes=4)]

    def sizes(**changes: int) -> dict[str, float]:
        with torch.device("meta"):
            model = registry.load("method", method)(modalities, replace(config, **changes))
        found = {part: [getattr(family, part) for family in model.families] for part in ("encoder", "decoder")}
        found["prior"] = [model.prior]
        count = {part: sum(w.numel() for each in made for w in each.parameters()) for part, made in found.items()}
        return {part: count[part] / TABLE_E2[part] - 1 for part in TABLE_E2}

    gaps = sizes()
    if method == "shala":
        assert 0.02 < gaps.pop("prior") < 0.1
    if method == "mmvaeplus":
        assert 0 < gaps.pop("encoder") < 0.05
    assert all(abs(gap) < 0.02 for gap in gaps.values()), gaps
    assert abs(sizes(decoder_depth=2)["decoder"]) > 0.02


@pytest.mark.parametrize("width", [8, 24, 56])
def test_widths_need_not_be_multiples_of_a_group(width: int) -> None:
    x, t, z = drawn(2, 3, SIDE, SIDE).float(), torch.full((2,), 0.4), drawn(2, CONDITIONS, name="z").float()
    made = ImageVelocity(VIEWS, SIDE, 3, CONDITIONS, width, 1, 2)
    assert made(x, t, made.condition(z, torch.tensor([0, 2]))).isfinite().all()
    assert ImageEncoder(VIEWS, SIDE, 3, width, 1, 2, OUTPUTS)(x.expand(VIEWS, -1, -1, -1, -1))[0].isfinite().all()


def test_the_latents_map_scales_what_comes_up_place_by_place() -> None:
    """With scale -1 and shift 0 nothing from below passes; with 0 and 0 everything does. Skips pass either way."""
    made, x, t = stirred(velocity()), drawn(ROWS, 3, SIDE, SIDE), torch.full((1,), 0.5).double()
    said, maps = made.condition(drawn(ROWS, CONDITIONS, name="z"), torch.zeros(ROWS, dtype=torch.int64))
    closed, opened = torch.zeros_like(maps), torch.zeros_like(maps)
    closed[:, : maps.shape[1] // 2] = -1.0
    before = [made(x, t, (said, each)) for each in (closed, opened)]
    with torch.no_grad():
        for weight in made.middle.parameters():
            weight.mul_(2)
    after = [made(x, t, (said, each)) for each in (closed, opened)]
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])
