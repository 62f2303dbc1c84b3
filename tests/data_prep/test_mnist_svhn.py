"""MNIST-SVHN: pairs of one class, on made-up files in SVHN's format; and what is said of files that are none."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from torch import Tensor

from benchmark import registry
from benchmark.api import Cell, UserError
from benchmark.config import Config, resolve
from benchmark.runtime import Draws
from data_prep.digits import mnist_digits, svhn
from data_prep.media import data_folder
from data_prep.mnist_svhn import VARIANTS, MnistSvhn
from tests.data_prep import house_numbers
from tests.data_prep.picture_references import bilinear, spread

CARD = registry.card("dataset", "mnist_svhn")
SPLITS = ("train", "validation", "test", "verifier")
MADE_UP = "clean-sklearn-folder"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with made-up files."""
    return house_numbers.write(tmp_path_factory.mktemp("data")).parent


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUNI_BENCH_DATA", str(made))
    return made / "svhn"


def config(variant: str = MADE_UP, **counts: int) -> Config:
    small = {"train_rows": 2_000, "evaluation_rows": 80, "unconditional_rows": 120, "probe_rows": 100}
    overrides = [f"{field}={value}" for field, value in (small | counts).items()]
    return resolve(CARD, None, "smoke", [f"variant={variant}", *overrides]).config


def everything(data: MnistSvhn, split: str) -> dict[str, Tensor]:
    return data.rows(split, torch.arange(data.count(split)))


def shown(rows: dict[str, Tensor]) -> Tensor:
    """The number that each made-up house number carries, (rows,)."""
    first = (rows["svhn"][:, :, 0, 0] * 255).round().long()
    assert (first[:, 2] == 7).all()
    return first[:, 0] * 256 + first[:, 1]


# What a row shows.


def test_rows_equal_the_files_and_a_resizing_by_hand() -> None:
    data = MnistSvhn(config())
    table = np.loadtxt(data_folder.packaged("sklearn", "datasets/data/digits.csv.gz", ""), delimiter=",")
    for split, index in (("train", 0), ("train", 1_999), ("test", 7), ("verifier", 41), ("validation", 3)):
        digit, written, number = data.pairs(split)[:, index].tolist()
        row = data.rows(split, torch.tensor([index]))
        assert set(row) == {"mnist", "svhn", "digit"} and row["digit"].tolist() == [digit]
        assert table[written, 64] == digit == house_numbers.label(number) % 10
        expected = bilinear(table[written, :64].reshape(8, 8), 28) / 16
        assert np.abs(row["mnist"][0, 0].numpy() - expected).max() < 1e-6
        pixels = house_numbers.picture(number).astype(np.float32) / 255
        assert np.array_equal(row["svhn"][0].numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("variant", [MADE_UP, "paper-sklearn-folder"])
def test_both_pictures_show_the_digit_and_come_from_the_splits_part(variant: str) -> None:
    data, seen = MnistSvhn(config(variant)), {}
    labels = np.array([house_numbers.label(number) % 10 for number in range(680)])
    for split in SPLITS:
        rows, pairs = everything(data, split), data.pairs(split)
        assert torch.equal(shown(rows), pairs[2])
        assert np.array_equal(labels[pairs[2]], rows["digit"].numpy())
        assert np.array_equal(mnist_digits.load("sklearn").labels[pairs[1]], rows["digit"].numpy())
        assert all(torch.equal(block.sort().values, torch.arange(10)) for block in rows["digit"].split(10))
        seen[split] = [set(side.tolist()) for side in pairs[1:]]
    for side, ends in enumerate(((0, 1_497, 1_797), (0, 480, 680))):
        assert seen["test"][side] <= set(range(*ends[1:]))
        assert set.union(*(seen[split][side] for split in SPLITS if split != "test")) <= set(range(*ends[:2]))
    apart = [not one[side] & other[side] for one, other in itertools.combinations(seen.values(), 2) for side in (0, 1)]
    assert all(apart) == (variant == MADE_UP)


def test_passes_pair_each_picture_of_the_smaller_class_once_and_with_other_partners() -> None:
    """Of class 1 the made-up training part has 48 pictures, and scikit-learn's more: a pass has 48 pairs."""
    pairs = MnistSvhn(config(train_rows=4_800)).pairs("train")
    ones = pairs[1:, pairs[0] == 1]
    assert ones.shape[1] == 480
    passes = ones.split(48, dim=1)
    for each in passes:
        assert len(set(each[1].tolist())) == 48 == len(set(each[0].tolist()))
    orders = {tuple(each[1].tolist()) for each in passes}
    assert len(orders) == 10
    partners = {number: set(ones[0, ones[1] == number].tolist()) for number in ones[1].tolist()}
    assert min(map(len, partners.values())) > 5
    assert spread(ones[0].unique(return_counts=True)[1]) < 6  # of the larger class, none is preferred


def test_rows_are_the_same_in_any_order_and_batch_and_however_many_there_are() -> None:
    data, fresh = MnistSvhn(config()), MnistSvhn(config())
    more = MnistSvhn(config(train_rows=9_001, evaluation_rows=77, probe_rows=7))
    state = torch.get_rng_state()
    for split in reversed(SPLITS):
        whole = everything(data, split)
        shuffled = torch.randperm(fresh.count(split), generator=torch.Generator().manual_seed(0))
        for part in shuffled.split(37):
            assert all(torch.equal(x, whole[name][part]) for name, x in fresh.rows(split, part).items())
        common = min(data.count(split), more.count(split))
        assert torch.equal(more.pairs(split)[:, :common], data.pairs(split)[:, :common])
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_are_made_where_the_data_live() -> None:
    rows = MnistSvhn(config(), "meta").rows("train", torch.arange(32, device="meta"))
    assert {name: (x.device.type, tuple(x.shape)) for name, x in rows.items()} == {
        "mnist": ("meta", (32, 1, 28, 28)),
        "svhn": ("meta", (32, 3, 32, 32)),
        "digit": ("meta", (32,)),
    }


def test_conditional_keeps_the_digit_and_independent_does_not() -> None:
    data, draws = MnistSvhn(config()), Draws("test", rows=2_000)
    labels = torch.tensor([house_numbers.label(number) % 10 for number in range(680)])
    given = {"mnist": torch.zeros(2_000, 1, 28, 28), "digit": torch.arange(2_000) % 10}
    numbers = shown(data.conditional(given, ("svhn",), draws))
    assert torch.equal(labels[numbers], given["digit"])
    assert set(numbers.tolist()) == set(range(480, 680))  # the test set alone, and all of it
    apart = shown(data.independent(("svhn", "mnist"), draws))
    assert (labels[apart] == given["digit"]).float().mean() < 0.15


# Files that are none of SVHN's.


def edited(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = loadmat(folder / name)
        held = {key: content[key] for key in ("X", "y")}
        change(held)
        savemat(folder / name, held)

    return edit


def cut(folder: Path) -> None:
    content = (folder / "train_32x32.mat").read_bytes()
    (folder / "train_32x32.mat").write_bytes(content[: len(content) // 2])


def flipped(folder: Path) -> None:
    content = bytearray((folder / "test_32x32.mat").read_bytes())
    content[5_000] ^= 0xFF
    (folder / "test_32x32.mat").write_bytes(content)


def newer(folder: Path) -> None:
    (folder / "test_32x32.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(600))


FAULTS = {
    "train_32x32.mat is damaged (": cut,
    "test_32x32.mat is damaged (": flipped,
    "test_32x32.mat begins with 'MATLAB 7.3 MAT-file', not with 'MATLAB 5.0 MAT-file': get it anew from": newer,
    "test_32x32.mat begins with '', not": lambda folder: (folder / "test_32x32.mat").write_bytes(b""),
    "lacks test_32x32.mat: put it there, from http": lambda folder: (folder / "test_32x32.mat").unlink(),
    "train_32x32.mat holds no array y": edited("train_32x32.mat", lambda held: held.pop("y")),
    "X is (32, 32, 3, 480) float64, not (32, 32, 3, n) uint8": edited(
        "train_32x32.mat", lambda held: held.update(X=held["X"] / 255)
    ),
    "X is (480, 3, 32, 32) uint8, not (32, 32, 3, n) uint8": edited(
        "train_32x32.mat", lambda held: held.update(X=held["X"].transpose(3, 2, 0, 1))
    ),
    "X is (32, 32, 3) uint8, not": edited("train_32x32.mat", lambda held: held.update(X=held["X"][..., 0])),
    "y is (479, 1), not (480, 1), a label for each picture": edited(
        "train_32x32.mat", lambda held: held.update(y=held["y"][1:])
    ),
    "y is (1, 480), not (480, 1)": edited("train_32x32.mat", lambda held: held.update(y=held["y"].T)),
    "y holds what is no whole number from 1 to 10": edited("test_32x32.mat", lambda held: held.update(y=held["y"] - 1)),
    "test_32x32.mat: y holds what is no whole": edited("test_32x32.mat", lambda held: held.update(y=held["y"] * 1.0)),
    "its pictures for the split test show no 4": edited(
        "test_32x32.mat", lambda held: held.update(y=np.where(held["y"] == 4, 5, held["y"]).astype(np.uint8))
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_files_that_are_not_svhns_get_one_line(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = house_numbers.write(tmp_path)
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    FAULTS[message](folder)
    with pytest.raises(UserError) as error:
        MnistSvhn(config())
    assert message in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_files_says_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    for variant in (MADE_UP, "clean-sklearn"):
        with pytest.raises(UserError) as error:
            MnistSvhn(config(variant))
        assert f"no SVHN: no train_32x32.mat or test_32x32.mat in {tmp_path / 'svhn'}" in str(error.value)
        assert "http://ufldl.stanford.edu/housenumbers" in str(error.value)
    monkeypatch.delenv("MUNI_BENCH_DATA")
    with pytest.raises(UserError, match="no SVHN: MUNI_BENCH_DATA is not set"):
        MnistSvhn(config())


def test_other_files_than_the_official_ones_need_a_variant_that_says_so(here: Path) -> None:
    with pytest.raises(
        UserError, match=r"train_32x32.mat is not the official one: it has md5 [0-9a-f]{32}, not e26dedcc"
    ):
        MnistSvhn(config("clean-sklearn"))
    assert MnistSvhn(config(MADE_UP)).identity.startswith(f"mnist_svhn {MADE_UP}:")


def test_pictures_from_the_hub_are_those_of_the_files(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the same pictures on it, it makes the same world, and other numbers of them are refused."""
    asked = []

    def load_dataset(*names: str) -> dict[str, dict[str, Any]]:
        asked.append(names)
        found = {}
        for split in ("train", "test"):
            held = loadmat(here / f"{split}_32x32.mat")
            found[split] = {"image": list(held["X"].transpose(3, 0, 1, 2)), "label": (held["y"][:, 0] % 10).tolist()}
        return found

    files = svhn.load(official=False)
    monkeypatch.setitem(sys.modules, "datasets", type(sys)("datasets"))
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", load_dataset, raising=False)
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"cannot be fetched from Hugging Face \(ValueError: pictures of shape"):
        MnistSvhn(config("clean-sklearn"))
    monkeypatch.setattr(
        svhn, "OFFICIAL", {name: ("", count) for name, count in zip(svhn.OFFICIAL, (480, 200), strict=True)}
    )
    found = svhn.load(official=True)
    assert found.digest == files.digest and np.array_equal(found.images, files.images)
    assert np.array_equal(found.labels, files.labels)
    assert asked == [("ufldl-stanford/svhn", "cropped_digits")] * 2


# Contract.


def test_presets_resolve_to_known_variants_and_the_networks_take_both_pictures() -> None:
    names = {preset: resolve(CARD, None, preset).config for preset in ("paper", "gpu", "cpu", "smoke")}
    assert {preset: each.variant for preset, each in names.items()} == {
        "paper": "paper",
        "gpu": "clean",
        "cpu": "clean",
        "smoke": MADE_UP,
    }
    assert len(VARIANTS) == 8
    for each in names.values():
        with torch.device("meta"):
            made = registry.load("method", "mopoe")(MnistSvhn(config()).modalities, each)
        assert [family.names for family in made.families] == [["mnist"], ["svhn"]]
    with pytest.raises(UserError, match="unknown variant 'claen': did you mean 'clean'"):
        MnistSvhn(config("claen"))


def test_seen_by_networks_the_pictures_have_about_unit_scale() -> None:
    rows = everything(MnistSvhn(config()), "train")
    for modality in MnistSvhn(config()).modalities:
        seen = (rows[modality.name] - modality.center) / modality.scale
        assert 0.4 < seen.std() < 1.6 and seen.mean().abs() < 0.8


def test_cells_generate_as_many_rows_as_the_recipe_says() -> None:
    data = MnistSvhn(config())
    assert data.rows_of(Cell("mnist_svhn", ("svhn",), ("mnist",))) == 80
    assert data.rows_of(Cell("mnist_svhn", (), ("svhn",))) == 120
    assert [data.count(split) for split in SPLITS] == [2_000, 120, 240, 2_000]
