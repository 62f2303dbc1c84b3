"""The tables of Multi-modal Latent Diffusion, from the command to the page, at two updates a method."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.records import results_file
from tests.data_prep import house_numbers
from tests.helpers.command import bench

FEW = [word for field in ("updates=2", "train_rows=100", "evaluation_rows=20") for word in ("--set", field)]
CELLS = {"mld": 5 * 4, "mld_svhn": 2}


@pytest.mark.parametrize(
    ("table", "dataset", "chance"),
    [
        pytest.param("mld", "polymnist", 0.1**4, marks=pytest.mark.slow, id="mld"),
        pytest.param("mld_svhn", "mnist_svhn", 0.1, id="mld_svhn"),
    ],
)
def test_a_table_is_run_and_printed(
    table: str, dataset: str, chance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MUNI_BENCH_DATA", str(house_numbers.write(tmp_path).parent))
    methods = [word for name in ("mopoe", "real", "chance") for word in ("--method", name)]
    answer = bench("reproduce", table, "--preset", "smoke", *methods, *FEW, "--runs", tmp_path / "runs")
    assert answer.status == 0, answer.err
    assert "(MLD)" in answer.out and "Joint ↑" in answer.out and "verifier on" in answer.out
    frame = results_file.load(tmp_path / "runs" / "results.csv")
    assert set(frame["method"]) == {"mopoe", "real", "chance"}
    assert all(name.startswith(f"{dataset}:clean") for name in frame["dataset"])
    counts = frame[frame["status"] == "ok"].groupby("metric").size()
    assert counts["digit_coherence"] == 3 and counts["label_accuracy"] == 3 * CELLS[table]
    refused = frame[frame["status"] != "ok"]
    assert set(refused["metric"]) == {"frechet_verifier"} and refused["status"].str.contains("at least 320").all()
    known = frame[frame["method"] == "chance"].set_index("metric")["value"]
    assert known["digit_coherence"] == pytest.approx(chance)
    assert known["label_accuracy"].tolist() == pytest.approx([0.1] * CELLS[table])


def test_without_house_numbers_one_line_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    answer = bench("reproduce", "mld_svhn", "--preset", "smoke", "--method", "mopoe", "--runs", tmp_path / "runs")
    assert answer.status == 2 and "no SVHN: no train_32x32.mat or test_32x32.mat in" in answer.err
    assert not (tmp_path / "runs" / "results.csv").exists()
