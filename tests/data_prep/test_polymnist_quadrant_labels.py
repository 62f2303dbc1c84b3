"""PolyMNIST-Quadrant-Labels: what a row shows, on what it depends, and what is said where something is missing."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import itertools
import struct
import sys
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from baselines.chance import Chance
from benchmark import registry
from benchmark.api import Cell, Inapplicable, Score, UserError, cells
from benchmark.config import Config, resolve
from benchmark.engine import execution
from benchmark.engine.evaluate import evaluate_cell
from benchmark.records import results_file, run_identity
from benchmark.records.job import job_of
from benchmark.runtime import Draws
from data_prep.digits import backgrounds, mnist_digits
from data_prep.media import data_folder
from data_prep.polymnist_quadrant_labels import VARIANTS, VIEWS, PolymnistQuadrantLabels
from tests.data_prep.picture_references import SKIMAGE, bilinear, spread

CARD = registry.card("dataset", "polymnist_quadrant_labels")
SPLITS = ("train", "validation", "test", "verifier")
CORNERS = ((0, 1), (0, 0), (1, 0), (1, 1))  # row and column of the quadrants 0 to 3


def config(variant: str, **counts: int) -> Config:
    small = {"train_rows": 400, "evaluation_rows": 80, "unconditional_rows": 120, "probe_rows": 100}
    overrides = [f"{field}={value}" for field, value in (small | counts).items()]
    return resolve(CARD, None, "smoke", [f"variant={variant}", *overrides]).config


def made(variant: str, **counts: int) -> PolymnistQuadrantLabels:
    return PolymnistQuadrantLabels(config(variant, **counts))


@cache
def world(variant: str = "clean-64-sklearn") -> PolymnistQuadrantLabels:
    return made(variant)


def everything(data: PolymnistQuadrantLabels, split: str) -> dict[str, Tensor]:
    return data.rows(split, torch.arange(data.count(split)))


@pytest.fixture
def mnist(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real MNIST, to which the suite is pointed."""
    if not (real_data / "mnist").is_dir():
        pytest.skip(f"no MNIST in {real_data}")
    monkeypatch.setenv("MUNI_BENCH_DATA", str(real_data))
    return real_data / "mnist"


# What a row shows, computed a second time with numpy and Pillow.


def by_hand(data: PolymnistQuadrantLabels, scene: list[int], picture: Callable[[int], np.ndarray], ink: int, side: int):
    """The three pictures of a scene, (3, 3, side, side), float32."""
    _, quadrant, *views = scene
    shrink = 64 // side
    found = []
    for name, handwriting, crop in zip(list(backgrounds.PHOTOGRAPHS)[:3], views[:3], views[3:], strict=True):
        photograph = Image.open(SKIMAGE / name)
        width = photograph.width // 4 * 4 // shrink
        top, left = crop // width * shrink, crop % width * shrink
        background = np.asarray(photograph.crop((left, top, left + 64, top + 64))).astype(np.float64)
        background = np.rint(background.reshape(side, shrink, side, shrink, 3).mean((1, 3))).astype(np.float32)
        mask = bilinear(picture(handwriting).astype(np.float64), 32) > ink
        canvas = np.zeros((64, 64))
        row, column = CORNERS[quadrant]
        canvas[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = mask
        a = canvas.reshape(side, shrink, side, shrink).mean((1, 3)).astype(np.float32)[..., None]
        b = background / np.float32(255)
        found.append((a * (1 - b) + (1 - a) * b).transpose(2, 0, 1))
    return np.stack(found)


@pytest.mark.parametrize(("side", "tolerance"), [(64, 0), (32, 1e-6), (16, 1e-6)])
def test_rows_equal_a_composition_by_hand(side: int, tolerance: float):
    """At 64 pixels to the bit; where strokes are shares of a pixel, up to the rounding of one sum."""
    data = made(f"clean-{side}-sklearn")
    table = np.loadtxt(data_folder.packaged("sklearn", "datasets/data/digits.csv.gz", ""), delimiter=",")
    for split, index in (("train", 0), ("train", 399), ("test", 7), ("verifier", 41)):
        scene = data.scenes(split)[:, index].tolist()
        row = data.rows(split, torch.tensor([index]))
        assert [int(row["digit"]), int(row["quadrant"])] == scene[:2]
        assert [int(table[handwriting, 64]) for handwriting in scene[2:5]] == [scene[0]] * 3
        expected = by_hand(data, scene, lambda number: table[number, :64].reshape(8, 8), 8, side)
        for name, picture in zip(VIEWS, expected, strict=True):
            assert np.abs(row[name][0].numpy() - picture).max() <= tolerance


@pytest.mark.parametrize("variant", ["clean-64", "paper-32"])
def test_rows_of_mnist_equal_a_composition_from_the_bytes_of_its_files(mnist: Path, variant: str):
    """Pictures and labels by their offsets in the unpacked files."""
    files = {name: gzip.decompress((mnist / f"{name}.gz").read_bytes()) for name in mnist_digits.MNIST}
    train, train_labels, test, test_labels = files.values()

    def picture(number: int) -> np.ndarray:
        content, number = (train, number) if number < 60_000 else (test, number - 60_000)
        return np.frombuffer(content, np.uint8, 784, 16 + 784 * number).reshape(28, 28)

    data, side = made(variant), VARIANTS[variant].canvas
    for split, index in (("train", 3), ("validation", 99), ("test", 0), ("verifier", 17)):
        scene = data.scenes(split)[:, index].tolist()
        for number in scene[2:5]:
            label = train_labels[8 + number] if number < 60_000 else test_labels[8 + number - 60_000]
            assert label == scene[0]
        expected = by_hand(data, scene, picture, 16, side)
        row = data.rows(split, torch.tensor([index]))
        for name, found in zip(VIEWS, expected, strict=True):
            assert np.abs(row[name][0].numpy() - found).max() <= (0 if side == 64 else 1e-6)


def test_only_the_named_quadrant_differs_from_the_photograph_and_there_only_by_inversion():
    data, rows = world(), everything(world(), "train")
    scenes = data.scenes("train")
    for view, name in enumerate(VIEWS):
        bare = data._crops[view][scenes[5 + view]].float() / 255
        changed = rows[name] != bare
        assert torch.equal(rows[name], torch.where(changed, 1 - bare, bare))
        assert torch.equal(changed.any(1), changed.all(1))  # no byte is its own inverse: a pixel changes as a whole
        for quadrant, (row, column) in enumerate(CORNERS):
            here = changed[rows["quadrant"] == quadrant].any(1)
            inside = here[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            assert (inside.sum((1, 2)) > 60).all() and torch.equal(inside.sum((1, 2)), here.sum((1, 2)))


def corners(data: PolymnistQuadrantLabels) -> Tensor:
    """Where the crops of the test split begin, (2, views, rows): rows and columns."""
    crop, width = data.scenes("test")[5:], data._widths[:, None]
    return torch.stack([crop // width, crop % width])


def test_smaller_canvases_show_the_same_scenes():
    """Labels, handwriting and places alike; where a crop begins with a pixel, the photograph is averaged exactly."""
    large = everything(world(), "test")
    for side in (32, 16):
        small = world(f"clean-{side}-sklearn")
        rows, shrink = everything(small, "test"), 64 // side
        assert torch.equal(small.scenes("test")[:5], world().scenes("test")[:5])
        assert torch.equal(corners(small), corners(world()) // shrink)
        aligned = (corners(world()) % shrink == 0).all(0)
        bare = torch.stack([within(quadrant, side) == 0 for quadrant in range(4)])[rows["quadrant"]][:, None]
        for view, name in enumerate(VIEWS):
            gap = (torch.nn.functional.avg_pool2d(large[name], shrink) - rows[name]).abs() * bare
            assert gap[aligned[view]].max() <= 0.5 / 255 + 1e-6 < gap[~aligned[view]].mean()


def within(quadrant: int, side: int) -> Tensor:
    """1 in the quadrant's cell and 0 elsewhere, (side, side)."""
    row, column = CORNERS[quadrant]
    cell = torch.zeros(2, 2)
    cell[row, column] = 1
    return cell.repeat_interleave(side // 2, 0).repeat_interleave(side // 2, 1)


# A world that can be read: black photographs on which the pictures carry their own number in their first row.

COUNT, COPIES = 300, 30


@pytest.fixture
def legible(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PolymnistQuadrantLabels]:
    images = np.zeros((COUNT, 32, 32), np.uint8)
    images[:, 0, :9] = (np.arange(COUNT)[:, None] >> np.arange(9)) & 1
    images[:, 1:] = 1
    parts = {"train": range(120), "validation": range(120, 160), "verifier": range(160, 220), "test": range(220, COUNT)}
    source = mnist_digits.Digits(images, np.arange(COUNT) % 10, 0, parts)
    monkeypatch.setattr(mnist_digits, "load", lambda name: source)
    monkeypatch.setattr(backgrounds, "photographs", lambda count: [np.zeros((72, 80, 3), np.uint8)] * 3)
    return made


def read(rows: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Quadrant and number of the picture that each row of a view of the legible world shows."""
    canvas = rows[name][:, 0]
    cells = torch.stack([canvas[:, 32 * r : 32 * r + 32, 32 * c : 32 * c + 32] for r, c in CORNERS], 1)
    quadrant = cells.sum((2, 3)).argmax(1)
    shown = cells[torch.arange(len(cells)), quadrant]
    assert (shown[:, 1:] == 1).all() and torch.equal(shown.sum((1, 2)), canvas.sum((1, 2)))
    return quadrant, (shown[:, 0, :9].long() << torch.arange(9)).sum(1)


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_show_what_the_labels_say(legible, split: str):
    data = legible("clean-64")
    rows, part = everything(data, split), data._digits.parts[split]
    shown = {name: read(rows, name) for name in VIEWS}
    for quadrant, number in shown.values():
        assert torch.equal(quadrant, rows["quadrant"])
        assert torch.equal(number % 10, rows["digit"])
        assert set(number.tolist()) <= set(part)
    alike = [(shown[one][1] == shown[other][1]).float().mean() for one, other in itertools.combinations(VIEWS, 2)]
    assert max(alike) < 0.5  # a class has 4 pictures or more: handwriting differs between the views


@pytest.mark.parametrize("observed", [(), ("digit",), ("quadrant",), ("digit", "quadrant")])
def test_conditional_keeps_the_labels_and_draws_the_rest_from_the_test_pool(legible, observed: tuple[str, ...]):
    data = legible("clean-64")
    given = {name: everything(data, "test")[name].repeat(2) for name in observed}
    want = [name for name in CARD.modalities if name not in observed]
    rows = data.conditional(given, want, Draws("test", rows=480))
    assert list(rows) == want
    quadrants, numbers = zip(*(read(rows, name) for name in VIEWS), strict=True)
    labels = {"quadrant": quadrants[0], "digit": numbers[0] % 10}
    for quadrant, number in zip(quadrants, numbers, strict=True):
        assert set(number.tolist()) == set(range(220, COUNT))  # 80 pictures in 480 draws
        assert torch.equal(quadrant, labels["quadrant"]) and torch.equal(number % 10, labels["digit"])
    for name, classes in (("digit", 10), ("quadrant", 4)):
        assert torch.equal((given | rows)[name], labels[name])
        if name not in observed:  # chi-square within 6 standard deviations
            counts, expected = labels[name].bincount(minlength=classes).double(), 480 / classes
            assert ((counts - expected) ** 2 / expected).sum() < classes - 1 + 6 * (2 * (classes - 1)) ** 0.5
    again = data.conditional(given, want, Draws("test", rows=480))
    other = data.conditional(given, want, Draws("other", rows=480))
    assert all(torch.equal(rows[name], again[name]) for name in want)
    assert all(not torch.equal(rows[name], other[name]) for name in VIEWS)


def test_conditional_refuses_pictures():
    draws = Draws("test", rows=3)
    given = {name: x for name, x in world().rows("test", torch.arange(3)).items() if name in ("image2", "digit")}
    with pytest.raises(Inapplicable, match="what image2 leave open is not known: only labels have an exact law"):
        world().conditional(given, ("quadrant",), draws)


def test_independent_modalities_do_not_agree(legible):
    rows = legible("clean-64").independent(CARD.modalities, Draws("test", rows=600))
    values = {name: torch.stack([quadrant, number % 10]) for name in VIEWS for quadrant, number in [read(rows, name)]}
    for one, other in itertools.combinations(values.values(), 2):
        quadrant, digit = (one == other).float().mean(1)
        assert 0.15 < quadrant < 0.35 and 0.05 < digit < 0.16
    for quadrant, digit in values.values():
        assert 0.15 < (quadrant == rows["quadrant"]).float().mean() < 0.35
        assert 0.05 < (digit == rows["digit"]).float().mean() < 0.16


# On what rows depend.


@pytest.mark.parametrize("variant", ["clean-16-sklearn", "paper-16-sklearn"])
def test_labels_are_exactly_balanced(variant: str):
    data = made(variant)
    for split in SPLITS:
        scenes = data.scenes(split)
        pairs = (scenes[0] + 10 * scenes[1]).split(40)
        assert all(torch.equal(pair.sort().values, torch.arange(40)) for pair in pairs)
        assert len({tuple(pair.tolist()) for pair in pairs}) == len(pairs)  # in another order each time
    assert len({tuple(data.scenes(split)[0, :40].tolist()) for split in SPLITS}) == (4 if variant[0] == "c" else 3)


def test_handwriting_is_in_one_split_of_clean_alone():
    data = made("clean-16-sklearn", train_rows=20_000, probe_rows=4_000, evaluation_rows=4_000)
    shown = {split: set(data.scenes(split)[2:5].flatten().tolist()) for split in SPLITS}
    assert shown == {split: set(part) for split, part in data._digits.parts.items()}  # all of it is in use
    assert sorted(itertools.chain.from_iterable(shown.values())) == list(range(1797))


def test_splits_are_drawn_apart():
    """Crops of one index hardly ever agree between two splits, and rows never do."""
    for one, other in itertools.combinations(SPLITS, 2):
        first, second = world().scenes(one)[5:, :100], world().scenes(other)[5:, :100]
        assert (first == second).float().mean() < 0.01
        assert not (world().scenes(one)[:, :, None] == world().scenes(other)[:, None, :]).all(0).any()


def test_the_parts_of_mnist_are_disjoint_and_the_test_set_is_the_official_one(mnist: Path):
    parts = mnist_digits.load("mnist").parts
    assert sorted(itertools.chain.from_iterable(parts.values())) == list(range(70_000))
    assert parts["test"] == range(60_000, 70_000)
    data = made("clean-16")
    for split in SPLITS:
        assert set(data.scenes(split)[2:5].flatten().tolist()) <= set(parts[split])
    labels = mnist_digits.load("mnist").labels
    assert np.bincount(labels[:60_000]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(labels[60_000:]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_splits_of_paper_share_all_handwriting_and_the_verifier_sees_what_is_evaluated():
    data = made("paper-16-sklearn", train_rows=20_000, evaluation_rows=4_000)
    for split in ("train", "test"):
        assert set(data.scenes(split)[2:5].flatten().tolist()) == set(range(1797))
    rows, train, test = (everything(data, split) for split in ("verifier", "train", "test"))
    assert data.count("verifier") == 24_000
    for name in CARD.modalities:
        assert torch.equal(rows[name], torch.cat([train[name], test[name][:4_000]]))


def test_handwriting_and_crops_are_uniform():
    """20,000 draws per view: classes of 30 pictures and the rows and columns of crops, by chi-square."""
    data = made("clean-64-sklearn", train_rows=20_000)
    scenes, labels = data.scenes("train"), torch.from_numpy(data._digits.labels)
    for view, name in enumerate(list(backgrounds.PHOTOGRAPHS)[:3]):
        sevens = scenes[2 + view][scenes[0] == 7].bincount(minlength=1100)[:1100]
        assert (sevens[labels[:1100] != 7] == 0).all()
        assert spread(sevens[labels[:1100] == 7]) < 6
        width, height = (side // 4 * 4 for side in Image.open(SKIMAGE / name).size)
        for places_of, count in ((scenes[5 + view] // width, height - 63), (scenes[5 + view] % width, width - 63)):
            assert places_of.min() == 0 and places_of.max() == count - 1
            assert spread(places_of.bincount(minlength=count)) < 6


def test_rows_are_the_same_in_any_order_and_batch():
    fresh = made("clean-64-sklearn")
    for split in reversed(SPLITS):
        whole = everything(world(), split)
        shuffled = torch.randperm(fresh.count(split), generator=torch.Generator().manual_seed(0))
        for part in shuffled.split(37):
            assert all(torch.equal(x, whole[name][part]) for name, x in fresh.rows(split, part).items())


def test_a_row_does_not_depend_on_how_many_there_are():
    other = made("clean-64-sklearn", train_rows=9_001, evaluation_rows=77, probe_rows=7)
    for split in ("train", "test", "verifier"):
        common = min(world().count(split), other.count(split))
        assert common >= 154
        assert torch.equal(other.scenes(split)[:, :common], world().scenes(split)[:, :common])


def test_no_global_generator_is_touched_and_asking_changes_nothing():
    before = everything(world(), "test")
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    rows = everything(made("clean-64-sklearn", batch_rows=3), "test")
    assert torch.equal(torch.get_rng_state(), state)
    rows["image1"].zero_()
    rows["digit"].zero_()
    assert all(torch.equal(x, before[name]) for name, x in everything(world(), "test").items())


def test_version_one_is_this_world():
    """Numbers of another world never meet these: change the card's version when this changes."""
    assert CARD.version == 1
    assert world().identity == "clean-64-sklearn:dc9fb5db92"
    rows = everything(world(), "test")
    content = b"".join((rows[name] * 255).round().byte().numpy().tobytes() for name in VIEWS)
    assert (
        hashlib.md5(content + bytes(rows["digit"].tolist()) + bytes(rows["quadrant"].tolist())).hexdigest()
        == "d4c895aa5cf21e8e6d9f4a113ef03b0e"
    )


def test_rows_are_made_where_the_data_live():
    data = PolymnistQuadrantLabels(config("clean-16-sklearn"), "meta")
    rows = data.rows("train", torch.arange(32, device="meta"))
    assert {x.device.type for x in rows.values()} == {"meta"}
    assert {name: tuple(x.shape) for name, x in rows.items()} == {
        modality.name: (32, *modality.shape) for modality in data.modalities
    }


# Contract.


def test_modalities_are_pictures_of_unit_scale_and_labels():
    data = made("clean-64-sklearn", train_rows=2_000)
    rows = everything(data, "train")
    assert [modality.name for modality in data.modalities] == list(CARD.modalities)
    for modality in data.modalities:
        x = rows[modality.name]
        if modality.kind == "label":
            assert x.dtype == torch.int64 and modality.shape == ()
            assert torch.equal(x.unique(), torch.arange(modality.classes))
        else:
            assert x.dtype == torch.float32 and modality.shape == (3, 64, 64)
            assert 0 <= x.min() < 0.01 and 0.99 < x.max() <= 1
    seen = torch.cat([(rows[name] - data.modalities[0].center) / data.modalities[0].scale for name in VIEWS])
    assert seen.square().mean().sqrt() == pytest.approx(1, abs=0.05) and seen.mean().abs() < 0.3


@pytest.mark.parametrize(("evaluation", "unconditional"), [(80, 120), (200, 120)])
def test_the_first_half_of_the_test_split_holds_every_cells_rows(evaluation: int, unconditional: int):
    data = made("clean-16-sklearn", evaluation_rows=evaluation, unconditional_rows=unconditional)
    most = max(evaluation, unconditional)
    assert [data.count(split) for split in SPLITS] == [400, most, 2 * most, 400]
    for task in ("one_to_one", "many_to_one", "one_to_many", "uncond"):
        for cell in cells("polymnist_quadrant_labels", CARD.modalities, task):
            assert data.rows_of(cell) == (evaluation if cell.given else unconditional)
    assert data.rows_of(Cell("polymnist_quadrant_labels", (), ("image1",))) == unconditional


def test_every_preset_resolves_to_a_known_variant():
    names = {preset: resolve(CARD, None, preset).config.variant for preset in ("paper", "gpu", "cpu", "smoke")}
    assert names == {"paper": "paper-64", "gpu": "clean-64", "cpu": "clean-32", "smoke": "clean-16-sklearn"}
    assert set(names.values()) < set(VARIANTS) and len(VARIANTS) == 24


def test_the_authors_counts_at_preset_paper(mnist: Path):
    data = PolymnistQuadrantLabels(resolve(CARD, None, "paper").config)
    assert (data.count("train"), data.count("test") // 2, data.count("verifier")) == (220_000, 10_000, 230_000)
    scenes = data.scenes("verifier")
    assert ((scenes[0] + 10 * scenes[1]).bincount() == 5_750).all()
    assert scenes[2:5].max() == 69_999  # of both of MNIST's sets


# Faults: each is one line that names what is wrong.


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("variant", "hint"),
    [
        ("clean-46", "did you mean 'clean-64'?"),
        ("clean-32-sklern", "did you mean 'clean-32-sklearn'?"),
        ("clean-32-mnist", "did you mean 'clean-32"),
        ("paper-64-folder-sklearn", "did you mean 'paper-64-"),
        ("Clean-32", "did you mean 'clean-32'?"),
        ("", "choose from clean-16, clean-16-folder, clean-16-sklearn, "),
    ],
)
def test_an_unknown_variant_is_refused(variant: str, hint: str):
    message = refused(lambda: made(variant))
    assert message.startswith(f"unknown variant {variant!r}: ") and hint in message


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four tiny idx files, which stand for the official ones."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    generator = np.random.default_rng(0)
    known = {}
    for name, count in (("train", 20), ("t10k", 10)):
        pictures = generator.integers(256, size=(count, 28, 28), dtype=np.uint8).tobytes()
        labels = generator.integers(10, size=count, dtype=np.uint8).tobytes()
        known[f"{name}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, count, 28, 28) + pictures
        known[f"{name}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, count) + labels
    for name, content in known.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(
        mnist_digits, "MNIST", {name: hashlib.md5(content).hexdigest() for name, content in known.items()}
    )
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    return folder


def content_of(folder: Path, name: str) -> bytes:
    return gzip.decompress((folder / f"{name}.gz").read_bytes())


def check_tiny(found: mnist_digits.Digits, train: bytes, test: bytes, train_labels: bytes, test_labels: bytes) -> None:
    assert found.images.shape == (30, 28, 28) and found.labels.dtype == np.int64
    assert found.images.tobytes() == train[16:] + test[16:]
    assert found.labels.tolist() == [*train_labels[8:], *test_labels[8:]]


@pytest.mark.parametrize("unpacked", [False, True])
def test_idx_files_are_read_packed_and_unpacked(tiny: Path, unpacked: bool):
    contents = {name: content_of(tiny, name) for name in mnist_digits.MNIST}
    if unpacked:
        for name, content in contents.items():
            (tiny / f"{name}.gz").unlink()
            (tiny / name).write_bytes(content)
    train, train_labels, test, test_labels = contents.values()
    check_tiny(mnist_digits.load("mnist"), train, test, train_labels, test_labels)


def rewritten(change: Callable[[bytes], bytes], name: str = IMAGES, packed: bool = True) -> Callable[[Path], None]:
    """Changes a file's content, and packs it again."""

    def plant(folder: Path) -> None:
        content = change(content_of(folder, name))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content) if packed else content)

    return plant


def one_label_less(content: bytes) -> bytes:
    return struct.pack(">2I", 0x801, 9) + content[8:-1]


BAD_IDX = {
    "labels for pictures": (rewritten(lambda x: b"\0\0\x08\x01" + x[4:]), "begins with 00000801, not with 00000803"),
    "a web page": (rewritten(lambda x: b"<html>"), "begins with 3c68746d, not with 00000803: no idx file"),
    "nothing": (rewritten(lambda x: b""), "begins with nothing, not with 00000803"),
    "cut header": (rewritten(lambda x: x[:9]), "has 9 bytes where its header asks for "),
    "cut short": (rewritten(lambda x: x[:-5]), "has 7851 bytes where its header asks for 7856"),
    "too long": (rewritten(lambda x: x + b"\0"), "has 7857 bytes where its header asks for 7856"),
    "absurd header": (rewritten(lambda x: x[:4] + b"\xff" * 12 + x[16:]), "where its header asks for 7922816"),
    "counts disagree": (rewritten(one_label_less, LABELS), "has 10 pictures and "),
    "a changed pixel": (
        rewritten(lambda x: x[:99] + bytes([x[99] ^ 1]) + x[100:]),
        "is not the official one: its content",
    ),
    "a changed label": (
        rewritten(lambda x: x[:-1] + bytes([x[-1] ^ 1]), LABELS),
        "is not the official one: its content",
    ),
    "not packed": (rewritten(lambda x: x, packed=False), "cannot be read (Not a gzipped file"),
    "a cut archive": (
        rewritten(lambda x: gzip.compress(x)[:-40], packed=False),
        "cannot be read (Compressed file ended",
    ),
    "a torn archive": (
        rewritten(lambda x: gzip.compress(x)[:-8] + b"\0" * 8, packed=False),
        "cannot be read (CRC check failed",
    ),
    "one file missing": (lambda folder: (folder / f"{LABELS}.gz").unlink(), f"lacks {LABELS}, with or without .gz"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_damaged_files_are_refused(tiny: Path, name: str):
    plant, expected = BAD_IDX[name]
    plant(tiny)
    message = refused(lambda: mnist_digits.load("mnist"))
    assert expected in message and str(tiny) in message


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """Puts something in the place of the package `datasets`: nothing, or a module with this `load_dataset`."""

    def put(load_dataset: Callable[[str], object] | None) -> None:
        module = None
        if load_dataset is not None:
            module = types.ModuleType("datasets")
            module.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)  # None: importing it fails

    return put


def splits_of(folder: Path) -> dict[str, object]:
    """The tiny files as Hugging Face's library holds them: PNG and class labels."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    found = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        pixels = np.frombuffer(content_of(folder, f"{name}-images-idx3-ubyte"), np.uint8, offset=16)
        found[split] = datasets.Dataset.from_dict(
            {
                "image": [Image.fromarray(each) for each in pixels.reshape(-1, 28, 28)],
                "label": list(content_of(folder, f"{name}-labels-idx1-ubyte")[8:]),
            },
            features=features,
        )
    return found


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points the suite at a folder without MNIST."""
    (folder / "empty").mkdir()
    monkeypatch.setenv("MUNI_BENCH_DATA", str(folder / "empty"))
    return folder / "empty" / "mnist"


def test_mnist_is_fetched_from_hugging_face(tiny: Path, hub, monkeypatch: pytest.MonkeyPatch):
    asked, splits = [], splits_of(tiny)
    hub(lambda name: asked.append(name) or splits)
    elsewhere(tiny, monkeypatch)
    train, train_labels, test, test_labels = (content_of(tiny, name) for name in mnist_digits.MNIST)
    check_tiny(mnist_digits.load("mnist"), train, test, train_labels, test_labels)
    assert asked == ["ylecun/mnist"]


def test_other_pixels_on_hugging_face_are_refused(tiny: Path, hub, monkeypatch: pytest.MonkeyPatch):
    splits = splits_of(tiny)
    hub(lambda name: {"train": splits["train"], "test": splits["test"].select([*range(1, 10), 0])})
    elsewhere(tiny, monkeypatch)
    assert "test split of ylecun/mnist on Hugging Face is not the official one" in refused(
        lambda: mnist_digits.load("mnist")
    )


def offline(name: str) -> object:
    raise ConnectionError(f"Couldn't reach '{name}' on the Hub\n(ConnectError)")


@pytest.mark.parametrize("setting", [True, False])
def test_no_mnist_anywhere_is_one_line(tiny: Path, hub, monkeypatch: pytest.MonkeyPatch, setting: bool):
    folder = elsewhere(tiny, monkeypatch)
    where = f"no idx files in {folder}"
    if not setting:
        monkeypatch.delenv("MUNI_BENCH_DATA")
        where = "MUNI_BENCH_DATA is not set"
    hub(offline)
    message = refused(lambda: made("clean-32"))
    assert message.startswith(
        f"no MNIST: {where}, and ylecun/mnist cannot be fetched from Hugging Face (ConnectionError: "
    )
    hub(None)
    message = refused(lambda: made("clean-32"))
    assert message.startswith(f"no MNIST: {where}, and the package datasets")
    for mend in (
        "set MUNI_BENCH_DATA to the folder that holds mnist/",
        "pip install 'muni-bench[polymnist]'",
        "-sklearn",
    ):
        assert mend in message


def test_digits_and_photographs_of_packages_that_are_absent_or_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    for load, name, file in (
        (mnist_digits._sklearn.__wrapped__, "scikit-learn", "datasets/data/digits.csv.gz"),
        (partial(backgrounds.photographs, 3), "scikit-image", "data/astronaut.png"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda package: None)
            assert refused(load) == f"{name} is not installed: pip install 'muni-bench[polymnist]'"
            patch.setattr(importlib.util, "find_spec", lambda package: other)
            assert refused(load).startswith(f"{name} is here without its file {tmp_path / file}: ")
    with monkeypatch.context() as patch:
        patch.setattr(mnist_digits, "SKLEARN", "0" * 32)
        assert "digits.csv.gz is not the official one" in refused(mnist_digits._sklearn.__wrapped__)
    monkeypatch.setitem(backgrounds.PHOTOGRAPHS, "coffee.png", "0" * 32)
    assert "coffee.png is not the photograph that this data set is made of" in refused(
        partial(backgrounds.photographs, 3)
    )
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert (
        refused(partial(backgrounds.photographs, 3)) == "pillow is not installed: pip install 'muni-bench[polymnist]'"
    )


# The user's own photographs.

SIZES = {"b.PNG": (90, 70), "a.jpg": (64, 64), "d.png": (100, 100), "c.bmp": (80, 66)}


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "backgrounds"
    folder.mkdir()
    for shade, (name, size) in enumerate(SIZES.items()):
        Image.new("L" if shade else "RGB", size, 40 * shade if shade else (10, 20, 30)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    return folder


def test_own_photographs_are_the_first_three_by_name(gallery: Path):
    data = made("clean-64-sklearn-folder")
    rows = data.rows("train", torch.arange(400))
    for name, shades in zip(VIEWS, [(40, 215), None, (120, 135)], strict=True):
        if shades:  # one grey, and its inverse
            assert (rows[name] * 255).round().unique().tolist() == list(shades)
    assert sorted((rows["image2"] * 255).round().unique().tolist()) == [10, 20, 30, 225, 235, 245]
    assert torch.equal(data.scenes("train")[5], torch.zeros(400, dtype=torch.int64))  # 64 x 64: one crop


def test_the_identity_names_variant_and_photographs(gallery: Path):
    first, again = made("clean-16-sklearn-folder"), made("clean-32-sklearn-folder")
    assert first.identity == f"clean-16-sklearn-folder:{first.backgrounds_digest}"
    assert first.backgrounds_digest == again.backgrounds_digest != world().backgrounds_digest
    Image.new("RGB", (100, 100)).save(gallery / "d.png")  # the fourth: not in use
    assert made("clean-16-sklearn-folder").identity == first.identity
    picture = Image.open(gallery / "b.PNG").convert("RGB")
    picture.putpixel((3, 5), (11, 20, 30))
    picture.save(gallery / "b.PNG")
    assert made("clean-16-sklearn-folder").backgrounds_digest != first.backgrounds_digest


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def removed(folder: Path) -> None:
    emptied(folder)
    folder.rmdir()


def cut(folder: Path) -> None:
    content = (SKIMAGE / "coffee.png").read_bytes()
    (folder / "b.PNG").write_bytes(content[: len(content) // 2])


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (removed, "no folder {folder}: make it and put 3 pictures there"),
    "empty": (emptied, "{folder} holds 0 of 3 pictures (.png, .jpg"),
    "too few": (lambda folder: [(folder / name).unlink() for name in ("a.jpg", "d.png")], "holds 2 of 3 pictures"),
    "too narrow": (
        lambda folder: Image.new("RGB", (63, 200)).save(folder / "c.bmp"),
        "{folder}/c.bmp has 63 x 200 pixels, and 64 x 64 are cut from it",
    ),
    "no picture": (
        lambda folder: (folder / "a.jpg").write_text("hello"),
        "{folder}/a.jpg cannot be read as a picture (cannot identify image file",
    ),
    "cut short": (cut, "{folder}/b.PNG cannot be read as a picture ("),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_of_photographs_with_a_fault_is_refused(gallery: Path, name: str):
    plant, expected = BAD_FOLDERS[name]
    plant(gallery)
    assert expected.format(folder=gallery) in refused(lambda: made("clean-32-sklearn-folder"))


def test_own_photographs_need_the_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MUNI_BENCH_DATA", raising=False)
    assert refused(lambda: made("clean-32-sklearn-folder")).startswith("MUNI_BENCH_DATA is not set: set it to a folder")


def test_a_run_is_not_gone_on_with_on_other_photographs(gallery: Path, tmp_path: Path):
    cell = Cell("polymnist_quadrant_labels", (), CARD.modalities)
    job = job_of("chance", "polymnist_quadrant_labels", "smoke", 0, [(cell, "label_coherence")])

    def run(**fresh: bool) -> list[str]:
        prepared = run_identity.prepare(job, tmp_path / "runs", ["variant=clean-16-sklearn-folder", "train_rows=200"])
        (tmp_path / "runs" / "results.csv").unlink(missing_ok=True)
        assert execution.execute([prepared], "cpu", lambda *_: None, **fresh) == []
        return results_file.load(prepared.results)["status"].tolist()

    assert run() == run() == ["ok"]
    (gallery / "a.jpg").rename(gallery / "z.jpg")
    with pytest.raises(UserError, match=r"begun on the data .* put the former back, or pass --fresh"):
        run()
    assert run(fresh=True) == run() == ["ok"]


def test_what_chance_scores_is_known_and_not_sampled(monkeypatch: pytest.MonkeyPatch):
    data, found = made("clean-16-sklearn"), {}
    chance = Chance(data.modalities, config("clean-16-sklearn"))
    chance.bind(data)
    monkeypatch.setattr(chance, "sample", lambda *_: pytest.fail("sampled"))
    for cell, metric in [
        (Cell("polymnist_quadrant_labels", ("digit", "quadrant"), ("image1",)), "label_accuracy"),
        (Cell("polymnist_quadrant_labels", (), CARD.modalities), "label_coherence"),
    ]:
        (found[metric],) = evaluate_cell(chance, data, cell, [metric], config("clean-16-sklearn"), 0, "cpu")
    assert found["label_accuracy"].score == Score(1 / 40, 0.0, 80)
    assert found["label_coherence"].score == Score(pytest.approx(1 / 4**3 / 10**3), 0.0, 120)
    monkeypatch.undo()
    cell = Cell("polymnist_quadrant_labels", ("digit",), ("image1",))
    names = ["label_accuracy", "verifier_accuracy"]
    exact, measured = evaluate_cell(chance, data, cell, names, config("clean-16-sklearn"), 0, "cpu")
    assert exact.score.stderr == 0 and measured.score.stderr > 0
