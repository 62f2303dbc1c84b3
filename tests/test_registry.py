"""Names of plug-ins: files, and a method with switches of its card."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import registry
from benchmark.api import UserError
from benchmark.runner import prepare
from benchmark.tables import job_of
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


def test_only_methods_have_variants():
    with pytest.raises(UserError, match="unknown dataset 'gaussian_mixture:loud'"):
        registry.card("dataset", "gaussian_mixture:loud")
