"""PolyMNIST of five views: what a row shows, on what it depends, and what its tables ask."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from baselines.chance import Chance
from baselines.real import Real
from benchmark import registry
from benchmark.api import Cell, Inapplicable, UserError
from benchmark.config import Config, resolve
from benchmark.engine.evaluate import given_of
from benchmark.runtime import Draws
from benchmark.tables.table_file import load_table
from data_prep.digits import backgrounds, mnist_digits
from data_prep.media import data_folder
from data_prep.polymnist import VARIANTS, VIEWS, Polymnist
from tests.data_prep.picture_references import SKIMAGE, bilinear, spread

CARD = registry.card("dataset", "polymnist")
SPLITS = ("train", "validation", "test", "verifier")


def config(variant: str, **counts: int) -> Config:
    small = {"train_rows": 400, "evaluation_rows": 80, "unconditional_rows": 120, "probe_rows": 100}
    overrides = [f"{field}={value}" for field, value in (small | counts).items()]
    return resolve(CARD, None, "smoke", [f"variant={variant}", *overrides]).config


@cache
def world(variant: str = "clean-28-sklearn") -> Polymnist:
    return Polymnist(config(variant))


def everything(data: Polymnist, split: str) -> dict[str, Tensor]:
    return data.rows(split, torch.arange(data.count(split)))


# What a row shows, computed a second time with numpy and Pillow.


def by_hand(view: int, ink: np.ndarray, crop: int) -> np.ndarray:
    """(3, 28, 28) float32: the crop of a view's photograph, inverted where ink (28, 28) is."""
    photograph = Image.open(SKIMAGE / list(backgrounds.PHOTOGRAPHS)[view]).convert("RGB")
    top, left = divmod(crop, photograph.width)
    pixels = np.asarray(photograph.crop((left, top, left + 28, top + 28)))
    inverted = np.where(ink[..., None], 255 - pixels.astype(int), pixels)
    return (inverted / 255).astype(np.float32).transpose(2, 0, 1)


def test_rows_equal_a_composition_by_hand() -> None:
    table = np.loadtxt(data_folder.packaged("sklearn", "datasets/data/digits.csv.gz", ""), delimiter=",")
    for split, index in (("train", 0), ("train", 399), ("test", 7), ("verifier", 41)):
        digit, *scene = world().scenes(split)[:, index].tolist()
        row = world().rows(split, torch.tensor([index]))
        assert set(row) == {*VIEWS, "digit"} and row["digit"].tolist() == [digit]
        assert [int(table[number, 64]) for number in scene[:5]] == [digit] * 5
        assert len(set(scene[:5])) > 1  # handwriting of its own in each view
        for view, name in enumerate(VIEWS):
            ink = bilinear(table[scene[view], :64].reshape(8, 8), 28) > 8.0025
            assert 20 < ink.sum() < 400
            expected = by_hand(view, ink, scene[5 + view])
            assert np.abs(row[name][0].numpy() - expected).max() < 1e-7


@pytest.mark.parametrize("variant", ["clean-28", "paper-28"])
def test_rows_of_mnist_equal_a_composition_from_the_bytes_of_its_files(
    real_data: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    if not (real_data / "mnist").is_dir():
        pytest.skip(f"no MNIST in {real_data}")
    monkeypatch.setenv("MUNI_BENCH_DATA", str(real_data))
    files = [gzip.decompress((real_data / "mnist" / f"{name}.gz").read_bytes()) for name in mnist_digits.MNIST]
    data, shown = Polymnist(config(variant, train_rows=20_000)), {}
    for split in SPLITS:
        scenes = data.scenes(split)
        shown[split] = set(scenes[1:6].flatten().tolist())
        digit, *scene = scenes[:, 5].tolist()
        row = data.rows(split, torch.tensor([5]))
        for view, name in enumerate(VIEWS):
            images, number = (files[0], scene[view]) if scene[view] < 60_000 else (files[2], scene[view] - 60_000)
            labels = files[1] if scene[view] < 60_000 else files[3]
            assert labels[8 + number] == digit
            ink = np.frombuffer(images, np.uint8, 784, 16 + 784 * number).reshape(28, 28) > 128
            assert np.abs(row[name][0].numpy() - by_hand(view, ink, scene[5 + view])).max() < 1e-7
    assert min(shown["test"]) >= 60_000 > max(shown["train"] | shown["verifier"] | shown["validation"])
    if variant == "clean-28":
        assert not any(shown[one] & shown[other] for one, other in itertools.combinations(SPLITS, 2))
    else:
        assert len(shown["train"] & shown["verifier"]) > 20_000  # both from the same 60,000


# On what rows depend.


def test_digits_are_exactly_balanced_and_handwriting_is_in_one_split_of_clean_alone() -> None:
    data = Polymnist(config("clean-28-sklearn", train_rows=20_000, probe_rows=4_000, evaluation_rows=4_000))
    for split in SPLITS:
        scenes = data.scenes(split)
        assert all(torch.equal(block.sort().values, torch.arange(10)) for block in scenes[0].split(10))
        assert set(scenes[1:6].flatten().tolist()) == set(data._digits.parts[split])  # all of it is in use
    assert len({tuple(data.scenes(split)[0, :40].tolist()) for split in SPLITS}) == 4


def test_splits_are_drawn_apart() -> None:
    for one, other in itertools.combinations(SPLITS, 2):
        first, second = world().scenes(one)[6:, :100], world().scenes(other)[6:, :100]
        assert (first == second).float().mean() < 0.01


def test_handwriting_and_crops_are_uniform_and_independent_of_the_other_views() -> None:
    scenes = Polymnist(config("clean-28-sklearn", train_rows=20_000)).scenes("train")
    labels = torch.from_numpy(mnist_digits.load("sklearn").labels)[:1100]
    for view, name in enumerate(backgrounds.PHOTOGRAPHS):
        sevens = scenes[1 + view][scenes[0] == 7].bincount(minlength=1100)
        assert (sevens[labels != 7] == 0).all() and spread(sevens[labels == 7]) < 6
        width, height = Image.open(SKIMAGE / name).size
        for place, count in ((scenes[6 + view] // width, height - 27), (scenes[6 + view] % width, width - 27)):
            assert place.min() == 0 and place.max() == count - 1 and spread(place.bincount(minlength=count)) < 6
    alike = [(scenes[1 + i] == scenes[1 + j]).float().mean() for i, j in itertools.combinations(range(5), 2)]
    assert 0.005 < min(alike) < max(alike) < 0.015  # 110 pictures of a class


def test_rows_are_the_same_in_any_order_and_batch_and_however_many_there_are() -> None:
    fresh = Polymnist(config("clean-28-sklearn"))
    more = Polymnist(config("clean-28-sklearn", train_rows=9_001, evaluation_rows=77, probe_rows=7))
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    for split in reversed(SPLITS):
        whole = everything(world(), split)
        shuffled = torch.randperm(fresh.count(split), generator=torch.Generator().manual_seed(0))
        for part in shuffled.split(37):
            assert all(torch.equal(x, whole[name][part]) for name, x in fresh.rows(split, part).items())
        common = min(world().count(split), more.count(split))
        assert torch.equal(more.scenes(split)[:, :common], world().scenes(split)[:, :common])
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_are_made_where_the_data_live() -> None:
    data = Polymnist(config("clean-28-sklearn"), "meta")
    rows = data.rows("train", torch.arange(32, device="meta"))
    assert {name: (x.device.type, tuple(x.shape)) for name, x in rows.items()} == {
        **{name: ("meta", (32, 3, 28, 28)) for name in VIEWS},
        "digit": ("meta", (32,)),
    }


def test_version_one_is_this_world() -> None:
    """Numbers of another world never meet these: change the card's version when this changes."""
    assert CARD.version == 1
    rows = world().rows("test", torch.arange(40))
    content = b"".join((rows[name] * 255).round().byte().numpy().tobytes() for name in VIEWS)
    assert world().identity == "polymnist clean-28-sklearn:fcd91933bf"
    assert hashlib.md5(content + bytes(rows["digit"].tolist())).hexdigest() == "55c4f344f5ffa3ba8caf2022729d0429"


def test_seen_by_networks_the_pictures_have_about_unit_scale() -> None:
    rows = everything(world(), "train")
    seen = torch.stack([(rows[m.name] - m.center) / m.scale for m in world().modalities])
    assert seen.square().mean().sqrt() == pytest.approx(1, abs=0.15) and seen.mean().abs() < 0.3


# Laws that are known, and what the sanity rows draw from them.


def shows(rows: dict[str, Tensor], name: str) -> Tensor:
    """The digit that each picture of the legible world shows: 1 + digit of its pixels are ink."""
    return (rows[name][:, 0] > 0.5).sum((1, 2)) - 1


@pytest.fixture
def legible(monkeypatch: pytest.MonkeyPatch) -> Polymnist:
    """Black photographs, on which a digit is as many white pixels, and one more."""
    images = np.zeros((200, 28, 28), np.uint8)
    labels = np.arange(200) % 10
    images[:, 0, :10] = 255 * (np.arange(10) <= labels[:, None])
    parts = {"train": range(80), "validation": range(80, 100), "verifier": range(100, 140), "test": range(140, 200)}
    monkeypatch.setattr(mnist_digits, "load", lambda name: mnist_digits.Digits(images, labels, 0, parts))
    monkeypatch.setattr(backgrounds, "photographs", lambda count: [np.zeros((40, 50, 3), np.uint8)] * count)
    return Polymnist(config("clean-28", evaluation_rows=400, unconditional_rows=400))


@pytest.mark.parametrize("split", SPLITS)
def test_all_views_of_a_row_show_its_digit(legible: Polymnist, split: str) -> None:
    rows = everything(legible, split)
    assert all(torch.equal(shows(rows, name), rows["digit"]) for name in VIEWS)


def test_real_keeps_the_digit_of_what_is_given_and_chance_keeps_nothing(legible: Polymnist) -> None:
    cell = Cell("polymnist", ("m1", "m3"), ("m0", "m2"))
    real, draws = everything(legible, "test"), Draws("test", rows=800)
    found = {}
    for method in (Real, Chance):
        made = method(legible.modalities, None)
        made.bind(legible)
        found[method] = made.sample(given_of(made, cell, real), cell.want, 800, draws)
        assert list(found[method]) == ["m0", "m2"]
    assert all(torch.equal(shows(found[Real], name), real["digit"]) for name in cell.want)
    agree = [shows(found[Chance], "m0") == other for other in (real["digit"], shows(found[Chance], "m2"))]
    assert all(0.06 < each.float().mean() < 0.14 for each in agree)
    assert spread(shows(found[Chance], "m0").bincount(minlength=10)) < 6


def test_what_a_picture_shows_is_told_to_real_alone(legible: Polymnist) -> None:
    cell, real = Cell("polymnist", ("m1",), ("m0",)), everything(legible, "test")
    muni = registry.load("method", "muni")(legible.modalities, config("clean-28-sklearn"))
    assert list(given_of(muni, cell, real)) == ["m1"]
    made = Real(legible.modalities, config("clean-28-sklearn"))
    made.bind(legible)
    assert list(given_of(made, cell, real)) == ["m1", "digit"]
    assert given_of(made, Cell("polymnist", (), VIEWS), real) == {}
    with pytest.raises(Inapplicable, match="which digit m1 show is not told"):
        legible.conditional({"m1": real["m1"]}, ("m0",), Draws("test", rows=800))


# Contract and tables.


def test_every_preset_resolves_to_a_known_variant_and_a_canvas_that_the_networks_take() -> None:
    names = {preset: resolve(CARD, None, preset).config for preset in ("paper", "gpu", "cpu", "smoke")}
    assert {preset: each.variant for preset, each in names.items()} == {
        "paper": "paper-28",
        "gpu": "clean-28",
        "cpu": "clean-28",
        "smoke": "clean-28-sklearn",
    }
    assert len(VARIANTS) == 8
    for each in names.values():
        with torch.device("meta"):
            registry.load("method", "muni")(world().modalities, each)


def test_an_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown variant 'clean-28-sklern': did you mean 'clean-28-sklearn'"):
        Polymnist(config("clean-28-sklern"))


def test_the_users_five_pictures_stand_behind_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "backgrounds"
    folder.mkdir()
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    for shade in range(4):
        Image.new("RGB", (30, 28 + shade), (20 * shade, 0, 0)).save(folder / f"{shade}.png")
    with pytest.raises(UserError, match=r"backgrounds holds 4 of 5 pictures"):
        Polymnist(config("clean-28-sklearn-folder"))
    Image.new("RGB", (27, 40)).save(folder / "4.png")
    with pytest.raises(UserError, match=r"4.png has 27 x 40 pixels, and 28 x 28 are cut from it: take larger"):
        Polymnist(config("clean-28-sklearn-folder"))
    Image.new("RGB", (28, 28), (80, 0, 0)).save(folder / "4.png")
    rows = Polymnist(config("clean-28-sklearn-folder")).rows("train", torch.arange(50))
    for shade, name in enumerate(VIEWS):
        reds = (rows[name][:, 0] * 255).round().unique().tolist()
        assert reds == [20 * shade, 255 - 20 * shade]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_conditional_cells_give_each_target_the_views_that_follow_it(size: int) -> None:
    columns = {column.header: column for column in load_table("mld", registry.index("metric")).columns}
    found = columns[f"{size} given"].cells("polymnist", VIEWS)
    assert [(cell.want, {*cell.given}) for cell in found] == [
        ((VIEWS[k],), {VIEWS[(k + step) % 5] for step in range(1, size + 1)}) for k in range(5)
    ]
    assert all(list(cell.given) == sorted(cell.given) for cell in found)  # the rows of --all-cells are the same
