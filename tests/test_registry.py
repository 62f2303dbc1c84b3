"""Names of plug-ins: files, and a method with switches of its card; and what the code of one is."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark import registry
from benchmark.api import UserError
from benchmark.fitting import network_store
from benchmark.records.job import job_of
from benchmark.records.run_identity import prepare
from models.muni import MUNI

SWITCHED = """
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1, label="Mine", paper="none", variants={"loud": {"volume": 11}, "lost": {"pitch": 2}}
)


class Mine:
    volume = 5


METHOD = Mine
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(SWITCHED)
    return str(path)


def test_a_variant_is_the_method_with_its_attributes():
    switched = registry.load("method", "muni:mixture+attached")
    assert issubclass(switched, MUNI)
    assert (switched.mixture, switched.detach_own, switched.prior_law) == (True, False, MUNI.prior_law)
    assert (MUNI.mixture, MUNI.detach_own) == (False, True)
    assert registry.card("method", "muni:mixture+attached").label == "MUNI: mixture, attached"
    assert registry.card("method", "muni:prior_on_all").label == "MUNI: prior on all"
    assert registry.locate("method", "muni:mixture") == registry.locate("method", "muni")


def test_a_users_file_has_variants_too(mine: str):
    assert registry.load("method", f"{mine}:loud").volume == 11
    assert registry.load("method", mine).volume == 5
    assert registry.stem(f"{mine}:loud") == "mine:loud" and registry.stem(mine) == "mine"
    assert registry.stem("muni:mixture+attached") == "muni:mixture+attached"


def test_switches_in_any_order_are_one_method(mine: str, tmp_path: Path):
    assert registry.stem("muni:attached+mixture") == registry.stem("muni:mixture+attached") == "muni:mixture+attached"
    assert registry.stem(f"{mine}:lost+loud") == "mine:loud+lost"
    assert registry.stem("unknown:b+a") == "unknown:b+a"  # rows of a file that is not here
    assert registry.card("method", "muni:attached+mixture").label == "MUNI: mixture, attached"
    one, other = (
        prepare(job_of(name, "gaussian_mixture", "smoke", 0, []), tmp_path, [])
        for name in ("muni:mixture+attached", "muni:attached+mixture")
    )
    assert (one.run_id, one.training_id, one.directory) == (other.run_id, other.training_id, other.directory)


def test_a_colon_in_a_folder_is_no_variant(tmp_path: Path):
    folder = tmp_path / "odd:folder"
    folder.mkdir()
    (folder / "mine.py").write_text(SWITCHED)
    assert registry.load("method", str(folder / "mine.py")).volume == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("muni:mixtur", "muni:mixtur: MUNI has no variant 'mixtur': did you mean 'mixture'?"),
        ("mopoe:mixture", "mopoe:mixture: MoPoE has no variant 'mixture': it has none"),
        ("munni:mixture", "unknown method 'munni': did you mean 'muni'?"),
        ("muni:prior_on_full+prior_on_all", "its switches set prior_law twice: leave one of them"),
    ],
)
def test_a_wrong_variant_is_the_users_error(name: str, message: str):
    with pytest.raises(UserError, match=message.replace("?", r"\?").replace("+", r"\+")):
        registry.card("method", name)


def test_a_variant_of_an_attribute_that_is_not_there_is_the_files_error(mine: str):
    with pytest.raises(UserError, match="variants: Mine has no attribute 'pitch'"):
        registry.load("method", f"{mine}:lost")


def test_a_file_that_is_no_utf8_is_one_line(tmp_path: Path):
    path = tmp_path / "latin.py"
    path.write_bytes(SWITCHED.replace("none", "caf\u00e9").encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.py: not valid Python: .*: save it as UTF-8"):
        registry.card("method", str(path))


def test_an_import_by_an_older_name_says_the_new_one(tmp_path: Path):
    path = tmp_path / "older.py"
    path.write_text(f"from models.latent import LatentModel\n\n{SWITCHED}")
    with pytest.raises(UserError, match=r"older.py: models.latent is now models.components.latent: rename the import"):
        registry.load("method", str(path))
    path.write_text(f"from models.novel import Novel\n\n{SWITCHED}")
    with pytest.raises(ModuleNotFoundError, match=r"models\.novel"):
        registry.load("method", str(path))


def test_only_methods_have_variants():
    with pytest.raises(UserError, match="unknown dataset 'gaussian_mixture:loud'"):
        registry.card("dataset", "gaussian_mixture:loud")


# ------------------------------------------------------------------------------------------ the code behind a number


Plant = Callable[[str, str, str], None]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Puts a change into a file of a copy of the tree, which the registry reads from now on."""
    for folder in ("benchmark", "data_prep"):
        shutil.copytree(registry.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(registry, "ROOT", tmp_path)

    def change(file: str, old: str, new: str) -> None:
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))
        registry.sources.cache_clear()

    return change


def code(file: str) -> str:
    return registry.sources(registry.ROOT / file)


TRAINED = ("benchmark/judges/verifier.py", "benchmark/judges/towers.py", "data_prep/spoken/spoken_codecs.py")
READ_BY_THEM = ("benchmark/metrics/label_accuracy.py", "benchmark/metrics/ais.py", "data_prep/spoken_digits.py")


@pytest.mark.parametrize("file", [*TRAINED, *READ_BY_THEM])
def test_how_networks_are_fitted_and_asked_is_part_of_the_code_behind_them(file: str, plant: Plant):
    seen = [code(file)]
    plant(
        "benchmark/fitting/network_store.py", "training anew", "it is trained anew"
    )  # how they are kept moves no number
    assert code(file) == seen[0]
    for old, new in (("(1 - done) / (1 - warm)", "1.0"), ('[""] * lacking', '["?"] * lacking')):
        plant("benchmark/fitting/frozen_network.py", old, new)
        seen.append(code(file))
    assert len(set(seen)) == 3


def test_what_a_network_depends_on_is_its_own_code_and_that_of_its_rows(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "planted_world.py").write_text("CARD = 1\n\n\nclass World:\n    size = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    world = importlib.import_module("planted_world").World()
    files = [str(registry.ROOT / file) for file in TRAINED]
    seen = [network_store.code_of(file, world) for file in files]
    plant("planted_world.py", "CARD = 1", "CARD = 2")
    assert [network_store.code_of(file, world) for file in files] == seen
    plant("planted_world.py", "size = 2", "size = 3")
    other = [network_store.code_of(file, world) for file in files]
    plant("benchmark/fitting/frozen_network.py", "(1 - done) / (1 - warm)", "1.0")
    anew = [network_store.code_of(file, world) for file in files]
    for first, second, third in zip(seen, other, anew, strict=True):
        assert first[0] == second[0] != third[0] and first[1] != second[1] == third[1]


METRICS = ("cider", "fid", "label_accuracy", "swd", "shared_mse", "energy_score", "probe_linear")


@pytest.mark.parametrize(
    ("file", "old", "new", "moved"),
    [
        ("known_world.py", "step = 0.05", "step = 0.1", {"swd", "shared_mse", "energy_score"}),
        ("sliced_distance.py", "DIRECTIONS = 128", "DIRECTIONS = 64", {"swd"}),
        ("shared_coordinates.py", ".square().mean(1)", ".abs().mean(1)", {"shared_mse"}),
        ("explained_variance.py", "Score(1 - left.value", "Score(left.value", {"probe_linear"}),
        ("row_statistics.py", "if rows < least", "if rows <= least", {*METRICS}),
    ],
)
def test_what_one_kind_of_metric_needs_is_no_part_of_the_others(
    plant: Plant, file: str, old: str, new: str, moved: set[str]
):
    before = {metric: code(f"benchmark/metrics/{metric}.py") for metric in METRICS}
    plant(f"benchmark/metrics/common/{file}", old, new)
    assert {metric for metric in METRICS if code(f"benchmark/metrics/{metric}.py") != before[metric]} == moved
