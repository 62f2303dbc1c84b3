"""Rows of an external model from raw inputs to the table, by a runner that needs nothing: scored, marked, refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmark.api import UserError
from benchmark.records import regression, results_file
from tests.baselines.published_models import check_rows, put_runner, reproduced, set_up, share_spoken_digits
from tests.helpers.command import bench

pytestmark = pytest.mark.slow


@pytest.fixture
def stand_in(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an external.toml that has a stand-in in the name of CoDi."""
    checkpoint = put_runner("codi", tmp_path, monkeypatch)
    set_up("codi", tmp_path, monkeypatch, sys.executable, tmp_path, checkpoint, stand_in=True)
    share_spoken_digits(tmp_path_factory, monkeypatch)
    return tmp_path


def test_every_direction_is_scored_and_marked_or_says_why_not(stand_in: Path) -> None:
    rows = check_rows("codi", stand_in).set_index(["method", "given", "want"])
    assert rows.loc[("codi", "image", "text"), "value"] == 0  # it names no digit
    assert rows.loc[("real", "image", "text"), "value"] == 1
    assert (
        results_file.shared_protocol(rows.loc[("codi", "image", "text"), "protocol"])
        == (rows.loc[("real", "image", "text"), "protocol"])
    )
    assert rows.loc[("codi", "", "text+image+audio"), "status"] == "n/a: it needs to hear something"


def test_what_was_made_is_scored_again_as_its_own_and_not_as_anothers(stand_in: Path) -> None:
    """Another setting, or the mark taken away, makes everything anew."""

    def made() -> tuple[dict[Path, int], set[str]]:
        (stand_in / "runs" / "results.csv").unlink(missing_ok=True)
        reproduced("codi", stand_in, "--method", "codi")
        rows = results_file.load(stand_in / "runs" / "results.csv")
        files = stand_in.glob("runs/smoke/spoken_digits/codi/*/generated/**/*.png")
        return {path: path.stat().st_mtime_ns for path in files}, set(rows[rows["status"] == "ok"]["protocol"])

    first = made()
    assert first[0] and len(first[1]) == 1
    assert made() == first
    path = stand_in / "external.toml"
    path.write_text(path.read_text().replace("stand_in = true", ""))
    again = made()
    assert again[0].keys() == first[0].keys() and not set(again[0].values()) & set(first[0].values())
    assert len(again[1]) == 1 and not any(map(results_file.is_stand_in, again[1]))
    path.write_text(path.read_text() + "steps = 6\n")
    assert made()[1].isdisjoint(again[1])


def test_numbers_that_would_be_taken_for_the_models_are_refused(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for preset, dataset in (("gpu", "spoken_digits"), ("paper", "image_text_audio")):
        command = ["run", "--method", "real", "--method", "codi", "--dataset", dataset, "--preset", preset]
        answer = bench(*command, "--runs", stand_in / "refused")
        assert answer.status == 2 and answer.err.startswith("bench: ") and len(answer.err.splitlines()) == 1
        assert f"is a stand-in on this machine, whose numbers preset {preset} would take" in answer.err
    assert not (stand_in / "refused").exists()  # nothing was run before
    reproduced("codi", stand_in, "--method", "codi")
    rows = results_file.load(stand_in / "runs" / "results.csv")
    with pytest.raises(UserError, match=r"\d+ rows are a stand-in's, the first of smoke spoken_digits.* codi"):
        regression.bless(rows, stand_in / "smoke.csv", "they look good", stand_in / "LOG.md")
    assert not (stand_in / "smoke.csv").exists() and not (stand_in / "LOG.md").exists()
