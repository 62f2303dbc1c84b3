"""A search: the same trials for every method, on rows that are not the test's, each a line computed once."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmark import registry
from benchmark.api import Cell, UserError
from benchmark.config import resolve
from benchmark.engine import execution, tune
from benchmark.engine.evaluate import evaluate_cell
from benchmark.engine.train import Diverged
from benchmark.records import run_identity
from benchmark.records.job import job_of

FIXED = ["updates=4", "train_rows=300", "evaluation_rows=64", "unconditional_rows=64", "batch_rows=16"]
SEARCH = """
dataset = "gaussian_mixture"
seed = 7
fixed = [{fixed}]
metrics = {{ one_to_one = "shared_mse", many_to_one = "shared_mse", coherence = "shared_mse" }}

[grid]
learning_rate = [0.001, 0.003]
encoder_grad_scale = [0.001]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder with a search of two points."""
    (tmp_path / "small.toml").write_text(SEARCH.format(fixed=", ".join(f'"{text}"' for text in FIXED)))
    return tmp_path


def run(folder: Path, *methods: str) -> list[dict]:
    search = tune.load_search("small", folder)
    return list(tune.tune(search, methods, "smoke", "cpu", folder, lambda *_: None))


def test_every_method_gets_every_point_and_a_line_each(folder: Path) -> None:
    lines = run(folder, "muni", "shala")
    points = [f"learning_rate={rate} encoder_grad_scale=0.001" for rate in (0.001, 0.003)]
    assert [(line["method"], line["overrides"]) for line in lines] == [
        (m, p) for m in ("muni", "shala") for p in points
    ]
    with (folder / "small.csv").open() as file:
        written = list(csv.DictReader(file))
    assert written == [{key: str(value) for key, value in line.items()} for line in lines]
    muni, shala = float(lines[0]["score"]), lines[2]
    errors = [float(lines[0][name]) for name in tune.ERRORS]
    assert muni == pytest.approx((errors[0] * errors[1] * errors[2]) ** (1 / 3), rel=1e-4)
    assert shala["many_to_one"] == ""  # it takes one modality at most
    assert float(shala["score"]) == pytest.approx(
        (float(shala["one_to_one"]) * float(shala["coherence"])) ** 0.5, rel=1e-4
    )


def test_a_line_is_computed_once_and_replaced_by_newer_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder, "muni")
    monkeypatch.setattr(tune, "_trial", lambda *_: pytest.fail("computed again"))
    assert [line["score"] for line in run(folder, "muni")] == [line["score"] for line in first]
    monkeypatch.undo()
    text = (folder / "small.csv").read_text().replace(first[0]["run_id"], "0123456789")
    (folder / "small.csv").write_text(text)
    again = run(folder, "muni")
    assert {line["run_id"] for line in again} == {line["run_id"] for line in first}
    assert len(tune.read_lines(folder / "small.csv")) == 2


def test_the_score_is_that_of_the_validation_rows(folder: Path) -> None:
    job = job_of("muni", "gaussian_mixture", "smoke", 7, [])
    point = ["learning_rate=0.001", "encoder_grad_scale=0.001"]
    run(folder, "muni")
    prepared = run_identity.prepare(job, folder, [*FIXED, *point])
    method, data, _ = execution.trained_method(prepared, "cpu")
    cell = Cell("gaussian_mixture", (), ("x1", "x2", "x3"))
    scored = {
        name: next(evaluate_cell(method, source, cell, ["shared_mse"], prepared.config, 7, "cpu")).score.value
        for name, source in {"test": data, "validation": tune.on_validation(data)}.items()
    }
    # Nothing is given, so the rows of the split do not matter to coherence; a conditional cell tells them apart.
    assert scored["test"] == scored["validation"]
    assert float(tune.read_lines(folder / "small.csv")[0]["coherence"]) == pytest.approx(scored["validation"], rel=1e-5)
    rows = torch.arange(5)
    assert torch.equal(tune.on_validation(data).rows("test", rows)["x1"], data.rows("validation", rows)["x1"])
    assert not torch.equal(tune.on_validation(data).rows("test", rows)["x1"], data.rows("test", rows)["x1"])
    assert torch.equal(tune.on_validation(data).rows("train", rows)["x1"], data.rows("train", rows)["x1"])


def test_a_point_that_diverges_is_a_line_and_the_search_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = execution.train_only

    def diverging(prepared: run_identity.Run, *rest: object) -> object:
        if prepared.config.learning_rate == 0.003:
            raise Diverged("planted")
        return train(prepared, *rest)

    monkeypatch.setattr(execution, "train_only", diverging)
    assert [line["score"] == "inf" for line in run(folder, "muni")] == [False, True]
    shown = tune.render(tune.load_search("small", folder), tune.read_lines(folder / "small.csv"), "smoke")
    assert "| MUNI | inf |" in shown and "learning_rate=0.001" in shown


def line(method: str, overrides: str, score: float, **errors: str) -> dict[str, str]:
    blank = dict.fromkeys(tune.COLUMNS, "")
    return blank | {"method": method, "preset": "cpu", "overrides": overrides, "score": str(score)} | errors


@pytest.mark.parametrize("name", ["tuning", "pictures_tuning"])
def test_the_best_stands_beside_the_shared_recipe(name: str) -> None:
    search = tune.load_search(name)
    shared = resolve(registry.card("dataset", search.dataset), None, "cpu").config
    recipe = f"learning_rate={shared.learning_rate} encoder_grad_scale={shared.encoder_grad_scale}"
    assert (recipe,) in {(" ".join(point),) for point in search.points}  # the grid holds what the tables show
    other = next(" ".join(point) for point in search.points if " ".join(point) != recipe)
    lines = [line("muni", recipe, 0.5), line("muni", other, 0.6), line("mvae", recipe, 0.5), line("mvae", other, 0.25)]
    lines.append(line("muni", "learning_rate=9 encoder_grad_scale=9", 0.1))  # no point of the search
    shown = tune.render(search, lines, "cpu")
    assert "| MUNI | 0.5 | 0.5 | the shared recipe | 1.00 |" in shown
    assert f"| MVAE | 0.5 | 0.25 | {other} | 0.50 |" in shown


def test_one_field_shows_each_error_along_its_values() -> None:
    search = tune.load_search("budget")
    lines = [
        line("shala", point[0], 1, one_to_one=str(k + 0.25), coherence=str(k + 0.125))
        for k, point in enumerate(search.points)
    ]
    # In whatever order, with another preset's among them, or one lacking.
    shown = tune.render(search, [lines[0] | {"preset": "gpu", "one_to_one": "9"}, *lines[::-1]], "cpu")
    assert "| ShaLa-style, one to one | 0.25 | 1.25 |" in shown
    assert "| ShaLa-style, many to one | — | — |" in shown
    assert "| ShaLa-style, coherence | 0.125 | 1.12 |" in shown
    assert "| ShaLa-style, one to one | — | 1.25 |" in tune.render(search, lines[1:], "cpu")
    assert "| ShaLa-style, train seconds | — | — |" in shown
    assert "bench tune budget --preset gpu" in tune.render(search, lines, "gpu")


def test_changes_are_points_of_their_own(folder: Path) -> None:
    text = (folder / "small.toml").read_text().partition("[grid]")[0]
    (folder / "small.toml").write_text(text + 'changes = [[], ["prior_steps=2"], ["updates=6", "prior_width=16"]]')
    lines = run(folder, "muni")
    assert [line["overrides"] for line in lines] == ["", "prior_steps=2", "updates=6 prior_width=16"]
    assert lines[0]["one_to_one"] == lines[1]["one_to_one"] and lines[0]["coherence"] != lines[1]["coherence"]
    shown = tune.render(tune.load_search("small", folder), lines, "smoke")
    assert shown.startswith("| changed | nothing | prior_steps=2 | updates=6 prior_width=16 |\n")
    row = [f"{float(line['coherence']):.3g}" for line in lines]
    assert f"| MUNI, coherence | {' | '.join(row)} |" in shown
    assert "lacks to one" not in shown


def test_a_search_may_name_its_methods() -> None:
    named = tune.load_search("pictures_ablation").methods
    assert named[0] == "muni" and "muni:attached" in named
    assert all(registry.card("method", name).stages for name in named)
    assert tune.load_search("tuning").methods == ()


def test_of_a_rate_the_error_is_what_it_lacks_to_one(folder: Path) -> None:
    text = (folder / "small.toml").read_text().replace("gaussian_mixture", "polymnist_quadrant_labels")
    text = text.replace('"shared_mse"', '"label_accuracy"', 2).replace('"shared_mse"', '"label_coherence"')
    text = text.replace("64", "40").replace("[grid]", 'given = ["digit", "quadrant"]\nwant = ["image2"]\n[grid]')
    (folder / "small.toml").write_text(text)
    search = tune.load_search("small", folder)
    (first, _) = tune.tune(search, ["chance"], "smoke", "cpu", folder, lambda *_: None)
    assert 0.5 < float(first["one_to_one"]) < float(first["many_to_one"]) <= 1
    assert "lacks to one" in tune.render(search, [first], "smoke")


def test_unknown_and_broken_searches_are_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"unknown search 'smal': did you mean 'small'"):
        tune.load_search("smal", folder)
    (folder / "broken.toml").write_text("[grid]\nupdates = [1]\n")
    with pytest.raises(UserError, match="a search needs dataset, seed, fixed, metrics, and"):
        tune.load_search("broken", folder)
    (folder / "large.toml").write_text((folder / "small.toml").read_text().replace("seed = 7", "seed = 4294967296"))
    with pytest.raises(UserError, match=r"large.toml: seed 4294967296: write a whole number from 0 to 4294967295"):
        tune.load_search("large", folder)
    (folder / "small.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not the trials of a search"):
        tune.read_lines(folder / "small.csv")


def test_held_out_rows_are_of_the_datasets_own_class(folder: Path) -> None:
    """Or a verifier, which depends on the code of its dataset's class, would be trained for each version of this."""
    prepared = run_identity.prepare(job_of("muni", "gaussian_mixture", "smoke", 7, []), folder, FIXED)
    data = registry.load("dataset", "gaussian_mixture")(prepared.config, "cpu")
    held_out = tune.on_validation(data)
    assert type(held_out) is type(data)
    assert held_out.count("test") == data.count("validation") and held_out.count("train") == data.count("train")
    assert "rows" not in vars(data)  # the dataset itself is as it was
